//! How full a stream is that rejects messages when it is full (`discard: new`), and what an operator sees of it.
//!
//! A stream is *nearly full* from 80% on, and *full* if a message of the average size no longer fits, or less than a
//! hundredth of the limit is free. The level falls later than it rises, so that it does not change with each message.

use std::fmt;
use std::time::Duration;

/// Percent from which on a stream is nearly full, and below which it no longer is.
const NEARLY: u64 = 80;
const NOT_NEARLY: u64 = 75;
/// A stream that was full has room again if this part of its limit is free.
const ROOM_PART: u64 = 16;
/// A level counts no longer if the stream could not be looked at for this long.
const STALE_AFTER: Duration = Duration::from_secs(30);
/// A stream is full if less than this part of its limit is free.
const FULL_PART: u64 = 100;
/// Envelopes over quota of a domain leave this part of its outbox free, and so do replays.
const EXCESS_PART: u64 = 8;
/// Sizes are estimated before they are stored, so this part is kept free in addition.
const MARGIN_PART: u64 = 64;

/// What a stream contains, and its limits where it has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fill {
    pub bytes: u64,
    pub messages: u64,
    pub max_bytes: Option<u64>,
    pub max_messages: Option<u64>,
}

impl Fill {
    /// Percent of the nearest limit; 0 without a limit.
    pub fn percent(&self) -> u64 {
        self.limits().map(|(used, limit, _)| percent(used, limit)).max().unwrap_or(0)
    }

    /// Only the eighth of the nearest limit is free that is kept for envelopes within their quotas.
    pub fn is_closed_to_excess(&self) -> bool {
        self.limits().any(|(used, limit, average)| limit.saturating_sub(used) < kept(limit, average))
    }

    /// The messages and bytes that may be added before [`Self::is_closed_to_excess`].
    pub fn room_for_excess(&self) -> (u64, u64) {
        let average = self.bytes.checked_div(self.messages).unwrap_or(0);
        let room = |used: u64, limit: Option<u64>, average| {
            limit.map_or(u64::MAX, |limit| limit.saturating_sub(used).saturating_sub(kept(limit, average)))
        };
        (room(self.messages, self.max_messages, 1), room(self.bytes, self.max_bytes, average))
    }

    /// The messages and bytes that may be added before it is full.
    pub fn free(&self) -> (u64, u64) {
        let free = |used: u64, limit: Option<u64>| limit.map_or(u64::MAX, |limit| limit.saturating_sub(used));
        (free(self.messages, self.max_messages), free(self.bytes, self.max_bytes))
    }

    /// What is used, the limit, and the average message, in the same unit.
    fn limits(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let average = self.bytes.checked_div(self.messages).unwrap_or(0);
        let bytes = self.max_bytes.map(|limit| (self.bytes, limit, average));
        let messages = self.max_messages.map(|limit| (self.messages, limit, 1));
        bytes.into_iter().chain(messages)
    }

    fn is_full(&self) -> bool {
        self.limits()
            .any(|(used, limit, average)| limit.saturating_sub(used) < average.max(limit / FULL_PART).max(1))
    }

    fn has_room_again(&self) -> bool {
        self.limits()
            .all(|(used, limit, average)| limit.saturating_sub(used) >= average.max(limit / ROOM_PART).max(1))
    }
}

/// What is kept free of a limit.
fn kept(limit: u64, average: u64) -> u64 {
    let margin = average.saturating_mul(2).max(limit / MARGIN_PART);
    (limit / EXCESS_PART).saturating_add(margin)
}

fn percent(used: u64, limit: u64) -> u64 {
    let percent = u128::from(used) * 100 / u128::from(limit.max(1));
    u64::try_from(percent).unwrap_or(u64::MAX)
}

/// How full a stream is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    Room,
    Nearly,
    Full,
}

/// A stream whose fullness has consequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamKind {
    Events,
    Outbox,
    DeadLetters,
}

