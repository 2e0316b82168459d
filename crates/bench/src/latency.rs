//! Figure (c): the time from the call that publishes an event to its arrival at the only subscriber, without other load.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use indicatif::ProgressBar;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::SyncMode;
use super::error::BenchError;
use super::load::{NewEvent, register, subscription};
use super::report::{Figure, Goal, Measure, Unit};
use super::rig::{Rig, bar};
use super::statistics::percentile;
use super::tally::WebhookId;

const PER_SECOND: u32 = 50;
/// Events that are sent first and not measured, to open connections and fill caches.
const WARM_UP: u64 = 50;

/// Publishes 50 events each second for `duration`.
pub(crate) async fn measure(sync: SyncMode, duration: Duration) -> Result<Figure, BenchError> {
    let count = (duration.as_secs_f64() * f64::from(PER_SECOND)).ceil() as u64;
    let rig = Rig::start(sync.interval(), count).await?;
    let bare = of_the_client_alone(&rig, count, sync).await?;
    let subscription = subscription(0, "default", rig.receiver.url())?;
    register(&rig.js, std::slice::from_ref(&subscription), |_| {}).await?;
    let hub = rig.whole_hub().await?;
    let progress = bar(WARM_UP + count, format!("(c) sync {}: 50 events each second", sync.name()));
    let js = rig.js.clone();
    let sent = paced(WARM_UP + count, &progress, move |number| {
        let (js, subscription) = (js.clone(), subscription.clone());
        async move {
            let event = NewEvent::new(js.names(), number, "default")?;
            let started = Instant::now();
            event.publish(&js).await?;
            Ok((event.webhook_id(&subscription), started))
        }
    })
    .await?;
    let expected: Vec<WebhookId> = sent.iter().map(|(id, _)| *id).collect();
    rig.wait_for(&expected, &progress).await;
    let still_owed = rig.wait_until_settled().await?.still_owed;
    progress.finish_and_clear();
    hub.stop().await?;
    let arrivals = rig.receiver.tally().account(&expected);
    let latencies = latencies(&rig, &sent);
    rig.stop().await?;
    let measures = [(50.0, 2.0, "2 ms"), (99.0, 5.0, "5 ms")].map(|(percent, aim, shown)| {
        let value = percentile(&latencies, percent).map_or(f64::INFINITY, millis);
        Measure::new(format!("p{percent}"), value, Unit::Milliseconds, percentile(&bare, percent).map(millis))
            .aim(Some(Goal::below(value, aim, shown)))
    });
    Ok(Figure {
        figure: "c",
        title: "latency from publish to arrival at 50 events/s",
        sync: sync.name(),
        measures: measures.into(),
        arrivals,
        still_owed,
        processor: None,
        with: Vec::new(),
    })
}

/// The latencies of the bare client, from the call to the arrival.
async fn of_the_client_alone(rig: &Rig, count: u64, sync: SyncMode) -> Result<Vec<Duration>, BenchError> {
    let body: Bytes = vec![b'x'; NewEvent::new(rig.js.names(), 0, "default")?.delivered_bytes()].into();
    let progress = bar(WARM_UP + count, format!("(c) sync {}: the bare client", sync.name()));
    let (client, url) = (rig.client.clone(), rig.receiver.url().clone());
    let sent = paced(WARM_UP + count, &progress, move |number| {
        let (client, url, body) = (client.clone(), url.clone(), body.clone());
        async move {
            let id = WebhookId::text(number);
            let started = Instant::now();
            client.post(&url, &id, body).await?;
            let id = WebhookId::read(id.as_bytes()).expect("the text of an id reads as one");
            Ok((id, started))
        }
    })
    .await?;
    progress.finish_and_clear();
    let latencies = latencies(rig, &sent);
    rig.receiver.clear();
    Ok(latencies)
}

/// Calls `send` with 0, 1, … at the rate of the figure, without waiting for earlier calls. Returns the results by number.
async fn paced<F, T>(total: u64, bar: &ProgressBar, send: F) -> Result<Vec<(WebhookId, Instant)>, BenchError>
where
    F: Fn(u64) -> T,
    T: Future<Output = Result<(WebhookId, Instant), BenchError>> + Send + 'static,
{
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut calls = JoinSet::new();
    for number in 0..total {
        ticks.tick().await;
        let call = send(number);
        calls.spawn(async move { (number, call.await) });
        bar.set_position(number + 1);
    }
    let mut sent = HashMap::new();
    while let Some(call) = calls.join_next().await {
        let (number, result) = call?;
        sent.insert(number, result?);
    }
    Ok((0..total).filter_map(|number| sent.remove(&number)).collect())
}

/// The latencies without the warm-up; ids that did not arrive have none.
fn latencies(rig: &Rig, sent: &[(WebhookId, Instant)]) -> Vec<Duration> {
    let tally = rig.receiver.tally();
    sent.iter()
        .skip(WARM_UP as usize)
        .filter_map(|(id, started)| Some(tally.first_arrival(*id)?.saturating_duration_since(*started)))
        .collect()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
