//! Which envelopes of a lane the sweep takes for stranded: no worker will try them again.
//!
//! The state of the lane's consumer, the delivery log and the messages are read one after the other, while workers deliver,
//! acknowledge and store final attempts. So nothing that one pass sees is enough. What the sweep acts on was true at the
//! pass before, too:
//!
//! - The consumer does not know the message: it is at or below the ack floor, or nothing is pending. An acknowledgement in
//!   progress looks the same for a moment.
//! - The final failed attempt is stored. The worker stores it before it hands the envelope back, or writes the dead letter
//!   itself, so it may be about to do so. Where the log ended at the pass before distinguishes old ones from new ones; the clocks
//!   of servers and processes do not count.

use std::collections::HashSet;

/// What is read before the messages of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The last sequence that the consumer has delivered.
    pub delivered: u64,
    pub ack_floor: u64,
    /// Messages that it has delivered and that are not acknowledged.
    pub pending: u64,
    /// The last sequence of the stream of attempts; 0 if it does not exist.
    pub attempts: u64,
}

impl Snapshot {
    /// The sequence up to which the consumer has no message pending and will deliver none again.
    fn unknown_to(&self) -> u64 {
        if self.pending == 0 { self.delivered } else { self.ack_floor }
    }
}

/// What the passes know about a lane.
#[derive(Debug, Default)]
pub struct SweptLane {
    before: Option<Snapshot>,
    /// Where the next pass begins; 0 at the beginning of a round over the whole lane.
    from: u64,
    /// Messages that the consumer did not know: of the last round, and of this one.
    suspects: HashSet<u64>,
    new_suspects: HashSet<u64>,
}

/// One pass over a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    unknown_to: u64,
    /// The last sequence that was delivered at the pass before.
    old: u64,
    /// Where the delivery log ended at the pass before.
    attempts: u64,
}

/// What a pass thinks of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    Stranded,
    /// Stranded if its final failed attempt [is old](Pass::is_old).
    AskForFinalAttempt,
    /// Not yet, or not at all.
    Waits,
}

impl SweptLane {
    /// Begins a pass. `in_order`: the lane of a strict order, whose envelopes may stay after their final attempt.
    pub fn begin(&mut self, now: Snapshot, in_order: bool) -> Pass {
        let before = self.before.replace(now);
        if before.is_some_and(|before| now.delivered < before.delivered) {
            // The consumer was made again: what it has not delivered yet, it will.
            self.from = 0;
            self.suspects.clear();
            self.new_suspects.clear();
        }
        let old = before.map_or(0, |before| before.delivered.min(now.delivered));
        Pass {
            unknown_to: now.unknown_to(),
            old: if in_order { 0 } else { old },
            attempts: before.map_or(0, |before| before.attempts),
        }
    }

    /// The sequence at which the search continues.
    pub fn from(&self) -> u64 {
        self.from.max(1)
    }

    /// The search has found a message.
    pub fn found(&mut self, sequence: u64) {
        self.from = sequence.saturating_add(1);
    }

    pub fn finding(&self, pass: Pass, sequence: u64) -> Finding {
        if sequence <= pass.unknown_to && self.suspects.contains(&sequence) {
            Finding::Stranded
        } else if sequence <= pass.old {
            Finding::AskForFinalAttempt
        } else {
            Finding::Waits
        }
    }

    /// The message is still there after the pass has looked at it.
    pub fn remains(&mut self, pass: Pass, sequence: u64) {
        if sequence <= pass.unknown_to {
            self.new_suspects.insert(sequence);
        }
    }

    /// The search has reached the end of the lane.
    pub fn end_round(&mut self) {
        self.from = 0;
        self.suspects = std::mem::take(&mut self.new_suspects);
    }
}

impl Pass {
    /// Whether the pass looks at a message; later ones are none of its business.
    pub fn reaches(&self, sequence: u64) -> bool {
        sequence <= self.unknown_to.max(self.old)
    }