impl StreamKind {
    /// What happens while the stream is full.
    pub fn consequence(self) -> &'static str {
        match self {
            Self::Events => "publications are rejected",
            Self::Outbox => "all events of the domain wait in the events stream",
            Self::DeadLetters => "failed envelopes and envelopes over quota stay in the outbox",
        }
    }

    /// What an operator can do.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Events => {
                "check that event processors run and that no outbox is full (`hub domain list`), or raise limits.events"
            }
            Self::Outbox => {
                "resume the domain if it is paused, repair the endpoints with the largest backlogs (`hub subscription \
                 show ID --circuits`), or raise limits.outbox"
            }
            Self::DeadLetters => {
                "run `hub dlt replay --all --drain` or `hub dlt discard`, or raise limits.dlt"
            }
        }
    }
}

/// What changes for an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LevelChange {
    To(Level),
    /// There is room again, after this time.
    Ended {
        after: Duration,
    },
}

/// The level of one stream. Callers pass the time as the duration since a fixed start.
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamLevel {
    level: Level,
    /// When it left [`Level::Room`].
    since: Duration,
    /// The last look.
    looked: Duration,
}

impl StreamLevel {
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whether the last look is too long ago to say how full the stream is now.
    pub fn is_stale(&self, now: Duration) -> bool {
        now.saturating_sub(self.looked) >= STALE_AFTER
    }

