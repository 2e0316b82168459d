//! Carries out what an attempt's outcome means.

mod latency;
pub(super) mod strict;
mod tried;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use time::OffsetDateTime;

pub(super) use tried::Tried;

use super::log::DeliveryLog;
use super::remembered::{Remembered, Settlement};
use super::tries::Tries;
use crate::domain::attempt_record::{AttemptRecord, Settled};
use crate::domain::dead_letter::{DeadLetter, Failed, Origin};
use crate::domain::dead_letter_room::retry_after;
use crate::domain::deliveries::Deliveries;
use crate::domain::envelope::Envelope;
use crate::domain::last_words::LastWords;
use crate::domain::outcome::{DeliveryDecision, Fault, Outcome, Reason, RetryPolicy, decide, hold};
use crate::domain::status::Statuses;
use crate::facts::{
    AttemptMade, DeadLetterNotChecked, DeadLetterNotRemoved, DeadLetterNotWritten, DeadLetterResolved,
    DeliveryDeadLettered, DeliveryExhausted, DeliveryFailed, DomainMetrics, EnvelopeNotPublishedAgain,
    EnvelopePublishedAgain, LastAttemptNotStored, RedeliverySettled, RedrivenEnvelopeDropped,
};
use crate::nats::{Delivered, JetStream, NatsError, Predecessor};
use crate::panics;

/// Delay before a message that could not be settled is delivered again.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// One of this many acknowledgements is confirmed by the server, and its delivery keeps its place in the pool until then.
/// A server that stores acknowledgements more slowly than deliveries are made (with `sync_interval: always`, an fsync
/// each) thus slows the deliveries down; otherwise acknowledgements would pile up until ack_wait redelivers the messages.
const CONFIRM_EVERY: u64 = 128;

/// Settles the messages of one domain.
pub(super) struct Settle {
    js: JetStream,
    domain: String,
    policy: RetryPolicy,
    schedule: Vec<Duration>,
    metrics: DomainMetrics,
    acknowledged: AtomicU64,
    /// A confirmation may take a quarter of it.
    ack_wait: Duration,
    log: DeliveryLog,
    tries: Arc<Tries>,
    remembered: Arc<Remembered>,
}

impl Settle {
    pub(super) fn new(
        js: JetStream,
        domain: String,
        policy: RetryPolicy,
        schedule: Vec<Duration>,
        metrics: DomainMetrics,
        ack_wait: Duration,
        log: DeliveryLog,
    ) -> Self {
        let acknowledged = AtomicU64::new(0);
        let tries = Arc::new(Tries::new(js.clone(), domain.clone(), log.choice()));
        let remembered = Arc::new(Remembered::new(Duration::ZERO));
        Self { js, domain, policy, schedule, metrics, acknowledged, ack_wait, log, tries, remembered }
    }

    /// With the outbox's duplicate window.
    pub(super) fn within(self, duplicate_window: Duration) -> Self {
        Self { remembered: Arc::new(Remembered::new(duplicate_window)), ..self }
    }

    /// Whether a fresh envelope was delivered already, in another copy. A redriven one is sent in any case.
    pub(super) fn is_repeated(&self, message: &Delivered, envelope: &Envelope<'_>) -> bool {
        message.carried().dead_letter.is_none() && self.remembered.is_repeated(message, &envelope.id)
    }

    /// What was settled lately.
    pub(super) fn remembered(&self) -> &Arc<Remembered> {
        &self.remembered
    }

    /// The attempts on the envelopes of its domain.
    pub(super) fn tries(&self) -> &Arc<Tries> {
        &self.tries
    }

    pub(super) fn decide(
        &self,
        outcome: &Outcome,
        known: &Deliveries,
        statuses: &Statuses,
    ) -> DeliveryDecision {
        let attempt = known.next_attempt(self.policy.max_deliver);
        decide(outcome, attempt, &self.policy, statuses, rand::random::<f64>())
    }

    /// Whether the broker will not deliver an envelope again although attempts are left.
    pub(super) fn goes_back(&self, known: &Deliveries) -> bool {
        known.goes_back(self.policy.max_deliver)
    }

