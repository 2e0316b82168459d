//! Exchanges holds between processes: sends those of this process, and passes those of others to the workers here.
//! Best effort: a process that misses a hold learns it from the endpoint's next answer.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::worker::Hold;
use crate::domain::subscription::Identity;
use crate::facts::{HoldNotSent, HoldsMissed};
use crate::nats::{HoldNotice, HoldNotices, JetStream, NatsError};

/// Most subscriptions whose last hold is remembered.
const MOST_SENT: usize = 10_000;
/// A hold that ends less than this after the last one is not sent: concurrent deliveries get similar answers.
const ALIKE: Duration = Duration::from_secs(1);

/// Runs beside the workers; the broadcast connects them.
pub(super) struct Exchange {
    js: JetStream,
    holds: broadcast::Sender<Hold>,
    /// Longest hold that is accepted from other processes.
    longest: Duration,
    sent: Sent,
}

/// The ends of the holds that were sent.
#[derive(Default)]
struct Sent(HashMap<Identity, Instant>);

impl Exchange {
    pub(super) fn new(js: JetStream, holds: broadcast::Sender<Hold>, longest: Duration) -> Self {
        Self { js, holds, longest, sent: Sent::default() }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), NatsError> {
        let mut here = self.holds.subscribe();
        let mut elsewhere = self.js.hold_notices().await?;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                hold = here.recv() => match hold {
                    Ok(hold) => self.tell(&hold).await,
                    // Other processes learn the missed ones from the endpoint.
                    Err(RecvError::Lagged(missed)) => HoldsMissed { missed }.emit(),
                    Err(RecvError::Closed) => return Ok(()),
                },
                notice = hear(&mut elsewhere) => self.heard(notice),
            }
        }
    }

    async fn tell(&mut self, hold: &Hold) {
        let now = Instant::now();
        if hold.heard || !self.sent.is_new(&hold.subscription, hold.until, now) {
            return;
        }
        let wait = hold.until.saturating_duration_since(now);
        let notice = HoldNotice { subscription: hold.subscription.clone(), wait };
        if let Err(error) = self.js.publish_hold(&notice).await {
            HoldNotSent { error: &error, subscription: &hold.subscription.subscription }.emit();
        }
    }

    fn heard(&mut self, notice: HoldNotice) {
        let until = Instant::now() + notice.wait.min(self.longest);
        let hold = Hold { subscription: notice.subscription, until, heard: true };
        // This task is a receiver itself, so there is always one.
        let _ = self.holds.send(hold);
    }
}

impl Sent {
    /// Whether a hold is to be sent; remembers it if so.
    fn is_new(&mut self, subscription: &Identity, until: Instant, now: Instant) -> bool {
        if self
            .0
            .get(subscription)
            .is_some_and(|until_sent| until <= *until_sent + ALIKE && now < *until_sent)
        {
            return false;
        }
        if self.0.len() >= MOST_SENT {
            self.0.retain(|_, until| now < *until);
        }
        if self.0.len() >= MOST_SENT {
            self.0.clear();
        }
        self.0.insert(subscription.clone(), until);
        true
    }
}

/// A connection that is closed ends the process elsewhere; here it only yields nothing.
async fn hear(notices: &mut HoldNotices) -> HoldNotice {
    match notices.next().await {
        Some(notice) => notice,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::subscription::{Incarnation, SubscriptionRef};

    #[test]
    fn a_hold_is_sent_once_and_again_when_it_grows() {
        let mut sent = Sent::default();
        let named = |id: &str, random| Identity {
            subscription: SubscriptionRef::of("acme", id).unwrap(),
            incarnation: Incarnation::new(random),
        };
        let (crm, now) = (named("crm", 1), Instant::now());
        let at = |millis| now + Duration::from_millis(millis);
        assert!(sent.is_new(&crm, at(5_000), at(0)));
        assert!(!sent.is_new(&crm, at(5_000), at(1)), "answered alike");
        assert!(!sent.is_new(&crm, at(6_000), at(1_000)));
        assert!(!sent.is_new(&crm, at(1_000), at(500)), "a shorter one");
        assert!(sent.is_new(&crm, at(9_000), at(1_500)), "a longer one");
        assert!(sent.is_new(&crm, at(9_500), at(9_100)), "the one before is over");
        assert!(sent.is_new(&named("crm", 2), at(9_500), at(9_200)), "created again since");
        let other = |number: usize| named(&format!("s-{number}"), 1);
        for number in 0..3 * MOST_SENT {
            assert!(sent.is_new(&other(number), at(60_000), at(10_000)));
            assert!(sent.0.len() <= MOST_SENT);
        }
    }
}
