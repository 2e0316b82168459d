//! Figure `redis`: the rate of the relay from preloaded rows to a Redis stream, compared with the OutboxProcessor of Protean
//! on the same PostgreSQL and Redis servers. Both have one row per event: the rows of the internal broker are settled before.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;

use super::Bench;
use super::ledger::Ledger;
use super::load::{
    EventsToRaise, external, running, settings, template, wait_until_settled, without_internal,
};
use super::measured_redis::MeasuredRedis;
use crate::error::BenchError;
use crate::report::{Figure, Goal, Measure, Unit, grouped};
use crate::rig::{PATIENCE, Rig};
use hub_testkit::broker_process::SyncInterval;
use hub_testkit::owned_process::{OwnedProcess, PYTHON, Plan};

const STREAMS: u64 = 1_000;
const BROKER: &str = "redis";
/// The Redis stream: the category of the streams of the rows.
const STREAM: &str = "bench";
/// The Protean program.
const SCRIPT: &str = include_str!("protean.py");
/// Protean publishes one row of this many, because it is slower, and its rate does not depend on their number.
const PROTEAN_SHARE: u64 = 50;
const LEAST_FOR_PROTEAN: u64 = 100;
/// Time limit for raising the events of Protean, some hundred each second.
const WRITTEN_WITHIN: Duration = Duration::from_secs(600);
const PROTEAN: &str = "Protean's OutboxProcessor";

/// `protean` is the path of a Python interpreter with Protean.
pub(crate) async fn measure(
    bench: &Bench<'_>,
    program: &Path,
    protean: Option<&Path>,
) -> Result<Figure, BenchError> {
    let redis = MeasuredRedis::start(program).await?;
    let mut with = bench.conditions.clone();
    with.push(format!("Redis {}, default configuration", redis.version));
    let theirs = match protean {
        Some(python) => Some(run_protean(bench, &redis, python, &mut with).await?),
        None => None,
    };
    let load = EventsToRaise { events: bench.rows, streams: STREAMS, brokers: &[BROKER] };
    let database = template(bench.postgres, load).await?;
    without_internal(&database).await?;
    bench.postgres.checkpoint().await?;
    let rig = Rig::start(SyncInterval::Default, 0).await?;
    let progress = running(bench.rows, "relaying to Redis");
    let broker = external(BROKER, "redis", &redis.url, "{category}");
    let mut hub = rig.relay(&format!("{}{broker}", settings(&database)))?;
    let before = rig.clocks(&hub)?;
    redis.wait_for(STREAM, bench.rows, PATIENCE, || hub.check()).await?;
    let (_, still_owed) = wait_until_settled(&database, &[BROKER], &mut hub).await?;
    let processor = rig.clocks(&hub)?.since(before, bench.rows);
    progress.finish_and_clear();
    hub.stop().await?;
    rig.stop().await?;
    bench.postgres.remove(database).await?;
    let mut ledger = Ledger::new(bench.rows, STREAMS);
    let span = redis.read(STREAM, &mut ledger).await?;
    let arrivals = ledger.account();
    let rate = span.map_or(0.0, |span| span.rate(bench.rows - arrivals.missing));
    let measure = Measure::new("", rate, Unit::RowsPerSecond, theirs).against(PROTEAN);
    let goal = measure.ratio.map(|times| Goal::at_least(times, 20.0, "20 times Protean's"));
    Ok(Figure {
        figure: "redis",
        title: "relay, PostgreSQL to Redis Streams",
        sync: "default",
        measures: vec![measure.aim(goal)],
        arrivals,
        still_owed,
        processor,
        with,
    })
}

/// The output of the Protean process after its rows are written.
#[derive(Deserialize)]
struct Prepared {
    /// The Redis stream that it publishes to.
    stream: String,
    settings: String,
}

/// Lets Protean write its rows and publish them. Returns the rate from its first entry in the Redis stream to the last.
async fn run_protean(
    bench: &Bench<'_>,
    redis: &MeasuredRedis,
    python: &Path,
    with: &mut Vec<String>,
) -> Result<f64, BenchError> {
    let rows = (bench.rows / PROTEAN_SHARE).max(LEAST_FOR_PROTEAN);
    let database = bench.postgres.database(None).await?;
    let progress = running(rows, "Protean: raising and publishing to Redis");
    let (mut child, prepared) = start(python, &database.url, &redis.url, rows).await?;
    let entries = redis.wait_for(&prepared.stream, rows, PATIENCE, || is_running(&mut child)).await?;
    progress.finish_and_clear();
    child.kill().await.map_err(|source| BenchError::Spawn { what: PROTEAN, source })?;
    let span = redis.read(&prepared.stream, &mut Ledger::new(rows, 1)).await?;
    bench.postgres.remove(database).await?;
    if entries != rows {
        let text = format!("{entries} of {rows} rows are in Redis");
        return Err(BenchError::Answer { what: PROTEAN, text });
    }
    with.push(format!("{PROTEAN}: {} rows, {}", grouped(rows), prepared.settings));
    Ok(span.map_or(0.0, |span| span.rate(rows)))
}

/// Starts Protean, and waits until its rows are written. The URL of the database contains a password, so it is passed in the
/// environment.
async fn start(
    python: &Path,
    database_url: &str,
    redis_url: &str,
    rows: u64,
) -> Result<(OwnedProcess, Prepared), BenchError> {
    let spawn = |source| BenchError::Spawn { what: PROTEAN, source };
    let mut child = Plan::new(python)
        .pass(PYTHON)
        .args(["-c", SCRIPT, &rows.to_string()])
        .env("BENCH_DATABASE_URL", database_url)
        .env("BENCH_REDIS_URL", redis_url)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(spawn)?;
    let mut lines = BufReader::new(child.take_stdout().expect("its output is piped")).lines();
    let line = timeout(WRITTEN_WITHIN, lines.next_line()).await;
    let line = line.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(spawn)?;
    let Some(line) = line else {
        let status = child.wait().await.map_err(spawn)?;
        let log = "its output is above; is Protean installed for this Python?".to_owned();
        return Err(BenchError::Ended { what: PROTEAN, status, log });
    };
    let prepared = serde_json::from_str(&line);
    Ok((child, prepared.map_err(|_| BenchError::Answer { what: PROTEAN, text: line })?))
}

fn is_running(child: &mut OwnedProcess) -> Result<(), BenchError> {
    match child.try_wait().map_err(|source| BenchError::Spawn { what: PROTEAN, source })? {
        None => Ok(()),
        Some(status) => Err(BenchError::Ended { what: PROTEAN, status, log: String::new() }),
    }
}
