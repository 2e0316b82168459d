//! A backlog that is larger than its quota, and not because its endpoint does not keep up.
//!
//! While a domain is paused, quotas do not apply. After the pause each backlog may drain: what it had, and a little more for
//! new events, is its limit. That falls to nothing within an hour, and ends when the backlog is within its quota. So a working
//! endpoint loses nothing by a pause, and one that does not work takes little more than it had.

use std::time::Duration;

/// The time in which the limit falls to nothing.
const FALL: Duration = Duration::from_secs(3_600);

/// What a backlog may have in any case. Times are durations since a fixed start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Grace(Option<Begun>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Begun {
    bytes: u64,
    more: u64,
    at: Duration,
}

impl Grace {
    /// The backlog has this many bytes, and may grow by `more`.
    pub(super) fn begin(&mut self, bytes: u64, more: u64, at: Duration) {
        self.0 = Some(Begun { bytes, more, at });
    }

    pub(super) fn end(&mut self) {
        self.0 = None;
    }

    /// The bytes that the backlog may have now. `with_more`: it is known that the pause is over.
    pub(super) fn bytes(&self, with_more: bool, now: Duration) -> u64 {
        let Some(Begun { bytes, more, at }) = self.0 else { return 0 };
        let bytes = bytes.saturating_add(if with_more { more } else { 0 });
        let left = FALL.saturating_sub(now.saturating_sub(at));
        let part = u128::from(bytes) * left.as_millis() / FALL.as_millis();
        u64::try_from(part).unwrap_or(bytes)
    }
}
