//! Waits that grow while there is nothing to do, or while something is unavailable.

use std::time::Duration;

/// Doubling waits between two bounds. The caller passes in the randomness.
#[derive(Debug, Clone)]
pub struct Pauses {
    first: Duration,
    longest: Duration,
    next: Duration,
}

/// Jitter shortens a wait to at least this part of it, so that several waiters spread out.
const LEAST_PART: f64 = 0.6;

impl Pauses {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next wait, twice as long as the previous one. `jitter`: random, in `[0, 1)`.
    pub fn next(&mut self, jitter: f64) -> Duration {
        self.next_within(self.longest, jitter)
    }

    /// The next wait with another upper bound for this call.
    pub fn next_within(&mut self, longest: Duration, jitter: f64) -> Duration {
        let pause = self.next.min(longest);
        self.next = (pause * 2).min(longest);
        pause.mul_f64(LEAST_PART + (1.0 - LEAST_PART) * jitter.clamp(0.0, 1.0))
    }

    /// Starts again with the first wait.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_restart() {
        let ms = Duration::from_millis;
        let mut pauses = Pauses::new(ms(100), ms(1_000));
        let waits: Vec<_> = (0..6).map(|_| pauses.next(1.0)).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_000, 1_000].map(ms));
        assert_eq!(pauses.next(0.0), ms(600));
        assert_eq!(pauses.next_within(ms(10_000), 1.0), ms(1_000));
        assert_eq!(pauses.next_within(ms(10_000), 1.0), ms(2_000));
        assert_eq!(pauses.next(1.0), ms(1_000), "the shorter bound holds at once");
        pauses.reset();
        assert_eq!(pauses.next(1.0), ms(100));
    }
}
