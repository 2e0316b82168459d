//! Limits per caller: what each caller holds at once, and how often it may send requests.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The caller that a limit applies to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    Peer(IpAddr),
    Token(String),
    Tenant(String),
}

/// The limited resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Resource {
    Requests,
    BodyBytes,
    Traces,
}

type Key = (Holder, Resource);

/// The current usage of each holder and resource. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Usage(Arc<Mutex<HashMap<Key, usize>>>);

/// A part of the usage, released on drop.
#[derive(Debug)]
pub(super) struct UsageGuard {
    usage: Usage,
    key: Key,
    amount: usize,
}

impl Usage {
    fn held(&self) -> MutexGuard<'_, HashMap<Key, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `amount` to the holder's usage. `None` if it would exceed `limit`; 0 means no limit.
    pub(super) fn take(
        &self,
        holder: Holder,
        resource: Resource,
        amount: usize,
        limit: usize,
    ) -> Option<UsageGuard> {
        let mut guard = UsageGuard { usage: self.clone(), key: (holder, resource), amount: 0 };
        guard.grow(amount, limit).then_some(guard)
    }
}

impl UsageGuard {
    /// Adds `amount`. False, without a change, if the usage would exceed `limit`.
    pub(super) fn grow(&mut self, amount: usize, limit: usize) -> bool {
        let mut held = self.usage.held();
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

impl Drop for UsageGuard {
    fn drop(&mut self) {
        let mut held = self.usage.held();
        if let Some(now) = held.get_mut(&self.key) {
            *now = now.saturating_sub(self.amount);
            if *now == 0 {
                held.remove(&self.key);
            }
        }
    }
}

/// Concurrent expensive reads per tenant; further ones wait.
const BROAD_READS: usize = 2;

/// Limits the concurrent expensive reads of each tenant. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct BroadReads(Arc<Mutex<HashMap<String, Weak<Semaphore>>>>);

impl BroadReads {
    /// Waits for a permit of the tenant. A caller without a tenant needs none.
    pub(super) async fn permit(&self, tenant: Option<&str>) -> Option<OwnedSemaphorePermit> {
        let tenant = tenant?;
        let semaphore = {
            let mut semaphores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if semaphores.len() >= MOST_REMEMBERED {
                semaphores.retain(|_, semaphore| semaphore.strong_count() > 0);
            }
            semaphores.get(tenant).and_then(Weak::upgrade).unwrap_or_else(|| {
                let made = Arc::new(Semaphore::new(BROAD_READS));
                semaphores.insert(tenant.to_owned(), Arc::downgrade(&made));
                made
            })
        };
        semaphore.acquire_owned().await.ok()
    }
}

/// Maximum number of callers with a stored rate; above it, callers with full buckets are dropped.
const MOST_REMEMBERED: usize = 4_096;

/// Limits a rate per holder, with a burst (token bucket). Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct RateLimiter(Arc<Mutex<HashMap<Holder, Bucket>>>);

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

impl RateLimiter {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<Holder, Bucket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `amount` to the holder's bucket.
    pub(super) fn give_back(&self, holder: &Holder, amount: usize) {
        if let Some(bucket) = self.buckets().get_mut(holder) {
            bucket.tokens = (bucket.tokens + amount as f64).min(bucket.burst);
        }
    }

    /// Takes `amount` from the holder's bucket, or returns the time until that is possible. An amount above the burst is
    /// taken when the bucket is full, and leaves it negative. A rate of 0 means no limit.
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
                // Too many callers to store: a new one is not limited.
                return Ok(());
            }
        }
        let full = Bucket { tokens: burst, per_second: rate, burst, at: now };
        let bucket = buckets.entry(holder).or_insert(full);
        (bucket.per_second, bucket.burst) = (rate, burst);
        bucket.refill(now);
        let needed = (amount as f64).min(burst);
        // Tolerates rounding errors.
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
    fn usage_is_limited_per_holder_and_resource_and_released() {
        let shares = Usage::default();
        let first = shares.take(token("a"), Resource::Requests, 1, 2).unwrap();
        let second = shares.take(token("a"), Resource::Requests, 1, 2).unwrap();
        assert!(shares.take(token("a"), Resource::Requests, 1, 2).is_none());
        assert!(shares.take(token("b"), Resource::Requests, 1, 2).is_some());
        assert!(shares.take(token("a"), Resource::BodyBytes, 1, 2).is_some());
        assert!(shares.take(token("a"), Resource::Requests, 9, 0).is_some(), "0 means no limit");
        drop(first);
        let mut third = shares.take(token("a"), Resource::Requests, 1, 2).unwrap();
        assert!(!third.grow(1, 2));
        drop((second, third));
        assert!(shares.held().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_has_a_burst_and_returns_the_wait() {
        let rates = RateLimiter::new();
        for _ in 0..20 {
            rates.take(token("a"), 1, 10, 20).unwrap();
        }
        assert_eq!(rates.take(token("a"), 1, 10, 20), Err(Duration::from_millis(100)));
        rates.take(token("b"), 1, 10, 20).unwrap();
        rates.take(token("a"), 5, 0, 20).unwrap();
        tokio::time::advance(Duration::from_millis(100)).await;
        rates.take(token("a"), 1, 10, 20).unwrap();
        assert!(rates.take(token("a"), 1, 10, 20).is_err());
        // More than a burst at once needs a full bucket, and delays what follows.
        tokio::time::advance(Duration::from_secs(60)).await;
        rates.take(token("a"), 40, 10, 20).unwrap();
        assert_eq!(rates.take(token("a"), 1, 10, 20), Err(Duration::from_millis(2_100)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_stored_rates_is_limited() {
        let rates = RateLimiter::new();
        for number in 0..2 * MOST_REMEMBERED {
            rates.take(token(&number.to_string()), 1, 1, 1).unwrap();
        }
        assert_eq!(rates.buckets().len(), MOST_REMEMBERED);
        tokio::time::advance(Duration::from_secs(2)).await;
        rates.take(token("new"), 1, 1, 1).unwrap();
        assert_eq!(rates.buckets().len(), 1);
    }
}
