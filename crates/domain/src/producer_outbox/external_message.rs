//! The message for an external broker: the stripped envelope, in the form of an external row.
//!
//! The stripped envelope of an event from a producer outbox equals that of its external row, byte for byte: the fan-out
//! keeps its metadata ([`external_metadata`]). Other events are converted:
//!
//! | field | comes from |
//! |---|---|
//! | `data` | the data, or null. Data that is not JSON is in `data_base64`, its type in `extensions.datacontenttype` |
//! | `headers.id`, `.type`, `.time` | the event's `id`, `type` (the event key) and `time` |
//! | `headers.stream` | its `subject`, or null |
//! | `headers.traceparent` | its `traceparent` as `{"trace_id", "parent_id", "sampled"}`, or null |
//! | `domain.sequence_id`, `.correlation_id`, `.causation_id` | its `sequence`, `correlationid`, `causationid`, or null |
//! | `domain.kind`, `.version` | `EVENT` and 1, the defaults of a raised event |
//! | `domain.fqn`, `.origin_stream`, `.stream_category` | null |
//! | `envelope.specversion` | `1.0` |
//! | `extensions` | its `source` and `tenant`, and all other attributes except `published` |

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::event::{JsonMembers, JsonText, is_traceparent};

/// Fields of each part of the metadata that are kept. Extensions are kept completely.
const KEPT: [(&str, &[&str]); 3] = [
    ("headers", &["id", "type", "time", "stream", "traceparent"]),
    (
        "domain",
        &[
            "fqn",
            "kind",
            "version",
            "sequence_id",
            "correlation_id",
            "causation_id",
            "origin_stream",
            "stream_category",
        ],
    ),
    ("envelope", &["specversion"]),
];

/// One event as a message for an external broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalMessage {
    /// The stripped envelope as JSON.
    pub body: String,
    /// Ordering key: the event's stream, or else its id.
    pub key: String,
    /// Names and values.
    pub headers: Vec<(String, String)>,
}

/// The kept parts of an envelope's metadata, in output order.
#[derive(Serialize)]
struct Kept<'a> {
    headers: BTreeMap<&'static str, &'a RawValue>,
    domain: BTreeMap<&'static str, &'a RawValue>,
    envelope: BTreeMap<&'static str, &'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extensions: Option<&'a RawValue>,
}

/// Strips the metadata of a full envelope for external brokers. Values stay unchanged, byte for byte.
///
/// Fails if a part of the metadata is not an object.
pub fn external_metadata(metadata: &RawValue) -> Result<Box<RawValue>, serde_json::Error> {
    let parts: JsonMembers<'_> = serde_json::from_str(metadata.get())?;
    let [headers, domain, envelope] = KEPT.map(|(part, kept)| match parts.get(part) {
        Some(part) => only(part, kept),
        None => Ok(BTreeMap::new()),
    });
    let kept =
        Kept { headers: headers?, domain: domain?, envelope: envelope?, extensions: parts.get("extensions") };
    to_raw_value(&kept)
}

fn only<'a>(
    part: &'a RawValue,
    kept: &[&'static str],
) -> Result<BTreeMap<&'static str, &'a RawValue>, serde_json::Error> {
    let members: JsonMembers<'a> = serde_json::from_str(part.get())?;
    Ok(kept.iter().filter_map(|name| Some((*name, members.get(name)?))).collect())
}

#[derive(Serialize)]
struct ExternalBody<'a, M> {
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<&'a RawValue>,
    metadata: M,
}

#[derive(Serialize)]
struct ExternalMetadata<'a> {
    headers: HeadersPart<'a>,
    domain: DomainPart<'a>,
    envelope: EnvelopePart,
    extensions: BTreeMap<&'a str, &'a RawValue>,
}

#[derive(Serialize)]
struct HeadersPart<'a> {
    id: Option<&'a RawValue>,
    #[serde(rename = "type")]
    kind: Option<&'a RawValue>,
    time: Option<&'a RawValue>,
    stream: Option<&'a RawValue>,
    traceparent: Option<ExternalTraceParent<'a>>,
}

#[derive(Serialize)]
struct ExternalTraceParent<'a> {
    trace_id: &'a str,
    parent_id: &'a str,
    sampled: bool,
}

