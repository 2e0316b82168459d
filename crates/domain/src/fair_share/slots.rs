//! The slots of the pool: which of them each ring may take.

use std::time::Duration;

use super::tenants::Ring;

/// This part of the pool is for subscriptions that have nothing in flight and are not on probation: they find a slot
/// even if every other one hangs.
const RESERVED_PART: usize = 4;
/// Within the part for subscriptions on probation, this part of the pool is for those with nothing in flight.
const PROBES_PART: usize = 8;
/// Interval over which the use of the pool is observed.
const WINDOW: Duration = Duration::from_secs(1);
/// Interval in which ended items are counted.
const BEAT: Duration = Duration::from_millis(100);
/// Waiting items leave soon if they would be gone after this many beats.
const SOON: usize = 20;

#[derive(Debug)]
pub(super) struct Slots {
    pool: usize,
    in_flight: usize,
    on_probation: usize,
    /// Start of the current window.
    window: Duration,
    /// Most slots that subscriptions without probation used at once, in the current window and in the one before.
    peaks: [usize; 2],
    /// Start of the current beat.
    beat: Duration,
    /// Items that subscriptions without probation ended in the current beat, and in the one before.
    ended: [usize; 2],
}

impl Slots {
    /// A pool of at least one slot.
    pub(super) fn new(pool: usize) -> Self {
        Self {
            pool: pool.max(1),
            in_flight: 0,
            on_probation: 0,
            window: Duration::ZERO,
            peaks: [0; 2],
            beat: Duration::ZERO,
            ended: [0; 2],
        }
    }

    pub(super) fn pool(&self) -> usize {
        self.pool
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn is_full(&self) -> bool {
        self.in_flight >= self.pool
    }

    /// Whether a subscription of that ring may start an item.
    pub(super) fn admits(&self, ring: Ring) -> bool {
        let open = self.pool - self.pool / RESERVED_PART;
        match ring {
            Ring::First => !self.is_full(),
            Ring::Further => self.in_flight < open,
            Ring::Newcomer | Ring::Probe => {
                self.in_flight < open && self.on_probation < self.probation_limit()
            }
            Ring::Probation => {
                let probes = self.pool / PROBES_PART;
                self.in_flight < open && self.on_probation < (self.probation_limit() - probes).max(1)
            }
        }
    }

    /// Whether endpoints that answer quickly wait for slots: all that is open is used, half of it at least by subscriptions
    /// that are not on probation, and at their pace `memory` items are gone within two seconds.
    pub(super) fn are_used_well(&self, memory: usize, now: Duration) -> bool {
        let open = self.pool - self.pool / RESERVED_PART;
        let passed = now.saturating_sub(self.beat);
        let ended = match self.ended {
            [current, before] if passed < BEAT => current.max(before),
            [current, _] if passed < 2 * BEAT => current,
            _ => 0,
        };
        self.in_flight >= open && 2 * (self.in_flight - self.on_probation) >= open && SOON * ended >= memory
    }

    /// Most slots of all subscriptions on probation together: half of the pool, or more if the others do not use it.
    fn probation_limit(&self) -> usize {
        let open = self.pool - self.pool / RESERVED_PART;
        let used = self.peaks[0].max(self.peaks[1]);
        open.saturating_sub(used).max(self.pool / 2).max(1)
    }

    pub(super) fn start(&mut self, on_probation: bool, now: Duration) {
        self.in_flight += 1;
        self.on_probation += usize::from(on_probation);
        self.observe(now);
    }

    pub(super) fn finish(&mut self, on_probation: bool, now: Duration) {
        self.in_flight -= 1;
        self.on_probation -= usize::from(on_probation);
        let passed = now.saturating_sub(self.beat);
        if passed >= BEAT {
            self.ended = [0, if passed < 2 * BEAT { self.ended[0] } else { 0 }];
            self.beat = now;
        }
        self.ended[0] += usize::from(!on_probation);
    }

    /// These items of subscriptions on probation leave their slots.
    pub(super) fn park(&mut self, items: usize) {
        self.in_flight -= items;
        self.on_probation -= items;
    }

    /// A subscription with items in `in_flight` slots is now on probation, or no longer.
    pub(super) fn change(&mut self, on_probation: bool, in_flight: usize) {
        if on_probation {
            self.on_probation += in_flight;
        } else {
            self.on_probation -= in_flight;
        }
    }

    /// Updates the peaks.
    pub(super) fn observe(&mut self, now: Duration) {
        let used = self.in_flight - self.on_probation;
        let passed = now.saturating_sub(self.window);
        if passed >= WINDOW {
            self.peaks = [used, if passed < 2 * WINDOW { self.peaks[0] } else { 0 }];
            self.window = now;
        }
        self.peaks[0] = self.peaks[0].max(used);
    }

    /// The wait until the observed use may shrink.
    pub(super) fn next_window(&self, now: Duration) -> Duration {
        (self.window + WINDOW).saturating_sub(now).max(Duration::from_millis(1))
    }

    #[cfg(test)]
    pub(super) fn on_probation(&self) -> usize {
        self.on_probation
    }
}
