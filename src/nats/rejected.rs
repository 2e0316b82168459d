//! Keeping what was refused: the original bytes of body, headers and subject, with the reason.

use async_nats::header::HeaderName;
use async_nats::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::connection::JetStream;
use super::error::NatsError;
use super::message::Delivered;
use super::publish::{header_map, shortened};

/// The most bytes of headers that a stream takes are 65,535; these leave room for what the server adds.
const MAX_HEADER_BYTES: usize = 60 * 1024;
/// Room in a message for its own protocol line and rounding.
const MARGIN: usize = 256;
/// The most bytes of the error's text.
const MAX_ERROR_BYTES: usize = 2_000;

/// A part of the original, in the body of a message of its own.
struct Part {
    /// `body`, `headers` or `subject`
    of: &'static str,
    bytes: Bytes,
}

impl JetStream {
    /// Stores a refused publication under `<prefix>.rejected.<reason>`.
    ///
    /// The body is the original's. Headers that can be read go along under their names, with
    /// `Hub-Original-` before those that mean something to a stream or to the hub; a header block that
    /// cannot be read is in `Hub-Original-Headers`, and a subject that is not printable ASCII in
    /// `Hub-Original-Subject`, both in base64. What does not fit beside its reason is stored in parts
    /// (`Hub-Part: 1/3`): first the body, then, in the bodies of further messages (`Hub-Part-Of: headers`,
    /// `subject`), the header block and the subject.
    pub async fn reject(&self, message: &Delivered, reason: &str, detail: &str) -> Result<(), NatsError> {
        let stored = Stored::of(message, reason, detail, self.max_payload());
        let to = self.names().rejected(reason);
        let identity = format!("{}-{}", self.names().events_stream(), message.stream_sequence);
        let count = stored.parts.len();
        for (position, part) in stored.parts.into_iter().enumerate() {
            let mut headers = stored.headers.clone();
            let mut id = identity.clone();
            if count > 1 {
                id = format!("{identity}-{}", position + 1);
                headers.insert("Hub-Part", format!("{}/{count}", position + 1));
            }
            if part.of != "body" {
                headers.insert("Hub-Part-Of", part.of);
            }
            headers.insert("Nats-Msg-Id", id);
            self.publish_map(&to, part.bytes, headers).await?;
        }
        Ok(())
    }
}

/// What is stored of a refused publication.
struct Stored {
    /// Of each part.
    headers: HeaderMap,
    parts: Vec<Part>,
}

impl Stored {
    fn of(message: &Delivered, reason: &str, detail: &str, max_payload: usize) -> Self {
        let subject = message.subject_bytes();
        let mut headers = header_map(&[
            ("Hub-Reason", reason),
            ("Hub-Error", shortened(detail, MAX_ERROR_BYTES)),
            ("Hub-Subject", shortened(message.subject.trim_start(), MAX_ERROR_BYTES)),
            ("Hub-Sequence", &message.stream_sequence.to_string()),
        ]);
        // Half of a small server's messages; the rest is for the body.
        let most = MAX_HEADER_BYTES.min(max_payload / 2);
        let mut apart = Vec::new();
        if message.subject.len() > MAX_ERROR_BYTES || !subject.iter().all(u8::is_ascii_graphic) {
            let encoded = header_map(&[("Hub-Original-Subject", &STANDARD.encode(&subject))]);
            join(&mut headers, encoded, most).unwrap_or_else(|()| {
                apart.push(Part { of: "subject", bytes: Bytes::copy_from_slice(&subject) });
            });
        }
        let (originals, block) = match (&message.headers, message.header_block()) {
            (_, Some(block)) => {
                (header_map(&[("Hub-Original-Headers", &STANDARD.encode(block))]), block.clone())
            }
            (Some(map), None) => (renamed(map), Bytes::new()),
            (None, None) => (HeaderMap::new(), Bytes::new()),
        };
        join(&mut headers, originals, most).unwrap_or_else(|()| {
            let bytes = match &message.headers {
                Some(map) if block.is_empty() => written(map),
                _ => block,
            };
            apart.insert(0, Part { of: "headers", bytes });
        });
        let room = max_payload.saturating_sub(size(&headers) + MARGIN).max(1024);
        let mut parts = Vec::new();
        cut("body", &message.payload, room, &mut parts);
        for Part { of, bytes } in apart {
            cut(of, &bytes, room, &mut parts);
        }
        Self { headers, parts }
    }
}

/// At least one part, so that an empty body is stored as well.
fn cut(of: &'static str, bytes: &Bytes, room: usize, parts: &mut Vec<Part>) {
    for part in 0..bytes.len().div_ceil(room).max(1) {
        let end = bytes.len().min((part + 1) * room);
        parts.push(Part { of, bytes: bytes.slice(part * room..end) });
    }
}

/// Adds headers where all of them fit.
fn join(headers: &mut HeaderMap, more: HeaderMap, most: usize) -> Result<(), ()> {
    if size(headers) + size(&more) > most {
        return Err(());
    }
    for (name, values) in more.iter() {
        for value in values {
            headers.append(name.clone(), value.clone());
        }
    }
    Ok(())
}

/// The original's headers. Its own instructions to its stream are not meant for this one, and nobody
/// writes the hub's words but the hub.
fn renamed(original: &HeaderMap) -> HeaderMap {
    const OURS: [&str; 6] =
        ["hub-reason", "hub-error", "hub-subject", "hub-sequence", "hub-part", "hub-part-of"];
    let mut headers = HeaderMap::new();
    for (name, values) in original.iter() {
        let text: &str = name.as_ref();
        let lower = text.to_ascii_lowercase();
        let taken = lower.starts_with("nats-")
            || lower.starts_with("hub-original-")
            || OURS.contains(&lower.as_str());
        let name = if taken {
            // A name with a prefix of printable ASCII is a name.
            HeaderName::try_from(format!("Hub-Original-{text}")).unwrap_or_else(|_| name.clone())
        } else {
            name.clone()
        };
        for value in values {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

/// `NATS/1.0` and its lines.
fn written(headers: &HeaderMap) -> Bytes {
    let mut block = String::from("NATS/1.0\r\n");
    for (name, values) in headers.iter() {
        for value in values {
            block.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    block.push_str("\r\n");
    block.into()
}

fn size(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value: &HeaderValue| name.len() + value.as_str().len() + 4)
    });
    lines.sum()
}
