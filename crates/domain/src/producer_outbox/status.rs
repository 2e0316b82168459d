//! A row's statuses, what leads from one to another, and the waits between attempts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where a row stands: `pending → processing → published`, or `failed → … → abandoned`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", schema(as = OutboxMessageStatus))]
pub enum Status {
    /// Never tried, or given back untried.
    Pending,
    /// A relay holds it, until its claim expires.
    Processing,
    /// The last attempt failed; the next one comes when it is due.
    Failed,
    /// The target broker has it.
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

    /// Whether the row is still owed to its broker, and holds back the later rows of its stream.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Processing | Self::Failed)
    }

    /// Where a step leads from here; None where it changes nothing.
    ///
    /// | step | from | to |
    /// |---|---|---|
    /// | claim | pending or failed that is due; processing whose claim has expired | processing |
    /// | publish, fail, abandon, release | processing, by the holder of the claim | published, failed, abandoned, pending |
    /// | retry (operator) | failed, abandoned | pending |
    /// | discard (operator) | pending, failed | abandoned |
    pub fn after(self, step: Step) -> Option<Self> {
        match (step, self) {
            (Step::Claim { due: true }, status) if status.is_open() => Some(Self::Processing),
            (Step::Publish { held: true }, Self::Processing) => Some(Self::Published),
            (Step::Fail { held: true }, Self::Processing) => Some(Self::Failed),
            (Step::Abandon { held: true }, Self::Processing) => Some(Self::Abandoned),
            (Step::Release { held: true }, Self::Processing) => Some(Self::Pending),
            (Step::Retry, Self::Failed | Self::Abandoned) => Some(Self::Pending),
            (Step::Discard, Self::Pending | Self::Failed) => Some(Self::Abandoned),
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
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| {
            format!("{text:?} is no status; write pending, processing, failed, published or abandoned")
        })
    }
}

/// What may be done to a row. `due`: its time has come (of a claim: it has expired). `held`: the one who
/// does it still holds the claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Claim { due: bool },
    Publish { held: bool },
    Fail { held: bool },
    Abandon { held: bool },
    Release { held: bool },
    Retry,
    Discard,
}

/// The priority lane of a row. All that is live is claimed before anything in bulk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", schema(as = OutboxLane))]
pub enum Priority {
    #[default]
    Live,
    /// A backfill, an import: what nobody waits for.
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

/// How often a row is tried, and the waits between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayRetryPolicy {
    /// Attempts in all, the first included; at least 1.
    pub max_attempts: u32,
    /// The waits after the first, second, … failed attempt; the last one is repeated.
    pub waits: Vec<Duration>,
}

/// What a failed attempt leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    Retry { after: Duration },
    Abandon,
}

/// Jitter spreads a wait over this part of itself to either side, so that many rows that failed
/// together do not come back together.
const JITTER: f64 = 0.2;

impl RelayRetryPolicy {
    /// What to do after an attempt that failed. `attempts`: failed attempts before this one.
    /// `permanent`: no further attempt can succeed (the payload is too large, say). `jitter` is random,
    /// in `[0, 1)`.
    pub fn after_failure(&self, attempts: u32, permanent: bool, jitter: f64) -> AfterFailure {
        let attempt = attempts.saturating_add(1);
        if permanent || attempt >= self.max_attempts {
            return AfterFailure::Abandon;
        }
        AfterFailure::Retry { after: self.wait(attempts, jitter) }
    }

    /// The wait after a try that does not count as an attempt, since the broker had no room: the first one, each time.
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
