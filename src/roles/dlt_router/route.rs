//! Turns an exhausted envelope in its outbox into a dead letter. Every step may be repeated: the message id of the dead
//! letter is the envelope's stream and sequence.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::deliveries::Deliveries;
use crate::domain::carried::Carried;
use crate::domain::dead_letter::{DeadLetter, DeadLetterState, Failed, Origin};
use crate::domain::deliveries::{UndeliveredVerdict, after_last_delivery, is_final};
use crate::domain::envelope::Envelope;
use crate::domain::last_words::LastWords;
use crate::domain::outcome::{Fault, Reason};
use crate::domain::subscription::Identity;
use crate::facts::{
    AdvisoryOfUnknownStream, DeadLetterResolved, DeadLettered, DeliveredEnvelopeRemoved, EnvelopeGone,
    EnvelopePublishedAgain, ExhaustedRedriveDropped, LetterBy, Metrics,
};
use crate::nats::subjects::SHARED_LANE;
use crate::nats::{EnvelopeMessage, JetStream, LoggedAttempts, NatsError, Predecessor, StoredMessage};
use crate::panics;

/// The error of an envelope that the broker delivered too often without an attempt.
const UNTRIED: &str =
    "no attempt was completed: the process ended or lost its connection after each delivery";

pub(super) struct Router {
    js: JetStream,
    domains: Vec<String>,
    schedule: Vec<Duration>,
    max_deliver: u32,
    logged: LoggedAttempts,
    deliveries: Deliveries,
    metrics: Metrics,
    read: ReadEnvelope,
}

/// What became of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Routed {
    /// It is not in its outbox any more, or its dead letter is resolved.
    Gone,
    DeadLettered,
    /// Its last delivery was not tried, or its attempt was cut.
    PublishedAgain,
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

impl Cause<'_> {
    fn by(self) -> LetterBy {
        match self {
            Self::Stranded { .. } => LetterBy::Sweep,
            Self::Exhausted { .. } | Self::Panicked { .. } => LetterBy::Advisory,
        }
    }
}

impl Router {
    pub(super) fn new(
        js: JetStream,
        domains: Vec<String>,
        schedule: Vec<Duration>,
        max_deliver: u32,
        deliveries: Deliveries,
        metrics: Metrics,
        read: ReadEnvelope,
    ) -> Self {
        let logged = LoggedAttempts::new(js.clone());
        Self { js, domains, schedule, max_deliver, logged, deliveries, metrics, read }
    }

