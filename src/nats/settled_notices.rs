//! Notices of the envelopes that a process has delivered lately, to the other processes that deliver, over core NATS: at most
//! once and not stored.
//!
//! Two hubs with the same prefix that are joined by leaf nodes hear each other. So each notice has the creation time of its
//! outbox, and those about another one are ignored.

use std::time::Duration;

use async_nats::Subscriber;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::JetStream;
use super::error::NatsError;
use crate::domain::lately::Stored;
use crate::facts::SettledNoticeIgnored;

/// Envelopes of one notice.
pub const MOST_IN_NOTICE: usize = 1_900;
/// Bytes of one: sequence, time, number of the lane, and number of the envelope.
const ENTRY: usize = 8 + 8 + 1 + 16;
/// Shortest time between two look-ups of the outbox because of notices about another one.
const LOOK_UP_EVERY: Duration = Duration::from_secs(10);

/// A delivered envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettledEnvelope {
    pub stored: Stored,
    /// See [`lane_number`](super::subjects::lane_number).
    pub lane: u8,
    /// See [`number_of_envelope`](crate::domain::lately::number_of_envelope).
    pub number: Option<u128>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettledNotice {
    /// A request to the others for what they delivered.
    Ask,
    /// What it delivered; `is_last`: there is nothing further.
    Delivered { envelopes: Vec<SettledEnvelope>, is_last: bool },
}

/// A notice with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SentNotice {
    /// When the outbox was created, in nanoseconds since 1970.
    outbox: i64,
    process: u64,
    notice: SettledNotice,
}

/// The notices of all processes about one domain, including this one.
pub struct SettledNotices {
    js: JetStream,
    domain: String,
    process: u64,
    received: Subscriber,
    /// When the outbox was created; `None` until it is [identified](Self::identify).
    outbox: Option<i64>,
    looked_up: Option<Instant>,
}

/// The reconnects of this process.
#[derive(Clone)]
pub struct Reconnects(watch::Receiver<u64>);

impl Reconnects {
    pub fn count(&self) -> u64 {
        *self.0.borrow()
    }

    /// Waits for the next one; forever if the connection is closed for good.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl JetStream {
    pub fn reconnects(&self) -> Reconnects {
        let mut generation = self.generation();
        generation.mark_unchanged();
        Reconnects(generation)
    }

    /// Subscribes to the notices about a domain; the subscription survives reconnects. `process`: a random number of this
    /// one.
    pub async fn settled_notices(&self, domain: &str, process: u64) -> Result<SettledNotices, NatsError> {
        let subject = self.names().settled(domain);
        let received = self.client().subscribe(subject.clone()).await;
        let received = received.map_err(|error| NatsError::transport(subject, error))?;
        let (js, domain) = (self.clone(), domain.to_owned());
        Ok(SettledNotices { js, domain, process, received, outbox: None, looked_up: None })
    }
}

impl SettledNotices {
    /// Looks up which outbox these notices are about. Returns whether it is known.
    pub async fn identify(&mut self) -> bool {
        self.looked_up = Some(Instant::now());
        let stream = self.js.names().outbox_stream(&self.domain);
        if let Ok(info) = self.js.stream_info(&stream).await
            && let Ok(created) = OffsetDateTime::parse(&info.created, &Rfc3339)
        {
            self.outbox = i64::try_from(created.unix_timestamp_nanos()).ok();
        }
        self.is_identified()
    }

    pub fn is_identified(&self) -> bool {
        self.outbox.is_some()
    }

    /// Publishes a notice of this process to all listening ones, without an acknowledgement. Nothing is sent until the
    /// outbox is [identified](Self::identify).
    pub async fn send(&self, notice: SettledNotice) -> Result<(), NatsError> {
        let (Some(outbox), process) = (self.outbox, self.process) else { return Ok(()) };
        let (subject, timeout) = (self.js.names().settled(&self.domain), self.js.request_timeout());
        let sent = self.js.client().publish(subject.clone(), encode(&SentNotice { outbox, process, notice }));
        match tokio::time::timeout(timeout, sent).await {
            Ok(sent) => sent.map_err(|error| NatsError::transport(subject, error)),
            Err(_) => Err(NatsError::timeout(subject, timeout)),
        }
    }

    /// Waits for the next valid notice about this outbox, with its process. Never ends if the connection is closed.
    pub async fn next(&mut self) -> (u64, SettledNotice) {
        while let Some(message) = self.received.next().await {
            match decode(&message.payload) {
                Some(SentNotice { outbox, process, notice }) => {
                    if self.is_about(outbox).await {
                        return (process, notice);
                    }
                }
                None => SettledNoticeIgnored { subject: &message.subject }.emit(),
            }
        }
        std::future::pending().await
    }

