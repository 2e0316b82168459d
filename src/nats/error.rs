//! What can go wrong between the hub and the broker, typed by the server's own error codes.

use serde::Deserialize;

/// The `error` object of a JetStream API answer or publish acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{description} (JetStream error {err_code})")]
pub struct ApiError {
    pub code: u16,
    #[serde(default)]
    pub err_code: u16,
    #[serde(default)]
    pub description: String,
}

impl ApiError {
    /// `JSStreamStoreFailedF`: the stream's limits refuse the message (discard new), or the store failed.
    pub const STORE_FAILED: u16 = 10077;
    /// `JSStreamMessageExceedsMaximumErr`: larger than the stream's max_msg_size.
    pub const MESSAGE_TOO_LARGE: u16 = 10054;
    /// `JSStreamHeaderExceedsMaximumErr`
    pub const HEADERS_TOO_LARGE: u16 = 10097;
    /// `JSStreamNotFoundErr`
    pub const STREAM_NOT_FOUND: u16 = 10059;
    /// `JSConsumerNotFoundErr`
    pub const CONSUMER_NOT_FOUND: u16 = 10014;
    /// `JSNoMessageFoundErr`
    pub const MESSAGE_NOT_FOUND: u16 = 10037;
    /// `JSSequenceNotFoundErrF`
    pub const SEQUENCE_NOT_FOUND: u16 = 10043;
    /// `JSStreamMsgDeleteFailedF`: for whatever went wrong, and for a sequence before the stream's first or after its
    /// last.
    pub const DELETE_FAILED: u16 = 10057;
    /// `JSMaximumConsumersLimitErr`
    pub const TOO_MANY_CONSUMERS: u16 = 10026;
    /// `JSStreamWrongLastSequenceErrF`
    pub const WRONG_LAST_SEQUENCE: u16 = 10071;
    /// `JSAtomicPublishContainsDuplicateMessageErr` (ADR-50)
    pub const BATCH_DUPLICATE: u16 = 10201;
    /// `JSNotEnabledErr` and `JSNotEnabledForAccountErr`
    pub const NOT_ENABLED: [u16; 2] = [10076, 10039];
}

#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    #[error(
        "cannot connect to {url}: {reason}. Is nats-server running there? Set nats.url (HUB__NATS__URL) to its address"
    )]
    Connect { url: String, reason: String },
    #[error(
        "the NATS server at {url} refuses the login; check nats.user and nats.password (or nats.token, nats.nkey_seed_file, \
         nats.credentials_file)"
    )]
    Login { url: String },
    #[error("nats.{setting}: {reason}")]
    Settings { setting: &'static str, reason: String },
    #[error(
        "{subject}: no answer from the server within {seconds} s; if it is running, check that the NATS user may publish to \
         {subject} and subscribe to its inbox (nats.inbox_prefix; nats/accounts.conf has the permissions)"
    )]
    Timeout { subject: String, seconds: u64 },
    #[error("{subject}: nobody answers; JetStream is off or the stream does not exist: run `hub provision`")]
    NoResponders { subject: String },
    #[error("{subject}: {source}")]
    Api { subject: String, source: ApiError },
    #[error("{subject}: the message of {size} bytes is larger than the server's max_payload of {limit}")]
    TooLarge { subject: String, size: usize, limit: usize },
    /// Nothing was sent.
    #[error("{subject}: {reason}")]
    Subject { subject: String, reason: &'static str },
    /// The client failed, or the connection is closed.
    #[error("{subject}: {source}")]
    Transport { subject: String, source: BoxError },
    #[error("{subject}: the answer could not be read: {source}")]
    Answer { subject: String, source: BoxError },
}

/// An error of a library, kept as the source of ours.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl NatsError {
    pub(crate) fn transport(subject: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::Transport { subject: subject.into(), source: source.into() }
    }

    pub(crate) fn answer(subject: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::Answer { subject: subject.into(), source: source.into() }
    }

    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Api { source, .. } => Some(source),
            _ => None,
        }
    }

    fn has_code(&self, code: u16) -> bool {
        self.api().is_some_and(|error| error.err_code == code)
    }

    /// The message, stream or consumer asked for is not there.
    pub fn is_not_found(&self) -> bool {
        self.api().is_some_and(|error| {
            error.code == 404
                || matches!(
                    error.err_code,
                    ApiError::MESSAGE_NOT_FOUND
                        | ApiError::SEQUENCE_NOT_FOUND
                        | ApiError::STREAM_NOT_FOUND
                        | ApiError::CONSUMER_NOT_FOUND
                )
        })
    }

    /// The message asked for is not there, and its stream is.
    pub fn is_no_message(&self) -> bool {
        self.has_code(ApiError::MESSAGE_NOT_FOUND) || self.has_code(ApiError::SEQUENCE_NOT_FOUND)
    }

    pub fn is_delete_failed(&self) -> bool {
        self.has_code(ApiError::DELETE_FAILED)
    }

    /// The stream takes no more: its limits are reached and it discards the new.
    pub fn is_full(&self) -> bool {
        self.has_code(ApiError::STORE_FAILED)
    }

    /// The message is larger than the server or the stream takes.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::TooLarge { .. })
            || self.has_code(ApiError::MESSAGE_TOO_LARGE)
            || self.has_code(ApiError::HEADERS_TOO_LARGE)
    }

    pub fn is_wrong_last_sequence(&self) -> bool {
        self.has_code(ApiError::WRONG_LAST_SEQUENCE)
    }

    pub fn is_batch_duplicate(&self) -> bool {
        self.has_code(ApiError::BATCH_DUPLICATE)
    }
}
