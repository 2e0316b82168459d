//! The tokens of the HTTP API: a KV bucket (ADR-8) that holds their hashes.

use std::sync::Arc;

use bytes::Bytes;

use super::connection::JetStream;
use super::error::NatsError;
use super::message::Malformed;
use crate::domain::access::{StoredToken, TokenId};
use crate::facts::{TokenKeySkipped, TokenUnreadable};

/// Why a stored value is not a token of its name.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UnreadableToken {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    NotAToken(#[source] Arc<serde_json::Error>),
    #[error("the value belongs to the token {0}")]
    OfAnotherName(TokenId),
}

/// The value that the bucket holds under a token's name.
#[derive(Debug, Clone)]
pub enum TokenEntry {
    Readable(StoredToken),
    /// The value is not a token. It grants no access and can be revoked.
    Unreadable {
        id: TokenId,
        reason: UnreadableToken,
    },
}

impl TokenEntry {
    pub fn id(&self) -> &TokenId {
        match self {
            Self::Readable(token) => &token.id,
            Self::Unreadable { id, .. } => id,
        }
    }
}

impl JetStream {
    /// Stores a new token. Fails with a wrong last sequence if its name is taken.
    pub async fn add_token(&self, token: &StoredToken) -> Result<(), NatsError> {
        let key = self.names().token_key(&token.id);
        let value = serde_json::to_vec(token).map_err(|error| NatsError::encode(key.clone(), error))?;
        // The name of a revoked token may be used again: its last revision is the removal.
        let expected = match self.get_last(&self.names().tokens_stream(), &key).await? {
            Some(message) if message.header("KV-Operation").is_some() => message.sequence,
            _ => 0,
        };
        self.write_key(&key, value.into(), Some(expected), &[]).await.map(drop)
    }

    /// The token with this name; `None` if there is none or it is unreadable.
    pub async fn token(&self, id: &TokenId) -> Result<Option<StoredToken>, NatsError> {
        Ok(match self.token_entry(id).await? {
            Some(TokenEntry::Readable(token)) => Some(token),
            Some(TokenEntry::Unreadable { id, reason }) => {
                TokenUnreadable { token: &id, reason: &reason }.emit();
                None
            }
            None => None,
        })
    }

    /// The value stored under a token's name.
    pub async fn token_entry(&self, id: &TokenId) -> Result<Option<TokenEntry>, NatsError> {
        let key = self.names().token_key(id);
        // A missing bucket does not mean that the token is unknown.
        let Some(message) = self.get_last_kept(&self.names().tokens_stream(), &key).await? else {
            return Ok(None);
        };
        if message.header("KV-Operation").is_some() {
            return Ok(None);
        }
        let unreadable = |reason: UnreadableToken| TokenEntry::Unreadable { id: id.clone(), reason };
        if let Some(malformed) = message.malformed() {
            return Ok(Some(unreadable(malformed.into())));
        }
        Ok(Some(match serde_json::from_slice::<StoredToken>(&message.payload) {
            Ok(token) if token.id == *id => TokenEntry::Readable(token),
            Ok(other) => unreadable(UnreadableToken::OfAnotherName(other.id)),
            Err(error) => unreadable(UnreadableToken::NotAToken(error.into())),
        }))
    }

    /// Removes a token; `false` if it does not exist.
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

    /// All tokens sorted by name, including unreadable ones.
    pub async fn tokens(&self) -> Result<Vec<TokenEntry>, NatsError> {
        let names = self.names();
        let subjects = self.stream_subjects(&names.tokens_stream(), &names.tokens_filter()).await?;
        let mut tokens = Vec::new();
        for (subject, _) in subjects {
            let id = subject.rsplit('.').next().unwrap_or_default();
            let Ok(id) = TokenId::try_from(id.to_owned()) else {
                TokenKeySkipped { subject: &subject }.emit();
                continue;
            };
            tokens.extend(self.token_entry(&id).await?);
        }
        tokens.sort_by(|one, other| one.id().cmp(other.id()));
        Ok(tokens)
    }
}
