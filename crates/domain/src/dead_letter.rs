//! Dead letters: their fields, their headers, and the schedule of their redrives.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::envelope::Envelope;
use super::headers;
use super::outcome::{Fault, Reason, UnknownName};
use super::subscription::{Identity, Incarnation, SubscriptionRef};

/// An envelope that could not be delivered. The fields are `Hub-…` headers of a message in the dead-letter stream,
/// whose body is the envelope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeadLetter {
    /// The envelope's id; constant over all redrives.
    pub id: String,
    pub domain: String,
    pub subscription: String,
    pub tenant: String,
    /// Incarnation of the subscription when the envelope was created.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub incarnation: Incarnation,
    pub event_id: String,
    pub event_key: String,
    pub reason: Reason,
    pub fault: Fault,
    pub state: DeadLetterState,
    /// Number of attempts over all redrives.
    pub attempts: u32,
    /// Number of scheduled redrives so far.
    pub redrives: u32,
    pub last_status: Option<u16>,
    pub last_error: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub failed_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub next_redrive_at: Option<OffsetDateTime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", schema(as = DeadLetterState))]
pub enum DeadLetterState {
    /// Waits for its scheduled redrive.
    Scheduled,
    /// Its envelope is in the domain outbox again.
    Replaying,
    /// Waits for an operator: the schedule has ended, or a retry cannot help.
    Parked,
}

impl DeadLetterState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Replaying => "replaying",
            Self::Parked => "parked",
        }
    }
}

impl fmt::Display for DeadLetterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for DeadLetterState {
    type Err = UnknownName;
    fn from_str(text: &str) -> Result<Self, UnknownName> {
        match text {
            "scheduled" => Ok(Self::Scheduled),
            "replaying" => Ok(Self::Replaying),
            "parked" => Ok(Self::Parked),
            other => Err(UnknownName::new("state", other, "scheduled, replaying, parked")),
        }
    }
}

/// The wait before the next scheduled redrive of a dead letter that was redriven `redrives` times. `None` if the
/// schedule has ended, or if a retry cannot help (permanently rejected, unreadable or unwanted).
pub(crate) fn next_redrive(reason: Reason, redrives: u32, schedule: &[Duration]) -> Option<Duration> {
    match reason {
        Reason::Exhausted | Reason::CircuitOpen | Reason::Stranded | Reason::OverQuota => {
            schedule.get(usize::try_from(redrives).unwrap_or(usize::MAX)).copied()
        }
        Reason::Permanent
        | Reason::TooLarge
        | Reason::Undecodable
        | Reason::Removed
        | Reason::Paused
        | Reason::Disabled
        | Reason::InternalError
        | Reason::Expired => None,
    }
}

/// Why a message is not a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableHeader {
    #[error("the message is not a dead letter: header {name} is missing")]
    Missing { name: &'static str },
    #[error("the message is not a dead letter: header {name} is invalid")]
    Invalid { name: &'static str },
}

/// The subscription and the id of a dead letter's envelope, if known.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The envelope's id.
    pub id: String,
    pub subscription: String,
    pub tenant: String,
    pub incarnation: Incarnation,
    pub event_id: String,
    pub event_key: String,
}

impl Origin {
    pub fn of(envelope: &Envelope<'_>) -> Self {
        Self {
            id: envelope.id.to_string(),
            subscription: envelope.subscription.to_string(),
            tenant: envelope.tenant.to_string(),
            incarnation: envelope.incarnation,
            event_id: envelope.event_id.to_string(),
            event_key: envelope.event_key.to_string(),
        }
    }

    /// The origin of an unreadable envelope, from its stream position and subject.
    pub fn unread(domain: &str, sequence: u64, subscription: Option<&str>) -> Self {
        Self {
            id: format!("{domain}-{sequence}"),
            subscription: subscription.unwrap_or_default().to_owned(),
            tenant: String::new(),
            incarnation: Incarnation::LEGACY,
            event_id: String::new(),
            event_key: String::new(),
        }
    }

    /// The readable part of a stored dead letter. `id` and `subscription` replace missing headers.
    pub fn read_partial<'a>(
        header: impl Fn(&str) -> Option<&'a str>,
        id: impl FnOnce() -> String,
        subscription: impl FnOnce() -> Option<String>,
    ) -> Self {
        let text = |name: &str| header(name).map(str::to_owned);
        Self {
            id: text(headers::ID).unwrap_or_else(id),
            subscription: text(headers::SUBSCRIPTION).or_else(subscription).unwrap_or_default(),
            tenant: text(headers::TENANT).unwrap_or_default(),
            incarnation: Incarnation::read(header(headers::INCARNATION)).unwrap_or(Incarnation::LEGACY),
            event_id: text(headers::EVENT_ID).unwrap_or_default(),
            event_key: text(headers::EVENT_KEY).unwrap_or_default(),
        }
    }
}

