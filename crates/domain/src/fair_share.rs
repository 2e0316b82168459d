//! The scheduler of a delivery pool: selects the next item so that no subscription and no tenant starves the others.
//!
//! The tenant with the fewest items in flight comes first, however many subscriptions it has. If there are several
//! tenants, none may use the whole pool, so that another tenant's item finds a free slot at once, even if each delivery
//! takes a minute. The number of waiting items of a tenant is bounded.
//!
//! Each incarnation of a subscription has a bounded queue and a *share*: the maximum number of its items in flight. A
//! share starts at one, grows by one with each healthy finish up to the subscription's `max_in_flight`, and halves, down
//! to one, with each unhealthy finish.
//!
//! A subscription is *on probation* while it is new, and after an attempt that is unhealthy or slow. A slow attempt
//! counts before it ends. A few quick and healthy finishes end the probation. Subscriptions on probation together use at
//! most half of the pool, or more if the others do not use it; a part of their slots is for those that have nothing in
//! flight, new ones first. A part of the whole pool is for subscriptions that are not on probation and have nothing in
//! flight. So however many endpoints hang, an endpoint that works finds a slot.
//!
//! An attempt that has run for a second leaves its slot, up to a bound of attempts that do so; sooner while new
//! subscriptions wait for a slot. So endpoints that hang pass through the slots, however many are new at once.
//!
//! No item of a *held* subscription (its endpoint sent `Retry-After`) starts before the hold ends; its items wait in
//! their queue.
//!
//! The memory for waiting items is shared by a dynamic threshold (Choudhury and Hahne, "Dynamic queue length thresholds
//! for shared-memory packet switches", 1998): a queue may use a fraction of what is free, a smaller one if its items do
//! not leave soon. So some is always free, however many subscriptions are stuck. While endpoints that answer quickly
//! use the whole pool, their queues may use all of it: what is behind them waits for two seconds at most, and moving items
//! elsewhere costs as much as delivering them. A queue that then no longer moves gives its items [back](FairShare::relieve).
//!
//! A tenant's waiting subscriptions take turns in rings, by what they may take of the pool; those on probation and the
//! others take turns. An operation costs O(log n) in the number of waiting subscriptions, however many items wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use foldhash::fast::RandomState;

use super::allotment::{FlowLimits, Sharer};
use super::subscription::{Identity, RateLimit};

mod holding;
mod memory;
mod parking;
mod queue;
mod sharing;
mod slots;
mod stopped;
mod tenants;
#[cfg(test)]
mod tests;

use holding::LONG_HOLD;
use parking::Parking;
use queue::{Ended, Queue};
use slots::Slots;
use tenants::{Ring, Tenants};

/// Subscriptions without items whose state is remembered, at most.
const MAX_REMEMBERED: usize = 10_000;

/// The share from which a subscription that answers well is not on probation is the pool divided by this.
const CONFIRMED_PART: usize = 16;

/// The pool divided by this is reserved for the other tenants.
const OTHERS_PART: usize = 16;

/// The place of a subscription in the slab.
type QueuePlace = usize;
/// A counter; a lower turn comes first.
type Turn = u64;

/// How an item ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The endpoint works.
    Healthy,
    /// The endpoint does not work.
    Unhealthy,
    /// No attempt was made, so nothing is known about the endpoint.
    Untried,
}

/// Bounds of a pool.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Items in flight at once (at least 1).
    pub slots: usize,
    /// Waiting items of one subscription.
    pub queue_per_subscription: usize,
    /// Waiting items of one tenant, if there are several tenants.
    pub queue_per_tenant: usize,
    /// Items in memory, waiting or in flight, without those that [`FairShare::offer_beyond`] queued.
    pub memory: usize,
}

/// The waiting and running items of a pool. Callers pass the time as the duration since a fixed start; it never goes
/// back.
#[derive(Debug)]
pub struct FairShare<T> {
    limits: PoolLimits,
    /// The limits of subscriptions, which other pools and processes share.
    sharer: Sharer,
    slots: Slots,
    parking: Parking,
    /// An incarnation is random, so that nobody chooses keys that collide.
    places: HashMap<Identity, QueuePlace, RandomState>,
    queues: Vec<Option<Queue<T>>>,
    free: Vec<QueuePlace>,
    /// Subscriptions with a waiting item and room in their share, each in one of its tenant's rings.
    tenants: Tenants,
    /// True if the rings of subscriptions on probation are next, if both kinds have one.
    probation_next: bool,
    /// Subscriptions that wait for their limits or for the end of a hold, by its time.
    limited: BTreeSet<(Duration, QueuePlace)>,
    /// Subscriptions that are not new.
    known: usize,
    /// Idle subscriptions whose state is kept, oldest first.
    remembered: BTreeMap<Turn, QueuePlace>,
    turns: Turn,
    waiting: usize,
    /// Weight of the waiting items that count as held memory.
    in_memory: usize,
    /// The last time when `relieve` looked at the queues.
    relieved: Duration,
    /// Nothing starts before this time.
    stopped_until: Option<Duration>,
}

