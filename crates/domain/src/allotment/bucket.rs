//! A token bucket: the part of a process of `per_second` tokens flows in, up to its part of `burst`.

use std::time::Duration;

use crate::subscription::RateLimit;

/// Longest wait that is returned; for slow rates, the caller asks again.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Tolerance for rounding errors, in tokens.
const ROUNDING: f64 = 1e-6;

#[derive(Debug)]
pub(super) struct TokenBucket {
    limit: RateLimit,
    /// The fraction of the limit that belongs to this process.
    part: f64,
    tokens: f64,
    at: Duration,
    /// Somebody waits for a token. Only then a part of less than one token grows to a whole one, so that together the
    /// processes store no more than `burst`.
    wanted: bool,
}

impl TokenBucket {
    /// A full bucket; after a change of the limit, with at most the tokens of the previous bucket.
    pub(super) fn changed(old: Option<&TokenBucket>, limit: RateLimit, now: Duration) -> Self {
        let (part, wanted) = old.map_or((1.0, false), |old| (old.part, old.wanted));
        let mut bucket = Self { limit, part, tokens: f64::MAX, at: now, wanted };
        bucket.tokens = old.map_or(f64::MAX, |old| old.tokens).min(bucket.most());
        bucket
    }

    /// An empty bucket: another process may have used the tokens before that time.
    pub(super) fn empty(limit: RateLimit, since: Duration) -> Self {
        Self { limit, part: 1.0, tokens: 0.0, at: since, wanted: false }
    }

    pub(super) fn limit(&self) -> RateLimit {
        self.limit
    }

    pub(super) fn is_full(&self, now: Duration) -> bool {
        let elapsed = now.saturating_sub(self.at).as_secs_f64();
        self.part > 0.0 && self.tokens + elapsed * self.limit.per_second * self.part >= self.most() - ROUNDING
    }

    /// Changes the part. Tokens that exceed it are lost.
    pub(super) fn divide(&mut self, part: f64, now: Duration) {
        self.refill(now);
        self.part = part;
        self.tokens = self.tokens.min(self.most());
    }

    /// The wait until there is a token after those for `ahead` others; `None` if there is one now.
    pub(super) fn wait(&mut self, ahead: usize, now: Duration) -> Option<Duration> {
        self.refill(now);
        let missing = ahead as f64 + 1.0 - self.tokens;
        if missing <= ROUNDING {
            return None;
        }
        self.wanted = true;
        let wait = Duration::try_from_secs_f64(missing / (self.limit.per_second * self.part));
        // Never zero, because the scheduler would ask again at once.
        Some(wait.map_or(LONGEST_WAIT, |wait| wait.clamp(Duration::from_micros(1), LONGEST_WAIT)))
    }

    /// Removes a token.
    pub(super) fn spend(&mut self) {
        self.tokens = (self.tokens - 1.0).max(0.0);
        self.wanted = false;
    }

    /// Puts a token back that was not used.
    pub(super) fn put_back(&mut self) {
        // A part of a token is kept for whoever is next.
        self.wanted = true;
        self.tokens = (self.tokens + 1.0).min(self.most());
    }

