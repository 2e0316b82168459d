//! Records of the delivery log: one line of JSON for each attempt, several lines in a message.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::outcome::{Failure, Fault, Outcome, UnknownName};

/// The attempts that are logged (setting `delivery.log`). A final failed attempt is always stored
/// (see [`LastWords`](super::last_words::LastWords)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogChoice {
    All,
    Failures,
    None,
}

impl LogChoice {
    pub fn keeps(self, settled: Settled) -> bool {
        match self {
            Self::All => true,
            Self::Failures => settled != Settled::Delivered,
            Self::None => false,
        }
    }
}

impl fmt::Display for LogChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Failures => "failures",
            Self::None => "none",
        })
    }
}

impl FromStr for LogChoice {
    type Err = UnknownName;
    fn from_str(text: &str) -> Result<Self, UnknownName> {
        [Self::All, Self::Failures, Self::None]
            .into_iter()
            .find(|choice| choice.to_string() == text)
            .ok_or_else(|| UnknownName::new("choice", text, "all, failures, none"))
    }
}

/// The outcome of an attempt for its envelope, as in the label of `hub_deliveries`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", schema(as = AttemptOutcome))]
pub enum Settled {
    Delivered,
    /// Failed; will be retried after a wait.
    Retried,
    /// The last attempt failed; the router dead-letters it.
    Exhausted,
    /// Failed permanently; dead-lettered at once.
    DeadLettered,
}

impl Settled {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retried => "retried",
            Self::Exhausted => "exhausted",
            Self::DeadLettered => "dead-lettered",
        }
    }
}

/// The kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ErrorKind {
    /// The endpoint answered with a status other than a success.
    Status(StatusKind),
    /// No answer: `timeout`, `dns`, …
    Failure(Failure),
}

/// Written as `"status"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StatusKind {
    Status,
}

impl ErrorKind {
    /// `None` for a success.
    pub fn of(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Acknowledged | Outcome::Answered { status: 200..=299, .. } => None,
            Outcome::Answered { .. } => Some(Self::Status(StatusKind::Status)),
            Outcome::Failed(failure) => Some(Self::Failure(*failure)),
        }
    }
}

/// The record of one attempt. The subject of the message contains the domain and the subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord<'a> {
    #[serde(borrow)]
    pub envelope: Cow<'a, str>,
    #[serde(borrow)]
    pub event_id: Cow<'a, str>,
    #[serde(borrow)]
    pub event_key: Cow<'a, str>,
    /// The time of the event.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub event_time: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Cow<'a, str>>,
    /// The time at which the domain outbox stored the envelope; for a redriven one, the last time.
    #[serde(with = "time::serde::rfc3339")]
    pub queued_at: OffsetDateTime,
    /// The end of the attempt.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Number of the attempt, from 1, over all redrives.
    pub attempt: u32,
    /// True for a redrive or replay of a dead letter.
    #[serde(default, skip_serializing_if = "is_false")]
    pub redriven: bool,
    pub outcome: Settled,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Milliseconds from the request to the end of the answer.
    pub latency_ms: u64,
    /// For a failure: its kind, fault and text, and the beginning of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorKind>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Cow<'a, str>>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

impl<'a> AttemptRecord<'a> {
    /// Appends the record as one line.
    pub fn write_line(&self, lines: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let before = lines.len();
        let written = serde_json::to_writer(&mut *lines, self);
        match written {
            Ok(()) => lines.push(b'\n'),
            // A partial line would make the next one invalid.
            Err(_) => lines.truncate(before),
        }
        written
    }

    /// The records in the body of a message; invalid lines are skipped.
    pub fn read_lines(body: &'a [u8]) -> impl Iterator<Item = Self> {
        body.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok())
    }

    /// Copies the borrowed texts.
    pub fn into_owned(self) -> AttemptRecord<'static> {
        fn own(text: Cow<'_, str>) -> Cow<'static, str> {
            Cow::Owned(text.into_owned())
        }
        AttemptRecord {
            envelope: own(self.envelope),
            event_id: own(self.event_id),
            event_key: own(self.event_key),
            event_time: self.event_time.map(own),
            tenant: self.tenant.map(own),
            queued_at: self.queued_at,
            at: self.at,
            attempt: self.attempt,
            redriven: self.redriven,
            outcome: self.outcome,
            status: self.status,
            latency_ms: self.latency_ms,
            error: self.error,
            fault: self.fault,
            detail: self.detail.map(own),
            answer: self.answer.map(own),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(attempt: u32, outcome: Settled) -> AttemptRecord<'static> {
        let at = OffsetDateTime::from_unix_timestamp(1_800_000_000 + i64::from(attempt)).unwrap();
        AttemptRecord {
            envelope: "env_1".into(),
            event_id: "e \"1\"".into(),
            event_key: "policy.updated".into(),
            event_time: Some("2027-01-15T08:00:00Z".into()),
            tenant: Some("acme".into()),
            queued_at: at,
            at,
            attempt,
            redriven: false,
            outcome,
            status: Some(503),
            latency_ms: 12,
            error: Some(ErrorKind::Status(StatusKind::Status)),
            fault: Some(Fault::Subscriber),
            detail: Some("503 Service Unavailable".into()),
            answer: Some("two\nlines".into()),
        }
    }

    #[test]
    fn records_are_lines_that_read_back() {
        let records = [
            record(1, Settled::Retried),
            AttemptRecord {
                error: Some(ErrorKind::Failure(Failure::AddressRefused)),
                status: None,
                redriven: true,
                ..record(2, Settled::DeadLettered)
            },
            AttemptRecord {
                error: None,
                fault: None,
                detail: None,
                answer: None,
                ..record(3, Settled::Delivered)
            },
        ];
        let mut lines = Vec::new();
        for record in &records {
            record.write_line(&mut lines).unwrap();
        }
        let text = String::from_utf8(lines.clone()).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(
            text.contains(r#""error":"status""#) && text.contains(r#""error":"address-refused""#),
            "{text}"
        );
        lines.extend(b"no record\n");
        assert_eq!(AttemptRecord::read_lines(&lines).collect::<Vec<_>>(), records);
    }

    #[test]
    fn each_choice_keeps_its_outcomes() {
        let all = [Settled::Delivered, Settled::Retried, Settled::Exhausted, Settled::DeadLettered];
        let kept = |choice: LogChoice| all.map(|settled| choice.keeps(settled));
        assert_eq!(kept(LogChoice::All), [true; 4]);
        assert_eq!(kept(LogChoice::Failures), [false, true, true, true]);
        assert_eq!(kept(LogChoice::None), [false; 4]);
        assert_eq!("failures".parse(), Ok(LogChoice::Failures));
        assert!("some".parse::<LogChoice>().unwrap_err().to_string().contains("all, failures, none"));
    }
}