impl<T> FairShare<T> {
    /// Makes an empty pool that shares the limits of subscriptions with others.
    pub fn sharing(limits: PoolLimits, sharer: Sharer) -> Self {
        Self {
            limits,
            sharer,
            slots: Slots::new(limits.slots),
            parking: Parking::new(limits),
            places: HashMap::default(),
            queues: Vec::new(),
            free: Vec::new(),
            tenants: Tenants::default(),
            probation_next: false,
            limited: BTreeSet::new(),
            known: 0,
            remembered: BTreeMap::new(),
            turns: 0,
            waiting: 0,
            in_memory: 0,
            relieved: Duration::ZERO,
            stopped_until: None,
        }
    }

    /// Queues an item with the current limits of its subscription. Returns the item as an error if the subscription or
    /// its tenant uses its part of the memory, or if the subscription is held for long.
    pub fn offer(
        &mut self,
        subscription: &Identity,
        max_in_flight: u32,
        rate: Option<RateLimit>,
        item: T,
        now: Duration,
    ) -> Result<(), T> {
        self.offer_of_weight(subscription, max_in_flight, rate, (item, 1), now)
    }

    /// As [`Self::offer`], for an item that takes the memory of this number of items, at least 1.
    pub fn offer_of_weight(
        &mut self,
        subscription: &Identity,
        max_in_flight: u32,
        rate: Option<RateLimit>,
        (item, weight): (T, u32),
        now: Duration,
    ) -> Result<(), T> {
        let full_for_tenant = || {
            let waiting = self.tenants.waiting_of(subscription.subscription.tenant());
            self.tenants.several() && waiting >= self.limits.queue_per_tenant
        };
        let long_hold = || self.held_for(subscription, now).is_some_and(|rest| rest > LONG_HOLD);
        let weight = weight.max(1);
        let full = self.held_by(subscription, weight) > self.allowance(subscription, now);
        if full || full_for_tenant() || long_hold() {
            return Err(item);
        }
        self.push(subscription, max_in_flight, rate, (item, weight), now);
        Ok(())
    }

    /// Queues an item even if the queue is full, for items whose number is bounded elsewhere.
    pub fn offer_beyond(
        &mut self,
        subscription: &Identity,
        max_in_flight: u32,
        rate: Option<RateLimit>,
        item: T,
        now: Duration,
    ) {
        self.push(subscription, max_in_flight, rate, (item, 0), now);
    }

    fn push(
        &mut self,
        subscription: &Identity,
        max_in_flight: u32,
        rate: Option<RateLimit>,
        (item, weight): (T, u32),
        now: Duration,
    ) {
        let most = self.most(max_in_flight);
        let place = self.place_of(subscription);
        let queue = self.queues[place].as_mut().expect(KNOWN);
        queue.most = most;
        queue.share = queue.share.min(most);
        if queue.limits.rate != rate {
            if let Some(until) = queue.limited_until.take() {
                self.limited.remove(&(until, place));
            }
            if let Some(until) = queue.held_until {
                queue.limited_until = Some(until);
                self.limited.insert((until, place));
            }
        }
        queue.limits = FlowLimits { max_in_flight, rate, offered: now };
        if weight > 0 {
            // Items of the shared lane are older than those of the own lane, whose number is small.
            let at = queue.items.iter().rposition(|(_, weight)| *weight > 0).map_or(0, |last| last + 1);
            queue.items.insert(at, (item, weight));
        } else {
            queue.items.push_back((item, 0));
        }
        if let Some(stamp) = queue.remembered.take() {
            self.remembered.remove(&stamp);
        }
        let tenant = queue.tenant;
        self.waiting += 1;
        queue.weight += weight as usize;
        self.in_memory += weight as usize;
        *self.tenants.waiting(tenant) += 1;
        self.settle(place);
    }