    /// Publishes an envelope again that [goes back](Self::goes_back).
    pub(super) async fn publish_again(
        &self,
        message: &Delivered,
        envelope: &Envelope<'_>,
        known: &Deliveries,
    ) {
        let counts = known.moved();
        let copy = self.tries.copy(message, counts, message.subject.clone());
        match self.js.publish_each(std::slice::from_ref(&copy)).await {
            Ok(_) => {
                let Envelope { tenant, subscription, id, .. } = envelope;
                let (attempts, untried) = (counts.attempts, counts.untried);
                EnvelopePublishedAgain { tenant, subscription, envelope: id, attempts, untried }
                    .emit(&self.metrics);
                self.tries.forget(message);
                message.acker.ack().await;
            }
            Err(error) => {
                // The router publishes it again, because it finds no final attempt.
                EnvelopeNotPublishedAgain { error: &error, envelope: &envelope.id, retry_in: RETRY_DELAY }
                    .emit(&self.metrics);
                self.tries.keep(message, known.tried());
                message.acker.nak(Some(RETRY_DELAY)).await;
            }
        }
    }

    /// How long the whole subscription is held.
    pub(super) fn hold(&self, outcome: &Outcome, statuses: &Statuses) -> Option<Duration> {
        hold(outcome, &self.policy, statuses)
    }

    pub(super) async fn settle(
        &self,
        message: &Delivered,
        envelope: &Envelope<'_>,
        decision: DeliveryDecision,
        tried: Tried<'_>,
        known: &Deliveries,
    ) {
        let attempts = known.attempts().saturating_add(u32::from(tried.tried));
        let at = self.record(message, envelope, decision, &tried, attempts);
        if decision == DeliveryDecision::Ack {
            return self.delivered(message, envelope, at).await;
        }
        Box::pin(self.not_delivered(message, envelope, decision, tried, known, attempts)).await;
    }

    async fn not_delivered(
        &self,
        message: &Delivered,
        envelope: &Envelope<'_>,
        decision: DeliveryDecision,
        tried: Tried<'_>,
        known: &Deliveries,
        attempts: u32,
    ) {
        // Before the message is handed back: its next delivery may follow at once.
        self.tries.keep(message, known.tried().saturating_add(u32::from(tried.tried)));
        let (reason, fault) = match decision {
            DeliveryDecision::Ack => return,
            DeliveryDecision::Retry { after } => {
                DeliveryFailed {
                    tenant: &envelope.tenant,
                    subscription: &envelope.subscription,
                    envelope: &envelope.id,
                    attempt: attempts,
                    status: tried.status,
                    error: &tried.error,
                    fault: tried.failure.map(|(fault, _)| fault),
                    retry_in: after,
                }
                .emit(&self.metrics);
                return self.log.retry(&message.acker, tried.at_the_broker(after)).await;
            }
            DeliveryDecision::DeadLetter { reason: Reason::Exhausted, fault } => {
                let stored = self.keep_last_words(envelope, attempts, fault, &tried).await;
                if stored && known.is_last(self.policy.max_deliver) {
                    DeliveryExhausted {
                        tenant: &envelope.tenant,
                        subscription: &envelope.subscription,
                        envelope: &envelope.id,
                        attempt: attempts,
                        status: tried.status,
                        error: &tried.error,
                    }
                    .emit(&self.metrics);
                    // All deliveries are used up: the server sends the router an advisory. The stored attempt
                    // shows the router that the last delivery was tried.
                    self.tries.forget(message);
                    return message.acker.nak(None).await;
                }
                (Reason::Exhausted, fault)
            }
            DeliveryDecision::DeadLetter { reason, fault } => {
                if tried.tried {
                    self.keep_last_words(envelope, attempts, fault, &tried).await;
                }
                (reason, fault)
            }
        };
        let failed = Failed {
            reason,
            fault,
            attempts,
            redrives: message.carried().redrives,
            status: tried.status,
            error: Some(tried.error),
            at: self.js.now(),
        };
        let letter = DeadLetter::new(&self.domain, Origin::of(envelope), failed, &self.schedule);
        self.dead_letter(message, &letter).await;
    }

    /// Returns the time, if it was read.
    fn record(
        &self,
        message: &Delivered,
        envelope: &Envelope<'_>,
        decision: DeliveryDecision,
        tried: &Tried<'_>,
        attempt: u32,
    ) -> Option<OffsetDateTime> {
        if tried.tried {
            self.attempt_made(envelope, tried);
            self.log(message, envelope, decision, tried, attempt)
        } else {
            None
        }
    }

    fn attempt_made(&self, envelope: &Envelope<'_>, tried: &Tried<'_>) {
        let Envelope { tenant, subscription, .. } = envelope;
        let Tried { latency, failure, status, .. } = *tried;
        AttemptMade { tenant, subscription, latency, failure, status }.emit(&self.metrics);
    }

