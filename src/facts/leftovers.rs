//! Events that are still in their stream although the consumer has passed them.

use std::time::Duration;

use super::Cause;
use crate::domain::words::rounded;

/// An event came again whose fan-out this process has committed, and is acknowledged again.
pub struct EventSettledBefore {
    pub sequence: u64,
}

impl EventSettledBefore {
    pub fn emit(self) {
        let Self { sequence } = self;
        tracing::debug!(sequence, "event was processed before, acknowledging it again");
    }
}

/// The fan-out of a leftover is committed, so it is removed.
pub struct LeftoverRemoved {
    pub sequence: u64,
}

impl LeftoverRemoved {
    pub fn emit(self) {
        let Self { sequence } = self;
        tracing::warn!(sequence, "processed event was still in its stream, removing it");
    }
}

/// Nothing shows that a leftover was processed, so it is fanned out.
pub struct LeftoverFannedOut {
    pub sequence: u64,
}

impl LeftoverFannedOut {
    pub fn emit(self) {
        let Self { sequence } = self;
        tracing::warn!(sequence, "event was passed over by its consumer, processing it");
    }
}

/// The search for leftovers failed.
pub struct LeftoversNotHandled<'a> {
    pub error: Cause<'a>,
    pub retry_in: Duration,
}

impl LeftoversNotHandled<'_> {
    pub fn emit(self) {
        let Self { error, retry_in } = self;
        tracing::warn!(%error, retry_in = %rounded(retry_in), "leftover events not handled, will retry");
    }
}
