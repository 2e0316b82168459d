//! The streams, and the processes with a message.

/// Broker deliveries of an envelope before it is exhausted.
pub(super) const MAX_DELIVER: u8 = 2;

/// How many of each may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Faults {
    /// Crashes of the process that carries a message.
    pub crashes: u8,
    /// Advisories that nobody keeps.
    pub lost_advisories: u8,
    /// Attempts that the endpoint does not accept.
    pub failures: u8,
    /// Messages that the broker delivers again although their reader goes on.
    pub repetitions: u8,
}

/// The broker's notice of the last delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    Kept,
    Lost,
}

/// An envelope in the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Envelope {
    pub(super) event: u8,
    /// Distinguishes it from earlier messages of the same event.
    pub(super) number: u8,
    /// The dead letter that it was redriven from.
    pub(super) letter: Option<u8>,
    pub(super) deliveries: u8,
    /// The worker has it.
    pub(super) at_worker: Option<Delivery>,
}

/// The steps of the worker with an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Delivery {
    Taken,
    /// The endpoint has accepted it.
    Accepted,
    /// Its dead letter is removed, too; it can be acknowledged.
    Resolved,
}

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Letter {
    pub(super) event: u8,
    /// The number of the envelope that it was made from, as its message id.
    pub(super) of: u8,
    /// Its predecessor is to be removed, until it is.
    pub(super) replaces: Option<u8>,
    /// Its envelope is in the outbox again.
    pub(super) replaying: bool,
}

/// The dead-lettering of an envelope by the router or the sweep, in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Routing {
    Begun,
    /// The dead letter is stored (with the bug: the original is deleted).
    First,
    /// Its predecessor is removed.
    Replaced,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LetterState {
    /// Events in the events stream, with the progress of the event processor.
    pub(super) events: Vec<(u8, Fanning)>,
    pub(super) outbox: Vec<Envelope>,
    /// The numbers of envelopes that were stored: message ids, which the stream does not take again.
    pub(super) stored: Vec<u8>,
    /// The numbers of exhausted envelopes, as advisories that are stored.
    pub(super) advisories: Vec<u8>,
    pub(super) routing: Option<(u8, Routing)>,
    pub(super) letters: Vec<Letter>,
    /// Numbers of envelopes whose dead letter was stored: message ids.
    pub(super) lettered: Vec<u8>,
    /// Deliveries that the endpoint has accepted, by event.
    pub(super) accepted: Vec<u8>,
    /// Numbers of envelopes that a slow worker has delivered, and not acknowledged yet, although the broker has them back.
    pub(super) late: Vec<u8>,
    pub(super) exhausted: u8,
    pub(super) dead_lettered: u8,
    /// Exhausted envelopes that a slow worker acknowledged.
    pub(super) resolved: u8,
    pub(super) left: Faults,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fanning {
    Waiting,
    Begun,
    /// Its envelope is stored (with the bug: the event is acknowledged).
    First,
}

impl LetterState {
    pub(super) fn envelope(&self, number: u8) -> Option<usize> {
        self.outbox.iter().position(|envelope| envelope.number == number)
    }

    pub(super) fn store(&mut self, event: u8, number: u8, letter: Option<u8>) {
        if !self.stored.contains(&number) {
            self.stored.push(number);
            self.outbox.push(Envelope { event, number, letter, deliveries: 0, at_worker: None });
        }
    }

    /// The envelope goes back to the broker. Used up, it is exhausted, and the broker sends the notice once.
    pub(super) fn give_back(&mut self, at: usize, notice: Notice) -> Option<()> {
        let envelope = &mut self.outbox[at];
        envelope.at_worker = None;
        let (last, number) = (envelope.deliveries >= MAX_DELIVER, envelope.number);
        match (last, notice) {
            (false, Notice::Kept) => {}
            // Only the last delivery has a notice to lose.
            (false, Notice::Lost) => return None,
            (true, Notice::Kept) => {
                self.exhausted += 1;
                self.advisories.push(number);
            }
            (true, Notice::Lost) => {
                self.exhausted += 1;
                self.left.lost_advisories = self.left.lost_advisories.checked_sub(1)?;
            }
        }
        Some(())
    }

    pub(super) fn is_exhausted(&self, number: u8) -> bool {
        self.envelope(number).is_some_and(|at| {
            self.outbox[at].deliveries >= MAX_DELIVER && self.outbox[at].at_worker.is_none()
        })
    }

    /// Removes a dead letter. False if it no longer exists.
    pub(super) fn remove_letter(&mut self, of: u8) -> bool {
        let before = self.letters.len();
        self.letters.retain(|letter| letter.of != of);
        self.letters.len() < before
    }

    /// Nothing is left, and every event was delivered.
    pub(super) fn is_settled(&self) -> bool {
        let empty = self.events.is_empty() && self.outbox.is_empty() && self.letters.is_empty();
        empty
            && self.advisories.is_empty()
            && self.routing.is_none()
            && self.accepted.iter().all(|times| *times > 0)
    }

    pub(super) fn is_kept(&self, event: u8) -> bool {
        self.accepted[usize::from(event)] > 0
            || self.events.iter().any(|(waiting, _)| *waiting == event)
            || self.outbox.iter().any(|envelope| envelope.event == event)
            || self.letters.iter().any(|letter| letter.event == event)
    }
}
