//! A model check of the protocol of the producer outbox: claim, publish, mark, expire, fail, abandon. Several relays
//! may crash, stall and be overtaken at every step, and the broker may reject a message or lose its acknowledgement.
//! The steps of a row are those of the hub (`domain::producer_outbox::Status::after`); the steps of a relay between
//! them are modelled after the role. Seeded bugs show that the checker finds them.

use integration_hub::domain::producer_outbox::{RowStep, Status};
use stateright::{Checker, HasDiscoveries, Model, Property};

const RELAYS: usize = 2;
/// Rows 0 and 1 are in one stream, in that order; row 2 is in another.
const STREAMS: [u8; 3] = [0, 0, 1];
const MAX_ATTEMPTS: u8 = 2;

/// A seeded bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// A row is marked as published before it is.
    MarkBeforePublish,
    /// A claim whose holder died never expires.
    ClaimNeverExpires,
    /// The last writer wins, even if it no longer holds the claim.
    MarkWithoutHolding,
    /// A row is claimed although an earlier one of its stream is still open.
    ClaimOutOfOrder,
    /// A relay continues with the next row of the stream after a failed one.
    GoOnAfterFailure,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Row {
    status: Status,
    claim: Option<Holder>,
    expired: bool,
    /// It failed, and its next attempt is not due yet.
    waiting: bool,
    attempts: u8,
    /// It was marked as published once.
    was_published: bool,
}

/// The holder of a claim. A relay has at most one claim, so its number identifies the claim. Claims of a crashed
/// relay have no holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Holder {
    Relay(usize),
    Dead,
}

