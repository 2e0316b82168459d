//! Why a broker did not acknowledge a message.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Why a message was not acknowledged. The reasons are shown to people and contain no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishError {
    /// The broker is unreachable, rejects the login, does not answer, or accepts nothing at the moment (out of memory,
    /// read-only, loading, without replicas). The message is not the cause: all messages wait, and no attempt is
    /// used up. The message may have arrived nevertheless.
    Unavailable { reason: PublishReason },
    /// The message's queue or stream is full. The message waits, and no attempt is used up; messages with other
    /// destinations continue.
    NoRoom { reason: PublishReason },
    /// The broker rejected this message: not permitted, or no queue or stream takes it. An operator can correct that.
    Refused { reason: PublishReason },
    /// The broker can never accept the message: it is too large, or the protocol cannot express it.
    Permanent { reason: PublishReason },
}

/// The text of a [`PublishError`], with the error that caused it, if there is one.
#[derive(Debug, Clone)]
pub struct PublishReason {
    text: String,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl PublishError {
    /// All messages wait.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: PublishReason::new(reason) }
    }

    /// Messages with this destination wait.
    pub fn no_room(reason: impl Into<String>) -> Self {
        Self::NoRoom { reason: PublishReason::new(reason) }
    }

    /// An operator can correct the cause.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: PublishReason::new(reason) }
    }

    /// The message can never be published.
    pub fn permanent(reason: impl Into<String>) -> Self {
        Self::Permanent { reason: PublishReason::new(reason) }
    }

    /// The same with its cause, whose text must contain no secret.
    pub fn caused_by(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        let (Self::Unavailable { reason }
        | Self::NoRoom { reason }
        | Self::Refused { reason }
        | Self::Permanent { reason }) = &mut self;
        reason.source = Some(Arc::new(source));
        self
    }

    /// The text without the kind of the error.
    pub fn reason(&self) -> &PublishReason {
        let (Self::Unavailable { reason }
        | Self::NoRoom { reason }
        | Self::Refused { reason }
        | Self::Permanent { reason }) = self;
        reason
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Unavailable { .. } => "unavailable",
            Self::NoRoom { .. } => "no room",
            Self::Refused { .. } => "refused",
            Self::Permanent { .. } => "cannot be published",
        };
        write!(f, "{kind}: {}", self.reason())
    }
}

impl Error for PublishError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.reason().source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

impl PublishReason {
    fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), source: None }
    }
}

impl fmt::Display for PublishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Deref for PublishReason {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// Compares the texts; causes cannot be compared.
impl PartialEq for PublishReason {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for PublishReason {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_cause() {
        let plain = PublishError::refused("no such queue");
        assert!(plain.source().is_none());
        let error = plain.clone().caused_by(fmt::Error);
        assert_eq!(error.to_string(), "refused: no such queue");
        assert!(error.source().is_some_and(|source| source.is::<fmt::Error>()));
        assert_eq!(error, plain);
    }
}
