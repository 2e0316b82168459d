//! The waiting items and the state of one subscription.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::tenants::{Ring, TenantPlace};
use super::{Finish, Turn};
use crate::allotment::FlowLimits;
use crate::subscription::Identity;

/// An attempt that takes longer is slow, whatever its outcome, and counts before it ends.
pub(super) const SLOW: Duration = Duration::from_secs(1);

/// Items in flight that started together.
#[derive(Debug, Default)]
pub(super) struct Running {
    pub(super) items: usize,
    /// Those of them that have left their slots.
    pub(super) parked: usize,
}

/// Where an item in flight was when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    InSlot,
    Parked,
}

#[derive(Debug)]
pub(super) struct Queue<T> {
    pub(super) id: Identity,
    pub(super) tenant: TenantPlace,
    /// Each with the memory that it counts for; 0 for those that [`offer_beyond`](super::FairShare::offer_beyond) queued.
    pub(super) items: VecDeque<(T, u32)>,
    /// The sum of these.
    pub(super) weight: usize,
    /// The items in flight, by start time.
    pub(super) running: BTreeMap<Duration, Running>,
    pub(super) in_flight: usize,
    /// Those in flight that have left their slots.
    pub(super) parked: usize,
    /// When an item ended last.
    last_finish: Duration,
    /// Maximum number of items in flight.
    pub(super) share: usize,
    /// Maximum share: `max_in_flight`, at most the pool and, until the next finish, what the limits allow.
    pub(super) most: usize,
    /// It is new, or its last attempts were unhealthy or slow.
    pub(super) on_probation: bool,
    /// No attempt has ended yet.
    pub(super) is_new: bool,
    /// Its limits with its last item.
    pub(super) limits: FlowLimits,
    /// Its turn in a ring.
    pub(super) turn: Option<(Turn, Ring)>,
    /// Its entry in `limited`.
    pub(super) limited_until: Option<Duration>,
    /// End of the hold; its entry in `limited` is not earlier.
    pub(super) held_until: Option<Duration>,
    /// Its entry in `remembered`.
    pub(super) remembered: Option<Turn>,
}

impl<T> Queue<T> {
    pub(super) fn new(id: Identity, tenant: TenantPlace, most: usize) -> Self {
        Self {
            id,
            tenant,
            items: VecDeque::new(),
            weight: 0,
            running: BTreeMap::new(),
            in_flight: 0,
            parked: 0,
            last_finish: Duration::ZERO,
            share: 1,
            most,
            on_probation: true,
            is_new: true,
            limits: FlowLimits { max_in_flight: 1, rate: None, offered: Duration::ZERO },
            turn: None,
            limited_until: None,
            held_until: None,
            remembered: None,
        }
    }

    /// The ring for its state; `None` if it has nothing to run.
    pub(super) fn ring(&self) -> Option<Ring> {
        if self.items.is_empty() || self.in_flight >= self.share || self.limited_until.is_some() {
            return None;
        }
        Some(match (self.on_probation, self.in_flight) {
            (false, 0) => Ring::First,
            (false, _) => Ring::Further,
            (true, 0) if self.is_new => Ring::Newcomer,
            (true, 0) => Ring::Probe,
            (true, _) => Ring::Probation,
        })
    }

    /// Whether items are in flight, and none has started or ended for `time`.
    pub(super) fn stands_still(&self, now: Duration, time: Duration) -> bool {
        let started = self.running.last_key_value().map(|(started, _)| *started);
        started.is_some_and(|started| started.max(self.last_finish) + time <= now)
    }

    /// Whether an item in flight is slow.
    pub(super) fn is_overdue(&self, now: Duration) -> bool {
        self.running.first_key_value().is_some_and(|(started, _)| *started + SLOW <= now)
    }

    pub(super) fn start(&mut self, now: Duration) {
        self.in_flight += 1;
        self.running.entry(now).or_default().items += 1;
    }

    /// Ends an item in flight, and adapts the share. `confirmed` is the share from which a subscription that answers
    /// well is not on probation. Returns `None` if nothing was in flight.
    pub(super) fn finish(
        &mut self,
        finish: Finish,
        started: Duration,
        confirmed: usize,
        now: Duration,
    ) -> Option<Ended> {
        if self.in_flight == 0 {
            return None;
        }
        self.in_flight -= 1;
        self.last_finish = now;
        // An unknown start is the oldest one.
        let started = if self.running.contains_key(&started) { Some(started) } else { self.first_start() };
        let mut ended = Ended::InSlot;
        if let Some(started) = started
            && let Some(running) = self.running.get_mut(&started)
        {
            running.items -= 1;
            if running.parked > 0 {
                running.parked -= 1;
                self.parked -= 1;
                ended = Ended::Parked;
            }
            if running.items == 0 {
                self.running.remove(&started);
            }
        }
        let slow = started.is_some_and(|started| started + SLOW <= now);
        match finish {
            Finish::Untried => return Some(ended),
            Finish::Healthy => {
                self.share = (self.share + 1).min(self.most);
                if slow {
                    self.on_probation = true;
                } else if self.share >= confirmed.min(self.most) && !self.is_overdue(now) {
                    self.on_probation = false;
                }
            }
            Finish::Unhealthy => {
                self.share = (self.share / 2).max(1);
                self.on_probation = true;
            }
        }
        self.is_new = false;
        Some(ended)
    }

    pub(super) fn first_start(&self) -> Option<Duration> {
        self.running.first_key_value().map(|(started, _)| *started)
    }
}
