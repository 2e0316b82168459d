//! What the outbox processors have delivered lately, as they announce it.
//!
//! A server that cannot write to its disk may keep an acknowledgement and the message as well. The sweep then finds a message
//! that no consumer delivers again. It was delivered, so it is removed, and does not become a dead letter.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::domain::lately::{Lately, Stored};
use crate::nats::{JetStream, SettledEnvelope, SettledNotice, StoredMessage};

/// Deliveries of a domain in a second for which there is room. A message that is kept is found at the second pass of the
/// sweep after its delivery, so what two intervals bring has to be remembered.
const RATE: usize = 7_600;
/// Least and most messages of one generation of each domain. There are two, and one is remembered until the other is full: of
/// at most 36 MB together with the longest interval, and of 18 MB with the default one.
const LEAST: usize = 256 * 1024;
const MOST: usize = 896 * 1024;
/// Life of a generation.
const TIME: Duration = Duration::from_secs(15 * 60);
/// Interval of the look-ups of an outbox that could not be looked up.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(5);

pub(super) struct Deliveries {
    js: JetStream,
    domains: HashMap<String, Mutex<Lately<u64, i64>>>,
    started: Instant,
}

/// The messages of one generation.
fn most(sweep_interval: Duration) -> usize {
    let seconds = usize::try_from(sweep_interval.saturating_mul(2).as_secs()).unwrap_or(usize::MAX);
    RATE.saturating_mul(seconds).clamp(LEAST, MOST)
}

impl Deliveries {
    pub(super) fn new(js: JetStream, domains: &[String], sweep_interval: Duration) -> Self {
        let (most, time) = (most(sweep_interval), TIME.max(sweep_interval.saturating_mul(2)));
        let lately = |domain: &String| (domain.clone(), Mutex::new(Lately::new(most, time)));
        Self { js, domains: domains.iter().map(lately).collect(), started: Instant::now() }
    }

    /// Whether this message of an outbox was delivered.
    pub(super) fn has(&self, domain: &str, message: &StoredMessage) -> bool {
        let Ok(at) = OffsetDateTime::parse(&message.time, &Rfc3339) else { return false };
        let stored = Stored::new(message.sequence, at.unix_timestamp_nanos());
        let Some(lately) = self.domains.get(domain) else { return false };
        let mut lately = lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.of(&stored.sequence, self.started.elapsed()) == Some(stored.at_nanos)
    }

    /// Follows the announcements about a domain. Never returns. May be dropped at any point.
    pub(super) async fn follow(&self, domain: &str) {
        let Some(lately) = self.domains.get(domain) else { return std::future::pending().await };
        let (mut reconnects, process) = (self.js.reconnects(), rand::random());
        // It fails only if the connection is closed for good, which ends the process.
        let Ok(mut notices) = self.js.settled_notices(domain, process).await else {
            return std::future::pending().await;
        };
        let mut look_ups = tokio::time::interval(LOOK_UP_AGAIN);
        look_ups.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let is_to_ask = tokio::select! {
                (_, notice) = notices.next() => {
                    if let SettledNotice::Delivered { envelopes, .. } = notice {
                        self.learn(lately, &envelopes);
                    }
                    false
                }
                () = reconnects.next() => true,
                _ = look_ups.tick(), if !notices.is_identified() => notices.identify().await,
            };
            if is_to_ask {
                // Without an answer, what is announced from now on is known.
                let _ = notices.send(SettledNotice::Ask).await;
            }
        }
    }

    /// What is announced again takes no further room.
    fn learn(&self, lately: &Mutex<Lately<u64, i64>>, envelopes: &[SettledEnvelope]) {
        let (mut lately, now) =
            (lately.lock().unwrap_or_else(PoisonError::into_inner), self.started.elapsed());
        for SettledEnvelope { stored, .. } in envelopes {
            lately.learn(stored.sequence, stored.at_nanos, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_intervals_of_the_sweep_are_remembered() {
        let default = most(Duration::from_secs(30));
        assert!(default >= 60 * 7_600);
        // Tables of these sizes have 512 Ki and 1 Mi places, of 17 bytes.
        assert!(default <= 512 * 1024 * 7 / 8 && MOST <= 1024 * 1024 * 7 / 8);
        assert_eq!((most(Duration::ZERO), most(Duration::MAX)), (LEAST, MOST));
        const { assert!(LEAST >= 256 * 1024) };
    }
}
