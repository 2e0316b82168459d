//! The rows: events of 600 bytes, raised as a producer does, and the settings of the relay.

use indicatif::ProgressBar;
use serde_json::json;
use tokio::time::Instant;

use super::ledger;
use super::postgres::{Database, Postgres};
use crate::child::HubProcess;
use crate::error::BenchError;
use crate::load::body;
use crate::rig::{PATIENCE, bar};
use hub_outbox::{Store, StoreOptions};
use integration_hub::domain::producer_outbox::INTERNAL;

/// Events of one transaction.
const PER_TRANSACTION: u64 = 1_000;
/// Polling interval of open rows.
const POLL: std::time::Duration = std::time::Duration::from_millis(10);

/// The events to raise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EventsToRaise<'a> {
    pub(crate) events: u64,
    pub(crate) streams: u64,
    /// The external brokers; each gets a row of every event.
    pub(crate) brokers: &'a [&'a str],
}

/// The event with this number, as JSON.
pub(crate) fn event(number: u64, streams: u64, published: bool) -> String {
    let data: serde_json::Value =
        serde_json::from_slice(&body(number)).expect("the body of the bench's events is JSON");
    json!({
        "id": ledger::id(number),
        "type": "user.created",
        "stream": ledger::stream(number, streams),
        "stream_category": "bench",
        "published": published,
        "data": data,
    })
    .to_string()
}

/// An outbox without rows.
pub(crate) async fn empty(postgres: &Postgres, brokers: &[&str]) -> Result<Database, BenchError> {
    let database = postgres.database(None).await?;
    let store = store(&database)?;
    store.setup().await?;
    let brokers: Vec<String> = brokers.iter().map(|name| (*name).to_owned()).collect();
    store.sync_brokers(&brokers, true).await?;
    store.close().await;
    Ok(database)
}

/// A database with all rows of a load, without connections, so that it can be copied.
pub(crate) async fn template(postgres: &Postgres, load: EventsToRaise<'_>) -> Result<Database, BenchError> {
    let database = empty(postgres, load.brokers).await?;
    let pool = database.pool(1).await?;
    let progress = bar(load.events, format!("raising events of {} streams", load.streams));
    let mut raised = 0;
    while raised < load.events {
        let end = load.events.min(raised + PER_TRANSACTION);
        let events: Vec<String> =
            (raised..end).map(|number| event(number, load.streams, !load.brokers.is_empty())).collect();
        sqlx::query("SELECT count(hub_outbox.publish(e::jsonb)) FROM unnest($1::text[]) AS e")
            .bind(events)
            .execute(&pool)
            .await?;
        raised = end;
        progress.set_position(raised);
    }
    progress.finish_and_clear();
    pool.close().await;
    Ok(database)
}

pub(crate) fn store(database: &Database) -> Result<Store, BenchError> {
    Ok(Store::new(StoreOptions::new(database.url.clone().into()))?)
}

/// The settings of a relay for a database.
pub(crate) fn settings(database: &Database) -> String {
    format!("[outbox]\ndatabase_url = {:?}\n", database.url)
}

/// The settings of an external broker, with default options.
pub(crate) fn external(name: &str, provider: &str, url: &str, destination: &str) -> String {
    format!(
        "[[external_brokers]]\nname = {name:?}\nprovider = {provider:?}\nurl = {url:?}\ndestination = {destination:?}\n"
    )
}

/// Waits until all rows of these brokers are settled, or no more are, while `hub` runs. Returns the time, and the number of
/// open rows.
pub(crate) async fn wait_until_settled(
    database: &Database,
    brokers: &[&str],
    hub: &mut HubProcess,
) -> Result<(Instant, u64), BenchError> {
    let pool = database.pool(1).await?;
    let deadline = Instant::now() + PATIENCE;
    let mut is_open = true;
    while is_open && Instant::now() < deadline {
        is_open = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM hub_outbox.messages WHERE broker = ANY ($1) AND due_at IS NOT NULL)",
        )
        .bind(brokers)
        .fetch_one(&pool)
        .await?;
        if is_open {
            hub.check()?;
            tokio::time::sleep(POLL).await;
        }
    }
    let at = Instant::now();
    let open: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM hub_outbox.messages WHERE broker = ANY ($1) AND due_at IS NOT NULL",
    )
    .bind(brokers)
    .fetch_one(&pool)
    .await?;
    pool.close().await;
    Ok((at, u64::try_from(open).unwrap_or_default()))
}

/// Settles the rows of the internal broker, so that only those of the others are open.
pub(crate) async fn without_internal(database: &Database) -> Result<(), BenchError> {
    let pool = database.pool(1).await?;
    sqlx::query(
        "UPDATE hub_outbox.messages SET status = 'published', due_at = NULL, settled_at = now() WHERE broker = $1",
    )
    .bind(INTERNAL)
    .execute(&pool)
    .await?;
    sqlx::raw_sql("VACUUM hub_outbox.messages").execute(&pool).await?;
    pool.close().await;
    Ok(())
}

/// A progress bar for a run of `rows` rows.
pub(crate) fn running(rows: u64, what: &str) -> ProgressBar {
    let bar = bar(rows, what.to_owned());
    bar.tick();
    bar
}
