//! When a process takes over events that another one has: those that delay ordered events here for seconds, because the
//! other process was killed, or is stuck. The server would deliver them again only after `ack_wait`.
//!
//! Two processes may then have the same event. The outbox drops the envelopes that it has, and the order holds: each of
//! them commits the event before the later ones.

use std::collections::BTreeMap;
use std::time::Duration;

/// A tenant's first blocker stands for this long before it is taken over. While a process works, it is settled within
/// milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);
/// The same after blockers of the tenant were taken over: the next ones were in the same process.
const PATIENCE_LATELY: Duration = Duration::from_millis(200);
/// How long "lately" is.
const LATELY: Duration = Duration::from_secs(10);
/// A blocker is not taken over again within this time.
const AGAIN: Duration = Duration::from_secs(30);

/// Decides which blockers are taken over, by sequence and tenant.
#[derive(Debug, Default)]
pub struct TakeOver {
    /// The blockers that decide, since when they do.
    standing: BTreeMap<u64, Duration>,
    taken: BTreeMap<u64, Duration>,
    /// Tenants of which blockers were taken over.
    lately: BTreeMap<Box<str>, Duration>,
}

impl TakeOver {
    /// The tenants whose first blocker has stood for too long. `decisive`: for each tenant that waits, its first blocker.
    /// Call it often, with a clock that does not go back.
    pub fn due<'a>(&mut self, decisive: &[(u64, &'a str)], now: Duration) -> Vec<&'a str> {
        self.standing.retain(|sequence, _| decisive.iter().any(|(decides, _)| decides == sequence));
        self.taken.retain(|_, at| now < *at + AGAIN);
        self.lately.retain(|_, at| now < *at + LATELY);
        let mut due = Vec::new();
        for &(sequence, tenant) in decisive {
            let since = *self.standing.entry(sequence).or_insert(now);
            let patience = if self.lately.contains_key(tenant) { PATIENCE_LATELY } else { PATIENCE };
            if now >= since + patience && !self.taken.contains_key(&sequence) {
                due.push(tenant);
            }
        }
        due
    }

    /// Takes these blockers of a tenant, at most `most`. Returns those that were not taken lately.
    pub fn take(
        &mut self,
        tenant: &str,
        blockers: impl IntoIterator<Item = u64>,
        most: usize,
        now: Duration,
    ) -> Vec<u64> {
        let new: Vec<u64> =
            blockers.into_iter().filter(|sequence| !self.taken.contains_key(sequence)).take(most).collect();
        self.taken.extend(new.iter().map(|sequence| (*sequence, now)));
        self.lately.insert(tenant.into(), now);
        new
    }

    /// There was no room for a blocker, so it may be taken at once.
    pub fn not_taken(&mut self, sequence: u64) {
        self.taken.remove(&sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_blocker_that_stands_for_seconds_is_taken_over_once() {
        let mut take_over = TakeOver::default();
        assert!(take_over.due(&[(7, "acme"), (9, "bee")], at(0)).is_empty());
        assert!(take_over.due(&[(7, "acme"), (12, "bee")], at(2_900)).is_empty());
        // The first blocker of bee has changed: its process works.
        assert_eq!(take_over.due(&[(7, "acme"), (12, "bee")], at(3_000)), ["acme"]);
        assert_eq!(take_over.take("acme", [7, 8, 11, 20], 3, at(3_000)), [7, 8, 11]);
        assert!(take_over.due(&[(7, "acme")], at(10_000)).is_empty());
        assert_eq!(take_over.due(&[(7, "acme")], at(33_000)), ["acme"], "it may have been refused");
    }

    #[test]
    fn the_next_ones_of_the_same_process_follow_soon() {
        let mut take_over = TakeOver::default();
        take_over.due(&[(7, "acme")], at(0));
        assert_eq!(take_over.due(&[(7, "acme")], at(3_000)), ["acme"]);
        assert_eq!(take_over.take("acme", [7, 8, 11], 2, at(3_000)), [7, 8]);
        assert!(take_over.due(&[(11, "acme")], at(3_050)).is_empty());
        assert_eq!(take_over.due(&[(11, "acme")], at(3_250)), ["acme"]);
        assert_eq!(take_over.take("acme", [11], 2, at(3_250)), [11]);
        // Later ones have the whole time again.
        assert!(take_over.due(&[(30, "acme")], at(20_000)).is_empty());
        assert!(take_over.due(&[(30, "acme")], at(22_000)).is_empty());
        assert_eq!(take_over.due(&[(30, "acme")], at(23_000)), ["acme"]);
    }

    #[test]
    fn a_blocker_that_ceases_to_decide_has_the_whole_time_when_it_does_again() {
        let mut take_over = TakeOver::default();
        take_over.due(&[(7, "acme")], at(0));
        take_over.due(&[], at(1_000));
        assert!(take_over.due(&[(7, "acme")], at(3_500)).is_empty());
    }
}
