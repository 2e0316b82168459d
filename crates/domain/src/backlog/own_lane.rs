//! Whether the fan-out writes to the own lane of a subscription.
//!
//! It does so while envelopes are there, and for a short *stay* after the last one: the subscription then returns to the
//! shared lane. A subscription that needs its lane again soon stays longer the next time, so that it does not go back
//! and forth.
//!
//! Nobody writes to a lane that was seen empty for longer than [`LEASE`]. Whoever removes a lane waits longer.

use std::time::Duration;

/// The longest stay.
pub const LEASE: Duration = Duration::from_secs(20);
const FIRST_STAY: Duration = Duration::from_secs(2);
/// A subscription that needs its lane within this time after its return stays twice as long.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The use of an own lane. Times are durations since a fixed start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnLane {
    /// While it is used: when envelopes were seen in it last.
    seen: Option<Duration>,
    /// Whether it had envelopes at the last look.
    is_occupied: bool,
    stay: Duration,
    /// When the subscription returned to the shared lane.
    returned: Option<Duration>,
}

impl OwnLane {
    /// Takes note of the number of envelopes that were in the lane at `at` or later.
    pub fn note(&mut self, envelopes: u64, at: Duration) {
        self.is_occupied = envelopes > 0;
        if self.is_occupied {
            if self.seen.is_none() {
                let soon = self.returned.is_some_and(|returned| at.saturating_sub(returned) < REMEMBERED);
                self.stay = if soon { (self.stay * 2).clamp(FIRST_STAY, LEASE) } else { FIRST_STAY };
            }
            self.seen = Some(at);
            return;
        }
        if let Some(seen) = self.seen
            && at >= seen + self.stay
        {
            self.seen = None;
            self.returned = Some(at);
        }
    }

    /// Whether new envelopes go to the lane. The caller makes sure that the last look is not older than [`LEASE`].
    pub fn is_used(&self, now: Duration) -> bool {
        self.is_occupied || self.seen.is_some_and(|seen| now < seen + self.stay)
    }

    /// Whether envelopes were in the lane at the last look.
    pub fn exists(&self) -> bool {
        self.seen.is_some()
    }

    /// Whether it makes no difference to forget it.
    pub fn is_forgotten(&self, now: Duration) -> bool {
        self.seen.is_none() && self.returned.is_none_or(|returned| now >= returned + REMEMBERED)
    }
}
