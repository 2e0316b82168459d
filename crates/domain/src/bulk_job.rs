//! A bulk order on dead letters: what is kept of it while it is carried out and after.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// An order whose process has said nothing for so long is taken for interrupted. The process writes
/// every second; clocks may differ by the rest.
pub const SILENCE: Duration = Duration::from_secs(15);

/// `ord_` and 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", schema(as = OrderId, value_type = String, pattern = "^ord_[0-9a-f]{32}$"))]
pub struct BulkJobId(String);

impl BulkJobId {
    /// Of random bits.
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

impl TryFrom<String> for BulkJobId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_prefix("ord_").unwrap_or_default();
        let fits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.len() == 32 && digits.bytes().all(fits) {
            Ok(Self(text))
        } else {
            Err(format!("{text:?} is no order's id: it is ord_ and 32 of 0-9 and a-f"))
        }
    }
}

/// What is done with the dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", schema(as = OrderKind))]
pub enum BulkJobKind {
    /// Sent again now.
    Replay,
    /// Removed for good, undelivered.
    Discard,
}

/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", schema(as = OrderState))]
pub enum BulkJobState {
    /// Counts what is meant.
    Selecting,
    Running,
    Done,
    /// Stopped on its way; `error` says why. What was done stays done.
    Failed,
    /// Stopped because somebody asked for it.
    Cancelled,
    /// Its process ended before it did. The same order again does the rest.
    Interrupted,
}

impl BulkJobState {
    /// Nothing more is done for it.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Selecting | Self::Running)
    }
}

/// A bulk order on dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = Order))]
pub struct BulkJob {
    pub id: BulkJobId,
    pub kind: BulkJobKind,
    /// A replay also of what is on its way again already.
    pub force: bool,
    pub state: BulkJobState,
    /// How many were meant when it began; counted while `selecting`.
    pub total: u64,
    /// How many of them are ordered to be sent again, or discarded.
    pub done: u64,
    /// On their way again already, and left alone. What is neither done, nor this, nor `removed` in
    /// the end was gone by its turn: delivered, or discarded by somebody else.
    pub already_replaying: u64,
    /// Left alone by a replay because their subscription was removed.
    #[serde(default)]
    pub removed: u64,
    /// Somebody asked to cancel it; it stops within seconds.
    pub cancelling: bool,
    /// Why it failed.
    pub error: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The last sign of life of the process that carries it out.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// The name of the token that asked for it.
    pub by: String,
    /// The one tenant whose dead letters it means; all where null.
    pub tenant: Option<String>,
}

impl BulkJob {
    /// As it is to be shown at a time: one that is not over, and whose process has gone silent, is
    /// interrupted.
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