    /// Whether this is the outbox of this hub. It may have been created again.
    async fn is_about(&mut self, outbox: i64) -> bool {
        if self.outbox != Some(outbox) && self.looked_up.is_none_or(|at| at.elapsed() >= LOOK_UP_EVERY) {
            self.identify().await;
        }
        self.outbox == Some(outbox)
    }
}

/// A byte for the kind, the outbox, the process, and the entries, all in network byte order.
fn encode(SentNotice { outbox, process, notice }: &SentNotice) -> Bytes {
    let (kind, envelopes) = match notice {
        SettledNotice::Ask => (b'?', &[][..]),
        SettledNotice::Delivered { envelopes, is_last: false } => (b'+', &envelopes[..]),
        SettledNotice::Delivered { envelopes, is_last: true } => (b'.', &envelopes[..]),
    };
    let mut body = BytesMut::with_capacity(17 + envelopes.len() * ENTRY);
    body.put_u8(kind);
    body.put_i64(*outbox);
    body.put_u64(*process);
    for SettledEnvelope { stored, lane, number } in envelopes {
        body.put_u64(stored.sequence);
        body.put_i64(stored.at_nanos);
        body.put_u8(*lane);
        body.put_u128(number.unwrap_or_default());
    }
    body.freeze()
}

fn decode(body: &[u8]) -> Option<SentNotice> {
    let (kind, rest) = body.split_first()?;
    let (outbox, rest) = rest.split_first_chunk()?;
    let (process, rest) = rest.split_first_chunk()?;
    let (entries, []) = rest.as_chunks::<ENTRY>() else { return None };
    if entries.len() > MOST_IN_NOTICE {
        return None;
    }
    let envelopes = || entries.iter().filter_map(read).collect();
    let notice = match kind {
        b'?' if entries.is_empty() => SettledNotice::Ask,
        b'+' => SettledNotice::Delivered { envelopes: envelopes(), is_last: false },
        b'.' => SettledNotice::Delivered { envelopes: envelopes(), is_last: true },
        _ => return None,
    };
    Some(SentNotice { outbox: i64::from_be_bytes(*outbox), process: u64::from_be_bytes(*process), notice })
}

fn read(entry: &[u8; ENTRY]) -> Option<SettledEnvelope> {
    let (sequence, rest) = entry.split_first_chunk()?;
    let (at, rest) = rest.split_first_chunk()?;
    let (lane, rest) = rest.split_first()?;
    let (number, _) = rest.split_first_chunk()?;
    let number = u128::from_be_bytes(*number);
    Some(SettledEnvelope {
        stored: Stored { sequence: u64::from_be_bytes(*sequence), at_nanos: i64::from_be_bytes(*at) },
        lane: *lane,
        number: (number != 0).then_some(number),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(sequence: u64, number: Option<u128>) -> SettledEnvelope {
        let stored = Stored { sequence, at_nanos: 1_790_000_000_123_456_789 };
        SettledEnvelope { stored, lane: (sequence % 256) as u8, number }
    }

    fn encoded(notice: SettledNotice) -> Bytes {
        encode(&SentNotice { outbox: -3, process: u64::MAX - 1, notice })
    }

    #[test]
    fn notices_round_trip() {
        let envelopes = vec![envelope(1, None), envelope(u64::MAX, Some(u128::MAX)), envelope(7, Some(1))];
        for notice in [
            SettledNotice::Ask,
            SettledNotice::Delivered { envelopes: Vec::new(), is_last: true },
            SettledNotice::Delivered { envelopes: envelopes.clone(), is_last: false },
            SettledNotice::Delivered { envelopes, is_last: true },
        ] {
            let body = encoded(notice.clone());
            assert_eq!(decode(&body), Some(SentNotice { outbox: -3, process: u64::MAX - 1, notice }));
        }
    }

    #[test]
    fn invalid_notices_are_ignored() {
        let valid = encoded(SettledNotice::Delivered { envelopes: vec![envelope(1, None)], is_last: true });
        assert!(decode(&valid).is_some());
        for length in 0..valid.len() {
            let is_empty_list = length == 17;
            assert_eq!(decode(&valid[..length]).is_some(), is_empty_list, "{length}");
        }
        let mut other = valid.to_vec();
        for kind in [b'?', b'x', 0] {
            other[0] = kind;
            assert_eq!(decode(&other), None, "{kind}");
        }
        let many = vec![envelope(1, None); MOST_IN_NOTICE + 1];
        assert_eq!(decode(&encoded(SettledNotice::Delivered { envelopes: many, is_last: true })), None);
    }
}
