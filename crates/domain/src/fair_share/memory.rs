//! The memory for waiting items: how many each queue may have.

use std::collections::VecDeque;
use std::time::Duration;

use super::queue::Queue;
use super::{FairShare, KNOWN};
use crate::subscription::Identity;

/// A queue may use the free memory divided by this.
const FREE_PART: usize = 4;
/// The same for a queue whose items do not leave soon.
const FREE_PART_STUCK: usize = 16;
/// A queue whose items leave soon may have this many if half of the free memory allows it.
const ALWAYS: usize = 8;
/// New subscriptions leave the whole divided by this to the others. Of the rest, one of them may have two thirds of what is
/// free: a fifth of the whole, like any other, if it is alone.
const NEW_PART: usize = 2;
/// Memory is short if less than the whole divided by this is free.
const SHORT_PART: usize = 16;
/// A queue from which nothing has ended for this long does not move.
const STANDSTILL: Duration = Duration::from_millis(100);

impl<T> FairShare<T> {
    /// The number of items of a subscription that may wait at the moment.
    pub(super) fn allowance(&self, subscription: &Identity, now: Duration) -> usize {
        let free = self.free_memory();
        let queue = self.find(subscription);
        let allowed = match queue.is_none_or(|queue| queue.flows(now)) {
            // What may be read at all is bounded elsewhere.
            true if self.slots.are_used_well(self.for_waiting(), now) => usize::MAX,
            // Nothing is known yet of a new subscription. However many there are, half of the memory is for the others, which
            // would have to move if new ones that hang had it all. After a start all are new, and have it all.
            true if self.known > 0 && queue.is_none_or(|queue| queue.is_new) => {
                let free = free.saturating_sub(self.for_waiting() / NEW_PART);
                (free * 2 / 3).max(ALWAYS.min(free / 2))
            }
            true => (free / FREE_PART).max(ALWAYS.min(free / 2)),
            false => free / FREE_PART_STUCK,
        };
        self.limits.queue_per_subscription.min(allowed.max(1))
    }

    /// Removes and returns waiting items of queues that do not move, beyond what these may have now; only while memory is
    /// short, and not more often than it makes sense.
    pub fn relieve(&mut self, now: Duration) -> Vec<T> {
        let mut given = Vec::new();
        if self.relief_wait(now).is_none_or(|wait| !wait.is_zero()) {
            return given;
        }
        self.relieved = now;
        let allowed = (self.free_memory() / FREE_PART_STUCK).max(1);
        for place in 0..self.queues.len() {
            if let Some(queue) = &self.queues[place]
                && queue.weight > allowed
                && (!queue.flows(now) || queue.stands_still(now, STANDSTILL))
            {
                given.extend(self.give_back(place, allowed));
            }
        }
        given
    }

    /// The wait until [`Self::relieve`] is due; `None` if memory is not short. A stopped pool needs no room: nothing new is
    /// read meanwhile.
    pub(super) fn relief_wait(&self, now: Duration) -> Option<Duration> {
        let due = self.relieved + STANDSTILL / 2;
        (self.is_short_of_memory() && !self.is_stopped(now)).then(|| due.saturating_sub(now))
    }

    /// Removes and returns the waiting items of a queue that count as memory, without its first items, as far as their
    /// weight is at most `kept`.
    pub(super) fn give_back(&mut self, place: super::QueuePlace, kept: usize) -> Vec<T> {
        let queue = self.queues[place].as_mut().expect(KNOWN);
        let (mut given, mut left, mut weight) = (Vec::new(), VecDeque::new(), 0_usize);
        for (item, counts) in std::mem::take(&mut queue.items) {
            weight += counts as usize;
            if counts > 0 && weight > kept {
                given.push(item);
                queue.weight -= counts as usize;
                self.in_memory -= counts as usize;
            } else {
                left.push_back((item, counts));
            }
        }
        queue.items = left;
        let tenant = queue.tenant;
        self.waiting -= given.len();
        *self.tenants.waiting(tenant) -= given.len();
        self.settle(place);
        self.retire(place);
        given
    }

    /// Removes and returns all waiting items, for shutdown. Items in flight remain, until `finished` is called for them.
    pub fn drain(&mut self) -> Vec<T> {
        let mut items = Vec::with_capacity(self.waiting);
        for place in 0..self.queues.len() {
            if let Some(queue) = &mut self.queues[place] {
                items.extend(queue.items.drain(..).map(|(item, _)| item));
                queue.weight = 0;
                queue.turn = None;
                queue.limited_until = None;
                queue.held_until = None;
            }
        }
        self.tenants.clear();
        self.limited.clear();
        self.waiting = 0;
        self.in_memory = 0;
        (0..self.queues.len()).for_each(|place| self.retire(place));
        items
    }

    /// Visits every waiting item, in no particular order, for heartbeats.
    pub fn for_each_waiting(&mut self, mut visit: impl FnMut(&mut T)) {
        self.queues
            .iter_mut()
            .flatten()
            .flat_map(|queue| queue.items.iter_mut())
            .for_each(|(item, _)| visit(item));
    }

    /// Removes and returns all waiting items of a subscription, also those that do not count as memory.
    pub fn withdraw(&mut self, subscription: &Identity) -> Vec<T> {
        let Some(&place) = self.places.get(subscription) else { return Vec::new() };
        let queue = self.queues[place].as_mut().expect(KNOWN);
        let mut items: Vec<T> = Vec::new();
        let mut in_memory = 0;
        for (item, counts) in queue.items.drain(..) {
            in_memory += counts as usize;
            items.push(item);
        }
        let tenant = queue.tenant;
        queue.weight = 0;
        self.in_memory -= in_memory;
        self.waiting -= items.len();
        *self.tenants.waiting(tenant) -= items.len();
        self.settle(place);
        self.retire(place);
        items
    }

    /// The weight of the waiting items of a subscription with one more of this weight. An item that alone weighs more than
    /// may wait counts as one if nothing waits.
    pub(super) fn held_by(&self, subscription: &Identity, more: u32) -> usize {
        match self.find(subscription).map_or(0, |queue| queue.weight) {
            0 => 1,
            weight => weight + more as usize,
        }
    }

    fn for_waiting(&self) -> usize {
        let memory = self.limits.memory;
        memory - self.most_in_flight().min(memory / 2)
    }

    fn free_memory(&self) -> usize {
        self.for_waiting().saturating_sub(self.in_memory)
    }

    fn is_short_of_memory(&self) -> bool {
        self.free_memory() <= self.for_waiting() / SHORT_PART
    }
}

impl<T> Queue<T> {
    /// Whether its waiting items leave soon, as far as is known: otherwise they may take less of the memory.
    pub(super) fn flows(&self, now: Duration) -> bool {
        (self.is_new || !self.on_probation) && self.limited_until.is_none() && !self.is_overdue(now)
    }
}
