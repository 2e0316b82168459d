//! The row of a scenario, with the goals beside it.

use std::fmt::Write as _;

use serde::Serialize;

use super::scenario::OWN_PACE;
use super::window::Healthy;
use crate::report::{Goal, grouped};
use crate::statistics::ratio;

/// Part of the rate before that the healthy subscriptions must keep.
const KEPT: f64 = 0.98;
const P99_TIMES: f64 = 1.5;
const P99_MS: f64 = 50.0;
/// Memory of the hub above that before, in MB.
const MEMORY_MB: f64 = 50.0;
const DRAIN: f64 = 0.8;

/// The result of one scenario.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(super) scenario: String,
    /// Length of the disturbance.
    pub(super) seconds: f64,
    pub(super) before: Healthy,
    pub(super) during: Healthy,
    /// The rate during the disturbance, divided by that before.
    pub(super) kept: f64,
    /// Resident memory of the hub.
    pub(super) memory_before_mb: f64,
    pub(super) memory_peak_mb: f64,
    /// Deliveries per second to an endpoint that comes back; only for `backlog`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drain: Option<f64>,
    /// Events that the hub did not accept.
    pub(super) refused: u64,
    /// Healthy deliveries, and those of them that did not arrive.
    pub(super) expected: u64,
    pub(super) missing: u64,
    pub(super) goals: Vec<Goal>,
    pub(super) notes: Vec<String>,
}

impl Row {
    /// Compares the values with the goals.
    pub(super) fn judged(mut self, every_second: bool, compressed: bool) -> Self {
        self.kept = ratio(self.during.rate, self.before.rate).unwrap_or(0.0);
        let (p99, before) = (self.during.p99_ms, self.before.p99_ms);
        let well = p99 < P99_MS || p99 <= P99_TIMES * before;
        if !compressed {
            self.goals.push(Goal::at_least(self.kept, KEPT, "0.98 of the rate"));
            let aim = "p99 at most 1.5 times that before, or below 50 ms".to_owned();
            self.goals.push(Goal { aim, met: well });
        }
        self.goals.extend([
            Goal::at_most(self.memory_peak_mb - self.memory_before_mb, MEMORY_MB, "50 MB more memory"),
            Goal { aim: "no event refused".to_owned(), met: self.refused == 0 },
        ]);
        if every_second {
            let aim = "no second without a delivery".to_owned();
            self.goals.push(Goal { aim, met: self.during.worst_second > 0 });
        }
        if let Some(drain) = self.drain {
            self.goals.push(Goal::at_least(drain / OWN_PACE, DRAIN, "0.8 of the endpoint's own pace"));
        }
        self
    }

    pub(super) fn passed(&self) -> bool {
        self.goals.iter().all(|goal| goal.met)
    }

    pub(super) fn head() -> String {
        format!(
            "{:<18} {:>13} {:>5} {:>19} {:>19} {:>6} {:>11}  {}",
            "SCENARIO", "RATE/S", "KEPT", "P50 MS", "P99 MS", "WORST", "MEMORY MB", "GOALS"
        )
    }

    /// One line of the table; values before and during the disturbance.
    pub(super) fn line(&self) -> String {
        let Self { before, during, .. } = self;
        let pair = |before: f64, during: f64, digits: usize| format!("{before:.digits$} → {during:.digits$}");
        let mut line = format!(
            "{:<18} {:>13} {:>5.2} {:>19} {:>19} {:>6} {:>11}  {}",
            self.scenario,
            pair(before.rate, during.rate, 0),
            self.kept,
            pair(before.p50_ms, during.p50_ms, 1),
            pair(before.p99_ms, during.p99_ms, 1),
            during.worst_second,
            pair(self.memory_before_mb, self.memory_peak_mb, 0),
            if self.passed() { "pass" } else { "MISS" },
        );
        // Writing to a String cannot fail, so the results are dropped.
        for goal in self.goals.iter().filter(|goal| !goal.met) {
            let _ = write!(line, "; not met: {}", goal.aim);
        }
        if let Some(drain) = self.drain {
            let _ = write!(line, "; drained {drain:.0}/s of {OWN_PACE:.0}/s");
        }
        if self.refused > 0 {
            let _ = write!(line, "; {} events refused", grouped(self.refused));
        }
        if self.missing > 0 {
            let (missing, expected) = (grouped(self.missing), grouped(self.expected));
            let _ = write!(line, "; {missing} of {expected} healthy deliveries did not arrive");
        }
        for note in &self.notes {
            let _ = write!(line, "; {note}");
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(during: Healthy) -> Row {
        Row {
            scenario: "hang-1".to_owned(),
            seconds: 30.0,
            before: Healthy { rate: 500.0, p50_ms: 2.0, p99_ms: 40.0, worst_second: 490 },
            during,
            kept: 0.0,
            memory_before_mb: 80.0,
            memory_peak_mb: 100.0,
            drain: None,
            refused: 0,
            expected: 15_000,
            missing: 0,
            goals: Vec::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_row_passes_if_every_goal_is_met() {
        let during = Healthy { rate: 495.0, p50_ms: 2.0, p99_ms: 60.0, worst_second: 400 };
        let passed = row(during).judged(true, false);
        assert!(passed.passed() && passed.line().contains(" pass"), "{}", passed.line());
        for (bad, count) in [
            (Healthy { rate: 480.0, ..during }, 1),
            (Healthy { p99_ms: 61.0, ..during }, 1),
            (Healthy { worst_second: 0, rate: 0.0, ..during }, 2),
        ] {
            let missed = row(bad).judged(true, false);
            assert_eq!(missed.goals.iter().filter(|goal| !goal.met).count(), count, "{}", missed.line());
            assert!(missed.line().contains("MISS"));
        }
        let refused = Row { refused: 1, ..row(during) }.judged(false, false);
        assert!(!refused.passed() && refused.line().contains("1 events refused"));
        assert!(!Row { drain: Some(799.0), ..row(during) }.judged(false, false).passed());
        assert!(Row { drain: Some(800.0), ..row(during) }.judged(false, false).passed());
    }
}
