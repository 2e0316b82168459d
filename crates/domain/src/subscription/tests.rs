//! Parsing, validation and display of subscriptions.

use std::time::Duration;

use serde_json::{Value, json};

use super::certificates::tests::certificate;
use super::*;

const LIMITS: SubscriptionLimits = SubscriptionLimits { max_timeout: Duration::from_secs(60) };

fn whole() -> Value {
    json!({
        "id": "billing-crm",
        "tenant": "acme",
        "events": ["user.created", "role.*", "policy.>"],
        "filter": [{"exact": {"source": "idp"}}],
        "state": "active",
        "delivery": {
            "url": "https://crm.example/hooks",
            "content_mode": "structured",
            "headers": {"x-team": "billing"},
            "timeout": "15s",
            "max_in_flight": 32,
            "rate_limit": {"per_second": 100, "burst": 200},
            "ordering": "none",
            "auth": {"type": "oauth2", "token_url": "https://idp.example/token", "client_id": "hub",
                     "client_secret": "s3cret-client", "scopes": ["events"]},
            "signing": {"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
        }
    })
}

fn small(delivery: Value) -> Value {
    json!({"id": "a", "events": ["user.>"], "delivery": delivery})
}

fn with(path: &[&str], value: Value) -> Value {
    let mut document = whole();
    let (last, parents) = path.split_last().expect("a path has a part");
    let parent = parents.iter().fold(&mut document, |node, name| &mut node[*name]);
    parent[*last] = value;
    document
}

#[test]
fn the_whole_form_reads_and_is_valid() {
    let subscription = Subscription::from_json(whole().to_string().as_bytes()).unwrap();
    assert_eq!(subscription.validate(&LIMITS), Ok(()));
    let endpoint = subscription.delivery.endpoint().expect("it has a URL");
    assert_eq!(endpoint.url.as_str(), "https://crm.example/hooks");
    let Auth::Oauth2 { scopes, client_auth, .. } = &endpoint.auth else { panic!("oauth2") };
    assert_eq!(
        (scopes.as_slice(), *client_auth),
        (["events".to_owned()].as_slice(), ClientAuth::ClientSecretBasic)
    );
}

#[test]
fn the_smallest_form_takes_the_defaults() {
    let subscription = Subscription::from_value(small(json!({"url": "http://127.0.0.1:1/x"}))).unwrap();
    assert_eq!(subscription.validate(&LIMITS), Ok(()));
    assert_eq!((subscription.tenant.as_str(), subscription.state), ("default", SubscriptionState::Active));
    let delivery = subscription.delivery.endpoint().expect("it has a URL");
    assert_eq!((delivery.timeout, delivery.max_in_flight), (Duration::from_secs(15), 32));
    assert_eq!((delivery.content_mode, delivery.ordering), (ContentMode::Structured, Ordering::None));
    assert!(
        matches!(delivery.auth, Auth::None) && delivery.rate_limit.is_none() && delivery.signing.is_none()
    );
}

#[test]
fn every_kind_of_auth_reads() {
    for auth in [
        json!({"type": "none"}),
        json!({"type": "api_key", "key": "k"}),
        json!({"type": "api_key", "key": "k", "header": "x-key"}),
        json!({"type": "api_key", "key": "k", "query": "key"}),
        json!({"type": "basic", "username": "u", "password": "p"}),
        json!({"type": "bearer", "token": "t"}),
        json!({"type": "bearer", "token": {"sealed": "v1.k1.abc"}}),
        json!({"type": "oauth2", "token_url": "https://i.example/t", "client_id": "c", "client_secret": "s",
               "audience": "a", "client_auth": "client_secret_post"}),
    ] {
        let document = small(json!({"url": "https://a.example", "auth": auth}));
        let subscription = Subscription::from_value(document).unwrap();
        assert_eq!(subscription.validate(&LIMITS), Ok(()), "{auth}");
    }
}

#[test]
fn a_bad_form_is_refused_by_field() {
    for (document, field) in [
        (json!([]), "subscription"),
        (json!({"events": ["a.b"], "delivery": {"url": "https://a.example"}}), "id"),
        (json!({"id": "a", "delivery": {"url": "https://a.example"}}), "events"),
        (json!({"id": "a", "events": ["a.b"]}), "delivery"),
        (json!({"id": "a", "events": ["a.b"], "delivery": []}), "delivery"),
        (small(json!({})), "delivery.url"),
        (small(json!({"url": "crm.example/hooks"})), "delivery.url"),
        (small(json!({"url": "https://"})), "delivery.url"),
        (small(json!({"broker": "partner_events"})), "delivery.stream"),
        (small(json!({"stream": "orders"})), "delivery.broker"),
        (small(json!({"broker": null, "stream": "orders"})), "delivery.broker"),
        (small(json!({"broker": "b", "stream": ["orders"]})), "delivery.stream"),
        (small(json!({"broker": "b", "stream": "s", "url": "https://a.example"})), "delivery.url"),
        (small(json!({"broker": "b", "stream": "s", "auth": {"type": "none"}})), "delivery.auth"),
        (small(json!({"broker": "b", "stream": "s", "signing": {"secret": "whsec_"}})), "delivery.signing"),
        (small(json!({"broker": "b", "stream": "s", "headers": {}})), "delivery.headers"),
        (small(json!({"broker": "b", "stream": "s", "content_mode": "structured"})), "delivery.content_mode"),
        (small(json!({"broker": "b", "stream": "s", "statuses": {}})), "delivery.statuses"),
        (small(json!({"broker": "b", "stream": "s", "tls": {}})), "delivery.tls"),
        (small(json!({"broker": "b", "stream": "s", "ordering": "key"})), "delivery.ordering"),
        (small(json!({"broker": "b", "stream": "s", "retries": 3})), "delivery.retries"),
        (small(json!({"broker": "b", "stream": "s", "timeout": 15})), "delivery.timeout"),
        (small(json!({"url": "https://a.example", "auth": {"type": "mtls"}})), "delivery.auth.type"),
        (small(json!({"url": "https://a.example", "mtls": {}})), "delivery.mtls"),
        (small(json!({"url": "https://a.example", "auth": {"type": "digest"}})), "delivery.auth.type"),
        (small(json!({"url": "https://a.example", "auth": {"type": 4}})), "delivery.auth.type"),
        (small(json!({"url": "https://a.example", "auth": {}})), "delivery.auth.type"),
        (small(json!({"url": "https://a.example", "auth": "none"})), "delivery.auth"),
        (small(json!({"url": "https://a.example", "auth": {"type": "none", "x": 1}})), "delivery.auth.x"),
        (
            small(json!({"url": "https://a.example", "auth": {"type": "bearer", "token": 1}})),
            "delivery.auth.token",
        ),
        (
            small(json!({"url": "https://a.example", "auth": {"type": "basic", "username": "u"}})),
            "delivery.auth.password",
        ),
        (with(&["delivery", "auth", "scopes"], json!("events")), "delivery.auth.scopes"),
        (with(&["delivery", "auth", "token_url"], json!("idp")), "delivery.auth.token_url"),
        (with(&["delivery", "ordering"], json!("key")), "delivery.ordering"),
        (with(&["delivery", "on_dead_letter"], json!("wait")), "delivery.on_dead_letter"),
        (with(&["delivery", "ordering_key"], json!(1)), "delivery.ordering_key"),
        (with(&["delivery", "timeout"], json!("15 parsecs")), "delivery.timeout"),
        (with(&["delivery", "timeout"], json!(15)), "delivery.timeout"),
        (with(&["delivery", "max_in_flight"], json!(-1)), "delivery.max_in_flight"),
        (
            with(&["delivery", "rate_limit"], json!({"per_second": "x", "burst": 1})),
            "delivery.rate_limit.per_second",
        ),
        (with(&["delivery", "content_mode"], json!("batch")), "delivery.content_mode"),
        (with(&["delivery", "retries"], json!(3)), "delivery.retries"),
        (with(&["state"], json!("on")), "state"),
        (with(&["color"], json!("red")), "color"),
        (with(&["id"], json!("No Good")), "id"),
        (with(&["events"], json!(["user.created", "user..x"])), "events[1]"),
        (with(&["filter"], json!([{"sql": "x"}])), "filter[0]"),
    ] {
        let error = Subscription::from_json(document.to_string().as_bytes()).expect_err(field);
        assert_eq!(error.field, field, "{error}");
        assert!(!error.problem.is_empty());
    }
    let error = Subscription::from_json(b"{\"id\": }").expect_err("a syntax error");
    assert!(error.field == "JSON" && error.problem.contains("line 1 column 8"), "{error}");
}

#[test]
fn a_bad_value_is_refused_by_field() {
    for (path, value, field) in [
        (&["tenant"][..], json!("a b"), "tenant"),
        (&["tenant"], json!(""), "tenant"),
        (&["events"], json!([]), "events"),
        (&["filter"], json!([{"exact": {}}]), "filter[0].exact"),
        (&["delivery", "url"], json!("ftp://crm.example/"), "delivery.url"),
        (&["delivery", "url"], json!("https://u:p@crm.example/"), "delivery.url"),
        (&["delivery", "url"], json!("https://crm.example/#x"), "delivery.url"),
        (&["delivery", "timeout"], json!("61s"), "delivery.timeout"),
        (&["delivery", "timeout"], json!("99ms"), "delivery.timeout"),
        (&["delivery", "max_in_flight"], json!(0), "delivery.max_in_flight"),
        (&["delivery", "max_in_flight"], json!(10_001), "delivery.max_in_flight"),
        (&["delivery", "rate_limit", "per_second"], json!(0), "delivery.rate_limit.per_second"),
        (&["delivery", "rate_limit", "burst"], json!(0), "delivery.rate_limit.burst"),
        (&["delivery", "headers"], json!({"Host": "x"}), "delivery.headers.Host"),
        (&["delivery", "headers"], json!({"Webhook-Id": "x"}), "delivery.headers.Webhook-Id"),
        (&["delivery", "headers"], json!({"ce-id": "x"}), "delivery.headers.ce-id"),
        (&["delivery", "headers"], json!({"Authorization": "x"}), "delivery.headers.Authorization"),
        (&["delivery", "headers"], json!({"x team": "x"}), "delivery.headers.x team"),
        (&["delivery", "headers"], json!({"x-team": "a\r\nb: c"}), "delivery.headers.x-team"),
        (&["delivery", "headers"], json!({"x-a": "1", "X-A": "2"}), "delivery.headers.x-a"),
        (&["delivery", "auth"], json!({"type": "bearer", "token": ""}), "delivery.auth.token"),
        (&["delivery", "auth"], json!({"type": "bearer", "token": "t\n"}), "delivery.auth.token"),
        (
            &["delivery", "auth"],
            json!({"type": "api_key", "key": "k", "header": "a", "query": "b"}),
            "delivery.auth.query",
        ),
        (
            &["delivery", "auth"],
            json!({"type": "api_key", "key": "k", "header": "host"}),
            "delivery.auth.header",
        ),
        (
            &["delivery", "auth"],
            json!({"type": "basic", "username": "a:b", "password": "p"}),
            "delivery.auth.username",
        ),
        (&["delivery", "auth", "scopes"], json!(["a b"]), "delivery.auth.scopes[0]"),
        (&["delivery", "auth", "token_url"], json!("file:///etc/x"), "delivery.auth.token_url"),
        (
            &["delivery", "signing", "secret"],
            json!("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
            "delivery.signing.secret",
        ),
        (&["delivery", "signing", "secret"], json!("whsec_c2hvcnQ="), "delivery.signing.secret"),
    ] {
        let subscription = Subscription::from_value(with(path, value.clone())).unwrap();
        let errors = subscription.validate(&LIMITS).expect_err(field);
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, [field], "{value}");
    }
}

#[test]
fn a_broker_takes_the_place_of_the_url() {
    let document = small(json!({"broker": "partner_events", "stream": "orders"}));
    let subscription = Subscription::from_value(document).unwrap();
    assert_eq!(subscription.validate(&LIMITS), Ok(()));
    let broker = subscription.delivery.broker().expect("it names one");
    assert_eq!((broker.broker.as_str(), broker.stream.as_str()), ("partner_events", "orders"));
    assert_eq!(subscription.delivery.timeout(), Duration::from_secs(15));
    assert_eq!((subscription.delivery.max_in_flight(), subscription.delivery.rate_limit()), (32, None));
    // The stored form and the output of `show` can be applied again.
    let stored = serde_json::to_value(&subscription).unwrap();
    assert_eq!(
        stored["delivery"],
        json!({"broker": "partner_events", "stream": "orders", "timeout": "15s", "max_in_flight": 32,
               "ordering": "none"})
    );
    assert_eq!(serde_json::to_value(Subscription::from_value(stored.clone()).unwrap()).unwrap(), stored);
    assert_eq!(subscription.hidden_json()["delivery"], stored["delivery"]);
}

#[test]
fn a_bad_broker_is_refused_by_field() {
    let long = "x".repeat(256);
    for (member, value, field) in [
        ("broker", json!("internal"), "delivery.broker"),
        ("broker", json!("Partner"), "delivery.broker"),
        ("broker", json!(""), "delivery.broker"),
        ("stream", json!(""), "delivery.stream"),
        ("stream", json!("two words"), "delivery.stream"),
        ("stream", json!("a\nb"), "delivery.stream"),
        ("stream", json!("orders.>"), "delivery.stream"),
        ("stream", json!("orders.{type}"), "delivery.stream"),
        ("stream", json!(long), "delivery.stream"),
        ("timeout", json!("61s"), "delivery.timeout"),
        ("max_in_flight", json!(0), "delivery.max_in_flight"),
        ("rate_limit", json!({"per_second": 0, "burst": 1}), "delivery.rate_limit.per_second"),
    ] {
        let mut document = small(json!({"broker": "partner_events", "stream": "orders"}));
        document["delivery"][member] = value.clone();
        let errors = Subscription::from_value(document).unwrap().validate(&LIMITS).expect_err(field);
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, [field], "{value}");
    }
}

