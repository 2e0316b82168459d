//! Checks that every kind of delivery can send the attributes of an event.

use std::borrow::Cow;

use serde_json::Value;

use super::{Event, RejectReason, Rejection};

/// Rejects an event that some kind of delivery cannot send. The check is the same for every form of publication.
///
/// CloudEvents 1.0 section 3.1 forbids control characters in attributes. `datacontenttype` becomes the
/// `content-type` header unchanged; every other attribute is percent-encoded in a header.
pub(super) fn check(event: &Event) -> Result<(), Rejection> {
    let texts = [
        ("id", Some(&event.id)),
        ("source", Some(&event.source)),
        ("time", Some(&event.time)),
        ("subject", event.subject.as_ref()),
        ("datacontenttype", event.datacontenttype.as_ref()),
        ("dataschema", event.dataschema.as_ref()),
    ];
    for (name, text) in texts {
        text.map_or(Ok(()), |text| check_text(name, text))?;
    }
    for (name, value) in &event.extensions {
        value.as_str().map_or(Ok(()), |text| check_text(name, text))?;
    }
    match &event.datacontenttype {
        Some(text) if !is_header_text(text) => Err(Rejection::new(
            RejectReason::Malformed,
            "the attribute \"datacontenttype\" is not a valid content-type header; write a media type in visible \
             ASCII, like application/json",
        )
        .at("datacontenttype")),
        _ => Ok(()),
    }
}

fn check_text(name: &str, text: &str) -> Result<(), Rejection> {
    match text.char_indices().find(|(_, c)| c.is_control()) {
        None => Ok(()),
        Some((at, control)) => Err(Rejection::new(
            RejectReason::Malformed,
            format!(
                "the attribute {name:?} contains the control character U+{:04X} at byte {at}; remove it, or move the \
                 text to the data",
                u32::from(control)
            ),
        )
        .at(name)),
    }
}

/// True for visible ASCII; spaces may be inside, not at either end.
fn is_header_text(text: &str) -> bool {
    text.trim() == text && text.bytes().all(|b| (0x20..0x7f).contains(&b))
}

/// Makes a producer's value valid as an attribute: a text with a control character becomes its JSON text, which escapes
/// them. So no event of a committed transaction is rejected later because of an extension.
pub(crate) fn without_controls(value: Value) -> Value {
    let holds_control = |text: &str| text.contains(char::is_control);
    let text = match &value {
        Value::String(text) if holds_control(text) => value.to_string(),
        _ => return value,
    };
    Value::String(escape_controls(&text).into_owned())
}

