//! A token bucket: `per_second` tokens flow in, up to `burst`.

use std::time::Duration;

use crate::subscription::RateLimit;

/// Longest wait that is returned; for slow rates, the caller asks again.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Tolerance for rounding errors, in tokens.
const ROUNDING: f64 = 1e-6;

#[derive(Debug)]
pub(super) struct Bucket {
    limit: RateLimit,
    tokens: f64,
    at: Duration,
}

impl Bucket {
    /// A full bucket; after a change of the limit, with at most the tokens of the previous bucket.
    pub(super) fn changed(old: Option<&Bucket>, limit: RateLimit, now: Duration) -> Self {
        let burst = f64::from(limit.burst.max(1));
        Self { limit, tokens: old.map_or(burst, |old| old.tokens.min(burst)), at: now }
    }

    pub(super) fn limit(&self) -> RateLimit {
        self.limit
    }

    /// Takes a token; the error is the wait until the next one.
    pub(super) fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let elapsed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.limit.per_second).min(f64::from(self.limit.burst.max(1)));
        self.at = self.at.max(now);
        if self.tokens >= 1.0 - ROUNDING {
            self.tokens = (self.tokens - 1.0).max(0.0);
            return Ok(());
        }
        let missing = (1.0 - self.tokens) / self.limit.per_second;
        let wait = Duration::try_from_secs_f64(missing).map_or(LONGEST_WAIT, |wait| wait.min(LONGEST_WAIT));
        // Never zero, because the scheduler would ask again at once.
        Err(wait.max(Duration::from_micros(1)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(per_second: f64, burst: u32) -> Bucket {
        Bucket::changed(None, RateLimit { per_second, burst }, Duration::ZERO)
    }

    #[test]
    fn a_burst_goes_at_once_and_then_the_rate_holds() {
        let mut bucket = bucket(10.0, 2);
        assert_eq!(bucket.take(Duration::ZERO), Ok(()));
        assert_eq!(bucket.take(Duration::ZERO), Ok(()));
        assert_eq!(bucket.take(Duration::ZERO), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(Duration::from_millis(100)), Ok(()));
        assert!(bucket.take(Duration::from_millis(150)).is_err());
        // After an hour, the bucket has no more tokens than the burst.
        let later = Duration::from_secs(3600);
        assert!(bucket.take(later).is_ok() && bucket.take(later).is_ok() && bucket.take(later).is_err());
    }

    #[test]
    fn a_changed_limit_gives_no_tokens_away() {
        let mut old = bucket(1.0, 5);
        assert!(old.take(Duration::ZERO).is_ok());
        let new = Bucket::changed(Some(&old), RateLimit { per_second: 9.0, burst: 50 }, Duration::ZERO);
        assert!((new.tokens - 4.0).abs() < ROUNDING);
    }

    #[test]
    fn a_very_slow_rate_is_waited_for_in_parts() {
        let mut bucket = bucket(1e-300, 1);
        assert!(bucket.take(Duration::ZERO).is_ok());
        assert_eq!(bucket.take(Duration::ZERO), Err(LONGEST_WAIT));
    }

    proptest! {
        #[test]
        fn no_window_takes_more_than_burst_and_rate(
            per_second in 0.5..500.0f64,
            burst in 1u32..20,
            steps in proptest::collection::vec(0u64..200, 1..200),
        ) {
            let mut bucket = bucket(per_second, burst);
            let mut now = Duration::ZERO;
            let mut taken = 0.0;
            for step in steps {
                now += Duration::from_millis(step);
                match bucket.take(now) {
                    Ok(()) => taken += 1.0,
                    // A token is available after the returned wait.
                    Err(wait) => {
                        now += wait;
                        prop_assert!(bucket.take(now).is_ok());
                        taken += 1.0;
                    }
                }
                prop_assert!(taken <= f64::from(burst) + now.as_secs_f64() * per_second + 0.01);
            }
        }
    }
}
