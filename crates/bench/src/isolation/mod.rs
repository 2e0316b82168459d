//! `hub-bench isolation`: what healthy subscriptions keep while other endpoints misbehave, with the default settings. Each
//! scenario has an empty broker and a hub of its own: 50 healthy subscriptions with 500 deliveries per second, measured first
//! in calm and then during the disturbance, in one run.

mod endpoints;
mod load;
mod row;
mod scenario;
mod window;

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum as _};
use hub_testkit::broker_process::SyncInterval;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::error::BenchError;
use super::load::DOMAIN;
use super::process::resident_bytes;
use super::rig::{PATIENCE, Rig, bar};
use super::tally::WebhookId;
use super::write_line;
use endpoints::Endpoints;
use load::{LoadPublisher, Sent};
use row::Row;
use scenario::{FULL_LENGTH, Prelude, Scenario};
use window::{Expected, Healthy};

/// Time of publishing before the first window, to open connections and fill caches.
const WARM_UP: Duration = Duration::from_secs(3);
const SAMPLED_EVERY: Duration = Duration::from_millis(250);
const POLL: Duration = Duration::from_millis(100);
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// Envelopes of the preludes, to size the outbox.
const ROOM: u64 = 300_000;

#[derive(Debug, Args)]
pub(crate) struct IsolationOptions {
    /// Scenarios to measure [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME", value_enum, hide_possible_values = false)]
    scenario: Vec<Scenario>,
    /// Length of the disturbance (some scenarios take a multiple of it), and up to 30 also of the calm before. Backlogs are
    /// smaller below 30
    #[arg(long, value_name = "N", default_value_t = FULL_LENGTH.as_secs(), value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
}

/// Measures each scenario. Writes each row at once, or all rows as JSON at the end. Returns true if every healthy delivery
/// arrived.
pub(crate) async fn run(options: IsolationOptions, json: bool) -> Result<bool, BenchError> {
    let scenarios = match &options.scenario[..] {
        [] => Scenario::value_variants(),
        chosen => chosen,
    };
    if !json {
        write_line(&Row::head()).await?;
    }
    let mut rows = Vec::new();
    for scenario in scenarios {
        let row = measure(*scenario, Duration::from_secs(options.seconds)).await?;
        if !json {
            write_line(&row.line()).await?;
        }
        rows.push(row);
    }
    if json {
        let text = serde_json::to_string_pretty(&rows);
        write_line(&text.map_err(|error| BenchError::Output(error.into()))?).await?;
    }
    Ok(rows.iter().all(|row| row.missing == 0))
}

async fn measure(scenario: Scenario, seconds: Duration) -> Result<Row, BenchError> {
    let disturbance = scenario.disturbance();
    let (calm, length) = (seconds.min(FULL_LENGTH), seconds * disturbance.times);
    let prelude = disturbance.prelude.scaled(seconds);
    let rig = Rig::start(SyncInterval::Default, ROOM).await?;
    let endpoints = Endpoints::start(disturbance.endpoints, disturbance.before).await?;
    let mut notes = Vec::new();
    let urls =
        if disturbance.unresolved { unresolved(&endpoints, &mut notes) } else { endpoints.urls().to_vec() };
    let load = LoadPublisher::new(rig.js.clone(), rig.receiver.url(), &urls, &disturbance).await?;
    let mut hub = rig.whole_hub().await?;
    let progress = bar(0, format!("{}: calm", scenario.name()));
    let stop = CancellationToken::new();
    let publishing = tokio::spawn(load.clone().run(stop.clone()));
    let _stops = stop.clone().drop_guard();
    let pid = hub.pid();

    tokio::time::sleep(WARM_UP.min(seconds)).await;
    let calm_from = Instant::now();
    let memory_before = watched(pid, calm).await?;
    let calm_until = Instant::now();

    progress.set_message(format!("{}: before the disturbance", scenario.name()));
    let mut memory_peak = 0;
    let prepared = {
        let mut preparing = std::pin::pin!(prepare(&rig, &load, prelude));
        loop {
            tokio::select! {
                prepared = &mut preparing => break prepared,
                sampled = watched(pid, SAMPLED_EVERY) => memory_peak = sampled?.max(memory_peak),
            }
        }
    };
    prepared?;
    hub.check()?;

    progress.set_message(format!("{}: disturbed", scenario.name()));
    let accepted = endpoints.accepted();
    let from = Instant::now();
    endpoints.set(disturbance.during);
    load.disturb();
    let replay = async {
        match prelude {
            Prelude::DeadLetters(_) => hub.run(&["dlt", "replay", "--all"]).await,
            _ => Ok(()),
        }
    };
    let (peak, drained, replayed) =
        tokio::join!(watched(pid, length), drained(&endpoints, accepted, prelude, length), replay);
    replayed?;
    memory_peak = memory_peak.max(peak?);
    let until = from + length;
    stop.cancel();
    let sent: Vec<Sent> = publishing.await??;
    hub.check()?;
    let ids: Vec<WebhookId> = sent.iter().map(|(id, _)| *id).collect();
    rig.wait_for(&ids, &progress).await;
    progress.finish_and_clear();

    notes.extend(further_notes(&rig, scenario, drained, prelude).await?);
    let measured = Instant::now();
    let expected: Vec<Expected> = {
        let tally = rig.receiver.tally();
        let one =
            |(id, published): &Sent| Expected { published: *published, arrived: tally.first_arrival(*id) };
        sent.iter().map(one).collect()
    };
    // A hub with hanging deliveries needs its whole grace period to stop; it is dropped instead.
    drop(hub);
    let refused = load.refused();
    // It has a connection, which must not outlive the broker.
    drop(load);
    rig.stop().await?;
    let row = Row {
        scenario: scenario.name(),
        seconds: length.as_secs_f64(),
        before: Healthy::in_window(&expected, calm_from, calm_until, measured),
        during: Healthy::in_window(&expected, from, until, measured),
        kept: 0.0,
        memory_before_mb: megabytes(memory_before),
        memory_peak_mb: megabytes(memory_peak),
        drain: matches!(prelude, Prelude::Waiting(_)).then_some(drained.per_second),
        refused,
        expected: expected.len() as u64,
        missing: expected.iter().filter(|one| one.arrived.is_none()).count() as u64,
        goals: Vec::new(),
        notes,
    };
    Ok(row.judged(disturbance.every_second, disturbance.compressed))
}