#[derive(Serialize)]
struct DomainPart<'a> {
    fqn: Option<&'a RawValue>,
    kind: &'static str,
    version: u32,
    sequence_id: Option<String>,
    correlation_id: Option<&'a RawValue>,
    causation_id: Option<&'a RawValue>,
    origin_stream: Option<&'a RawValue>,
    stream_category: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct EnvelopePart {
    specversion: &'static str,
}

/// Attributes that are not extensions: they have another field, or are internal.
const PLACED: [&str; 13] = [
    "specversion",
    "id",
    "type",
    "time",
    "subject",
    "data",
    "data_base64",
    "datacontenttype",
    "traceparent",
    "sequence",
    "correlationid",
    "causationid",
    "published",
];

impl ExternalMessage {
    /// * `event`: in the CloudEvents JSON format
    /// * `metadata`: the metadata of [`external_metadata`], if the event came from a producer outbox
    ///
    /// Fails if the event cannot be parsed.
    pub fn new(event: &str, metadata: Option<&RawValue>) -> Result<Self, serde_json::Error> {
        let members: JsonMembers<'_> = serde_json::from_str(event)?;
        let text = |name: &str| -> Result<Option<Cow<'_, str>>, serde_json::Error> {
            members
                .get(name)
                .map(|value| serde_json::from_str::<JsonText<'_>>(value.get()).map(|text| text.0))
                .transpose()
        };
        let (data, data_base64) = (members.get("data"), members.get("data_base64"));
        let body = match metadata {
            Some(metadata) => serde_json::to_string(&ExternalBody { data, data_base64, metadata })?,
            None => {
                let traceparent = text("traceparent")?;
                let content_type = members.get("datacontenttype").filter(|_| data_base64.is_some());
                let extensions = members.iter().filter(|(name, _)| !PLACED.contains(name));
                let metadata = ExternalMetadata {
                    headers: HeadersPart {
                        id: members.get("id"),
                        kind: members.get("type"),
                        time: members.get("time"),
                        stream: members.get("subject"),
                        traceparent: traceparent.as_deref().and_then(trace_parent),
                    },
                    domain: DomainPart {
                        fqn: None,
                        kind: "EVENT",
                        version: 1,
                        sequence_id: members.get("sequence").map(string_form).transpose()?,
                        correlation_id: members.get("correlationid"),
                        causation_id: members.get("causationid"),
                        origin_stream: None,
                        stream_category: None,
                    },
                    envelope: EnvelopePart { specversion: "1.0" },
                    extensions: extensions
                        .chain(content_type.map(|content_type| ("datacontenttype", content_type)))
                        .collect(),
                };
                serde_json::to_string(&ExternalBody { data, data_base64, metadata })?
            }
        };
        let key = text("subject")?.or(text("id")?).unwrap_or_default().into_owned();
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Ok(Self { body, key, headers })
    }
}

/// Protean's form of the W3C trace context.
fn trace_parent(text: &str) -> Option<ExternalTraceParent<'_>> {
    let mut parts = text.split('-').skip(1);
    let (trace_id, parent_id, flags) = (parts.next()?, parts.next()?, parts.next()?);
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    is_traceparent(text).then_some(ExternalTraceParent { trace_id, parent_id, sampled })
}