/// The failure of the last attempt of an envelope, or the reason why there was no attempt.
#[derive(Debug, Clone)]
pub struct Failed {
    pub reason: Reason,
    pub fault: Fault,
    /// Number of attempts over all redrives.
    pub attempts: u32,
    /// Number of scheduled redrives so far.
    pub redrives: u32,
    pub status: Option<u16>,
    pub error: Option<String>,
    pub at: OffsetDateTime,
}

impl Failed {
    /// A failure of the hub itself to process a stored dead letter, with the counts in its headers.
    pub fn by_hub<'a>(
        header: impl Fn(&str) -> Option<&'a str>,
        reason: Reason,
        error: String,
        at: OffsetDateTime,
    ) -> Self {
        let number = |name: &str| header(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        Self {
            reason,
            fault: Fault::Hub,
            attempts: number(headers::ATTEMPTS),
            redrives: number(headers::REDRIVES),
            status: header(headers::LAST_STATUS).and_then(|status| status.parse().ok()),
            error: Some(error),
            at,
        }
    }
}

impl DeadLetter {
    /// `schedule`: the waits before the redrives. A dead letter without a next redrive is parked.
    pub fn new(domain: &str, origin: Origin, failed: Failed, schedule: &[Duration]) -> Self {
        let next = next_redrive(failed.reason, failed.redrives, schedule);
        Self {
            id: origin.id,
            domain: domain.to_owned(),
            subscription: origin.subscription,
            tenant: origin.tenant,
            incarnation: origin.incarnation,
            event_id: origin.event_id,
            event_key: origin.event_key,
            reason: failed.reason,
            fault: failed.fault,
            state: if next.is_some() { DeadLetterState::Scheduled } else { DeadLetterState::Parked },
            attempts: failed.attempts,
            redrives: failed.redrives,
            last_status: failed.status,
            last_error: failed.error,
            failed_at: failed.at,
            next_redrive_at: next.map(|wait| failed.at + wait),
        }
    }

    /// Subscription and incarnation; `None` if the envelope is unreadable.
    pub fn owner(&self) -> Option<Identity> {
        Some(Identity { subscription: self.reference()?, incarnation: self.incarnation })
    }

    /// Its subscription; `None` if the envelope is unreadable.
    pub fn reference(&self) -> Option<SubscriptionRef> {
        SubscriptionRef::of(&self.tenant, &self.subscription)
    }

    /// The headers in order, as names and values.
    pub fn to_headers(&self) -> Vec<(&'static str, String)> {
        let time = |at: OffsetDateTime| at.format(&Rfc3339).unwrap_or_default();
        let mut headers = vec![
            (headers::ID, self.id.clone()),
            (headers::DOMAIN, self.domain.clone()),
            (headers::SUBSCRIPTION, self.subscription.clone()),
            (headers::TENANT, self.tenant.clone()),
            (headers::INCARNATION, self.incarnation.to_string()),
            (headers::EVENT_ID, self.event_id.clone()),
            (headers::EVENT_KEY, self.event_key.clone()),
            (headers::REASON, self.reason.to_string()),
            (headers::FAULT, self.fault.to_string()),
            (headers::STATE, self.state.to_string()),
            (headers::ATTEMPTS, self.attempts.to_string()),
            (headers::REDRIVES, self.redrives.to_string()),
            (headers::FAILED_AT, time(self.failed_at)),
        ];
        if let Some(status) = self.last_status {
            headers.push((headers::LAST_STATUS, status.to_string()));
        }
        if let Some(error) = &self.last_error {
            headers.push((headers::LAST_ERROR, error.clone()));
        }
        if let Some(at) = self.next_redrive_at {
            headers.push((headers::NEXT_REDRIVE_AT, time(at)));
        }
        headers
    }

