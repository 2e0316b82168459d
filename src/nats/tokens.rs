//! The tokens of the HTTP API: a KV bucket (ADR-8) of hashes.

use bytes::Bytes;

use super::connection::JetStream;
use super::error::NatsError;
use crate::domain::access::{StoredToken, TokenId};

/// What the bucket holds under a token's name.
#[derive(Debug, Clone)]
pub enum KeptToken {
    Readable(StoredToken),
    /// Something else was written there. It admits nobody, and can be revoked.
    Unreadable {
        id: TokenId,
        reason: String,
    },
}

impl KeptToken {
    pub fn id(&self) -> &TokenId {
        match self {
            Self::Readable(token) => &token.id,
            Self::Unreadable { id, .. } => id,
        }
    }
}

impl JetStream {
    /// Keeps a token that is new. Its name being taken is a wrong last sequence.
    pub async fn add_token(&self, token: &StoredToken) -> Result<(), NatsError> {
        let key = self.names().token_key(&token.id);
        let value = serde_json::to_vec(token).map_err(|error| NatsError::answer(key.clone(), error))?;
        // A name that was revoked may be used again: its last revision is the removal.
        let expected = match self.get_last(&self.names().tokens_stream(), &key).await? {
            Some(message) if message.header("KV-Operation").is_some() => message.sequence,
            _ => 0,
        };
        self.write_key(&key, value.into(), Some(expected), &[]).await.map(drop)
    }

    /// The token of that name, as it is now. One that is unreadable admits nobody.
    pub async fn token(&self, id: &TokenId) -> Result<Option<StoredToken>, NatsError> {
        Ok(match self.kept_token(id).await? {
            Some(KeptToken::Readable(token)) => Some(token),
            Some(KeptToken::Unreadable { id, reason }) => {
                tracing::error!(token = %id, reason, "a stored token is unreadable and admits nobody");
                None
            }
            None => None,
        })
    }

    /// What is kept under that name.
    pub async fn kept_token(&self, id: &TokenId) -> Result<Option<KeptToken>, NatsError> {
        let key = self.names().token_key(id);
        let Some(message) = self.get_last(&self.names().tokens_stream(), &key).await? else {
            return Ok(None);
        };
        if message.header("KV-Operation").is_some() {
            return Ok(None);
        }
        let unreadable = |reason: String| KeptToken::Unreadable { id: id.clone(), reason };
        if let Some(malformed) = message.malformed() {
            return Ok(Some(unreadable(malformed.to_string())));
        }
        Ok(Some(match serde_json::from_slice::<StoredToken>(&message.payload) {
            Ok(token) if token.id == *id => KeptToken::Readable(token),
            Ok(other) => unreadable(format!("it is the token {}", other.id)),
            Err(error) => unreadable(error.to_string()),
        }))
    }

    /// Removes a token; `false` if there is none of that name.
    pub async fn revoke_token(&self, id: &TokenId) -> Result<bool, NatsError> {
        let key = self.names().token_key(id);
        match self.get_last(&self.names().tokens_stream(), &key).await? {
            Some(message) if message.header("KV-Operation").is_none() => {
                let expected = Some(message.sequence);
                self.write_key(&key, Bytes::new(), expected, &[("KV-Operation", "DEL")]).await.map(|_| true)
            }
            _ => Ok(false),
        }
    }

    /// All tokens, in order of their names, be they unreadable.
    pub async fn tokens(&self) -> Result<Vec<KeptToken>, NatsError> {
        let names = self.names();
        let subjects = self.stream_subjects(&names.tokens_stream(), &names.tokens_filter()).await?;
        let mut tokens = Vec::new();
        for (subject, _) in subjects {
            let id = subject.rsplit('.').next().unwrap_or_default();
            let Ok(id) = TokenId::try_from(id.to_owned()) else {
                tracing::warn!(subject, "a key of the tokens is no token's name and is passed over");
                continue;
            };
            tokens.extend(self.kept_token(&id).await?);
        }
        tokens.sort_by(|one, other| one.id().cmp(other.id()));
        Ok(tokens)
    }
}