/// A sequence as a string; events may have it as a number.
fn string_form(value: &RawValue) -> Result<String, serde_json::Error> {
    Ok(match serde_json::from_str(value.get())? {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn message(event: &Value) -> (Value, ExternalMessage) {
        let message = ExternalMessage::new(&event.to_string(), None).unwrap();
        (serde_json::from_str(&message.body).unwrap(), message)
    }

    #[test]
    fn a_bare_event_has_the_form_of_a_row() {
        let (body, message) = message(&json!({
            "specversion": "1.0", "id": "e1", "source": "nats", "type": "user.created",
            "time": "2026-01-01T00:00:00Z", "tenant": "default", "datacontenttype": "application/json",
            "data": {"user_id": "u1"}
        }));
        assert_eq!(
            body,
            json!({
                "data": {"user_id": "u1"},
                "metadata": {
                    "headers": {"id": "e1", "type": "user.created", "time": "2026-01-01T00:00:00Z",
                                "stream": null, "traceparent": null},
                    "domain": {"fqn": null, "kind": "EVENT", "version": 1, "sequence_id": null,
                               "correlation_id": null, "causation_id": null, "origin_stream": null,
                               "stream_category": null},
                    "envelope": {"specversion": "1.0"},
                    "extensions": {"source": "nats", "tenant": "default"}
                }
            })
        );
        assert_eq!(message.key, "e1");
    }

    #[test]
    fn each_attribute_has_its_place() {
        let (body, message) = message(&json!({
            "specversion": "1.0", "id": "e1", "source": "idp", "type": "user.created", "time": "t", "tenant": "acme",
            "subject": "user-u1", "dataschema": "https://s.example/1", "published": true, "sequence": 7,
            "correlationid": "c1", "causationid": "c0", "partnertier": 3,
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "data": 1.10
        }));
        let metadata = &body["metadata"];
        assert_eq!(metadata["headers"]["stream"], "user-u1");
        assert_eq!(
            metadata["headers"]["traceparent"],
            json!({"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "parent_id": "00f067aa0ba902b7", "sampled": true})
        );
        let domain = &metadata["domain"];
        assert_eq!(
            (&domain["sequence_id"], &domain["correlation_id"], &domain["causation_id"]),
            (&json!("7"), &json!("c1"), &json!("c0"))
        );
        assert_eq!(
            metadata["extensions"],
            json!({"source": "idp", "tenant": "acme", "dataschema": "https://s.example/1", "partnertier": 3})
        );
        assert_eq!(message.key, "user-u1");
    }

    #[test]
    fn data_that_is_not_json_is_in_base64() {
        let (body, _) = message(&json!({
            "specversion": "1.0", "id": "e1", "source": "s", "type": "a.b", "time": "t", "tenant": "default",
            "datacontenttype": "text/plain", "data_base64": "aGk="
        }));
        assert_eq!((&body["data"], &body["data_base64"]), (&Value::Null, &json!("aGk=")));
        assert_eq!(body["metadata"]["extensions"]["datacontenttype"], "text/plain");
    }

    #[test]
    fn a_trace_context_that_is_none_is_left_out() {
        for text in ["7", "00-x-y-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"] {
            let event = json!({"id": "e1", "source": "s", "type": "a.b", "traceparent": text});
            assert_eq!(message(&event).0["metadata"]["headers"]["traceparent"], Value::Null, "{text}");
        }
        assert!(ExternalMessage::new("[]", None).is_err());
    }

    #[test]
    fn an_outbox_event_keeps_what_its_row_keeps_as_it_was_written() {
        // Numbers that a reader would round are written unchanged.
        let metadata = r#"{"headers": {"id": "e1", "type": "user.created", "time": "t", "stream": "user-u1",
            "traceparent": null, "secret": 1},
            "domain": {"fqn": "Crm.UserCreated", "kind": "EVENT", "version": 2, "sequence_id": "0.1",
                "correlation_id": null, "causation_id": null, "origin_stream": "o", "stream_category": "crm::user",
                "expected_version": 3, "asynchronous": true, "priority": 0, "published": true},
            "event_store": {"position": 7}, "envelope": {"specversion": "1.0", "checksum": "abc"},
            "extensions": {"partner_tier": {"n": [1.10, 12345678901234567890123]}}, "other": 1}"#;
        let raw = RawValue::from_string(metadata.to_owned()).unwrap();
        let kept = external_metadata(&raw).unwrap();
        let event = r#"{"id": "e1", "type": "user.created", "subject": "user-u1", "data": {"n": 1.10}}"#;
        let message = ExternalMessage::new(event, Some(&kept)).unwrap();
        let body: Value = serde_json::from_str(&message.body).unwrap();
        assert!(
            message.body.contains(r#""extensions":{"partner_tier": {"n": [1.10, 12345678901234567890123]}}"#)
        );
        assert!(message.body.starts_with(r#"{"data":{"n": 1.10},"#), "{}", message.body);
        assert_eq!(
            body["metadata"]["domain"],
            json!({"fqn": "Crm.UserCreated", "kind": "EVENT", "version": 2, "sequence_id": "0.1",
                   "correlation_id": null, "causation_id": null, "origin_stream": "o",
                   "stream_category": "crm::user"})
        );
        assert_eq!(
            body["metadata"]["headers"],
            json!({"id": "e1", "type": "user.created", "time": "t", "stream": "user-u1", "traceparent": null})
        );
        assert_eq!(body["metadata"]["envelope"], json!({"specversion": "1.0"}));
        let parts: Vec<&String> = body["metadata"].as_object().unwrap().keys().collect();
        assert_eq!(parts, ["domain", "envelope", "extensions", "headers"]);
        assert!(external_metadata(&RawValue::from_string("[]".to_owned()).unwrap()).is_err());
    }
}
