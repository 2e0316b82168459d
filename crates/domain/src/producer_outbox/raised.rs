//! The event as a producer raises it: one JSON object for the Rust function, the SQL function and the SQLite view.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Number, Value};

use super::full_envelope::is_reserved;
use super::{Priority, content};
use crate::event::{is_timestamp, is_traceparent};
use crate::field_error::FieldError;
use crate::key::EventKey;
use crate::subscription::is_tenant;

/// Maximum length of an id, in bytes: the limit of a message id in AMQP 0-9-1.
const MAX_ID_BYTES: usize = 255;

/// Maximum length of another text field (stream, source, …), in bytes: they become headers and index entries.
pub(super) const MAX_TEXT_BYTES: usize = 512;

/// Largest `version`, and largest magnitude of `expected_version` and of a numeric `sequence_id`.
const MAX_VERSION: u32 = 999_999_999;
const MAX_NUMBER: i64 = 999_999_999_999_999_999;

/// Maximum size of all extensions as JSON, in bytes: they become attributes, whose size the hub limits.
pub(super) const MAX_EXTENSIONS_BYTES: usize = 16 * 1024;

/// An event as raised by a producer. Only `type`, `stream` and `data` are required.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaisedEvent {
    /// Unique in the outbox; a random UUID if not given. It is the message id on every broker, by which consumers drop
    /// duplicates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The event key.
    #[serde(rename = "type")]
    pub key: EventKey,
    /// Events of one stream are sent in order. Usually one stream per aggregate, such as `user-u1`.
    pub stream: String,
    /// Any JSON.
    pub data: Box<RawValue>,
    /// CloudEvents `source`; `outbox` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// RFC 3339; the current time if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// True to also send the event to every registered external broker.
    #[serde(default, deserialize_with = "default_if_null")]
    pub published: bool,
    #[serde(default, deserialize_with = "default_if_null")]
    pub priority: Priority,
    /// W3C Trace Context, version 00.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<String>,
    /// Version of the event's schema, from 1; 1 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "version")]
    pub version: Option<u32>,
    /// The fully qualified name of the event's class at the producer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fqn: Option<String>,
    /// `EVENT` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Position of the event in its stream; a string or an integer.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text_or_integer")]
    pub sequence_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_stream: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_category: Option<String>,
    /// Internal, like the next two fields: not sent to external brokers.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole")]
    pub expected_version: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asynchronous: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_store: Option<Map<String, Value>>,
    /// The producer's own attributes; sent everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extensions: Option<Map<String, Value>>,
}

impl RaisedEvent {
    /// Creates an event with the required fields; set the others directly.
    ///
    /// Fails if `data` cannot be serialized as JSON.
    pub fn new(
        key: EventKey,
        stream: impl Into<String>,
        data: &impl Serialize,
    ) -> Result<Self, serde_json::Error> {
        Ok(Self {
            id: None,
            key,
            stream: stream.into(),
            data: to_raw_value(data)?,
            source: None,
            time: None,
            tenant: None,
            published: false,
            priority: Priority::Live,
            traceparent: None,
            correlation_id: None,
            causation_id: None,
            version: None,
            fqn: None,
            kind: None,
            sequence_id: None,
            origin_stream: None,
            stream_category: None,
            expected_version: None,
            asynchronous: None,
            event_store: None,
            extensions: None,
        })
    }

    /// Parses and checks the JSON form. The error names the field.
    pub fn from_json(json: &str) -> Result<Self, FieldError> {
        let mut input = serde_json::Deserializer::from_str(json);
        let event: Self = serde_path_to_error::deserialize(&mut input).map_err(|error| {
            let path = error.path().to_string();
            let problem = error.into_inner().to_string();
            FieldError::new(if path == "." { "event".to_owned() } else { path }, problem)
        })?;
        input.end().map_err(|error| FieldError::new("event", format!("{error}; write one JSON object")))?;
        event.validate()?;
        Ok(event)
    }

