//! Percentiles, rates and ratios.

use std::time::Duration;

/// The smallest value that is at least as large as `percent` of the values (nearest rank). `None` without values.
pub(crate) fn percentile(values: &[Duration], percent: f64) -> Option<Duration> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// Rate per second. `None` if no time has passed.
pub(crate) fn per_second(count: u64, span: Duration) -> Option<f64> {
    (!span.is_zero()).then(|| count as f64 / span.as_secs_f64())
}

/// `value` divided by `base`. `None` if `base` is not positive.
pub(crate) fn ratio(value: f64, base: f64) -> Option<f64> {
    (base > 0.0).then(|| value / base)
}

/// The middle value, or the mean of the two in the middle. 0 without values.
pub(crate) fn middle(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(values: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        values.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let hundred = millis((1..=100).rev());
        let at = |percent| percentile(&hundred, percent).unwrap().as_millis();
        assert_eq!((at(0.0), at(50.0), at(99.0), at(99.1), at(100.0)), (1, 50, 99, 100, 100));
        assert_eq!(percentile(&millis([7]), 99.0), Some(Duration::from_millis(7)));
        assert_eq!(percentile(&millis([3, 1, 2]), 50.0), Some(Duration::from_millis(2)));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn the_middle_is_one_value_or_the_mean_of_two() {
        assert_eq!([middle(&[]), middle(&[3.0, 1.0, 2.0]), middle(&[4.0, 1.0, 2.0, 9.0])], [0.0, 2.0, 3.0]);
    }

    #[test]
    fn a_rate_or_ratio_without_a_divisor_is_none() {
        assert_eq!(per_second(500, Duration::from_millis(250)), Some(2000.0));
        assert_eq!(per_second(500, Duration::ZERO), None);
        assert_eq!(ratio(20.0, 50.0), Some(0.4));
        assert_eq!(ratio(20.0, 0.0), None);
    }
}
