//! From an envelope that stands exhausted in its outbox to a dead letter. Every step may be
//! repeated: the dead letter's message id is the envelope's place in the outbox.

use std::time::Duration;

use time::OffsetDateTime;

use crate::domain::dead_letter::{self, DeadLetter, PREDECESSOR_HEADER, State, next_redrive};
use crate::domain::envelope::Envelope;
use crate::domain::outcome::{Fault, Reason};
use crate::metrics::Metrics;
use crate::nats::{JetStream, NatsError, StoredMessage};

pub(super) struct Router {
    js: JetStream,
    domains: Vec<String>,
    schedule: Vec<Duration>,
    metrics: Metrics,
    read: ReadEnvelope,
}

/// How the body of a message on an outbox becomes an envelope.
pub(crate) type ReadEnvelope = for<'a> fn(&'a [u8]) -> Result<Envelope<'a>, serde_json::Error>;

/// Why an envelope is routed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cause<'a> {
    /// An advisory said so.
    Exhausted { deliveries: u32 },
    /// The sweep found it.
    Stranded { deliveries: u32 },
    /// The hub panicked when it routed it: this time nothing of it is read.
    Panicked { detail: &'a str },
}

impl Router {
    pub(super) fn new(
        js: JetStream,
        domains: Vec<String>,
        schedule: Vec<Duration>,
        metrics: Metrics,
        read: ReadEnvelope,
    ) -> Self {
        Self { js, domains, schedule, metrics, read }
    }

    pub(super) fn js(&self) -> &JetStream {
        &self.js
    }

    /// Dead-letters the envelope at a sequence of an outbox; false if it stands there no more.
    pub(super) async fn route(
        &self,
        stream: &str,
        sequence: u64,
        cause: Cause<'_>,
    ) -> Result<bool, NatsError> {
        let names = self.js.names();
        let Some(domain) = self.domains.iter().find(|domain| names.outbox_stream(domain) == stream) else {
            tracing::warn!(
                stream,
                sequence,
                "an advisory of a stream that no domain of the settings has is dropped"
            );
            return Ok(false);
        };
        let Some(message) = self.js.get(stream, sequence).await? else {
            tracing::debug!(stream, sequence, "the envelope stands in its outbox no more");
            return Ok(false);
        };
        let predecessor = dead_letter::predecessor(message.header(PREDECESSOR_HEADER));
        if let Some(predecessor) = predecessor
            && !self.js.dead_letter_stands(domain, predecessor).await?
        {
            tracing::info!(
                stream,
                sequence,
                "the dead letter of a redriven envelope is gone: it was delivered, discarded or filed anew before"
            );
            self.js.delete(stream, sequence).await?;
            return Ok(false);
        }
        let letter = self.letter(domain, &message, cause).await?;
        let (subject, body, block) = (&message.subject, message.payload.clone(), message.header_block());
        self.js.put_dead_letter_of(subject, sequence, &letter, body, block).await?;
        if let Some(predecessor) = predecessor {
            self.js.drop_dead_letter(domain, predecessor).await?;
        }
        self.js.delete(stream, sequence).await?;
        self.metrics.dead_lettered(domain, letter.reason.as_str());
        tracing::warn!(
            domain,
            subscription = letter.subscription,
            envelope = letter.id,
            event_key = letter.event_key,
            reason = %letter.reason,
            attempts = letter.attempts,
            last_error = letter.last_error,
            state = %letter.state,
            "dead-lettered"
        );
        Ok(true)
    }

    async fn letter(
        &self,
        domain: &str,
        message: &StoredMessage,
        cause: Cause<'_>,
    ) -> Result<DeadLetter, NatsError> {
        let number = |name: &str| message.header(name).and_then(|text| text.parse().ok()).unwrap_or(0u32);
        let redrives = number("Hub-Redrives");
        let malformed = message.malformed();
        let envelope = match cause {
            Cause::Panicked { .. } => None,
            _ if malformed.is_some() => None,
            _ => (self.read)(&message.payload).ok(),
        };
        let words = match &envelope {
            Some(envelope) => {
                let Envelope { tenant, subscription, id, .. } = envelope;
                self.js.last_words(domain, tenant, subscription, id).await?
            }
            None => None,
        };
        // Words of an earlier redrive are not this one's.
        let words = words.filter(|words| words.attempt > number("Hub-Attempts"));
        let deliveries = match cause {
            Cause::Exhausted { deliveries } | Cause::Stranded { deliveries } => deliveries,
            Cause::Panicked { .. } => 0,
        };
        let reason = match (&envelope, cause) {
            (_, Cause::Panicked { .. }) => Reason::InternalError,
            (None, _) => Reason::Undecodable,
            (Some(_), Cause::Exhausted { .. }) => Reason::Exhausted,
            // Its last words prove that it was tried to the end: only the advisory was missed.
            (Some(_), Cause::Stranded { .. }) if words.is_some() => Reason::Exhausted,
            (Some(_), Cause::Stranded { .. }) => Reason::Stranded,
        };
        let subject = self.js.names().parse_outbox(&message.subject);
        let subject_id = subject.and_then(|subject| Some(subject.reference()?.id().to_owned()));
        let now = OffsetDateTime::now_utc();
        let next = next_redrive(reason, redrives, &self.schedule);
        Ok(DeadLetter {
            id: envelope
                .as_ref()
                .map_or_else(|| format!("{domain}-{}", message.sequence), |envelope| envelope.id.to_string()),
            domain: domain.to_owned(),
            subscription: match &envelope {
                Some(envelope) => envelope.subscription.to_string(),
                None => subject_id.unwrap_or_default(),
            },
            incarnation: envelope.as_ref().map(|envelope| envelope.incarnation).unwrap_or_default(),
            tenant: envelope.as_ref().map(|envelope| envelope.tenant.to_string()).unwrap_or_default(),
            event_id: envelope.as_ref().map(|envelope| envelope.event_id.to_string()).unwrap_or_default(),
            event_key: envelope.as_ref().map(|envelope| envelope.event_key.to_string()).unwrap_or_default(),
            reason,
            fault: words.as_ref().map_or(Fault::Hub, |words| words.fault),
            state: if next.is_some() { State::Scheduled } else { State::Parked },
            attempts: words
                .as_ref()
                .map_or(number("Hub-Attempts").saturating_add(deliveries), |words| words.attempt),
            redrives,
            last_status: words.as_ref().and_then(|words| words.status),
            last_error: match cause {
                Cause::Panicked { detail } => Some(detail.to_owned()),
                _ => words.map(|words| words.error).or_else(|| malformed.map(|why| why.to_string())),
            },
            failed_at: now,
            next_redrive_at: next.map(|wait| now + wait),
        })
    }
}
