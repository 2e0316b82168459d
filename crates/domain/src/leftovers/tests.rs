use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;

use super::*;

fn stored(sequence: u64, at_nanos: i128) -> Stored {
    Stored::new(sequence, at_nanos)
}

fn look(leftovers: &mut Leftovers, message: Stored, settled_here: bool) -> LeftoverStep {
    let step = leftovers.found(message, settled_here);
    leftovers.end_look();
    step
}

#[test]
fn what_this_process_acknowledged_is_removed_at_the_second_look() {
    let mut leftovers = Leftovers::default();
    assert_eq!(look(&mut leftovers, stored(7, 1), true), LeftoverStep::Wait);
    assert!(leftovers.any());
    assert_eq!(look(&mut leftovers, stored(7, 1), true), LeftoverStep::Remove);
    // The removal may be lost again.
    assert_eq!(look(&mut leftovers, stored(7, 1), true), LeftoverStep::Remove);
    leftovers.end_look();
    assert!(!leftovers.any());
}

#[test]
fn any_other_leftover_waits_for_the_process_that_knows_it() {
    let mut leftovers = Leftovers::default();
    for round in 0..3 {
        for number in 1..UNKNOWN {
            assert_eq!(
                look(&mut leftovers, stored(7, 1), false),
                LeftoverStep::Wait,
                "look {number} of {round}"
            );
        }
        assert_eq!(look(&mut leftovers, stored(7, 1), false), LeftoverStep::LookForTraces);
    }
}

#[test]
fn one_that_is_deferred_is_due_at_the_next_look() {
    let mut leftovers = Leftovers::default();
    for _ in 1..UNKNOWN {
        assert_eq!(look(&mut leftovers, stored(7, 1), false), LeftoverStep::Wait);
    }
    for _ in 0..3 {
        assert_eq!(leftovers.found(stored(7, 1), false), LeftoverStep::LookForTraces);
        leftovers.defer(stored(7, 1));
        leftovers.end_look();
    }
    assert_eq!(look(&mut leftovers, stored(7, 1), true), LeftoverStep::Remove);
}

#[test]
fn another_message_at_the_same_sequence_is_looked_at_anew() {
    let mut leftovers = Leftovers::default();
    assert_eq!(look(&mut leftovers, stored(7, 1), true), LeftoverStep::Wait);
    assert_eq!(look(&mut leftovers, stored(7, 2), true), LeftoverStep::Wait);
    // One that is gone for a look is not a leftover twice in a row.
    leftovers.end_look();
    assert_eq!(look(&mut leftovers, stored(7, 2), true), LeftoverStep::Wait);
}

/// A stream, its reader, and one process with its memory. Events have a number of their own; sequences may be used twice.
#[derive(Default)]
struct World {
    now: i128,
    published: u64,
    stream: BTreeMap<u64, (u64, i128)>,
    last: u64,
    /// The next sequence that the reader delivers.
    next: u64,
    pending: BTreeSet<u64>,
    /// Events whose last messages the stream lost.
    lost: BTreeSet<u64>,
    committed: BTreeSet<u64>,
    /// Events about whose envelopes something is stored.
    traces: BTreeSet<u64>,
    logs: bool,
    memory: HashSet<Stored>,
    leftovers: Leftovers,
}

impl World {
    fn floor(&self) -> u64 {
        self.pending.first().map_or(self.next, |first| *first).saturating_sub(1)
    }

    fn settle(&mut self, sequence: u64, is_removed: bool) {
        let (event, at) = self.stream[&sequence];
        if self.memory.insert(stored(sequence, at)) {
            self.committed.insert(event);
            if self.logs {
                self.traces.insert(event);
            }
        }
        self.pending.remove(&sequence);
        if is_removed {
            self.stream.remove(&sequence);
        }
    }

    fn deliver(&mut self) -> bool {
        let Some((sequence, _)) = self.stream.range(self.next..).next() else { return false };
        let sequence = *sequence;
        self.pending.insert(sequence);
        self.next = sequence + 1;
        true
    }

    fn look(&mut self) {
        let found: Vec<_> = self.stream.range(..=self.floor()).map(|(at, message)| (*at, *message)).collect();
        for (sequence, (event, at)) in found {
            let message = stored(sequence, at);
            let verdict = match self.leftovers.found(message, self.memory.contains(&message)) {
                LeftoverStep::Wait => continue,
                LeftoverStep::Remove => LeftoverVerdict::Remove,
                LeftoverStep::LookForTraces => decide(self.traces.contains(&event)),
            };
            match verdict {
                LeftoverVerdict::Remove => {
                    assert!(
                        self.committed.contains(&event),
                        "event {event} is removed and was never fanned out"
                    );
                    self.stream.remove(&sequence);
                }
                LeftoverVerdict::FanOut => {
                    assert!(
                        !self.logs || !self.committed.contains(&event),
                        "event {event} is fanned out twice"
                    );
                    self.settle(sequence, true);
                }
            }
        }
        self.leftovers.end_look();
    }

    fn step(&mut self, what: u8, pick: usize) {
        self.now += 1;
        match what {
            0..4 => {
                self.published += 1;
                self.last += 1;
                self.stream.insert(self.last, (self.published, self.now));
            }
            4..7 => drop(self.deliver()),
            7..10 => {
                let picked = self.pending.iter().nth(pick % self.pending.len().max(1)).copied();
                if let Some(sequence) = picked {
                    self.settle(sequence, pick.is_multiple_of(2));
                }
            }
            // The reader is deleted, and made again by the definition.
            10 => {
                self.pending.clear();
                self.next = self.stream.keys().next().map_or(self.last + 1, |first| *first);
            }
            // Somebody makes it again with a later start.
            11 => {
                self.pending.clear();
                self.next = self.last + 1;
            }
            // The stream loses its last messages, and the reader does not know.
            12 => {
                for _ in 0..pick % 4 {
                    if let Some((event, _)) = self.stream.remove(&self.last) {
                        self.lost.insert(event);
                    }
                    self.pending.remove(&self.last);
                    self.last = self.last.saturating_sub(1);
                }
            }
            13 => {
                self.memory.clear();
                self.leftovers = Leftovers::default();
            }
            _ => self.look(),
        }
    }
}

proptest! {
    /// Whatever happens in which order: no event is removed before it is fanned out, the sweep fans none out twice whose
    /// fan-out is known, and in the end the stream is empty and every event is fanned out.
    #[test]
    fn each_leftover_is_handled_by_what_is_known(
        logs: bool,
        steps in prop::collection::vec((0..18_u8, 0..100_usize), 1..300),
    ) {
        let mut world = World { logs, next: 1, ..World::default() };
        for (what, pick) in steps {
            world.step(what, pick);
        }
        for _ in 0..=UNKNOWN {
            while world.deliver() {}
            for sequence in std::mem::take(&mut world.pending) {
                world.settle(sequence, true);
            }
            world.look();
        }
        prop_assert!(world.stream.is_empty(), "left: {:?}", world.stream);
        for event in 1..=world.published {
            prop_assert!(world.committed.contains(&event) || world.lost.contains(&event), "event {event}");
        }
    }
}
