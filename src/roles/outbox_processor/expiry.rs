//! Finds envelopes that have waited for too long.
//!
//! The age is the time since the outbox stored the envelope, by the clock of the server: the clock of this machine may
//! jump. Between two looks at the server's clock, time passes as this process measures it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::facts::ServerTimeNotRead;
use crate::nats::{Delivered, JetStream};

/// Interval of the looks at the server's clock.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// The same until the first one succeeds.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
/// No limit is lower, so younger envelopes need no look-up.
const LEAST: Duration = Duration::from_secs(1);

pub(super) struct Expiry {
    js: JetStream,
    /// A stream of the server.
    stream: String,
    /// `delivery.max_age`; `None`: no limit.
    max_age: Option<Duration>,
    /// The server's clock in nanoseconds since 1970, and when it was read.
    clock: Mutex<Option<(i128, Instant)>>,
    /// The server's time at the last [`Self::pass`] in the same unit; 0: unknown. A look at the clock for each delivery would
    /// cost as much as the rest.
    now: AtomicI64,
}

impl Expiry {
    pub(super) fn new(js: JetStream, stream: String, max_age: Option<Duration>) -> Self {
        Self { js, stream, max_age, clock: Mutex::default(), now: AtomicI64::new(0) }
    }

    /// Follows the server's clock. Never returns.
    pub(super) async fn follow_clock(&self) {
        loop {
            let asked = Instant::now();
            match self.js.server_time(&self.stream).await {
                // The time of the request: the clock is never ahead, so nothing expires early.
                Ok(Some(nanos)) => {
                    let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
                    *clock = Some((nanos - nanoseconds(asked.elapsed()), asked));
                }
                Ok(None) => {}
                Err(error) => ServerTimeNotRead { error: &error }.emit(),
            }
            let known = self.clock.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            tokio::time::sleep(if known { LOOK_INTERVAL } else { FIRST_INTERVAL }).await;
        }
    }

    /// Takes note of the time.
    pub(super) fn pass(&self) {
        let clock = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((nanos, read_at)) = clock else { return };
        let now = nanos + nanoseconds(read_at.elapsed());
        self.now.store(i64::try_from(now).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// How long a message has waited, if it may be too long. Of one that was moved, since it was stored first; of one that
    /// was redriven, since its redrive.
    pub(super) fn age(&self, message: &Delivered) -> Option<Duration> {
        let now = i128::from(self.now.load(Ordering::Relaxed));
        if now == 0 {
            return None;
        }
        let age = now - message.stored_at_nanos;
        let age = match message.carried().queued_at {
            Some(milliseconds) => age.max(now - i128::from(milliseconds) * 1_000_000),
            None => age,
        };
        let age = Duration::from_nanos(u64::try_from(age).ok()?);
        (age >= LEAST).then_some(age)
    }

    /// The limit of a subscription, of which `own` is its own.
    pub(super) fn limit(&self, own: Option<Duration>) -> Option<Duration> {
        match (own, self.max_age) {
            (Some(own), Some(all)) => Some(own.min(all)),
            (own, all) => own.or(all),
        }
    }
}

fn nanoseconds(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}
