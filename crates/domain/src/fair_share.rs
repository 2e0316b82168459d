//! The scheduler of a delivery pool: selects the next item so that no subscription and no tenant starves the others.
//!
//! The tenant with the fewest items in flight comes first, however many subscriptions it has. If there are several
//! tenants, none may use the whole pool, so that another tenant's item finds a free slot at once, even if each delivery
//! takes a minute. The number of waiting items of a tenant is bounded.
//!
//! Each incarnation of a subscription has a bounded queue and a *share*: the maximum number of its items in flight. A
//! share starts small, grows by one with each healthy finish up to the subscription's `max_in_flight`, and halves, down
//! to one, with each unhealthy finish. So an endpoint that does not answer holds about one slot, and an unknown
//! endpoint holds few. Subscriptions whose last finishes were unhealthy (*reduced*) together use at most half of the
//! pool.
//!
//! No item of a *held* subscription (its endpoint sent `Retry-After`) starts before the hold ends; its items wait in
//! their queue.
//!
//! A tenant's waiting subscriptions take turns in two rings, one of them for reduced subscriptions, and the rings take
//! turns. An operation costs O(log n) in the number of waiting subscriptions, however many items wait.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::subscription::{Identity, RateLimit};

mod bucket;
mod tenants;
#[cfg(test)]
mod tests;

use bucket::Bucket;
use tenants::{TenantPlace, Tenants};

/// Subscriptions without items whose reduced share or spent rate limit is remembered, at most.
const MAX_REMEMBERED: usize = 10_000;

/// The initial share is the pool divided by this.
const INITIAL_PART: usize = 16;

/// The pool divided by this is reserved for the other tenants.
const OTHERS_PART: usize = 16;

/// The place of a subscription in the slab.
type Place = usize;
/// A counter; a lower turn comes first.
type Turn = u64;

/// The waiting and running items of a pool. Callers pass the time as the duration since a fixed start; it never goes
/// back.
#[derive(Debug)]
pub struct FairShare<T> {
    pool: usize,
    queue_per_subscription: usize,
    queue_per_tenant: usize,
    places: HashMap<Identity, Place>,
    queues: Vec<Option<Queue<T>>>,
    free: Vec<Place>,
    /// Subscriptions with a waiting item and room in their share, each in one of its tenant's two rings.
    tenants: Tenants,
    /// True if the ring of reduced subscriptions is next, if both have one.
    reduced_next: bool,
    /// Subscriptions that wait for the next token of their rate limit or for the end of a hold, by its time.
    limited: BTreeSet<(Duration, Place)>,
    /// Idle subscriptions whose state is kept, oldest first.
    remembered: BTreeMap<Turn, Place>,
    turns: Turn,
    waiting: usize,
    in_flight: usize,
    reduced_in_flight: usize,
}

/// The queue and the state of one subscription.
#[derive(Debug)]
struct Queue<T> {
    id: Identity,
    tenant: TenantPlace,
    items: VecDeque<T>,
    in_flight: usize,
    share: usize,
    /// Maximum share: `max_in_flight`, at most the pool.
    most: usize,
    reduced: bool,
    bucket: Option<Bucket>,
    /// Its turn in a ring; true for the ring of reduced subscriptions.
    turn: Option<(Turn, bool)>,
    /// Its entry in `limited`.
    limited_until: Option<Duration>,
    /// End of the hold; its entry in `limited` is not earlier.
    held_until: Option<Duration>,
    /// Its entry in `remembered`.
    remembered: Option<Turn>,
}

impl<T> Queue<T> {
    fn can_run(&self) -> bool {
        !self.items.is_empty() && self.in_flight < self.share
    }
}

impl<T> FairShare<T> {
    /// Makes a pool of `pool` slots (at least 1), with the maximum number of waiting items per subscription, and per
    /// tenant if there are several tenants.
    pub fn new(pool: usize, queue_per_subscription: usize, queue_per_tenant: usize) -> Self {
        Self {
            pool: pool.max(1),
            queue_per_subscription,
            queue_per_tenant,
            places: HashMap::new(),
            queues: Vec::new(),
            free: Vec::new(),
            tenants: Tenants::default(),
            reduced_next: false,
            limited: BTreeSet::new(),
            remembered: BTreeMap::new(),
            turns: 0,
            waiting: 0,
            in_flight: 0,
            reduced_in_flight: 0,
        }
    }

