//! The memory for waiting items: how many each queue may have.

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
/// Memory is short if less than the whole divided by this is free.
const SHORT_PART: usize = 16;
/// A queue from which nothing has ended for this long does not move.
const STANDSTILL: Duration = Duration::from_millis(100);

impl<T> FairShare<T> {
    /// The number of items of a subscription that may wait at the moment.
    pub(super) fn allowance(&self, subscription: &Identity, now: Duration) -> usize {
        let free = self.free_memory();
        // Nothing is known yet of a new subscription; if it hangs, its items are given back.
        let allowed = match self.find(subscription).is_none_or(|queue| queue.flows(now)) {
            // What may be read at all is bounded elsewhere.
            true if self.slots.are_used_well(self.for_waiting(), now) => usize::MAX,
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
                && queue.items.len() > allowed
                && (!queue.flows(now) || queue.stands_still(now, STANDSTILL))
            {
                given.extend(self.give_back(place, allowed));
            }
        }
        given
    }

    /// The wait until [`Self::relieve`] is due; `None` if memory is not short.
    pub(super) fn relief_wait(&self, now: Duration) -> Option<Duration> {
        let due = self.relieved + STANDSTILL / 2;
        self.is_short_of_memory().then(|| due.saturating_sub(now))
    }

    /// Removes and returns the waiting items of a queue that count as memory, without those among its first `kept` items.
    pub(super) fn give_back(&mut self, place: super::Place, kept: usize) -> Vec<T> {
        let queue = self.queues[place].as_mut().expect(KNOWN);
        let items = std::mem::take(&mut queue.items).into_iter().enumerate();
        let (given, left): (Vec<_>, Vec<_>) =
            items.partition(|(at, (_, in_memory))| *at >= kept && *in_memory);
        queue.items.extend(left.into_iter().map(|(_, item)| item));
        let tenant = queue.tenant;
        self.in_memory -= given.len();
        self.waiting -= given.len();
        *self.tenants.waiting(tenant) -= given.len();
        self.settle(place);
        self.retire(place);
        given.into_iter().map(|(_, (item, _))| item).collect()
    }

    /// Removes and returns all waiting items of a subscription, also those that do not count as memory.
    pub fn withdraw(&mut self, subscription: &Identity) -> Vec<T> {
        let Some(&place) = self.places.get(subscription) else { return Vec::new() };
        let queue = self.queues[place].as_mut().expect(KNOWN);
        let mut items: Vec<T> = Vec::new();
        let mut in_memory = 0;
        for (item, counts) in queue.items.drain(..) {
            in_memory += usize::from(counts);
            items.push(item);
        }
        let tenant = queue.tenant;
        self.in_memory -= in_memory;
        self.waiting -= items.len();
        *self.tenants.waiting(tenant) -= items.len();
        self.settle(place);
        self.retire(place);
        items
    }

    fn for_waiting(&self) -> usize {
        let memory = self.limits.memory;
        memory - self.slots.pool().min(memory / 2)
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