/// The largest resident memory of a process during this time, in bytes.
async fn watched(pid: u32, length: Duration) -> Result<u64, BenchError> {
    let started = Instant::now();
    let mut most = resident_bytes(pid)?;
    while started.elapsed() < length {
        tokio::time::sleep(SAMPLED_EVERY.min(length.saturating_sub(started.elapsed()))).await;
        most = most.max(resident_bytes(pid)?);
    }
    Ok(most)
}

/// Publishes what the disturbance finds, and waits until it is where it belongs.
async fn prepare(rig: &Rig, load: &Arc<LoadPublisher>, prelude: Prelude) -> Result<(), BenchError> {
    match prelude {
        Prelude::Nothing => Ok(()),
        Prelude::Burst(count) => load.fill(count).await,
        Prelude::Waiting(count) => {
            load.fill(count).await?;
            // Healthy envelopes leave at once, so these are the waiting ones.
            reached(rig, &rig.js.names().outbox_stream(DOMAIN), count / 2).await
        }
        Prelude::DeadLetters(count) => {
            load.fill(count).await?;
            reached(rig, &rig.js.names().dlt_stream(DOMAIN), count).await
        }
    }
}

/// Waits until a stream has a number of messages, or no more arrive.
async fn reached(rig: &Rig, stream: &str, count: u64) -> Result<(), BenchError> {
    let (mut most, mut since) = (0, Instant::now());
    loop {
        let there = rig.js.stream_info(stream).await?.state.messages;
        if there > most {
            (most, since) = (there, Instant::now());
        }
        if there >= count {
            return Ok(());
        }
        if since.elapsed() >= PATIENCE {
            let text = format!("{stream} has {there} messages, {count} are expected");
            return Err(BenchError::Answer { what: "the preparation of the disturbance", text });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What the endpoints got of the envelopes that had waited for them.
#[derive(Debug, Clone, Copy, Default)]
struct EndpointDrain {
    arrived: u64,
    /// From the first to the last of them.
    per_second: f64,
}

/// Waits until all of it has arrived, or until the end of the disturbance.
async fn drained(endpoints: &Endpoints, before: u64, prelude: Prelude, length: Duration) -> EndpointDrain {
    let (Prelude::Waiting(count) | Prelude::DeadLetters(count)) = prelude else {
        return EndpointDrain::default();
    };
    let started = Instant::now();
    let (mut arrived, mut first, mut last) = (0, started, started);
    while arrived < count && started.elapsed() < length {
        tokio::time::sleep(DRAIN_POLL).await;
        let now = endpoints.accepted() - before;
        if now > arrived {
            last = Instant::now();
            first = if arrived == 0 { last - DRAIN_POLL } else { first };
            arrived = now;
        }
    }
    let per_second = crate::statistics::per_second(arrived, last.saturating_duration_since(first));
    EndpointDrain { arrived, per_second: per_second.unwrap_or(0.0) }
}

async fn further_notes(
    rig: &Rig,
    scenario: Scenario,
    drained: EndpointDrain,
    prelude: Prelude,
) -> Result<Option<String>, BenchError> {
    let EndpointDrain { arrived, per_second } = drained;
    Ok(match (scenario, prelude) {
        (Scenario::Lanes300, _) => {
            let lanes = rig.js.consumer_names(&rig.js.names().outbox_stream(DOMAIN)).await?;
            Some(format!("{} lanes besides the shared one", lanes.len().saturating_sub(1)))
        }
        (_, Prelude::Waiting(count)) => Some(format!("{arrived} of {count} waiting ones arrived")),
        (_, Prelude::DeadLetters(count)) => {
            Some(format!("{arrived} of {count} dead letters arrived, {per_second:.0}/s"))
        }
        _ => None,
    })
}

/// URLs whose names do not resolve. The resolver of this machine sends the names of `.invalid` to its name servers; unless
/// these are on this machine, the names have a label of 64 characters, which the resolver rejects by itself.
fn unresolved(endpoints: &Endpoints, notes: &mut Vec<String>) -> Vec<Url> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let local = name_servers_are_local(&text);
    if !local {
        notes.push("names with a label of 64 characters, because the name servers are remote".to_owned());
    }
    let host = |number: usize| if local { format!("name-{number}") } else { format!("{number:064}") };
    (0..endpoints.urls().len())
        .map(|number| format!("http://{}.invalid/", host(number)).parse().expect("a name makes a URL"))
        .collect()
}

fn name_servers_are_local(resolv_conf: &str) -> bool {
    let mut servers = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.all(|server| server.trim().parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()))
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_invalid_are_looked_up_on_this_machine_only() {
        assert!(name_servers_are_local(""));
        assert!(name_servers_are_local("search x\nnameserver 127.0.0.53\nnameserver ::1\n"));
        assert!(!name_servers_are_local("nameserver 127.0.0.53\nnameserver 192.0.2.1\n"));
    }
}
