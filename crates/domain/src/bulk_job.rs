//! Bulk jobs on dead letters: the record that is stored while a job runs and afterwards.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Time without an update after which a job counts as interrupted. Its process writes every second; the rest allows
/// for clocks that differ.
pub const SILENCE: Duration = Duration::from_secs(15);

/// Id of a bulk job: `ord_` and 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", schema(as = OrderId, value_type = String, pattern = "^ord_[0-9a-f]{32}$"))]
pub struct BulkJobId(String);

impl BulkJobId {
    /// Makes an id of random bits.
    pub fn new(random: u128) -> Self {
        Self(format!("ord_{random:032x}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BulkJobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<BulkJobId> for String {
    fn from(id: BulkJobId) -> Self {
        id.0
    }
}

/// A text that is not the id of a bulk job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid bulk job id {0:?}; write ord_ and 32 of 0-9 and a-f")]
pub struct InvalidBulkJobId(String);

impl TryFrom<String> for BulkJobId {
    type Error = InvalidBulkJobId;
    fn try_from(text: String) -> Result<Self, InvalidBulkJobId> {
        let digits = text.strip_prefix("ord_").unwrap_or_default();
        let fits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.len() == 32 && digits.bytes().all(fits) {
            Ok(Self(text))
        } else {
            Err(InvalidBulkJobId(text))
        }
    }
}

/// What a bulk job does with its dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", schema(as = OrderKind))]
pub enum BulkJobKind {
    /// Send them again now.
    Replay,
    /// Delete them without delivery.
    Discard,
}

impl fmt::Display for BulkJobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replay => "replay",
            Self::Discard => "discard",
        })
    }
}

/// State of a bulk job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", schema(as = OrderState))]
pub enum BulkJobState {
    /// Counts the selected dead letters.
    Selecting,
    Running,
    Done,
    /// Stopped by an error, which is in `error`. Finished dead letters stay finished.
    Failed,
    /// Stopped on request.
    Cancelled,
    /// Its process ended first. A new job with the same filter does the rest.
    Interrupted,
}

impl BulkJobState {
    /// True if the job has ended.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Selecting | Self::Running)
    }
}

impl fmt::Display for BulkJobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Selecting => "selecting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        })
    }
}

/// A bulk job on dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = Order))]
pub struct BulkJob {
    pub id: BulkJobId,
    pub kind: BulkJobKind,
    /// True to also replay dead letters whose replay is in progress.
    pub force: bool,
    pub state: BulkJobState,
    /// Number of dead letters selected at the start; grows while `selecting`.
    pub total: u64,
    /// Number of dead letters replayed or discarded so far.
    pub done: u64,
    /// Number of dead letters skipped because their replay was in progress. The difference of `total` to the sum of
    /// `done`, this field and `removed` was delivered or discarded by others in the meantime.
    pub already_replaying: u64,
    /// Number of dead letters that a replay skipped because their subscription was removed.
    #[serde(default)]
    pub removed: u64,
    /// True after a request to cancel; the job stops within seconds.
    pub cancelling: bool,
    /// Cause of the failure.
    pub error: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Last update by the process that runs the job.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// Name of the token that started the job.
    pub by: String,
    /// Tenant of the dead letters; null for all tenants.
    pub tenant: Option<String>,
}

impl BulkJob {
    /// The job as shown at a time: a running job without an update for [`SILENCE`] is interrupted.
    pub fn as_of(mut self, now: OffsetDateTime) -> Self {
        if !self.state.is_over() && now - self.updated_at > SILENCE {
            self.state = BulkJobState::Interrupted;
            self.ended_at = Some(self.updated_at);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(state: BulkJobState) -> BulkJob {
        BulkJob {
            id: BulkJobId::new(7),
            kind: BulkJobKind::Replay,
            force: false,
            state,
            total: 0,
            done: 0,
            already_replaying: 0,
            removed: 0,
            cancelling: false,
            error: None,
            created_at: OffsetDateTime::UNIX_EPOCH,
            updated_at: OffsetDateTime::UNIX_EPOCH,
            ended_at: None,
            by: "ops".to_owned(),
            tenant: None,
        }
    }

    #[test]
    fn an_order_that_has_gone_silent_is_interrupted_unless_it_is_over() {
        let in_time = OffsetDateTime::UNIX_EPOCH + SILENCE;
        let late = in_time + time::Duration::SECOND;
        for state in [BulkJobState::Selecting, BulkJobState::Running] {
            assert_eq!(order(state).as_of(in_time).state, state);
            let shown = order(state).as_of(late);
            assert_eq!(
                (shown.state, shown.ended_at),
                (BulkJobState::Interrupted, Some(OffsetDateTime::UNIX_EPOCH))
            );
        }
        for state in
            [BulkJobState::Done, BulkJobState::Failed, BulkJobState::Cancelled, BulkJobState::Interrupted]
        {
            assert_eq!(order(state).as_of(late), order(state));
        }
    }

    #[test]
    fn kinds_and_states_are_shown_as_in_json() {
        let json = |value: &dyn fmt::Display| serde_json::Value::String(value.to_string());
        for kind in [BulkJobKind::Replay, BulkJobKind::Discard] {
            assert_eq!(serde_json::to_value(kind).unwrap(), json(&kind));
        }
        use BulkJobState::{Cancelled, Done, Failed, Interrupted, Running, Selecting};
        for state in [Selecting, Running, Done, Failed, Cancelled, Interrupted] {
            assert_eq!(serde_json::to_value(state).unwrap(), json(&state));
        }
    }

    #[test]
    fn an_id_reads_back_and_nothing_else_does() {
        let id = BulkJobId::new(u128::MAX);
        assert_eq!(BulkJobId::try_from(id.to_string()), Ok(id));
        for text in
            ["", "ord_", "ord_*", "ord_0000000000000000000000000000000G", "0000000000000000000000000000000a"]
        {
            assert!(BulkJobId::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
