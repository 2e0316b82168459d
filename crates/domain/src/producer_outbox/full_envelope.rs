//! The full envelope of a row of the producer outbox, as the Event Processor reads it.
//!
//! Its form is that of Protean 0.18 (`Message.to_dict`; `Message.to_external_dict` for the stripped envelope):
//! `{"data": …, "metadata": {"headers", "domain", "event_store", "envelope", "extensions"}}`. A Protean subscriber reads
//! the stripped envelope as its own. Source and tenant, which Protean does not have, are extensions. Protean does not
//! read the full envelope: its `Message` refuses `domain.published`, and the checksum covers the data as the database
//! writes it. The database writes both envelopes (`crates/outbox/src/*/*.sql`).

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::event::{escape_controls, is_attribute_name, without_controls};

/// The content type of a full envelope on the events stream.
pub const CONTENT_TYPE: &str = "application/vnd.integration-hub.envelope+json";

/// A full envelope. Unknown members are ignored.
#[derive(Debug)]
pub struct FullEnvelope<'a> {
    pub data: &'a RawValue,
    pub metadata: EnvelopeMetadata,
    /// The metadata as written by the database.
    pub raw_metadata: &'a RawValue,
}

#[derive(Deserialize)]
struct FullEnvelopeParts<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow)]
    metadata: &'a RawValue,
}

#[derive(Debug, Deserialize)]
pub struct EnvelopeMetadata {
    pub headers: HeadersMetadata,
    #[serde(default)]
    pub domain: DomainMetadata,
    #[serde(default)]
    pub extensions: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
pub struct HeadersMetadata {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub time: Option<String>,
    pub stream: Option<String>,
    pub traceparent: Option<TraceParent>,
}

/// Protean's form of the W3C trace context, version 00.
#[derive(Debug, Deserialize)]
pub struct TraceParent {
    pub trace_id: String,
    pub parent_id: String,
    #[serde(default)]
    pub sampled: bool,
}

#[derive(Debug, Default, Deserialize)]
pub struct DomainMetadata {
    pub sequence_id: Option<String>,
    pub correlation_id: Option<String>,
    pub causation_id: Option<String>,
    #[serde(default)]
    pub published: bool,
}

/// Attributes that the event sets itself.
const ATTRIBUTES: [&str; 9] =
    ["id", "type", "time", "source", "tenant", "specversion", "data", "data_base64", "datacontenttype"];

/// True if an extension has the name of an attribute that the event sets itself.
pub(super) fn is_reserved(extension: &str) -> bool {
    ATTRIBUTES.contains(&extension)
}

impl<'a> FullEnvelope<'a> {
    /// Parses an envelope. The error names the missing or invalid member.
    pub fn from_json(json: &'a str) -> Result<Self, serde_json::Error> {
        let FullEnvelopeParts { data, metadata } = serde_json::from_str(json)?;
        Ok(Self { data, metadata: serde_json::from_str(metadata.get())?, raw_metadata: metadata })
    }

    /// The value of a string extension; `None` if it is missing, empty or not a string.
    pub fn text_extension(&self, name: &str) -> Option<&str> {
        self.metadata.extensions.get(name)?.as_str().filter(|text| !text.is_empty())
    }

    /// The extensions as CloudEvents attributes (1.0 section 3.1: names of a-z and 0-9; strings, booleans, integers).
    ///
    /// The envelope's own attributes come first, then the producer's extensions; the first of one name counts. A
    /// producer's name loses every character that is not a letter or digit (`partner_tier` becomes `partnertier`). A
    /// value of another type, or with a control character, becomes its JSON text.
    pub fn attributes(&self) -> Vec<(String, Value)> {
        let EnvelopeMetadata { headers, domain, extensions } = &self.metadata;
        let mut found: Vec<(String, Value)> = Vec::new();
        if let Some(trace) = &headers.traceparent {
            let flags = if trace.sampled { "01" } else { "00" };
            let text = format!("00-{}-{}-{flags}", trace.trace_id, trace.parent_id);
            found.push(("traceparent".to_owned(), text.into()));
        }
        for (name, value) in [
            ("correlationid", &domain.correlation_id),
            ("causationid", &domain.causation_id),
            ("sequence", &domain.sequence_id),
        ] {
            found.extend(value.as_ref().map(|value| (name.to_owned(), value.clone().into())));
        }
        if domain.published {
            found.push(("published".to_owned(), true.into()));
        }
        let mut known: HashSet<String> = found.iter().map(|(name, _)| name.clone()).collect();
        for (name, value) in extensions.iter().filter(|(name, value)| !is_reserved(name) && !value.is_null())
        {
            let name = if is_attribute_name(name) {
                name.clone()
            } else {
                let kept = name.chars().map(|c| c.to_ascii_lowercase());
                kept.filter(char::is_ascii_alphanumeric).collect()
            };
            if name.is_empty() || is_reserved(&name) || known.contains(&name) {
                continue;
            }
            let value = match value {
                // CloudEvents defines these attributes as strings.
                other if matches!(name.as_str(), "subject" | "dataschema") && !other.is_string() => {
                    escape_controls(&other.to_string()).into_owned().into()
                }
                Value::String(text) if text.is_empty() => continue,
                Value::Number(number) if !(number.is_i64() || number.is_u64()) => number.to_string().into(),
                Value::Array(_) | Value::Object(_) => escape_controls(&value.to_string()).into_owned().into(),
                plain => without_controls(plain.clone()),
            };
            known.insert(name.clone());
            found.push((name, value));
        }
        found
    }
}
