//! The CloudEvents HTTP protocol binding: the content mode of a request, and the headers and events in it.

use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use serde_json::value::RawValue;

use super::MOST_EVENTS;
use crate::api::problem::{Problem, ProblemKind};

pub(super) const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

/// The content mode of a request (HTTP protocol binding 1.0.2 section 3). The content type decides; if it is not a
/// CloudEvents type, `ce-` headers mean binary mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BindingMode {
    Structured,
    Batch,
    Binary,
}

impl BindingMode {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut types = headers.get_all(header::CONTENT_TYPE).iter();
        let text = types.next().and_then(|value| value.to_str().ok()).unwrap_or_default();
        if types.next().is_some() {
            return Err(Problem::field("content-type", "is sent more than once; send it once"));
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
    Problem::header(
        ProblemKind::UnsupportedMediaType,
        "content-type",
        format!(
            "not a CloudEvents media type; send one event as `{STRUCTURED}`, a batch as `{BATCH}`, or an event's \
             data with its attributes as headers (ce-specversion, ce-id, ce-source, ce-type)"
        ),
    )
}

/// Returns the headers of the event; other headers are dropped. NATS headers of the hub are refused, because they have no
/// effect over HTTP.
pub(super) fn headers(mode: BindingMode, headers: &HeaderMap) -> Result<Vec<(&str, &str)>, Problem> {
    let mut taken = Vec::new();
    if mode != BindingMode::Binary {
        taken.push(("content-type", STRUCTURED));
    }
    for (name, value) in headers {
        let name = name.as_str();
        if name.starts_with("nats-") || name.starts_with("hub-") {
            return Err(Problem::field(
                name,
                "is a NATS header and has no effect over HTTP; set the event's attributes (id, tenant, …) instead",
            ));
        }
        let of_event = match mode {
            BindingMode::Binary => name == "content-type" || name == "traceparent" || name.starts_with("ce-"),
            BindingMode::Structured => name == "traceparent",
            // One trace context for many events would be wrong; each event has its own.
            BindingMode::Batch => false,
        };
        if of_event {
            let value = value.to_str().map_err(|_| {
                Problem::field(name, "must be visible ASCII; percent-encode the value as UTF-8")
            })?;
            taken.push((name, value));
        }
    }
    Ok(taken)
}

/// Splits a batch into its events, unparsed (CloudEvents JSON format 1.0.2 section 4).
pub(super) fn batch(body: &Bytes) -> Result<Vec<&RawValue>, Problem> {
    let events: Vec<&RawValue> = serde_json::from_slice(body)
        .map_err(|error| Problem::field("body", format!("is not a JSON array of events: {error}")))?;
    if events.len() > MOST_EVENTS {
        let count = events.len();
        return Err(Problem::new(
            ProblemKind::TooLarge,
            format!("the batch has {count} events; send at most {MOST_EVENTS} events per batch"),
        ));
    }
    Ok(events)
}
