//! Why a process does not start, or ends.

use std::time::Duration;

use crate::api::ApiError;
use crate::domain::field_error::FieldError;
use crate::nats::NatsError;
use crate::nats::provision::ProvisionError;
use crate::seal::{MasterKeyError, OpenSettingsError};
use crate::sinks::SettingError;
use crate::subscriptions_grpc;
use crate::tasks::TaskError;
use hub_outbox::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    #[error(transparent)]
    OpenSettings(#[from] OpenSettingsError),
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error(transparent)]
    Dev(#[from] crate::dev::DevError),
    #[error("--domain {name}: unknown domain; configured domains: {known}")]
    UnknownDomain { name: String, known: String },
    #[error(transparent)]
    Resolver(#[from] subscriptions_grpc::OptionsError),
    #[error(transparent)]
    ResolverServer(#[from] subscriptions_grpc::ServerError),
    #[error(
        "subscriptions.listen_token: is required for role subscription-resolver; set it, or set \
         subscriptions.listen_anonymous = true to answer callers without a token"
    )]
    NoResolverToken,
    #[error(
        "outbox.database_url: is required for role outbox-relay; set it (HUB__OUTBOX__DATABASE_URL), or do not name the role"
    )]
    NoDatabase,
    #[error("outbox.database_url: {0}")]
    Store(#[from] StoreError),
    #[error("external_brokers[{name}].{source}")]
    ExternalBroker { name: String, source: SettingError },
    #[error("external_brokers[{name}].{source}")]
    Destination { name: String, source: FieldError },
    #[error(
        "not stopped within {limit:?}, the rest is cut off and its messages are delivered again; still running: {running}"
    )]
    NotStopped { limit: Duration, running: String },
    #[error("signals: cannot install the handlers: {0}")]
    Signals(#[source] std::io::Error),
}