    /// Reads the headers; `None` if a required one is missing or invalid.
    pub fn from_headers<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        Self::read(header).ok()
    }

    /// Reads the headers; the error names the first one that is missing or invalid.
    pub fn read<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Result<Self, UnreadableHeader> {
        let time = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
        let text = |name: &str| header(name).map(str::to_owned);
        let required = |name: &'static str| header(name).ok_or(UnreadableHeader::Missing { name });
        let invalid = |name: &'static str| UnreadableHeader::Invalid { name };
        let number = |name: &'static str| required(name)?.parse::<u32>().map_err(|_| invalid(name));
        Ok(Self {
            id: required(headers::ID)?.to_owned(),
            domain: required(headers::DOMAIN)?.to_owned(),
            subscription: required(headers::SUBSCRIPTION)?.to_owned(),
            tenant: text(headers::TENANT).unwrap_or_default(),
            incarnation: Incarnation::read(header(headers::INCARNATION))
                .map_err(|_| invalid(headers::INCARNATION))?,
            event_id: text(headers::EVENT_ID).unwrap_or_default(),
            event_key: text(headers::EVENT_KEY).unwrap_or_default(),
            reason: Reason::read_stored(required(headers::REASON)?)
                .ok_or_else(|| invalid(headers::REASON))?,
            fault: required(headers::FAULT)?.parse().map_err(|_| invalid(headers::FAULT))?,
            state: required(headers::STATE)?.parse().map_err(|_| invalid(headers::STATE))?,
            attempts: number(headers::ATTEMPTS)?,
            redrives: number(headers::REDRIVES)?,
            last_status: header(headers::LAST_STATUS).and_then(|status| status.parse().ok()),
            last_error: text(headers::LAST_ERROR),
            failed_at: time(required(headers::FAILED_AT)?).ok_or_else(|| invalid(headers::FAILED_AT))?,
            next_redrive_at: header(headers::NEXT_REDRIVE_AT).and_then(time),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            id: "env_1".into(),
            domain: "policy-client".into(),
            subscription: "crm".into(),
            tenant: "acme".into(),
            incarnation: Incarnation::new(7),
            event_id: "e 1".into(),
            event_key: "policy.updated".into(),
            reason: Reason::Exhausted,
            fault: Fault::Subscriber,
            state: DeadLetterState::Scheduled,
            attempts: 5,
            redrives: 1,
            last_status: Some(503),
            last_error: Some("503 Service Unavailable".into()),
            failed_at: OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap(),
            next_redrive_at: Some(OffsetDateTime::from_unix_timestamp(1_800_000_300).unwrap()),
        }
    }

    #[test]
    fn headers_round_trip() {
        for letter in
            [letter(), DeadLetter { last_status: None, last_error: None, next_redrive_at: None, ..letter() }]
        {
            let headers = letter.to_headers();
            let find =
                |name: &str| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str());
            assert_eq!(DeadLetter::from_headers(find), Some(letter));
        }
    }

    #[test]
    fn an_unreadable_header_is_named() {
        let headers = letter().to_headers();
        let find = |name: &str| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str());
        for (wrong, _) in &headers {
            let without = DeadLetter::read(|name| find(name).filter(|_| name != *wrong));
            let with = DeadLetter::read(|name| if name == *wrong { Some("\u{202e}") } else { find(name) });
            for (read, problem) in [(without, "missing"), (with, "invalid")] {
                if let Err(error) = read {
                    let expected = format!("the message is not a dead letter: header {wrong} is {problem}");
                    assert_eq!(error.to_string(), expected);
                }
            }
        }
        let required = [headers::ID, headers::REASON, headers::FAULT, headers::STATE, headers::FAILED_AT];
        for wrong in required {
            assert!(DeadLetter::read(|name| find(name).filter(|_| name != wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_from_before_there_were_incarnations_reads_as_legacy() {
        let headers = letter().to_headers();
        let find = |name: &str| {
            let others = headers.iter().filter(|(key, _)| *key != "Hub-Incarnation");
            others.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str())
        };
        assert_eq!(DeadLetter::from_headers(find).unwrap().incarnation, Incarnation::LEGACY);
    }

    #[test]
    fn the_schedule_is_walked_once_and_then_parks() {
        let schedule = [Duration::from_secs(300), Duration::from_secs(1800)];
        assert_eq!(next_redrive(Reason::Exhausted, 0, &schedule), Some(schedule[0]));
        assert_eq!(next_redrive(Reason::Stranded, 1, &schedule), Some(schedule[1]));
        assert_eq!(next_redrive(Reason::Exhausted, 2, &schedule), None);
        assert_eq!(next_redrive(Reason::Permanent, 0, &schedule), None);
        assert_eq!(next_redrive(Reason::Disabled, 0, &schedule), None);
        assert_eq!(next_redrive(Reason::OverQuota, 1, &schedule), Some(schedule[1]));
        assert_eq!(next_redrive(Reason::Expired, 0, &schedule), None);
    }
}
