//! What becomes of an envelope over quota whose dead letter is not stored.
//!
//! It stays in the outbox beyond its quota, so that the other envelopes of its event, and the next events, do not wait for
//! it. Only if the outbox is nearly full, too, does the event wait. The rest of the outbox remains for other events.

use std::time::Duration;

/// This part of the outbox is kept free of envelopes over quota.
const RESERVE_PART: u64 = 8;

/// Longest time that an event waits until it is known whether a dead letter was stored. After that the envelope stays in
/// the outbox: it may be delivered and also be a dead letter, and its receiver knows the repetition by the id.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// What is known about a dead letter that was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unstored {
    /// It is not stored.
    Refused,
    /// There was no answer, for this long.
    Unknown { waited: Duration },
}

/// Whether the envelope stays in an outbox of this capacity, of which `used` bytes are used.
pub(super) fn stays(unstored: Unstored, size: u64, used: u64, capacity: u64) -> bool {
    let is_settled = match unstored {
        Unstored::Refused => true,
        Unstored::Unknown { waited } => waited >= PATIENCE,
    };
    is_settled && used.saturating_add(size) <= capacity - capacity / RESERVE_PART
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Backlog, BacklogLimits, Ledger, QuotaDecision};
    use super::*;

    const CAPACITY: u64 = 100_000;
    const NOW: Duration = Duration::from_secs(1);
    const NO_LIMITS: BacklogLimits = BacklogLimits { messages: None, bytes: None, age: None };

    #[test]
    fn an_unknown_dead_letter_is_waited_for_within_limits() {
        let unknown = |waited| stays(Unstored::Unknown { waited }, 1, 0, CAPACITY);
        assert!(
            !unknown(Duration::ZERO) && !unknown(PATIENCE - Duration::from_millis(1)) && unknown(PATIENCE)
        );
        assert!(stays(Unstored::Refused, 1, 0, CAPACITY));
        assert!(!stays(Unstored::Refused, u64::MAX, u64::MAX, u64::MAX), "no overflow");
    }

    proptest! {
        /// Envelopes over quota never fill the outbox, and wait only if it is nearly full. What fits is not affected.
        #[test]
        fn the_excess_leaves_room_for_others(
            quota in 1..20_u64,
            sizes in proptest::collection::vec((1..3_000_u64, any::<bool>(), any::<bool>()), 1..300),
        ) {
            let mut ledger = Ledger::new(BacklogLimits { messages: Some(quota), ..NO_LIMITS }, CAPACITY);
            let (mut used, mut stuck) = (0, 0);
            for (size, is_stuck, is_known) in sizes {
                if !is_stuck {
                    // A healthy one, whose envelopes are delivered at once.
                    let empty = Backlog { token: "well".to_owned(), own: 0, shared: 0 };
                    ledger.begin_group();
                    ledger.note_one(&empty, used, NOW);
                    let fits = matches!(ledger.add("well", size, NO_LIMITS, NOW), QuotaDecision::Fits { .. });
                    prop_assert!(fits);
                    continue;
                }
                // The ledger is exact, as after a look.
                ledger.begin_group();
                ledger.note_one(&Backlog { token: "stuck".to_owned(), own: 0, shared: stuck }, used, NOW);
                let own_lane = match ledger.add("stuck", size, NO_LIMITS, NOW) {
                    QuotaDecision::Fits { own_lane } => Some(own_lane),
                    QuotaDecision::Exceeds { .. } => {
                        prop_assert!(stuck >= quota);
                        let waited = Duration::ZERO;
                        let unstored =
                            if is_known { Unstored::Refused } else { Unstored::Unknown { waited } };
                        let stays = ledger.add_excess("stuck", size, unstored, NOW);
                        let has_room = used + size <= CAPACITY - CAPACITY / RESERVE_PART;
                        prop_assert_eq!(stays.is_some(), is_known && has_room);
                        stays
                    }
                };
                if own_lane.is_some() {
                    (used, stuck) = (used + size, stuck + 1);
                    prop_assert!(stuck <= quota || used <= CAPACITY - CAPACITY / RESERVE_PART);
                    prop_assert_eq!(ledger.used(), used);
                }
            }
        }
    }
}
