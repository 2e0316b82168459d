//! Errors of operations. Callers map the variant to an exit code or an HTTP status.

use crate::domain::backlog::size::{beyond, exact};
use crate::domain::event::Rejection;
use crate::domain::field_error::FieldError;
use crate::domain::producer_outbox::Status;
use crate::nats::subjects::described;
use crate::nats::{ApiError, NatsError};
use crate::seal::SealError;
use crate::settings::Quota;
use hub_outbox::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    #[error(transparent)]
    Nats(NatsError),
    #[error(
        "{}: it does not exist; create the hub's streams with `hub provision`, or set nats.prefix to the prefix of your hub",
        described(subject).what
    )]
    NotProvisioned { subject: String },
    /// Invalid input; nothing was changed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
    /// Stored secrets would be sent to another place; nothing was changed. Each field is a secret.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    SecretsNeeded(Vec<FieldError>),
    #[error("unknown domain {name:?}; configured domains: {known}")]
    UnknownDomain { name: String, known: String },
    #[error("no subscription {id:?}")]
    NoSubscription { id: String },
    /// A caller that is bound to a tenant would change a subscription that uses the operator's broker.
    #[error(
        "subscription {id:?} delivers to an external broker of the operator, but this token is bound to a tenant, so it may \
         only read it; use a token without a tenant"
    )]
    BrokerOfOperator { id: String },
    /// A different subscription with this id exists.
    #[error("subscription {id:?} already exists and differs; choose another id, or replace it")]
    Exists { id: String },
    /// An id without a tenant that several tenants have.
    #[error("subscription {id:?}: {} tenants have one ({}); add the tenant", tenants.len(), tenants.join(", "))]
    AmbiguousSubscription { id: String, tenants: Vec<String> },
    #[error("no dead letter {id:?}; it may have been delivered or discarded")]
    NoDeadLetter { id: String },
    /// A replay of a dead letter whose subscription was removed.
    #[error(
        "dead letter {id:?}: its subscription {subscription} was removed, and a new one with this name does not get its \
         envelopes; discard the dead letter, or publish its event again"
    )]
    OwnerRemoved { id: String, subscription: String },
    /// A cursor of a list of other domains.
    #[error(
        "{cursor}: the domain {domain} is not in this list; use the same domains as in the previous request"
    )]
    ForeignCursor { cursor: String, domain: String },
    /// No dead letter matches, or some of the given ids do not exist (`ids`); nothing was done.
    #[error("no dead letter {}matches; nothing was changed", ids_and_space(.ids))]
    NoneSelected { ids: Vec<String> },
    /// A write that expected another revision than the current one.
    #[error("{id}: changed by another writer in the meantime; nothing was written; read it and try again")]
    Conflict { id: String },
    #[error(
        "{id}: it has a credential, and secrets.master_key is not set; create a key with `openssl rand -base64 32` and set \
         it as HUB__SECRETS__MASTER_KEY (or in the file secrets.master_key_file), the same for every process of the hub"
    )]
    NoMasterKey { id: String },
    /// A stored credential that no configured master key opens.
    #[error("{id}: {source}")]
    Sealed { id: String, source: SealError },
    /// The event is invalid, or no domain accepts its key.
    #[error("{}", .0.detail)]
    EventRejected(#[source] Rejection),
    /// The events stream is full.
    #[error(
        "the events stream is full: {source}; publish again when the hub has caught up, or raise limits.events"
    )]
    Full { source: NatsError },
    /// The event is larger than events.max_size.
    #[error("{}", .0.detail)]
    TooLarge(#[source] Rejection),
    /// The event is larger than the server accepts.
    #[error(transparent)]
    TooLargeForServer(NatsError),
    #[error("no bulk job {id:?}; finished jobs are deleted after 7 days")]
    NoBulkJob { id: String },
    /// This process runs its maximum number of bulk jobs.
    #[error("{limit} bulk jobs are running; start this one when one of them has ended")]
    TooManyBulkJobs { limit: usize },
    /// A tenant runs as many bulk jobs in this process as its quota allows.
    #[error(
        "tenant {tenant:?}: {} bulk jobs are running, the limit of {}; start this one when one of them has ended",
        .quota.limit, .quota.setting
    )]
    TooManyBulkJobsOfTenant { tenant: String, quota: Quota },
    /// A tenant has as many subscriptions as its quota allows.
    #[error(
        "{id}: tenant {tenant:?} has {} subscriptions, the limit of {}; remove one that is not needed, or raise the setting",
        .quota.limit, .quota.setting
    )]
    TooManySubscriptions { id: String, tenant: String, quota: Quota },
    /// The total size of a tenant's subscriptions would exceed its quota.
    #[error(
        "{id}: the subscriptions of tenant {tenant:?} would have {} in total; {} allows {}: write a smaller one, remove \
         one that is not needed, or raise the setting",
        beyond(*bytes as u64, quota.limit as u64), .quota.setting, exact(quota.limit as u64)
    )]
    SubscriptionsTooLarge { id: String, tenant: String, bytes: usize, quota: Quota },
    #[error("this process is stopping; try again, another process answers")]
    Stopping,
    /// A bulk operation that stopped after a part of the dead letters.
    #[error(
        "stopped after at least {done} of {total} were {verb}: {source}; run the same command again for the rest"
    )]
    PartlyDone { verb: &'static str, done: usize, total: usize, source: NatsError },
    #[error(
        "no producer outbox: outbox.database_url is not set for this process; set it to the producer's database \
         (HUB__OUTBOX__DATABASE_URL)"
    )]
    NoProducerOutbox,
    /// An error of the producer outbox's database.
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no row {}; nothing was changed", .ids.join(", "))]
    NoRow { ids: Vec<String> },
    /// An operation that does not apply to the row's status.
    #[error("row {id:?} is {status}; only {changes} rows can be {verb}; nothing was changed")]
    WrongRowStatus { id: String, status: Status, verb: &'static str, changes: &'static str },
    #[error("the outbox database is busy; try again in a few seconds")]
    ProducerOutboxBusy,
    /// An operation on many rows of the producer outbox that stopped after a part of them.
    #[error("stopped after {done} rows were {verb}: {source}; run the same operation again for the rest")]
    RowsPartlyChanged { verb: &'static str, done: u64, source: StoreError },
}

