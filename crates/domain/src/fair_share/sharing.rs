//! The limits of subscriptions, which a pool shares with the other pools of its process.

use std::time::Duration;

use super::{FairShare, Finish, KNOWN, PoolLimits, QueuePlace};
use crate::allotment::Sharer;

impl<T> FairShare<T> {
    /// Makes an empty pool, which shares the limits of subscriptions with no other pool.
    pub fn new(limits: PoolLimits) -> Self {
        Self::sharing(limits, Sharer::alone())
    }

    /// Lets subscriptions that waited for another pool ask for a slot and a token again. Call it when the pool is woken.
    pub fn wake(&mut self) {
        let freed = self.sharer.freed();
        let mut places: Vec<QueuePlace> =
            freed.iter().filter_map(|id| self.places.get(id).copied()).collect();
        // The order of their turns.
        places.sort_unstable();
        for place in places {
            if self.ask_again(place) {
                self.settle(place);
            }
        }
    }

    /// Lets a subscription that waits for a slot or a token ask at once. Returns whether it did wait.
    pub(super) fn ask_again(&mut self, place: QueuePlace) -> bool {
        let queue = self.queues[place].as_mut().expect(KNOWN);
        if queue.held_until.is_none()
            && let Some(until) = queue.limited_until.take()
        {
            return self.limited.remove(&(until, place));
        }
        false
    }

    /// Takes a slot and a token of a subscription, which has been taken out of its ring. If there is none, it waits.
    pub(super) fn admits(&mut self, place: QueuePlace, now: Duration) -> bool {
        let queue = self.queues[place].as_mut().expect(KNOWN);
        let Err(refused) = self.sharer.take(&queue.id, queue.limits, queue.items.len(), now) else {
            return true;
        };
        if refused.in_flight == Some(queue.in_flight) {
            // All slots are used here, so it goes on with the next finish, and its items leave soon.
            queue.most = queue.in_flight;
            queue.share = queue.share.min(queue.most);
            return false;
        }
        let until = now + refused.wait;
        queue.limited_until = Some(until);
        self.limited.insert((until, place));
        false
    }

    /// Lets a subscription that had all slots of its process ask for one more after a finish.
    pub(super) fn grow_again(&mut self, place: QueuePlace, finish: Finish) {
        let queue = self.queues[place].as_ref().expect(KNOWN);
        let (limited, most) = (queue.most, self.most(queue.limits.max_in_flight));
        let queue = self.queues[place].as_mut().expect(KNOWN);
        if limited < most {
            queue.most = most;
            if finish == Finish::Healthy {
                queue.share = (queue.share + 1).min(most);
            }
        }
    }

    /// Maximum share of a subscription.
    pub(super) fn most(&self, max_in_flight: u32) -> usize {
        (max_in_flight as usize).clamp(1, self.slots.pool())
    }
}