    fn refill(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.limit.per_second * self.part).min(self.most());
        self.at = self.at.max(now);
    }

    fn most(&self) -> f64 {
        let part = f64::from(self.limit.burst.max(1)) * self.part;
        if self.wanted && self.part > 0.0 { part.max(1.0) } else { part }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(per_second: f64, burst: u32) -> TokenBucket {
        TokenBucket::changed(None, RateLimit { per_second, burst }, Duration::ZERO)
    }

    fn take(bucket: &mut TokenBucket, now: Duration) -> Result<(), Duration> {
        match bucket.wait(0, now) {
            Some(wait) => Err(wait),
            None => {
                bucket.spend();
                Ok(())
            }
        }
    }

    #[test]
    fn a_burst_goes_at_once_and_then_the_rate_holds() {
        let mut bucket = bucket(10.0, 2);
        assert_eq!(take(&mut bucket, Duration::ZERO), Ok(()));
        assert_eq!(take(&mut bucket, Duration::ZERO), Ok(()));
        assert_eq!(take(&mut bucket, Duration::ZERO), Err(Duration::from_millis(100)));
        assert_eq!(take(&mut bucket, Duration::from_millis(100)), Ok(()));
        assert!(take(&mut bucket, Duration::from_millis(150)).is_err());
        assert_eq!(bucket.wait(3, Duration::from_millis(150)), Some(Duration::from_millis(350)));
        // After an hour, the bucket has no more tokens than the burst.
        let later = Duration::from_secs(3600);
        assert_eq!((0..3).filter(|_| take(&mut bucket, later).is_ok()).count(), 2);
    }

    #[test]
    fn a_token_that_was_not_used_is_there_again_and_no_more_than_the_burst() {
        for part in [1.0, 0.25] {
            let mut bucket = bucket(10.0, 1);
            bucket.divide(part, Duration::ZERO);
            let _ = bucket.wait(0, Duration::ZERO);
            let full = Duration::from_secs(1);
            assert_eq!(take(&mut bucket, full), Ok(()));
            for _ in 0..3 {
                bucket.put_back();
                bucket.put_back();
                assert_eq!(take(&mut bucket, full), Ok(()));
                assert!(take(&mut bucket, full).is_err());
            }
        }
    }

    #[test]
    fn a_changed_limit_gives_no_tokens_away() {
        let mut old = bucket(1.0, 5);
        assert!(take(&mut old, Duration::ZERO).is_ok());
        let new = TokenBucket::changed(Some(&old), RateLimit { per_second: 9.0, burst: 50 }, Duration::ZERO);
        assert!((new.tokens - 4.0).abs() < ROUNDING);
    }

    #[test]
    fn a_very_slow_rate_is_waited_for_in_parts() {
        let mut bucket = bucket(1e-300, 1);
        assert!(take(&mut bucket, Duration::ZERO).is_ok());
        assert_eq!(take(&mut bucket, Duration::ZERO), Err(LONGEST_WAIT));
    }

    #[test]
    fn less_than_a_token_is_stored_only_while_somebody_waits() {
        let mut bucket = bucket(10.0, 1);
        bucket.divide(0.5, Duration::ZERO);
        assert!((bucket.tokens - 0.5).abs() < ROUNDING);
        let later = Duration::from_secs(60);
        assert_eq!(take(&mut bucket, later), Err(Duration::from_millis(100)));
        assert_eq!(take(&mut bucket, later + Duration::from_millis(100)), Ok(()));
        assert!(!bucket.is_full(later + Duration::from_millis(150)));
        assert!(bucket.is_full(later + Duration::from_millis(200)));
    }

    proptest! {
        #[test]
        fn no_window_takes_more_than_burst_and_rate(
            per_second in 0.5..500.0f64,
            burst in 1u32..20,
            parts in 1usize..5,
            steps in proptest::collection::vec((0u64..200, 0usize..5), 1..200),
        ) {
            let mut buckets: Vec<TokenBucket> = (0..parts).map(|_| bucket(per_second, burst)).collect();
            buckets.iter_mut().for_each(|bucket| bucket.divide(1.0 / parts as f64, Duration::ZERO));
            let mut now = Duration::ZERO;
            let mut taken = 0.0;
            for (step, which) in steps {
                now += Duration::from_millis(step);
                let bucket = &mut buckets[which % parts];
                if let Err(wait) = take(bucket, now) {
                    // A token is available after the returned wait.
                    now += wait;
                    prop_assert!(take(bucket, now).is_ok());
                }
                taken += 1.0;
                let most = f64::from(burst) + now.as_secs_f64() * per_second;
                prop_assert!(taken <= most + 0.01);
            }
        }
    }
}
