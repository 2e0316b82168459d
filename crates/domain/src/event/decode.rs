//! Decodes a publication on `<prefix>.events.>` or `<prefix>.from.<tenant>.>`: bare JSON, CloudEvents in binary or
//! structured mode (CloudEvents NATS protocol binding 1.0.3), or the full envelope of a producer outbox.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::cloudevents::JsonMembers;
use super::timestamp::is_timestamp;
use super::{Event, EventData, RejectReason, Rejection, is_attribute_name, is_json, media_type, tenant};
use crate::backlog::size;
use crate::key::EventKey;
use crate::producer_outbox;

/// Maximum size of all attributes together, in bytes. With the limit of the data, it keeps an envelope below the
/// maximum message size of a server.
pub(super) const MAX_ATTRIBUTE_BYTES: usize = 32 * 1024;
/// The same for an event from a producer outbox, which checks its limit before each control character becomes an escape
/// of six bytes.
const MAX_OUTBOX_ATTRIBUTE_BYTES: usize = 6 * MAX_ATTRIBUTE_BYTES;

const JSON: &str = "application/json";

/// A message on the events stream.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    /// The subject after `<prefix>.events.` or `<prefix>.from.<tenant>.`.
    pub subject_tail: &'a str,
    /// The `<tenant>` of a subject `<prefix>.from.<tenant>.>`, as written in the subject.
    pub tenant_token: Option<&'a str>,
    /// In the order of the message; names are case-insensitive.
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
    pub stream: &'a str,
    pub sequence: u64,
    /// The time at which the stream stored it.
    pub time: OffsetDateTime,
    /// Maximum size of the body, and of the data in the envelope, in bytes (`events.max_size`).
    pub max_size: usize,
}

impl<'a> Publication<'a> {
    /// Decodes the event. Does not check that its key belongs to a domain.
    pub fn decode(&self) -> Result<Event, Rejection> {
        self.check_size("the body", self.body.len())?;
        let content_type = self.header("content-type");
        match content_type.map(media_type).as_deref() {
            // The binding also recognises structured mode by the prefix without a format; JSON is the default.
            Some("application/cloudevents+json" | "application/cloudevents") => self.structured(),
            Some(other) if other.starts_with("application/cloudevents") => Err(malformed(format!(
                "content-type {other:?} is not supported; publish one event as application/cloudevents+json"
            ))),
            Some(producer_outbox::CONTENT_TYPE) => self.outbox_envelope(),
            _ if self.headers.iter().any(|(name, _)| ce_name(name).is_some()) => self.binary(content_type),
            _ => self.plain_json(),
        }
    }

    /// Plain JSON: the key comes from the subject, other attributes from headers.
    fn plain_json(&self) -> Result<Event, Rejection> {
        let data = self
            .json_body("publish a JSON value, or CloudEvents headers (ce-id, ce-source, …) for other data")?;
        let attributes = Attributes {
            id: self.header("nats-msg-id").map(str::to_owned),
            key: Some(self.subject_tail.to_owned()),
            source: Some(self.header("hub-source").unwrap_or("nats").to_owned()),
            datacontenttype: Some(JSON.to_owned()),
            ..Attributes::default()
        };
        self.finish(attributes, EventData::Json(data))
    }

    /// Attributes in `ce-` headers, data in the body.
    fn binary(&self, content_type: Option<&str>) -> Result<Event, Rejection> {
        let mut attributes = Attributes::default();
        for (header, value) in self.headers {
            if let Some(name) = ce_name(header) {
                attributes.set(&name.to_ascii_lowercase(), Value::String(header_value(header, value)?))?;
            }
        }
        attributes.check_required()?;
        // The NATS binding has `ce-datacontenttype`; publishers used to HTTP write `content-type`.
        if attributes.datacontenttype.is_none() {
            attributes.datacontenttype = content_type.map(|text| text.trim().to_owned());
        }
        let data = match &attributes.datacontenttype {
            _ if self.body.is_empty() => EventData::None,
            Some(declared) if is_json(declared) => {
                EventData::Json(self.json_body("publish JSON, or set another content type")?)
            }
            Some(_) => EventData::Binary(self.body.to_vec()),
            // Without a content type: JSON if it can be parsed as JSON, as in bare publications.
            None => match serde_json::from_slice(self.body) {
                Ok(json) => {
                    attributes.datacontenttype = Some(JSON.to_owned());
                    EventData::Json(json)
                }
                Err(_) => EventData::Binary(self.body.to_vec()),
            },
        };
        self.finish(attributes, data)
    }

