//! The report of a figure: a readable line, or JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::statistics::ratio;
use super::tally::Account;

/// The result of one figure.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    /// `a` to `d`, `l`, `o`, `r` or `s`; for the producer outbox a word.
    pub(crate) figure: &'static str,
    pub(crate) title: &'static str,
    /// The sync interval of the server, `default` or `always`.
    pub(crate) sync: &'static str,
    pub(crate) measures: Vec<Measure>,
    pub(crate) arrivals: Account,
    /// Envelopes that were still in the outbox at the end although they had arrived.
    pub(crate) still_owed: u64,
    /// `None` if the figure has no period of measurement.
    pub(crate) processor: Option<Processor>,
    /// The conditions of the measurement, if they differ from other figures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) with: Vec<String>,
}

/// One value of a figure.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measure {
    /// Empty if the figure has one value only.
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: Unit,
    /// The value of the comparison, in the same run.
    pub(crate) bare: Option<f64>,
    /// The name of the comparison.
    pub(crate) against: &'static str,
    /// `value` divided by `bare`.
    pub(crate) ratio: Option<f64>,
    pub(crate) goals: Vec<Goal>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Unit {
    #[serde(rename = "deliveries/s")]
    DeliveriesPerSecond,
    #[serde(rename = "rows/s")]
    RowsPerSecond,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "us")]
    Microseconds,
    #[serde(rename = "ratio")]
    Ratio,
    #[serde(rename = "MB")]
    Megabytes,
    #[serde(rename = "bytes")]
    Bytes,
}

/// A goal, for two cores that the broker, the hub and the receiver share.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Goal {
    pub(crate) aim: String,
    pub(crate) met: bool,
}

/// Microseconds of processor time for each delivery.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Processor {
    pub(crate) hub: f64,
    pub(crate) broker: f64,
    /// The receiver, and the load if there is one.
    pub(crate) bench: f64,
}

impl Goal {
    pub(crate) fn at_least(value: f64, aim: f64, shown: &str) -> Self {
        Self { aim: format!("at least {shown}"), met: value >= aim }
    }

    pub(crate) fn at_most(value: f64, aim: f64, shown: &str) -> Self {
        Self { aim: format!("at most {shown}"), met: value <= aim }
    }

    pub(crate) fn below(value: f64, aim: f64, shown: &str) -> Self {
        Self { aim: format!("below {shown}"), met: value < aim }
    }
}

impl Measure {
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: Unit, bare: Option<f64>) -> Self {
        let ratio = bare.and_then(|bare| ratio(value, bare));
        Self { name: name.into(), value, unit, bare, against: "the bare loop", ratio, goals: Vec::new() }
    }

    /// Sets another comparison than the bare HTTP client loop.
    pub(crate) fn against(mut self, what: &'static str) -> Self {
        self.against = what;
        self
    }

    pub(crate) fn aim(mut self, goal: Option<Goal>) -> Self {
        self.goals.extend(goal);
        self
    }
}

/// The rate until the last acknowledgement is stored: the broker processes acknowledgements after the deliveries, with one
/// fsync each if `sync` is `always`.
pub(crate) fn settled_measure(rate: Option<f64>) -> Measure {
    Measure::new("with every acknowledgement stored", rate.unwrap_or(0.0), Unit::DeliveriesPerSecond, None)
}

impl Figure {
    pub(crate) fn lost(&self) -> bool {
        self.arrivals.missing > 0 || self.arrivals.out_of_order > 0
    }

    /// One readable line.
    pub(crate) fn line(&self) -> String {
        let mut line = format!("({}) {}, sync {}: ", self.figure, self.title, self.sync);
        // Writing to a String cannot fail, so the results are dropped.
        for (position, measure) in self.measures.iter().enumerate() {
            if position > 0 {
                line.push_str(", ");
            }
            if !measure.name.is_empty() {
                line.push_str(&measure.name);
                line.push(' ');
            }
            line.push_str(&shown(measure.value, measure.unit));
            if let (Some(bare), Some(ratio)) = (measure.bare, measure.ratio) {
                let _ = write!(line, ", {ratio:.2} of {}'s {}", measure.against, shown(bare, measure.unit));
            }
            for goal in &measure.goals {
                let verdict = if goal.met { "met" } else { "not met" };
                let _ = write!(line, " [goal {}: {verdict}]", goal.aim);
            }
        }
        let Account { expected, missing, doubles, unexpected, out_of_order } = self.arrivals;
        let _ = write!(
            line,
            "; {} of {} arrived, {missing} lost, {doubles} doubled",
            grouped(expected - missing),
            grouped(expected)
        );
        if unexpected > 0 {
            let _ = write!(line, ", {unexpected} unexpected");
        }
        if out_of_order > 0 {
            let _ = write!(line, ", {out_of_order} out of order");
        }
        if self.still_owed > 0 {
            let _ = write!(line, ", {} still in the outbox", self.still_owed);
        }
        if let Some(Processor { hub, broker, bench }) = self.processor {
            let _ = write!(
                line,
                "; processor time for each: hub {hub:.0} us, broker {broker:.0} us, bench {bench:.0} us"
            );
        }
        for with in &self.with {
            let _ = write!(line, "; {with}");
        }
        line
    }
}

fn shown(value: f64, unit: Unit) -> String {
    match unit {
        Unit::DeliveriesPerSecond => format!("{}/s", grouped(value.round() as u64)),
        Unit::RowsPerSecond => format!("{} rows/s", grouped(value.round() as u64)),
        Unit::Milliseconds => format!("{value:.2} ms"),
        Unit::Seconds => format!("{value:.2} s"),
        Unit::Microseconds => format!("{value:.1} us"),
        Unit::Ratio => format!("{value:.2}"),
        Unit::Megabytes => format!("{value:.1} MB"),
        Unit::Bytes => format!("{} B", grouped(value.round() as u64)),
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_value_ratio_goals_and_losses() {
        let measure = Measure::new("rate", 21_345.4, Unit::DeliveriesPerSecond, Some(50_000.0))
            .aim(Some(Goal::at_least(21_345.4, 20_000.0, "20,000/s")))
            .aim(Some(Goal::at_least(0.43, 0.5, "0.50 of the bare loop")));
        let figure = Figure {
            figure: "a",
            title: "drain",
            sync: "default",
            measures: vec![measure],
            arrivals: Account { expected: 1_000_000, missing: 1, doubles: 2, ..Account::default() },
            still_owed: 0,
            processor: Some(Processor { hub: 38.4, broker: 30.0, bench: 9.6 }),
            with: Vec::new(),
        };
        assert!(figure.lost());
        assert_eq!(
            figure.line(),
            "(a) drain, sync default: rate 21,345/s, 0.43 of the bare loop's 50,000/s \
             [goal at least 20,000/s: met] [goal at least 0.50 of the bare loop: not met]; \
             999,999 of 1,000,000 arrived, 1 lost, 2 doubled; \
             processor time for each: hub 38 us, broker 30 us, bench 10 us"
        );
    }

    #[test]
    fn the_limit_itself_meets_at_least_and_not_below() {
        assert!(Goal::at_least(2.0, 2.0, "2").met && !Goal::at_least(1.9, 2.0, "2").met);
        assert!(!Goal::below(2.0, 2.0, "2").met && Goal::below(1.9, 2.0, "2").met);
    }
}
