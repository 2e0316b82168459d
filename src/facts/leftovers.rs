//! Events that are still in their stream although the consumer has passed them.

use std::time::Duration;

use super::Cause;
use super::limited::{About, limited};
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
        limited!(WARN "processed event was still in its stream, removing it", About::default(); sequence);
    }
}

/// Nothing shows that a leftover was processed, so it is fanned out.
pub struct LeftoverFannedOut {
    pub sequence: u64,
}

impl LeftoverFannedOut {
    pub fn emit(self) {
        let Self { sequence } = self;
        limited!(WARN "event was passed over by its consumer, processing it", About::default(); sequence);
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
        limited!(
            WARN "leftover events not handled, will retry", About::default().cause(error);
            %error, retry_in = %rounded(retry_in)
        );
    }
}
