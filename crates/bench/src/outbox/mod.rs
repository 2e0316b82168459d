//! `hub-bench outbox`: the figures of the transactional outbox, on a real PostgreSQL and real brokers.
//!
//! The relay is this same program as a child process; the database and the brokers are processes of their
//! own; this process raises the events and reads what arrived. Each figure starts on brokers and in databases
//! with nothing else in them, and checks that every row arrived, how often, and in the order of its stream.

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
pub(crate) struct Options {
    /// nats: preloaded rows to NATS JetStream, over 1,000 streams and over one; redis: to a Redis stream,
    /// beside Protean's OutboxProcessor; latency: from the commit to a NATS subscriber; outage: the other brokers
    /// while one is down, in pairs; archive: a claim beside published rows
    #[arg(long, value_delimiter = ',', default_value = "nats,redis,latency,outage,archive")]
    figures: Vec<Name>,
    /// A PostgreSQL server (14 or newer) to measure with, as a role that may create databases: the bench makes
    /// databases of its own there, and removes them. Without it the bench starts a server of its own
    #[arg(long, value_name = "URL", env = "HUB_BENCH_DATABASE_URL", hide_env_values = true)]
    database_url: Option<Url>,
    /// The folder of initdb and postgres, for a server of the bench's own; else that of PATH, or Debian's
    #[arg(long, value_name = "FOLDER")]
    postgres_bin: Option<PathBuf>,
    /// The redis-server of figure redis; else that of PATH
    #[arg(long, value_name = "PROGRAM")]
    redis_server: Option<PathBuf>,
    /// A Python that has Protean (pip install 'protean[redis,postgresql]==0.18.0'), for figure redis: without it
    /// the relay is measured alone
    #[arg(long, value_name = "PYTHON")]
    protean: Option<PathBuf>,
    /// Events of the figures nats, redis and outage
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    rows: u64,
    /// Published rows that lie in the table in figure archive
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    archive_rows: u64,
    /// Pairs of runs of figure outage; an even number, so that each of the two goes first as often
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// How long figure latency publishes
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

/// What the figures are measured with.
struct Bench<'a> {
    postgres: &'a Postgres,
    /// What the report says of it.
    conditions: Vec<String>,
    rows: u64,
    archive_rows: u64,
    pairs: u32,
    duration: Duration,
}

/// For the removal of what was made on a server that is not ours.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// Measures each figure and shows it as soon as it is there. A signal ends the measuring; then the databases are
/// removed; a second one ends that too.
pub(crate) async fn run(
    options: Options,
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
    // A server that is not ours keeps what is not removed now.
    let closed = tokio::select! {
        closed = tokio::time::timeout(CLOSE_LIMIT, postgres.close()) => closed,
        () = signals.next() => return Err(BenchError::Stopped),
    };
    measured.and(closed.unwrap_or(Err(BenchError::NotClosed { waited: CLOSE_LIMIT })))
}

async fn measure(options: &Options, postgres: &Postgres, figures: &mut Figures) -> Result<(), BenchError> {
    let mut conditions = vec![postgres.conditions().await?];
    if cfg!(debug_assertions) {
        conditions.push("the hub: a debug build, which is slower".to_owned());
    }
    let Options { rows, archive_rows, pairs, duration, .. } = *options;
    let bench = Bench { postgres, conditions, rows, archive_rows, pairs, duration };
    for name in &options.figures {
        let figure = match name {
            Name::Nats => to_nats::measure(&bench).await?,
            Name::Redis => {
                let Some(program) = hub_testkit::redis_server::find(options.redis_server.as_deref()) else {
                    tracing::warn!(
                        "figure redis is left out: no redis-server on PATH (Debian: apt-get install redis-server); name one with --redis-server"
                    );
                    continue;
                };
                if options.protean.is_none() {
                    tracing::warn!(
                        "figure redis is measured without Protean: name a Python that has it with --protean (pip install 'protean[redis,postgresql]==0.18.0')"
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
