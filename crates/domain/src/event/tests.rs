//! Decoding of publications of every form, valid and invalid.

use proptest::prelude::*;
use serde_json::{Value, json};
use time::macros::datetime;

use super::decode::MAX_ATTRIBUTE_BYTES;
use super::*;

const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json");

fn publication<'a>(
    subject_tail: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: &'a [u8],
) -> Publication<'a> {
    let time = datetime!(2026-01-31 12:00:00.5 UTC);
    let (tenant_token, stream) = (None, "HUB_EVENTS");
    Publication { subject_tail, tenant_token, headers, body, stream, sequence: 7, time, max_size: 4096 }
}

fn decode(subject_tail: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Result<Event, Rejection> {
    publication(subject_tail, headers, body.as_ref()).decode()
}

fn rejected(headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Rejection {
    decode("user.created", headers, body).expect_err("the publication is bad")
}

fn out(event: &Event) -> Value {
    serde_json::from_str(event.to_cloudevent().get()).unwrap()
}

#[test]
fn bare_json_takes_key_id_and_time_from_the_message() {
    let event = decode("user.created", &[], r#" {"user_id": 1.50} "#).unwrap();
    assert_eq!(
        (event.id.as_str(), event.tenant.as_str(), event.source.as_str()),
        ("HUB_EVENTS-7", "default", "nats")
    );
    assert_eq!(event.identity, "4:nats:user.created:HUB_EVENTS-7:1769860800500000000");
    assert_eq!(event.time, "2026-01-31T12:00:00.5Z");
    // The data is unchanged; numbers keep their form.
    assert!(event.to_cloudevent().get().ends_with(r#""data":{"user_id": 1.50}}"#));
    assert_eq!(
        out(&event),
        json!({"specversion": "1.0", "id": "HUB_EVENTS-7", "source": "nats", "type": "user.created",
               "time": "2026-01-31T12:00:00.5Z", "tenant": "default", "datacontenttype": "application/json",
               "data": {"user_id": 1.5}})
    );
}

#[test]
fn bare_json_takes_headers_in_any_case() {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers =
        [("nats-MSG-id", "m 1"), ("hub-Tenant", "acme"), ("Hub-Source", "idp"), ("Traceparent", trace)];
    let event = decode("user.created", &headers, "[1]").unwrap();
    assert_eq!((event.id.as_str(), event.tenant.as_str(), event.source.as_str()), ("m 1", "acme", "idp"));
    assert_eq!(event.identity, "3:idp:user.created:m 1");
    assert_eq!(event.extensions["traceparent"], trace);
    // Empty headers and a malformed trace context are ignored.
    let event = decode("user.created", &[("Nats-Msg-Id", ""), ("traceparent", "00-x-y-01")], "1").unwrap();
    assert_eq!((event.id.as_str(), event.extensions.len()), ("HUB_EVENTS-7", 0));
}

#[test]
fn binary_mode_reads_the_headers() {
    let headers = [
        ("ce-specversion", "1.0"),
        ("CE-Id", "a.b *>"),
        ("ce-source", "/idp/%E2%82%AC%20x"),
        ("ce-type", "role.granted"),
        ("ce-time", "2026-01-01T00:00:00+02:00"),
        ("ce-subject", "\"quoted \\\"name\\\"\""),
        ("ce-tenant", "acme"),
        ("ce-published", "true"),
        ("ce-datacontenttype", "application/json; charset=utf-8"),
        ("Hub-Tenant", "ignored"),
        ("X-Other", "ignored"),
    ];
    let event = decode("whatever the subject", &headers, r#"{"a":1}"#).unwrap();
    assert_eq!(
        (event.key.as_str(), event.id.as_str(), event.source.as_str()),
        ("role.granted", "a.b *>", "/idp/€ x")
    );
    assert_eq!((event.tenant.as_str(), event.time.as_str()), ("acme", "2026-01-01T00:00:00+02:00"));
    assert_eq!(event.subject.as_deref(), Some("quoted \"name\""));
    assert_eq!(event.extensions, BTreeMap::from([("published".to_owned(), json!("true"))]));
    assert_eq!(event.identity, format!("{}:/idp/€ x:role.granted:a.b *>", "/idp/€ x".len()));
    assert!(matches!(&event.data, EventData::Json(json) if json.get() == r#"{"a":1}"#));
}

const REQUIRED: [(&str, &str); 4] =
    [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "s"), ("ce-type", "user.created")];

fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    REQUIRED.iter().chain(more).copied().collect()
}

#[test]
fn binary_mode_takes_any_data() {
    let data = |more: &[(&str, &str)], body: &[u8]| {
        let event = decode("x", &with(more), body).unwrap();
        (out(&event)["data"].clone(), out(&event)["data_base64"].clone(), event.datacontenttype)
    };
    let json_type = Some("application/json".to_owned());
    assert_eq!(data(&[], b"{}"), (json!({}), Value::Null, json_type));
    assert_eq!(data(&[], b"\xff\x00"), (Value::Null, json!("/wA="), None));
    assert_eq!(data(&[], b""), (Value::Null, Value::Null, None));
    assert_eq!(
        data(&[("content-type", "text/plain")], b"7"),
        (Value::Null, json!("Nw=="), Some("text/plain".into()))
    );
    let problem = "Application/Problem+JSON;charset=utf-8";
    assert_eq!(data(&[("Content-Type", problem)], b"7"), (json!(7), Value::Null, Some(problem.into())));
    // The header of the binding has precedence.
    let both = [("content-type", "application/json"), ("ce-datacontenttype", "text/plain")];
    assert_eq!(data(&both, b"7").1, json!("Nw=="));
    let bad = decode("x", &with(&[("content-type", "application/json")]), "{").unwrap_err();
    assert_eq!(bad.reason, RejectReason::Malformed);
}

#[test]
fn structured_mode_reads_the_body() {
    let body = r#"{"specversion":"1.0","id":"e\u0041","source":"idp","type":"user.created","subject":null,
        "time":"2026-01-01T00:00:00Z","dataschema":"urn:x","published":true,"sequence":12,"correlationid":"c",
        "data": {"n": 1e2, "s": "ü"} }"#;
    for content_type in [
        "application/cloudevents+json",
        "Application/CloudEvents+JSON; charset=UTF-8",
        "application/cloudevents",
    ] {
        let event = decode("x", &[("CONTENT-TYPE", content_type), ("Hub-Tenant", "acme")], body).unwrap();
        assert_eq!((event.id.as_str(), event.tenant.as_str(), &event.subject), ("eA", "acme", &None));
        assert!(event.to_cloudevent().get().ends_with(r#""data":{"n": 1e2, "s": "ü"}}"#));
        for (name, expected) in [
            ("specversion", Some("1.0")),
            ("id", Some("eA")),
            ("source", Some("idp")),
            ("type", Some("user.created")),
            ("time", Some("2026-01-01T00:00:00Z")),
            ("tenant", Some("acme")),
            ("dataschema", Some("urn:x")),
            ("published", Some("true")),
            ("sequence", Some("12")),
            ("correlationid", Some("c")),
            ("subject", None),
            ("datacontenttype", None),
            ("data", None),
        ] {
            assert_eq!(event.attribute(name).as_deref(), expected, "{name}");
        }
    }
    let base64 = r#"{"specversion":"1.0","id":"1","source":"s","type":"a.b","data":null,"data_base64":"/wA=","tenant":"t.1"}"#;
    let event = decode("x", &[STRUCTURED], base64).unwrap();
    assert_eq!(event.tenant, "t.1");
    assert!(matches!(event.data, EventData::Binary(bytes) if bytes == [0xff, 0]));
}

/// The cost is linear in the number of attributes, in every form; quadratic, it would be minutes.
#[test]
fn very_many_attributes_cost_little() {
    let names: Vec<String> = (0..100_000).map(|number| format!("\"a{number}\":1")).collect();
    let members = names.join(",");
    let envelope = format!(
        r#"{{"data":{{}},"metadata":{{"headers":{{"id":"x","type":"user.created","stream":"s-1"}},"extensions":{{{members}}}}}}}"#
    );
    let event = format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"a.b",{members}}}"#);
    let headers: Vec<(String, String)> =
        (0..100_000).map(|number| (format!("ce-a{number}"), "1".to_owned())).collect();
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    for (headers, body) in [
        (&[("content-type", crate::producer_outbox::CONTENT_TYPE)][..], envelope.as_str()),
        (&[STRUCTURED][..], &event),
        (&[&REQUIRED[..], &headers].concat()[..], "{}"),
    ] {
        let publication =
            Publication { max_size: usize::MAX, ..publication("user.created", headers, body.as_bytes()) };
        let rejection = publication.decode().unwrap_err();
        assert_eq!(rejection.reason, RejectReason::TooLarge, "{rejection:?}");
    }
}

#[test]
fn bad_publications_are_rejected_with_a_remedy() {
    use RejectReason::{InvalidKey, Malformed, TooLarge};
    let structured = |body: &str| rejected(&[STRUCTURED], body);
    let more = |member: &str| {
        structured(&format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"a.b",{member}}}"#))
    };
    let attributes = "x".repeat(MAX_ATTRIBUTE_BYTES);
    for (rejection, reason, text) in [
        (rejected(&[], ""), Malformed, "empty"),
        (rejected(&[], b"{\"a\":\"\xff\"}"), Malformed, "UTF-8 at byte 6"),
        (rejected(&[], "{\"a\":}"), Malformed, "line 1 column 6"),
        (rejected(&[], "{} x"), Malformed, "line 1 column 4"),
        (rejected(&[], "x".repeat(4097)), TooLarge, "4097"),
        (rejected(&[("Hub-Tenant", "a b")], "{}"), Malformed, "tenant"),
        (decode("user", &[], "{}").unwrap_err(), InvalidKey, "<resource>.<operation>"),
        (rejected(&[("ce-id", "1")], "{}"), Malformed, "no specversion"),
        (rejected(&REQUIRED[..3], "{}"), Malformed, "no type"),
        (rejected(&with(&[("ce-specversion", "0.3")]), "{}"), Malformed, "0.3"),
        (rejected(&with(&[("ce-type", "user created")]), "{}"), InvalidKey, "user created"),
        (rejected(&with(&[("ce-my-ext", "1")]), "{}"), Malformed, "my-ext"),
        (rejected(&with(&[("ce-data", "1")]), "{}"), Malformed, "body"),
        (rejected(&with(&[("ce-subject", "%ff")]), "{}"), Malformed, "ce-subject"),
        (rejected(&with(&[("ce-time", "yesterday")]), "{}"), Malformed, "RFC 3339"),
        (rejected(&with(&[("ce-tenant", "x/y")]), "{}"), Malformed, "tenant"),
        (rejected(&with(&[("content-type", "text/plain")]), [0; 4000]), TooLarge, "base64"),
        (rejected(&[("Nats-Msg-Id", &attributes)], "{}"), TooLarge, "attributes"),
        (rejected(&[("content-type", "application/cloudevents-batch+json")], "[]"), Malformed, "batch"),
        (structured(""), Malformed, "empty"),
        (structured("[]"), Malformed, "object"),
        (structured("{}"), Malformed, "no specversion"),
        (more(r#""id":"2""#), Malformed, "duplicate member"),
        (more(r#""data":1,"data_base64":"AA==""#), Malformed, "both"),
        (more(r#""data_base64":"!""#), Malformed, "base64"),
        (more(r#""data_base64":1"#), Malformed, "base64"),
        (more(r#""subject":1"#), Malformed, "subject"),
        (more(r#""subject":"""#), Malformed, "subject"),
        (more(r#""tenant":5"#), Malformed, "tenant"),
        (more(r#""ext":{}"#), Malformed, "ext"),
        (more(r#""ext":1.5"#), Malformed, "ext"),
        (more(r#""Ext":"x""#), Malformed, "Ext"),
    ] {
        assert_eq!(rejection.reason, reason, "{rejection}");
        assert!(rejection.detail.contains(text), "{rejection}");
        assert!(rejection.detail.contains(';'), "no remedy: {rejection}");
    }
    let exactly = format!("{:4096}", 1);
    assert!(decode("user.created", &[], exactly).is_ok());
}

#[test]
fn reasons_are_subject_tokens() {
    let names = RejectReason::ALL.map(RejectReason::as_str);
    assert_eq!(names[..5], ["malformed", "invalid-key", "no-domain", "too-large", "tenant-mismatch"]);
    assert_eq!(names[5..], ["malformed-headers", "malformed-subject", "internal-error"]);
    let rejection = Rejection::no_domain(&"invoice.paid".parse().unwrap());
    assert!(rejection.reason == RejectReason::NoDomain && rejection.detail.contains("invoice.paid"));
}

#[test]
fn the_same_id_from_two_sources_is_two_events() {
    let identity = |source: &str, id: &str| {
        let headers = with(&[("ce-source", source), ("ce-id", id)]);
        decode("x", &headers, "{}").unwrap().identity
    };
    assert_ne!(identity("a", "1"), identity("b", "1"));
    assert_ne!(identity("a:1", "1"), identity("a", "1:1"));
    let of_key = |key: &str| decode(key, &[("Nats-Msg-Id", "1")], "{}").unwrap().identity;
    assert_ne!(of_key("user.created"), of_key("user.changed"), "one message id for two keys is two events");
    assert_eq!(identity("a", "1"), identity("a", "1"));
}

#[test]
fn binary_parts_of_each_kind_of_data() {
    let parts = |json: Value| binary_parts(&json.to_string()).unwrap();
    let body = |json: Value| {
        let parts = parts(json);
        (String::from_utf8(parts.body).unwrap(), parts.content_type)
    };
    let json_type = Some("application/json".to_owned());
    assert_eq!(body(json!({"data": {"a": 1}})), (r#"{"a":1}"#.to_owned(), json_type.clone()));
    assert_eq!(body(json!({"data": "text"})), ("\"text\"".to_owned(), json_type));
    let plain = Some("text/plain".to_owned());
    assert_eq!(
        body(json!({"data": "text", "datacontenttype": "text/plain"})),
        ("text".to_owned(), plain.clone())
    );
    assert_eq!(body(json!({"data": 1, "datacontenttype": "text/plain"})), ("1".to_owned(), plain.clone()));
    assert_eq!(
        body(json!({"data_base64": "aGk=", "datacontenttype": "text/plain"})),
        ("hi".to_owned(), plain)
    );
    assert_eq!(body(json!({"id": "1"})), (String::new(), None));

    // The example of the HTTP binding, section 3.1.3.2.
    let headers =
        parts(json!({"id": "Euro € 😀", "published": true, "n": 3, "q": "\"%~", "none": null})).headers;
    let expected = [
        ("ce-id", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
        ("ce-published", "true"),
        ("ce-n", "3"),
        ("ce-q", "%22%25~"),
    ];
    let headers: BTreeMap<_, _> =
        headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(headers, BTreeMap::from(expected));

    assert!(matches!(binary_parts("[]"), Err(NotACloudEvent::Json(_))));
    assert!(matches!(binary_parts(r#"{"data_base64":"?"}"#), Err(NotACloudEvent::Base64(_))));
}

fn any_event() -> impl Strategy<Value = Value> {
    let text = "[ -~äöü€😀]{1,12}";
    let in_data = "[ -~äöü€😀\u{1}\n]{1,12}";
    let extension = prop_oneof![
        text.prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from)
    ];
    let extensions = proptest::collection::btree_map("x[a-z0-9]{0,6}", extension, 0..4);
    let data = prop_oneof![
        Just(json!({})),
        in_data.prop_map(|text| json!({"data": {"text": text}})),
        in_data.prop_map(|text| json!({"data": text, "datacontenttype": "application/json"})),
        Just(json!({"data_base64": "/wA=", "datacontenttype": "image/png"})),
    ];
    (text, text, proptest::option::of(text), extensions, data).prop_map(
        |(id, source, subject, extensions, data)| {
            let mut event = json!({"specversion": "1.0", "id": id, "source": source, "type": "user.created",
                               "time": "2026-01-01T00:00:00Z", "tenant": "acme"});
            let members = event.as_object_mut().unwrap();
            members.extend(subject.map(|subject| ("subject".to_owned(), subject.into())));
            members.extend(extensions);
            members.extend(data.as_object().cloned().unwrap());
            event
        },
    )
}

proptest! {
    #[test]
    fn structured_mode_round_trips(event in any_event()) {
        let decoded = decode("x", &[STRUCTURED], event.to_string()).unwrap();
        prop_assert_eq!(out(&decoded), event);
    }

    #[test]
    fn binary_mode_round_trips(event in any_event()) {
        let first = decode("x", &[STRUCTURED], event.to_string()).unwrap();
        let parts = binary_parts(first.to_cloudevent().get()).unwrap();
        prop_assert!(parts.headers.iter().all(|(_, value)| value.bytes().all(|b| (0x21..0x7f).contains(&b))));
        let mut headers: Vec<(&str, &str)> =
            parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        headers.extend(parts.content_type.as_deref().map(|value| ("content-type", value)));
        let second = decode("x", &headers, &parts.body).unwrap();
        for name in ["id", "source", "type", "time", "tenant", "subject"] {
            prop_assert_eq!(second.attribute(name), first.attribute(name), "{}", name);
        }
        for name in first.extensions.keys() {
            prop_assert_eq!(second.attribute(name), first.attribute(name), "{}", name);
        }
        prop_assert_eq!(second.extensions.len(), first.extensions.len());
        prop_assert_eq!(&out(&second)["data"], &out(&first)["data"]);
        prop_assert_eq!(&out(&second)["data_base64"], &out(&first)["data_base64"]);
        prop_assert_eq!(second.identity, first.identity);
    }

    #[test]
    fn any_publication_is_an_event_or_rejected(
        subject in ".{0,12}",
        headers in proptest::collection::vec(("(ce-[a-z]{0,4}|content-type|hub-tenant|ce-specversion|ce-id|ce-source|ce-type)",
            "(1.0|a\\.b|application/cloudevents\\+json|.{0,6})"), 0..8),
        body in prop_oneof![proptest::collection::vec(any::<u8>(), 0..24), "\\{.{0,16}\\}".prop_map(String::into_bytes)],
    ) {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        if let Ok(event) = decode(&subject, &headers, &body) {
            // The CloudEvent of a decoded event can be decoded again.
            let again = decode("x", &[STRUCTURED], event.to_cloudevent().get()).unwrap();
            prop_assert_eq!(out(&again), out(&event));
        }
    }
}

const ENVELOPE: (&str, &str) = ("Content-Type", crate::producer_outbox::CONTENT_TYPE);

/// A full envelope, as the outbox writes it.
fn envelope() -> Value {
    json!({
        "data": {"user_id": "u1"},
        "metadata": {
            "headers": {
                "id": "e-1", "type": "user.created", "time": "2026-01-01T00:00:00Z", "stream": "user-u1",
                "traceparent": {"trace_id": "0af7651916cd43dd8448eb211c80319c", "parent_id": "b7ad6b7169203331", "sampled": true},
            },
            "domain": {
                "fqn": "idp.UserCreated", "kind": "EVENT", "version": 1, "sequence_id": "3", "correlation_id": "c-1",
                "causation_id": "k-1", "origin_stream": "o", "stream_category": "user", "expected_version": 2,
                "asynchronous": true, "priority": 0, "published": true,
            },
            "event_store": {"position": 4, "global_position": 9},
            "envelope": {"specversion": "1.0", "checksum": "ab"},
            "extensions": {"source": "idp", "tenant": "acme", "region": "eu", "Partner_Tier": 1.5, "list": [1], "none": null},
        },
    })
}

#[test]
fn an_outbox_envelope_becomes_a_clean_cloudevent() {
    // Headers that a relay sets do not change the form.
    let headers = [ENVELOPE, ("Nats-Msg-Id", "e-1"), ("ce-id", "other")];
    let event = decode("whatever.subject", &headers, envelope().to_string()).unwrap();
    assert_eq!(event.identity, "3:idp:user.created:e-1");
    assert_eq!(
        out(&event),
        json!({
            "specversion": "1.0", "id": "e-1", "source": "idp", "type": "user.created", "time": "2026-01-01T00:00:00Z",
            "tenant": "acme", "subject": "user-u1", "datacontenttype": "application/json", "published": true,
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "correlationid": "c-1",
            "causationid": "k-1", "sequence": "3", "region": "eu", "partnertier": "1.5", "list": "[1]",
            "data": {"user_id": "u1"},
        })
    );
}

#[test]
fn a_minimal_outbox_envelope_is_accepted() {
    let body = r#"{"data":null,"metadata":{"headers":{"id":"e 1","type":"user.created"}}}"#;
    let event = decode("x", &[ENVELOPE], body).unwrap();
    assert_eq!(
        out(&event),
        json!({"specversion": "1.0", "id": "e 1", "source": "outbox", "type": "user.created", "tenant": "default",
               "time": "2026-01-31T12:00:00.5Z", "datacontenttype": "application/json", "data": null})
    );
}

#[test]
fn the_rejection_of_an_outbox_envelope_names_the_problem() {
    for (path, value, word) in [
        ("/metadata/headers/id", json!(1), "integer"),
        ("/metadata/headers/id", json!(""), "id"),
        ("/metadata/headers/time", json!("x"), "time"),
        ("/metadata/extensions/tenant", json!("a b"), "tenant"),
    ] {
        let mut body = envelope();
        *body.pointer_mut(path).unwrap() = value;
        let rejection = rejected(&[ENVELOPE], body.to_string());
        assert_eq!(rejection.reason, RejectReason::Malformed);
        assert!(rejection.detail.contains(word), "{path}: {rejection}");
    }
    let mut body = envelope();
    body["metadata"]["headers"]["type"] = json!("user");
    assert_eq!(rejected(&[ENVELOPE], body.to_string()).reason, RejectReason::InvalidKey);
    for missing in ["data", "metadata"] {
        let mut body = envelope();
        body.as_object_mut().unwrap().remove(missing);
        assert!(rejected(&[ENVELOPE], body.to_string()).detail.contains(missing));
    }
    // A malformed trace context is ignored, as in other forms.
    let mut body = envelope();
    body["metadata"]["headers"]["traceparent"]["trace_id"] = json!("x");
    assert!(!decode("x", &[ENVELOPE], body.to_string()).unwrap().extensions.contains_key("traceparent"));
}