/// The memory of a relay: lost in a crash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Relay {
    /// Rows still to be published, in order.
    todo: Vec<usize>,
    /// Rows that the broker has acknowledged and that are to be marked, or (with the bug) the other way
    /// round.
    to_mark: Vec<usize>,
    /// The row that failed, if one did.
    failed: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Outbox {
    rows: Vec<Row>,
    relays: Vec<Relay>,
    /// The messages of the broker, in order of first arrival.
    arrived: Vec<usize>,
    /// True if a message arrived twice.
    repeated: bool,
    crashes: u8,
    expiries: u8,
    refusals: u8,
    lost: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Claim(usize),
    Publish(usize, Answer),
    Mark(usize),
    /// Records the failure and releases the untried rows.
    WriteFailure(usize),
    Crash(usize),
    /// A claim expires; its holder has crashed, or is slow.
    Expire(Holder),
    /// The wait of a failed row ends.
    FallDue(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Acknowledged,
    /// It arrived, and its acknowledgement is lost.
    Lost,
    Refused,
}

struct Protocol {
    bug: Bug,
    crashes: u8,
    expiries: u8,
    refusals: u8,
    lost: u8,
}

impl Protocol {
    fn with(bug: Bug) -> Self {
        Self { bug, crashes: 1, expiries: 1, refusals: 1, lost: 1 }
    }

    /// The rows of a claim: due rows in order of insertion, without rows whose stream has an earlier open row outside
    /// the claim.
    fn claimable(&self, state: &Outbox) -> Vec<usize> {
        let mut held_back = Vec::new();
        let mut taken = Vec::new();
        for (number, row) in state.rows.iter().enumerate() {
            let due = (row.claim.is_none() && !row.waiting) || row.expired;
            let stream = STREAMS[number];
            let in_order = !held_back.contains(&stream) || self.bug == Bug::ClaimOutOfOrder;
            if row.status.after(RowStep::Claim { due }).is_some() && in_order {
                taken.push(number);
            } else if row.status.is_open() {
                held_back.push(stream);
            }
        }
        taken
    }

    /// A step of the holder of a claim, as in the database: only if it still holds the claim.
    fn step(&self, row: &mut Row, relay: usize, step: impl Fn(bool) -> RowStep) {
        let held = row.claim == Some(Holder::Relay(relay)) || self.bug == Bug::MarkWithoutHolding;
        let next = match self.bug {
            // Overwrites the row in any state.
            Bug::MarkWithoutHolding => Status::Processing.after(step(true)),
            _ => row.status.after(step(held)),
        };
        if let Some(next) = next {
            row.status = next;
            row.claim = None;
            row.expired = false;
            row.waiting = next == Status::Failed;
            row.was_published |= next == Status::Published;
        }
    }
}

impl Model for Protocol {
    type State = Outbox;
    type Action = Action;

    fn init_states(&self) -> Vec<Outbox> {
        let row = Row {
            status: Status::Pending,
            claim: None,
            expired: false,
            waiting: false,
            attempts: 0,
            was_published: false,
        };
        vec![Outbox {
            rows: vec![row; STREAMS.len()],
            relays: vec![Relay::default(); RELAYS],
            arrived: Vec::new(),
            repeated: false,
            crashes: self.crashes,
            expiries: self.expiries,
            refusals: self.refusals,
            lost: self.lost,
        }]
    }

    fn actions(&self, state: &Outbox, actions: &mut Vec<Action>) {
        for (number, relay) in state.relays.iter().enumerate() {
            let idle = relay.is_idle();
            if idle && !self.claimable(state).is_empty() {
                actions.push(Action::Claim(number));
            }
            let may_publish = relay.failed.is_none() || self.bug == Bug::GoOnAfterFailure;
            if !relay.todo.is_empty() && may_publish {
                actions.push(Action::Publish(number, Answer::Acknowledged));
                if state.refusals > 0 {
                    actions.push(Action::Publish(number, Answer::Refused));
                }
                if state.lost > 0 {
                    actions.push(Action::Publish(number, Answer::Lost));
                }
            }
            if !relay.to_mark.is_empty() {
                actions.push(Action::Mark(number));
            }
            if relay.failed.is_some() && relay.to_mark.is_empty() {
                actions.push(Action::WriteFailure(number));
            }
            if !idle && state.crashes > 0 {
                actions.push(Action::Crash(number));
            }
        }
        let waiting = state.rows.iter().enumerate().filter(|(_, row)| row.waiting);
        actions.extend(waiting.map(|(row, _)| Action::FallDue(row)));
        if self.bug != Bug::ClaimNeverExpires {
            let mut open: Vec<Holder> =
                state.rows.iter().filter(|row| !row.expired).filter_map(|row| row.claim).collect();
            open.sort_unstable();
            open.dedup();
            // The claim of a crashed relay always expires; that of a running relay a limited number of times.
            let due = |holder: &Holder| *holder == Holder::Dead || state.expiries > 0;
            actions.extend(open.into_iter().filter(due).map(Action::Expire));
        }
    }

    fn next_state(&self, before: &Outbox, action: Action) -> Option<Outbox> {
        let mut state = before.clone();
        match action {
            Action::Claim(number) => {
                let rows = self.claimable(&state);
                for row in &rows {
                    let row = &mut state.rows[*row];
                    row.status = Status::Processing;
                    row.claim = Some(Holder::Relay(number));
                    row.expired = false;
                }
                let relay = &mut state.relays[number];
                if self.bug == Bug::MarkBeforePublish {
                    relay.to_mark = rows.clone();
                }
                relay.todo = rows;
            }
            Action::Publish(number, answer) => {
                let relay = &mut state.relays[number];
                let row = relay.todo.remove(0);
                match answer {
                    Answer::Acknowledged => {
                        arrive(&mut state.arrived, &mut state.repeated, row);
                        if self.bug != Bug::MarkBeforePublish {
                            relay.to_mark.push(row);
                        }
                    }
                    Answer::Lost => {
                        arrive(&mut state.arrived, &mut state.repeated, row);
                        state.lost -= 1;
                        relay.failed = Some(row);
                    }
                    Answer::Refused => {
                        state.refusals -= 1;
                        relay.failed = Some(row);
                    }
                }
            }
            Action::Mark(number) => {
                let relay = &mut state.relays[number];
                let row = relay.to_mark.remove(0);
                self.step(&mut state.rows[row], number, |held| RowStep::Publish { held });
            }
            Action::WriteFailure(number) => {
                let relay = &mut state.relays[number];
                let failed = relay.failed.take()?;
                let given_back = std::mem::take(&mut relay.todo);
                let row = &mut state.rows[failed];
                if row.claim == Some(Holder::Relay(number)) {
                    row.attempts += 1;
                }
                let last = row.attempts >= MAX_ATTEMPTS;
                self.step(
                    row,
                    number,
                    |held| if last { RowStep::Abandon { held } } else { RowStep::Fail { held } },
                );
                for row in given_back {
                    self.step(&mut state.rows[row], number, |held| RowStep::Release { held });
                }
            }
            Action::Crash(number) => {
                state.crashes -= 1;
                state.relays[number] = Relay::default();
                let held = state.rows.iter_mut().filter(|row| row.claim == Some(Holder::Relay(number)));
                held.for_each(|row| row.claim = Some(Holder::Dead));
            }
            Action::FallDue(row) => state.rows[row].waiting = false,
            Action::Expire(holder) => {
                if holder != Holder::Dead {
                    state.expiries -= 1;
                }
                state
                    .rows
                    .iter_mut()
                    .filter(|row| row.claim == Some(holder))
                    .for_each(|row| row.expired = true);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("every row marked as published has arrived", |_, state: &Outbox| {
                let marked = state.rows.iter().enumerate().filter(|(_, row)| row.status == Status::Published);
                marked.map(|(row, _)| row).all(|row| state.arrived.contains(&row))
            }),
            Property::always("streams arrive in order of insertion", |_, state: &Outbox| {
                // By the first arrival of each, because the message id drops repetitions. An abandoned row may
                // have arrived too, at any time.
                let first: Vec<usize> = state
                    .arrived
                    .iter()
                    .copied()
                    .filter(|row| state.rows[*row].status != Status::Abandoned)
                    .collect();
                [0, 1].iter().all(|stream| {
                    let of_stream: Vec<usize> =
                        first.iter().copied().filter(|row| STREAMS[*row] == *stream).collect();
                    of_stream.is_sorted()
                })
            }),
            Property::always("a row is claimed by at most one relay", |_, state: &Outbox| {
                state.rows.iter().all(|row| (row.status == Status::Processing) == row.claim.is_some())
            }),
            Property::always("in the end, every row is settled", |model: &Self, state: &Outbox| {
                let mut actions = Vec::new();
                model.actions(state, &mut actions);
                !actions.is_empty() || state.rows.iter().all(|row| !row.status.is_open())
            }),
            Property::always("a published row stays published", |_, state: &Outbox| {
                state.rows.iter().all(|row| !row.was_published || row.status == Status::Published)
            }),
            Property::always("a row is given up only after its last attempt", |_, state: &Outbox| {
                state.rows.iter().all(|row| row.status != Status::Abandoned || row.attempts >= MAX_ATTEMPTS)
            }),
            Property::sometimes(
                "all are published in spite of everything",
                |model: &Self, state: &Outbox| {
                    let used = state.crashes == 0 && state.refusals < model.refusals && state.expiries == 0;
                    used && state.rows.iter().all(|row| row.status == Status::Published)
                },
            ),
            Property::sometimes(
                "a row is given up, and those behind it are published",
                |_, state: &Outbox| {
                    state.rows[0].status == Status::Abandoned
                        && state.rows[1..].iter().all(|row| row.status == Status::Published)
                },
            ),
            Property::sometimes("a row arrives twice", |_, state: &Outbox| state.repeated),
        ]
    }
}

fn arrive(arrived: &mut Vec<usize>, repeated: &mut bool, row: usize) {
    if arrived.contains(&row) {
        *repeated = true;
    } else {
        arrived.push(row);
    }
}

impl Relay {
    fn is_idle(&self) -> bool {
        self.todo.is_empty() && self.to_mark.is_empty() && self.failed.is_none()
    }
}

#[test]
fn the_protocol_holds_whatever_crashes() {
    let checker = Protocol::with(Bug::None).checker().threads(2).spawn_bfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 10_000, "only {} states", checker.unique_state_count());
}

#[test]
fn each_seeded_bug_is_found() {
    for (bug, broken) in [
        (Bug::MarkBeforePublish, "every row marked as published has arrived"),
        (Bug::ClaimNeverExpires, "in the end, every row is settled"),
        (Bug::MarkWithoutHolding, "a published row stays published"),
        (Bug::ClaimOutOfOrder, "streams arrive in order of insertion"),
        (Bug::GoOnAfterFailure, "streams arrive in order of insertion"),
    ] {
        let checker = Protocol::with(bug).checker().threads(2).finish_when(HasDiscoveries::AnyFailures);
        let checker = checker.spawn_bfs().join();
        let found = checker.discoveries();
        assert!(found.contains_key(broken), "{bug:?} was not found: {:?}", found.keys());
    }
}
