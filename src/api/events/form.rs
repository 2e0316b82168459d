//! Which of the binding's forms a request has, and what of it goes on.

use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use serde_json::value::RawValue;

use super::MOST_EVENTS;
use crate::api::problem::{Kind, Problem};

pub(super) const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

/// HTTP protocol binding 1.0.2 section 3: the content mode is told by the content type, and where that is
/// none of CloudEvents, by the `ce-` headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Structured,
    Batch,
    Binary,
}

impl Content {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut types = headers.get_all(header::CONTENT_TYPE).iter();
        let text = types.next().and_then(|value| value.to_str().ok()).unwrap_or_default();
        if types.next().is_some() {
            return Err(Problem::field("content-type", "is given twice; give it once"));
        }
        let media = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match &*media {
            STRUCTURED => Ok(Self::Structured),
            BATCH => Ok(Self::Batch),
            other if other.starts_with("application/cloudevents") => Err(unsupported()),
            _ if headers.keys().any(|name| name.as_str().starts_with("ce-")) => Ok(Self::Binary),
            _ => Err(unsupported()),
        }
    }
}

fn unsupported() -> Problem {
    Problem::new(
        Kind::UnsupportedMediaType,
        format!(
            "send an event as `content-type: {STRUCTURED}`, several as `content-type: {BATCH}`, or an event's data with its \
             attributes as headers (ce-specversion, ce-id, ce-source, ce-type)"
        ),
    )
}

/// The headers that belong to the event; of the other ones none goes on. Those that would mean something on
/// the stream are refused: their sender thinks that they do.
pub(super) fn headers(content: Content, headers: &HeaderMap) -> Result<Vec<(&str, &str)>, Problem> {
    let mut taken = Vec::new();
    if content != Content::Binary {
        taken.push(("content-type", STRUCTURED));
    }
    for (name, value) in headers {
        let name = name.as_str();
        if name.starts_with("nats-") || name.starts_with("hub-") {
            return Err(Problem::field(
                name,
                "is a header of NATS, and means nothing over HTTP; an event says what it is by its attributes (id, tenant, …)",
            ));
        }
        let of_event = match content {
            Content::Binary => name == "content-type" || name == "traceparent" || name.starts_with("ce-"),
            Content::Structured => name == "traceparent",
            // One for many would say that they are one request's children; each event names its own.
            Content::Batch => false,
        };
        if of_event {
            let value = value.to_str().map_err(|_| {
                Problem::field(name, "holds other than visible ASCII; percent-encode its value as UTF-8")
            })?;
            taken.push((name, value));
        }
    }
    Ok(taken)
}

/// The events of a batch, each as it came (JSON batch format, CloudEvents JSON format 1.0.2 section 4).
pub(super) fn batch(body: &Bytes) -> Result<Vec<&RawValue>, Problem> {
    let events: Vec<&RawValue> = serde_json::from_slice(body)
        .map_err(|error| Problem::field("body", format!("is no JSON array of events: {error}")))?;
    if events.len() > MOST_EVENTS {
        let count = events.len();
        return Err(Problem::new(
            Kind::TooLarge,
            format!("the batch has {count} events; send at most {MOST_EVENTS} in one"),
        ));
    }
    Ok(events)
}
