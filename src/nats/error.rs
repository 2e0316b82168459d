//! Errors of the NATS adapter. JetStream's error codes distinguish the errors of the server.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::registry::UnreadableRevision;
use super::remedy::{self, about};
use crate::domain::backlog::size::{beyond, exact};
use crate::domain::dead_letter_room::DeadLetterRefusal;
use crate::domain::shared_settings::UnreadableRecord;
use crate::domain::subscription::{InvalidTenant, SubscriptionRef};

/// The `error` object of a JetStream API answer or publish acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{}", remedy::shown(self))]
pub struct ApiError {
    pub code: u16,
    #[serde(default)]
    pub err_code: u16,
    #[serde(default)]
    pub description: String,
}

impl ApiError {
    /// `JSStreamStoreFailedF`: the stream is full (`discard: new`), or its store failed.
    pub const STORE_FAILED: u16 = 10077;
    /// `JSAccountResourcesExceededErr`, `JSInsufficientResourcesErr`, `JSMemoryResourcesExceededErr` and
    /// `JSStorageResourcesExceededErr`: the account or the server has no room.
    pub const NO_RESOURCES: [u16; 4] = [10002, 10023, 10028, 10047];
    /// `JSAtomicPublishTooLargeBatchErrF`: more messages than the server's `max_batch_size`.
    pub const BATCH_TOO_LARGE: u16 = 10199;
    /// `JSStreamNameExistErr`: a stream of this name exists with another configuration.
    pub const STREAM_NAME_IN_USE: u16 = 10058;
    /// `JSStreamMessageExceedsMaximumErr`: larger than the stream's `max_msg_size`.
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
    /// `JSStreamMsgDeleteFailedF`: any failure, also a sequence before the stream's first or after its last.
    pub const DELETE_FAILED: u16 = 10057;
    /// `JSConsumerAlreadyExists`: there is a consumer of this name with another configuration.
    pub const CONSUMER_EXISTS: u16 = 10148;
    /// `JSMaximumConsumersLimitErr`
    pub const TOO_MANY_CONSUMERS: u16 = 10026;
    /// `JSStreamWrongLastSequenceErrF`
    pub const WRONG_LAST_SEQUENCE: u16 = 10071;
    /// `JSAtomicPublishContainsDuplicateMessageErr` (ADR-50)
    pub const BATCH_DUPLICATE: u16 = 10201;
    /// `JSClusterIncompleteErr`, `JSClusterNotAvailErr`, `JSClusterNotLeaderErr`, `JSStreamOfflineErr` and
    /// `JSConsumerOfflineErr`: there is no leader, or too few servers for one.
    pub const WITHOUT_LEADER: [u16; 5] = [10004, 10008, 10009, 10118, 10119];
    /// `JSStreamExpectedLastSeqPerSubjectNotReady`, `JSStreamTooManyRequests`, `JSAtomicPublishTooManyInflight` and
    /// `JSBatchPublishTooManyInflight`: the server is busy for a moment.
    pub const BUSY: [u16; 4] = [10163, 10167, 10210, 10211];
    /// `JSClusterNoPeersErrF`: too few servers of the cluster are there, or have room, for the replicas of a stream.
    pub const NO_PEERS: u16 = 10005;
    /// `JSNotEnabledErr` and `JSNotEnabledForAccountErr`
    pub const NOT_ENABLED: [u16; 2] = [10076, 10039];
}

