//! Outbox Relay: publishes the rows of the producer outbox to their target brokers, at least once, and in the order of
//! insertion per stream. Each broker has a processor of its own, so that none waits for another.

mod availability;
mod database;
mod in_hand;
mod internal;
mod processor;
mod round;
mod upkeep;
mod wake;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::domain::message_id::MessageIds;
use crate::domain::producer_outbox::{Destination, INTERNAL, RelayRetryPolicy};
use crate::facts::{
    ClaimsNotReleased, ExternalBrokerNotConfigured, ExternalBrokerRegistered, Metrics,
    RelayConnectionsDropped, RelayStarted,
};
use crate::health::Readiness;
use crate::nats::JetStream;
use crate::sinks::Broker;
use crate::tasks::{TaskError, Tasks};
use availability::Availability;
use database::Database;
use hub_outbox::{Retention, Store, StoreError};
use in_hand::InHand;
use internal::Internal;
use processor::{Processor, Route, Target, Worker};
use upkeep::Upkeep;
use wake::Notice;

/// Time after the grace period of a stop to release the claimed rows.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Pause after the database was found unavailable.
const WATCH_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct OutboxRelaySettings {
    /// The hub's largest event in bytes, which is written to the database.
    pub largest_event: u64,
    /// Most rows of one claim.
    pub batch: usize,
    /// Duration of a claim that is not renewed.
    pub claim_time: Duration,
    pub retry: RelayRetryPolicy,
    /// Shortest pause between two polls.
    pub poll_min: Duration,
    /// Longest pause between two polls while notifications of commits arrive.
    pub poll_max: Duration,
    pub retention: Retention,
    pub cleanup_interval: Duration,
    /// Rows per delete statement.
    pub cleanup_batch: usize,
    pub reconcile_interval: Duration,
    /// Longest time for a round to finish after a stop.
    pub grace: Duration,
}

/// A broker beside the internal one.
pub struct ExternalTarget {
    /// As in the settings and in the rows.
    pub name: String,
    pub broker: Arc<dyn Broker>,
    /// Where its messages go.
    pub destination: Destination,
}

/// Whose broker it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Internal,
    External,
}

pub struct OutboxRelay {
    store: Store,
    targets: Vec<Target>,
    settings: OutboxRelaySettings,
    metrics: Metrics,
    database: Database,
}

impl OutboxRelay {
    /// `js`: the internal broker, whose messages get their ids from `message_ids`.
    pub fn new(
        store: Store,
        js: JetStream,
        message_ids: MessageIds,
        external: Vec<ExternalTarget>,
        settings: OutboxRelaySettings,
        metrics: Metrics,
        readiness: &Readiness,
    ) -> Self {
        let internal = Target {
            name: INTERNAL.to_owned(),
            scope: Scope::Internal,
            route: Route::Internal(js.names().clone()),
            broker: Arc::new(Internal::new(js, message_ids)),
        };
        let external = external.into_iter().map(|target| Target {
            name: target.name,
            scope: Scope::External,
            route: Route::External(target.destination),
            broker: target.broker,
        });
        let targets = std::iter::once(internal).chain(external).collect();
        let database = Database::new(readiness.part("outbox-relay"));
        Self { store, targets, settings, metrics, database }
    }