    /// Whether a final attempt, by its sequence in the stream of attempts, was stored before the pass before. So whoever
    /// stored it, and the broker's advisory, have had their time.
    pub fn is_old(&self, attempt: u64) -> bool {
        attempt <= self.attempts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: [u64; 0] = [];

    fn at(delivered: u64, ack_floor: u64, pending: u64, attempts: u64) -> Snapshot {
        Snapshot { delivered, ack_floor, pending, attempts }
    }

    /// One whole pass over these messages, each with the sequence of its final attempt. Returns what is stranded.
    fn sweep(lane: &mut SweptLane, now: Snapshot, messages: &[(u64, Option<u64>)]) -> Vec<u64> {
        let pass = lane.begin(now, false);
        let mut stranded = Vec::new();
        for (sequence, words) in messages.iter().filter(|(sequence, _)| pass.reaches(*sequence)) {
            lane.found(*sequence);
            let is_stranded = match lane.finding(pass, *sequence) {
                Finding::Stranded => true,
                Finding::AskForFinalAttempt => words.is_some_and(|words| pass.is_old(words)),
                Finding::Waits => false,
            };
            if is_stranded {
                stranded.push(*sequence);
            } else {
                lane.remains(pass, *sequence);
            }
        }
        lane.end_round();
        stranded
    }

    #[test]
    fn a_final_attempt_that_was_just_stored_is_the_workers_own() {
        let mut lane = SweptLane::default();
        // It was delivered long ago, and waits for its last retry.
        assert_eq!(sweep(&mut lane, at(50, 0, 1, 100), &[(9, None)]), NONE);
        assert_eq!(sweep(&mut lane, at(90, 0, 1, 200), &[(9, None)]), NONE);
        // Stored between the passes, or while this one looks: the worker, or the advisory, is about to deal with it.
        assert_eq!(sweep(&mut lane, at(95, 0, 1, 300), &[(9, Some(250))]), NONE);
        assert_eq!(sweep(&mut lane, at(99, 0, 1, 400), &[(9, Some(250))]), [9], "the next pass finds it");
        let mut lane = SweptLane::default();
        assert_eq!(sweep(&mut lane, at(50, 0, 1, 100), &[(9, None)]), NONE);
        assert_eq!(sweep(&mut lane, at(50, 0, 1, 100), &[(9, Some(101))]), NONE);
        assert_eq!(sweep(&mut lane, at(50, 0, 1, 101), &[(9, Some(101))]), NONE);
        assert_eq!(sweep(&mut lane, at(50, 0, 1, 102), &[(9, Some(101))]), [9]);
    }

    #[test]
    fn an_acknowledgement_in_progress_is_not_stranded() {
        let mut lane = SweptLane::default();
        assert_eq!(sweep(&mut lane, at(50, 50, 0, 0), &[(49, None), (50, None)]), NONE);
        assert_eq!(sweep(&mut lane, at(60, 60, 0, 0), &[(60, None)]), NONE, "another one");
        assert_eq!(sweep(&mut lane, at(60, 60, 0, 0), &[(60, None)]), [60]);
    }

    #[test]
    fn pending_messages_are_not_stranded_and_a_consumer_that_was_made_again_delivers_them() {
        let mut lane = SweptLane::default();
        for _ in 0..5 {
            assert_eq!(sweep(&mut lane, at(50, 8, 2, 0), &[(9, None), (40, None), (51, None)]), NONE);
        }
        assert_eq!(sweep(&mut lane, at(50, 50, 0, 0), &[(9, None)]), NONE);
        // It delivers the same message, and its acknowledgement is in progress.
        assert_eq!(sweep(&mut lane, at(10, 10, 0, 0), &[(9, None)]), NONE);
        assert_eq!(sweep(&mut lane, at(10, 10, 0, 0), &[(9, None)]), [9]);
    }

    #[test]
    fn the_final_attempt_says_nothing_in_a_strict_lane() {
        let mut lane = SweptLane::default();
        for _ in 0..4 {
            let pass = lane.begin(at(50, 8, 1, 99), true);
            assert!(!pass.reaches(9));
            assert_eq!(lane.finding(pass, 9), Finding::Waits);
        }
    }

    /// A healthy envelope at some moment: the sweep reads in between.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Step {
        Deliver,
        StoreFinalAttempt,
        /// The advisory, or the worker, removes it.
        Settle,
        Acknowledge,
        /// The stream removes what the consumer has acknowledged.
        Remove,
        Pass,
    }

    proptest! {
        /// An envelope that is settled before a second pass begins is never taken for stranded, whatever happens between
        /// the reads; one that nobody settles is found at the second pass.
        #[test]
        fn only_what_two_passes_saw_is_stranded(
            delivered_for in 0_usize..4,
            exhausted in any::<bool>(),
            passes_between in 0_usize..2,
            settled in any::<bool>(),
        ) {
            let mut steps = vec![Step::Deliver];
            steps.extend(std::iter::repeat_n(Step::Pass, delivered_for));
            steps.push(if exhausted { Step::StoreFinalAttempt } else { Step::Acknowledge });
            steps.extend(std::iter::repeat_n(Step::Pass, passes_between));
            if settled {
                steps.push(if exhausted { Step::Settle } else { Step::Remove });
            }
            steps.extend([Step::Pass; 3]);

            let mut lane = SweptLane::default();
            let (mut there, mut known, mut words, mut attempts, mut delivered) = (true, false, None, 7, 0);
            let mut found_after = None;
            let mut passes = 0;
            for step in steps {
                match step {
                    Step::Deliver => (known, delivered) = (true, 5),
                    Step::StoreFinalAttempt => {
                        attempts += 1;
                        words = Some(attempts);
                        passes = 0;
                    }
                    Step::Acknowledge => (known, passes) = (false, 0),
                    Step::Settle | Step::Remove => there = false,
                    Step::Pass => {
                        passes += 1;
                        // Another envelope is pending, and pins the ack floor while this one is.
                        let snapshot = at(delivered, if known { 4 } else { 5 }, 1, attempts);
                        let messages = if there { vec![(5, words)] } else { Vec::new() };
                        if !sweep(&mut lane, snapshot, &messages).is_empty() {
                            prop_assert!(found_after.is_none());
                            found_after = Some(passes);
                            there = false;
                        }
                    }
                }
            }
            if settled {
                prop_assert_eq!(found_after, None);
            } else {
                prop_assert_eq!(found_after, Some(2));
            }
        }
    }
}