#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    #[error(
        "cannot connect to {url}: {source}; start nats-server there, or set nats.url (HUB__NATS__URL) to its address"
    )]
    Connect { url: String, source: BoxError },
    /// The server is reached, but there is no TLS session with it.
    #[error(
        "cannot use TLS with the NATS server at {url}: {source}; check that this server has TLS, and that its certificate is \
         valid for this host and signed by nats.tls_ca_file; for a server without TLS, set nats.tls_required = false and \
         nats.url to nats://…"
    )]
    Tls { url: String, source: BoxError },
    #[error(
        "cannot log in to the NATS server at {url}: it refuses the credentials; check nats.user and nats.password (or \
         nats.token, nats.nkey_seed_file, nats.credentials_file)"
    )]
    Login { url: String, source: BoxError },
    /// A file that the settings name.
    #[error("nats.{setting}: cannot use {}: {source}; set it to a readable file of this kind", path.display())]
    Settings { setting: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{}", remedy::unanswered(subject, *seconds, reported.as_deref()))]
    Timeout {
        subject: String,
        seconds: u64,
        /// The missing permission that the server reported on the connection meanwhile, as it wrote it.
        reported: Option<String>,
    },
    #[error("{}", remedy::nobody(subject))]
    NoResponders { subject: String },
    /// Nobody answered, because the stream had no leader.
    #[error("{}", remedy::leaderless(subject))]
    NoLeader { subject: String },
    #[error("{}: {source}", about(subject))]
    Api { subject: String, source: ApiError },
    #[error(
        "{}: the message of {} is larger than the server's max_payload of {}; raise max_payload",
        about(subject), beyond(*size as u64, *limit as u64), exact(*limit as u64)
    )]
    TooLarge { subject: String, size: usize, limit: usize },
    /// The subject cannot be published to; nothing was sent.
    #[error("{subject}: {reason}")]
    Subject { subject: String, reason: &'static str },
    /// The client failed to send or to receive.
    #[error("{}: {source}", about(subject))]
    Transport { subject: String, source: BoxError },
    /// There is no connection at the moment, and the caller does not wait for one.
    #[error("not connected to NATS; start nats-server, or check nats.url")]
    NotConnected,
    /// The server may or may not have carried out the request.
    #[error(
        "{}: the connection to NATS was lost before the answer; a change may have been made all the same",
        about(subject)
    )]
    ConnectionLost { subject: String },
    /// The connection is closed for good.
    #[error("{}: the connection is closed", about(subject))]
    Closed { subject: String },
    /// The answer cannot be decoded.
    #[error("{}: the answer could not be read: {source}", about(subject))]
    Answer { subject: String, source: BoxError },
    /// A direct get ended with an unexpected status.
    #[error("{}: the server answered with status {status} {description}", about(subject))]
    Status { subject: String, status: u16, description: String },
    /// A value could not be encoded; nothing was sent.
    #[error("{}: could not encode the message: {source}", about(subject))]
    Encode { subject: String, source: BoxError },
    /// The last revision of a registry key cannot be read, and no earlier readable one is kept.
    #[error(
        "{key}: the stored subscription is unreadable: {source}; apply it again with `hub subscription apply`, or remove it"
    )]
    UnreadableEntry { key: String, source: UnreadableRevision },
    /// An entry that an older version stored under the bare id.
    #[error("{key}: the entry belongs to {owner}; run `hub provision`, which moves it to its own key")]
    MisplacedEntry { key: String, owner: SubscriptionRef },
    /// A subscription whose tenant has no valid name.
    #[error("subscription {id}: {source}")]
    InvalidSubscription { id: String, source: InvalidTenant },
    /// An envelope that names no subscription has no subject for its final attempt.
    #[error("envelope {envelope}: it names no valid subscription")]
    UnnamedSubscription { envelope: String },
    /// A dead letter was refused a moment ago; nothing was sent.
    #[error("dead letters of {domain} cannot be stored at the moment: {refusal}; {}", refusal.remedy())]
    LettersRefused { domain: String, refusal: DeadLetterRefusal },
    /// The events stream exists, and the bucket of the registry does not.
    #[error(
        "{}: the subscription registry is missing, so events wait; restore it with `hub registry import --create-registry \
         --file <backup>`, or start with an empty one with `hub provision --create-registry`",
        about(bucket)
    )]
    RegistryMissing { bucket: String },
    /// The bucket is not the one that the events stream records.
    #[error(
        "{}: the subscription registry was deleted and created again, so events wait; restore it with `hub registry \
         import --create-registry --file <backup>`, or accept it as it is with `hub provision --create-registry`",
        about(bucket)
    )]
    RegistryReplaced { bucket: String },
    /// The events stream records an id that no bucket can have, or settings without an id.
    #[error(
        "{}: the recorded id of the subscription registry (hub.registry in the metadata of the events stream) is damaged or \
         was removed; restore the registry with `hub registry import --create-registry --file <backup>`, or accept the \
         bucket as it is with `hub provision --create-registry`",
        about(bucket)
    )]
    RegistryIdDamaged { bucket: String },
    /// Something else is recorded in the place of the shared settings.
    #[error(
        "the recorded settings are unreadable (hub.settings in the metadata of the events stream): {source}; {}",
        if source.is_newer() {
            "upgrade this process, or apply its settings with `hub provision`"
        } else {
            "apply the settings of this process with `hub provision`"
        }
    )]
    SettingsUnreadable { source: UnreadableRecord },
    /// What this process knows is not recorded as it should be. It works on.
    #[error(
        "the records of the hub (hub.settings and hub.registry in the metadata of the events stream) are damaged: {problem}; {}, as a \
         user that may change streams",
        if *accept {
            "check the bucket with `hub subscription list`, and accept it with `hub provision --create-registry`"
        } else {
            "record them again with `hub provision`"
        }
    )]
    RecordsDamaged {
        problem: String,
        /// Nobody else can know that the bucket is the registry.
        accept: bool,
    },
    /// The settings of this process are not the recorded ones.
    #[error(
        "the settings of this process differ from the recorded ones ({differences}); use the same settings in every process, \
         or apply these with `hub provision`"
    )]
    SettingsDiffer { differences: String },
    /// Another writer keeps replacing the secret of the message ids.
    #[error("{key}: cannot keep a secret for message ids; check which NATS users may write to this bucket")]
    MessageIdSecret { key: String },
}

