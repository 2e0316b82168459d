//! Figure (l): the cost of the delivery log. The same outbox is drained with every attempt logged and with none logged, in
//! turns, so that other load on the machine affects both.

use super::SyncMode;
use super::drain::{OutboxDrain, drain, plain, rig};
use super::error::BenchError;
use super::report::{Figure, Goal, Measure, Unit};
use super::statistics::{middle, ratio};
use super::tally::Account;

/// Number of runs of each; the middle rate is the result.
const ROUNDS: usize = 3;

/// Drains `messages` envelopes six times.
pub(crate) async fn measure(sync: SyncMode, messages: u64) -> Result<Figure, BenchError> {
    let (mut all, mut none) = (Vec::new(), Vec::new());
    let mut arrivals = Account::default();
    let (mut still_owed, mut processor) = (0, None);
    for _ in 0..ROUNDS {
        none.push(once(sync, messages, "none").await?);
        all.push(once(sync, messages, "all").await?);
    }
    for drained in all.iter().chain(&none) {
        arrivals += drained.arrivals;
        still_owed += drained.still_owed;
    }
    for drained in &all {
        processor = drained.processor.or(processor);
        let delivered = drained.arrivals.expected - drained.arrivals.missing;
        if drained.logged < delivered {
            let text = format!("{} of {delivered} attempts are in it", drained.logged);
            return Err(BenchError::Answer { what: "the delivery log", text });
        }
    }
    let rate = |drained: &[OutboxDrain]| middle(&drained.iter().map(|one| one.rate).collect::<Vec<_>>());
    let (all, none) = (rate(&all), rate(&none));
    let kept = ratio(all, none).unwrap_or(0.0);
    let logged = Measure::new("every attempt logged", all, Unit::DeliveriesPerSecond, None)
        .aim(Some(Goal::at_least(kept, 0.9, "0.90 of the rate with none logged")));
    Ok(Figure {
        figure: "l",
        title: "draining with the delivery log",
        sync: sync.name(),
        measures: vec![logged, Measure::new("none logged", none, Unit::DeliveriesPerSecond, None)],
        arrivals,
        still_owed,
        processor,
        with: Vec::new(),
    })
}

async fn once(sync: SyncMode, messages: u64, choice: &str) -> Result<OutboxDrain, BenchError> {
    let rig = rig(sync, messages).await?;
    let drained =
        drain(&rig, "l", sync, messages, &plain(&rig)?, &[&format!("delivery.log={choice}")]).await?;
    rig.stop().await?;
    Ok(drained)
}
