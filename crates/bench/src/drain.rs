//! Figure (a): the rate of draining a preloaded outbox. The envelopes are in the outbox before the hub starts; the rate is
//! measured from the first arrival to the last.

use super::error::BenchError;
use super::load::{preload, register, secured, subscription};
use super::report::{Figure, Goal, Measure, Processor, Unit, settled_measure};
use super::rig::{Rig, bar};
use super::statistics::per_second;
use super::tally::Account;
use super::{SyncMode, Tenth};
use integration_hub::domain::subscription::Subscription;

const SUBSCRIPTIONS: usize = 10;

/// Drains `messages` envelopes, spread over ten subscriptions.
pub(crate) async fn measure(sync: SyncMode, messages: u64) -> Result<Figure, BenchError> {
    let rig = rig(sync, messages).await?;
    let bare = rig.bare_loop(total(messages)).await?;
    let OutboxDrain { rate, settled_rate, arrivals, still_owed, processor, .. } =
        drain(&rig, "a", sync, messages, &plain(&rig)?, &[]).await?;
    rig.stop().await?;
    let measure = Measure::new("", rate, Unit::DeliveriesPerSecond, Some(bare.per_second()));
    let ratio = measure.ratio.unwrap_or(0.0);
    let measure = measure.aim(Some(Goal::at_least(rate, 20_000.0, "20,000/s"))).aim(Some(Goal::at_least(
        ratio,
        0.40,
        "0.40 of the bare loop",
    )));
    let title = "draining a preloaded outbox";
    Ok(Figure {
        figure: "a",
        title,
        sync: sync.name(),
        measures: vec![measure, settled_measure(settled_rate)],
        arrivals,
        still_owed,
        processor,
        with: Vec::new(),
    })
}

/// The result of draining one outbox.
pub(crate) struct OutboxDrain {
    /// Deliveries per second, from the first arrival to the last.
    pub(crate) rate: f64,
    /// The rate until every acknowledgement is stored.
    pub(crate) settled_rate: Option<f64>,
    pub(crate) arrivals: Account,
    pub(crate) still_owed: u64,
    pub(crate) processor: Option<Processor>,
    /// Records in the delivery log at the end.
    pub(crate) logged: u64,
}

fn total(messages: u64) -> u64 {
    messages.tenth() * SUBSCRIPTIONS as u64
}

/// A rig with room for `messages` in an outbox.
pub(crate) async fn rig(sync: SyncMode, messages: u64) -> Result<Rig, BenchError> {
    Rig::start(sync.interval(), total(messages)).await
}

/// The subscriptions of a drained outbox, without credentials.
pub(crate) fn plain(rig: &Rig) -> Result<Vec<Subscription>, BenchError> {
    (0..SUBSCRIPTIONS).map(|n| subscription(n, "default", rig.receiver.url())).collect()
}

/// The same, each with tokens and a signature.
pub(crate) fn with_credentials(rig: &Rig) -> Result<Vec<Subscription>, BenchError> {
    let (url, token_url) = (rig.receiver.url(), rig.receiver.token_url());
    let mut subscriptions: Vec<Subscription> =
        (0..SUBSCRIPTIONS).map(|n| secured(n, url, &token_url)).collect::<Result<_, _>>()?;
    for subscription in &mut subscriptions {
        rig.seal(subscription);
    }
    Ok(subscriptions)
}

/// Fills the outbox of a new rig for ten subscriptions and drains it, with further settings (`key=value`) for the hub.
pub(crate) async fn drain(
    rig: &Rig,
    figure: &str,
    sync: SyncMode,
    messages: u64,
    subscriptions: &[Subscription],
    set: &[&str],
) -> Result<OutboxDrain, BenchError> {
    let (events, total) = (messages.tenth(), total(messages));
    register(&rig.js, subscriptions, |_| {}).await?;
    let loading = bar(total, format!("({figure}) sync {}: filling the outbox", sync.name()));
    let expected = preload(&rig.js, events, subscriptions, |count| loading.inc(count)).await?;
    loading.finish_and_clear();

    let draining = bar(total, format!("({figure}) sync {}: draining it", sync.name()));
    let hub = rig.hub_with(&["outbox-processor"], set)?;
    let before = rig.clocks(&hub)?;
    rig.wait_for(&expected, &draining).await;
    let settled = rig.wait_until_settled().await?;
    let processor = rig.clocks(&hub)?.since(before, total);
    draining.finish_and_clear();
    hub.stop().await?;

    let (arrivals, rate, settled_rate) = {
        let tally = rig.receiver.tally();
        let arrivals = tally.account(&expected);
        let arrived = arrivals.expected - arrivals.missing;
        let (first, last) = tally.span().unwrap_or((settled.at, settled.at));
        // The first arrival starts the clock and is not counted in it.
        let rate = per_second(arrived.saturating_sub(1), last - first);
        let emptied = total.saturating_sub(settled.still_owed);
        (arrivals, rate.unwrap_or(0.0), per_second(emptied, settled.at.saturating_duration_since(first)))
    };
    let logged = rig.js.attempts_logged().await?;
    Ok(OutboxDrain { rate, settled_rate, arrivals, still_owed: settled.still_owed, processor, logged })
}
