//! Events that are still in their stream although the reader has passed them.
//!
//! The events stream is a work queue: an acknowledged event is removed. A server whose disk is full may lose the removal
//! and keep the acknowledgement. Such an event is at or below the ack floor of the reader, and nothing delivers it again.
//! The same is true of an event that the reader has never delivered: the stream lost its last messages and gave their
//! sequences to new events, or somebody made the reader again with a later start. So the ack floor alone proves nothing.
//!
//! A leftover is removed only if its fan-out is known to be committed: the process has acknowledged it itself, or
//! something is stored about one of its envelopes. Any other leftover is fanned out; the domain outbox drops the
//! envelopes that it stored within its duplicate window.

use std::collections::HashMap;

use super::envelope::Envelope;
use super::event::Event;
use super::lately::Stored;

#[cfg(test)]
mod tests;

/// Looks in a row that must find a leftover: between an acknowledgement and the removal it looks the same for a moment.
pub const CONFIRMED: u32 = 2;
/// Looks in a row after which a process handles a leftover that it did not acknowledge. Another process that did so is
/// faster, and its records of the delivery log are written by then.
pub const UNKNOWN: u32 = 5;

/// What to do with a leftover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftoverStep {
    /// Nothing yet.
    Wait,
    /// Its fan-out is committed: remove it.
    Remove,
    /// Look for its traces, and call [`decide`].
    LookForTraces,
}

/// What to do with a leftover whose traces were looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftoverVerdict {
    Remove,
    FanOut,
}

/// A trace of an envelope of the event, or of its rejection, shows that the event was processed.
pub fn decide(any_trace: bool) -> LeftoverVerdict {
    if any_trace { LeftoverVerdict::Remove } else { LeftoverVerdict::FanOut }
}

/// The leftovers of a stream, and the number of looks in a row that found each.
#[derive(Debug, Default)]
pub struct Leftovers {
    before: HashMap<Stored, u32>,
    now: HashMap<Stored, u32>,
}

impl Leftovers {
    /// Reports a message at or below the ack floor. `settled_here`: this process has committed its fan-out, or stored its
    /// rejection, and acknowledged it.
    pub fn found(&mut self, message: Stored, settled_here: bool) -> LeftoverStep {
        let looks = self.before.get(&message).copied().unwrap_or(0).saturating_add(1);
        let step = if looks >= CONFIRMED && settled_here {
            LeftoverStep::Remove
        } else if looks < UNKNOWN {
            LeftoverStep::Wait
        } else {
            LeftoverStep::LookForTraces
        };
        // What is being fanned out may wait for room in its outbox.
        let looks = if step == LeftoverStep::LookForTraces { 0 } else { looks };
        self.now.insert(message, looks);
        step
    }

    /// The traces of a leftover are looked for after the next look, because there are too many at once.
    pub fn defer(&mut self, message: Stored) {
        self.now.insert(message, UNKNOWN - 1);
    }

    /// Ends a look: what it did not find is gone.
    pub fn end_look(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    /// Whether the last look found any.
    pub fn any(&self) -> bool {
        !self.before.is_empty()
    }
}

/// What identifies an event in what is stored about its envelopes. Two events may have the same id: of different
/// tenants or sources, or because a sequence was used twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventMark {
    pub tenant: String,
    pub id: String,
    pub key: String,
    pub time: String,
}

impl EventMark {
    pub fn of(event: &Event) -> Self {
        Self {
            tenant: event.tenant.clone(),
            id: event.id.clone(),
            key: event.key.as_str().to_owned(),
            time: event.time.clone(),
        }
    }

    /// That of an envelope in an outbox or of a dead letter.
    pub fn of_envelope(envelope: &Envelope<'_>) -> Option<Self> {
        Some(Self {
            tenant: envelope.tenant.to_string(),
            id: envelope.event_id.to_string(),
            key: envelope.event_key.to_string(),
            time: envelope.event_time.as_deref()?.to_owned(),
        })
    }
}
