//! A stopped pool: while a domain is paused, none of its items starts, and all keep their places.

use std::time::Duration;

use super::FairShare;

impl<T> FairShare<T> {
    /// Starts no item before `until`; without a time, ends the stop. Waiting items stay, and items in flight may finish.
    pub fn stop(&mut self, until: Option<Duration>) {
        self.stopped_until = until;
    }

    pub(super) fn is_stopped(&self, now: Duration) -> bool {
        self.rest_of_stop(now).is_some()
    }

    /// The time until the stop ends.
    pub(super) fn rest_of_stop(&self, now: Duration) -> Option<Duration> {
        self.stopped_until?.checked_sub(now).filter(|rest| !rest.is_zero())
    }
}
