//! The lanes of a subscription: envelopes spill from the shared lane to a lane of its own, which has a durable consumer, is
//! paused while its endpoint fails, and is removed when it is empty. Two workers move envelopes at the same time.
//!
//! A lane consists of two things that cannot change together: its messages in the stream, and its consumer. Therefore the
//! consumer is made before a message is moved, and a message without a consumer is found by the sweep.

use stateright::{Model, Property};

const WORKERS: usize = 2;

/// A seeded bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneBug {
    None,
    /// No sweep looks for messages in a lane without a consumer.
    SweepOff,
    /// The message of the shared lane is acknowledged before its copy is stored.
    AckBeforeCommit,
    /// A consumer that no longer exists, or a message that is gone, ends the step with an error.
    GoneIsError,
    /// Nothing ends a pause.
    PausedForever,
}

/// The model, and the budgets of what may happen.
#[derive(Debug, Clone, Copy)]
pub struct Lanes {
    pub bug: LaneBug,
    /// Envelopes of the one subscription.
    pub envelopes: u8,
    pub crashes: u8,
    pub pauses: u8,
    /// Removals of the lane.
    pub removals: u8,
    /// Messages that the broker gives to a second worker.
    pub repetitions: u8,
}

impl Lanes {
    /// Bounds whose states are visited in seconds.
    pub fn with(bug: LaneBug) -> Self {
        Self { bug, envelopes: 2, crashes: 1, pauses: 1, removals: 1, repetitions: 1 }
    }
}

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    Shared,
    Own,
}

/// A message in the outbox. The stream takes each once: its message id contains all of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    envelope: u8,
    lane: Lane,
    /// The number of redrives so far: a redriven message is another one, and an acknowledgement of the first does not reach it.
    redrives: u8,
}