#[test]
fn a_credential_in_a_plain_header_is_rejected() {
    let fields = |delivery: Value| -> Vec<String> {
        let subscription = Subscription::from_value(small(delivery)).unwrap();
        subscription
            .validate(&LIMITS)
            .err()
            .unwrap_or_default()
            .into_iter()
            .map(|error| error.field)
            .collect()
    };
    let to = |name: &str, header: &str| json!({"url": "https://a.example", name: {header: "Custom x"}});
    for header in ["authorization", "Cookie", "x-api-key", "private-token", "x-db-password"] {
        assert_eq!(fields(to("headers", header)), [format!("delivery.headers.{header}")]);
        assert!(fields(to("secret_headers", header)).is_empty(), "{header}");
    }
    assert_eq!(fields(to("secret_headers", "webhook-id")), ["delivery.secret_headers.webhook-id"]);
    assert_eq!(fields(to("secret_headers", "a b")), ["delivery.secret_headers.a b"]);
    let delivery =
        json!({"url": "https://a.example", "headers": {"x-a": "1"}, "secret_headers": {"X-A": "1"}});
    assert_eq!(fields(delivery), ["delivery.secret_headers.X-A"]);
    let mut delivery = to("secret_headers", "authorization");
    delivery["auth"] = json!({"type": "bearer", "token": "t"});
    assert_eq!(fields(delivery), ["delivery.secret_headers.authorization"]);
    for value in ["", "a\nb", " a", "ä"] {
        let delivery = json!({"url": "https://a.example", "secret_headers": {"x-a": value}});
        assert_eq!(fields(delivery), ["delivery.secret_headers.x-a"], "{value:?}");
    }
    let many: Value =
        (0..65).map(|number| (format!("x-{number}"), json!("1"))).collect::<serde_json::Map<_, _>>().into();
    assert_eq!(
        fields(json!({"url": "https://a.example", "secret_headers": many})),
        ["delivery.secret_headers"]
    );
}