    /// Runs until `stop`; rounds then end within the grace period, and rows that are not published are released. Waits
    /// for a database that is unavailable; one without the outbox, or with another version of its schema, is an error.
    /// The store stays open, since it is shared with the API.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskError> {
        let is_ready = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            is_ready = self.wait_for_database() => is_ready,
        };
        // The schema is missing or has another version.
        is_ready.map_err(TaskError::of_owner)?;
        // Unique to this process: a process id may be used again after a restart.
        let relay = format!("relay-{:016x}", rand::random::<u64>());
        let cut = CancellationToken::new();
        let brokers: Vec<String> = self.targets.iter().map(|target| target.name.clone()).collect();
        let Self { store, targets, settings, metrics, database } = self;
        RelayStarted { relay: &relay, brokers: &brokers }.emit();
        let stop = stop.child_token();
        let mut tasks = Tasks::new(stop.clone());
        let (notices, heard) = watch::channel(Notice::default());
        tasks.infallible("the listener for commits", wake::listen(store.clone(), notices, stop.clone()));
        tasks.droppable("the watch of the database", watch_database(store.clone(), database.clone()));
        let has_internal_only = targets.len() == 1;
        let connections: Vec<Arc<dyn Broker>> = targets.iter().map(|target| target.broker.clone()).collect();
        for target in targets {
            let target_metrics = metrics.of_broker(&target.name);
            let processor = Arc::new(Processor {
                availability: match target.name.as_str() {
                    INTERNAL => Availability::of_internal(target_metrics.clone()),
                    _ => Availability::new(target_metrics.clone()),
                },
                target,
                store: store.clone(),
                settings: settings.clone(),
                relay: relay.clone(),
                database: database.clone(),
                metrics: target_metrics,
                in_hand: InHand::default(),
                lacks_external_broker: has_internal_only.then(|| AtomicBool::new(true)),
                stop: stop.clone(),
                cut: cut.clone(),
            });
            for worker in Worker::ALL {
                let name = format!("the processor of {} ({worker:?})", processor.target.name);
                tasks.infallible(name, processor.clone().work(worker, heard.clone()));
            }
        }
        let grace = settings.grace;
        let upkeep = Upkeep { store: store.clone(), settings, brokers, metrics };
        tasks.infallible("the upkeep", upkeep.run(stop.clone()));
        let result = join(&mut tasks, &stop, &cut, grace).await;
        let closing = join_all(connections.iter().map(|broker| broker.close()));
        if tokio::time::timeout(LAST_WORDS, closing).await.is_err() {
            RelayConnectionsDropped.emit();
        }
        result
    }

    /// Waits until the database answers, and registers the brokers of the settings in it.
    async fn wait_for_database(&self) -> Result<(), StoreError> {
        let external: Vec<String> =
            self.targets.iter().map(|target| target.name.clone()).filter(|name| name != INTERNAL).collect();
        let mut pauses = Database::pauses();
        loop {
            let asked = async {
                self.store.check().await?;
                self.store.limit_events(self.settings.largest_event).await?;
                self.store.sync_brokers(&external, false).await
            };
            match asked.await {
                Ok(sync) => {
                    self.database.worked();
                    for broker in &sync.added {
                        ExternalBrokerRegistered { broker }.emit();
                    }
                    for broker in &sync.unconfigured {
                        ExternalBrokerNotConfigured { broker }.emit();
                    }
                    return Ok(());
                }
                Err(error) if error.is_transient() => {
                    self.database.failed(&error);
                    tokio::time::sleep(pauses.next(rand::random())).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Reports that the database is unavailable as soon as it is: other statements wait for the pool, which hides the cause.
async fn watch_database(store: Store, database: Database) {
    loop {
        database.failed(&store.watch().await);
        tokio::time::sleep(WATCH_AGAIN).await;
    }
}

/// Waits until all tasks have ended after a stop, or after one of them ended by itself.
async fn join(
    tasks: &mut Tasks,
    stop: &CancellationToken,
    cut: &CancellationToken,
    grace: Duration,
) -> Result<(), TaskError> {
    let ending = async {
        stop.cancelled().await;
        tokio::time::sleep(grace).await;
        cut.cancel();
        tokio::time::sleep(LAST_WORDS).await;
    };
    let mut first = None;
    let joined = async {
        while let Some(failure) = tasks.failure().await {
            first.get_or_insert(failure);
        }
    };
    tokio::select! {
        () = joined => {}
        () = ending => {
            ClaimsNotReleased.emit();
        }
    }
    tasks.shutdown().await;
    first.map_or(Ok(()), Err)
}
