//! `hub-bench outbox`: the figures of the producer outbox, with a real PostgreSQL server and real brokers.
//!
//! The relay is this program as a child process, as are the database and the brokers. This process raises the events and
//! reads the arrivals. Each figure starts with empty brokers and databases, and checks that every row arrived, how often, and
//! in the order of its stream.

mod archive;
mod latency;
mod ledger;
mod load;
mod measured_redis;
mod outage;
mod postgres;

mod to_nats;
mod to_redis;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use url::Url;

use super::Figures;
use super::error::BenchError;
use integration_hub::signals::Signals;
use postgres::Postgres;

#[derive(Debug, Args)]
pub(crate) struct OutboxOptions {
    /// Figures to measure. nats: preloaded rows to NATS JetStream, of 1,000 streams and of one; redis: to a Redis stream,
    /// compared with Protean's OutboxProcessor; latency: from the commit to a NATS subscriber; outage: the other brokers
    /// while one is down, in pairs; archive: a claim in a table with published rows
    #[arg(long, value_delimiter = ',', default_value = "nats,redis,latency,outage,archive")]
    figures: Vec<Name>,
    /// URL of a PostgreSQL server (14 or newer), with a role that may create databases; the bench creates its own databases
    /// there, and removes them [default: a private server]
    #[arg(long, value_name = "URL", env = "HUB_BENCH_DATABASE_URL", hide_env_values = true)]
    database_url: Option<Url>,
    /// Folder of initdb and postgres, for a private server [default: from PATH, or that of Debian]
    #[arg(long, value_name = "FOLDER")]
    postgres_bin: Option<PathBuf>,
    /// Path of the redis-server for figure redis [default: from PATH]
    #[arg(long, value_name = "PROGRAM")]
    redis_server: Option<PathBuf>,
    /// Path of a Python with Protean (pip install 'protean[redis,postgresql]==0.18.0'), for the comparison of figure redis
    #[arg(long, value_name = "PYTHON")]
    protean: Option<PathBuf>,
    /// Events of the figures nats, redis and outage
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    rows: u64,
    /// Published rows in the table of figure archive
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    archive_rows: u64,
    /// Pairs of runs of figure outage; use an even number, so that both orders are measured equally often
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Time that figure latency publishes
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    Nats,
    Redis,
    Latency,
    Outage,
    Archive,
}

/// The parameters of the figures.
struct Bench<'a> {
    postgres: &'a Postgres,
    /// The settings of the server and the build, for the report.
    conditions: Vec<String>,
    rows: u64,
    archive_rows: u64,
    pairs: u32,
    duration: Duration,
}

/// Time limit for removing the databases of the bench.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// Measures each figure and shows it at once. A signal ends the measurement, and the databases are removed; a second signal
/// ends that, too.
pub(crate) async fn run(
    options: OutboxOptions,
    figures: &mut Figures,
    signals: &mut Signals,
) -> Result<(), BenchError> {
    let postgres = tokio::select! {
        started = Postgres::start(options.database_url.clone(), options.postgres_bin.as_deref()) => started?,
        () = signals.next() => return Err(BenchError::Stopped),
    };
    let measured = tokio::select! {
        measured = measure(&options, &postgres, figures) => measured,
        () = signals.next() => Err(BenchError::Stopped),
    };
    // The databases of a given server would remain.
    let closed = tokio::select! {
        closed = tokio::time::timeout(CLOSE_LIMIT, postgres.close()) => closed,
        () = signals.next() => return Err(BenchError::Stopped),
    };
    measured.and(closed.unwrap_or(Err(BenchError::NotClosed { waited: CLOSE_LIMIT })))
}

async fn measure(
    options: &OutboxOptions,
    postgres: &Postgres,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    let mut conditions = vec![postgres.conditions().await?];
    if cfg!(debug_assertions) {
        conditions.push("the hub: a debug build, which is slower".to_owned());
    }
    let OutboxOptions { rows, archive_rows, pairs, duration, .. } = *options;
    let bench = Bench { postgres, conditions, rows, archive_rows, pairs, duration };
    for name in &options.figures {
        let figure = match name {
            Name::Nats => to_nats::measure(&bench).await?,
            Name::Redis => {
                let Some(program) = hub_testkit::redis_server::find(options.redis_server.as_deref()) else {
                    tracing::warn!(
                        "figure redis is skipped: no redis-server on PATH; install it (Debian: apt-get install redis-server), or set --redis-server"
                    );
                    continue;
                };
                if options.protean.is_none() {
                    tracing::warn!(
                        "figure redis is measured without Protean; for the comparison, set --protean to a Python with it (pip install 'protean[redis,postgresql]==0.18.0')"
                    );
                }
                to_redis::measure(&bench, &program, options.protean.as_deref()).await?
            }
            Name::Latency => latency::measure(&bench).await?,
            Name::Outage => outage::measure(&bench).await?,
            Name::Archive => archive::measure(&bench).await?,
        };
        figures.add(figure).await?;
    }
    Ok(())
}
