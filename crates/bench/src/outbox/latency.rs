//! Figure `latency`: the time from the call that commits an event to its arrival at a NATS subscriber, at a hundred events
//! each second; compared with a producer that publishes by itself after its commit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};

use super::Bench;
use super::ledger::{Ledger, event_id, id};
use super::load::{empty, event, running, settings, wait_until_settled};
use crate::error::BenchError;
use crate::report::{Figure, Goal, Measure, Unit};
use crate::rig::{PATIENCE, Rig};
use crate::statistics::percentile;
use crate::tally::Account;
use hub_outbox::publish;
use hub_testkit::broker_process::SyncInterval;
use integration_hub::domain::producer_outbox::{INTERNAL, RaisedEvent};

const PER_SECOND: u32 = 100;
/// Events that are sent first and not measured, to open connections and fill caches.
const WARM_UP: u64 = 100;
const STREAMS: u64 = 1_000;
/// Concurrent transactions, if a commit takes longer than the time between two events.
const CONNECTIONS: u32 = 8;
const AGAINST: &str = "a producer that publishes after its commit";

pub(crate) async fn measure(bench: &Bench<'_>) -> Result<Figure, BenchError> {
    let (without, _) = run(bench, false).await?;
    let (with, arrivals) = run(bench, true).await?;
    let measures = [(50.0, 10.0, "10 ms"), (99.0, 50.0, "50 ms")].map(|(percent, aim, shown)| {
        let value = percentile(&with, percent).map_or(f64::INFINITY, millis);
        let bare = percentile(&without, percent).map(millis);
        Measure::new(format!("p{percent}"), value, Unit::Milliseconds, bare)
            .against(AGAINST)
            .aim(Some(Goal::below(value, aim, shown)))
    });
    Ok(Figure {
        figure: "latency",
        title: "from the commit to a NATS subscriber at 100 events/s",
        sync: "default",
        measures: measures.into(),
        arrivals,
        still_owed: 0,
        processor: None,
        with: bench.conditions.clone(),
    })
}

/// The latencies without the warm-up; events that did not arrive have none.
async fn run(bench: &Bench<'_>, relayed: bool) -> Result<(Vec<Duration>, Account), BenchError> {
    let count = WARM_UP + (bench.duration.as_secs_f64() * f64::from(PER_SECOND)).ceil() as u64;
    let database = empty(bench.postgres, &[]).await?;
    let rig = Rig::start(SyncInterval::Default, count).await?;
    let pool = database.pool(CONNECTIONS).await?;
    let mut hub = if relayed { Some(rig.relay(&settings(&database))?) } else { None };
    if let Some(hub) = &mut hub {
        hub.wait_until_ready(&rig.client).await?;
    }
    let subject = rig.js.names().event("user.created");
    let subscriber = Subscriber::start(&rig.broker_url(), subject.clone(), count).await?;
    let progress = running(count, if relayed { "committing, relayed" } else { "committing and publishing" });
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut calls = JoinSet::new();
    let subject: Arc<str> = subject.into();
    for number in 0..count {
        ticks.tick().await;
        let (pool, js, subject) = (pool.clone(), rig.js.clone(), subject.clone());
        calls.spawn(async move {
            let committed = commit(&pool, number).await?;
            if !relayed {
                let body = Bytes::from(event(number, STREAMS, false));
                js.publish(&subject, body, &[("Nats-Msg-Id", &id(number))]).await?;
            }
            Ok::<_, BenchError>((number, committed))
        });
        progress.set_position(number + 1);
    }
    let mut committed = HashMap::new();
    while let Some(call) = calls.join_next().await {
        let (number, at) = call??;
        committed.insert(number, at);
    }
    let (arrived, ledger) = subscriber.end().await?;
    progress.finish_and_clear();
    if let Some(mut hub) = hub {
        wait_until_settled(&database, &[INTERNAL], &mut hub).await?;
        hub.stop().await?;
    }
    pool.close().await;
    rig.stop().await?;
    bench.postgres.remove(database).await?;
    let latencies = (WARM_UP..count).filter_map(|number| {
        Some(arrived.get(&id(number))?.saturating_duration_since(*committed.get(&number)?))
    });
    Ok((latencies.collect(), ledger.account()))
}

/// Raises one event in its own transaction. Returns the time at which the commit started.
async fn commit(pool: &PgPool, number: u64) -> Result<Instant, BenchError> {
    let event = RaisedEvent::from_json(&event(number, STREAMS, false))?;
    let mut transaction = pool.begin().await?;
    publish(&mut transaction, &event).await?;
    let started = Instant::now();
    transaction.commit().await?;
    Ok(started)
}

/// The first arrival of each id, and all arrivals.
type Heard = (HashMap<String, Instant>, Ledger);

/// A subscriber with its own connection.
struct Subscriber {
    listening: tokio::task::JoinHandle<Heard>,
}

impl Subscriber {
    async fn start(url: &str, subject: String, count: u64) -> Result<Self, BenchError> {
        let client = async_nats::connect(url).await?;
        let mut messages = client.subscribe(subject).await?;
        client.flush().await?;
        let listening = tokio::spawn(async move {
            let (mut arrived, mut ledger) = (HashMap::new(), Ledger::new(count, STREAMS));
            while arrived.len() < count as usize
                && let Ok(Some(message)) = timeout(PATIENCE, messages.next()).await
            {
                let now = Instant::now();
                let id = event_id(&message.payload);
                ledger.arrived(&id);
                arrived.entry(id).or_insert(now);
            }
            drop(client);
            (arrived, ledger)
        });
        Ok(Self { listening })
    }

    /// Waits until all events have arrived, or no more arrive.
    async fn end(self) -> Result<Heard, BenchError> {
        Ok(self.listening.await?)
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
