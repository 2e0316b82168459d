//! The way of an envelope: event, outbox, attempts, advisory or sweep, dead letter, redrive, resolution.
//!
//! Every stream is at least once: whoever reads a message may crash after any of its steps, and another process begins again
//! with the same message. Every process follows the order that makes this safe: write the copy, then delete the original.

mod state;

use stateright::{Model, Property};

use state::{Delivery, Envelope, Fanning, Letter, MAX_DELIVER, Routing};
pub use state::{Faults, LetterState, Notice};

/// A seeded bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterBug {
    None,
    /// No sweep runs.
    SweepOff,
    /// The original is deleted before its dead letter is stored.
    DeleteBeforeCopy,
    /// The event is acknowledged before its envelope is stored.
    AckBeforeCommit,
    /// Deleting a dead letter that no longer exists is an error.
    GoneIsError,
}

/// The model: the number of events, each with one envelope, and the budgets of the faults.
#[derive(Debug, Clone, Copy)]
pub struct Letters {
    pub bug: LetterBug,
    pub events: u8,
    pub faults: Faults,
}

impl Letters {
    /// Bounds whose states are visited in seconds.
    pub fn with(bug: LetterBug) -> Self {
        Self {
            bug,
            events: 2,
            faults: Faults { crashes: 1, lost_advisories: 1, failures: 2, repetitions: 1 },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterAction {
    FanOut(usize),
    FanOutCrashes(usize),
    Take(usize),
    Accept(usize),
    /// The endpoint fails; the envelope goes back. If it was the last delivery, the advisory is kept or lost.
    Fail(usize, Notice),
    Resolve(usize),
    Acknowledge(usize),
    /// The worker crashes, or the broker gives the envelope to another one.
    WorkerCrashes(usize, Notice),
    /// The broker's wait has passed: it has the envelope back, while the worker delivers it.
    Repeat(usize, Notice),
    /// The slow worker removes the dead letter and acknowledges the envelope, if they still exist.
    Late(u8),
    /// The router begins with an advisory.
    Route(u8),
    /// The sweep begins with an exhausted envelope, whether it has an advisory or not.
    Sweep(u8),
    RouteOn,
    RouterCrashes,
    Redrive(usize),
    /// The process crashes between the redriven envelope and the mark at its dead letter.
    RedriveCrashes(usize),
}

impl Letters {
    /// The removal of a dead letter succeeds: it exists, or it is gone already.
    fn removed(&self, state: &mut LetterState, of: u8) -> bool {
        let existed = state.remove_letter(of);
        existed || self.bug != LetterBug::GoneIsError
    }

    fn fan_out(&self, state: &mut LetterState, at: usize) {
        let (event, step) = state.events[at];
        match (step, self.bug) {
            (Fanning::Waiting, _) => state.events[at].1 = Fanning::Begun,
            (Fanning::Begun, LetterBug::AckBeforeCommit) => state.events[at].1 = Fanning::First,
            (Fanning::Begun, _) => {
                state.store(event, event, None);
                state.events[at].1 = Fanning::First;
            }
            (Fanning::First, LetterBug::AckBeforeCommit) => {
                state.store(event, event, None);
                state.events.remove(at);
            }
            (Fanning::First, _) => {
                state.events.remove(at);
            }
        }
    }

    /// One step of the dead-lettering. `None` if the step fails, and is tried again without end.
    fn route(&self, state: &mut LetterState) -> Option<()> {
        let (number, step) = state.routing?;
        let Some(at) = state.envelope(number) else {
            if step == Routing::Begun || self.bug != LetterBug::DeleteBeforeCopy {
                // It is gone: dead-lettered or delivered before.
                state.routing = None;
                state.advisories.retain(|advisory| *advisory != number);
                return Some(());
            }
            // With the bug: the memory of the router has the only copy. The number of an envelope determines its event.
            let event = number % self.events;
            self.write_letter(state, event, number, None);
            state.routing = None;
            state.advisories.retain(|advisory| *advisory != number);
            return Some(());
        };
        let Envelope { event, letter, .. } = state.outbox[at];
        match (step, self.bug) {
            (Routing::Begun, LetterBug::DeleteBeforeCopy) => {
                state.outbox.remove(at);
                state.routing = Some((number, Routing::First));
            }
            (Routing::Begun, _) => {
                self.write_letter(state, event, number, letter);
                state.routing = Some((number, Routing::First));
            }
            (Routing::First, _) => {
                if let Some(predecessor) = letter
                    && !self.removed(state, predecessor)
                {
                    return None;
                }
                state.routing = Some((number, Routing::Replaced));
            }
            // The next step finds it gone, and acknowledges the advisory.
            (Routing::Replaced, _) => {
                state.outbox.remove(at);
                state.routing = Some((number, Routing::Begun));
            }
        }
        Some(())
    }

    fn write_letter(&self, state: &mut LetterState, event: u8, number: u8, replaces: Option<u8>) {
        if !state.lettered.contains(&number) {
            state.lettered.push(number);
            state.dead_lettered += 1;
            state.letters.push(Letter { event, of: number, replaces, replaying: false });
        }
    }

    /// The envelope of a dead letter, stored again under a message id of its own.
    fn redrive(&self, state: &mut LetterState, at: usize) {
        let Letter { event, of, .. } = state.letters[at];
        state.store(event, of + self.events, Some(of));
    }
}

impl Model for Letters {
    type State = LetterState;
    type Action = LetterAction;

    fn init_states(&self) -> Vec<LetterState> {
        vec![LetterState {
            events: (0..self.events).map(|event| (event, Fanning::Waiting)).collect(),
            outbox: Vec::new(),
            stored: Vec::new(),
            advisories: Vec::new(),
            routing: None,
            letters: Vec::new(),
            lettered: Vec::new(),
            accepted: vec![0; usize::from(self.events)],
            late: Vec::new(),
            exhausted: 0,
            dead_lettered: 0,
            resolved: 0,
            left: self.faults,
        }]
    }

    fn actions(&self, state: &LetterState, actions: &mut Vec<LetterAction>) {
        let may_crash = state.left.crashes > 0;
        for (at, (_, step)) in state.events.iter().enumerate() {
            actions.push(LetterAction::FanOut(at));
            if may_crash && *step != Fanning::Waiting {
                actions.push(LetterAction::FanOutCrashes(at));
            }
        }
        for (at, envelope) in state.outbox.iter().enumerate() {
            match envelope.at_worker {
                None if envelope.deliveries < MAX_DELIVER => actions.push(LetterAction::Take(at)),
                None => {}
                Some(step) => {
                    match step {
                        Delivery::Taken => {
                            actions.push(LetterAction::Accept(at));
                            if state.left.failures > 0 {
                                actions.extend(
                                    [Notice::Kept, Notice::Lost].map(|notice| LetterAction::Fail(at, notice)),
                                );
                            }
                        }
                        Delivery::Accepted => actions.push(LetterAction::Resolve(at)),
                        Delivery::Resolved => actions.push(LetterAction::Acknowledge(at)),
                    }
                    for notice in [Notice::Kept, Notice::Lost] {
                        if may_crash {
                            actions.push(LetterAction::WorkerCrashes(at, notice));
                        }
                        if state.left.repetitions > 0 {
                            actions.push(LetterAction::Repeat(at, notice));
                        }
                    }
                }
            }
        }
        actions.extend(state.late.iter().map(|number| LetterAction::Late(*number)));
        if state.routing.is_none() {
            actions.extend(state.advisories.iter().map(|number| LetterAction::Route(*number)));
            if self.bug != LetterBug::SweepOff {
                let numbers = state.outbox.iter().map(|envelope| envelope.number);
                actions.extend(numbers.filter(|number| state.is_exhausted(*number)).map(LetterAction::Sweep));
            }
        } else {
            actions.push(LetterAction::RouteOn);
            if may_crash {
                actions.push(LetterAction::RouterCrashes);
            }
        }
        for (at, letter) in state.letters.iter().enumerate().filter(|(_, letter)| !letter.replaying) {
            // While its envelope is still routed, the due time has not come.
            if state.envelope(letter.of).is_none() {
                actions.push(LetterAction::Redrive(at));
                if may_crash {
                    actions.push(LetterAction::RedriveCrashes(at));
                }
            }
        }
    }

    fn next_state(&self, last: &LetterState, action: LetterAction) -> Option<LetterState> {
        let mut state = last.clone();
        match action {
            LetterAction::FanOut(at) => self.fan_out(&mut state, at),
            LetterAction::FanOutCrashes(at) => {
                state.left.crashes -= 1;
                if self.bug == LetterBug::AckBeforeCommit && state.events[at].1 == Fanning::First {
                    state.events.remove(at);
                } else {
                    state.events[at].1 = Fanning::Waiting;
                }
            }
            LetterAction::Take(at) => {
                state.outbox[at].deliveries += 1;
                state.outbox[at].at_worker = Some(Delivery::Taken);
            }
            LetterAction::Accept(at) => {
                state.accepted[usize::from(state.outbox[at].event)] += 1;
                state.outbox[at].at_worker = Some(Delivery::Accepted);
            }
            LetterAction::Fail(at, notice) => {
                state.left.failures -= 1;
                state.give_back(at, notice)?;
            }
            LetterAction::Resolve(at) => {
                if let Some(letter) = state.outbox[at].letter
                    && !self.removed(&mut state, letter)
                {
                    // With the bug, the delivered envelope goes back as if it had failed.
                    state.give_back(at, Notice::Kept)?;
                    return Some(state);
                }
                state.outbox[at].at_worker = Some(Delivery::Resolved);
            }
            LetterAction::Acknowledge(at) => {
                state.outbox.remove(at);
            }
            LetterAction::WorkerCrashes(at, notice) => {
                state.left.crashes -= 1;
                state.give_back(at, notice)?;
            }
            LetterAction::Repeat(at, notice) => {
                state.left.repetitions -= 1;
                let Envelope { event, number, .. } = state.outbox[at];
                if state.outbox[at].at_worker == Some(Delivery::Taken) {
                    state.accepted[usize::from(event)] += 1;
                }
                state.late.push(number);
                state.give_back(at, notice)?;
            }
            LetterAction::Late(number) => {
                state.late.retain(|late| *late != number);
                if let Some(at) = state.envelope(number) {
                    state.resolved += u8::from(state.is_exhausted(number));
                    if let Some(letter) = state.outbox[at].letter {
                        state.remove_letter(letter);
                    }
                    state.outbox.remove(at);
                }
            }
            LetterAction::Route(number) | LetterAction::Sweep(number) => {
                state.routing = Some((number, Routing::Begun))
            }
            LetterAction::RouteOn => self.route(&mut state)?,
            LetterAction::RouterCrashes => {
                state.left.crashes -= 1;
                state.routing = None;
            }
            LetterAction::Redrive(at) => {
                self.redrive(&mut state, at);
                state.letters[at].replaying = true;
            }
            LetterAction::RedriveCrashes(at) => {
                state.left.crashes -= 1;
                self.redrive(&mut state, at);
            }
        }
        // Everything is taken in any order, so the order is of no interest.
        state.outbox.sort_unstable();
        state.stored.sort_unstable();
        state.advisories.sort_unstable();
        state.letters.sort_unstable();
        state.lettered.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no event is lost", |model: &Self, state: &LetterState| {
                (0..model.events).all(|event| state.is_kept(event))
            }),
            Property::always(
                "in the end, everything is delivered and resolved",
                |model: &Self, state: &LetterState| {
                    state.is_settled() || !model.next_states(state).is_empty()
                },
            ),
            Property::always(
                "an exhausted envelope is dead-lettered at most once",
                |_, state: &LetterState| state.dead_lettered <= state.exhausted,
            ),
            Property::always(
                "in the end, each exhausted one was dead-lettered or resolved",
                |_, state: &LetterState| {
                    !state.is_settled() || state.exhausted <= state.dead_lettered + state.resolved
                },
            ),
            Property::always(
                "without a crash, nothing is delivered twice",
                |model: &Self, state: &LetterState| {
                    let calm = state.left.crashes == model.faults.crashes
                        && state.left.repetitions == model.faults.repetitions;
                    !calm || state.accepted.iter().all(|times| *times <= 1)
                },
            ),
            Property::sometimes(
                "everything is delivered in spite of every fault",
                |_, state: &LetterState| {
                    let used = state.left.crashes == 0
                        && state.left.lost_advisories == 0
                        && state.left.failures == 0;
                    used && state.left.repetitions == 0 && state.is_settled()
                },
            ),
            Property::sometimes(
                "a redriven envelope is exhausted and dead-lettered again",
                |_, state: &LetterState| state.letters.iter().any(|letter| letter.replaces.is_some()),
            ),
        ]
    }
}
