//! Figure (o): the cost of credentials. The same outbox is drained with an OAuth2 token and a signature on each delivery, and
//! without both. The two runs of a pair follow each other, so that other load on the machine affects both, and alternate in
//! their order. The lowest and the highest pair show the variation of the machine; the processor time does not depend on
//! waiting.

use super::SyncMode;
use super::drain::{OutboxDrain, drain, plain, rig, with_credentials};
use super::error::BenchError;
use super::report::{Figure, Goal, Measure, Unit};
use super::statistics::{middle, ratio};
use super::tally::Account;

/// Number of pairs; even, so that both orders are measured equally often.
const PAIRS: usize = 4;

/// Drains `messages` envelopes eight times.
pub(crate) async fn measure(sync: SyncMode, messages: u64) -> Result<Figure, BenchError> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        for credentials in [pair % 2 == 0, pair % 2 == 1] {
            let drained = once(sync, messages, credentials).await?;
            if credentials { with.push(drained) } else { without.push(drained) }
        }
    }
    let (mut arrivals, mut still_owed) = (Account::default(), 0);
    for drained in with.iter().chain(&without) {
        arrivals += drained.arrivals;
        still_owed += drained.still_owed;
    }
    let kept: Vec<f64> = with
        .iter()
        .zip(&without)
        .map(|(with, without)| ratio(with.rate, without.rate).unwrap_or(0.0))
        .collect();
    let end = |pick: fn(f64, f64) -> f64| kept.iter().copied().reduce(pick).unwrap_or(0.0);
    let middle_kept = middle(&kept);
    let rate = |drained: &[OutboxDrain]| middle(&drained.iter().map(|one| one.rate).collect::<Vec<_>>());
    let hub = |drained: &[OutboxDrain]| {
        middle(&drained.iter().filter_map(|one| one.processor).map(|one| one.hub).collect::<Vec<_>>())
    };
    let measures = vec![
        Measure::new("kept of the rate", middle_kept, Unit::Ratio, None).aim(Some(Goal::at_least(
            middle_kept,
            0.8,
            "0.80",
        ))),
        Measure::new("lowest pair", end(f64::min), Unit::Ratio, None),
        Measure::new("highest pair", end(f64::max), Unit::Ratio, None),
        Measure::new("with OAuth2 and signatures", rate(&with), Unit::DeliveriesPerSecond, None),
        Measure::new("with neither", rate(&without), Unit::DeliveriesPerSecond, None),
        Measure::new("the hub's processor time for each with them", hub(&with), Unit::Microseconds, None),
        Measure::new("with neither", hub(&without), Unit::Microseconds, None),
    ];
    let title = "draining with credentials";
    Ok(Figure {
        figure: "o",
        title,
        sync: sync.name(),
        measures,
        arrivals,
        still_owed,
        processor: None,
        with: Vec::new(),
    })
}

/// Drains one outbox, and checks that the deliveries had the expected credentials.
async fn once(sync: SyncMode, messages: u64, credentials: bool) -> Result<OutboxDrain, BenchError> {
    let rig = rig(sync, messages).await?;
    let subscriptions = if credentials { with_credentials(&rig)? } else { plain(&rig)? };
    let drained = drain(&rig, "o", sync, messages, &subscriptions, &[]).await?;
    let (carried, tokens) = {
        let tally = rig.receiver.tally();
        (tally.with_credentials(), tally.tokens())
    };
    rig.stop().await?;
    let Account { expected, missing, doubles, .. } = drained.arrivals;
    let (deliveries, wanted_tokens) =
        if credentials { (expected - missing + doubles, subscriptions.len() as u64) } else { (0, 0) };
    if carried != deliveries || tokens != wanted_tokens {
        let text = format!(
            "{carried} of {deliveries} deliveries had token and signature, {tokens} tokens were fetched"
        );
        return Err(BenchError::Answer { what: "the hub with credentials", text });
    }
    Ok(drained)
}
