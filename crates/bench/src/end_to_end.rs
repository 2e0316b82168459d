//! Figure (b): from the publisher to ten subscribers, with all roles. The rate is measured from the first publish to the last
//! arrival.

use std::time::Instant;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::error::BenchError;
use super::load::{NewEvent, PUBLISHES_IN_FLIGHT, register, subscription};
use super::report::{Figure, Goal, Measure, Unit, settled_measure};
use super::rig::{Rig, bar};
use super::statistics::per_second;
use super::{SyncMode, Tenth};

const FAN_OUT: usize = 10;

/// Publishes a tenth of `messages` events, each for ten subscriptions.
pub(crate) async fn measure(sync: SyncMode, messages: u64) -> Result<Figure, BenchError> {
    let count = messages.tenth();
    let total = count * FAN_OUT as u64;
    let rig = Rig::start(sync.interval(), total).await?;
    let bare = rig.bare_loop(total).await?;
    let url = rig.receiver.url();
    let subscriptions: Vec<_> =
        (0..FAN_OUT).map(|n| subscription(n, "default", url)).collect::<Result<_, _>>()?;
    register(&rig.js, &subscriptions, |_| {}).await?;
    let events: Vec<NewEvent> = (0..count)
        .map(|number| NewEvent::new(rig.js.names(), number, "default"))
        .collect::<Result<_, _>>()?;
    let expected: Vec<_> = events
        .iter()
        .flat_map(|event| subscriptions.iter().map(|subscription| event.webhook_id(subscription)))
        .collect();
    let hub = rig.whole_hub().await?;

    let progress = bar(total, format!("(b) sync {}: publishing and delivering", sync.name()));
    let before = rig.clocks(&hub)?;
    let started = Instant::now();
    let publishes = stream::iter(&events).map(|event| event.publish(&rig.js));
    publishes.buffer_unordered(PUBLISHES_IN_FLIGHT).try_collect::<()>().await?;
    rig.wait_for(&expected, &progress).await;
    let settled = rig.wait_until_settled().await?;
    let processor = rig.clocks(&hub)?.since(before, total);
    progress.finish_and_clear();
    hub.stop().await?;

    let (arrivals, rate) = {
        let tally = rig.receiver.tally();
        let arrivals = tally.account(&expected);
        let rate = tally.span().and_then(|(_, last)| {
            per_second(arrivals.expected - arrivals.missing, last.saturating_duration_since(started))
        });
        (arrivals, rate.unwrap_or(0.0))
    };
    rig.stop().await?;
    let measure = Measure::new("", rate, Unit::DeliveriesPerSecond, Some(bare.per_second()))
        .aim(Some(Goal::at_least(rate, 12_000.0, "12,000/s")));
    let title = "end to end with a fan-out of 10";
    let settled_rate =
        per_second(total.saturating_sub(settled.still_owed), settled.at.saturating_duration_since(started));
    let measures = vec![measure, settled_measure(settled_rate)];
    Ok(Figure {
        figure: "b",
        title,
        sync: sync.name(),
        measures,
        arrivals,
        still_owed: settled.still_owed,
        processor,
        with: Vec::new(),
    })
}