/// Escapes DEL and the C1 controls in a JSON text; JSON itself escapes the other control characters.
pub(crate) fn escape_controls(json: &str) -> Cow<'_, str> {
    if !json.contains(char::is_control) {
        return json.into();
    }
    json.chars()
        .fold(String::with_capacity(json.len() + 8), |mut text, c| {
            if c.is_control() {
                text.push_str(&format!("\\u{:04x}", u32::from(c)));
            } else {
                text.push(c);
            }
            text
        })
        .into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use time::OffsetDateTime;

    use crate::event::{Event, Publication, RejectReason, Rejection, binary_parts};
    use crate::producer_outbox::{CONTENT_TYPE, ExternalMessage};

    fn decode(content_type: &str, body: &str, more: &[(&str, &str)]) -> Result<Event, Rejection> {
        let headers: Vec<(&str, &str)> =
            [("content-type", content_type)].iter().chain(more).copied().collect();
        Publication {
            subject_tail: "user.created",
            tenant_token: None,
            headers: &headers,
            body: body.as_bytes(),
            stream: "HUB_EVENTS",
            sequence: 1,
            time: OffsetDateTime::UNIX_EPOCH,
            max_size: 1 << 20,
        }
        .decode()
    }

    fn structured(event: &Value) -> Result<Event, Rejection> {
        decode("application/cloudevents+json", &event.to_string(), &[])
    }

    fn controls() -> impl Iterator<Item = char> {
        ('\0'..='\u{1f}').chain('\u{7f}'..='\u{9f}')
    }

    const ATTRIBUTES: [&str; 11] = [
        "id",
        "source",
        "type",
        "time",
        "tenant",
        "subject",
        "datacontenttype",
        "dataschema",
        "region",
        "traceparent",
        "correlationid",
    ];

    /// In every form, at the start, at the end and in between.
    #[test]
    fn an_attribute_with_a_control_character_is_rejected() {
        for (name, control) in
            ATTRIBUTES.iter().flat_map(|name| controls().map(move |control| (*name, control)))
        {
            for text in [format!("{control}a.b"), format!("a.{control}b"), format!("a.b{control}")] {
                let mut event =
                    json!({"specversion": "1.0", "id": "1", "source": "s", "type": "user.created"});
                event[name] = json!(text);
                let refused = |rejection: Rejection, form: &str| {
                    assert_eq!(
                        rejection.field.as_deref(),
                        Some(name),
                        "{form} {name} {control:?}: {rejection}"
                    );
                    assert!(matches!(rejection.reason, RejectReason::Malformed | RejectReason::InvalidKey));
                    assert!(!rejection.to_string().contains(char::is_control), "{form} {name} {control:?}");
                };
                refused(structured(&event).expect_err(name), "structured");

                let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
                let mut headers = vec![
                    ("ce-specversion", "1.0"),
                    ("ce-id", "1"),
                    ("ce-source", "s"),
                    ("ce-type", "user.created"),
                ];
                let header = format!("ce-{name}");
                headers.retain(|(known, _)| *known != header);
                headers.push((&header, &encoded));
                refused(decode("application/json", "{}", &headers).expect_err(name), "binary");
            }
        }
        // White space around the value of a content-type header is ignored.
        let required =
            [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "s"), ("ce-type", "user.created")];
        for (content_type, taken) in
            [(" text/plain ", true), ("text/\u{1}plain", false), ("text/plän", false)]
        {
            assert_eq!(decode(content_type, "x", &required).is_ok(), taken, "{content_type:?}");
        }
    }

    #[test]
    fn a_content_type_must_be_a_valid_header_value() {
        for (text, taken) in [
            ("application/json", true),
            ("text/plain; charset=\"utf-8\"", true),
            ("text", true),
            (" text/plain", false),
            ("text/plain ", false),
            ("text/plän", false),
            ("text/\u{202e}plain", false),
        ] {
            let event = json!({"specversion": "1.0", "id": "1", "source": "s", "type": "user.created",
                               "datacontenttype": text, "data": "x"});
            match structured(&event) {
                Ok(event) => {
                    assert!(taken, "{text:?}");
                    assert_eq!(
                        binary_parts(event.to_cloudevent().get()).unwrap().content_type.as_deref(),
                        Some(text)
                    );
                }
                Err(rejection) => {
                    assert!(!taken && rejection.field.as_deref() == Some("datacontenttype"), "{text:?}")
                }
            }
        }
    }

    /// No event of a committed transaction is rejected later: an invalid attribute value becomes its JSON text.
    #[test]
    fn every_extension_of_an_outbox_event_is_accepted() {
        for control in controls() {
            let text = format!("one{control}two");
            let envelope = json!({"data": {}, "metadata": {
                "headers": {"id": "1", "type": "user.created"},
                "extensions": {"note": text, "list": [text], "subject": {"of": text}},
            }});
            let event = decode(CONTENT_TYPE, &envelope.to_string(), &[]).expect("taken");
            for (name, expected) in
                [("note", json!(text)), ("list", json!([text])), ("subject", json!({"of": text}))]
            {
                let carried = event.attribute(name).expect("carried");
                assert!(!carried.contains(char::is_control), "{name} {carried:?}");
                assert_eq!(serde_json::from_str::<Value>(&carried).expect("JSON"), expected);
            }
        }
    }

    /// An event with as many attributes as the size limit permits can be delivered in every form.
    #[test]
    fn an_event_with_many_attributes_is_delivered() {
        let mut event =
            json!({"specversion": "1.0", "id": "1", "source": "s", "type": "user.created", "data": {}});
        for number in 0..3_000 {
            event[format!("x{number}")] = json!(true);
        }
        let event = structured(&event).expect("taken");
        let text = event.to_cloudevent();
        assert_eq!(binary_parts(text.get()).expect("binary").headers.len(), 3_000 + 6);
        ExternalMessage::new(text.get(), None).expect("for a broker");
        let twice = text.get().replacen("\"x2999\":", "\"x2998\":", 1);
        assert!(
            binary_parts(&twice).unwrap_err().to_string().contains("x2998"),
            "a duplicate among many members is found"
        );
    }
}
