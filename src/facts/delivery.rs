//! One attempt to deliver an envelope, and what became of it.

use std::time::Duration;

use super::Cause;
use super::dead_letters::DeadLettered;
use super::metrics::{DomainMetrics, FailureLabel};
use crate::domain::dead_letter::DeadLetter;
use crate::domain::outcome::Fault;
use crate::domain::subscription::SubscriptionRef;
use crate::domain::words::rounded;

/// An attempt was made.
pub struct AttemptMade {
    pub latency: Duration,
    /// Of a failed one: whose fault it is, and its kind.
    pub failure: Option<(Fault, &'static str)>,
}

impl AttemptMade {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { latency, failure } = self;
        metrics.counters.delivery_seconds.observe(latency.as_secs_f64());
        if let Some((fault, kind)) = failure {
            let label = FailureLabel { domain: metrics.domain.to_string(), fault: fault.as_str(), kind };
            metrics.all.families().failures.get_or_create(&label).inc();
        }
    }
}

/// An envelope was delivered.
pub struct EnvelopeDelivered;

impl EnvelopeDelivered {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.delivered.inc();
    }
}

/// An attempt failed and another one follows.
pub struct DeliveryFailed<'a> {
    pub subscription: &'a str,
    pub envelope: &'a str,
    pub attempt: u32,
    pub status: Option<u16>,
    pub error: &'a str,
    pub fault: Option<Fault>,
    pub retry_in: Duration,
}

impl DeliveryFailed<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { subscription, envelope, attempt, status, error, fault, retry_in } = self;
        metrics.retried.inc();
        tracing::debug!(
            domain = &*metrics.domain,
            subscription,
            envelope,
            attempt,
            status,
            error,
            fault = fault.map(Fault::as_str),
            retry_in = %rounded(retry_in),
            "delivery failed, will retry"
        );
    }
}

/// The last attempt failed; the router dead-letters the envelope.
pub struct DeliveryExhausted<'a> {
    pub subscription: &'a str,
    pub envelope: &'a str,
    pub attempt: u32,
    pub status: Option<u16>,
    pub error: &'a str,
}

impl DeliveryExhausted<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { subscription, envelope, attempt, status, error } = self;
        metrics.exhausted.inc();
        let domain = &*metrics.domain;
        tracing::debug!(domain, subscription, envelope, attempt, status, error, "last delivery failed");
    }
}

/// The worker dead-lettered an envelope.
pub struct DeliveryDeadLettered<'a> {
    pub letter: &'a DeadLetter,
}

impl DeliveryDeadLettered<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.dead_lettered.inc();
        DeadLettered { letter: self.letter }.emit(&metrics.all);
    }
}

/// A dead letter could not be written, so its envelope waits.
pub struct DeadLetterNotWritten<'a> {
    pub error: Cause<'a>,
    pub envelope: &'a str,
    pub retry_in: Duration,
}

impl DeadLetterNotWritten<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, envelope, retry_in } = self;
        let domain = &*metrics.domain;
        tracing::error!(%error, domain, envelope, retry_in = %rounded(retry_in), "dead letter not written, will retry");
    }
}

/// The delivery log could not be read to tell which deliveries of an envelope were attempts.
pub struct AttemptsNotLookedUp<'a> {
    pub error: Cause<'a>,
    pub domain: &'a str,
}

impl AttemptsNotLookedUp<'_> {
    pub fn emit(self) {
        let Self { error, domain } = self;
        tracing::warn!(%error, domain, "delivery log not read, deliveries of a former process count as not attempted");
    }
}

/// An envelope was published again, because its deliveries were used up although its attempts were not.
pub struct EnvelopePublishedAgain<'a> {
    pub subscription: &'a str,
    pub envelope: &'a str,
    pub attempts: u32,
    /// Deliveries without an attempt.
    pub untried: u32,
}

impl EnvelopePublishedAgain<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.counters.published_again.inc();
        let Self { subscription, envelope, attempts, untried } = self;
        let domain = &*metrics.domain;
        tracing::info!(
            domain,
            subscription,
            envelope,
            attempts,
            untried,
            "envelope published again, deliveries without an attempt are not counted"
        );
    }
}

/// An envelope could not be published again, so it waits.
pub struct EnvelopeNotPublishedAgain<'a> {
    pub error: Cause<'a>,
    pub envelope: &'a str,
    pub retry_in: Duration,
}

