//! Why an operation was not carried out. Callers turn it into an exit code or an HTTP status by
//! its variant, never by its text.

use crate::domain::field_error::FieldError;
use crate::domain::producer_outbox::Status;
use crate::nats::{ApiError, NatsError};
use crate::seal::SealError;
use crate::settings::Quota;
use hub_outbox::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    #[error(transparent)]
    Nats(NatsError),
    #[error(
        "{subject}: the stream is not there. Make the hub's streams with `hub provision`, or set nats.prefix to that of the hub you mean"
    )]
    NotProvisioned { subject: String },
    /// What was given is not as it must be; nothing was changed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
    /// Stored secrets would be sent elsewhere; nothing was changed. Each field is a secret's.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    SecretsNeeded(Vec<FieldError>),
    #[error("{name:?} is no domain of the settings, which have {known}")]
    UnknownDomain { name: String, known: String },
    #[error("there is no subscription {id:?}")]
    NoSubscription { id: String },
    /// A subscription of that id is there already, and is another one.
    #[error("there is a subscription {id:?} already, and it is another one; take another id, or replace it")]
    Exists { id: String },
    /// An id without a tenant, which several have.
    #[error("subscription {id:?}: {} tenants have one ({}); name the tenant", tenants.len(), tenants.join(", "))]
    AmbiguousSubscription { id: String, tenants: Vec<String> },
    #[error("there is no dead letter {id:?}: it was never there, was delivered, or was discarded")]
    NoDeadLetter { id: String },
    /// A replay of what belongs to no subscription any more.
    #[error(
        "dead letter {id:?}: its subscription {subscription} was removed, and one created again under this name is \
         another one; discard the dead letter, or publish its event again"
    )]
    OwnerRemoved { id: String, subscription: String },
    /// A list that goes on where one of other domains ended.
    #[error("{cursor}: {domain} is not among the domains listed; ask for the same domains as before")]
    ForeignCursor { cursor: String, domain: String },
    /// An order that would do nothing, or not all that was asked; nothing was done. The ids are those
    /// that are not there.
    #[error("no dead letter {}matches; nothing was done", named(.ids))]
    NoneSelected { ids: Vec<String> },
    /// A write that expected another revision than there is.
    #[error("{id}: changed by someone else meanwhile, and left as it is now; look at it and try again")]
    Conflict { id: String },
    #[error(
        "secrets.master_key is not set, and {id} has a credential, which is stored only sealed. Make a key with \
         `openssl rand -base64 32` and set it as HUB__SECRETS__MASTER_KEY (or in a file that secrets.master_key_file names), \
         the same for every process of the hub"
    )]
    NoMasterKey { id: String },
    /// A stored credential that the master keys of the settings do not open.
    #[error("{id}: {source}")]
    Sealed { id: String, source: SealError },
    /// The event is none, or no domain takes it.
    #[error("{0}")]
    EventRejected(String),
    /// The events stream is full.
    #[error(
        "{source}. The events stream is full; publish again when the hub has caught up, or raise limits.events"
    )]
    Full { source: NatsError },
    /// The event is larger than the settings or the server take.
    #[error("{0}")]
    TooLarge(String),
    #[error("there is no order {id:?}, or it is forgotten by now")]
    NoOrder { id: String },
    /// As many bulk orders run in this process as it takes.
    #[error("{limit} orders run already; place this one when one of them has ended")]
    TooManyOrders { limit: usize },
    /// As many bulk orders of a tenant run in this process as its quota allows.
    #[error(
        "the tenant {tenant:?} has {} bulk orders in hand, as many as {} allows; place this one when one of them has ended",
        .quota.limit, .quota.setting
    )]
    TooManyOrdersOf { tenant: String, quota: Quota },
    /// A tenant has as many subscriptions as its quota allows.
    #[error(
        "{id}: the tenant {tenant:?} has {} subscriptions, as many as {} allows; remove one that is not needed, or raise the \
         setting",
        .quota.limit, .quota.setting
    )]
    TooManySubscriptions { id: String, tenant: String, quota: Quota },
    /// A tenant's subscriptions would take more together than its quota allows.
    #[error(
        "{id}: the subscriptions of the tenant {tenant:?} would take {bytes} bytes together; {} allows {}: write a smaller one, \
         remove one that is not needed, or raise the setting",
        .quota.setting, .quota.limit
    )]
    SubscriptionsTooLarge { id: String, tenant: String, bytes: usize, quota: Quota },
    #[error("this process is stopping; another takes the order")]
    Stopping,
    /// A bulk order that stopped on its way.
    #[error(
        "{source}. At least {done} of {total} were {verb} before; run the same command again for the rest"
    )]
    Halfway { verb: &'static str, done: usize, total: usize, source: NatsError },
    #[error(
        "there is no outbox to look into: outbox.database_url is not set for this process; set it to the producer's \
         database (HUB__OUTBOX__DATABASE_URL)"
    )]
    NoOutbox,
    /// The outbox's database.
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no row {}; nothing was done", .ids.join(", "))]
    NoRow { ids: Vec<String> },
    /// An order on one row that does not apply to it.
    #[error("the row {id:?} is {status}, and only {changes} ones are {verb}; it is left as it is")]
    RowStands { id: String, status: Status, verb: &'static str, changes: &'static str },
    #[error("others ask the outbox's database already, and it takes them long; ask again")]
    OutboxBusy,
    /// An order on many rows of the outbox that stopped on its way.
    #[error("{source}. {done} rows were {verb} before; place the same order again for the rest")]
    OutboxHalfway { verb: &'static str, done: u64, source: StoreError },
}

/// `a, b ` with a space behind, or nothing.
fn named(ids: &[String]) -> String {
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
    /// The server cannot be reached, or does not answer: the same may succeed later.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Nats(error) | Self::Halfway { source: error, .. }
                if matches!(
                    error,
                    NatsError::Connect { .. }
                        | NatsError::Login { .. }
                        | NatsError::Timeout { .. }
                        | NatsError::Transport { .. }
                )
        )
    }

    /// The same may succeed later: the server cannot be reached, its stream has no leader yet or is
    /// being recovered, or it has too much to do.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Nats(error) | Self::Halfway { source: error, .. } => {
                matches!(error, NatsError::NoResponders { .. })
                    || error.api().is_some_and(|error| matches!(error.code, 429 | 503))
                    || self.is_unreachable()
            }
            Self::Store(error) | Self::OutboxHalfway { source: error, .. } => error.is_transient(),
            Self::Full { .. } => true,
            _ => false,
        }
    }
}
