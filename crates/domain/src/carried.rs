//! The `Hub-…` headers of a message in a domain outbox; no other module reads or writes them.

use super::headers;

/// The headers of a message in a domain outbox. A new envelope has none; invalid values are ignored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// `Hub-Dead-Letter`: sequence of the redriven dead letter in the dead-letter stream.
    pub dead_letter: Option<u64>,
    /// `Hub-Redrives`: number of scheduled redrives so far.
    pub redrives: u32,
    /// `Hub-Attempts`: number of attempts before the message was moved to its current place.
    pub attempts: u32,
    /// `Hub-Tried`: those of them since the fan-out or the last redrive.
    pub tried: u32,
    /// `Hub-Untried`: deliveries since then without an attempt.
    pub untried: u32,
    /// `Hub-Queued-At`: when the outbox stored it first, in milliseconds since 1970, if it was moved since.
    pub queued_at: Option<u64>,
}

impl Carried {
    /// Whether a header may be one of them.
    pub fn is_header(name: &str) -> bool {
        name.get(..headers::PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(headers::PREFIX))
    }

    /// Reads the headers. `header` returns the value of a header by name.
    pub fn read<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Self {
        let count = |name: &str| header(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        let sequence: Option<u64> = header(headers::DEAD_LETTER).and_then(|text| text.parse().ok());
        Self {
            // Sequences of the server start at 1.
            dead_letter: sequence.filter(|sequence| (1..=i64::MAX as u64).contains(sequence)),
            redrives: count(headers::REDRIVES),
            attempts: count(headers::ATTEMPTS),
            tried: count(headers::TRIED),
            untried: count(headers::UNTRIED),
            queued_at: header(headers::QUEUED_AT).and_then(|text| text.parse().ok()),
        }
    }

    /// The headers in order, as names and values.
    pub fn to_headers(self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::with_capacity(6);
        if let Some(sequence) = self.dead_letter {
            headers.push((headers::DEAD_LETTER, sequence.to_string()));
            headers.push((headers::REDRIVES, self.redrives.to_string()));
        }
        headers.push((headers::ATTEMPTS, self.attempts.to_string()));
        for (name, count) in [(headers::TRIED, self.tried), (headers::UNTRIED, self.untried)] {
            if count > 0 {
                headers.push((name, count.to_string()));
            }
        }
        if let Some(at) = self.queued_at {
            headers.push((headers::QUEUED_AT, at.to_string()));
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&str, &str)]) -> Carried {
        Carried::read(|name| headers.iter().find(|(known, _)| *known == name).map(|(_, value)| *value))
    }

    #[test]
    fn headers_round_trip() {
        for carried in [
            Carried { dead_letter: Some(7), redrives: 2, attempts: 15, ..Carried::default() },
            Carried {
                attempts: 3,
                tried: 2,
                untried: 1,
                queued_at: Some(1_800_000_000_000),
                ..Carried::default()
            },
            Carried {
                dead_letter: Some(i64::MAX as u64),
                redrives: 0,
                attempts: u32::MAX,
                tried: 0,
                untried: u32::MAX,
                queued_at: Some(u64::MAX),
            },
        ] {
            let headers = carried.to_headers();
            let borrowed: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(read(&borrowed), carried);
        }
    }

    #[test]
    fn invalid_and_missing_headers_are_ignored() {
        assert_eq!(read(&[]), Carried::default());
        for forged in ["0", "-1", "x", "", "9223372036854775808", "1e3"] {
            assert_eq!(
                read(&[
                    ("Hub-Dead-Letter", forged),
                    ("Hub-Redrives", "-1"),
                    ("Hub-Attempts", "many"),
                    ("Hub-Queued-At", "now")
                ]),
                Carried::default()
            );
        }
    }
}
