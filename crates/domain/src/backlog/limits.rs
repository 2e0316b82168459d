//! Limits of a backlog.

use std::fmt;
use std::time::Duration;

/// A subscription with a lane of its own may use the free space of the outbox divided by this. So however many endpoints
/// hang, some space stays free: one takes a fifth of the outbox, ten take five sevenths.
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
    /// Free space of the outbox in bytes.
    pub free: u64,
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
        if let Some(most) = self.messages.filter(|most| usage.messages >= *most) {
            return Some(Exceeded::Messages { most });
        }
        if let Some(most) = self.bytes.filter(|most| bytes > *most) {
            return Some(Exceeded::Bytes { most });
        }
        let share = usage.free / FREE_PART;
        (usage.own_lane && bytes > share).then_some(Exceeded::Share { most: share })
    }

    /// How full the backlog is, in percent of its nearest limit; 0 without a limit.
    pub fn percent(&self, usage: &Usage) -> u64 {
        if usage.messages == 0 {
            return 0;
        }
        let share = usage.own_lane.then_some(usage.free / FREE_PART);
        [(usage.messages, self.messages), (usage.bytes, self.bytes), (usage.bytes, share)]
            .into_iter()
            .filter_map(|(used, most)| Some(used.saturating_mul(100) / most?.max(1)))
            .max()
            .unwrap_or(0)
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Messages { most } => write!(f, "the limit is {most} envelopes (max_backlog)"),
            Self::Bytes { most } => write!(f, "the limit is {} (max_backlog_bytes)", size::text(*most)),
            Self::Share { most } => {
                write!(
                    f,
                    "the limit is a part of the free space of the outbox, {} bytes now (limits.outbox)",
                    most
                )
            }
        }
    }
}

/// Sizes in bytes as text with a unit: `"900KB"`. For serde's `with` on optional fields.
pub mod size {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    const UNITS: [(&str, u64); 10] = [
        ("B", 1),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KIB", 1 << 10),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
        ("TIB", 1 << 40),
        ("", 1),
    ];

    /// The size with the largest unit of ten that loses nothing.
    pub fn text(bytes: u64) -> String {
        let units = [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)];
        let fits = units.into_iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
        let (name, unit) = fits.unwrap_or(("B", 1));
        format!("{}{name}", bytes / unit)
    }

    /// Reads a whole number with a unit.
    pub fn parse(text: &str) -> Option<u64> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim().to_ascii_uppercase();
        let (_, unit) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        number.parse::<u64>().ok()?.checked_mul(unit)
    }

    pub fn serialize<S: Serializer>(size: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match size {
            Some(bytes) => serializer.serialize_some(&text(*bytes)),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let remedy = "write a whole number and a unit, like \"100MB\"";
        let text = Option::<String>::deserialize(deserializer)
            .map_err(|error| D::Error::custom(format!("{error}; {remedy}")))?;
        let Some(text) = text else { return Ok(None) };
        match parse(&text) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(D::Error::custom(format!("invalid size {text:?}; {remedy}"))),
        }
    }
}