/// An error of a library, kept as the source of a hub error.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl NatsError {
    /// No answer came within this time.
    pub(crate) fn timeout(subject: impl Into<String>, limit: Duration) -> Self {
        Self::Timeout { subject: subject.into(), seconds: limit.as_secs(), reported: None }
    }

    pub(crate) fn transport(subject: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::Transport { subject: subject.into(), source: source.into() }
    }

    pub(crate) fn answer(subject: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::Answer { subject: subject.into(), source: source.into() }
    }

    pub(crate) fn encode(subject: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::Encode { subject: subject.into(), source: source.into() }
    }

    /// The server cannot be reached or does not answer; the same request may succeed later.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::Tls { .. }
                | Self::Login { .. }
                | Self::Timeout { .. }
                | Self::Transport { .. }
                | Self::ConnectionLost { .. }
                | Self::Closed { .. }
        )
    }

    /// The same request may succeed later: also while a stream has no leader or the server is overloaded or starts.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::NoResponders { .. })
            || self.api().is_some_and(|error| matches!(error.code, 429 | 503))
            || self.is_unavailable()
    }

    /// The server cannot be reached, or JetStream says that it has no leader or is busy: nothing is wrong with the request
    /// or with the streams.
    pub fn is_unavailable(&self) -> bool {
        let says_so = |error: &ApiError| {
            ApiError::WITHOUT_LEADER.contains(&error.err_code) || ApiError::BUSY.contains(&error.err_code)
        };
        matches!(self, Self::NoLeader { .. } | Self::NotConnected)
            || self.api().is_some_and(says_so)
            || self.is_unreachable()
    }

    /// JetStream says that it, or the stream, has no leader.
    pub fn is_without_leader(&self) -> bool {
        matches!(self, Self::NoLeader { .. })
            || self.api().is_some_and(|error| ApiError::WITHOUT_LEADER.contains(&error.err_code))
    }

    /// The server refuses this client: its login, or TLS.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Tls { .. } | Self::Login { .. })
    }

    /// Waiting may help, without a change of the settings or of the server's configuration.
    pub fn may_pass(&self) -> bool {
        self.is_unavailable() && !self.is_refused() && !matches!(self, Self::Closed { .. })
    }

    /// The server's error, if it sent one.
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Api { source, .. } => Some(source),
            _ => None,
        }
    }

    fn has_code(&self, code: u16) -> bool {
        self.api().is_some_and(|error| error.err_code == code)
    }

    /// The requested message, stream or consumer does not exist.
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

    /// The requested stream does not exist.
    pub fn is_stream_missing(&self) -> bool {
        self.has_code(ApiError::STREAM_NOT_FOUND)
    }

    /// The bucket of the registry is missing, or is not the recorded one.
    pub fn is_registry_lost(&self) -> bool {
        matches!(
            self,
            Self::RegistryMissing { .. } | Self::RegistryReplaced { .. } | Self::RegistryIdDamaged { .. }
        )
    }

    /// The requested message does not exist, but its stream does.
    pub fn is_no_message(&self) -> bool {
        self.has_code(ApiError::MESSAGE_NOT_FOUND) || self.has_code(ApiError::SEQUENCE_NOT_FOUND)
    }

    pub fn is_delete_failed(&self) -> bool {
        self.has_code(ApiError::DELETE_FAILED)
    }

    /// The stream is full and discards new messages.
    pub fn is_full(&self) -> bool {
        self.has_code(ApiError::STORE_FAILED)
    }

    /// The account or the server has no room for more messages.
    pub fn is_out_of_resources(&self) -> bool {
        self.api().is_some_and(|error| ApiError::NO_RESOURCES.contains(&error.err_code))
    }

    /// The stream has as many consumers as it, or the account, may have.
    pub fn is_too_many_consumers(&self) -> bool {
        self.has_code(ApiError::TOO_MANY_CONSUMERS)
    }

    /// An atomic batch has more messages than the server allows.
    pub fn is_batch_too_large(&self) -> bool {
        self.has_code(ApiError::BATCH_TOO_LARGE)
    }

    /// The message is larger than the server or the stream accepts.
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

#[cfg(test)]
mod tests;