impl EnvelopeNotPublishedAgain<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, envelope, retry_in } = self;
        let domain = &*metrics.domain;
        tracing::warn!(%error, domain, envelope, retry_in = %rounded(retry_in), "envelope not published again, will retry");
    }
}

/// The last attempt could not be stored for `hub dlt show` and the router.
pub struct LastAttemptNotStored<'a> {
    pub error: Cause<'a>,
    pub envelope: &'a str,
}

impl LastAttemptNotStored<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, envelope } = self;
        let domain = &*metrics.domain;
        tracing::warn!(%error, domain, envelope, "last attempt not stored in the delivery log");
    }
}

/// A redriven envelope was delivered, and its dead letter is removed.
pub struct DeadLetterResolved<'a> {
    pub envelope: &'a str,
}

impl DeadLetterResolved<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.counters.resolved.inc();
        let domain = &*metrics.domain;
        tracing::info!(domain, envelope = self.envelope, "dead letter delivered and removed");
    }
}

/// A redriven envelope was delivered, and its dead letter could not be removed.
pub struct DeadLetterNotRemoved<'a> {
    pub error: Cause<'a>,
    pub envelope: &'a str,
    pub retry_in: Duration,
}

impl DeadLetterNotRemoved<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, envelope, retry_in } = self;
        let domain = &*metrics.domain;
        tracing::warn!(%error, domain, envelope, retry_in = %rounded(retry_in), "delivered dead letter not removed, will retry");
    }
}

/// Whether the dead letter of a redriven envelope still exists could not be found out.
pub struct DeadLetterNotChecked<'a> {
    pub error: Cause<'a>,
    pub sequence: u64,
}

impl DeadLetterNotChecked<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, sequence } = self;
        let domain = &*metrics.domain;
        tracing::warn!(%error, domain, sequence, "dead letter of a redriven envelope not checked, delivering");
    }
}

/// A redriven envelope was dropped untried: its dead letter was delivered, discarded or replaced.
pub struct RedrivenEnvelopeDropped<'a> {
    pub subscription: &'a str,
    pub envelope: &'a str,
}

impl RedrivenEnvelopeDropped<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { subscription, envelope } = self;
        let domain = &*metrics.domain;
        tracing::info!(
            domain,
            subscription,
            envelope,
            "redriven envelope dropped, its dead letter is resolved"
        );
    }
}

/// The subscription of an envelope could not be looked up; this uses up no attempt.
pub struct LookUpFailed<'a> {
    pub error: Cause<'a>,
    pub subscription: &'a SubscriptionRef,
    pub retry_in: Duration,
}

impl LookUpFailed<'_> {
    pub fn emit(self) {
        let Self { error, subscription, retry_in } = self;
        tracing::warn!(%error, %subscription, retry_in = %rounded(retry_in), "subscription look-up failed, will retry");
    }
}

/// A subscription was disabled because of its endpoint's answer.
pub struct SubscriptionDisabled<'a> {
    pub subscription: &'a SubscriptionRef,
    pub reason: &'a str,
}

impl SubscriptionDisabled<'_> {
    pub fn emit(self) {
        let Self { subscription, reason } = self;
        tracing::warn!(
            %subscription,
            reason,
            remedy = "correct the endpoint, then `hub subscription resume`",
            "subscription disabled"
        );
    }
}

/// A subscription changed while it was to be disabled, so that it is not.
pub struct DisablingSuperseded<'a> {
    pub subscription: &'a SubscriptionRef,
}

impl DisablingSuperseded<'_> {
    pub fn emit(self) {
        tracing::debug!(subscription = %self.subscription, "subscription changed meanwhile, not disabled");
    }
}

/// A subscription could not be written as disabled.
pub struct DisablingFailed<'a> {
    pub error: Cause<'a>,
    pub subscription: &'a SubscriptionRef,
}

impl DisablingFailed<'_> {
    pub fn emit(self) {
        let Self { error, subscription } = self;
        tracing::warn!(%error, %subscription, "subscription not disabled, will retry after its next answer");
    }
}

/// A subscription that another service resolves cannot be disabled here.
pub struct DisablingElsewhere<'a> {
    pub subscription: &'a SubscriptionRef,
    pub reason: &'a str,
}

impl DisablingElsewhere<'_> {
    pub fn emit(self) {
        let Self { subscription, reason } = self;
        tracing::warn!(
            %subscription,
            reason,
            remedy = "disable it in the subscription resolver",
            "subscription not disabled, it is resolved elsewhere"
        );
    }
}
