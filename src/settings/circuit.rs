//! Circuit breakers.

use std::time::Duration;

use serde::Deserialize;

use super::validate::Findings;
use crate::domain::duration;

/// Longest pause that a setting may have: the first probe after an outage comes at most this late.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// `[circuit]`: when the circuit of a subscription opens, and how long its pauses are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitSettings {
    pub enabled: bool,
    pub failures: u32,
    #[serde(with = "duration")]
    pub failing_for: Duration,
    #[serde(with = "duration")]
    pub first_pause: Duration,
    #[serde(with = "duration")]
    pub longest_pause: Duration,
}

impl Findings<'_> {
    pub(super) fn circuit(&mut self) {
        let circuit = &self.settings.circuit;
        self.within("circuit.failures", circuit.failures as usize, 2, 100_000);
        self.require(
            (Duration::from_millis(100)..=LONGEST).contains(&circuit.first_pause),
            "circuit.first_pause",
            "must be 100ms to 1d",
        );
        self.require(
            circuit.longest_pause >= circuit.first_pause && circuit.longest_pause <= LONGEST,
            "circuit.longest_pause",
            "must be circuit.first_pause to 1d",
        );
    }
}
