//! Notices of the envelopes that a process has delivered lately, to the other processes that deliver, over core NATS: at most
//! once and not stored.

use async_nats::Subscriber;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::sync::watch;

use super::connection::JetStream;
use super::error::NatsError;
use crate::domain::lately::Stored;
use crate::facts::SettledNoticeIgnored;

/// Envelopes of one notice.
pub const MOST_IN_NOTICE: usize = 2_000;
/// Bytes of one: sequence, time, and the number of the envelope.
const ENTRY: usize = 8 + 8 + 16;

/// A delivered envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettledEnvelope {
    pub stored: Stored,
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

/// The notices of all processes about one domain, including this one.
pub struct SettledNotices(Subscriber);

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

    /// Publishes a notice of this process to all listening ones, without an acknowledgement.
    pub async fn publish_settled_notice(
        &self,
        domain: &str,
        process: u64,
        notice: &SettledNotice,
    ) -> Result<(), NatsError> {
        let subject = self.names().settled(domain);
        let sent = self.client().publish(subject.clone(), encode(process, notice));
        match tokio::time::timeout(self.request_timeout(), sent).await {
            Ok(sent) => sent.map_err(|error| NatsError::transport(subject, error)),
            Err(_) => Err(NatsError::Timeout { subject, seconds: self.request_timeout().as_secs() }),
        }
    }

    /// Subscribes to the notices about a domain; the subscription survives reconnects.
    pub async fn settled_notices(&self, domain: &str) -> Result<SettledNotices, NatsError> {
        let subject = self.names().settled(domain);
        let messages = self.client().subscribe(subject.clone()).await;
        messages.map(SettledNotices).map_err(|error| NatsError::transport(subject, error))
    }
}

impl SettledNotices {
    /// Waits for the next valid notice, with its process. Never ends if the connection is closed.
    pub async fn next(&mut self) -> (u64, SettledNotice) {
        while let Some(message) = self.0.next().await {
            match decode(&message.payload) {
                Some(notice) => return notice,
                None => SettledNoticeIgnored { subject: &message.subject }.emit(),
            }
        }
        std::future::pending().await
    }
}

/// A byte for the kind, the process, and the entries, all in network byte order.
fn encode(process: u64, notice: &SettledNotice) -> Bytes {
    let (kind, envelopes) = match notice {
        SettledNotice::Ask => (b'?', &[][..]),
        SettledNotice::Delivered { envelopes, is_last: false } => (b'+', &envelopes[..]),
        SettledNotice::Delivered { envelopes, is_last: true } => (b'.', &envelopes[..]),
    };
    let mut body = BytesMut::with_capacity(9 + envelopes.len() * ENTRY);
    body.put_u8(kind);
    body.put_u64(process);
    for SettledEnvelope { stored, number } in envelopes {
        body.put_u64(stored.sequence);
        body.put_i64(stored.at_nanos);
        body.put_u128(number.unwrap_or_default());
    }
    body.freeze()
}

fn decode(body: &[u8]) -> Option<(u64, SettledNotice)> {
    let (kind, rest) = body.split_first()?;
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
    Some((u64::from_be_bytes(*process), notice))
}

fn read(entry: &[u8; ENTRY]) -> Option<SettledEnvelope> {
    let (sequence, rest) = entry.split_first_chunk()?;
    let (at, rest) = rest.split_first_chunk()?;
    let (number, _) = rest.split_first_chunk()?;
    let number = u128::from_be_bytes(*number);
    Some(SettledEnvelope {
        stored: Stored { sequence: u64::from_be_bytes(*sequence), at_nanos: i64::from_be_bytes(*at) },
        number: (number != 0).then_some(number),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(sequence: u64, number: Option<u128>) -> SettledEnvelope {
        SettledEnvelope { stored: Stored { sequence, at_nanos: 1_790_000_000_123_456_789 }, number }
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
            assert_eq!(decode(&encode(u64::MAX - 1, &notice)), Some((u64::MAX - 1, notice)));
        }
    }

    #[test]
    fn invalid_notices_are_ignored() {
        let valid =
            encode(3, &SettledNotice::Delivered { envelopes: vec![envelope(1, None)], is_last: true });
        assert!(decode(&valid).is_some());
        for length in 0..valid.len() {
            let is_empty_list = length == 9;
            assert_eq!(decode(&valid[..length]).is_some(), is_empty_list, "{length}");
        }
        let mut other = valid.to_vec();
        for kind in [b'?', b'x', 0] {
            other[0] = kind;
            assert_eq!(decode(&other), None, "{kind}");
        }
        let many = vec![envelope(1, None); MOST_IN_NOTICE + 1];
        assert_eq!(decode(&encode(3, &SettledNotice::Delivered { envelopes: many, is_last: true })), None);
    }
}
