//! Figure (r): the time until a change of a subscription is in effect in every replica. Three hubs each deliver one domain,
//! so that a delivery shows which hub made it. One subscription selects events of all three domains, and gets a new path ten
//! times a second. Measured from the call that writes the change until the last hub delivers to the new path, and none to an
//! earlier one.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::SyncMode;
use super::error::BenchError;
use super::load::NewEvent;
use super::report::{Figure, Goal, Measure, Unit};
use super::rig::{Rig, bar};
use super::statistics::percentile;
use super::tally::WebhookId;
use integration_hub::domain::subscription::Subscription;

/// Domains of the default settings, each with a key of its own.
const DOMAINS: [(&str, &str); 3] = [
    ("user-lifecycle", "user.created"),
    ("access-session", "token.refreshed"),
    ("policy-client", "consent.given"),
];
/// Pause between events, of the domains in turn, so that each domain has an event every six milliseconds.
const EVENT_EVERY: Duration = Duration::from_millis(2);
const CHANGE_EVERY: Duration = Duration::from_millis(100);
/// Time of publishing after the last change.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// Changes a subscription for `duration`.
pub(crate) async fn measure(sync: SyncMode, duration: Duration) -> Result<Figure, BenchError> {
    let most = (duration + AFTERWARDS).as_micros() / EVENT_EVERY.as_micros();
    let rig = Rig::start(sync.interval(), u64::try_from(most).unwrap_or(u64::MAX)).await?;
    rig.js.put_subscription(&subscription(&rig, 0)?, None).await?;
    let mut hubs = Vec::new();
    for (domain, _) in DOMAINS {
        hubs.push(rig.replica(domain)?);
    }
    for hub in &mut hubs {
        hub.wait_until_ready(&rig.client).await?;
    }
    let stop = CancellationToken::new();
    let publisher = tokio::spawn(publish(rig.js.clone(), subscription(&rig, 0)?, stop.clone()));
    let changed = change(&rig, sync, duration).await;
    tokio::time::sleep(AFTERWARDS).await;
    stop.cancel();
    let (changed, published) = (changed?, publisher.await??);
    let expected: Vec<WebhookId> = published.iter().flatten().copied().collect();
    let progress = bar(expected.len() as u64, format!("(r) sync {}: delivering", sync.name()));
    rig.wait_for(&expected, &progress).await;
    progress.finish_and_clear();
    let still_owed = rig.wait_until_settled().await?.still_owed;
    for hub in hubs {
        hub.stop().await?;
    }
    let (arrivals, effects) = {
        let tally = rig.receiver.tally();
        let of_domain = |ids: &Vec<WebhookId>| {
            let arrival = |id: &WebhookId| Some((tally.first_arrival(*id)?, tally.first_path(*id)?));
            let mut arrivals: Vec<(Instant, u32)> = ids.iter().filter_map(arrival).collect();
            arrivals.sort_unstable();
            arrivals
        };
        let replicas: Vec<_> = published.iter().map(of_domain).collect();
        let in_all = |(number, at): (u32, Instant)| {
            let each = replicas.iter().map(|arrivals| in_effect(arrivals, number, at));
            // A change without an effect in a replica took infinitely long.
            each.map(|effect| effect.unwrap_or(Duration::MAX)).max().unwrap_or(Duration::MAX)
        };
        let effects: Vec<Duration> = (1..).zip(changed).map(in_all).collect();
        (tally.account(&expected), effects)
    };
    rig.stop().await?;
    let value =
        |percent| percentile(&effects, percent).map_or(f64::INFINITY, |took| took.as_secs_f64() * 1e3);
    let slowest = value(100.0);
    let measures = vec![
        Measure::new("p50", value(50.0), Unit::Milliseconds, None),
        Measure::new("slowest", slowest, Unit::Milliseconds, None)
            .aim(Some(Goal::below(slowest, 1_000.0, "1 s"))),
    ];
    Ok(Figure {
        figure: "r",
        title: "a change of a subscription in effect in three replicas",
        sync: sync.name(),
        measures,
        arrivals,
        still_owed,
        processor: None,
        with: Vec::new(),
    })
}

/// The subscription after a number of changes.
fn subscription(rig: &Rig, changes: usize) -> Result<Subscription, BenchError> {
    let url = rig.receiver.url();
    let value = json!({
        "id": "moving",
        "events": DOMAINS.map(|(_, key)| key),
        "delivery": {"url": url.join(&format!("hooks/{changes}")).unwrap_or_else(|_| url.clone())},
    });
    serde_json::from_value(value).map_err(BenchError::Subscription)
}

/// Writes the changes. Returns the start time of each write.
async fn change(rig: &Rig, sync: SyncMode, duration: Duration) -> Result<Vec<Instant>, BenchError> {
    let total = (duration.as_millis() / CHANGE_EVERY.as_millis()).max(1);
    let total = usize::try_from(total).unwrap_or(usize::MAX);
    let progress = bar(total as u64, format!("(r) sync {}: changing a subscription", sync.name()));
    let mut ticks = tokio::time::interval(CHANGE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut begun = Vec::new();
    for number in 1..=total {
        ticks.tick().await;
        let changed = subscription(rig, number)?;
        begun.push(Instant::now());
        rig.js.put_subscription(&changed, None).await?;
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(begun)
}

/// Publishes one event after the other, for the domains in turn, until `stop`. Returns the expected ids by domain.
async fn publish(
    js: integration_hub::nats::JetStream,
    subscription: Subscription,
    stop: CancellationToken,
) -> Result<[Vec<WebhookId>; 3], BenchError> {
    let mut ids = [const { Vec::new() }; 3];
    let mut ticks = tokio::time::interval(EVENT_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0.. {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        let domain = (number % DOMAINS.len() as u64) as usize;
        let event = NewEvent::of_key(js.names(), DOMAINS[domain].1, number, "default")?;
        event.publish(&js).await?;
        ids[domain].push(event.webhook_id(&subscription));
    }
    Ok(ids)
}

/// The time from `at` until the change `number` is in effect in a replica: at the first delivery (in order of time, each
/// with the change that it used) after the last one that used an earlier change. `None` if there is no such delivery.
fn in_effect(deliveries: &[(Instant, u32)], number: u32, at: Instant) -> Option<Duration> {
    let next = deliveries.iter().rposition(|(_, by)| *by < number).map_or(0, |last| last + 1);
    deliveries.get(next).map(|(seen, _)| seen.saturating_duration_since(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_in_effect_after_the_last_delivery_that_used_an_earlier_one() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let deliveries = [(at(0), 0), (at(10), 1), (at(20), 0), (at(30), 1), (at(40), 2), (at(50), 3)];
        let effect = |number, millis| in_effect(&deliveries, number, at(millis)).map(|took| took.as_millis());
        assert_eq!(effect(1, 5), Some(25), "one delivery used the old form at 20");
        assert_eq!(effect(2, 31), Some(9));
        assert_eq!(effect(3, 45), Some(5));
        assert_eq!(effect(4, 50), None, "never seen");
    }
}
