//! When the consumer of an own lane is removed.
//!
//! The fan-out writes to a lane only for a short time ([`LEASE`]) after it saw an envelope there, and a worker makes sure
//! that the lane exists before it moves envelopes. A lane is removed after it was empty, and delivered nothing, for
//! longer than that. A writer that was stopped in between may still be late: for a while after the removal, a lane that
//! gets an envelope is made again ([`super::lost_lanes`]). The sweep covers a crash in that time.

use super::lanes::LIST_INTERVAL;
use crate::domain::backlog::LEASE;
use crate::nats::ConsumerInfo;

/// An own lane is removed after it was idle at this many listings in a row.
const IDLE_ROUNDS: u32 = 60;
/// The same if the subscription was removed, so that it gets no further envelopes.
const IDLE_ROUNDS_REMOVED: u32 = 6;

const _: () = assert!(
    IDLE_ROUNDS_REMOVED as u64 * LIST_INTERVAL.as_secs() > LEASE.as_secs(),
    "nobody writes to a lane that is removed"
);

/// What the listings show of a lane.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// The number of listings in a row at which it was idle.
    rounds: u32,
    /// Messages that its consumer had delivered at the last listing.
    delivered: u64,
}

impl Idle {
    /// Takes note of a listing.
    pub(super) fn note(&mut self, lane: &ConsumerInfo) {
        let is_empty = lane.num_pending + lane.num_ack_pending == 0;
        let delivered = std::mem::replace(&mut self.delivered, lane.delivered.consumer_seq);
        self.rounds = if is_empty && delivered == self.delivered { self.rounds + 1 } else { 0 };
    }

    pub(super) fn is_idle(&self) -> bool {
        self.rounds > 0
    }

    /// Whether the lane is to be removed.
    pub(super) fn is_over(&self, is_removed: bool) -> bool {
        self.rounds >= if is_removed { IDLE_ROUNDS_REMOVED } else { IDLE_ROUNDS }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lane(pending: u64, delivered: u64) -> ConsumerInfo {
        let info = json!({
            "name": "lane-own-crm", "config": {}, "num_ack_pending": 0, "num_redelivered": 0, "num_pending": pending,
            "delivered": {"consumer_seq": delivered, "stream_seq": 9}, "ack_floor": {"consumer_seq": 1, "stream_seq": 1},
        });
        serde_json::from_value(info).expect("consumer info")
    }

    #[test]
    fn a_lane_that_delivers_between_two_listings_is_not_idle() {
        let mut idle = Idle::default();
        for delivered in 1..1_000 {
            idle.note(&lane(0, delivered));
            assert!(!idle.is_idle());
        }
        for _ in 1..IDLE_ROUNDS {
            idle.note(&lane(0, 999));
            assert!(idle.is_idle() && !idle.is_over(false));
        }
        idle.note(&lane(1, 999));
        assert!(!idle.is_idle());
        (0..IDLE_ROUNDS_REMOVED).for_each(|_| idle.note(&lane(0, 999)));
        assert!(idle.is_over(true) && !idle.is_over(false));
        (0..IDLE_ROUNDS).for_each(|_| idle.note(&lane(0, 999)));
        assert!(idle.is_over(false));
    }
}
