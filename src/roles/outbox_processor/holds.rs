//! Holds: keeps those that endpoints asked for, stores them at the broker, learns of those of other processes and of their
//! ends, and notifies the workers of this process.
//!
//! The core decides what a hold changes (`holds`); the redrive stream stores it (`nats/holds.rs`), so that operators see it,
//! a process that starts knows it, and a process that missed its end learns of it within seconds.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Subscriptions;
use super::worker::{Running, Worker};
use crate::domain::holds::{Hold, HoldChange, Holds};
use crate::domain::subscription::{Identity, SubscriptionRef};
use crate::facts::{HoldEnded, HoldEndedBecause, HoldNotStored, HoldsNotRead, Metrics, SubscriptionHeld};
use crate::nats::{HoldNotice, HoldNotices, HoldStored, JetStream, NatsError};

/// Capacity of the channel of news; a worker that lags further behind reads all holds again.
const NEWS: usize = 1024;
/// Most holds that wait to be stored. One that is not stored is applied in this process only.
const TO_STORE: usize = 1024;
/// Interval of the looks for holds that are over, and for subscriptions that were changed.
const LOOK: Duration = Duration::from_secs(1);
/// Interval of the comparisons with the broker.
const COMPARE: Duration = Duration::from_secs(10);
/// Most unknown holds that one comparison reads.
const MOST_READ: usize = 500;

/// A pause that an endpoint asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) wait: Duration,
    pub(super) status: u16,
}

/// News about holds, for the workers.
#[derive(Debug, Clone)]
pub(super) enum HoldNews {
    Held { subscription: Identity, until: Instant },
    Ended(Identity),
}

/// The holds that this process knows. Cheap to clone.
#[derive(Clone)]
pub(super) struct Holding {
    inner: Arc<HoldingState>,
}

struct HoldingState {
    holds: Mutex<Holds>,
    started: Instant,
    news: broadcast::Sender<HoldNews>,
    to_store: mpsc::Sender<ToStore>,
    subscriptions: Subscriptions,
}

#[derive(Debug)]
struct ToStore {
    subscription: Identity,
    /// Of the envelope that got the answer.
    domain: String,
    began: bool,
}

/// Runs beside the workers.
pub(super) struct HoldExchange {
    js: JetStream,
    holding: Holding,
    to_store: mpsc::Receiver<ToStore>,
    /// Longest hold that is accepted from other processes.
    longest: Duration,
    /// Names this process in notices.
    process: u64,
    metrics: Metrics,
}

impl Holding {
    pub(super) fn new(
        js: JetStream,
        subscriptions: Subscriptions,
        longest: Duration,
        metrics: Metrics,
    ) -> (Self, HoldExchange) {
        let (to_store, receiver) = mpsc::channel(TO_STORE);
        let (news, _) = broadcast::channel(NEWS);
        let (holds, started) = (Mutex::default(), Instant::now());
        let holding =
            Self { inner: Arc::new(HoldingState { holds, started, news, to_store, subscriptions }) };
        let process = rand::random::<u64>().max(1);
        let exchange =
            HoldExchange { js, holding: holding.clone(), to_store: receiver, longest, process, metrics };
        (holding, exchange)
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<HoldNews> {
        self.inner.news.subscribe()
    }

    /// An endpoint asked for a pause. Returns its end; `None` if the subscription was removed meanwhile.
    fn asked(&self, subscription: &Identity, asked: Asked, domain: &str) -> Option<Instant> {
        let revision = self.revision(subscription)?;
        let now = self.now();
        let until = now + asked.wait;
        let change = self.holds().asked(subscription, until, asked.status, revision, now);
        let end = self.inner.started + until;
        if change != HoldChange::None {
            self.tell(HoldNews::Held { subscription: subscription.clone(), until: end });
            let (began, domain) = (change == HoldChange::Began, domain.to_owned());
            let to_store = ToStore { subscription: subscription.clone(), domain, began };
            if let Err(error) = self.inner.to_store.try_send(to_store) {
                HoldNotStored { error: &error, subscription: &subscription.subscription }.emit();
            }
        }
        Some(end)
    }

    /// The holds that are not over, with their ends.
    fn all(&self) -> Vec<(Identity, Instant)> {
        let holds = self.holds();
        let all = holds.all(self.now());
        all.map(|(subscription, hold)| (subscription.clone(), self.inner.started + hold.until)).collect()
    }

    /// The revision of a subscription in the registry; `None` if it was removed, or with a resolver.
    fn revision(&self, subscription: &Identity) -> Option<u64> {
        let Subscriptions::Registry(registry) = &self.inner.subscriptions else { return None };
        let index = registry.read();
        let entry = index.get(&subscription.subscription)?;
        (entry.subscription.incarnation == subscription.incarnation).then_some(entry.revision)
    }

    fn holds(&self) -> MutexGuard<'_, Holds> {
        self.inner.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.inner.started.elapsed()
    }

