//! The CloudEvents JSON format (1.0.2) of an event, and its binary form for HTTP.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use base64::Engine;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Event, EventData, is_json, string_form};

impl Event {
    /// The event in the CloudEvents JSON format; JSON data is copied unchanged.
    pub fn to_cloudevent(&self) -> Box<RawValue> {
        serde_json::value::to_raw_value(&JsonFormat(self))
            .expect("its keys are strings, and writing to memory does not fail")
    }
}

struct JsonFormat<'e>(&'e Event);

impl Serialize for JsonFormat<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("specversion", "1.0")?;
        map.serialize_entry("id", &event.id)?;
        map.serialize_entry("source", &event.source)?;
        map.serialize_entry("type", event.key.as_str())?;
        map.serialize_entry("time", &event.time)?;
        map.serialize_entry("tenant", &event.tenant)?;
        let optional = [
            ("subject", &event.subject),
            ("datacontenttype", &event.datacontenttype),
            ("dataschema", &event.dataschema),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                map.serialize_entry(name, value)?;
            }
        }
        for (name, value) in &event.extensions {
            map.serialize_entry(name, value)?;
        }
        match &event.data {
            EventData::None => {}
            EventData::Json(json) => map.serialize_entry("data", json)?,
            EventData::Binary(bytes) => map.serialize_entry("data_base64", &InBase64(bytes))?,
        }
        map.end()
    }
}

struct InBase64<'b>(&'b [u8]);

impl Serialize for InBase64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

/// Up to this number of members, duplicates are found by comparing names one by one.
const FEW: usize = 32;

/// The members of a JSON object in order, with unchanged values and unique names.
pub(crate) struct JsonMembers<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> JsonMembers<'a> {
    pub(crate) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(name, value)| (&**name, *value))
    }
}

/// A JSON string. It is borrowed if it has no escapes.
#[derive(Deserialize)]
pub(crate) struct JsonText<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for JsonMembers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members: Self::Value = Vec::with_capacity(12);
                // A set finds duplicates among many members: only the size of the attributes is bounded, not their
                // number, and an accepted event must be readable again.
                let mut many: HashSet<Cow<'de, str>> = HashSet::new();
                while let Some((JsonText(name), value)) = map.next_entry::<JsonText<'de>, &'de RawValue>()? {
                    if members.len() == FEW {
                        many.extend(members.iter().map(|(name, _)| name.clone()));
                    }
                    let double = if members.len() < FEW {
                        members.iter().any(|(known, _)| *known == name)
                    } else {
                        !many.insert(name.clone())
                    };
                    if double {
                        return Err(A::Error::custom(format!("duplicate member {name:?}")));
                    }
                    members.push((name, value));
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(MembersVisitor).map(JsonMembers)
    }
}

/// An event in binary content mode (CloudEvents HTTP binding 1.0.2 section 3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BinaryParts {
    /// `ce-<attribute>` in lower case, and the value percent-encoded: visible ASCII only.
    pub headers: Vec<(String, String)>,
    /// `datacontenttype`; for JSON data without one, `application/json`.
    pub content_type: Option<String>,
    pub body: Vec<u8>,
}

/// A text that is not an event in the CloudEvents JSON format.
#[derive(Debug, thiserror::Error)]
pub enum NotACloudEvent {
    #[error("not a CloudEvent in JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("data_base64 is not base64: {0}")]
    Base64(#[from] base64::DecodeError),
}

/// Characters that are percent-encoded in a header: everything except visible ASCII without the quote and the percent
/// sign (CloudEvents HTTP binding 1.0.2 section 3.1.3.2).
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Splits an event in the CloudEvents JSON format into headers and body.
pub fn binary_parts(cloudevent: &str) -> Result<BinaryParts, NotACloudEvent> {
    let members: JsonMembers<'_> = serde_json::from_str(cloudevent)?;
    let mut headers = Vec::with_capacity(members.0.len());
    let mut content_type: Option<String> = None;
    let mut json: Option<&RawValue> = None;
    let mut body = Vec::new();
    for (name, raw) in &members.0 {
        match &**name {
            "data" => json = Some(raw),
            "data_base64" => {
                let encoded: Option<Cow<'_, str>> = serde_json::from_str(raw.get())?;
                body = STANDARD.decode(encoded.unwrap_or_default().as_bytes())?;
            }
            "datacontenttype" => content_type = serde_json::from_str(raw.get())?,
            name => {
                let value: Value = serde_json::from_str(raw.get())?;
                if !value.is_null() {
                    let value = utf8_percent_encode(&string_form(&value), ENCODED).to_string();
                    headers.push((format!("ce-{name}"), value));
                }
            }
        }
    }
    if let Some(json) = json {
        // JSON format section 3.1: a string under a content type that is not JSON is the content
        // itself; anything else is the JSON text.
        let text: Option<String> = match &content_type {
            Some(declared) if !is_json(declared) => serde_json::from_str(json.get()).ok(),
            _ => None,
        };
        body = text.unwrap_or_else(|| json.get().to_owned()).into_bytes();
        content_type.get_or_insert_with(|| "application/json".to_owned());
    }
    Ok(BinaryParts { headers, content_type, body })
}
