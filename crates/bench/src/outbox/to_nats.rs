//! Figure `nats`: the rate of the relay from preloaded rows to the events stream of the hub, with many streams and with one;
//! compared with a bare loop that reads and publishes the same payloads, without claims, marks and order.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, TryStreamExt};
use tokio::time::Instant;

use super::Bench;
use super::ledger::Ledger;
use super::load::{EventsToRaise, running, settings, template, wait_until_settled};
use super::postgres::Database;
use crate::error::BenchError;
use crate::load::PUBLISHES_IN_FLIGHT;
use crate::report::{Figure, Goal, Measure, Processor, Unit};
use crate::rig::Rig;
use crate::statistics::per_second;
use crate::tally::Account;
use hub_testkit::broker_process::SyncInterval;
use integration_hub::domain::producer_outbox::INTERNAL;
use integration_hub::nats::NatsError;

const STREAMS: u64 = 1_000;
/// Rows of one read of the bare loop: as many as in a claim of the default settings.
const READ_AT_ONCE: i64 = 500;

pub(crate) async fn measure(bench: &Bench<'_>) -> Result<Figure, BenchError> {
    let (mut measures, mut arrivals, mut still_owed, mut processor) =
        (Vec::new(), Account::default(), 0, None);
    for streams in [STREAMS, 1] {
        let load = EventsToRaise { events: bench.rows, streams, brokers: &[] };
        let loaded = template(bench.postgres, load).await?;
        let bare = of_the_client_alone(bench, &loaded).await?;
        let relayed = relay(bench, &loaded, streams).await?;
        bench.postgres.remove(loaded).await?;
        let name = if streams == 1 { "one stream".to_owned() } else { format!("{streams} streams") };
        let measure = Measure::new(name, relayed.rate, Unit::RowsPerSecond, Some(bare));
        let goal = (streams > 1).then(|| Goal::at_least(relayed.rate, 10_000.0, "10,000 rows/s"));
        measures.push(measure.aim(goal));
        let marked = Measure::new("until each row is marked", relayed.marked_rate, Unit::RowsPerSecond, None);
        measures.push(marked);
        arrivals += relayed.arrivals;
        still_owed += relayed.still_owed;
        processor = processor.or(relayed.processor);
    }
    let mut with = bench.conditions.clone();
    with.push(format!(
        "the bare loop: payloads read {READ_AT_ONCE} at a time and published, {PUBLISHES_IN_FLIGHT} in flight, without claims, marks and order"
    ));
    Ok(Figure {
        figure: "nats",
        title: "relay, PostgreSQL to NATS JetStream",
        sync: "default",
        measures,
        arrivals,
        still_owed,
        processor,
        with,
    })
}

struct Relayed {
    /// From the first message in the stream to the last, by the clock of the broker.
    rate: f64,
    /// From the start of the relay until every row is marked.
    marked_rate: f64,
    arrivals: Account,
    still_owed: u64,
    processor: Option<Processor>,
}

async fn relay(bench: &Bench<'_>, loaded: &Database, streams: u64) -> Result<Relayed, BenchError> {
    let database = bench.postgres.database(Some(loaded)).await?;
    let rig = Rig::start(SyncInterval::Default, bench.rows).await?;
    let progress = running(bench.rows, "relaying to NATS");
    let mut hub = rig.relay(&settings(&database))?;
    let before = rig.clocks(&hub)?;
    rig.wait_for_events(1, &mut hub).await?;
    let started = Instant::now();
    rig.wait_for_events(bench.rows, &mut hub).await?;
    let (settled_at, still_owed) = wait_until_settled(&database, &[INTERNAL], &mut hub).await?;
    let processor = rig.clocks(&hub)?.since(before, bench.rows);
    progress.finish_and_clear();
    hub.stop().await?;
    let mut ledger = Ledger::new(bench.rows, streams);
    let span = ledger.read(&rig.js).await?;
    rig.stop().await?;
    bench.postgres.remove(database).await?;
    let arrivals = ledger.account();
    Ok(Relayed {
        rate: span.map_or(0.0, |span| span.rate(bench.rows - arrivals.missing)),
        marked_rate: per_second(bench.rows - still_owed, settled_at - started).unwrap_or(0.0),
        arrivals,
        still_owed,
        processor,
    })
}

/// Reads the payloads by position and publishes them concurrently, each acknowledged.
async fn of_the_client_alone(bench: &Bench<'_>, loaded: &Database) -> Result<f64, BenchError> {
    let database = bench.postgres.database(Some(loaded)).await?;
    let rig = Rig::start(SyncInterval::Default, bench.rows).await?;
    let pool = database.pool(2).await?;
    let started = Instant::now();
    let pages = stream::try_unfold(0_i64, |after| {
        let pool = &pool;
        async move {
            let page: Vec<(i64, String, String)> = sqlx::query_as(
                "SELECT position, message_id, payload::text FROM hub_outbox.messages \
                 WHERE broker = 'internal' AND position > $1 ORDER BY position LIMIT $2",
            )
            .bind(after)
            .bind(READ_AT_ONCE)
            .fetch_all(pool)
            .await?;
            let last = page.last().map(|row| row.0);
            Ok::<_, BenchError>(last.map(|last| (page, last)))
        }
    });
    let subject = rig.js.names().event("user.created");
    let publish = |id: String, payload: String| {
        let (js, subject) = (&rig.js, &subject);
        async move {
            js.publish(subject, Bytes::from(payload), &[("Nats-Msg-Id", &id)]).await?;
            Ok::<_, NatsError>(())
        }
    };
    let rows = pages.map_ok(|page| stream::iter(page.into_iter().map(Ok))).try_flatten();
    let count = rows
        .map_ok(|(_, id, payload)| async { publish(id, payload).await.map_err(BenchError::Nats) })
        .try_buffer_unordered(PUBLISHES_IN_FLIGHT)
        .try_fold(0_u64, |count, ()| std::future::ready(Ok(count + 1)))
        .await?;
    let took: Duration = started.elapsed();
    pool.close().await;
    rig.stop().await?;
    bench.postgres.remove(database).await?;
    Ok(per_second(count, took).unwrap_or(0.0))
}
