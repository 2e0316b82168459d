//! Statuses of a row, their transitions, and the waits between attempts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::outcome::UnknownName;

/// Status of a row: `pending → processing → published`, or `failed → … → abandoned`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", schema(as = OutboxMessageStatus))]
pub enum Status {
    /// Not tried yet, or released without an attempt.
    Pending,
    /// Claimed by a relay, until the claim expires.
    Processing,
    /// The last attempt failed; it is retried when due.
    Failed,
    /// The target broker acknowledged it.
    Published,
    /// Given up, with a reason.
    Abandoned,
}

impl Status {
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Processing, Self::Failed, Self::Published, Self::Abandoned];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Failed => "failed",
            Self::Published => "published",
            Self::Abandoned => "abandoned",
        }
    }

    /// True if the row is still to be sent, so that later rows of its stream wait.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Processing | Self::Failed)
    }

    /// The status after a step; `None` if the step changes nothing.
    ///
    /// | step | from | to |
    /// |---|---|---|
    /// | claim | pending or failed that is due; processing whose claim has expired | processing |
    /// | publish, fail, abandon, release | processing, by the holder of the claim | published, failed, abandoned, pending |
    /// | retry (operator) | failed, abandoned | pending |
    /// | discard (operator) | pending, failed | abandoned |
    pub fn after(self, step: RowStep) -> Option<Self> {
        match (step, self) {
            (RowStep::Claim { due: true }, status) if status.is_open() => Some(Self::Processing),
            (RowStep::Publish { held: true }, Self::Processing) => Some(Self::Published),
            (RowStep::Fail { held: true }, Self::Processing) => Some(Self::Failed),
            (RowStep::Abandon { held: true }, Self::Processing) => Some(Self::Abandoned),
            (RowStep::Release { held: true }, Self::Processing) => Some(Self::Pending),
            (RowStep::Retry, Self::Failed | Self::Abandoned) => Some(Self::Pending),
            (RowStep::Discard, Self::Pending | Self::Failed) => Some(Self::Abandoned),
            _ => None,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = UnknownName;
    fn from_str(text: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| {
            UnknownName::new("status", text, "pending, processing, failed, published, abandoned")
        })
    }
}

/// A step on a row. `due`: the row is due, or its claim has expired. `held`: the caller still holds the claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowStep {
    Claim { due: bool },
    Publish { held: bool },
    Fail { held: bool },
    Abandon { held: bool },
    Release { held: bool },
    Retry,
    Discard,
}

/// Priority of a row. Live rows are claimed before bulk rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", schema(as = OutboxLane))]
pub enum Priority {
    #[default]
    Live,
    /// Events without urgency, such as a backfill or an import.
    Bulk,
}

impl Priority {
    pub const ALL: [Self; 2] = [Self::Live, Self::Bulk];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Bulk => "bulk",
        }
    }
}

/// Maximum number of attempts to send a row, and the waits between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayRetryPolicy {
    /// Maximum number of attempts, including the first one; at least 1.
    pub max_attempts: u32,
    /// Waits after the first, second, … failed attempt; the last one repeats.
    pub waits: Vec<Duration>,
}

/// Consequence of a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    Retry { after: Duration },
    Abandon,
}

/// Jitter changes a wait by up to this part of it, so that rows that failed together are not retried together.
const JITTER: f64 = 0.2;

impl RelayRetryPolicy {
    /// Decides after a failed attempt.
    ///
    /// * `attempts`: number of failed attempts before this one
    /// * `permanent`: no retry can succeed, for example because the payload is too large
    /// * `jitter`: random, in `[0, 1)`
    pub fn after_failure(&self, attempts: u32, permanent: bool, jitter: f64) -> AfterFailure {
        let attempt = attempts.saturating_add(1);
        if permanent || attempt >= self.max_attempts {
            return AfterFailure::Abandon;
        }
        AfterFailure::Retry { after: self.wait(attempts, jitter) }
    }

    /// The wait after a try that does not count because the broker had no room: always the first wait.
    pub fn wait_for_room(&self, jitter: f64) -> Duration {
        self.wait(0, jitter)
    }

    fn wait(&self, attempts: u32, jitter: f64) -> Duration {
        let last = self.waits.len().saturating_sub(1);
        let wait = self.waits.get((attempts as usize).min(last)).copied().unwrap_or_default();
        let spread = 1.0 - JITTER + 2.0 * JITTER * jitter.clamp(0.0, 1.0);
        wait.mul_f64(spread)
    }
}