    /// Takes note of a look at the stream. Returns the change, if there is one.
    pub fn look(&mut self, fill: &Fill, now: Duration) -> Option<LevelChange> {
        self.looked = now;
        let percent = fill.percent();
        let next = match self.level {
            _ if fill.is_full() => Level::Full,
            Level::Full if !fill.has_room_again() => Level::Full,
            Level::Room if percent < NEARLY => Level::Room,
            _ if percent < NOT_NEARLY => Level::Room,
            _ => Level::Nearly,
        };
        if next == self.level {
            return None;
        }
        if self.level == Level::Room {
            self.since = now;
        }
        self.level = next;
        Some(match next {
            Level::Room => LevelChange::Ended { after: now.saturating_sub(self.since) },
            level => LevelChange::To(level),
        })
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::backlog::size;
        match (self.max_bytes, self.max_messages) {
            (Some(limit), _)
                if self.max_messages.is_none_or(|most| percent(self.messages, most) < self.percent()) =>
            {
                write!(f, "{} of {}", size::shown(self.bytes), size::shown(limit))
            }
            (_, Some(limit)) => write!(f, "{} of {limit} messages", self.messages),
            _ => write!(f, "{} messages", self.messages),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1_000_000;

    fn bytes(bytes: u64, average: u64) -> Fill {
        Fill { bytes, messages: bytes / average.max(1), max_bytes: Some(LIMIT), max_messages: None }
    }

    fn messages(messages: u64) -> Fill {
        Fill { bytes: messages, messages, max_bytes: None, max_messages: Some(1_000) }
    }

    #[test]
    fn a_stream_is_nearly_full_before_it_is_full_and_each_change_is_reported_once() {
        let mut level = StreamLevel::default();
        let at = Duration::from_secs;
        let looks = [
            (0, None),
            (790_000, None),
            (800_000, Some(LevelChange::To(Level::Nearly))),
            (760_000, None),
            (985_000, None),
            (990_001, Some(LevelChange::To(Level::Full))),
            (950_000, None),
            (937_000, Some(LevelChange::To(Level::Nearly))),
            (995_000, Some(LevelChange::To(Level::Full))),
            (100_000, Some(LevelChange::Ended { after: at(7) })),
            (1_000_000, Some(LevelChange::To(Level::Full))),
            (750_000, Some(LevelChange::To(Level::Nearly))),
            (749_000, Some(LevelChange::Ended { after: at(2) })),
        ];
        for (second, (used, change)) in (0..).zip(looks) {
            assert_eq!(level.look(&bytes(used, 100), at(second)), change, "{used} at {second} s");
        }
    }

    #[test]
    fn a_level_is_stale_if_there_was_no_look_for_a_while_and_fresh_after_the_next_one() {
        let (mut level, at) = (StreamLevel::default(), Duration::from_secs);
        level.look(&bytes(1_000_000, 100), at(100));
        assert!(!level.is_stale(at(100)) && !level.is_stale(at(129)) && level.is_stale(at(130)));
        assert_eq!(level.look(&bytes(1_000_000, 100), at(500)), None, "it was full before");
        assert!(!level.is_stale(at(529)) && level.is_stale(at(530)));
        assert_eq!(level.look(&bytes(0, 100), at(600)), Some(LevelChange::Ended { after: at(500) }));
    }

    /// A stream that rejects the next message of the usual size is full, whatever its limit and its messages are.
    #[test]
    fn a_stream_without_room_for_a_message_is_full() {
        for average in [1, 100, 5_000, 40_000, 90_000] {
            let mut used = 0;
            while used + average <= LIMIT {
                used += average;
            }
            let fill = bytes(used, average);
            let mut level = StreamLevel::default();
            assert_eq!(level.look(&fill, Duration::ZERO), Some(LevelChange::To(Level::Full)), "{average}");
            assert!(fill.percent() >= NEARLY && fill.is_closed_to_excess(), "{average}");
        }
        let mut level = StreamLevel::default();
        assert_eq!(level.look(&messages(799), Duration::ZERO), None);
        assert_eq!(level.look(&messages(800), Duration::ZERO), Some(LevelChange::To(Level::Nearly)));
        assert_eq!(level.look(&messages(1_000), Duration::ZERO), Some(LevelChange::To(Level::Full)));
        assert_eq!(
            level.look(&messages(0), Duration::ZERO),
            Some(LevelChange::Ended { after: Duration::ZERO })
        );
    }

    #[test]
    fn an_eighth_is_kept_for_envelopes_within_their_quotas() {
        assert!(!bytes(850_000, 100).is_closed_to_excess());
        assert!(bytes(875_000, 100).is_closed_to_excess());
        // One more of this size does not leave an eighth.
        assert!(bytes(840_000, 40_000).is_closed_to_excess());
        assert!(!messages(850).is_closed_to_excess() && messages(875).is_closed_to_excess());
    }

    #[test]
    fn a_stream_without_limits_is_never_full() {
        let fill = Fill { bytes: u64::MAX, messages: u64::MAX, max_bytes: None, max_messages: None };
        assert_eq!((fill.percent(), fill.is_closed_to_excess()), (0, false));
        assert_eq!(StreamLevel::default().look(&fill, Duration::ZERO), None);
        assert_eq!(StreamLevel::default().look(&Fill::default(), Duration::ZERO), None);
    }

    /// The level always follows from the last look, within the bounds, and each change is reported.
    #[test]
    fn the_level_follows_the_looks() {
        let (mut level, mut state) = (StreamLevel::default(), 7_u64);
        for step in 0..100_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let fill = bytes((state >> 40) % (LIMIT + 1), 1 + (state >> 20) % 2_000);
            let before = level.level();
            let change = level.look(&fill, Duration::from_secs(step));
            assert_eq!(change.is_some(), before != level.level());
            let percent = fill.percent();
            match level.level() {
                Level::Room => assert!(percent < NEARLY && !fill.is_full()),
                Level::Nearly => assert!(percent >= NOT_NEARLY && !fill.is_full()),
                Level::Full => assert!(!fill.has_room_again()),
            }
        }
    }

    #[test]
    fn a_stream_is_closed_to_excess_when_its_room_for_it_is_used() {
        let fill =
            |bytes, messages| Fill { bytes, messages, max_bytes: Some(64_000), max_messages: Some(640) };
        assert_eq!(fill(0, 0).room_for_excess(), (550, 55_000));
        for bytes in 0..=64_000 {
            let fill = fill(bytes, bytes / 100);
            let (messages, bytes) = fill.room_for_excess();
            assert!(!fill.is_closed_to_excess() || messages == 0 || bytes == 0, "{fill:?}");
            assert!(fill.is_closed_to_excess() || messages <= 550 && bytes <= 55_000, "{fill:?}");
        }
        assert_eq!(Fill { bytes: 1, messages: 1, ..Fill::default() }.room_for_excess(), (u64::MAX, u64::MAX));
    }
}
