//! Why the bench cannot measure.

use std::path::PathBuf;
use std::time::Duration;

use hub_outbox::{RaiseError, StoreError};
use hub_testkit::ServerError;
use hub_testkit::broker_process::BrokerProcessError;
use integration_hub::domain::event::Rejection;
use integration_hub::domain::field_error::FieldError;
use integration_hub::domain::index::EntryError;
use integration_hub::nats::provision::ProvisionError;
use integration_hub::nats::{BatchError, NatsError};
use integration_hub::seal::MasterKeyError;
use integration_hub::settings::SettingsError;

use crate::bare_client::BareError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error(transparent)]
    Broker(#[from] BrokerProcessError),
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    #[error("the settings of the bench are invalid: {0}")]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    #[error("the settings of the bench have no master key")]
    NoMasterKey,
    #[error("an event of the bench is rejected: {0}")]
    Event(#[from] Rejection),
    #[error("an event of the bench is invalid: {0}")]
    RaisedEvent(#[from] FieldError),
    #[error("a subscription of the bench is invalid: {0}")]
    Subscription(#[source] serde_json::Error),
    #[error("a subscription of the bench is unusable: {0}")]
    Entry(#[source] EntryError),
    #[error(transparent)]
    Bare(#[from] BareError),
    #[error("cannot start the receiver: {0}")]
    Receiver(#[source] std::io::Error),
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] std::io::Error),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("cannot start {what}: {source}")]
    Spawn { what: &'static str, source: std::io::Error },
    #[error("{what} ended by itself ({status}); its last lines:\n{log}")]
    Ended { what: &'static str, status: std::process::ExitStatus, log: String },
    #[error("the hub was not ready within {} s: {missing}; its last lines:\n{log}", waited.as_secs())]
    NotReady { waited: Duration, missing: String, log: String },
    #[error("unexpected result from {what}: {text:?}")]
    Answer { what: &'static str, text: String },
    #[error("cannot read /proc/{pid}/{file}: {source}; memory and processor time are measured on Linux only")]
    ProcessFile { pid: u32, file: &'static str, source: std::io::Error },
    #[error("cannot read /proc/{pid}/{file}: {missing} is missing")]
    ProcessField { pid: u32, file: &'static str, missing: &'static str },
    #[error("the search for a nats-server was interrupted")]
    Interrupted,
    #[error("cannot watch for signals: {0}")]
    Signals(#[source] std::io::Error),
    #[error("stopped by a signal; the figures shown before are complete")]
    Stopped,
    #[error("a task of the bench ended: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error(
        "no PostgreSQL in {looked}: install its server, 14 or newer (Debian: apt-get install postgresql), set --postgres-bin to the folder of initdb and postgres, or set --database-url to a server"
    )]
    NoPostgres { looked: String },
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("no free port on 127.0.0.1: {0}")]
    NoPort(#[source] std::io::Error),
    #[error("the database of the bench: {0}")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("an event of the bench is not raised: {0}")]
    Raise(#[from] RaiseError),
    #[error("the databases hub_bench_… were not removed within {} s; remove them by hand", waited.as_secs())]
    NotClosed { waited: Duration },
    #[error("the Redis of the bench: {0}")]
    Redis(#[from] redis::RedisError),
    #[error("the NATS subscriber of the bench cannot connect: {0}")]
    SubscriberConnect(#[from] async_nats::ConnectError),
    #[error("the NATS subscriber of the bench cannot subscribe: {0}")]
    Subscribe(#[from] async_nats::SubscribeError),
    #[error("the NATS subscriber of the bench cannot subscribe: {0}")]
    Flush(#[from] async_nats::client::FlushError),
    #[error("cannot write the output: {0}")]
    Output(#[source] std::io::Error),
}
