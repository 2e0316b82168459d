//! The pace of a replay of many dead letters: which of them are replayed, and how many at a time.
//!
//! A replayed envelope has no quota, and goes to the shared lane. Many at once would fill the outbox, and take the quota of
//! their subscription, so that its new events become dead letters (`over-quota`) while the old ones are replayed. So each
//! subscription gets replays only up to half of its quota, and at most [`WINDOW`] envelopes of it wait. Sizes are those of
//! the dead letters themselves, because a few large ones fill what thousands of average ones would not.
//!
//! Envelopes that have used up their deliveries do not count ([`UsedUp`]): they wait for the room that the replay makes. Where
//! their number is not known, or they fill the outbox, a few replays at a time go on beyond the pace, each when an earlier one
//! is finished ([`Allowance`]).

mod allowance;
mod extent;
mod used_up;
mod wait;

use std::collections::VecDeque;

pub use self::allowance::{Allowance, Fit};
pub use self::extent::{Extent, WaitingEvents};
pub use self::used_up::{LaneLook, UsedUp};
pub use self::wait::{Awaited, Wait};

use crate::backlog::{BacklogLimits, Usage};
use crate::dead_letter::{DeadLetter, DeadLetterState};
use crate::outcome::Reason;
use crate::stream_fill::Fill;

/// Most envelopes of a subscription that wait in the outbox while its dead letters are replayed.
pub const WINDOW: u64 = 1_000;
/// Most replays of a subscription at a time, so that those of others are not delayed.
pub const MOST_AT_ONCE: u64 = 256;
/// Bytes that the outbox stores for a replayed envelope besides its body.
pub const OVERHEAD: u64 = 512;
/// Percent of a quota up to which replays may use it.
const PERCENT: u64 = 50;
/// Replays of a subscription, and of all, that are unfinished at a time beyond the pace.
pub const FEW: u64 = 4;
pub const FEW_OF_ALL: u64 = 64;
/// They may use this part of what is free in the outbox, or one of them all of it.
const FEW_PART: u64 = 2;

/// Why a dead letter is not replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftBecause {
    /// A replay of it is in progress.
    Replaying,
    /// Its subscription was removed.
    Removed,
    /// Its envelope cannot be read.
    Undecodable,
    /// It failed after the start, perhaps after a replay. It would be replayed without end.
    FailedSince,
    /// It was never sent, and came after the end of the replay. Whoever publishes could extend the replay without end.
    NewSince,
}

/// Whether a dead letter is replayed. The order in the stream decides what is new, not the clocks of the processes.
///
/// * `removed`: its subscription was removed
/// * `envelope`: the sequence of its envelope in the outbox, if it was there
pub fn is_left(
    letter: &DeadLetter,
    sequence: u64,
    envelope: Option<u64>,
    removed: bool,
    extent: &Extent,
) -> Option<LeftBecause> {
    // The fan-out refused it, and so did each scheduled redrive.
    let was_never_sent = letter.reason == Reason::OverQuota && letter.attempts == 0;
    // A replayed envelope has a later place in the outbox.
    let was_waiting = envelope.is_some_and(|envelope| extent.includes_envelope(envelope));
    if letter.reason == Reason::Undecodable {
        Some(LeftBecause::Undecodable)
    } else if letter.state == DeadLetterState::Replaying {
        Some(LeftBecause::Replaying)
    } else if removed {
        Some(LeftBecause::Removed)
    } else if sequence > extent.at_start() && !was_never_sent && !was_waiting {
        Some(LeftBecause::FailedSince)
    } else if sequence > extent.last() {
        Some(LeftBecause::NewSince)
    } else {
        None
    }
}

/// What may be replayed now, to a subscription or into an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayRoom {
    pub messages: u64,
    pub bytes: u64,
    /// The bytes that one envelope may have: more than `bytes` if nothing waits.
    one: u64,
}

impl ReplayRoom {
    pub const NONE: Self = Self { messages: 0, bytes: 0, one: 0 };

