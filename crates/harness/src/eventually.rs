//! Waits for states that can only be polled.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::Instant;

/// Interval of polling.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// Counts the ends of this period while the work runs: a clock to compare counts with, on a machine of any speed.
pub async fn ticks_during<T>(period: Duration, work: impl Future<Output = T>) -> (T, usize) {
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    let mut work = std::pin::pin!(work);
    let mut counted = 0;
    loop {
        tokio::select! {
            // All ticks before the end of the work count.
            biased;
            _ = ticks.tick() => counted += 1,
            done = &mut work => return (done, counted),
        }
    }
}

/// Polls a state until it is as expected: `look` returns `Ok` with the result, or `Err` with the current state. For
/// states that cannot be awaited, such as the counts of a stream.
///
/// # Panics
///
/// After `limit`, with `what` and the last state, also if `look` hangs.
pub async fn eventually<T, E: Debug>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + limit;
    let mut last = None;
    loop {
        match tokio::time::timeout_at(deadline, look()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(seen)) => last = Some(seen),
            Err(_) => panic!("not within {limit:?}: {what}; last seen: {last:?}, then no answer"),
        }
        if Instant::now() >= deadline {
            panic!("not within {limit:?}: {what}; last seen: {last:?}");
        }
        tokio::time::sleep(POLL).await;
    }
}