    /// The next item to run, if a slot is free and the share and the rate limit of a waiting subscription permit it. Call
    /// `finished` for each item afterwards.
    pub fn next(&mut self, now: Duration) -> Option<T> {
        if self.is_stopped(now) {
            return None;
        }
        while let Some(&(until, place)) = self.limited.first()
            && until <= now
        {
            self.limited.pop_first();
            let queue = self.queue(place);
            queue.limited_until = None;
            queue.held_until = None;
            self.settle(place);
        }
        self.park_slow_attempts(now);
        self.slots.observe(now);
        loop {
            let place = self.take_turn()?;
            let queue = self.queues[place].as_mut().expect(KNOWN);
            if !queue.on_probation && queue.is_overdue(now) {
                self.begin_probation(place);
                continue;
            }
            if !self.admits(place, now) {
                continue;
            }
            let queue = self.queues[place].as_mut().expect(KNOWN);
            let (item, weight) =
                queue.items.pop_front().expect("a subscription in a ring has a waiting item");
            queue.start(now);
            let tenant = queue.tenant;
            self.waiting -= 1;
            queue.weight -= weight as usize;
            self.in_memory -= weight as usize;
            self.slots.start(queue.on_probation, now);
            *self.tenants.waiting(tenant) -= 1;
            self.tenants.started(tenant);
            self.settle(place);
            return Some(item);
        }
    }

    /// Frees the slot of an item that `next` returned at `started`.
    pub fn finished(&mut self, subscription: &Identity, finish: Finish, started: Duration, now: Duration) {
        let Some(&place) = self.places.get(subscription) else { return };
        let confirmed = (self.slots.pool() / CONFIRMED_PART).max(2);
        let queue = self.queues[place].as_mut().expect(KNOWN);
        let (was_on_probation, was_new) = (queue.on_probation, queue.is_new);
        let Some(ended) = queue.finish(finish, started, confirmed, now) else { return };
        self.known += usize::from(was_new && !queue.is_new);
        if finish == Finish::Untried {
            self.sharer.put_back(subscription);
        }
        self.sharer.release(subscription, now);
        match ended {
            Ended::InSlot => {
                self.slots.finish(was_on_probation, now);
                self.tenants.finished(queue.tenant);
            }
            Ended::Parked => {
                self.parking.leave();
                self.tenants.finished_parked(queue.tenant);
            }
        }
        if queue.on_probation != was_on_probation {
            self.slots.change(queue.on_probation, queue.in_slots());
        }
        self.grow_again(place, finish);
        if finish == Finish::Untried {
            // Before the token is lost in a bucket that has become full.
            self.ask_again(place);
        }
        self.settle(place);
        self.retire(place);
    }

    /// The wait until the next item may run without another finish or offer: when a rate limit permits it, a hold or
    /// a stop ends, the subscriptions on probation may use more of the pool, or an attempt becomes slow; or until `relieve`
    /// is due. `None` if there is no such time. Call it after `next` has returned `None`, and after `relieve`.
    pub fn next_wake(&self, now: Duration) -> Option<Duration> {
        if let Some(rest) = self.rest_of_stop(now) {
            return Some(rest);
        }
        let waits = |rings: &[Ring]| rings.iter().any(|ring| self.tenants.least(*ring).is_some());
        let waits_on_probation = waits(&Ring::ON_PROBATION);
        let wants_slot = self.slots.in_flight() > 0 && (waits_on_probation || waits(&Ring::STEADY));
        let parked = if wants_slot { self.parking.wait(self.is_crowded(), now) } else { None };
        let sooner = self.relief_wait(now).into_iter().chain(parked);
        if self.slots.is_full() {
            return sooner.min();
        }
        let limited = self.limited.first().map(|(until, _)| until.saturating_sub(now));
        let window = waits_on_probation.then(|| self.slots.next_window(now));
        sooner.chain(limited).chain(window).min()
    }

    /// Number of waiting items.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Number of items that `next` returned and that are not finished.
    pub fn in_flight(&self) -> usize {
        self.slots.in_flight() + self.parking.parked()
    }

    /// Number of waiting items of a subscription.
    #[cfg(test)]
    fn waiting_of(&self, subscription: &Identity) -> usize {
        self.find(subscription).map_or(0, |queue| queue.items.len())
    }

    /// Number of items of a subscription in flight.
    #[cfg(test)]
    fn in_flight_of(&self, subscription: &Identity) -> usize {
        self.find(subscription).map_or(0, |queue| queue.in_flight)
    }