    /// The room of a subscription, by its quota and its backlog.
    pub fn of_subscription(limits: &BacklogLimits, usage: &Usage) -> Self {
        let part = |limit: u64| limit.saturating_mul(PERCENT) / 100;
        let one = if usage.messages == 0 { u64::MAX } else { 0 };
        let messages = limits.messages.map_or(WINDOW, |most| part(most).max(1)).min(WINDOW);
        let bytes = limits.bytes.map_or(u64::MAX, part);
        let share = if usage.own_lane { part(usage.free_share()) } else { u64::MAX };
        Self {
            messages: messages.saturating_sub(usage.messages).min(MOST_AT_ONCE),
            bytes: bytes.min(share).saturating_sub(usage.bytes),
            one,
        }
    }

    /// The room of a subscription beyond its pace. `unfinished`: its replays beyond the pace that are neither delivered nor
    /// failed.
    pub fn of_few(unfinished: u64) -> Self {
        let messages = FEW.saturating_sub(unfinished);
        Self { messages, bytes: if messages == 0 { 0 } else { u64::MAX }, one: 0 }
    }

    /// The room of an outbox. `pending`: the replays that are requested, and not in it yet.
    pub fn of_outbox(fill: &Fill, pending: u64, pending_bytes: u64) -> Self {
        let (messages, bytes) = fill.room_for_excess();
        Self {
            messages: messages.saturating_sub(pending),
            bytes: bytes.saturating_sub(pending_bytes),
            one: if fill.messages == 0 && pending == 0 { u64::MAX } else { 0 },
        }
    }

    /// The room of an outbox beyond [`Self::of_outbox`], because used-up envelopes fill it. They leave only when dead letters
    /// are delivered, so a few replays use a part of what is free. `unfinished`: replays beyond the pace, also those that are
    /// not in it yet.
    pub fn beside_used_up(fill: &Fill, unfinished: u64, unfinished_bytes: u64) -> Self {
        let (messages, bytes) = fill.free();
        Self {
            messages: messages.min(FEW_OF_ALL).saturating_sub(unfinished),
            bytes: (bytes / FEW_PART).saturating_sub(unfinished_bytes),
            one: if unfinished == 0 { bytes } else { 0 },
        }
    }

    pub fn is_none(&self) -> bool {
        self.messages == 0 || self.bytes.max(self.one) == 0
    }

    pub fn fits(&self, size: u64) -> bool {
        self.messages > 0 && size <= self.bytes.max(self.one)
    }

    /// Takes the room of one envelope.
    pub fn take(&mut self, size: u64) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(size);
        self.one = 0;
    }

    /// How many envelopes of this size to read for it; at least one.
    pub fn count(&self, average: u64) -> u64 {
        self.messages.min((self.bytes / average.max(1)).saturating_add(1)).max(1)
    }
}

/// The sizes of the envelopes that were replayed last to a subscription. The outbox counts the envelopes of a
/// subscription, and shows the average size of all subscriptions only.
#[derive(Debug, Clone, Default)]
pub struct ReplayedSizes(VecDeque<u32>);

impl ReplayedSizes {
    pub fn add(&mut self, size: u64) {
        if self.0.len() as u64 >= WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(u32::try_from(size).unwrap_or(u32::MAX));
    }

    /// The most bytes that replayed envelopes may have among this number that waits. Forgets all when none does.
    pub fn most_bytes_of(&mut self, messages: u64) -> u64 {
        if messages == 0 {
            self.0.clear();
        }
        let sum = |sizes: &[u32]| sizes.iter().map(|size| u64::from(*size)).sum();
        let most = usize::try_from(messages).unwrap_or(usize::MAX);
        if most >= self.0.len() {
            return self.0.iter().map(|size| u64::from(*size)).sum();
        }
        let mut sizes: Vec<u32> = self.0.iter().copied().collect();
        sizes.sort_unstable_by(|one, other| other.cmp(one));
        sizes.get(..most).map_or(0, sum)
    }
}

#[cfg(test)]
mod tests;
