//! What a worker leaves to others after a standstill of its process ([`crate::standstill`]).

use super::{Running, Worker};

impl Worker {
    /// Drops the waiting messages, which the server has delivered to other processes. Deliveries in progress go on.
    pub(super) fn drop_what_waits(&self, running: &mut Running) {
        for mut held in running.pool.drain() {
            running.waits_no_longer(&mut held);
        }
        // The queues have lost theirs.
        self.take_holds(running);
    }
}