    /// Queues an item with the current limits of its subscription. Returns the item as an error if the queue of the
    /// subscription or of its tenant is full.
    pub fn offer(
        &mut self,
        subscription: &Identity,
        max_in_flight: u32,
        rate: Option<RateLimit>,
        item: T,
        now: Duration,
    ) -> Result<(), T> {
        let full_for_tenant = || {
            let waiting = self.tenants.waiting_of(subscription.subscription.tenant());
            self.tenants.several() && waiting >= self.queue_per_tenant
        };
        if self.waiting_of(subscription) >= self.queue_per_subscription || full_for_tenant() {
            return Err(item);
        }
        self.offer_beyond(subscription, max_in_flight, rate, item, now);
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
        let most = (max_in_flight as usize).clamp(1, self.pool);
        let place = self.place_of(subscription);
        let queue = self.queues[place].as_mut().expect(KNOWN);
        queue.most = most;
        queue.share = queue.share.min(most);
        let unchanged = queue.bucket.as_ref().map(Bucket::limit) == rate;
        if !unchanged {
            queue.bucket = rate.map(|rate| Bucket::changed(queue.bucket.as_ref(), rate, now));
            if let Some(until) = queue.limited_until.take() {
                self.limited.remove(&(until, place));
            }
            if let Some(until) = queue.held_until {
                queue.limited_until = Some(until);
                self.limited.insert((until, place));
            }
        }
        queue.items.push_back(item);
        if let Some(stamp) = queue.remembered.take() {
            self.remembered.remove(&stamp);
        }
        let tenant = queue.tenant;
        self.waiting += 1;
        *self.tenants.waiting(tenant) += 1;
        self.settle(place);
    }

    /// The next item to run, if a slot is free and the share and the rate limit of a waiting subscription permit it. Call
    /// `finished` for each item afterwards.
    pub fn next(&mut self, now: Duration) -> Option<T> {
        while let Some(&(until, place)) = self.limited.first()
            && until <= now
        {
            self.limited.pop_first();
            let queue = self.queue(place);
            queue.limited_until = None;
            queue.held_until = None;
            self.settle(place);
        }
        if self.in_flight >= self.pool {
            return None;
        }
        loop {
            let place = self.take_turn()?;
            let queue = self.queues[place].as_mut().expect(KNOWN);
            if let Some(Err(wait)) = queue.bucket.as_mut().map(|bucket| bucket.take(now)) {
                let until = now + wait;
                queue.limited_until = Some(until);
                self.limited.insert((until, place));
                continue;
            }
            let item = queue.items.pop_front().expect("a subscription in a ring has a waiting item");
            queue.in_flight += 1;
            let tenant = queue.tenant;
            self.waiting -= 1;
            self.in_flight += 1;
            self.reduced_in_flight += usize::from(queue.reduced);
            *self.tenants.waiting(tenant) -= 1;
            self.tenants.started(tenant);
            self.settle(place);
            return Some(item);
        }
    }

    /// Frees the slot of an item that `next` returned. `healthy` is the result of `Outcome::is_healthy`.
    pub fn finished(&mut self, subscription: &Identity, healthy: bool) {
        let Some(&place) = self.places.get(subscription) else { return };
        let initial = self.initial_share();
        let queue = self.queues[place].as_mut().expect(KNOWN);
        if queue.in_flight == 0 {
            return;
        }
        queue.in_flight -= 1;
        self.tenants.finished(queue.tenant);
        self.in_flight -= 1;
        self.reduced_in_flight -= usize::from(queue.reduced);
        if healthy {
            queue.share = (queue.share + 1).min(queue.most);
            if queue.reduced && queue.share >= initial.min(queue.most) {
                queue.reduced = false;
                self.reduced_in_flight -= queue.in_flight;
            }
        } else {
            queue.share = (queue.share / 2).max(1);
            if !queue.reduced {
                queue.reduced = true;
                self.reduced_in_flight += queue.in_flight;
            }
        }
        self.settle(place);
        self.retire(place);
    }

    /// Starts no item of a subscription until `until`; a hold that ends later stays. Removes and returns the waiting items
    /// for which `give_back` returns true.
    pub fn hold(
        &mut self,
        subscription: &Identity,
        until: Duration,
        mut give_back: impl FnMut(&T) -> bool,
    ) -> Vec<T> {
        let place = self.place_of(subscription);
        let queue = self.queues[place].as_mut().expect(KNOWN);
        if queue.held_until.is_none_or(|held| held < until) {
            queue.held_until = Some(until);
            let ends = queue.limited_until.map_or(until, |limited| limited.max(until));
            if let Some(before) = queue.limited_until.replace(ends) {
                self.limited.remove(&(before, place));
            }
            self.limited.insert((ends, place));
        }
        let (given, kept): (Vec<T>, Vec<T>) = queue.items.drain(..).partition(|item| give_back(item));
        queue.items.extend(kept);
        let tenant = queue.tenant;
        self.waiting -= given.len();
        *self.tenants.waiting(tenant) -= given.len();
        self.settle(place);
        self.retire(place);
        given
    }

    /// The rest of the hold of a subscription; `None` if it is not held.
    pub fn held_for(&self, subscription: &Identity, now: Duration) -> Option<Duration> {
        let until = self.find(subscription)?.held_until?;
        (until > now).then(|| until - now)
    }

    /// Ends the holds of removed subscriptions, whose waiting items have no endpoint any more.
    pub fn release(&mut self, gone: impl Fn(&Identity) -> bool) {
        for place in 0..self.queues.len() {
            let Some(queue) = &mut self.queues[place] else { continue };
            if queue.held_until.is_none() || !gone(&queue.id) {
                continue;
            }
            queue.held_until = None;
            if let Some(until) = queue.limited_until.take() {
                self.limited.remove(&(until, place));
            }
            self.settle(place);
        }
    }

