//! Publishes one message into a stream, acknowledged by JetStream.

use async_nats::HeaderMap;
use bytes::Bytes;
use serde::Deserialize;

use super::connection::{JetStream, read_answer};
use super::error::NatsError;

/// A JetStream publish acknowledgement.
#[derive(Debug, Clone, Deserialize)]
pub struct PublishAck {
    pub stream: String,
    pub seq: u64,
    /// The stream already had a message with this id and stored nothing.
    #[serde(default)]
    pub duplicate: bool,
}

impl JetStream {
    /// Publishes and waits for the stream's acknowledgement.
    pub async fn publish(
        &self,
        subject: &str,
        payload: Bytes,
        headers: &[(&str, &str)],
    ) -> Result<PublishAck, NatsError> {
        self.publish_map(subject, payload, header_map(headers)).await
    }

    /// Publishes without headers and without an acknowledgement, as `nats pub` does. Returns when the message has been
    /// sent.
    pub async fn publish_plain(&self, subject: &str, payload: Bytes) -> Result<(), NatsError> {
        self.sent(subject, self.client().publish(subject.to_owned(), payload)).await?;
        self.flush().await
    }

    pub(super) async fn publish_map(
        &self,
        subject: &str,
        payload: Bytes,
        headers: HeaderMap,
    ) -> Result<PublishAck, NatsError> {
        let answer = self.request(subject, payload, headers).await?;
        read_answer(subject, &answer.payload)
    }
}

pub(super) fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, one_line(value).as_ref());
    }
    map
}

/// Replaces line breaks by spaces: a NATS header value is one line (ADR-4), and texts such as error messages may hold
/// several.
pub(super) fn one_line(value: &str) -> std::borrow::Cow<'_, str> {
    if value.contains(['\r', '\n']) { value.replace(['\r', '\n'], " ").into() } else { value.into() }
}

/// At most the first `most` bytes of a text, cut at a character boundary.
pub(super) fn shortened(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