    pub(super) fn js(&self) -> &JetStream {
        &self.js
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(super) fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    /// Dead-letters the envelope at a sequence of an outbox, or publishes it again if its deliveries were not all attempts.
    pub(super) async fn route(
        &self,
        stream: &str,
        sequence: u64,
        cause: Cause<'_>,
    ) -> Result<Routed, NatsError> {
        let names = self.js.names();
        let Some(domain) = self.domains.iter().find(|domain| names.outbox_stream(domain) == stream) else {
            // The domain may be one of newer settings.
            self.js.confirm_settings().await?;
            AdvisoryOfUnknownStream { stream, sequence }.emit();
            return Ok(Routed::Gone);
        };
        let Some(message) = self.js.get(stream, sequence).await? else {
            EnvelopeGone { stream, sequence }.emit();
            return Ok(Routed::Gone);
        };
        let carried = Carried::read(|name| message.header(name));
        let malformed = message.malformed();
        let envelope = match cause {
            Cause::Panicked { .. } => None,
            _ if malformed.is_some() => None,
            _ => (self.read)(&message.payload).ok(),
        };
        let id = envelope.as_ref().map(|envelope| &*envelope.id);
        if let Some(predecessor) = carried.dead_letter
            && self.js.predecessor(domain, predecessor, id).await? == Predecessor::Resolved
        {
            self.js.delete(stream, sequence).await?;
            ExhaustedRedriveDropped { domain, stream, sequence }.emit(&self.metrics);
            return Ok(Routed::Gone);
        }
        if self.deliveries.has(domain, &message) {
            let metrics = self.metrics.of_domain(domain);
            if let Some(predecessor) = carried.dead_letter
                && self.js.resolve_dead_letter(domain, predecessor, id).await?
            {
                DeadLetterResolved { envelope: id.unwrap_or_default() }.emit(&metrics);
            }
            self.js.delete(stream, sequence).await?;
            DeliveredEnvelopeRemoved { stream, sequence }.emit(&metrics);
            return Ok(Routed::Gone);
        }
        let mut letter = match &envelope {
            Some(envelope) => {
                let words = self.final_attempt(domain, envelope, carried).await?.map(|(_, words)| words);
                let verdict = match self
                    .verdict(domain, &message, envelope, carried, words.as_ref(), cause)
                    .await
                {
                    // A copy would lose its place.
                    UndeliveredVerdict::PublishAgain(counts) if names.is_in_strict_lane(&message.subject) => {
                        UndeliveredVerdict::DeadLetter { reason: Reason::Stranded, attempts: counts.attempts }
                    }
                    verdict => verdict,
                };
                match verdict {
                    UndeliveredVerdict::PublishAgain(counts) => {
                        self.publish_again(domain, &message, envelope, counts).await?;
                        self.js.delete(stream, sequence).await?;
                        return Ok(Routed::PublishedAgain);
                    }
                    UndeliveredVerdict::DeadLetter { reason, attempts } => {
                        self.letter(domain, Origin::of(envelope), carried, reason, attempts, words)
                    }
                }
            }
            None => {
                let subject = names.parse_outbox(&message.subject);
                let named = subject.and_then(|subject| Some(subject.reference()?.id().to_owned()));
                let origin = Origin::unread(domain, sequence, named.as_deref());
                let (reason, error) = match cause {
                    Cause::Panicked { detail } => (Reason::InternalError, Some(detail.to_owned())),
                    _ => (Reason::Undecodable, malformed.map(|why| why.to_string())),
                };
                let mut letter = self.letter(domain, origin, carried, reason, carried.attempts, None);
                letter.last_error = error;
                letter
            }
        };
        if names.is_in_strict_lane(&message.subject) {
            // A scheduled redrive would be out of order.
            (letter.state, letter.next_redrive_at) = (DeadLetterState::Parked, None);
        }
        let (subject, body, block) = (&message.subject, message.payload.clone(), message.header_block());
        self.js.put_dead_letter_with_headers(subject, sequence, &letter, body, block).await?;
        if let Some(predecessor) = carried.dead_letter {
            self.js.resolve_dead_letter(domain, predecessor, id).await?;
        }
        self.js.delete(stream, sequence).await?;
        let (by, is_redriven) = (cause.by(), carried.dead_letter.is_some());
        DeadLettered { letter: &letter, by, is_redriven }.emit(&self.metrics);
        Ok(Routed::DeadLettered)
    }

    /// Dead-letters a stranded envelope; if that panics, without reading it.
    pub(super) async fn dead_letter_stranded(
        &self,
        stream: &str,
        sequence: u64,
    ) -> Result<Routed, NatsError> {
        let cause = Cause::Stranded { deliveries: self.max_deliver };
        match panics::catch_async(self.route(stream, sequence, cause)).await {
            Ok(routed) => routed,
            Err(panicked) => {
                panicked.on_input(stream, sequence, panics::TRIES);
                let detail = panicked.to_string();
                self.route(stream, sequence, Cause::Panicked { detail: &detail }).await
            }
        }
    }

    /// The sequence of the final failed attempt of an envelope in the stream of attempts, if it is stored: no worker will
    /// try the envelope again, whatever its consumer knows. `None` for a message that is not an envelope.
    pub(super) async fn finished_at(
        &self,
        domain: &str,
        message: &StoredMessage,
    ) -> Result<Option<u64>, NatsError> {
        if message.malformed().is_some() {
            return Ok(None);
        }
        let Ok(Ok(envelope)) = panics::catch(|| (self.read)(&message.payload)) else { return Ok(None) };
        let carried = Carried::read(|name| message.header(name));
        let words = self.final_attempt(domain, &envelope, carried).await?;
        let last = words.filter(|(_, words)| is_final(carried, words.attempt, self.max_deliver));
        Ok(last.map(|(sequence, _)| sequence))
    }

    /// The final failed attempt and its sequence in the stream of attempts, if it is stored. That of an earlier redrive does
    /// not count.
    async fn final_attempt(
        &self,
        domain: &str,
        envelope: &Envelope<'_>,
        carried: Carried,
    ) -> Result<Option<(u64, LastWords)>, NatsError> {
        let Envelope { tenant, subscription, id, .. } = envelope;
        let words = self.js.stored_last_words(domain, tenant, subscription, id).await?;
        Ok(words.filter(|(_, words)| words.attempt > carried.attempts))
    }

    async fn verdict(
        &self,
        domain: &str,
        message: &StoredMessage,
        envelope: &Envelope<'_>,
        carried: Carried,
        words: Option<&LastWords>,
        cause: Cause<'_>,
    ) -> UndeliveredVerdict {
        let deliveries = match cause {
            Cause::Exhausted { deliveries } | Cause::Stranded { deliveries } => deliveries,
            Cause::Panicked { .. } => 0,
        };
        let stored_at = OffsetDateTime::parse(&message.time, &Rfc3339);
        let logged = match (words, stored_at) {
            (None, Ok(stored_at)) => self.logged.highest(domain, envelope, stored_at).await,
            _ => 0,
        };
        let attempt = words.map(|words| words.attempt);
        after_last_delivery(carried, deliveries, attempt, logged, self.max_deliver)
    }

    /// Moves an envelope from a lane that nobody reads to the shared lane. False if the message is not an envelope, so
    /// that it has no owner.
    pub(super) async fn move_to_shared_lane(
        &self,
        domain: &str,
        stream: &str,
        message: &StoredMessage,
    ) -> Result<bool, NatsError> {
        let Some(owner) = self.owner(message) else { return Ok(false) };
        let subject = self.js.names().outbox(domain, SHARED_LANE, &owner.subscription.token());
        let carried = Carried::read(|name| message.header(name));
        self.copy(stream, message, carried, subject).await?;
        self.js.delete(stream, message.sequence).await?;
        Ok(true)
    }

    /// The owner that the body of an envelope names; `None` if the message is not an envelope.
    pub(super) fn owner(&self, message: &StoredMessage) -> Option<Identity> {
        self.owner_if(message, |_| true)
    }

    /// The same, if the delivery in the envelope has a strict order.
    pub(super) fn owner_in_order(&self, message: &StoredMessage) -> Option<Identity> {
        self.owner_if(message, |envelope| envelope.on_dead_letter().is_some())
    }

    fn owner_if(&self, message: &StoredMessage, is_meant: fn(&Envelope<'_>) -> bool) -> Option<Identity> {
        if message.malformed().is_some() {
            return None;
        }
        let read = || {
            let envelope = (self.read)(&message.payload).ok().filter(is_meant);
            envelope.and_then(|_| Identity::of_envelope(&message.payload))
        };
        panics::catch(read).ok().flatten()
    }

    /// Stores a copy of a message of an outbox at another place. The message is deleted afterwards; the message id makes a
    /// repetition of both steps harmless.
    async fn copy(
        &self,
        stream: &str,
        message: &StoredMessage,
        counts: Carried,
        subject: String,
    ) -> Result<(), NatsError> {
        // Its age counts from the first place.
        let stored_at = OffsetDateTime::parse(&message.time, &Rfc3339).ok();
        let stored_at = stored_at.and_then(|at| u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok());
        let counts = Carried { queued_at: counts.queued_at.or(stored_at), ..counts };
        let copy = EnvelopeMessage {
            subject,
            // As of a copy by a worker.
            message_id: format!("{stream}-{}", message.sequence),
            payload: message.payload.clone().into(),
            headers: counts.to_headers(),
        };
        self.js.publish_each(std::slice::from_ref(&copy)).await.map(drop)
    }

    async fn publish_again(
        &self,
        domain: &str,
        message: &StoredMessage,
        envelope: &Envelope<'_>,
        counts: Carried,
    ) -> Result<(), NatsError> {
        let stream = self.js.names().outbox_stream(domain);
        self.copy(&stream, message, counts, message.subject.clone()).await?;
        EnvelopePublishedAgain {
            tenant: &envelope.tenant,
            subscription: &envelope.subscription,
            envelope: &envelope.id,
            attempts: counts.attempts,
            untried: counts.untried,
        }
        .emit(&self.metrics.of_domain(domain));
        Ok(())
    }

    fn letter(
        &self,
        domain: &str,
        origin: Origin,
        carried: Carried,
        reason: Reason,
        attempts: u32,
        words: Option<LastWords>,
    ) -> DeadLetter {
        let failed = Failed {
            reason,
            fault: words.as_ref().map_or(Fault::Hub, |words| words.fault),
            attempts,
            redrives: carried.redrives,
            status: words.as_ref().and_then(|words| words.status),
            error: match words {
                Some(words) => Some(words.error),
                None if reason == Reason::Stranded => Some(UNTRIED.to_owned()),
                None => None,
            },
            at: self.js.now(),
        };
        DeadLetter::new(domain, origin, failed, &self.schedule)
    }
}