/// What a worker does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Work {
    /// It decides between delivery and spilling.
    Taken(Message),
    /// Delivered, to be acknowledged.
    Delivered(Message),
    /// It makes sure that the lane has a consumer.
    Spilling(Message),
    /// The consumer exists; the copy is to be stored.
    LaneMade(Message),
    /// The copy is stored (with the bug: the message is acknowledged).
    Moved(Message),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Consumer {
    Missing,
    Reading,
    Paused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LaneState {
    /// Envelopes that the fan-out has not written yet.
    unwritten: Vec<u8>,
    outbox: Vec<Message>,
    /// Message ids that were stored.
    stored: Vec<Message>,
    own: Consumer,
    workers: [Option<Work>; WORKERS],
    /// A process has found the lane empty and is about to delete its consumer.
    removing: bool,
    /// The lane was removed while it had a message: a worker may have had it.
    raced: bool,
    /// Accepted deliveries by envelope.
    accepted: Vec<u8>,
    crashes: u8,
    pauses: u8,
    removals: u8,
    repetitions: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneAction {
    /// The fan-out writes an envelope: to the own lane if its consumer exists, else to the shared lane.
    Write(Lane),
    /// The same after the fan-out has seen a consumer that is deleted before the envelope is stored.
    WriteLate,
    Take(usize, Message),
    /// The broker gives a message to a second worker while the first one has it.
    Repeat(usize, Message),
    Deliver(usize),
    Spill(usize),
    GoOn(usize),
    Crash(usize),
    Pause,
    /// The pause ends, for one envelope as a probe and then for all.
    Probe,
    SeeEmpty,
    Remove,
    /// A message in a lane without a consumer is dead-lettered as stranded, and redriven to the shared lane.
    Sweep(Message),
}

impl LaneState {
    fn store(&mut self, message: Message) {
        if !self.stored.contains(&message) {
            self.stored.push(message);
            self.outbox.push(message);
            // Workers take them in any order, so the order is of no interest.
            self.stored.sort_unstable();
            self.outbox.sort_unstable();
        }
    }

    /// Acknowledges a message. False if it is gone.
    fn acknowledge(&mut self, message: Message) -> bool {
        let before = self.outbox.len();
        self.outbox.retain(|one| *one != message);
        self.outbox.len() < before
    }

    fn remove_lane(&mut self) {
        self.removing = false;
        self.removals -= 1;
        self.own = Consumer::Missing;
    }

    fn has(&self, message: Message) -> bool {
        self.workers.iter().flatten().any(|work| work.message() == message)
    }

    fn is_readable(&self, lane: Lane) -> bool {
        lane == Lane::Shared || self.own == Consumer::Reading
    }

    fn is_settled(&self) -> bool {
        self.unwritten.is_empty()
            && self.outbox.is_empty()
            && self.workers.iter().all(Option::is_none)
            && self.accepted.iter().all(|times| *times > 0)
    }
}

impl Work {
    fn message(self) -> Message {
        match self {
            Self::Taken(message)
            | Self::Delivered(message)
            | Self::Spilling(message)
            | Self::LaneMade(message)
            | Self::Moved(message) => message,
        }
    }
}

impl Lanes {
    /// The next step of a worker. `None` if it fails without end.
    fn go_on(&self, state: &mut LaneState, worker: usize) -> Option<()> {
        let work = state.workers[worker]?;
        let copy = Message { lane: Lane::Own, ..work.message() };
        let next = match (work, self.bug) {
            // A choice of its own: `Deliver` or `Spill`.
            (Work::Taken(_), _) => return None,
            (Work::Delivered(message), bug) => {
                if !state.acknowledge(message) && bug == LaneBug::GoneIsError {
                    return None;
                }
                None
            }
            (Work::Spilling(message), bug) => {
                if state.own == Consumer::Missing {
                    // With the bug, a consumer that was seen and is gone is an error.
                    if bug == LaneBug::GoneIsError && state.removals < self.removals {
                        return None;
                    }
                    state.own = Consumer::Reading;
                }
                Some(Work::LaneMade(message))
            }
            (Work::LaneMade(message), LaneBug::AckBeforeCommit) => {
                state.acknowledge(message);
                Some(Work::Moved(message))
            }
            (Work::LaneMade(message), _) => {
                state.store(copy);
                Some(Work::Moved(message))
            }
            (Work::Moved(_), LaneBug::AckBeforeCommit) => {
                state.store(copy);
                None
            }
            (Work::Moved(message), bug) => {
                if !state.acknowledge(message) && bug == LaneBug::GoneIsError {
                    return None;
                }
                None
            }
        };
        state.workers[worker] = next;
        Some(())
    }
}

impl Model for Lanes {
    type State = LaneState;
    type Action = LaneAction;

    fn init_states(&self) -> Vec<LaneState> {
        vec![LaneState {
            unwritten: (0..self.envelopes).rev().collect(),
            outbox: Vec::new(),
            stored: Vec::new(),
            own: Consumer::Missing,
            workers: [None; WORKERS],
            removing: false,
            raced: false,
            accepted: vec![0; usize::from(self.envelopes)],
            crashes: self.crashes,
            pauses: self.pauses,
            removals: self.removals,
            repetitions: self.repetitions,
        }]
    }

    fn actions(&self, state: &LaneState, actions: &mut Vec<LaneAction>) {
        if !state.unwritten.is_empty() {
            actions.push(LaneAction::Write(Lane::Shared));
            if state.own != Consumer::Missing {
                actions.push(LaneAction::Write(Lane::Own));
                if state.removing {
                    actions.push(LaneAction::WriteLate);
                }
            }
        }
        for (worker, work) in state.workers.iter().enumerate() {
            match work {
                None => {
                    for message in state.outbox.iter().filter(|one| state.is_readable(one.lane)) {
                        if !state.has(*message) {
                            actions.push(LaneAction::Take(worker, *message));
                        } else if state.repetitions > 0 {
                            actions.push(LaneAction::Repeat(worker, *message));
                        }
                    }
                }
                Some(Work::Taken(message)) => {
                    actions.push(LaneAction::Deliver(worker));
                    if message.lane == Lane::Shared {
                        actions.push(LaneAction::Spill(worker));
                    }
                }
                Some(_) => actions.push(LaneAction::GoOn(worker)),
            }
            if work.is_some() && state.crashes > 0 {
                actions.push(LaneAction::Crash(worker));
            }
        }
        let lane_is_empty = !state.outbox.iter().any(|message| message.lane == Lane::Own);
        match state.own {
            Consumer::Reading if state.pauses > 0 => actions.push(LaneAction::Pause),
            Consumer::Paused if self.bug != LaneBug::PausedForever => actions.push(LaneAction::Probe),
            _ => {}
        }
        if state.removing {
            actions.push(LaneAction::Remove);
        } else if state.own == Consumer::Reading && state.removals > 0 && lane_is_empty {
            actions.push(LaneAction::SeeEmpty);
        }
        if state.own == Consumer::Missing && self.bug != LaneBug::SweepOff {
            let stranded = state.outbox.iter().filter(|message| message.lane == Lane::Own);
            actions.extend(stranded.map(|message| LaneAction::Sweep(*message)));
        }
    }

    fn next_state(&self, last: &LaneState, action: LaneAction) -> Option<LaneState> {
        let mut state = last.clone();
        match action {
            LaneAction::Write(lane) => {
                let envelope = state.unwritten.pop()?;
                state.store(Message { envelope, lane, redrives: 0 });
            }
            LaneAction::WriteLate => {
                let envelope = state.unwritten.pop()?;
                state.remove_lane();
                state.raced = true;
                state.store(Message { envelope, lane: Lane::Own, redrives: 0 });
            }
            LaneAction::Take(worker, message) => state.workers[worker] = Some(Work::Taken(message)),
            LaneAction::Repeat(worker, message) => {
                state.repetitions -= 1;
                state.workers[worker] = Some(Work::Taken(message));
            }
            LaneAction::Deliver(worker) => {
                let message = state.workers[worker]?.message();
                state.accepted[usize::from(message.envelope)] += 1;
                state.workers[worker] = Some(Work::Delivered(message));
            }
            LaneAction::Spill(worker) => {
                let message = state.workers[worker]?.message();
                state.workers[worker] = Some(Work::Spilling(message));
            }
            LaneAction::GoOn(worker) => self.go_on(&mut state, worker)?,
            LaneAction::Crash(worker) => {
                state.crashes -= 1;
                state.workers[worker] = None;
            }
            LaneAction::Pause => {
                state.pauses -= 1;
                state.own = Consumer::Paused;
            }
            LaneAction::Probe => state.own = Consumer::Reading,
            LaneAction::SeeEmpty => state.removing = true,
            LaneAction::Remove => {
                state.raced |= state.outbox.iter().any(|message| message.lane == Lane::Own);
                state.remove_lane();
            }
            LaneAction::Sweep(message) => {
                state.acknowledge(message);
                let again = Message { lane: Lane::Shared, redrives: message.redrives + 1, ..message };
                state.store(again);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no envelope is lost", |model: &Self, state: &LaneState| {
                (0..model.envelopes).all(|envelope| {
                    state.accepted[usize::from(envelope)] > 0
                        || state.unwritten.contains(&envelope)
                        || state.outbox.iter().any(|message| message.envelope == envelope)
                })
            }),
            Property::always("in the end, everything is delivered", |model: &Self, state: &LaneState| {
                state.is_settled() || !model.next_states(state).is_empty()
            }),
            Property::always(
                "without a fault, nothing is delivered twice",
                |model: &Self, state: &LaneState| {
                    let calm = state.crashes == model.crashes && state.repetitions == model.repetitions;
                    !calm || state.raced || state.accepted.iter().all(|times| *times <= 1)
                },
            ),
            Property::sometimes(
                "everything is delivered from a lane that was paused and removed",
                |_, state: &LaneState| {
                    state.is_settled() && state.pauses == 0 && state.removals == 0 && state.crashes == 0
                },
            ),
            Property::sometimes("an envelope is in a lane without a consumer", |_, state: &LaneState| {
                state.own == Consumer::Missing && state.outbox.iter().any(|message| message.lane == Lane::Own)
            }),
        ]
    }
}
