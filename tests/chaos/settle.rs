//! The end of a plan: everything is drained and replayed, and the accounts are made up.

use std::time::{Duration, SystemTime};

use async_nats::jetstream;
use futures_util::StreamExt;
use tokio::time::Instant;

use crate::accounts::{Arrival, SetAside};
use crate::load::{KEYS, path};
use crate::stage::Stage;
use crate::support::TestClient;

/// Time limit until nothing is left. An event of a killed process is delivered again after 30 s.
const LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(100);
/// Interval of the operator's replays.
const REPLAY_EVERY: Duration = Duration::from_secs(4);

/// Waits until every process is ready and no event, envelope, advisory or dead letter is left, while an operator replays the
/// dead letters. Returns what is left after the time limit.
pub(crate) async fn drain(stage: &mut Stage) -> Result<(), String> {
    let deadline = Instant::now() + LIMIT;
    let mut replayed = Instant::now();
    let mut empty = 0;
    loop {
        let mut left = match left(&stage.client.context).await {
            Ok(left) => left,
            Err(error) => vec![(error, 0)],
        };
        if let Err(process) = stage.hubs.are_ready().await {
            left.push((process, 0));
        }
        // Streams are read one after the other: twice, so that what moved meanwhile is seen.
        empty = if left.is_empty() { empty + 1 } else { 0 };
        if empty == 2 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(format!("left after {LIMIT:?}: {left:?}"));
        }
        if left.iter().any(|(name, _)| name.ends_with("_DLT")) && replayed.elapsed() >= REPLAY_EVERY {
            // Again at the next interval if it fails.
            let _ = stage.operator.cli(&["dlt", "replay", "--all"]).await;
            replayed = Instant::now();
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The streams with work and their numbers of messages.
async fn left(context: &jetstream::Context) -> Result<Vec<(String, u64)>, String> {
    let (mut streams, mut left, mut seen) = (context.streams(), Vec::new(), 0);
    while let Some(stream) = streams.next().await {
        let stream = stream.map_err(|error| error.to_string())?;
        let work = ["OUTBOX", "EVENTS", "ADVISORIES"].iter().any(|part| stream.config.name.contains(part));
        seen += usize::from(work);
        if work && stream.state.messages > 0 {
            left.push((stream.config.name, stream.state.messages));
        }
    }
    // Two for each domain, events and advisories.
    if seen < 2 * KEYS.len() + 2 { Err(format!("only {seen} streams are listed")) } else { Ok(left) }
}

/// Everything that the endpoints have accepted. `started` is the moment from which times count.
pub(crate) fn arrivals(stage: &Stage, started: SystemTime) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    for subscriber in &stage.subscribers {
        for request in stage.receiver.received(&path(subscriber.id)) {
            if request.answered.is_some_and(|status| (200..300).contains(&status)) {
                arrivals.push(Arrival {
                    subscription: subscriber.id,
                    event: request.json()["id"].as_str().unwrap_or_default().to_owned(),
                    webhook_id: request.webhook_id().to_owned(),
                    at: request.arrived_at.duration_since(started).unwrap_or_default(),
                });
            }
        }
    }
    arrivals
}

/// The dead letters that are left, and the rejected events.
pub(crate) async fn set_aside(client: &TestClient) -> Vec<SetAside> {
    let mut all = Vec::new();
    for (_, domain, _) in KEYS {
        all.extend(client.dead_letters(domain).await.into_iter().map(|entry| SetAside {
            subscription: Some(entry.letter.subscription),
            event: entry.letter.event_id,
            reason: entry.letter.reason.to_string(),
        }));
    }
    let Ok(rejected) = client.context.get_stream("HUB_REJECTED").await else { return all };
    let state = &rejected.cached_info().state;
    for sequence in state.first_sequence..=state.last_sequence {
        let Ok(message) = rejected.get_raw_message(sequence).await else { continue };
        let body: serde_json::Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let reason = message.headers.get("Hub-Reason").map(ToString::to_string);
        all.push(SetAside {
            subscription: None,
            event: body["user_id"].as_str().unwrap_or_default().to_owned(),
            reason: format!("rejected: {}", reason.unwrap_or_default()),
        });
    }
    all
}