/// The ids and a space (`a, b `), or nothing.
fn ids_and_space(ids: &[String]) -> String {
    if ids.is_empty() { String::new() } else { format!("{} ", ids.join(", ")) }
}

impl From<NatsError> for ManagementError {
    fn from(error: NatsError) -> Self {
        match error {
            NatsError::Api { subject, source } if source.err_code == ApiError::STREAM_NOT_FOUND => {
                Self::NotProvisioned { subject }
            }
            other => Self::Nats(other),
        }
    }
}

impl ManagementError {
    /// The server cannot be reached, or JetStream is temporarily unavailable; the same operation may succeed later.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Nats(error) | Self::PartlyDone { source: error, .. } if error.is_unavailable())
    }

    /// The server refuses this client.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Nats(error) if error.is_refused())
    }

    /// Replaces the error of the server, if there is one, by what is found out about it.
    #[must_use]
    pub fn with_source(self, found: NatsError) -> Self {
        match self {
            Self::Nats(_) => found.into(),
            Self::PartlyDone { verb, done, total, source: _ } => {
                Self::PartlyDone { verb, done, total, source: found }
            }
            other => other,
        }
    }

    /// The same operation may succeed later: the server cannot be reached or is overloaded, or its stream has no leader
    /// or is recovering.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Nats(error) | Self::PartlyDone { source: error, .. } => {
                error.is_passing() || error.is_registry_lost()
            }
            Self::Store(error) | Self::RowsPartlyChanged { source: error, .. } => error.is_transient(),
            Self::Full { .. } => true,
            _ => false,
        }
    }
}
