//! Stores rejected publications: the original bytes of body, headers and subject, with the reason.

use async_nats::header::HeaderName;
use async_nats::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use time::OffsetDateTime;

use super::connection::JetStream;
use super::error::NatsError;
use super::message::Delivered;
use super::publish::{header_map, shortened};
use crate::domain::headers;

/// Maximum size of the headers in bytes. A stream accepts 65,535; the rest is for what the server adds.
const MAX_HEADER_BYTES: usize = 60 * 1024;
/// Reserve for the protocol line and rounding, in bytes.
const MARGIN: usize = 256;
/// Maximum size of the error text in bytes.
const MAX_ERROR_BYTES: usize = 2_000;

/// A part of the original message, stored in the body of a message of its own.
struct Part {
    /// `body`, `headers` or `subject`
    of: &'static str,
    bytes: Bytes,
}

impl JetStream {
    /// Stores a rejected publication under `<prefix>.rejected.<reason>`.
    ///
    /// The body is the original body. Parsed headers keep their names, except that `Hub-Original-` precedes names that
    /// have a meaning for a stream or for the hub. An unparsable header block is in `Hub-Original-Headers`, and a
    /// subject that is not printable ASCII in `Hub-Original-Subject`, both in base64. A message that is too large is
    /// stored in parts (`Hub-Part: 1/3`): first the body, then the header block and the subject in the bodies of further
    /// messages (`Hub-Part-Of: headers`, `subject`).
    pub async fn reject(&self, message: &Delivered, reason: &str, detail: &str) -> Result<(), NatsError> {
        let stored = RejectedMessage::of(message, reason, detail, self.max_payload());
        let to = self.names().rejected(reason);
        let identity = format!("{}-{}", self.names().events_stream(), message.stream_sequence);
        let count = stored.parts.len();
        for (position, part) in stored.parts.into_iter().enumerate() {
            let mut headers = stored.headers.clone();
            let mut id = identity.clone();
            if count > 1 {
                id = format!("{identity}-{}", position + 1);
                headers.insert(headers::PART, format!("{}/{count}", position + 1));
            }
            if part.of != "body" {
                headers.insert(headers::PART_OF, part.of);
            }
            headers.insert("Nats-Msg-Id", id);
            self.publish_map(&to, part.bytes, headers).await?;
        }
        Ok(())
    }
}

impl JetStream {
    /// True if the event processor has handled the publication at a sequence of the events stream, and all before it.
    pub async fn has_handled(&self, sequence: u64) -> Result<bool, NatsError> {
        let info = self.consumer_info(&self.names().events_stream(), "event-processor").await?;
        Ok(info.ack_floor.stream_seq >= sequence)
    }

    /// Why the publication at a sequence of the events stream was rejected; `None` if it was not.
    ///
    /// * `since`: a time before the rejection
    pub async fn rejection_of(
        &self,
        sequence: u64,
        since: OffsetDateTime,
    ) -> Result<Option<String>, NatsError> {
        let (names, wanted, mut found) = (self.names(), sequence.to_string(), None);
        self.for_each_stored(&names.rejected_stream(), &names.rejected("*"), Some(since), |message| {
            if message.header(headers::SEQUENCE) == Some(&*wanted) {
                found = message.header(headers::ERROR).map(str::to_owned);
            }
        })
        .await?;
        Ok(found)
    }
}

/// A rejected publication as it is stored.
struct RejectedMessage {
    /// The headers of every part.
    headers: HeaderMap,
    parts: Vec<Part>,
}

impl RejectedMessage {
    fn of(message: &Delivered, reason: &str, detail: &str, max_payload: usize) -> Self {
        let subject = message.subject_bytes();
        let mut headers = header_map(&[
            (headers::REASON, reason),
            (headers::ERROR, shortened(detail, MAX_ERROR_BYTES)),
            (headers::SUBJECT, shortened(message.subject.trim_start(), MAX_ERROR_BYTES)),
            (headers::SEQUENCE, &message.stream_sequence.to_string()),
        ]);
        // At most half of a message if the server's max_payload is small; the rest is for the body.
        let most = MAX_HEADER_BYTES.min(max_payload / 2);
        let mut apart = Vec::new();
        if message.subject.len() > MAX_ERROR_BYTES || !subject.iter().all(u8::is_ascii_graphic) {
            let encoded = header_map(&[(headers::ORIGINAL_SUBJECT, &STANDARD.encode(&subject))]);
            join(&mut headers, encoded, most).unwrap_or_else(|()| {
                apart.push(Part { of: "subject", bytes: Bytes::copy_from_slice(&subject) });
            });
        }
        let (originals, block) = match (&message.headers, message.header_block()) {
            (_, Some(block)) => {
                (header_map(&[(headers::ORIGINAL_HEADERS, &STANDARD.encode(block))]), block.clone())
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

/// Cuts `bytes` into parts. An empty body is one part, so that it is stored too.
fn cut(of: &'static str, bytes: &Bytes, room: usize, parts: &mut Vec<Part>) {
    for part in 0..bytes.len().div_ceil(room).max(1) {
        let end = bytes.len().min((part + 1) * room);
        parts.push(Part { of, bytes: bytes.slice(part * room..end) });
    }
}

/// Adds headers if all of them fit.
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

/// The original headers. Those with a meaning for a stream or for the hub get a prefix, so that they have no effect
/// on this stream and cannot be taken for headers of the hub.
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
            // A valid name with a prefix of printable ASCII is a valid name.
            HeaderName::try_from(format!("{}{text}", headers::ORIGINAL_PREFIX))
                .unwrap_or_else(|_| name.clone())
        } else {
            name.clone()
        };
        for value in values {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

/// The headers as a block: `NATS/1.0` and one line per header.
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
