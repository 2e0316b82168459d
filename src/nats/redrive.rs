//! Redrives of dead letters: timers kept by the broker, requests by operators, and marks of dead letters that are
//! being replayed or were discarded. All are messages of the redrive stream.

use std::collections::HashSet;

use bytes::Bytes;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::connection::JetStream;
use super::error::NatsError;
use crate::domain::headers;

/// Lifetime of a replay mark. After that, an envelope that is neither delivered nor dead-lettered may be replayed
/// again.
const REPLAYING_TTL: &str = "24h";
/// Lifetime of a discard mark, for callers that follow the dead letters they replayed.
const DISCARDED_TTL: &str = "1h";

/// Header of a redrive message: who requested the redrive.
pub const TRIGGER_HEADER: &str = headers::ORDER;

/// Who requests a redrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedriveTrigger {
    /// The redrive schedule; counts as one of its redrives.
    Schedule,
    /// An operator; does not count as a redrive of the schedule.
    Operator,
    /// An operator who knows that the envelope of an earlier redrive is lost.
    OperatorForce,
}

impl RedriveTrigger {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Operator => "operator",
            Self::OperatorForce => "operator-force",
        }
    }

    /// Parses the header; anything unknown counts as the schedule.
    pub fn read(text: Option<&str>) -> Self {
        match text {
            Some("operator") => Self::Operator,
            Some("operator-force") => Self::OperatorForce,
            _ => Self::Schedule,
        }
    }
}

impl JetStream {
    /// Sets the timer of a dead letter (ADR-51): at `at` the server publishes the due message and removes the timer.
    /// A new timer replaces the previous one.
    pub async fn schedule_redrive(
        &self,
        domain: &str,
        sequence: u64,
        at: OffsetDateTime,
    ) -> Result<(), NatsError> {
        let names = self.names();
        let timer = names.redrive_timer(domain, sequence);
        let at = at.format(&Rfc3339).map_err(|error| NatsError::encode(timer.as_str(), error))?;
        let headers = [
            ("Nats-Schedule", format!("@at {at}")),
            ("Nats-Schedule-Target", names.redrive_due(domain, sequence)),
            (TRIGGER_HEADER, RedriveTrigger::Schedule.as_str().to_owned()),
        ];
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.publish(&timer, Bytes::new(), &headers).await.map(drop)
    }

    /// Requests a redrive of a dead letter now; the role `dlt-processor` carries it out.
    pub async fn request_redrive(
        &self,
        domain: &str,
        sequence: u64,
        trigger: RedriveTrigger,
    ) -> Result<(), NatsError> {
        let subject = self.names().redrive_due(domain, sequence);
        self.publish(&subject, Bytes::new(), &[(TRIGGER_HEADER, trigger.as_str())]).await.map(drop)
    }

    pub async fn mark_replaying(&self, domain: &str, sequence: u64) -> Result<(), NatsError> {
        let subject = self.names().replaying(domain, sequence);
        self.publish(&subject, Bytes::new(), &[("Nats-TTL", REPLAYING_TTL)]).await.map(drop)
    }

    /// Marks a dead letter whose envelope is in its outbox all the time. `redrives`: scheduled ones, with this one.
    pub async fn mark_replaying_in_place(
        &self,
        domain: &str,
        sequence: u64,
        redrives: u32,
    ) -> Result<(), NatsError> {
        let subject = self.names().replaying(domain, sequence);
        let redrives = redrives.to_string();
        let headers = [("Nats-TTL", REPLAYING_TTL), (headers::REDRIVES, &redrives)];
        self.publish(&subject, Bytes::new(), &headers).await.map(drop)
    }

    pub async fn is_replaying(&self, domain: &str, sequence: u64) -> Result<bool, NatsError> {
        let subject = self.names().replaying(domain, sequence);
        Ok(self.get_last(&self.names().redrive_stream(), &subject).await?.is_some())
    }

    /// The sequences of a domain's dead letters that are being replayed.
    pub async fn replaying(&self, domain: &str) -> Result<HashSet<u64>, NatsError> {
        let names = self.names();
        let subjects = self.stream_subjects(&names.redrive_stream(), &names.replaying_filter(domain)).await?;
        Ok(subjects
            .iter()
            .filter_map(|(subject, _)| names.parse_replaying(subject))
            .map(|(_, sequence)| sequence)
            .collect())
    }

    /// Marks a dead letter as discarded. Written before the dead letter is deleted.
    pub async fn mark_discarded(&self, domain: &str, sequence: u64) -> Result<(), NatsError> {
        let subject = self.names().discarded(domain, sequence);
        self.publish(&subject, Bytes::new(), &[("Nats-TTL", DISCARDED_TTL)]).await.map(drop)
    }

    /// The sequences of a domain's dead letters that were discarded within the last hour.
    pub async fn discarded(&self, domain: &str) -> Result<HashSet<u64>, NatsError> {
        let names = self.names();
        let subjects = self.stream_subjects(&names.redrive_stream(), &names.discarded_filter(domain)).await?;
        let parsed = subjects.iter().filter_map(|(subject, _)| names.parse_discarded(subject));
        Ok(parsed.map(|(_, sequence)| sequence).collect())
    }

    /// The sequences of a domain's dead letters whose redrive is due, and is not taken yet.
    pub async fn redrives_due(&self, domain: &str) -> Result<HashSet<u64>, NatsError> {
        let names = self.names();
        let subjects =
            self.stream_subjects(&names.redrive_stream(), &names.redrive_due_filter(domain)).await?;
        let parsed = subjects.iter().filter_map(|(subject, _)| names.parse_redrive_due(subject));
        Ok(parsed.map(|(_, sequence)| sequence).collect())
    }

    /// The sequences of a domain's dead letters that have a timer or a pending redrive request.
    pub async fn redrive_pending(&self, domain: &str) -> Result<HashSet<u64>, NatsError> {
        let names = self.names();
        let mut pending = HashSet::new();
        for filter in [names.redrive_timer_filter(domain), names.redrive_due_filter(domain)] {
            let subjects = self.stream_subjects(&names.redrive_stream(), &filter).await?;
            pending.extend(
                subjects.iter().filter_map(|(subject, _)| subject.rsplit('.').next()?.parse::<u64>().ok()),
            );
        }
        Ok(pending)
    }
}
