//! Commits envelopes to a domain outbox, as one atomic batch or one by one.

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::connection::{JetStream, read_answer};
use super::error::NatsError;
use super::publish::{PublishAck, header_map};

/// An envelope as a message for a domain outbox.
#[derive(Debug, Clone)]
pub struct EnvelopeMessage {
    pub subject: String,
    /// `Nats-Msg-Id`: the stream drops messages with an id that it had within its duplicate window.
    pub message_id: String,
    pub payload: Bytes,
    pub headers: Vec<(&'static str, String)>,
}

/// Maximum overhead of a stored message in bytes (file store: record header, checksum, and the first line of the
/// header block).
const RECORD_BYTES: usize = 64;

impl EnvelopeMessage {
    /// Approximate size in bytes that counts towards a stream's `max_bytes`.
    pub fn stored_bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        self.subject.len() + self.message_id.len() + headers + self.payload.len() + RECORD_BYTES
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
        for (position, message) in first.iter().enumerate() {
            let headers = batch_headers(message, &batch, position + 1, false);
            self.client()
                .publish_with_headers(message.subject.clone(), headers, message.payload.clone())
                .await
                .map_err(|error| NatsError::transport(message.subject.clone(), error))?;
        }
        let headers = batch_headers(last, &batch, messages.len(), true);
        let answer = self.request(&last.subject, last.payload.clone(), headers).await?;
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
        let (mut added, mut failure) = (0, None);
        loop {
            while waiting.len() < SINGLES_IN_FLIGHT
                && let Some(message) = remaining.next()
            {
                waiting.push(self.publish_envelope(message));
            }
            match waiting.next().await {
                Some(Ok(ack)) => added += usize::from(!ack.duplicate),
                Some(Err(error)) => failure = Some(error),
                None => break,
            }
        }
        failure.map_or(Ok(added), Err)
    }

    async fn publish_envelope(&self, message: &EnvelopeMessage) -> Result<PublishAck, NatsError> {
        let mut headers = header_map(&[("Nats-Msg-Id", &message.message_id)]);
        add_headers(&mut headers, message);
        self.publish_map(&message.subject, message.payload.clone(), headers).await
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
