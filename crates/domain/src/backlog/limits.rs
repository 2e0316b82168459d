//! Limits of a backlog.

use std::fmt;
use std::time::Duration;

use super::size;

/// A subscription with a lane of its own may use what own lanes leave of the outbox, divided by this. So however many
/// endpoints hang, some space stays free of them: one takes a fifth of the outbox, ten take five sevenths.
const FREE_PART: u64 = 4;

/// Limits of the backlog of one subscription; `None` means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BacklogLimits {
    /// Envelopes in the outbox.
    pub messages: Option<u64>,
    /// Their size.
    pub bytes: Option<u64>,
    /// Time since an envelope was stored in the outbox.
    pub age: Option<Duration>,
}

/// The backlog of a subscription, and the space in its outbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub messages: u64,
    /// An estimate: the stream counts messages only.
    pub bytes: u64,
    /// The subscription has a lane of its own, because its endpoint does not keep up.
    pub own_lane: bool,
    /// Space of the outbox in bytes that own lanes do not use. What is in shared lanes does not count: if it fills the
    /// outbox, events wait, and the backlog of this subscription is not to blame.
    pub free: u64,
    /// The bytes that it may have in any case, after a pause.
    pub grace: u64,
}

impl Usage {
    /// The part of [`Self::free`] that a subscription with a lane of its own may use.
    pub fn free_share(&self) -> u64 {
        self.free / FREE_PART
    }
}

/// The limit that a backlog exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    Messages {
        most: u64,
    },
    Bytes {
        most: u64,
    },
    /// The part of the free space.
    Share {
        most: u64,
    },
}

impl BacklogLimits {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The lower of each limit.
    pub fn within(self, other: Self) -> Self {
        fn lower<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            match (one, other) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            }
        }
        Self {
            messages: lower(self.messages, other.messages),
            bytes: lower(self.bytes, other.bytes),
            age: lower(self.age, other.age),
        }
    }

    /// Whether one more envelope of this size does not fit. An empty backlog has room for any envelope.
    pub fn exceeded(&self, usage: &Usage, size: u64) -> Option<Exceeded> {
        if usage.messages == 0 {
            return None;
        }
        let bytes = usage.bytes.saturating_add(size);
        if bytes <= usage.grace {
            return None;
        }
        if let Some(most) = self.messages.filter(|most| usage.messages >= *most) {
            return Some(Exceeded::Messages { most });
        }
        if let Some(most) = self.bytes.filter(|most| bytes > *most) {
            return Some(Exceeded::Bytes { most });
        }
        let share = usage.free_share();
        (usage.own_lane && bytes > share).then_some(Exceeded::Share { most: share })
    }

    /// How full the backlog is, in percent of its nearest limit; 0 without a limit.
    pub fn percent(&self, usage: &Usage) -> u64 {
        if usage.messages == 0 {
            return 0;
        }
        let share = usage.own_lane.then_some(usage.free_share());
        let percent = |used: u64, most: u64| used.saturating_mul(100) / most.max(1);
        let fullest = [(usage.messages, self.messages), (usage.bytes, self.bytes), (usage.bytes, share)]
            .into_iter()
            .filter_map(|(used, most)| Some(percent(used, most?)))
            .max()
            .unwrap_or(0);
        if usage.grace > 0 { fullest.min(percent(usage.bytes, usage.grace)) } else { fullest }
    }

    /// Whether the backlog is larger than its limits, apart from its grace.
    pub fn is_passed(&self, usage: &Usage) -> bool {
        self.percent(&Usage { grace: 0, ..*usage }) > 100
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Messages { most } => write!(f, "the limit is {most} envelopes (max_backlog)"),
            Self::Bytes { most } => write!(f, "the limit is {} (max_backlog_bytes)", size::exact(*most)),
            Self::Share { most } => {
                write!(
                    f,
                    "the limit is a quarter of the outbox without the lanes of single subscriptions, {} now (limits.outbox)",
                    size::shown(*most)
                )
            }
        }
    }
}
