//! Figure `outage`: the cost of a broker that is down for the others. The same rows, of the internal broker, of an external
//! one that is up and of one that is down, are relayed twice: with the broker that is down in the settings, and without it, so
//! that its rows are not processed. The two runs alternate in their order, as in figure (o). Then the broker starts, and all
//! its rows must arrive.

use super::Bench;
use super::ledger::Ledger;
use super::load::{EventsToRaise, external, running, settings, template, wait_until_settled};
use super::postgres::Database;
use crate::child::{HubProcess, free_address};
use crate::error::BenchError;
use crate::report::{Figure, Goal, Measure, Unit};
use crate::rig::Rig;
use crate::statistics::{middle, ratio};
use crate::tally::Account;
use hub_testkit::broker_process::SyncInterval;
use integration_hub::domain::producer_outbox::INTERNAL;

const STREAMS: u64 = 1_000;
const UP: &str = "up";
const DOWN: &str = "down";

/// The result of one run.
struct Run {
    /// Rows per second of the internal broker and the external one that is up.
    rate: f64,
    arrivals: Account,
    still_owed: u64,
}

pub(crate) async fn measure(bench: &Bench<'_>) -> Result<Figure, BenchError> {
    let load = EventsToRaise { events: bench.rows, streams: STREAMS, brokers: &[UP, DOWN] };
    let loaded = template(bench.postgres, load).await?;
    let (mut beside_outage, mut without) = (Vec::new(), Vec::new());
    for pair in 0..bench.pairs {
        for is_configured in [pair % 2 == 0, pair % 2 == 1] {
            let run = run(bench, &loaded, is_configured).await?;
            if is_configured { beside_outage.push(run) } else { without.push(run) }
        }
    }
    bench.postgres.remove(loaded).await?;
    let (mut arrivals, mut still_owed) = (Account::default(), 0);
    for run in beside_outage.iter().chain(&without) {
        arrivals += run.arrivals;
        still_owed += run.still_owed;
    }
    let kept: Vec<f64> = beside_outage
        .iter()
        .zip(&without)
        .map(|(beside, without)| ratio(beside.rate, without.rate).unwrap_or(0.0))
        .collect();
    let end = |pick: fn(f64, f64) -> f64| kept.iter().copied().reduce(pick).unwrap_or(0.0);
    let rate = |runs: &[Run]| middle(&runs.iter().map(|run| run.rate).collect::<Vec<_>>());
    let middle_kept = middle(&kept);
    Ok(Figure {
        figure: "outage",
        title: "the other brokers while one is down",
        sync: "default",
        measures: vec![
            Measure::new("kept of the rate", middle_kept, Unit::Ratio, None).aim(Some(Goal::at_least(
                middle_kept,
                0.98,
                "0.98",
            ))),
            Measure::new("lowest pair", end(f64::min), Unit::Ratio, None),
            Measure::new("highest pair", end(f64::max), Unit::Ratio, None),
            Measure::new("with one down", rate(&beside_outage), Unit::RowsPerSecond, None),
            Measure::new("without it", rate(&without), Unit::RowsPerSecond, None),
        ],
        arrivals,
        still_owed,
        processor: None,
        with: bench.conditions.clone(),
    })
}

async fn run(bench: &Bench<'_>, loaded: &Database, is_configured: bool) -> Result<Run, BenchError> {
    let database = bench.postgres.database(Some(loaded)).await?;
    let inner = Rig::start(SyncInterval::Default, bench.rows).await?;
    let up = Rig::start(SyncInterval::Default, bench.rows).await?;
    let away = free_address()?;
    // The external brokers are servers of other hubs, whose events streams store their rows.
    let destination = up.js.names().event("{type}");
    let mut more = settings(&database) + &external(UP, "nats", &up.broker_url(), &destination);
    if is_configured {
        more += &external(DOWN, "nats", &format!("nats://{away}"), &destination);
    }
    let progress = running(bench.rows, if is_configured { "relaying beside an outage" } else { "relaying" });
    let mut hub = inner.relay(&more)?;
    inner.wait_for_events(bench.rows, &mut hub).await?;
    up.wait_for_events(bench.rows, &mut hub).await?;
    let (_, mut still_owed) = wait_until_settled(&database, &[INTERNAL, UP], &mut hub).await?;
    progress.finish_and_clear();
    let (mut arrivals, mut spans) = (Account::default(), Vec::new());
    for rig in [&inner, &up] {
        let mut ledger = Ledger::new(bench.rows, STREAMS);
        spans.extend(ledger.read(&rig.js).await?);
        arrivals += ledger.account();
    }
    let span = spans.into_iter().reduce(|all, span| all.and(span.first).and(span.last));
    let rate = span.map_or(0.0, |span| span.rate(arrivals.expected - arrivals.missing));
    if is_configured {
        let (account, open) = end_outage(bench, &database, &away, &mut hub).await?;
        arrivals += account;
        still_owed += open;
    }
    hub.stop().await?;
    inner.stop().await?;
    up.stop().await?;
    bench.postgres.remove(database).await?;
    Ok(Run { rate, arrivals, still_owed })
}

/// Starts the broker that was down, and waits for its rows.
async fn end_outage(
    bench: &Bench<'_>,
    database: &Database,
    address: &str,
    hub: &mut HubProcess,
) -> Result<(Account, u64), BenchError> {
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
    let progress = running(bench.rows, "relaying to the broker that came back");
    let down = Rig::start_at(port, SyncInterval::Default, bench.rows).await?;
    down.wait_for_events(bench.rows, hub).await?;
    let (_, open) = wait_until_settled(database, &[DOWN], hub).await?;
    progress.finish_and_clear();
    let mut ledger = Ledger::new(bench.rows, STREAMS);
    ledger.read(&down.js).await?;
    down.stop().await?;
    Ok((ledger.account(), open))
}