    /// Without a worker that listens, there is nobody to tell.
    fn tell(&self, news: HoldNews) {
        let _ = self.inner.news.send(news);
    }
}

impl HoldExchange {
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), NatsError> {
        let mut notices = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            notices = self.js.hold_notices() => notices?,
        };
        let [mut looks, mut comparisons] = [LOOK, COMPARE].map(|time| {
            let mut ticks = interval(time);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        loop {
            let step = async {
                tokio::select! {
                    Some(to_store) = self.to_store.recv() => self.store(&to_store).await,
                    notice = hear(&mut notices) => self.heard(&notice),
                    _ = looks.tick() => self.look(),
                    _ = comparisons.tick() => self.compare().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = step => {}
            }
        }
    }

    /// Stores a hold of this process as it is now, and reports it unless another process has stored it before.
    async fn store(&self, to_store: &ToStore) {
        let ToStore { subscription, domain, began } = to_store;
        let now = self.holding.now();
        let Some(hold) = self.holding.holds().get(subscription, now) else { return };
        let wait = hold.until.saturating_sub(now);
        let notice = HoldNotice {
            subscription: subscription.clone(),
            wait,
            held_for: now.saturating_sub(hold.since),
            status: hold.status,
            revision: hold.revision,
            process: self.process,
        };
        let is_first = match self.js.store_hold(&notice).await {
            Ok(HoldStored::Known(known)) => {
                self.heard(&known);
                self.holding.holds().stored(subscription);
                false
            }
            Ok(stored) => {
                self.holding.holds().stored(subscription);
                stored == HoldStored::New
            }
            Err(error) => {
                HoldNotStored { error: &error, subscription: &subscription.subscription }.emit();
                true
            }
        };
        if *began && is_first {
            self.holding.holds().reported(subscription);
            let (subscription, status) = (&subscription.subscription, hold.status);
            let until = &time_of(OffsetDateTime::now_utc() + wait);
            SubscriptionHeld { subscription, domain, status, wait, until }.emit();
        }
    }

    fn heard(&self, notice: &HoldNotice) {
        let HoldNotice { subscription, wait, held_for, status, revision, process } = notice;
        if wait.is_zero() {
            return self.end(subscription, HoldEndedBecause::Resumed);
        }
        if *process == self.process || !self.is_current(subscription, *revision) {
            return;
        }
        let now = self.holding.now();
        let hold = Hold {
            since: now.saturating_sub(*held_for),
            until: now + (*wait).min(self.longest),
            status: *status,
            revision: *revision,
        };
        if self.holding.holds().heard(subscription, hold, now) {
            let until = self.holding.inner.started + hold.until;
            self.holding.tell(HoldNews::Held { subscription: subscription.clone(), until });
        }
    }

    /// Whether a hold of this revision of a subscription may last: it was neither changed nor removed since.
    fn is_current(&self, subscription: &Identity, held_at: u64) -> bool {
        self.holding.revision(subscription).is_some_and(|revision| revision <= held_at)
    }

    fn end(&self, subscription: &Identity, because: HoldEndedBecause) {
        let reported = self.holding.holds().end(subscription);
        self.holding.tell(HoldNews::Ended(subscription.clone()));
        if reported {
            HoldEnded { subscription: &subscription.subscription, because }.emit();
        }
    }

    /// Ends the holds of subscriptions that were changed or removed since, and forgets those that are over.
    fn look(&self) {
        let now = self.holding.now();
        let passed = self.holding.holds().passed(now);
        for subscription in &passed {
            let because = HoldEndedBecause::Over;
            HoldEnded { subscription: &subscription.subscription, because }.emit();
        }
        let all: Vec<(Identity, u64)> = {
            let holds = self.holding.holds();
            holds.all(now).map(|(subscription, hold)| (subscription.clone(), hold.revision)).collect()
        };
        for (subscription, held_at) in &all {
            if !self.is_current(subscription, *held_at) {
                self.end(subscription, HoldEndedBecause::Subscription);
            }
        }
        self.metrics.subscriptions_held(self.holding.holds().all(now).count());
    }

    /// Learns of stored holds that this process does not know, and ends those that were stored and are not any more.
    async fn compare(&self) {
        if let Err(error) = self.compare_with_stored().await {
            HoldsNotRead { error: &error }.emit();
        }
    }

    async fn compare_with_stored(&self) -> Result<(), NatsError> {
        // Only these were stored before the broker answers.
        let before: Vec<Identity> = self.holding.holds().all_stored(self.holding.now()).cloned().collect();
        let stored: HashSet<SubscriptionRef> = self.js.stored_holds().await?.into_iter().collect();
        for subscription in before.iter().filter(|one| !stored.contains(&one.subscription)) {
            self.end(subscription, HoldEndedBecause::Gone);
        }
        let known: HashSet<SubscriptionRef> =
            self.holding.all().into_iter().map(|(subscription, _)| subscription.subscription).collect();
        for unknown in stored.difference(&known).take(MOST_READ) {
            let Some(hold) = self.js.stored_hold(unknown).await? else { continue };
            let notice = &hold.notice;
            if self.is_current(&notice.subscription, notice.revision) {
                self.heard(notice);
            } else {
                self.js.end_hold(&notice.subscription).await?;
            }
        }
        Ok(())
    }
}

impl Worker {
    /// Applies all holds that the process knows, and no other ones.
    pub(super) fn take_holds(&self, running: &mut Running) {
        let all = self.holding.all();
        let held: HashSet<&Identity> = all.iter().map(|(subscription, _)| subscription).collect();
        running.pool.release(|subscription| !held.contains(subscription));
        for (subscription, until) in &all {
            self.hold(running, subscription, *until);
        }
    }

    pub(super) fn hear_of_holds(&self, running: &mut Running, news: Result<HoldNews, RecvError>) {
        match news {
            Ok(HoldNews::Held { subscription, until }) => self.hold(running, &subscription, until),
            Ok(HoldNews::Ended(ended)) => running.pool.release(|subscription| *subscription == ended),
            // The sender lives as long as this.
            Err(RecvError::Lagged(_) | RecvError::Closed) => self.take_holds(running),
        }
    }

    /// The endpoint of a subscription asked for a pause. The other workers and processes are notified.
    pub(super) fn hold_as_asked(&self, running: &mut Running, subscription: &Identity, asked: Asked) {
        if let Some(until) = self.holding.asked(subscription, asked, &self.domain.name) {
            self.hold(running, subscription, until);
        }
    }

    /// Starts no deliveries of a subscription for a while. Its waiting envelopes stay here with heartbeats, or move to its
    /// own lane if the hold is long.
    fn hold(&self, running: &mut Running, subscription: &Identity, until: Instant) {
        let wait = until.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return;
        }
        let now = running.started.elapsed();
        for held in running.pool.hold(subscription, now + wait, now) {
            self.spill(running, held);
        }
    }
}

fn time_of(at: OffsetDateTime) -> String {
    let at = at.replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

/// A connection that is closed ends the process elsewhere; here it only yields nothing.
async fn hear(notices: &mut HoldNotices) -> HoldNotice {
    match notices.next().await {
        Some(notice) => notice,
        None => std::future::pending().await,
    }
}
