//! Figure (o): what credentials cost. The same outbox is drained with an OAuth2 token and a signature on
//! each delivery and with neither, in turns, so that what else the machine does falls on both.

use super::SyncMode;
use super::drain::{Drained, drain, middle, plain, rig, with_credentials};
use super::error::BenchError;
use super::report::{Figure, Goal, Measure, Unit};
use super::statistics::ratio;
use super::tally::Account;

/// How often each is drained; the middle rate counts.
const ROUNDS: usize = 3;

/// Drains `messages` envelopes six times.
pub async fn measure(sync: SyncMode, messages: u64) -> Result<Figure, BenchError> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(once(sync, messages, false).await?);
        with.push(once(sync, messages, true).await?);
    }
    let (mut arrivals, mut still_owed) = (Account::default(), 0);
    for drained in with.iter().chain(&without) {
        arrivals += drained.arrivals;
        still_owed += drained.still_owed;
    }
    let processor = with.last().and_then(|drained| drained.processor);
    let (with, without) = (middle(&with), middle(&without));
    let kept = ratio(with, without).unwrap_or(0.0);
    let secured = Measure::new("with OAuth2 and signatures", with, Unit::DeliveriesPerSecond, None)
        .aim(Some(Goal::at_least(kept, 0.8, "0.80 of the rate with neither")));
    Ok(Figure {
        figure: 'o',
        title: "draining with credentials",
        sync: sync.name(),
        measures: vec![secured, Measure::new("with neither", without, Unit::DeliveriesPerSecond, None)],
        arrivals,
        still_owed,
        processor,
    })
}

/// Drains one outbox, and makes sure that the deliveries carried what they are to carry.
async fn once(sync: SyncMode, messages: u64, credentials: bool) -> Result<Drained, BenchError> {
    let rig = rig(sync, messages).await?;
    let subscriptions = if credentials { with_credentials(&rig)? } else { plain(&rig)? };
    let drained = drain(&rig, 'o', sync, messages, &subscriptions, &[]).await?;
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
