//! Whether a target broker takes messages: told once when it stops and once when it is back, and asked
//! again no sooner than after a growing pause.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::producer_outbox::Pauses;
use crate::facts::{BrokerAvailable, BrokerUnavailable, RelayMetrics};
use crate::sinks::PublishError;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Shared by the workers of one broker.
pub(super) struct Availability {
    metrics: RelayMetrics,
    /// Whether the last word was good: read for each answer, without the lock.
    is_up: AtomicBool,
    outage: Mutex<Outage>,
}

struct Outage {
    /// Not to be asked before; None while it is up.
    not_before: Option<Instant>,
    /// When it took nothing the last time.
    lost_at: Option<Instant>,
    /// Whether somebody was told.
    told: bool,
    pauses: Pauses,
}

impl Availability {
    /// Nothing is known yet: whoever asks first finds out.
    pub(super) fn new(metrics: RelayMetrics) -> Self {
        let outage = Outage {
            not_before: Some(Instant::now()),
            lost_at: None,
            told: false,
            pauses: Pauses::new(FIRST_PAUSE, LONGEST_PAUSE),
        };
        metrics.broker_up(false);
        Self { metrics, is_up: AtomicBool::new(false), outage: Mutex::new(outage) }
    }

    /// When the broker may be asked again; None while it is up.
    pub(super) fn not_before(&self) -> Option<Instant> {
        if self.is_up.load(Ordering::Acquire) {
            return None;
        }
        self.outage.lock().unwrap_or_else(PoisonError::into_inner).not_before
    }

    /// The broker took something, or there was nothing that it would have to take. `since`: when it was
    /// asked. What it took before it took nothing ends no outage.
    pub(super) fn worked(&self, since: Instant) {
        if self.is_up.load(Ordering::Acquire) {
            return;
        }
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        if outage.lost_at.is_none_or(|lost_at| since > lost_at) {
            self.end(&mut outage);
        }
    }

    /// A claim gave nothing, since what is open is not due or in other hands: no word on an outage that is
    /// under way.
    pub(super) fn idle(&self) {
        if self.is_up.load(Ordering::Acquire) {
            return;
        }
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        if !outage.told {
            self.end(&mut outage);
        }
    }

    fn end(&self, outage: &mut Outage) {
        outage.not_before = None;
        outage.pauses.reset();
        self.is_up.store(true, Ordering::Release);
        BrokerAvailable { ends_outage: std::mem::take(&mut outage.told) }.emit(&self.metrics);
    }

    /// The broker took nothing, and no message is at fault.
    pub(super) fn lost(&self, error: &PublishError) {
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        outage.lost_at = Some(now);
        self.is_up.store(false, Ordering::Release);
        // What several workers find at the same time is one failure.
        if outage.not_before.is_none_or(|not_before| now >= not_before) {
            let pause = outage.pauses.next(rand::random());
            outage.not_before = Some(now + pause);
        }
        let is_new = !std::mem::replace(&mut outage.told, true);
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
        let error = PublishError::Unavailable { reason: "away".to_owned() };
        assert!(availability.not_before().is_some_and(|at| at <= Instant::now()), "it may be asked at once");
        availability.worked(Instant::now());
        assert_eq!(availability.not_before(), None);
        let before = Instant::now();
        availability.lost(&error);
        let first = availability.not_before().expect("it is away");
        assert!(first <= Instant::now() + FIRST_PAUSE);
        availability.lost(&error);
        assert_eq!(availability.not_before(), Some(first), "the same failure, found by another");
        assert!(availability.outage.lock().expect("nobody panicked").told);
        availability.worked(before);
        availability.idle();
        assert_eq!(availability.not_before(), Some(first), "it took that before, and idling says nothing");
        tokio::time::advance(FIRST_PAUSE).await;
        availability.worked(Instant::now());
        assert_eq!(availability.not_before(), None);
        assert!(!availability.outage.lock().expect("nobody panicked").told, "the next one is told anew");
    }
}
