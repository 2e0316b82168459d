//! How much of something each caller holds at the moment, and how often it may ask.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Whose share it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    Peer(IpAddr),
    Token(String),
    Tenant(String),
}

/// What is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum What {
    Requests,
    BodyBytes,
    Traces,
}

type Key = (Holder, What);

/// What is held now. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Shares(Arc<Mutex<HashMap<Key, usize>>>);

/// What one holds; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Share {
    shares: Shares,
    key: Key,
    amount: usize,
}

impl Shares {
    fn held(&self) -> MutexGuard<'_, HashMap<Key, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes some, unless the holder would then have more than `limit`; 0 is no limit.
    pub(super) fn take(&self, holder: Holder, what: What, amount: usize, limit: usize) -> Option<Share> {
        let mut share = Share { shares: self.clone(), key: (holder, what), amount: 0 };
        share.grow(amount, limit).then_some(share)
    }
}

impl Share {
    /// Takes more; false where that would be above the limit.
    pub(super) fn grow(&mut self, amount: usize, limit: usize) -> bool {
        let mut held = self.shares.held();
        let now = held.get(&self.key).copied().unwrap_or_default();
        if limit > 0 && now.saturating_add(amount) > limit {
            return false;
        }
        held.insert(self.key.clone(), now.saturating_add(amount));
        drop(held);
        self.amount = self.amount.saturating_add(amount);
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held();
        if let Some(now) = held.get_mut(&self.key) {
            *now = now.saturating_sub(self.amount);
            if *now == 0 {
                held.remove(&self.key);
            }
        }
    }
}

/// Reads that may touch much, of one tenant at once; others of it wait for their turn.
const BROAD_READS: usize = 2;

/// The turns of each tenant's broad reads. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns(Arc<Mutex<HashMap<String, Weak<Semaphore>>>>);

impl Turns {
    /// Waits for the turn of a tenant's read; an operator needs none. Dropping it ends it.
    pub(super) async fn turn(&self, tenant: Option<&str>) -> Option<OwnedSemaphorePermit> {
        let tenant = tenant?;
        let semaphore = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if turns.len() >= MOST_REMEMBERED {
                turns.retain(|_, turn| turn.strong_count() > 0);
            }
            turns.get(tenant).and_then(Weak::upgrade).unwrap_or_else(|| {
                let made = Arc::new(Semaphore::new(BROAD_READS));
                turns.insert(tenant.to_owned(), Arc::downgrade(&made));
                made
            })
        };
        semaphore.acquire_owned().await.ok()
    }
}

/// Callers whose rate is remembered at most; beyond, those with nothing used up are forgotten first.
const MOST_REMEMBERED: usize = 4_096;

/// So many a second for each holder, with a burst. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Rates(Arc<Mutex<HashMap<Holder, Bucket>>>);

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    per_second: f64,
    burst: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.per_second).min(self.burst);
        self.at = now;
    }
}

impl Rates {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<Holder, Bucket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Undoes a part of what was used up.
    pub(super) fn give_back(&self, holder: &Holder, amount: usize) {
        if let Some(bucket) = self.buckets().get_mut(holder) {
            bucket.tokens = (bucket.tokens + amount as f64).min(bucket.burst);
        }
    }

    /// Uses up `amount`, or says how long until there is as much. More than the burst is taken when the bucket is
    /// full, and then owed. A rate of 0 is no limit.
    pub(super) fn take(
        &self,
        holder: Holder,
        amount: usize,
        per_second: usize,
        burst: usize,
    ) -> Result<(), Duration> {
        if per_second == 0 {
            return Ok(());
        }
        let (now, rate, burst) = (Instant::now(), per_second as f64, burst.max(1) as f64);
        let mut buckets = self.buckets();
        if buckets.len() >= MOST_REMEMBERED && !buckets.contains_key(&holder) {
            buckets.retain(|_, bucket| {
                bucket.refill(now);
                bucket.tokens < bucket.burst
            });
            if buckets.len() >= MOST_REMEMBERED {
                // So many that none can be followed: nobody new is asked to wait, and none is remembered.
                return Ok(());
            }
        }
        let full = Bucket { tokens: burst, per_second: rate, burst, at: now };
        let bucket = buckets.entry(holder).or_insert(full);
        (bucket.per_second, bucket.burst) = (rate, burst);
        bucket.refill(now);
        let needed = (amount as f64).min(burst);
        // What rounding may take from a token.
        if bucket.tokens + 1e-6 >= needed {
            bucket.tokens -= amount as f64;
            return Ok(());
        }
        Err(Duration::from_secs_f64((needed - bucket.tokens) / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(name: &str) -> Holder {
        Holder::Token(name.to_owned())
    }

    #[test]
    fn a_share_is_bounded_by_itself_and_given_back() {
        let shares = Shares::default();
        let first = shares.take(token("a"), What::Requests, 1, 2).unwrap();
        let second = shares.take(token("a"), What::Requests, 1, 2).unwrap();
        assert!(shares.take(token("a"), What::Requests, 1, 2).is_none());
        assert!(shares.take(token("b"), What::Requests, 1, 2).is_some());
        assert!(shares.take(token("a"), What::BodyBytes, 1, 2).is_some());
        assert!(shares.take(token("a"), What::Requests, 9, 0).is_some(), "0 is no limit");
        drop(first);
        let mut third = shares.take(token("a"), What::Requests, 1, 2).unwrap();
        assert!(!third.grow(1, 2));
        drop((second, third));
        assert!(shares.held().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_has_a_burst_and_says_how_long_to_wait() {
        let rates = Rates::new();
        for _ in 0..20 {
            rates.take(token("a"), 1, 10, 20).unwrap();
        }
        assert_eq!(rates.take(token("a"), 1, 10, 20), Err(Duration::from_millis(100)));
        rates.take(token("b"), 1, 10, 20).unwrap();
        rates.take(token("a"), 5, 0, 20).unwrap();
        tokio::time::advance(Duration::from_millis(100)).await;
        rates.take(token("a"), 1, 10, 20).unwrap();
        assert!(rates.take(token("a"), 1, 10, 20).is_err());
        // More than a burst at once: when the bucket is full, and paid back after.
        tokio::time::advance(Duration::from_secs(60)).await;
        rates.take(token("a"), 40, 10, 20).unwrap();
        assert_eq!(rates.take(token("a"), 1, 10, 20), Err(Duration::from_millis(2_100)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let rates = Rates::new();
        for number in 0..2 * MOST_REMEMBERED {
            rates.take(token(&number.to_string()), 1, 1, 1).unwrap();
        }
        assert_eq!(rates.buckets().len(), MOST_REMEMBERED);
        tokio::time::advance(Duration::from_secs(2)).await;
        rates.take(token("new"), 1, 1, 1).unwrap();
        assert_eq!(rates.buckets().len(), 1);
    }
}