/// Subscriptions with such names, from older versions, still work, but the values are hidden.
#[test]
fn stored_credentials_in_headers_are_hidden() {
    let stored =
        small(json!({"url": "https://a.example", "headers": {"authorization": "hush", "x-team": "b"}}));
    let subscription: Subscription = serde_json::from_value(stored).unwrap();
    let hidden = subscription.hidden_json();
    assert_eq!(hidden["delivery"]["headers"], json!({"authorization": "***", "x-team": "b"}));
    assert_eq!(serde_json::to_value(&subscription).unwrap()["delivery"]["headers"]["authorization"], "hush");
}

/// Every field that is stored in plain text, with a credential in it: a new one is refused, and one of an older version
/// is not shown.
#[test]
fn credentials_in_plain_fields_are_refused_and_hidden() {
    let key = certificate(b"HUSH").replace("CERTIFICATE", "RSA PRIVATE KEY");
    let combined = format!("{}{key}", certificate(b"one"));
    for (field, part) in [
        ("delivery.url", json!({"url": "https://crm.example/h?api_key=HUSH"})),
        ("delivery.url", json!({"url": "https://crm.example/h?a=b&sig=HUSH"})),
        ("delivery.headers.authorization", json!({"headers": {"authorization": "HUSH"}})),
        ("delivery.headers.x-team", json!({"headers": {"x-team": "Bearer HUSH"}})),
        ("delivery.headers.x-team", json!({"headers": {"x-team": "whsec_HUSH"}})),
        ("delivery.tls.ca", json!({"tls": {"ca": combined}})),
        ("delivery.tls.cert", json!({"tls": {"cert": combined, "key": {"sealed": "v2.k1.x"}}})),
        (
            "delivery.auth.token_url",
            json!({"auth": {"type": "oauth2", "token_url": "https://idp.example/t?token=HUSH", "client_id": "c",
                            "client_secret": {"sealed": "v2.k1.x"}}}),
        ),
    ] {
        let mut delivery = json!({"url": "https://crm.example/h"});
        delivery.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        let subscription = Subscription::from_value(small(delivery)).unwrap();
        let errors = subscription.validate(&LIMITS).unwrap_err();
        assert_eq!(errors.iter().map(|error| error.field.as_str()).collect::<Vec<_>>(), [field]);
        let secret = key.lines().nth(1).unwrap();
        let shown = format!("{} {errors:?}", subscription.hidden_json());
        assert!(!shown.contains("HUSH") && !shown.contains(secret), "{field}: {shown}");
    }
}