    /// The whole event in the body, in the CloudEvents JSON format 1.0.2.
    fn structured(&self) -> Result<Event, Rejection> {
        let text = self.text_body()?;
        let members: JsonMembers<'_> = serde_json::from_str(text).map_err(|error| {
            malformed(format!("the body is not a CloudEvent in JSON: {error}; publish one JSON object"))
        })?;
        let mut attributes = Attributes::default();
        let mut data = EventData::None;
        // Some writers set both members, one of them to null.
        let in_base64 = members.0.iter().any(|(name, raw)| name == "data_base64" && raw.get() != "null");
        for (name, raw) in &members.0 {
            let given_twice = |data: &EventData| match data {
                EventData::None => Ok(()),
                _ => Err(malformed("data and data_base64 are both set; write one of them").at("data")),
            };
            match &**name {
                "data" if in_base64 && raw.get() == "null" => {}
                "data" => {
                    given_twice(&data)?;
                    data = EventData::Json((*raw).to_owned());
                }
                "data_base64" if raw.get() == "null" => {}
                "data_base64" => {
                    given_twice(&data)?;
                    let encoded: Cow<'_, str> = serde_json::from_str(raw.get()).map_err(|_| {
                        malformed("data_base64 is not a string; write the bytes in base64").at("data_base64")
                    })?;
                    let bytes = STANDARD.decode(encoded.as_bytes()).map_err(|error| {
                        malformed(format!(
                            "data_base64 is not base64: {error}; write RFC 4648 base64 with padding"
                        ))
                        .at("data_base64")
                    })?;
                    data = EventData::Binary(bytes);
                }
                name => {
                    let value = serde_json::from_str(raw.get()).map_err(|error| {
                        malformed(format!("invalid attribute {name:?}: {error}; write a JSON string"))
                            .at(name)
                    })?;
                    attributes.set(name, value)?;
                }
            }
        }
        attributes.check_required()?;
        self.finish(attributes, data)
    }

    /// The full envelope of a row of a producer outbox. Fields that are internal to the producer are dropped.
    fn outbox_envelope(&self) -> Result<Event, Rejection> {
        let envelope = producer_outbox::FullEnvelope::from_json(self.text_body()?).map_err(|error| {
            malformed(format!(
                "the body is not an outbox envelope: {error}; publish it with the outbox relay"
            ))
        })?;
        let mut attributes = Attributes::default();
        let headers = &envelope.metadata.headers;
        for (name, value) in [
            ("id", Some(headers.id.as_str())),
            ("type", Some(headers.kind.as_str())),
            ("time", headers.time.as_deref()),
            ("source", Some(envelope.text_extension("source").unwrap_or("outbox"))),
            ("tenant", envelope.text_extension("tenant")),
            ("subject", headers.stream.as_deref()),
        ] {
            attributes.set(name, value.map_or(Value::Null, Value::from))?;
        }
        for (name, value) in envelope.attributes() {
            let malformed_trace = name == "traceparent" && !value.as_str().is_some_and(is_traceparent);
            if !malformed_trace {
                attributes.set(&name, value)?;
            }
        }
        attributes.datacontenttype = Some(JSON.to_owned());
        let mut event = self.finish(attributes, EventData::Json(envelope.data.to_owned()))?;
        let kept = producer_outbox::external_metadata(envelope.raw_metadata).map_err(|error| {
            malformed(format!(
                "invalid metadata of the outbox envelope: {error}; publish it with the outbox relay"
            ))
        })?;
        event.external_metadata = Some(kept);
        Ok(event)
    }

    /// Builds the event of any form: key, tenant, time, trace context, limits.
    fn finish(&self, mut attributes: Attributes, data: EventData) -> Result<Event, Rejection> {
        let key = attributes.key.take().unwrap_or_default();
        let key: EventKey = key.parse().map_err(|error: crate::key::InvalidKey| {
            Rejection::new(RejectReason::InvalidKey, error.to_string()).at("type")
        })?;
        let tenant = tenant::of_event(self.tenant_token, attributes.tenant.take(), self.headers)?;
        if !attributes.extensions.contains_key("traceparent")
            && let Some(traceparent) = self.header("traceparent").filter(|value| is_traceparent(value))
        {
            attributes.extensions.insert("traceparent".to_owned(), traceparent.into());
        }
        let time = match attributes.time.take() {
            Some(time) => time,
            None => self
                .time
                .format(&Rfc3339)
                .map_err(|error| malformed(format!("the message's time: {error}")))?,
        };
        let source = attributes.source.take().unwrap_or_default();
        let (id, identity) = match attributes.id.take() {
            Some(id) => {
                let identity = super::given_identity(&source, &key, &id);
                (id, identity)
            }
            None => {
                let id = format!("{}-{}", self.stream, self.sequence);
                let given = super::given_identity(&source, &key, &id);
                (id, format!("{given}:{}", self.time.unix_timestamp_nanos()))
            }
        };
        let event = Event {
            id,
            key,
            source,
            time,
            tenant,
            subject: attributes.subject,
            datacontenttype: attributes.datacontenttype,
            dataschema: attributes.dataschema,
            data,
            extensions: attributes.extensions,
            external_metadata: None,
            identity,
        };
        super::text::check(&event)?;
        self.check_bounds(&event)?;
        Ok(event)
    }

    fn check_bounds(&self, event: &Event) -> Result<(), Rejection> {
        if let EventData::Binary(bytes) = &event.data {
            // The envelope contains the data in base64, which is larger by a third.
            self.check_size("the data in base64", bytes.len().div_ceil(3) * 4)?;
        }
        let optional = [&event.subject, &event.datacontenttype, &event.dataschema];
        let bytes = event.id.len()
            + event.source.len()
            + event.time.len()
            + optional.into_iter().flatten().map(String::len).sum::<usize>()
            + event
                .extensions
                .iter()
                .map(|(name, value)| name.len() + super::string_form(value).len())
                .sum::<usize>();
        let is_of_outbox =
            self.header("content-type").map(media_type).as_deref() == Some(producer_outbox::CONTENT_TYPE);
        let most = if is_of_outbox { MAX_OUTBOX_ATTRIBUTE_BYTES } else { MAX_ATTRIBUTE_BYTES };
        if bytes > most {
            return Err(Rejection::new(
                RejectReason::TooLarge,
                format!(
                    "the attributes have {}, the limit is {}; move content to the data",
                    size::beyond(bytes as u64, most as u64),
                    size::exact(most as u64)
                ),
            ));
        }
        Ok(())
    }

    fn check_size(&self, what: &str, bytes: usize) -> Result<(), Rejection> {
        if bytes > self.max_size {
            return Err(Rejection::new(
                RejectReason::TooLarge,
                format!(
                    "{what} has {}, the limit is {} (events.max_size); publish a reference to large data instead",
                    size::beyond(bytes as u64, self.max_size as u64),
                    size::exact(self.max_size as u64)
                ),
            ));
        }
        Ok(())
    }

    /// The body as JSON, unchanged; `remedy` is the end of the error.
    fn json_body(&self, remedy: &str) -> Result<Box<RawValue>, Rejection> {
        serde_json::from_str(self.text_body()?)
            .map_err(|error| malformed(format!("the body is not JSON: {error}; {remedy}")))
    }

    fn text_body(&self) -> Result<&'a str, Rejection> {
        if self.body.is_empty() {
            return Err(malformed("the body is empty; publish JSON, {} for an event without data"));
        }
        std::str::from_utf8(self.body).map_err(|error| {
            malformed(format!("the body is not UTF-8 at byte {}; publish JSON in UTF-8", error.valid_up_to()))
        })
    }

    /// The first non-empty header of this name (case-insensitive).
    fn header(&self, name: &str) -> Option<&'a str> {
        self.headers
            .iter()
            .find(|(found, value)| found.eq_ignore_ascii_case(name) && !value.is_empty())
            .map(|(_, value)| *value)
    }
}

