//! CloudEvents in binary mode: attributes as `ce-` headers, the data as the body (HTTP protocol
//! binding 1.0, section 3.1).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{HeaderName, HeaderValue};
use serde_json::value::RawValue;

pub(super) struct Parts {
    pub(super) attributes: Vec<(HeaderName, HeaderValue)>,
    pub(super) content_type: Option<HeaderValue>,
    pub(super) body: Bytes,
}

/// The event is not a CloudEvent in the JSON format.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAnEvent {
    #[error("the envelope's event is not a JSON object")]
    Json(#[source] serde_json::Error),
    #[error("the event's attribute {0} cannot be a header")]
    Attribute(String),
    #[error("the event's data_base64 is not base64")]
    Base64,
}

pub(super) fn parts(event: &Bytes) -> Result<Parts, NotAnEvent> {
    let members: BTreeMap<&str, &RawValue> = serde_json::from_slice(event).map_err(NotAnEvent::Json)?;
    let text_of = |raw: &RawValue| match serde_json::from_str::<serde_json::Value>(raw.get()) {
        Ok(serde_json::Value::String(text)) => Some(text),
        Ok(serde_json::Value::Null) | Err(_) => None,
        Ok(other) => Some(other.to_string()),
    };

    let mut attributes = Vec::with_capacity(members.len());
    for (name, raw) in &members {
        if matches!(*name, "data" | "data_base64" | "datacontenttype") {
            continue;
        }
        let Some(text) = text_of(raw) else { continue };
        let refused = || NotAnEvent::Attribute((*name).to_owned());
        let header = HeaderName::from_bytes(format!("ce-{name}").as_bytes()).map_err(|_| refused())?;
        attributes.push((header, HeaderValue::from_str(&percent_encoded(&text)).map_err(|_| refused())?));
    }

    let given = members.get("datacontenttype").and_then(|raw| text_of(raw));
    let mut content_type = given.clone();
    let body = if let Some(raw) = members.get("data_base64") {
        let text = text_of(raw).ok_or(NotAnEvent::Base64)?;
        Bytes::from(STANDARD.decode(text).map_err(|_| NotAnEvent::Base64)?)
    } else if let Some(raw) = members.get("data") {
        // Without a type the JSON format means JSON (JSON event format 1.0, section 3.1.1).
        let media_type = content_type.get_or_insert_with(|| "application/json".to_owned());
        match serde_json::from_str::<String>(raw.get()) {
            // Of other types a string is the content itself.
            Ok(text) if !is_json(media_type) => Bytes::from(text),
            _ => event.slice_ref(raw.get().as_bytes()),
        }
    } else {
        Bytes::new()
    };
    let content_type = content_type
        .map(|text| HeaderValue::from_str(&text))
        .transpose()
        .map_err(|_| NotAnEvent::Attribute("datacontenttype".to_owned()))?;
    Ok(Parts { attributes, content_type, body })
}

fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "text/json" || essence.ends_with("/json") || essence.ends_with("+json")
}

/// Section 3.1.3.2: space, quote, percent, and all outside of printable ASCII, by UTF-8 byte.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'%' => encoded.push_str(&format!("%{byte:02X}")),
            0x21..=0x7e => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(event: &str) -> (BTreeMap<String, String>, Option<String>, Vec<u8>) {
        let parts = parts(&Bytes::copy_from_slice(event.as_bytes())).unwrap();
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        (
            parts.attributes.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            parts.content_type.as_ref().map(text),
            parts.body.to_vec(),
        )
    }

    #[test]
    fn attributes_are_headers_and_data_is_the_body() {
        let (headers, content_type, body) = of(
            r#"{"specversion":"1.0","id":"a b","source":"/x","type":"user.created","sequence":7,"subject":"Euro € \"100%\" 😀","data":{"b":1, "a":[2]}}"#,
        );
        assert_eq!(headers["ce-id"], "a%20b");
        assert_eq!(headers["ce-sequence"], "7");
        // The binding's own example is "Euro € 😀".
        assert_eq!(headers["ce-subject"], "Euro%20%E2%82%AC%20%22100%25%22%20%F0%9F%98%80");
        assert!(!headers.contains_key("ce-data"));
        assert_eq!(content_type.as_deref(), Some("application/json"));
        assert_eq!(body, br#"{"b":1, "a":[2]}"#);
    }

    #[test]
    fn data_that_is_not_json() {
        let event = |rest: &str| of(&format!(r#"{{"specversion":"1.0","id":"1"{rest}}}"#));
        let (_, content_type, body) = event(r#","datacontenttype":"text/plain","data":"a\nb""#);
        assert_eq!((content_type.as_deref(), body.as_slice()), (Some("text/plain"), &b"a\nb"[..]));
        let (_, _, body) = event(r#","datacontenttype":"application/json; charset=utf-8","data":"a""#);
        assert_eq!(body, br#""a""#);
        let (_, content_type, body) = event(r#","datacontenttype":"image/png","data_base64":"iVBO""#);
        assert_eq!((content_type.as_deref(), body.as_slice()), (Some("image/png"), &b"\x89PN"[..]));
        let (_, content_type, body) = event("");
        assert_eq!((content_type, body.len()), (None, 0));
    }
}
