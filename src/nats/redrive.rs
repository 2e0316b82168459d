//! Second chances: timers kept by the broker, orders by operators, and the mark of what is on
//! its way again. All three are messages of the redrive stream.

use std::collections::HashSet;

use bytes::Bytes;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::connection::JetStream;
use super::error::NatsError;

/// How long the mark of a replay stands at most; an envelope that is still neither delivered nor
/// dead-lettered by then may be replayed again.
const REPLAYING_TTL: &str = "24h";
/// How long it is known of a dead letter that it was discarded, for those who wait for what they replayed.
const DISCARDED_TTL: &str = "1h";

/// Headers of a due message.
pub const ORDER_HEADER: &str = "Hub-Order";

/// Who asks for a redrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedriveOrder {
    /// The schedule: counts as one of its redrives.
    Schedule,
    /// An operator: the schedule is not used up by it.
    Operator,
    /// An operator who knows that the envelope sent before is gone.
    OperatorForce,
}

impl RedriveOrder {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Operator => "operator",
            Self::OperatorForce => "operator-force",
        }
    }

    pub fn read(text: Option<&str>) -> Self {
        match text {
            Some("operator") => Self::Operator,
            Some("operator-force") => Self::OperatorForce,
            _ => Self::Schedule,
        }
    }
}

impl JetStream {
    /// Sets the timer of a dead letter (ADR-51): at that time the server puts the due message
    /// into the stream and removes the timer. Setting it again replaces it.
    pub async fn schedule_redrive(
        &self,
        domain: &str,
        sequence: u64,
        at: OffsetDateTime,
    ) -> Result<(), NatsError> {
        let at = at.format(&Rfc3339).map_err(|error| {
            NatsError::answer("schedule".to_owned(), format!("the time cannot be written: {error}"))
        })?;
        let names = self.names();
        let headers = [
            ("Nats-Schedule", format!("@at {at}")),
            ("Nats-Schedule-Target", names.redrive_due(domain, sequence)),
            (ORDER_HEADER, RedriveOrder::Schedule.as_str().to_owned()),
        ];
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.publish(&names.redrive_timer(domain, sequence), Bytes::new(), &headers).await.map(drop)
    }

    /// Orders a dead letter to be sent again now; the DLT Processor carries it out.
    pub async fn order_redrive(
        &self,
        domain: &str,
        sequence: u64,
        order: RedriveOrder,
    ) -> Result<(), NatsError> {
        let subject = self.names().redrive_due(domain, sequence);
        self.publish(&subject, Bytes::new(), &[(ORDER_HEADER, order.as_str())]).await.map(drop)
    }

    pub async fn mark_replaying(&self, domain: &str, sequence: u64) -> Result<(), NatsError> {
        let subject = self.names().replaying(domain, sequence);
        self.publish(&subject, Bytes::new(), &[("Nats-TTL", REPLAYING_TTL)]).await.map(drop)
    }

    pub async fn is_replaying(&self, domain: &str, sequence: u64) -> Result<bool, NatsError> {
        let subject = self.names().replaying(domain, sequence);
        Ok(self.get_last(&self.names().redrive_stream(), &subject).await?.is_some())
    }

    /// The sequences of a domain's dead letters that are on their way again.
    pub async fn replaying(&self, domain: &str) -> Result<HashSet<u64>, NatsError> {
        let names = self.names();
        let subjects = self.stream_subjects(&names.redrive_stream(), &names.replaying_filter(domain)).await?;
        Ok(subjects
            .iter()
            .filter_map(|(subject, _)| names.parse_replaying(subject))
            .map(|(_, sequence)| sequence)
            .collect())
    }

    /// Notes that a dead letter is discarded; written before it is dropped.
    pub async fn mark_discarded(&self, domain: &str, sequence: u64) -> Result<(), NatsError> {
        let subject = self.names().discarded(domain, sequence);
        self.publish(&subject, Bytes::new(), &[("Nats-TTL", DISCARDED_TTL)]).await.map(drop)
    }

    /// The sequences of a domain's dead letters that were discarded of late.
    pub async fn discarded(&self, domain: &str) -> Result<HashSet<u64>, NatsError> {
        let names = self.names();
        let subjects = self.stream_subjects(&names.redrive_stream(), &names.discarded_filter(domain)).await?;
        let parsed = subjects.iter().filter_map(|(subject, _)| names.parse_discarded(subject));
        Ok(parsed.map(|(_, sequence)| sequence).collect())
    }

    /// The sequences of a domain's dead letters that have a timer or an order.
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
