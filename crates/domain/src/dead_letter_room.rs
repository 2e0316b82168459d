//! Whether the dead letters of a domain can be stored, as the answers to writes and the looks at their stream show.
//!
//! [`LetterRoom`] answers two questions:
//!
//! - *May one be stored now?* After a refusal, none of at least this size is tried for a moment: thousands of envelopes may
//!   wait for the same stream.
//!   A request without an answer costs its caller the whole timeout. After one, a probe finds out beside the callers whether
//!   the stream answers, and until it does, no caller tries.
//! - *What does an operator see?* One change when dead letters are refused, and one when they are stored again, however
//!   often single smaller ones are stored in between.

use std::fmt;
use std::time::Duration;

/// No dead letter is tried for this long after a refusal.
const PAUSE: Duration = Duration::from_secs(1);
/// The same after a request without an answer, which costs its caller the whole timeout; it doubles.
const UNANSWERED_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// While there is no answer to a probe, no dead letter is tried for this long. Longer than the time from one probe to the
/// next.
const SILENT_FOR: Duration = Duration::from_secs(30);
/// Refusals over a shorter time are a disturbance, such as a restart of the server; a full stream is reported at once.
const PERSISTS: Duration = Duration::from_secs(5);
/// Time without a refusal after which the state ends, if the stream has room.
const QUIET: Duration = Duration::from_secs(2);
/// The same where the room of the stream says nothing, because the cause is another.
const LONG_QUIET: Duration = Duration::from_secs(60);
/// A stream has room again if this part of its limit is free.
const ROOM_PART: u64 = 16;

/// Wait before an envelope whose dead letter was refused is looked at again.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Why a dead letter was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadLetterRefusal {
    /// The stream is full.
    Full,
    /// The server or the account has no room.
    NoResources,
    /// The stream does not exist.
    Missing,
    /// The dead letter is larger than the stream or the server accepts.
    TooLarge,
    /// There was no answer in time.
    Unanswered,
    Other,
}

impl DeadLetterRefusal {
    /// What an operator can do.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Full => "run `hub dlt replay --all --drain` or `hub dlt discard`, or raise limits.dlt",
            Self::NoResources => "free disk space of the NATS server, or raise the limits of its account",
            Self::Missing => "run `hub provision`",
            Self::TooLarge => "raise max_msg_size of the stream, or max_payload of the NATS server",
            Self::Unanswered => "check that the stream has a leader (`nats stream info`)",
            Self::Other => "check the stream (`nats stream info`)",
        }
    }
}

impl fmt::Display for DeadLetterRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the dead-letter stream is full",
            Self::NoResources => "the NATS server has no room",
            Self::Missing => "the dead-letter stream is missing",
            Self::TooLarge => "a dead letter is larger than the stream accepts",
            Self::Unanswered => "the dead-letter stream does not answer",
            Self::Other => "the NATS server rejects dead letters",
        })
    }
}

/// The space of a dead-letter stream: what is used, and the limit, where it has one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamRoom {
    pub bytes: Option<(u64, u64)>,
    pub messages: Option<(u64, u64)>,
}

impl StreamRoom {
    fn has_room_for(&self, size: u64) -> bool {
        let fits = |(used, limit): (u64, u64), more: u64| {
            limit.saturating_sub(used) >= more.max(limit / ROOM_PART).max(1)
        };
        self.bytes.is_none_or(|bytes| fits(bytes, size)) && self.messages.is_none_or(|count| fits(count, 1))
    }
}

/// What changes for an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadLetterRoomChange {
    /// Dead letters are refused.
    Began(DeadLetterRefusal),
    /// They are stored again, after this time.
    Ended { after: Duration },
}

/// The state of one dead-letter stream. Callers pass the time as the duration since a fixed start.
#[derive(Debug, Clone, Default)]
pub struct LetterRoom {
    refusing: Option<Refusing>,
}

#[derive(Debug, Clone)]
struct Refusing {
    since: Duration,
    /// The last refusal, and when it was.
    refusal: DeadLetterRefusal,
    last: Duration,
    /// No dead letter is tried before.
    until: Duration,
    pause: Duration,
    /// The same because of a probe without an answer.
    silent_until: Duration,
    /// The smallest and the largest dead letter for which the stream was full.
    smallest: u64,
    largest: u64,
    /// One was stored since the last refusal.
    stored: bool,
    is_reported: bool,
}

impl LetterRoom {
    /// Whether a dead letter of this size may be stored now; otherwise why not.
    pub fn may_try(&self, size: u64, now: Duration) -> Result<(), DeadLetterRefusal> {
        match &self.refusing {
            Some(state) if now < state.silent_until => Err(DeadLetterRefusal::Unanswered),
            Some(state)
                if now < state.until
                    && (state.refusal != DeadLetterRefusal::Full || size >= state.smallest) =>
            {
                Err(state.refusal)
            }
            _ => Ok(()),
        }
    }

