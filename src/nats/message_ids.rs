//! What makes message ids: the secret of a hub without a master key, and the ids that were used.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::connection::JetStream;
use super::error::NatsError;

/// The secret is made by one process and read by the others; more attempts than this mean that
/// somebody keeps writing something else there.
const ATTEMPTS: usize = 5;

impl JetStream {
    /// The secret that all processes of this hub make message ids with. Made at the first call; from then
    /// on the bucket refuses another one. What stands there and is no secret is removed.
    pub async fn message_id_secret(&self) -> Result<[u8; 32], NatsError> {
        let (stream, key) = (self.names().keys_stream(), self.names().message_ids_key());
        for _ in 0..ATTEMPTS {
            if let Some(message) = self.get_last(&stream, &key).await? {
                let decoded = STANDARD.decode(&message.payload).ok();
                if let Some(secret) = decoded.and_then(|bytes| bytes.try_into().ok()) {
                    return Ok(secret);
                }
                tracing::warn!(key, "the secret of the message ids is unreadable; a new one is made");
                self.delete(&stream, message.sequence).await?;
            }
            let secret: [u8; 32] = rand::random();
            match self.write_key(&key, STANDARD.encode(secret).into(), Some(0), &[]).await {
                // Read back: what counts is what the others read.
                Ok(_) => {}
                Err(error) if error.is_wrong_last_sequence() || error.is_full() => {}
                Err(error) => return Err(error),
            }
        }
        Err(NatsError::answer(
            key,
            "no secret for message ids can be kept there; check who may write to this bucket".to_owned(),
        ))
    }

    /// The sequence in the events stream of the event that was published under this id, if that was
    /// within the duplicate window.
    pub async fn published_as(&self, id: &str) -> Result<Option<u64>, NatsError> {
        let names = self.names();
        let message = self.get_last(&names.published_stream(), &names.published(id)).await?;
        Ok(message.and_then(|message| std::str::from_utf8(&message.payload).ok()?.parse().ok()))
    }

    /// Remembers for the duplicate window that an event was published under this id.
    pub async fn remember_published(&self, id: &str, sequence: u64) -> Result<(), NatsError> {
        let subject = self.names().published(id);
        self.publish(&subject, Bytes::from(sequence.to_string()), &[]).await.map(drop)
    }
}
