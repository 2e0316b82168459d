//! Limits how often a line of the log is repeated, by [`repeated_lines`](hub_domain::repeated_lines): brokers, events and
//! tenants decide how often something fails.
//!
//! A line that is left out is written at the level DEBUG only. The next one about the same broker has `repeated`, the number
//! of those left out; if none follows, [`write_left_out`] says so. The program sets the interval, and calls the other
//! functions.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hub_domain::repeated_lines::{LeftOut, LineDecision, RepeatedLines, Thing};

/// The interval for programs that do not set it.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
/// The kinds are the sentences; all lines are warnings.
static LINES: LazyLock<Mutex<RepeatedLines<&'static str>>> =
    LazyLock::new(|| Mutex::new(RepeatedLines::new(DEFAULT_INTERVAL)));

fn lines() -> MutexGuard<'static, RepeatedLines<&'static str>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes each repeated line at most once per `interval`; each one if it is zero.
pub fn limit_repeated_lines(interval: Duration) {
    *lines() = RepeatedLines::new(interval);
}

/// Writes the numbers of lines that were left out and not followed by another; to be called every few seconds.
pub fn write_left_out() {
    let due = lines().due(START.elapsed());
    due.into_iter().for_each(summarize);
}

/// Writes all numbers of lines that were left out, at the end of the process.
pub fn write_rest_of_left_out() {
    let rest = lines().rest();
    rest.into_iter().for_each(summarize);
}

fn summarize(left_out: LeftOut<&'static str>) {
    let LeftOut { kind: line, about: [.., broker], count: repeated } = left_out;
    let broker = Some(broker.as_str()).filter(|broker| !broker.is_empty());
    tracing::warn!(line, broker, repeated, "lines left out");
}

/// Decides about a warning about a broker.
pub(super) fn turn(line: &'static str, broker: &str) -> LineDecision {
    lines().turn(line, Thing { detail: broker, ..Thing::default() }, START.elapsed())
}

/// Writes a warning about a broker within the limits: `limited!("sentence", broker; fields)`.
macro_rules! limited {
    ($line:literal, $broker:expr; $($fields:tt)+) => {
        if tracing::enabled!(tracing::Level::WARN) {
            match $crate::facts::limited::turn($line, $broker) {
                hub_domain::repeated_lines::LineDecision::Write { left_out } => {
                    let repeated = Some(left_out).filter(|left_out| *left_out > 0);
                    tracing::warn!($($fields)+, repeated, $line);
                }
                hub_domain::repeated_lines::LineDecision::LeaveOut => tracing::debug!($($fields)+, $line),
            }
        }
    };
}
pub(super) use limited;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_about_a_broker_is_written_once_and_then_counted() {
        const LINE: &str = "a line of this test";
        assert_eq!(turn(LINE, "nats://a"), LineDecision::Write { left_out: 0 });
        assert!((0..1_000).all(|_| turn(LINE, "nats://a") == LineDecision::LeaveOut));
        assert_eq!(turn(LINE, "nats://b"), LineDecision::Write { left_out: 0 }, "another broker");
        let rest = lines().rest();
        let of_test: Vec<_> = rest.iter().filter(|left_out| left_out.kind == LINE).collect();
        assert_eq!(of_test.iter().map(|left_out| left_out.count).collect::<Vec<_>>(), [1_000]);
        assert_eq!(of_test[0].about[3], "nats://a");
    }
}