    /// A dead letter was refused.
    pub fn refused(&mut self, refusal: DeadLetterRefusal, size: u64, now: Duration) {
        let state = self.refusing.get_or_insert(Refusing {
            since: now,
            refusal,
            last: now,
            until: now,
            pause: Duration::ZERO,
            silent_until: now,
            smallest: u64::MAX,
            largest: 0,
            stored: false,
            is_reported: false,
        });
        state.last = state.last.max(now);
        state.stored = false;
        let pause = match refusal {
            // It says nothing about others.
            DeadLetterRefusal::TooLarge | DeadLetterRefusal::Other if state.refusal != refusal => return,
            DeadLetterRefusal::TooLarge | DeadLetterRefusal::Other => Duration::ZERO,
            DeadLetterRefusal::Full | DeadLetterRefusal::NoResources | DeadLetterRefusal::Missing => PAUSE,
            // It was on its way already.
            DeadLetterRefusal::Unanswered if now < state.until => state.pause,
            DeadLetterRefusal::Unanswered => (state.pause * 2).clamp(UNANSWERED_PAUSE, LONGEST_PAUSE),
        };
        if refusal == DeadLetterRefusal::Full {
            state.smallest = state.smallest.min(size);
            state.largest = state.largest.max(size);
        }
        state.refusal = refusal;
        state.pause = pause;
        state.until = state.until.max(now + pause);
    }

    /// Whether it is to be found out with a probe if the stream answers.
    pub fn wants_probe(&self) -> bool {
        self.refusing
            .as_ref()
            .is_some_and(|state| state.refusal == DeadLetterRefusal::Unanswered && !state.stored)
    }

    /// A probe is sent. No caller tries until it has an answer.
    pub fn probing(&mut self, now: Duration) {
        if let Some(state) = &mut self.refusing {
            state.silent_until = now + SILENT_FOR;
        }
    }

    /// A probe has had no answer. `now`: when it ended.
    pub fn probe_failed(&mut self, now: Duration) {
        if let Some(state) = &mut self.refusing {
            state.last = state.last.max(now);
            state.silent_until = now + SILENT_FOR;
        }
    }

    /// The stream has answered a probe. Dead letters are tried again, after the pause of the last try: the stream may answer
    /// and still store nothing.
    pub fn probe_answered(&mut self, now: Duration) {
        if let Some(state) = &mut self.refusing {
            state.silent_until = now;
        }
    }

    /// A dead letter was stored.
    pub fn stored(&mut self, size: u64, now: Duration) {
        let Some(state) = &mut self.refusing else { return };
        state.stored = true;
        state.silent_until = now;
        if state.refusal == DeadLetterRefusal::Full && size < state.smallest {
            return;
        }
        (state.until, state.pause, state.smallest) = (now, Duration::ZERO, u64::MAX);
        if !state.is_reported && state.refusal != DeadLetterRefusal::Full {
            self.refusing = None;
        }
    }

    /// Whether a refusal is known, so that the stream is to be looked at.
    pub fn is_refusing(&self) -> bool {
        self.refusing.is_some()
    }

    /// Whether an operator knows that dead letters are refused.
    pub fn is_reported(&self) -> bool {
        self.refusing.as_ref().is_some_and(|state| state.is_reported)
    }

    /// What changed for an operator. `room`: the space of the stream as it is now, if it is known.
    pub fn report(&mut self, room: Option<&StreamRoom>, now: Duration) -> Option<DeadLetterRoomChange> {
        let state = self.refusing.as_mut()?;
        let quiet = now.saturating_sub(state.last);
        if !state.is_reported {
            if state.refusal == DeadLetterRefusal::Full || state.last.saturating_sub(state.since) >= PERSISTS
            {
                state.is_reported = true;
                return Some(DeadLetterRoomChange::Began(state.refusal));
            }
            if quiet >= LONG_QUIET {
                self.refusing = None;
            }
            return None;
        }
        let shows_room = matches!(state.refusal, DeadLetterRefusal::Full | DeadLetterRefusal::Missing);
        let is_quiet = quiet >= LONG_QUIET || quiet >= QUIET && (shows_room || state.stored);
        if !is_quiet || !room?.has_room_for(state.largest) {
            return None;
        }
        let after = now.saturating_sub(state.since);
        self.refusing = None;
        Some(DeadLetterRoomChange::Ended { after })
    }
}

/// Wait before an envelope whose dead letter was refused is looked at again, by the number of its deliveries: longer each
/// time, because a full stream stays full until somebody makes room.
pub fn retry_after(deliveries: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << deliveries.saturating_sub(1).min(8)).min(LONGEST_RETRY)
}

#[cfg(test)]
mod tests;