    /// The wait until a rate limit or the end of a hold permits the next item; `None` if no subscription waits for either,
    /// or if no slot is free. Call it after `next` has returned `None`.
    pub fn next_wake(&self, now: Duration) -> Option<Duration> {
        let (until, _) = self.limited.first()?;
        (self.in_flight < self.pool).then(|| until.saturating_sub(now))
    }

    /// Removes and returns all waiting items, for shutdown. Items in flight remain, until `finished` is called for them.
    pub fn drain(&mut self) -> Vec<T> {
        let mut items = Vec::with_capacity(self.waiting);
        for place in 0..self.queues.len() {
            if let Some(queue) = &mut self.queues[place] {
                items.extend(queue.items.drain(..));
                queue.turn = None;
                queue.limited_until = None;
                queue.held_until = None;
            }
        }
        self.tenants.clear();
        self.limited.clear();
        self.waiting = 0;
        (0..self.queues.len()).for_each(|place| self.retire(place));
        items
    }

    /// Visits every waiting item, in no particular order, for heartbeats.
    pub fn for_each_waiting(&mut self, mut visit: impl FnMut(&mut T)) {
        self.queues.iter_mut().flatten().flat_map(|queue| queue.items.iter_mut()).for_each(&mut visit);
    }

    /// Number of waiting items.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Number of items that `next` returned and that are not finished.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Number of waiting items of a subscription.
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

    fn queue(&mut self, place: Place) -> &mut Queue<T> {
        self.queues[place].as_mut().expect(KNOWN)
    }

    fn initial_share(&self) -> usize {
        (self.pool / INITIAL_PART).max(1)
    }

    /// Maximum number of items in flight of all reduced subscriptions together; at least one, so that they can recover.
    fn reduced_limit(&self) -> usize {
        (self.pool / 2).max(1)
    }

    /// Maximum number of items in flight of one tenant.
    fn tenant_limit(&self) -> usize {
        let others = if self.tenants.several() { (self.pool / OTHERS_PART).max(1) } else { 0 };
        (self.pool - others).max(1)
    }

    /// Takes the next subscription out of its ring; the rings take turns.
    fn take_turn(&mut self) -> Option<Place> {
        let most = self.tenant_limit();
        let healthy_may = self.tenants.may(false, most);
        let reduced_may = self.tenants.may(true, most) && self.reduced_in_flight < self.reduced_limit();
        if !healthy_may && !reduced_may {
            return None;
        }
        let from_reduced = reduced_may && (self.reduced_next || !healthy_may);
        let place = self.tenants.pop(from_reduced)?;
        self.reduced_next = !from_reduced;
        self.queue(place).turn = None;
        Some(place)
    }

    /// Moves a subscription to the ring for its current state, or out of both. It keeps its turn in the other ring.
    fn settle(&mut self, place: Place) {
        let queue = self.queues[place].as_mut().expect(KNOWN);
        let belongs = (queue.can_run() && queue.limited_until.is_none()).then_some(queue.reduced);
        if queue.turn.map(|(_, reduced)| reduced) == belongs {
            return;
        }
        let turn = match queue.turn.take() {
            Some((turn, reduced)) => {
                self.tenants.remove(queue.tenant, reduced, turn);
                turn
            }
            None => {
                self.turns += 1;
                self.turns
            }
        };
        if let Some(reduced) = belongs {
            queue.turn = Some((turn, reduced));
            self.tenants.insert(queue.tenant, reduced, turn, place);
        }
    }

    fn place_of(&mut self, subscription: &Identity) -> Place {
        if let Some(&place) = self.places.get(subscription) {
            return place;
        }
        let queue = Queue {
            id: subscription.clone(),
            tenant: self.tenants.enter(subscription.subscription.tenant()),
            items: VecDeque::new(),
            in_flight: 0,
            share: self.initial_share(),
            most: self.pool,
            reduced: false,
            bucket: None,
            turn: None,
            limited_until: None,
            held_until: None,
            remembered: None,
        };
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

    /// Removes a subscription without items. If its share is reduced, or it has a rate limit or a hold, its state is kept
    /// until newer ones displace it.
    fn retire(&mut self, place: Place) {
        let Some(queue) = &mut self.queues[place] else { return };
        if !queue.items.is_empty() || queue.in_flight > 0 || queue.remembered.is_some() {
            return;
        }
        if queue.reduced || queue.bucket.is_some() || queue.held_until.is_some() {
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
    fn forget(&mut self, place: Place) {
        if let Some(queue) = self.queues[place].take() {
            if let Some(until) = queue.limited_until {
                self.limited.remove(&(until, place));
            }
            self.tenants.leave(queue.tenant);
            self.places.remove(&queue.id);
            self.free.push(place);
        }
    }
}

const KNOWN: &str = "a place in use has a queue";