#[test]
fn errors_never_show_a_secret() {
    let mut document = with(&["delivery", "auth", "client_secret"], json!(["hunter2"]));
    let error = Subscription::from_json(document.to_string().as_bytes()).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    document = with(&["delivery", "signing", "secret"], json!("hunter2"));
    let errors = Subscription::from_value(document).unwrap().validate(&LIMITS).unwrap_err();
    assert!(!format!("{errors:?}").contains("hunter2"));
    document = with(&["delivery", "signing", "secret"], json!(44_832_915));
    let error = Subscription::from_json(document.to_string().as_bytes()).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("44832915"), "{error}");
}

#[test]
fn errors_of_signing_and_tls_name_the_field() {
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----";
    let cert = certificate(b"one");
    let fields = |name: &str, value: Value| -> Vec<String> {
        let subscription = Subscription::from_value(with(&["delivery", name], value)).unwrap();
        let errors = subscription.validate(&LIMITS).err().unwrap_or_default();
        errors.into_iter().map(|error| error.field).collect()
    };
    let none: [&str; 0] = [];
    let (old, seed) =
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
    let until = "2030-01-31T00:00:00Z";
    let private = format!("whsk_{seed}");
    assert_eq!(fields("signing", json!({ "secret": private })), none);
    assert_eq!(
        fields("signing", json!({"secret": private, "previous": {"secret": old, "until": until}})),
        none
    );
    for bad in [format!("whpk_{seed}"), "whsk_AAAA".to_owned(), "whsec_AAAA".to_owned(), seed.to_owned()] {
        assert_eq!(fields("signing", json!({ "secret": bad })), ["delivery.signing.secret"], "{bad}");
        let replaced = json!({"secret": old, "previous": {"secret": bad, "until": until}});
        assert_eq!(fields("signing", replaced), ["delivery.signing.previous.secret"], "{bad}");
    }
    assert_eq!(fields("tls", json!({ "ca": cert })), none);
    assert_eq!(fields("tls", json!({"ca": cert, "cert": cert, "key": key})), none);
    assert_eq!(fields("tls", json!({})), ["delivery.tls"]);
    assert_eq!(fields("tls", json!({ "ca": key })), ["delivery.tls.ca"]);
    assert_eq!(fields("tls", json!({ "cert": cert })), ["delivery.tls.key"]);
    assert_eq!(fields("tls", json!({ "key": key })), ["delivery.tls.cert"]);
    assert_eq!(fields("tls", json!({"cert": cert, "key": cert})), ["delivery.tls.key"]);
    let combined = format!("{cert}{key}");
    assert_eq!(fields("tls", json!({"cert": combined, "key": key})), ["delivery.tls.cert"]);
    assert_eq!(fields("tls", json!({ "ca": combined })), ["delivery.tls.ca"]);
    let plain = small(json!({"url": "http://crm.example", "tls": {"ca": cert}}));
    assert!(Subscription::from_value(plain).unwrap().validate(&LIMITS).is_err());
    let no_time =
        with(&["delivery", "signing"], json!({"secret": old, "previous": {"secret": old, "until": "soon"}}));
    assert_eq!(Subscription::from_value(no_time).unwrap_err().field, "delivery.signing.previous.until");
}

