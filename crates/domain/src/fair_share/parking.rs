//! Slow attempts leave the slots: an attempt that has run for a second is *parked*, and its slot is free for the next one.
//! So endpoints that hang keep a slot for a second each, and not for their whole timeout, however many begin at once. While
//! new subscriptions wait for a slot, attempts of subscriptions on probation leave after a quarter of a second: after a
//! start nothing is known, and the endpoints that work are behind those that hang.
//!
//! The room for parked attempts is bounded. One subscription may use an eighth of it, and one tenant a half if there are
//! several. An attempt for which there is no room keeps its slot.

use std::time::Duration;

use super::queue::{Queue, SLOW};
use super::tenants::Ring;
use super::{FairShare, KNOWN, PoolLimits};

/// Room for parked attempts, per slot.
const ROOM_PER_SLOT: usize = 4;
/// Parked attempts may use the memory divided by this.
const MEMORY_PART: usize = 4;
/// One subscription may use the room divided by this.
const SUBSCRIPTION_PART: usize = 8;
/// One tenant may use the room divided by this, if there are several.
const TENANT_PART: usize = 2;
/// While new subscriptions wait for a slot, an attempt of a subscription on probation leaves its slot after this time.
const CROWDED: Duration = Duration::from_millis(250);
/// Attempts are looked at no more often.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Parking {
    room: usize,
    parked: usize,
    /// No attempt becomes slow before.
    due: Duration,
    /// No attempt has run for [`CROWDED`] before.
    due_if_crowded: Duration,
}

impl Parking {
    pub(super) fn new(limits: PoolLimits) -> Self {
        let room = (limits.slots.max(1) * ROOM_PER_SLOT).min(limits.memory / MEMORY_PART);
        Self { room, parked: 0, due: Duration::ZERO, due_if_crowded: Duration::ZERO }
    }

    pub(super) fn room(&self) -> usize {
        self.room
    }

    pub(super) fn parked(&self) -> usize {
        self.parked
    }

    pub(super) fn leave(&mut self) {
        self.parked -= 1;
    }

    /// The wait until the next attempt may be parked; `None` if there is no room.
    pub(super) fn wait(&self, is_crowded: bool, now: Duration) -> Option<Duration> {
        let wait = self.due(is_crowded).saturating_sub(now).max(Duration::from_millis(1));
        (self.parked < self.room).then_some(wait)
    }

    fn due(&self, is_crowded: bool) -> Duration {
        if is_crowded { self.due_if_crowded } else { self.due }
    }
}

impl<T> FairShare<T> {
    /// Puts subscriptions with a slow attempt on probation, and parks these attempts as far as there is room. Does nothing
    /// until an attempt may have become slow.
    pub(super) fn park_slow_attempts(&mut self, now: Duration) {
        let is_crowded = self.is_crowded();
        if now < self.parking.due(is_crowded) {
            return;
        }
        let of_subscription = (self.parking.room / SUBSCRIPTION_PART).max(1);
        let of_tenant =
            if self.tenants.several() { self.parking.room / TENANT_PART } else { self.parking.room };
        let mut oldest = now;
        for place in 0..self.queues.len() {
            let Some(queue) = &mut self.queues[place] else { continue };
            if queue.in_slots() == 0 {
                continue;
            }
            if queue.is_overdue(now) {
                self.begin_probation(place);
            }
            let queue = self.queue(place);
            let patience = if is_crowded && queue.on_probation { CROWDED } else { SLOW };
            if queue.first_start().is_some_and(|started| started + patience <= now) {
                let tenant = self.queue(place).tenant;
                let left = (self.parking.room - self.parking.parked)
                    .min(of_tenant.saturating_sub(self.tenants.parked_of(tenant)));
                let queue = self.queues[place].as_mut().expect(KNOWN);
                let parked =
                    queue.park(left.min(of_subscription.saturating_sub(queue.parked)), patience, now);
                self.parking.parked += parked;
                self.slots.park(parked);
                self.tenants.parked(tenant, parked);
            }
            if let Some(started) = self.queue(place).oldest_in_slot() {
                oldest = oldest.min(started);
            }
        }
        self.parking.due = (oldest + SLOW).max(now + PAUSE);
        self.parking.due_if_crowded = (oldest + CROWDED).max(now + PAUSE);
    }

    /// Whether a new subscription waits for a slot.
    pub(super) fn is_crowded(&self) -> bool {
        self.tenants.least(Ring::Newcomer).is_some() && !self.slots.admits(Ring::Newcomer)
    }

    /// Most items in flight, parked or not.
    pub(super) fn most_in_flight(&self) -> usize {
        self.slots.pool() + self.parking.room()
    }

    pub(super) fn begin_probation(&mut self, place: super::QueuePlace) {
        let queue = self.queues[place].as_mut().expect(KNOWN);
        if !queue.on_probation {
            queue.on_probation = true;
            self.slots.change(true, queue.in_slots());
            self.settle(place);
        }
    }
}

impl<T> Queue<T> {
    /// Number of items in flight that have a slot.
    pub(super) fn in_slots(&self) -> usize {
        self.in_flight - self.parked
    }

    /// Parks at most `most` items that have run for `patience`, the oldest first. Returns their number.
    fn park(&mut self, most: usize, patience: Duration, now: Duration) -> usize {
        let mut parked = 0;
        for (started, running) in &mut self.running {
            if *started + patience > now || parked == most {
                break;
            }
            let here = (running.items - running.parked).min(most - parked);
            running.parked += here;
            parked += here;
        }
        self.parked += parked;
        parked
    }

    fn oldest_in_slot(&self) -> Option<Duration> {
        let (started, _) = self.running.iter().find(|(_, running)| running.parked < running.items)?;
        Some(*started)
    }
}
