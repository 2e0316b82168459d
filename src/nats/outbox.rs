//! Committing envelopes to an outbox: one atomic batch, or one by one.

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::connection::{JetStream, read_answer};
use super::error::NatsError;
use super::publish::{PublishAck, header_map};

/// A message on its way to an outbox.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub subject: String,
    /// `Nats-Msg-Id`: the stream drops what it had inside its duplicate window.
    pub message_id: String,
    pub payload: Bytes,
    pub headers: Vec<(&'static str, String)>,
}

/// What a stored message takes beside its subject, headers and payload, at most (file store: record header,
/// checksum, and the headers' own first line).
const RECORD_BYTES: usize = 64;

impl Outgoing {
    /// What it takes of a stream's `max_bytes`, about.
    pub fn stored_bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        self.subject.len() + self.message_id.len() + headers + self.payload.len() + RECORD_BYTES
    }
}

/// Why a batch was not committed. Nothing of it is in the stream.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The stream knows one of the message ids: the batch is a repetition, in whole or in part.
    #[error("the stream knows a message of the batch already")]
    Duplicate,
    #[error(transparent)]
    Nats(#[from] NatsError),
}

/// The server's limit for an atomic batch (ADR-50).
pub const MOST_PER_BATCH: usize = 1000;
/// How many single publishes wait for their acknowledgement at once.
const SINGLES_IN_FLIGHT: usize = 256;

impl JetStream {
    /// Commits all messages or none (ADR-50). One message alone is a plain publish: the server's
    /// staging of a batch would only cost time. At most [`MOST_PER_BATCH`].
    pub async fn commit(&self, messages: &[Outgoing]) -> Result<(), BatchError> {
        let Some((last, first)) = messages.split_last() else { return Ok(()) };
        if first.is_empty() {
            self.publish_outgoing(last).await?;
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

    /// Publishes each by itself and waits for all acknowledgements: the stream drops what it has
    /// and adds what is missing. Returns how many were new.
    pub async fn publish_each(&self, messages: &[Outgoing]) -> Result<usize, NatsError> {
        let mut waiting = FuturesUnordered::new();
        let mut remaining = messages.iter();
        let (mut added, mut failure) = (0, None);
        loop {
            while waiting.len() < SINGLES_IN_FLIGHT
                && let Some(message) = remaining.next()
            {
                waiting.push(self.publish_outgoing(message));
            }
            match waiting.next().await {
                Some(Ok(ack)) => added += usize::from(!ack.duplicate),
                Some(Err(error)) => failure = Some(error),
                None => break,
            }
        }
        failure.map_or(Ok(added), Err)
    }

    async fn publish_outgoing(&self, message: &Outgoing) -> Result<PublishAck, NatsError> {
        let mut headers = header_map(&[("Nats-Msg-Id", &message.message_id)]);
        add_headers(&mut headers, message);
        self.publish_map(&message.subject, message.payload.clone(), headers).await
    }
}

fn add_headers(headers: &mut HeaderMap, message: &Outgoing) {
    for (name, value) in &message.headers {
        headers.insert(*name, super::publish::one_line(value).as_ref());
    }
}

fn batch_headers(message: &Outgoing, batch: &str, sequence: usize, commit: bool) -> HeaderMap {
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