#[test]
fn every_secret_is_named() {
    let mut document = with(
        &["delivery", "signing"],
        json!({"secret": "hush-2", "previous": {"secret": "hush-3", "until": "2030-01-31T00:00:00Z"}}),
    );
    document["delivery"]["tls"] = json!({"cert": "x", "key": "hush-4"});
    document["delivery"]["secret_headers"] =
        json!({"x-key": "hush-5", "sealed": "hush-6", "headers": "hush-7"});
    let mut subscription = Subscription::from_value(document).unwrap();
    let names: Vec<String> =
        subscription.delivery.named_secrets_mut().into_iter().map(|(name, _)| name.into_owned()).collect();
    assert_eq!(names.len(), 7);
    let shown = format!("{} {subscription:?}", subscription.hidden_json());
    assert!(!shown.contains("hush"), "{shown}");
    for name in names {
        let pointer = format!("/{}", name.replace('.', "/"));
        assert_eq!(subscription.hidden_json().pointer(&pointer), Some(&json!("***")), "{name}");
    }
}

#[test]
fn secrets_are_walked_and_hidden() {
    let mut subscription = Subscription::from_value(whole()).unwrap();
    assert_eq!(subscription.secrets_mut().len(), 2);
    assert!(serde_json::to_string(&subscription).is_err(), "a plain secret is never written");

    let hidden = subscription.hidden_json();
    assert_eq!(hidden["delivery"]["auth"]["client_secret"], "***");
    assert_eq!(hidden["delivery"]["signing"]["secret"], "***");
    assert_eq!(hidden["delivery"]["auth"]["client_id"], "hub");
    let shown = format!("{hidden} {subscription:?}");
    assert!(!shown.contains("s3cret-client") && !shown.contains("MfKQ9r8"), "{shown}");

    for secret in subscription.secrets_mut() {
        *secret = Secret::Sealed("v1.k1.abc".to_owned());
    }
    assert!(!subscription.hidden_json().to_string().contains("v1.k1"));
    let stored = serde_json::to_vec(&subscription).unwrap();
    assert_eq!(serde_json::to_vec(&Subscription::from_json(&stored).unwrap()).unwrap(), stored);
}