    fn find(&self, subscription: &Identity) -> Option<&Queue<T>> {
        self.queues[*self.places.get(subscription)?].as_ref()
    }

    fn queue(&mut self, place: QueuePlace) -> &mut Queue<T> {
        self.queues[place].as_mut().expect(KNOWN)
    }

    /// Slots that one tenant leaves to the others.
    fn others_part(&self) -> usize {
        if self.tenants.several() { (self.slots.pool() / OTHERS_PART).max(1) } else { 0 }
    }

    /// Maximum number of items in flight of one tenant.
    fn tenant_limit(&self) -> usize {
        (self.slots.pool() - self.others_part()).max(1)
    }

    /// Takes the next subscription out of its ring; those on probation and the others take turns.
    fn take_turn(&mut self) -> Option<QueuePlace> {
        let most = self.tenant_limit();
        // The tenant comes before the order of the rings.
        let first = |rings: &[Ring]| {
            let waiting = rings.iter().filter_map(|ring| Some((self.tenants.least(*ring)?, *ring)));
            let admitted = waiting.filter(|(least, ring)| {
                let reserved = *ring == Ring::Further && *least < self.others_part() && !self.slots.is_full();
                *least < most && (reserved || self.slots.admits(*ring))
            });
            admitted.min_by_key(|(least, _)| *least).map(|(_, ring)| ring)
        };
        let (steady, on_probation) = (first(&Ring::STEADY), first(&Ring::ON_PROBATION));
        let ring = if self.probation_next { on_probation.or(steady) } else { steady.or(on_probation) }?;
        let place = self.tenants.pop(ring)?;
        self.probation_next = !Ring::ON_PROBATION.contains(&ring);
        self.queue(place).turn = None;
        Some(place)
    }

    /// Moves a subscription to the ring for its current state, or out of all. It keeps its turn in another ring.
    fn settle(&mut self, place: QueuePlace) {
        let queue = self.queues[place].as_mut().expect(KNOWN);
        let belongs = queue.ring();
        if queue.turn.map(|(_, ring)| ring) == belongs {
            return;
        }
        let turn = match queue.turn.take() {
            Some((turn, ring)) => {
                self.tenants.remove(queue.tenant, ring, turn);
                turn
            }
            None => {
                self.turns += 1;
                self.turns
            }
        };
        if let Some(ring) = belongs {
            queue.turn = Some((turn, ring));
            self.tenants.insert(queue.tenant, ring, turn, place);
        }
    }

    fn place_of(&mut self, subscription: &Identity) -> QueuePlace {
        if let Some(&place) = self.places.get(subscription) {
            return place;
        }
        let tenant = self.tenants.enter(subscription.subscription.tenant());
        let queue = Queue::new(subscription.clone(), tenant, self.slots.pool());
        let place = match self.free.pop() {
            Some(place) => {
                self.queues[place] = Some(queue);
                place
            }
            None => {
                self.queues.push(Some(queue));
                self.queues.len() - 1
            }
        };
        self.places.insert(subscription.clone(), place);
        place
    }

    /// Removes a subscription without items. If anything is known about it, its state is kept until newer ones displace
    /// it.
    fn retire(&mut self, place: QueuePlace) {
        let Some(queue) = &mut self.queues[place] else { return };
        if !queue.items.is_empty() || queue.in_flight > 0 || queue.remembered.is_some() {
            return;
        }
        if !queue.is_new || queue.held_until.is_some() {
            self.turns += 1;
            queue.remembered = Some(self.turns);
            // Releases the memory of a queue that was long.
            queue.items.shrink_to_fit();
            self.remembered.insert(self.turns, place);
            if self.remembered.len() > MAX_REMEMBERED
                && let Some((_, oldest)) = self.remembered.pop_first()
            {
                self.forget(oldest);
            }
        } else {
            self.forget(place);
        }
    }

    /// Removes the state of a subscription without items, which is in no ring.
    fn forget(&mut self, place: QueuePlace) {
        if let Some(queue) = self.queues[place].take() {
            if let Some(until) = queue.limited_until {
                self.limited.remove(&(until, place));
            }
            self.known -= usize::from(!queue.is_new);
            self.tenants.leave(queue.tenant);
            self.places.remove(&queue.id);
            self.free.push(place);
        }
    }
}

const KNOWN: &str = "a place in use has a queue";
