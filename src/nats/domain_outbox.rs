//! Commits envelopes to a domain outbox, as one atomic batch or one by one.

use async_nats::HeaderMap;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::connection::{JetStream, read_answer};
use super::error::NatsError;
use super::publish::{PublishAck, header_map};
use crate::domain::envelope::Body;

/// An envelope as a message for a domain outbox.
#[derive(Debug, Clone)]
pub struct EnvelopeMessage {
    pub subject: String,
    /// `Nats-Msg-Id`: the stream drops messages with an id that it had within its duplicate window.
    pub message_id: String,
    /// The whole is in memory only while it is published.
    pub payload: Body,
    pub headers: Vec<(&'static str, String)>,
}

/// Maximum overhead of a stored message in bytes: record header and checksum of the file store, the first line of the
/// header block, and the names and values of the headers for message id and batch.
const RECORD_BYTES: usize = 176;
/// Approximate size of an [`EnvelopeMessage`] in memory, beside its texts.
const IN_MEMORY: usize = 256;

impl EnvelopeMessage {
    /// Upper bound of the size in bytes that counts towards a stream's `max_bytes` and `max_msg_size`.
    pub fn stored_bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        self.subject.len() + self.message_id.len() + headers + self.payload.size() + RECORD_BYTES
    }

    /// Approximate size in memory, without what it shares with other envelopes.
    pub fn own_bytes(&self) -> usize {
        self.subject.len() + self.message_id.len() + self.payload.own_size() + IN_MEMORY
    }
}

/// Why a batch was not committed. The stream stored none of its messages.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The stream has one of the message ids already, so the batch is a repetition in whole or in part.
    #[error("the stream already has a message of the batch")]
    Duplicate,
    #[error(transparent)]
    Nats(#[from] NatsError),
}

/// The server's limit for an atomic batch (ADR-50).
pub const MOST_PER_BATCH: usize = 1000;
/// Maximum number of single publishes that wait for their acknowledgement.
const SINGLES_IN_FLIGHT: usize = 256;
/// Bytes of published messages that may wait in the client: the payloads of a batch exist only up to this size at a time.
const BYTES_IN_FLIGHT: usize = 4 * 1024 * 1024;

impl JetStream {
    /// Commits all messages or none (ADR-50), at most [`MOST_PER_BATCH`]. A single message is published without a batch,
    /// which is faster.
    pub async fn commit(&self, messages: &[EnvelopeMessage]) -> Result<(), BatchError> {
        let Some((last, first)) = messages.split_last() else { return Ok(()) };
        if first.is_empty() {
            self.publish_envelope(last).await?;
            return Ok(());
        }
        let batch = self.client().new_inbox();
        let batch = batch.rsplit('.').next().unwrap_or(&batch).to_owned();
        let mut unsent = 0;
        for (position, message) in first.iter().enumerate() {
            if unsent > BYTES_IN_FLIGHT {
                self.flush().await?;
                unsent = 0;
            }
            unsent += message.payload.size();
            let headers = batch_headers(message, &batch, position + 1, false);
            let payload = message.payload.to_bytes();
            let sending = self.client().publish_with_headers(message.subject.clone(), headers, payload);
            self.sent(&message.subject, sending).await?;
        }
        let headers = batch_headers(last, &batch, messages.len(), true);
        let answer = self.request(&last.subject, last.payload.to_bytes(), headers).await?;
        match read_answer::<PublishAck>(&last.subject, &answer.payload) {
            Ok(_) => Ok(()),
            Err(error) if error.is_batch_duplicate() => Err(BatchError::Duplicate),
            Err(error) => Err(error.into()),
        }
    }

    /// Publishes each message by itself and waits for all acknowledgements; the stream drops the ones it already has.
    /// Returns the number of new messages.
    pub async fn publish_each(&self, messages: &[EnvelopeMessage]) -> Result<usize, NatsError> {
        let mut waiting = FuturesUnordered::new();
        let mut remaining = messages.iter();
        let (mut added, mut failure, mut bytes) = (0, None, 0);
        loop {
            while waiting.len() < SINGLES_IN_FLIGHT
                && bytes < BYTES_IN_FLIGHT
                && let Some(message) = remaining.next()
            {
                let size = message.payload.size();
                bytes += size;
                waiting.push(async move { (size, self.publish_envelope(message).await) });
            }
            let Some((size, published)) = waiting.next().await else { break };
            bytes -= size;
            match published {
                Ok(ack) => added += usize::from(!ack.duplicate),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(added), Err)
    }

    async fn publish_envelope(&self, message: &EnvelopeMessage) -> Result<PublishAck, NatsError> {
        let mut headers = header_map(&[("Nats-Msg-Id", &message.message_id)]);
        add_headers(&mut headers, message);
        self.publish_map(&message.subject, message.payload.to_bytes(), headers).await
    }
}

fn add_headers(headers: &mut HeaderMap, message: &EnvelopeMessage) {
    for (name, value) in &message.headers {
        headers.insert(*name, super::publish::one_line(value).as_ref());
    }
}

fn batch_headers(message: &EnvelopeMessage, batch: &str, sequence: usize, commit: bool) -> HeaderMap {
    let mut headers = header_map(&[
        ("Nats-Msg-Id", &message.message_id),
        ("Nats-Batch-Id", batch),
        ("Nats-Batch-Sequence", &sequence.to_string()),
    ]);
    if commit {
        headers.insert("Nats-Batch-Commit", "1");
    }
    add_headers(&mut headers, message);
    headers
}
