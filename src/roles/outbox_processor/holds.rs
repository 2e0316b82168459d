//! Holds between processes: what an endpoint said to one is told to the others, and what others are
//! told is told to the workers here. Best effort: a process that does not hear it is told by the
//! endpoint itself.

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

/// Subscriptions whose last hold is remembered as told.
const MOST_TOLD: usize = 10_000;
/// A hold that ends so little later than the one told before is not told again: many deliveries that
/// were under way together are answered alike.
const ALIKE: Duration = Duration::from_secs(1);

/// Runs beside the workers, and is joined to them by the broadcast.
pub(super) struct Exchange {
    js: JetStream,
    holds: broadcast::Sender<Hold>,
    /// The longest hold that is believed.
    longest: Duration,
    told: Told,
}

/// When the holds end that were told to the others.
#[derive(Default)]
struct Told(HashMap<Identity, Instant>);

impl Exchange {
    pub(super) fn new(js: JetStream, holds: broadcast::Sender<Hold>, longest: Duration) -> Self {
        Self { js, holds, longest, told: Told::default() }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), NatsError> {
        let mut here = self.holds.subscribe();
        let mut elsewhere = self.js.hold_notices().await?;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                hold = here.recv() => match hold {
                    Ok(hold) => self.tell(&hold).await,
                    // The others hear what was missed from the endpoint.
                    Err(RecvError::Lagged(missed)) => HoldsMissed { missed }.emit(),
                    Err(RecvError::Closed) => return Ok(()),
                },
                notice = hear(&mut elsewhere) => self.heard(notice),
            }
        }
    }

    async fn tell(&mut self, hold: &Hold) {
        let now = Instant::now();
        if hold.heard || !self.told.is_news(&hold.subscription, hold.until, now) {
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
        // This task listens itself, so there is always one.
        let _ = self.holds.send(hold);
    }
}

impl Told {
    /// Whether a hold is worth telling; remembers it if so.
    fn is_news(&mut self, subscription: &Identity, until: Instant, now: Instant) -> bool {
        if self.0.get(subscription).is_some_and(|told| until <= *told + ALIKE && now < *told) {
            return false;
        }
        if self.0.len() >= MOST_TOLD {
            self.0.retain(|_, told| now < *told);
        }
        if self.0.len() >= MOST_TOLD {
            self.0.clear();
        }
        self.0.insert(subscription.clone(), until);
        true
    }
}

/// A connection that is closed for good ends the process elsewhere: here it is only silent.
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
    fn a_hold_is_told_once_and_again_when_it_grows() {
        let mut told = Told::default();
        let named = |id: &str, random| Identity {
            subscription: SubscriptionRef::of("acme", id).unwrap(),
            incarnation: Incarnation::new(random),
        };
        let (crm, now) = (named("crm", 1), Instant::now());
        let at = |millis| now + Duration::from_millis(millis);
        assert!(told.is_news(&crm, at(5_000), at(0)));
        assert!(!told.is_news(&crm, at(5_000), at(1)), "answered alike");
        assert!(!told.is_news(&crm, at(6_000), at(1_000)));
        assert!(!told.is_news(&crm, at(1_000), at(500)), "a shorter one");
        assert!(told.is_news(&crm, at(9_000), at(1_500)), "a longer one");
        assert!(told.is_news(&crm, at(9_500), at(9_100)), "the one before is over");
        assert!(told.is_news(&named("crm", 2), at(9_500), at(9_200)), "created again since");
        let other = |number: usize| named(&format!("s-{number}"), 1);
        for number in 0..3 * MOST_TOLD {
            assert!(told.is_news(&other(number), at(60_000), at(10_000)));
            assert!(told.0.len() <= MOST_TOLD);
        }
    }
}
