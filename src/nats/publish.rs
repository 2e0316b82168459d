//! Publishing one message into a stream, acknowledged by JetStream.

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
    /// The stream had the message id already and stored nothing.
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

    /// A plain `PUB` of the NATS protocol, without headers and without an acknowledgement: what
    /// `nats pub` sends. Returns when it has left this process.
    pub async fn publish_plain(&self, subject: &str, payload: Bytes) -> Result<(), NatsError> {
        self.client()
            .publish(subject.to_owned(), payload)
            .await
            .map_err(|error| NatsError::transport(subject.to_owned(), error))?;
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

/// A NATS header value is one line (ADR-4); what is not is flattened, so that a foreign text, an
/// error message say, cannot break the frame.
pub(super) fn one_line(value: &str) -> std::borrow::Cow<'_, str> {
    if value.contains(['\r', '\n']) { value.replace(['\r', '\n'], " ").into() } else { value.into() }
}

/// The first bytes of a text.
pub(super) fn shortened(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
