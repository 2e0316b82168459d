//! How long a replay of many waits without progress.

use std::time::Duration;

/// What it waits for. Each has an amount of its own, which says nothing about the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// Requests that the hub has not taken.
    Taken,
    /// Envelopes in an outbox without room.
    Outbox,
    /// Envelopes in the backlogs of subscriptions without room.
    Backlogs,
    /// The server, which fails or does not answer.
    Server,
}

/// One wait. Only less than ever before is progress, so that an amount that rises and falls does not extend it. Callers
/// pass the time as the duration since a fixed start.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    least: [Option<u64>; 4],
    since: Duration,
}

impl Wait {
    pub fn new(now: Duration) -> Self {
        Self { least: [None; 4], since: now }
    }

    /// Takes note of a look.
    pub fn look(&mut self, what: Awaited, amount: u64, now: Duration) {
        let Some(least) = self.least.get_mut(what as usize) else { return };
        match least {
            Some(least) if amount >= *least => {}
            Some(least) => (*least, self.since) = (amount, now),
            None => *least = Some(amount),
        }
    }

    /// Whether there was no progress for this time.
    pub fn is_over(&self, patience: Duration, now: Duration) -> bool {
        now.saturating_sub(self.since) >= patience
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [Awaited; 4] = [Awaited::Taken, Awaited::Outbox, Awaited::Backlogs, Awaited::Server];

    #[test]
    fn less_than_ever_before_is_progress() {
        let at = Duration::from_secs;
        let mut wait = Wait::new(at(0));
        wait.look(Awaited::Outbox, 100, at(1));
        wait.look(Awaited::Outbox, 90, at(50));
        assert!(!wait.is_over(at(60), at(100)));
        wait.look(Awaited::Outbox, 95, at(100));
        wait.look(Awaited::Outbox, 90, at(101));
        // Another amount, which is lower from the beginning.
        wait.look(Awaited::Backlogs, 3, at(105));
        assert!(wait.is_over(at(60), at(110)));
    }

    proptest! {
        /// No sequence of amounts extends it beyond the number of steps down from its first amounts.
        #[test]
        fn it_ends_whatever_is_reported(looks in prop::collection::vec((0..4usize, 0..6u64), 200)) {
            let (patience, mut wait, mut now) = (Duration::from_secs(1), Wait::new(Duration::ZERO), Duration::ZERO);
            let mut progress = 0;
            for (kind, amount) in looks {
                let before = wait.since;
                now += Duration::from_millis(500);
                wait.look(KINDS[kind], amount, now);
                progress += u32::from(wait.since != before);
            }
            prop_assert!(progress <= 4 * 5);
            prop_assert!(wait.is_over(patience, now + patience));
        }
    }
}