    /// Records the failed probe of a circuit. It counts for no attempt of the envelope, which goes back into its lane.
    pub(super) fn probe_failed(
        &self,
        message: &Delivered,
        envelope: &Envelope<'_>,
        tried: &Tried<'_>,
        known: &Deliveries,
        next: Duration,
    ) {
        self.attempt_made(envelope, tried);
        let attempt = known.attempts().saturating_add(1);
        let _ = self.log(message, envelope, DeliveryDecision::Retry { after: next }, tried, attempt);
        DeliveryFailed {
            tenant: &envelope.tenant,
            subscription: &envelope.subscription,
            envelope: &envelope.id,
            attempt,
            status: tried.status,
            error: &tried.error,
            fault: tried.failure.map(|(fault, _)| fault),
            retry_in: next,
        }
        .emit(&self.metrics);
    }

    /// Stores the final failed attempt for `hub dlt show` and the router; false if that failed.
    async fn keep_last_words(
        &self,
        envelope: &Envelope<'_>,
        attempt: u32,
        fault: Fault,
        tried: &Tried<'_>,
    ) -> bool {
        let words = LastWords {
            attempt,
            status: tried.status,
            error: tried.error.clone(),
            fault,
            latency_ms: milliseconds(tried.latency),
            answer: tried.answer.map(str::to_owned),
        };
        let stored = self.js.put_final_attempt(&self.domain, envelope, &words).await;
        if let Err(error) = &stored {
            LastAttemptNotStored { error, envelope: &envelope.id }.emit(&self.metrics);
        }
        stored.is_ok()
    }

    /// Adds the attempt to the delivery log if `delivery.log` selects it. Returns the time, if it was read.
    fn log(
        &self,
        message: &Delivered,
        envelope: &Envelope<'_>,
        decision: DeliveryDecision,
        tried: &Tried<'_>,
        attempt: u32,
    ) -> Option<OffsetDateTime> {
        let outcome = match decision {
            DeliveryDecision::Ack => Settled::Delivered,
            DeliveryDecision::Retry { .. } => Settled::Retried,
            DeliveryDecision::DeadLetter { reason: Reason::Exhausted, .. } => Settled::Exhausted,
            DeliveryDecision::DeadLetter { .. } => Settled::DeadLettered,
        };
        if !self.log.keeps(outcome) {
            return None;
        }
        let now = self.js.now();
        let record = AttemptRecord {
            envelope: Cow::Borrowed(&*envelope.id),
            event_id: Cow::Borrowed(&*envelope.event_id),
            event_key: Cow::Borrowed(&*envelope.event_key),
            event_time: envelope.event_time.as_deref().map(Cow::Borrowed),
            tenant: Some(Cow::Borrowed(&*envelope.tenant)),
            queued_at: OffsetDateTime::from_unix_timestamp_nanos(message.stored_at_nanos).unwrap_or(now),
            at: now,
            attempt,
            redriven: message.carried().dead_letter.is_some(),
            outcome,
            status: tried.status,
            latency_ms: milliseconds(tried.latency),
            error: tried.kind,
            fault: tried.fault,
            detail: (!tried.error.is_empty()).then_some(Cow::Borrowed(tried.error.as_str())),
            answer: tried.answer.map(Cow::Borrowed),
        };
        if let Some(token) = envelope.token() {
            self.log.record(&token, &record);
        }
        Some(now)
    }

    /// Settles a delivered message. If it was the redrive of a dead letter, that one is removed first.
    async fn delivered(&self, message: &Delivered, envelope: &Envelope<'_>, at: Option<OffsetDateTime>) {
        let now = || at.unwrap_or_else(|| self.js.now());
        latency::delivered(envelope.published_at, now, message.carried(), message.deliveries)
            .emit(&self.metrics);
        self.remembered.delivered(message, &envelope.id);
        self.acknowledge(message, &envelope.id).await;
    }

    async fn acknowledge(&self, message: &Delivered, envelope: &str) {
        if let Some(sequence) = message.carried().dead_letter {
            match Box::pin(self.js.resolve_dead_letter(&self.domain, sequence, Some(envelope))).await {
                Ok(true) => DeadLetterResolved { envelope }.emit(&self.metrics),
                // It was counted when it was removed.
                Ok(false) => {}
                Err(error) => {
                    // A second delivery, by another process, is better than a dead letter that stays: the receiver knows
                    // the webhook-id.
                    DeadLetterNotRemoved { error: &error, envelope, retry_in: RETRY_DELAY }
                        .emit(&self.metrics);
                    self.tries.keep(message, self.tries.known(message).tried().saturating_add(1));
                    message.acker.nak(Some(RETRY_DELAY)).await;
                    return;
                }
            }
        }
        self.tries.forget(message);
        if self.acknowledged.fetch_add(1, Ordering::Relaxed) % CONFIRM_EVERY == CONFIRM_EVERY - 1 {
            Box::pin(self.remembered.answers.ack_and_confirm(&message.acker, self.ack_wait / 4)).await;
        } else {
            self.remembered.answers.ack(&message.acker).await;
        }
    }

