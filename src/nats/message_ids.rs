//! The secret that message ids are derived from if there is no master key, and the message ids used recently.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::connection::JetStream;
use super::error::NatsError;
use crate::facts::MessageIdSecretUnreadable;

/// Tries to store or read the secret. One process creates it and the others read it; more tries mean that another
/// client keeps writing something else.
const ATTEMPTS: usize = 5;

impl JetStream {
    /// The secret that all processes of this hub derive message ids from. The first call creates it. An unreadable value
    /// is replaced.
    pub async fn message_id_secret(&self) -> Result<[u8; 32], NatsError> {
        let (stream, key) = (self.names().keys_stream(), self.names().message_ids_key());
        for _ in 0..ATTEMPTS {
            if let Some(message) = self.get_last(&stream, &key).await? {
                let decoded = STANDARD.decode(&message.payload).ok();
                if let Some(secret) = decoded.and_then(|bytes| bytes.try_into().ok()) {
                    return Ok(secret);
                }
                MessageIdSecretUnreadable { key: &key }.emit();
                self.delete(&stream, message.sequence).await?;
            }
            let secret: [u8; 32] = rand::random();
            match self.write_key(&key, STANDARD.encode(secret).into(), Some(0), &[]).await {
                // Read it back: the stored value counts.
                Ok(_) => {}
                Err(error) if error.is_wrong_last_sequence() || error.is_full() => {}
                Err(error) => return Err(error),
            }
        }
        Err(NatsError::MessageIdSecret { key })
    }

    /// The sequence, in the events stream, of the event published with this message id within the duplicate window.
    pub async fn published_sequence(&self, id: &str) -> Result<Option<u64>, NatsError> {
        let names = self.names();
        let message = self.get_last(&names.published_stream(), &names.published(id)).await?;
        Ok(message.and_then(|message| std::str::from_utf8(&message.payload).ok()?.parse().ok()))
    }

    /// Records for the duplicate window that an event was published with this message id.
    pub async fn remember_published(&self, id: &str, sequence: u64) -> Result<(), NatsError> {
        let subject = self.names().published(id);
        self.publish(&subject, Bytes::from(sequence.to_string()), &[]).await.map(drop)
    }
}
