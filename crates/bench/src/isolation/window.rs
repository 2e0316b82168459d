//! The healthy deliveries of a window. Pure.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::statistics::{per_second, percentile};

/// A healthy delivery that is expected.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    /// When its event was published.
    pub(super) published: Instant,
    pub(super) arrived: Option<Instant>,
}

/// What the healthy subscriptions got in a window.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Healthy {
    /// Deliveries that arrived per second.
    pub(super) rate: f64,
    /// From the call that publishes until the arrival, of the events that were published in the window. A delivery that had
    /// not arrived at the end of the measurement counts with the time until then.
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// The smallest number of deliveries in a whole second of the window.
    pub(super) worst_second: u64,
}

impl Healthy {
    pub(super) fn in_window(expected: &[Expected], from: Instant, until: Instant, measured: Instant) -> Self {
        let length = until.saturating_duration_since(from);
        let mut seconds = vec![0u64; length.as_secs() as usize];
        let mut arrived = 0;
        for at in expected.iter().filter_map(|one| one.arrived).filter(|at| (from..until).contains(at)) {
            arrived += 1;
            let second = at.saturating_duration_since(from).as_secs() as usize;
            if let Some(count) = seconds.get_mut(second) {
                *count += 1;
            }
        }
        let latencies: Vec<Duration> = expected
            .iter()
            .filter(|one| (from..until).contains(&one.published))
            .map(|one| one.arrived.unwrap_or(measured).saturating_duration_since(one.published))
            .collect();
        let millis =
            |percent| percentile(&latencies, percent).map_or(0.0, |latency| latency.as_secs_f64() * 1e3);
        Self {
            rate: per_second(arrived, length).unwrap_or(0.0),
            p50_ms: millis(50.0),
            p99_ms: millis(99.0),
            worst_second: seconds.into_iter().min().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_its_arrivals_and_the_latencies_of_its_events() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let one =
            |published, arrived: Option<u64>| Expected { published: at(published), arrived: arrived.map(at) };
        // One arrives before the window, one after it, one never; the window is from 1 s to 3 s.
        let all = [
            one(0, Some(10)),
            one(900, Some(1_000)),
            one(1_100, Some(1_120)),
            one(1_200, Some(2_999)),
            one(2_000, Some(3_000)),
            one(2_500, None),
        ];
        let healthy = Healthy::in_window(&all, at(1_000), at(3_000), at(4_500));
        assert_eq!((healthy.rate, healthy.worst_second), (1.5, 1));
        assert_eq!((healthy.p50_ms, healthy.p99_ms), (1_000.0, 2_000.0));
        let empty = Healthy::in_window(&[], at(0), at(1_000), at(1_000));
        assert_eq!((empty.rate, empty.worst_second, empty.p99_ms), (0.0, 0, 0.0));
    }
}
