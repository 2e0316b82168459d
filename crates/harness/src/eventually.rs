//! Waiting for a state that can only be polled.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::Instant;

/// How often a state is looked at that can only be polled.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// Looks at a state until it is as wanted: `look` gives `Ok` with what was wanted, or `Err` with what it
/// saw instead. For states that cannot be awaited, such as a stream's counts.
///
/// # Panics
///
/// After `limit`, with `what` and what was last seen; a look that hangs counts as well.
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
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}; last seen: {last:?}");
        tokio::time::sleep(POLL).await;
    }
}
