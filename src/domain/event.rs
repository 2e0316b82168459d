//! The event (EventHubEvent): what was published, in one shape whatever form it came in.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::key::EventKey;

/// An event as the hub carries it: the attributes of CloudEvents 1.0, with `type` as the event key.
#[derive(Debug, Clone)]
pub struct Event {
    /// CloudEvents `id`; for a bare publication the `Nats-Msg-Id` header, else `<stream>-<sequence>`.
    pub id: String,
    pub key: EventKey,
    pub source: String,
    /// RFC 3339, as it came; for a bare publication the time the stream stored it.
    pub time: String,
    pub tenant: String,
    pub subject: Option<String>,
    pub datacontenttype: Option<String>,
    pub dataschema: Option<String>,
    pub data: Data,
    /// Extension attributes other than `tenant`: `published`, `correlationid`, `traceparent`, …
    /// A CloudEvents attribute value is a string, a number or a boolean.
    pub extensions: BTreeMap<String, serde_json::Value>,
    /// What makes two publications the same event: equal to `id`, but where the hub made up the
    /// id from a stream sequence, which restarts when a stream is made anew; then with the time.
    pub identity: String,
}

/// The payload, never re-encoded.
#[derive(Debug, Clone)]
pub enum Data {
    None,
    Json(Box<RawValue>),
    /// `data_base64` of the CloudEvents JSON format: content that is not JSON.
    Binary(Vec<u8>),
}

impl Event {
    /// The value of a context attribute or extension in its CloudEvents string form
    /// (CloudEvents 1.0 section 3.1), for filters. None where the event has no such attribute.
    pub fn attribute(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            "specversion" => Some("1.0".into()),
            "id" => Some(self.id.as_str().into()),
            "source" => Some(self.source.as_str().into()),
            "type" => Some(self.key.as_str().into()),
            "time" => Some(self.time.as_str().into()),
            "tenant" => Some(self.tenant.as_str().into()),
            "subject" => self.subject.as_deref().map(Cow::from),
            "datacontenttype" => self.datacontenttype.as_deref().map(Cow::from),
            "dataschema" => self.dataschema.as_deref().map(Cow::from),
            extension => match self.extensions.get(extension)? {
                serde_json::Value::String(text) => Some(text.as_str().into()),
                other => Some(other.to_string().into()),
            },
        }
    }
}

/// CloudEvents 1.0 section 3: attribute names are lower-case letters and digits.
pub fn is_attribute_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}
