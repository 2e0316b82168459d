//! Why the bench could not measure.

use std::path::PathBuf;
use std::time::Duration;

use crate::domain::event::Rejection;
use crate::domain::index::EntryError;
use crate::http_delivery::bare::BareError;
use crate::nats::provision::ProvisionError;
use crate::nats::{BatchError, NatsError};
use crate::seal::MasterKeyError;
use crate::settings::SettingsError;
use hub_outbox::{RaiseError, StoreError};
use hub_testkit::broker_process::BrokerProcessError;

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Broker(#[from] BrokerProcessError),
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    #[error("the settings of the bench are refused: {0}")]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    #[error("the settings of the bench have no master key")]
    NoMasterKey,
    #[error("an event of the bench is refused: {0}")]
    Event(#[from] Rejection),
    #[error("a subscription of the bench is refused: {0}")]
    Subscription(serde_json::Error),
    #[error("a subscription of the bench is unusable: {0}")]
    Entry(EntryError),
    #[error(transparent)]
    Bare(#[from] BareError),
    #[error("the receiver cannot be started: {0}")]
    Receiver(std::io::Error),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{what} cannot be started: {source}")]
    Spawn { what: &'static str, source: std::io::Error },
    #[error("{what} ended by itself ({status}); its last lines:\n{log}")]
    Ended { what: &'static str, status: std::process::ExitStatus, log: String },
    #[error("the hub was not ready within {} s: {missing}; its last lines:\n{log}", waited.as_secs())]
    NotReady { waited: Duration, missing: String, log: String },
    #[error("{what} answered what cannot be read: {text:?}")]
    Answer { what: &'static str, text: String },
    #[error(
        "/proc/{pid}/{file} cannot be read ({reason}): memory and processor time are measured on Linux alone"
    )]
    Process { pid: u32, file: &'static str, reason: String },
    #[error("looking for a nats-server was interrupted")]
    Interrupted,
    #[error("signals cannot be watched: {0}")]
    Signals(std::io::Error),
    #[error("stopped by a signal; the figures shown before are complete")]
    Stopped,
    #[error("a publisher of the bench ended: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error(
        "no PostgreSQL in {looked}: install its server, 14 or newer (Debian: apt-get install postgresql), name the folder of initdb and postgres with --postgres-bin, or a server with --database-url"
    )]
    NoPostgres { looked: String },
    #[error("the database of the bench: {0}")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("an event of the bench is not raised: {0}")]
    Raise(#[from] RaiseError),
    #[error(
        "the databases hub_bench_… were not removed within {} s; drop them by hand", waited.as_secs()
    )]
    NotClosed { waited: Duration },
    #[error("the Redis of the bench: {0}")]
    Redis(#[from] redis::RedisError),
    #[error("the NATS subscriber of the bench: {0}")]
    Subscriber(String),
    #[error("the output cannot be written: {0}")]
    Output(std::io::Error),
}
