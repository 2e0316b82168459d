//! Numbers, durations and errors as words of a sentence.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// An error and its sources in one line.
pub fn with_sources(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string();
        // Many errors contain the text of their source.
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = source.source();
    }
    line
}

/// A number with its noun: `1 replay`, `2 replays`. `noun` is the singular of a noun whose plural adds an `s`.
pub fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A duration as it is written in the settings: `7d`, `1h 30m`, `15s`, `250ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(Duration);

/// The duration, exactly.
pub fn span(duration: Duration) -> Span {
    Span(duration)
}

/// The duration to the millisecond, for a duration that was measured or drawn.
pub fn rounded(duration: Duration) -> Span {
    let below = Duration::from_nanos(u64::from(duration.subsec_nanos() % 1_000_000));
    Span(duration.saturating_sub(below))
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0.as_secs(), u64::from(self.0.subsec_nanos()));
        let parts = [
            (seconds / 86_400, "d"),
            (seconds / 3_600 % 24, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
            (nanos / 1_000_000, "ms"),
            (nanos / 1_000 % 1_000, "us"),
            (nanos % 1_000, "ns"),
        ];
        let mut written = false;
        for (number, unit) in parts.into_iter().filter(|(number, _)| *number > 0) {
            let gap = if written { " " } else { "" };
            write!(f, "{gap}{number}{unit}")?;
            written = true;
        }
        if written { Ok(()) } else { f.write_str("0s") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duration;
    use proptest::prelude::*;

    #[test]
    fn an_error_has_each_source_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("the file cannot be read")]
        struct Outer(#[source] Middle);
        #[derive(Debug, thiserror::Error)]
        #[error("line 3: {0}")]
        struct Middle(#[source] std::fmt::Error);
        let error = Outer(Middle(std::fmt::Error));
        let innermost = std::fmt::Error.to_string();
        assert_eq!(with_sources(&error), format!("the file cannot be read: line 3: {innermost}"));
    }

    #[test]
    fn one_is_singular_and_every_other_number_plural() {
        for (number, text) in [(0, "0 replays"), (1, "1 replay"), (2, "2 replays"), (11, "11 replays")] {
            assert_eq!(counted(number, "replay"), text);
        }
    }

    #[test]
    fn a_span_is_short() {
        let seconds = Duration::from_secs;
        for (duration, text) in [
            (seconds(0), "0s"),
            (seconds(60), "1m"),
            (seconds(7 * 86_400), "7d"),
            (seconds(5_400), "1h 30m"),
            (seconds(365 * 86_400), "365d"),
            (Duration::from_millis(1_250), "1s 250ms"),
        ] {
            assert_eq!(span(duration).to_string(), text);
        }
        assert_eq!(rounded(Duration::from_nanos(1_250_999_999)).to_string(), "1s 250ms");
        assert_eq!(rounded(Duration::from_nanos(999_999)).to_string(), "0s");
    }

    proptest! {
        #[test]
        fn a_span_reads_back(seconds in 0..u64::from(u32::MAX), nanos in 0..1_000_000_000_u32) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(duration::parse(&span(duration).to_string()), Ok(duration));
        }
    }
}