/// The attributes of a CloudEvent during decoding.
#[derive(Default)]
struct Attributes {
    specversion: bool,
    id: Option<String>,
    key: Option<String>,
    source: Option<String>,
    time: Option<String>,
    tenant: Option<String>,
    subject: Option<String>,
    datacontenttype: Option<String>,
    dataschema: Option<String>,
    extensions: BTreeMap<String, Value>,
}

impl Attributes {
    /// Sets one attribute by its CloudEvents name. `null` means not set (JSON format section 2.2).
    fn set(&mut self, name: &str, value: Value) -> Result<(), Rejection> {
        if value.is_null() {
            return Ok(());
        }
        let place = match name {
            // Possible as a header only; a later reader would take it for the data.
            "data" => {
                return Err(
                    malformed("\"data\" is not an attribute name; put the data in the body").at("data")
                );
            }
            "specversion" => {
                if value != "1.0" {
                    return Err(malformed(format!("specversion is {value}; publish CloudEvents \"1.0\""))
                        .at("specversion"));
                }
                self.specversion = true;
                return Ok(());
            }
            "id" => &mut self.id,
            "source" => &mut self.source,
            "type" => &mut self.key,
            "time" => &mut self.time,
            "tenant" => &mut self.tenant,
            "subject" => &mut self.subject,
            "datacontenttype" => &mut self.datacontenttype,
            "dataschema" => &mut self.dataschema,
            extension => return self.set_extension(extension, value),
        };
        let Value::String(text) = value else {
            return Err(malformed(format!("the attribute {name:?} is not a string; write a string")).at(name));
        };
        if text.is_empty() {
            return Err(
                malformed(format!("the attribute {name:?} is empty; set a value, or remove it")).at(name)
            );
        }
        if name == "time" && !is_timestamp(&text) {
            return Err(malformed(format!(
                "the time {text:?} is not RFC 3339; write it like 2026-01-31T12:00:00Z"
            ))
            .at(name));
        }
        *place = Some(text);
        Ok(())
    }

