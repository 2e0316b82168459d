//! Whether a target broker accepts messages. The start and the end of an outage are logged once; the pauses between
//! attempts grow.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::producer_outbox::Pauses;
use crate::facts::{BrokerAvailable, BrokerUnavailable, RelayMetrics};
use crate::sinks::PublishError;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The same for the hub's own server. Its connection shows at no cost whether it is back.
const LONGEST_PAUSE_INTERNAL: Duration = Duration::from_secs(1);

/// Shared by the workers of one broker.
pub(super) struct Availability {
    metrics: RelayMetrics,
    /// Whether the last result was good; read for each answer without the lock.
    is_up: AtomicBool,
    outage: Mutex<Outage>,
}

struct Outage {
    /// Earliest time of the next attempt; `None` while it is up.
    not_before: Option<Instant>,
    /// When it was last unavailable.
    lost_at: Option<Instant>,
    /// Whether the outage is logged.
    is_logged: bool,
    pauses: Pauses,
}

impl Availability {
    /// Unknown at first: the first worker finds out.
    pub(super) fn new(metrics: RelayMetrics) -> Self {
        Self::with_longest_pause(metrics, LONGEST_PAUSE)
    }

    /// As [`Self::new`], for the hub's own server.
    pub(super) fn of_internal(metrics: RelayMetrics) -> Self {
        Self::with_longest_pause(metrics, LONGEST_PAUSE_INTERNAL)
    }

    fn with_longest_pause(metrics: RelayMetrics, longest: Duration) -> Self {
        let outage = Outage {
            not_before: Some(Instant::now()),
            lost_at: None,
            is_logged: false,
            pauses: Pauses::new(FIRST_PAUSE, longest),
        };
        metrics.broker_up(false);
        Self { metrics, is_up: AtomicBool::new(false), outage: Mutex::new(outage) }
    }

    /// Earliest time of the next attempt; `None` while it is up.
    pub(super) fn not_before(&self) -> Option<Instant> {
        if self.is_up.load(Ordering::Acquire) {
            return None;
        }
        self.outage.lock().unwrap_or_else(PoisonError::into_inner).not_before
    }

    /// The broker accepted a message, or no row is open. `since`: when the request was sent. A success from before the outage
    /// does not end it.
    pub(super) fn worked(&self, since: Instant) {
        if self.is_up.load(Ordering::Acquire) {
            return;
        }
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        if outage.lost_at.is_none_or(|lost_at| since > lost_at) {
            self.end(&mut outage);
        }
    }

    /// A claim returned no rows, because the open ones are not due or are in other claims. This does not end an outage.
    pub(super) fn idle(&self) {
        if self.is_up.load(Ordering::Acquire) {
            return;
        }
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        if !outage.is_logged {
            self.end(&mut outage);
        }
    }

    fn end(&self, outage: &mut Outage) {
        outage.not_before = None;
        outage.pauses.reset();
        self.is_up.store(true, Ordering::Release);
        BrokerAvailable { ends_outage: std::mem::take(&mut outage.is_logged) }.emit(&self.metrics);
    }

    /// The broker accepted nothing, and no message is the cause.
    pub(super) fn lost(&self, error: &PublishError) {
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        outage.lost_at = Some(now);
        self.is_up.store(false, Ordering::Release);
        // Several workers may find the same failure.
        if outage.not_before.is_none_or(|not_before| now >= not_before) {
            let pause = outage.pauses.next(rand::random());
            outage.not_before = Some(now + pause);
        }
        let is_new = !std::mem::replace(&mut outage.is_logged, true);
        BrokerUnavailable { error, is_new }.emit(&self.metrics);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Metrics;

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_one_pause_for_all_who_find_it_and_ends_with_the_first_success() {
        let availability = Availability::new(Metrics::new().of_broker("partner"));
        let error = PublishError::unavailable("away");
        assert!(availability.not_before().is_some_and(|at| at <= Instant::now()), "the next try is at once");
        availability.worked(Instant::now());
        assert_eq!(availability.not_before(), None);
        let before = Instant::now();
        availability.lost(&error);
        let first = availability.not_before().expect("it is unavailable");
        assert!(first <= Instant::now() + FIRST_PAUSE);
        availability.lost(&error);
        assert_eq!(availability.not_before(), Some(first), "the same failure, found by another");
        assert!(availability.outage.lock().expect("nobody panicked").is_logged);
        availability.worked(before);
        availability.idle();
        assert_eq!(availability.not_before(), Some(first), "it took that before, and idling says nothing");
        tokio::time::advance(FIRST_PAUSE).await;
        availability.worked(Instant::now());
        assert_eq!(availability.not_before(), None);
        assert!(
            !availability.outage.lock().expect("nobody panicked").is_logged,
            "the next one is logged again"
        );
    }
}