    /// Settles a message in the same way as before, without another attempt: the broker lost the acknowledgement.
    pub(super) async fn settle_again(&self, message: &Delivered, settlement: Settlement) {
        RedeliverySettled.emit(&self.metrics);
        match settlement {
            Settlement::Delivered => {
                let envelope = Envelope::read(&message.payload);
                let id = envelope.as_ref().map_or("", |envelope| &envelope.id);
                self.acknowledge(message, id).await;
            }
            Settlement::Moved => self.remembered.answers.ack(&message.acker).await,
            Settlement::DeadLettered(reason) => {
                self.remembered.answers.terminate(&message.acker, reason.as_str()).await;
            }
            // The move answers for both copies.
            Settlement::Moving => {}
        }
    }

    /// Whether a message is the redrive of a dead letter that does not exist any more: it was delivered and only the
    /// acknowledgement was lost, or it was discarded or replaced. The message is then dropped untried.
    pub(super) async fn is_resolved(&self, message: &Delivered, envelope: &Envelope<'_>) -> bool {
        let Some(sequence) = message.carried().dead_letter else { return false };
        match self.js.predecessor(&self.domain, sequence, Some(&envelope.id)).await {
            Ok(predecessor) => predecessor == Predecessor::Resolved,
            Err(error) => {
                DeadLetterNotChecked { error: &error, sequence }.emit(&self.metrics);
                false
            }
        }
    }

    /// Reports that an envelope is dropped because [`Self::is_resolved`].
    pub(super) fn redriven_is_resolved(&self, envelope: &Envelope<'_>) {
        let Envelope { tenant, subscription, id, .. } = envelope;
        RedrivenEnvelopeDropped { tenant, subscription, envelope: id }.emit(&self.metrics);
    }

    /// The stream whose messages it settles.
    pub(super) fn stream(&self) -> String {
        self.js.names().outbox_stream(&self.domain)
    }

    /// Dead-letters a message that cannot be processed: parked, with its original bytes.
    pub(super) async fn set_aside(&self, message: &Delivered, reason: Reason, detail: &str) {
        let subject = self.js.names().parse_outbox(&message.subject);
        // After a panic only the names are read.
        let readable = reason == Reason::InternalError && message.malformed().is_none();
        let read = || panics::catch(|| Envelope::read(&message.payload).ok()).ok().flatten();
        let known = readable.then(read).flatten();
        let origin = match &known {
            Some(envelope) => Origin::of(envelope),
            None => {
                let named = subject.and_then(|subject| Some(subject.reference()?.id().to_owned()));
                Origin::unread(&self.domain, message.stream_sequence, named.as_deref())
            }
        };
        let failed = Failed {
            reason,
            fault: Fault::Hub,
            attempts: self.tries.known(message).attempts(),
            redrives: 0,
            status: None,
            error: Some(detail.to_owned()),
            at: self.js.now(),
        };
        let letter = DeadLetter::new(&self.domain, origin, failed, &self.schedule);
        self.dead_letter(message, &letter).await;
    }

    /// Writes the dead letter, and then terminates the message, which removes it from the work queue.
    async fn dead_letter(&self, message: &Delivered, letter: &DeadLetter) {
        match self.put(message, letter).await {
            Ok(()) => {
                let is_redriven = message.carried().dead_letter.is_some();
                DeliveryDeadLettered { letter, is_redriven }.emit(&self.metrics);
                self.tries.forget(message);
                self.remembered.remember(message, Settlement::DeadLettered(letter.reason));
                self.remembered.answers.terminate(&message.acker, letter.reason.as_str()).await;
            }
            Err(error) => {
                let retry_in = retry_after(message.deliveries);
                if !self.js.letters_are_reported(&self.stream()) {
                    DeadLetterNotWritten { error: &error, envelope: &letter.id, retry_in }
                        .emit(&self.metrics);
                }
                message.acker.nak(Some(retry_in)).await;
            }
        }
    }

    async fn put(&self, message: &Delivered, letter: &DeadLetter) -> Result<(), NatsError> {
        self.js
            .put_dead_letter_with_headers(
                &message.subject,
                message.stream_sequence,
                letter,
                message.payload.clone(),
                message.header_block(),
            )
            .await?;
        match message.carried().dead_letter {
            Some(sequence) => {
                // The id of an unreadable envelope is made up.
                let id = letter.reference().map(|_| letter.id.as_str());
                self.js.resolve_dead_letter(&self.domain, sequence, id).await.map(drop)
            }
            None => Ok(()),
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