    fn set_extension(&mut self, name: &str, value: Value) -> Result<(), Rejection> {
        if !is_attribute_name(name) {
            return Err(malformed(format!(
                "{name:?} is not an attribute name; use only a-z and 0-9, and put other content in the data"
            ))
            .at(name));
        }
        let fits = match &value {
            Value::String(_) | Value::Bool(_) => true,
            Value::Number(number) => number.is_i64() || number.is_u64(),
            _ => false,
        };
        if !fits {
            return Err(malformed(format!(
                "the extension {name:?} must be a string, a boolean or an integer; put other content in the data"
            ))
            .at(name));
        }
        self.extensions.insert(name.to_owned(), value);
        Ok(())
    }

    fn check_required(&self) -> Result<(), Rejection> {
        let required = [
            ("specversion", self.specversion),
            ("id", self.id.is_some()),
            ("source", self.source.is_some()),
            ("type", self.key.is_some()),
        ];
        match required.iter().find(|(_, given)| !given) {
            Some((name, _)) => Err(malformed(format!(
                "the CloudEvent has no {name}; set specversion, id, source and type (in binary mode the headers ce-specversion, …)"
            ))
            .at(*name)),
            None => Ok(()),
        }
    }
}

pub(super) fn malformed(detail: impl Into<String>) -> Rejection {
    Rejection::new(RejectReason::Malformed, detail)
}

/// The attribute name of a `ce-` header.
fn ce_name(header: &str) -> Option<&str> {
    let prefix = header.get(..3)?;
    prefix.eq_ignore_ascii_case("ce-").then(|| &header[3..])
}

/// The value of a `ce-` header: quotes removed, then percent-decoded once (CloudEvents HTTP
/// binding 1.0.2 section 3.1.3.2, whose rule the NATS binding follows).
pub(super) fn header_value(header: &str, value: &str) -> Result<String, Rejection> {
    // White space by RFC 9110 section 5.6.3; other characters belong to the value.
    let value = value.trim_matches([' ', '\t']);
    let unquoted: Cow<'_, str> = match value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(quoted) => unescape(quoted).into(),
        None => value.into(),
    };
    percent_decode_str(&unquoted).decode_utf8().map(Cow::into_owned).map_err(|_| {
        malformed(format!("the header {header} is not percent-encoded UTF-8; encode the value"))
            .at(header.to_ascii_lowercase())
    })
}

/// RFC 9110 section 5.6.4: a backslash precedes a literal character.
fn unescape(quoted: &str) -> String {
    let mut text = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.extend(characters.next()),
            other => text.push(other),
        }
    }
    text
}

/// True for a valid `traceparent` (W3C Trace Context section 3.2, by which a malformed one is ignored).
pub(crate) fn is_traceparent(value: &str) -> bool {
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let parts: Vec<&str> = value.split('-').collect();
    matches!(parts.as_slice(), [version, trace, span, flags]
        if hex(version, 2) && *version != "ff" && hex(trace, 32) && hex(span, 16) && hex(flags, 2)
            && trace.bytes().any(|b| b != b'0') && span.bytes().any(|b| b != b'0'))
}
