//! Turns an exhausted envelope in its outbox into a dead letter. Every step may be repeated: the message id of the dead
//! letter is the envelope's stream and sequence.

use std::time::Duration;

use time::OffsetDateTime;

use crate::domain::carried::Carried;
use crate::domain::dead_letter::{DeadLetter, Failed, Origin};
use crate::domain::envelope::Envelope;
use crate::domain::outcome::{Fault, Reason};
use crate::facts::{AdvisoryOfUnknownStream, DeadLettered, EnvelopeGone, ExhaustedRedriveDropped, Metrics};
use crate::nats::{JetStream, NatsError, StoredMessage};

pub(super) struct Router {
    js: JetStream,
    domains: Vec<String>,
    schedule: Vec<Duration>,
    metrics: Metrics,
    read: ReadEnvelope,
}

/// Reads the body of a message of an outbox as an envelope.
pub(crate) type ReadEnvelope = for<'a> fn(&'a [u8]) -> Result<Envelope<'a>, serde_json::Error>;

/// Why an envelope is routed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cause<'a> {
    /// An advisory reported it.
    Exhausted { deliveries: u32 },
    /// The sweep found it.
    Stranded { deliveries: u32 },
    /// The hub panicked on it; this time it is not read.
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

    /// Dead-letters the envelope at a sequence of an outbox; false if it is gone.
    pub(super) async fn route(
        &self,
        stream: &str,
        sequence: u64,
        cause: Cause<'_>,
    ) -> Result<bool, NatsError> {
        let names = self.js.names();
        let Some(domain) = self.domains.iter().find(|domain| names.outbox_stream(domain) == stream) else {
            AdvisoryOfUnknownStream { stream, sequence }.emit();
            return Ok(false);
        };
        let Some(message) = self.js.get(stream, sequence).await? else {
            EnvelopeGone { stream, sequence }.emit();
            return Ok(false);
        };
        let predecessor = Carried::read(|name| message.header(name)).dead_letter;
        if let Some(predecessor) = predecessor
            && !self.js.dead_letter_exists(domain, predecessor).await?
        {
            self.js.delete(stream, sequence).await?;
            ExhaustedRedriveDropped { stream, sequence }.emit();
            return Ok(false);
        }
        let letter = self.letter(domain, &message, cause).await?;
        let (subject, body, block) = (&message.subject, message.payload.clone(), message.header_block());
        self.js.put_dead_letter_with_headers(subject, sequence, &letter, body, block).await?;
        if let Some(predecessor) = predecessor {
            self.js.delete_dead_letter(domain, predecessor).await?;
        }
        self.js.delete(stream, sequence).await?;
        DeadLettered { letter: &letter }.emit(&self.metrics);
        Ok(true)
    }

    async fn letter(
        &self,
        domain: &str,
        message: &StoredMessage,
        cause: Cause<'_>,
    ) -> Result<DeadLetter, NatsError> {
        let carried = Carried::read(|name| message.header(name));
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
        // Those of an earlier redrive do not count.
        let words = words.filter(|words| words.attempt > carried.attempts);
        let deliveries = match cause {
            Cause::Exhausted { deliveries } | Cause::Stranded { deliveries } => deliveries,
            Cause::Panicked { .. } => 0,
        };
        let reason = match (&envelope, cause) {
            (_, Cause::Panicked { .. }) => Reason::InternalError,
            (None, _) => Reason::Undecodable,
            (Some(_), Cause::Exhausted { .. }) => Reason::Exhausted,
            // Its stored last attempt proves that it is exhausted: only the advisory was missed.
            (Some(_), Cause::Stranded { .. }) if words.is_some() => Reason::Exhausted,
            (Some(_), Cause::Stranded { .. }) => Reason::Stranded,
        };
        let origin = match &envelope {
            Some(envelope) => Origin::of(envelope),
            None => {
                let subject = self.js.names().parse_outbox(&message.subject);
                let named = subject.and_then(|subject| Some(subject.reference()?.id().to_owned()));
                Origin::unread(domain, message.sequence, named.as_deref())
            }
        };
        let failed = Failed {
            reason,
            fault: words.as_ref().map_or(Fault::Hub, |words| words.fault),
            attempts: words
                .as_ref()
                .map_or(carried.attempts.saturating_add(deliveries), |words| words.attempt),
            redrives: carried.redrives,
            status: words.as_ref().and_then(|words| words.status),
            error: match cause {
                Cause::Panicked { detail } => Some(detail.to_owned()),
                _ => words.map(|words| words.error).or_else(|| malformed.map(|why| why.to_string())),
            },
            at: OffsetDateTime::now_utc(),
        };
        Ok(DeadLetter::new(domain, origin, failed, &self.schedule))
    }
}