#[test]
fn a_header_called_sealed_is_shown_as_it_is() {
    let document = small(json!({"url": "https://a.example", "headers": {"sealed": "yes"}}));
    let hidden = Subscription::from_value(document).unwrap().hidden_json();
    assert_eq!(hidden["delivery"]["headers"]["sealed"], "yes");
    let document = small(json!({"url": "https://a.example", "secret_headers": {"sealed": "hush"}}));
    let hidden = Subscription::from_value(document).unwrap().hidden_json();
    assert_eq!(hidden["delivery"]["secret_headers"], json!({"sealed": "***"}));
}

/// Serde's error for a text instead of an object quotes the text.
#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    for (field, part) in [
        ("delivery.signing", r#""signing": "whsec_hush""#),
        ("delivery.signing.previous", r#""signing": {"secret": "whsec_x", "previous": "hush"}"#),
        ("delivery.signing", r#""signing": ["hush"]"#),
        ("delivery.tls", r#""tls": "hush""#),
        ("delivery.headers", r#""headers": "authorization: hush""#),
        ("delivery.secret_headers", r#""secret_headers": "authorization: hush""#),
        ("delivery.secret_headers.x-a", r#""secret_headers": {"x-a": ["hush"]}"#),
        ("delivery.auth.token", r#""auth": {"type": "bearer", "token": {"sealed": ["hush"]}}"#),
        ("delivery.auth", r#""auth": "Bearer hush""#),
        ("delivery.auth.token", r#""auth": {"type": "bearer", "token": ["hush"]}"#),
        ("delivery.signing.secret", r#""signing": {"secret": ["hush"]}"#),
        ("delivery.tls.key", r#""tls": {"key": ["hush"]}"#),
    ] {
        let json = format!(
            r#"{{"id": "a", "events": ["user.*"], "delivery": {{"url": "https://x.example/", {part}}}}}"#
        );
        let error = Subscription::from_json(json.as_bytes()).expect_err("it is rejected");
        assert_eq!(error.field, field);
        assert!(!error.problem.contains("hush"), "{error}");
    }
}

#[test]
fn the_size_of_a_subscription_is_limited_except_for_its_certificates() {
    let base = json!({"id": "a", "events": ["user.*"], "delivery": {"url": "https://crm.example/"}});
    let check = |value: Value| serde_json::from_value::<Subscription>(value).unwrap().validate(&LIMITS);
    let mut large = base.clone();
    large["filter"] = json!([{"any": vec![json!({"exact": {"source": "x".repeat(4_000)}}); 256]}]);
    let errors = check(large).unwrap_err();
    assert_eq!(errors[0].field, "filter", "{errors:?}");
    // Plain secrets are never serialized, but their size and the rest count.
    let mut with_secret = base.clone();
    with_secret["delivery"]["auth"] = json!({"type": "bearer", "token": "t"});
    check(with_secret.clone()).unwrap();
    with_secret["filter"] = json!([{"any": vec![json!({"exact": {"source": "x".repeat(4_000)}}); 256]}]);
    assert_eq!(check(with_secret).unwrap_err()[0].field, "filter");
    let pem = certificate(&[7; 22_000]);
    let mut with_certificates = base;
    with_certificates["filter"] = json!([{"any": vec![json!({"exact": {"source": "x".repeat(200)}}); 200]}]);
    with_certificates["delivery"]["tls"] =
        json!({"ca": pem, "cert": pem, "key": pem.replace("CERTIFICATE", "PRIVATE KEY")});
    check(with_certificates).unwrap();
}
