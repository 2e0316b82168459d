//! The event (EventHubEvent): a decoded publication, the same for every form of publication.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde_json::value::RawValue;

use super::key::EventKey;
use super::message_id::MessageIds;

mod cloudevents;
mod decode;
mod tenant;
#[cfg(test)]
mod tests;
mod text;
mod timestamp;

pub use cloudevents::{BinaryParts, NotACloudEvent, binary_parts};
pub(super) use cloudevents::{JsonMembers, JsonText};
pub use decode::Publication;
pub(super) use decode::is_traceparent;
pub(super) use text::{escape_controls, without_controls};
pub(super) use timestamp::is_timestamp;

/// A decoded event: the attributes of CloudEvents 1.0, with `type` as the event key.
#[derive(Debug, Clone)]
pub struct Event {
    /// CloudEvents `id`; for a bare publication the `Nats-Msg-Id` header, else `<stream>-<sequence>`.
    pub id: String,
    pub key: EventKey,
    pub source: String,
    /// RFC 3339, unchanged; if none was given, the time at which the stream stored the event.
    pub time: String,
    pub tenant: String,
    pub subject: Option<String>,
    pub datacontenttype: Option<String>,
    pub dataschema: Option<String>,
    pub data: EventData,
    /// Extension attributes other than `tenant`: `published`, `correlationid`, `traceparent`, …
    /// A CloudEvents attribute value is a string, a number or a boolean.
    pub extensions: BTreeMap<String, serde_json::Value>,
    /// For an event from a producer outbox: the metadata for external brokers, as JSON.
    pub external_metadata: Option<Box<RawValue>>,
    /// `<length of source>:<source>:<key>:<id>`. Two publications of a tenant with the same identity are the same
    /// event. Source and id together are unique (CloudEvents 1.0 section 3.1.1); the key is included because a
    /// publisher may use one message id for two keys. If the hub made the id from a stream sequence, which restarts
    /// when a stream is recreated, the identity ends with the time: `…:<unix nanoseconds>`.
    pub identity: String,
}

/// The payload, unchanged.
#[derive(Debug, Clone)]
pub enum EventData {
    None,
    Json(Box<RawValue>),
    /// `data_base64` of the CloudEvents JSON format: content that is not JSON.
    Binary(Vec<u8>),
}

/// The reason why a publication is rejected, with the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Rejection {
    pub reason: RejectReason,
    /// The invalid CloudEvents attribute, or `data`. `type` also stands for a key that came from the subject.
    pub field: Option<String>,
    pub detail: String,
}

impl Rejection {
    pub fn new(reason: RejectReason, detail: impl Into<String>) -> Self {
        Self { reason, field: None, detail: detail.into() }
    }

    /// Sets the invalid attribute.
    pub fn at(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    /// The rejection of an event key that matches no domain.
    pub fn no_domain(key: &EventKey) -> Self {
        Self::new(
            RejectReason::NoDomain,
            format!(
                "no domain matches the event key {key:?}; add a pattern for it to a [[domains]] entry",
                key = key.as_str()
            ),
        )
        .at("type")
    }
}

/// The kinds of rejection; each is a token of the subject of the rejected event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    Malformed,
    InvalidKey,
    NoDomain,
    TooLarge,
    /// The event names another tenant than its subject.
    TenantMismatch,
    /// The header block cannot be parsed.
    MalformedHeaders,
    /// The subject is not UTF-8.
    MalformedSubject,
    /// The hub panicked on it.
    InternalError,
}

impl RejectReason {
    pub const ALL: [Self; 8] = [
        Self::Malformed,
        Self::InvalidKey,
        Self::NoDomain,
        Self::TooLarge,
        Self::TenantMismatch,
        Self::MalformedHeaders,
        Self::MalformedSubject,
        Self::InternalError,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::InvalidKey => "invalid-key",
            Self::NoDomain => "no-domain",
            Self::TooLarge => "too-large",
            Self::TenantMismatch => "tenant-mismatch",
            Self::MalformedHeaders => "malformed-headers",
            Self::MalformedSubject => "malformed-subject",
            Self::InternalError => "internal-error",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Event {
    /// True if the publisher set the id, false if the hub made it.
    pub fn has_given_id(&self) -> bool {
        self.identity == given_identity(&self.source, &self.key, &self.id)
    }

    /// The message id of the event, for de-duplication; unique to the tenant and the event.
    pub fn message_id(&self, ids: &MessageIds) -> String {
        ids.id(&["event", &self.tenant, &self.identity])
    }

    /// The value of a context attribute or extension in its CloudEvents string form
    /// (CloudEvents 1.0 section 3.1), for filters; `None` if the event does not have the attribute.
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
            extension => self.extensions.get(extension).map(string_form),
        }
    }
}

/// The identity of an event whose publisher set the id. A key contains no colon.
fn given_identity(source: &str, key: &EventKey, id: &str) -> String {
    format!("{}:{source}:{}:{id}", source.len(), key.as_str())
}

/// An attribute value in its canonical string form (CloudEvents 1.0 section 3.1).
fn string_form(value: &serde_json::Value) -> Cow<'_, str> {
    match value {
        serde_json::Value::String(text) => text.as_str().into(),
        other => other.to_string().into(),
    }
}

/// CloudEvents 1.0 section 3: attribute names are lower-case letters and digits.
pub(crate) fn is_attribute_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// `application/json`, `text/json`, `application/problem+json; charset=utf-8`, … (the rule of the
/// CloudEvents JSON format, section 3.1: a subtype that is `json` or ends with `+json`).
fn is_json(content_type: &str) -> bool {
    let media_type = media_type(content_type);
    media_type.split_once('/').is_some_and(|(_, subtype)| subtype == "json" || subtype.ends_with("+json"))
}

/// The media type without its parameters, in lower case.
fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}