    /// Checks the fields beyond their types. The database checks the same (`crates/outbox/src/*/0002_*.sql`), and also
    /// the size of the envelope.
    pub fn validate(&self) -> Result<(), FieldError> {
        if self.id.as_deref().is_some_and(|id| !is_id(id)) {
            return Err(FieldError::new(
                "id",
                format!(
                    "must be 1 to {MAX_ID_BYTES} bytes without control characters, and without blanks at its ends"
                ),
            ));
        }
        let texts = [
            ("stream", Some(self.stream.as_str())),
            ("source", self.source.as_deref()),
            ("correlation_id", self.correlation_id.as_deref()),
            ("causation_id", self.causation_id.as_deref()),
            ("fqn", self.fqn.as_deref()),
            ("sequence_id", self.sequence_id.as_deref()),
            ("origin_stream", self.origin_stream.as_deref()),
            ("stream_category", self.stream_category.as_deref()),
        ];
        for (field, text) in texts {
            let fits = text.is_none_or(|text| {
                (1..=MAX_TEXT_BYTES).contains(&text.len()) && !text.contains(char::is_control)
            });
            if !fits {
                return Err(FieldError::new(
                    field,
                    format!("must be 1 to {MAX_TEXT_BYTES} bytes without control characters"),
                ));
            }
        }
        let require = |holds: bool, field: &str, problem: String| {
            if holds { Ok(()) } else { Err(FieldError::new(field, problem)) }
        };
        let tenant = self.tenant.as_deref();
        require(
            tenant.is_none_or(is_tenant),
            "tenant",
            "must be 1 to 64 letters, digits, '_', '.' and '-'".to_owned(),
        )?;
        require(
            self.time.as_ref().is_none_or(|time| time.len() <= MAX_TEXT_BYTES && is_timestamp(time)),
            "time",
            "is not RFC 3339; write it like 2026-01-31T12:00:00Z".to_owned(),
        )?;
        require(
            self.traceparent.as_ref().is_none_or(|text| text.starts_with("00-") && is_traceparent(text)),
            "traceparent",
            "is not W3C Trace Context; write 00-<32 hex digits>-<16 hex digits>-<2 hex digits>".to_owned(),
        )?;
        require(
            self.version.is_none_or(|version| (1..=MAX_VERSION).contains(&version)),
            "version",
            format!("must be 1 to {MAX_VERSION}"),
        )?;
        require(
            self.expected_version.is_none_or(|version| version.unsigned_abs() <= MAX_NUMBER.unsigned_abs()),
            "expected_version",
            "must have at most 18 digits".to_owned(),
        )?;
        require(
            self.kind.as_deref().is_none_or(|kind| matches!(kind, "EVENT" | "COMMAND")),
            "kind",
            "must be EVENT or COMMAND".to_owned(),
        )?;
        let fits = |field: &str, error: serde_json::Error| FieldError::new(field, error.to_string());
        content::check(&self.data).map_err(|error| fits("data", error))?;
        for (field, object) in [("event_store", &self.event_store), ("extensions", &self.extensions)] {
            let Some(object) = object else { continue };
            let raw = to_raw_value(object).map_err(|error| fits(field, error))?;
            content::check(&raw).map_err(|error| fits(field, error))?;
        }
        let Some(extensions) = &self.extensions else { return Ok(()) };
        if let Some(name) = extensions.keys().find(|name| is_reserved(name)) {
            return Err(FieldError::new(
                format!("extensions.{name}"),
                "is what the event itself says; write it as a field of the event, or name it otherwise",
            ));
        }
        let bytes = serde_json::to_string(extensions).map_or(usize::MAX, |text| text.len());
        require(
            bytes <= MAX_EXTENSIONS_BYTES,
            "extensions",
            format!("hold {bytes} bytes, at most {MAX_EXTENSIONS_BYTES} are taken; put it into the data"),
        )
    }
}

fn default_if_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A whole number of at most 18 digits in any notation (7, 7.0, 7e0), because JSON has one type of number.
fn to_whole(number: &Number) -> Option<i64> {
    let whole = number.as_i64().or_else(|| {
        let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 1e18)?;
        // Exact: a double below 2^63.
        Some(float as i64)
    })?;
    (whole.unsigned_abs() <= MAX_NUMBER.unsigned_abs()).then_some(whole)
}

fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let Some(number) = Option::<Number>::deserialize(deserializer)? else { return Ok(None) };
    let refused = || D::Error::custom(format!("{number} is not a whole number of at most 18 digits"));
    to_whole(&number).map(Some).ok_or_else(refused)
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let Some(number) = whole(deserializer)? else { return Ok(None) };
    let refused = |_| D::Error::custom(format!("must be 1 to {MAX_VERSION}"));
    u32::try_from(number).map(Some).map_err(refused)
}

fn text_or_integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let refused = || D::Error::custom("must be a string, or a whole number of at most 18 digits");
    match Option::<Value>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(number)) => {
            to_whole(&number).map(|number| Some(number.to_string())).ok_or_else(refused)
        }
        Some(_) => Err(refused()),
    }
}

/// True for a valid id. Blanks at its ends are refused, because NATS strips them from header values.
fn is_id(text: &str) -> bool {
    (1..=MAX_ID_BYTES).contains(&text.len())
        && !text.contains(char::is_control)
        && text.trim().len() == text.len()
}
