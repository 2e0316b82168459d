//! Holds: no item of a subscription starts while its endpoint asks for a pause.

use std::time::Duration;

use super::{FairShare, KNOWN};
use crate::subscription::Identity;

/// The waiting items of a subscription that is held for longer do not stay in memory.
pub(super) const LONG_HOLD: Duration = Duration::from_secs(10);

impl<T> FairShare<T> {
    /// Starts no item of a subscription until `until`; a hold that ends later stays. If that is long, removes and returns
    /// the waiting items that count as memory.
    pub fn hold(&mut self, subscription: &Identity, until: Duration, now: Duration) -> Vec<T> {
        let long = until.saturating_sub(now) > LONG_HOLD;
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
        let kept = if long { 0 } else { usize::MAX };
        self.give_back(place, kept)
    }

    /// The rest of the hold of a subscription; `None` if it is not held.
    pub fn held_for(&self, subscription: &Identity, now: Duration) -> Option<Duration> {
        let until = self.find(subscription)?.held_until?;
        (until > now).then(|| until - now)
    }

    /// Ends the holds of the subscriptions for which `ends` is true: those that were removed, or changed since.
    pub fn release(&mut self, ends: impl Fn(&Identity) -> bool) {
        for place in 0..self.queues.len() {
            let Some(queue) = &mut self.queues[place] else { continue };
            if queue.held_until.is_none() || !ends(&queue.id) {
                continue;
            }
            queue.held_until = None;
            if let Some(until) = queue.limited_until.take() {
                self.limited.remove(&(until, place));
            }
            self.settle(place);
        }
    }
}
