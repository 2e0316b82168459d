//! One attempt to deliver an envelope, and what became of it.

use std::time::Duration;

use super::Cause;
use super::dead_letters::DeadLettered;
use super::limited::{About, limited};
use super::metrics::{DeliveryPath, DomainMetrics, FailureLabel, LetterBy, Redrive};
use crate::domain::dead_letter::DeadLetter;
use crate::domain::outcome::Fault;
use crate::domain::subscription::SubscriptionRef;
use crate::domain::words::rounded;

/// An attempt was made.
pub struct AttemptMade<'a> {
    pub tenant: &'a str,
    pub subscription: &'a str,
    pub latency: Duration,
    /// Of a failed one: whose fault it is, and its kind.
    pub failure: Option<(Fault, &'static str)>,
    /// Of the answer, if there is one.
    pub status: Option<u16>,
}

impl AttemptMade<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { tenant, subscription, latency, failure, status } = self;
        metrics.counters.delivery_seconds.observe(latency.as_secs_f64());
        metrics.attempts.of(failure.map(|(fault, _)| fault), status).inc();
        if let Some((fault, kind)) = failure {
            let label = FailureLabel { domain: metrics.domain.to_string(), fault: fault.as_str(), kind };
            metrics.all.families().failures.get_or_create(&label).inc();
            metrics.failed_attempt(tenant, subscription);
        }
    }
}

/// An envelope was delivered.
pub struct EnvelopeDelivered {
    /// How it came to this delivery.
    pub path: DeliveryPath,
    /// Since the publication of its event, if that is known.
    pub latency: Option<Duration>,
}

impl EnvelopeDelivered {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { path, latency } = self;
        metrics.delivered.inc();
        if let Some(latency) = latency {
            metrics.latencies.of(path).observe(latency);
        }
    }
}

/// An attempt failed and another one follows.
pub struct DeliveryFailed<'a> {
    pub tenant: &'a str,
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
        let Self { tenant, subscription, envelope, attempt, status, error, fault, retry_in } = self;
        metrics.retried.inc();
        tracing::debug!(
            domain = &*metrics.domain,
            tenant,
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
    pub tenant: &'a str,
    pub subscription: &'a str,
    pub envelope: &'a str,
    pub attempt: u32,
    pub status: Option<u16>,
    pub error: &'a str,
}

impl DeliveryExhausted<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { tenant, subscription, envelope, attempt, status, error } = self;
        metrics.exhausted.inc();
        let domain = &*metrics.domain;
        tracing::debug!(
            domain,
            tenant,
            subscription,
            envelope,
            attempt,
            status,
            error,
            "last delivery failed"
        );
    }
}

/// The worker dead-lettered an envelope.
pub struct DeliveryDeadLettered<'a> {
    pub letter: &'a DeadLetter,
    /// The envelope was a redrive or replay.
    pub is_redriven: bool,
}

impl DeliveryDeadLettered<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.dead_lettered.inc();
        let Self { letter, is_redriven } = self;
        DeadLettered { letter, by: LetterBy::Worker, is_redriven }.emit(&metrics.all);
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
        limited!(
            ERROR "dead letter not written, will retry", About::domain(domain).cause(error);
            %error, domain, envelope, retry_in = %rounded(retry_in)
        );
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
        limited!(
            WARN "delivery log not read, deliveries of a former process count as not attempted",
            About::domain(domain).cause(error);
            %error, domain
        );
    }
}

/// An envelope was published again, because its deliveries were used up although its attempts were not.
pub struct EnvelopePublishedAgain<'a> {
    pub tenant: &'a str,
    pub subscription: &'a str,
    pub envelope: &'a str,
    pub attempts: u32,
    /// Deliveries without an attempt.
    pub untried: u32,
}

impl EnvelopePublishedAgain<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.counters.published_again.inc();
        let Self { tenant, subscription, envelope, attempts, untried } = self;
        let domain = &*metrics.domain;
        limited!(
            INFO "envelope published again, deliveries without an attempt are not counted",
            // An outage concerns all subscriptions of a domain at once.
            About::domain(domain);
            domain, tenant, subscription, envelope, attempts, untried
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
        limited!(
            WARN "envelope not published again, will retry", About::domain(domain).cause(error);
            %error, domain, envelope, retry_in = %rounded(retry_in)
        );
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
        limited!(
            WARN "last attempt not stored in the delivery log", About::domain(domain).cause(error);
            %error, domain, envelope
        );
    }
}

/// A redriven envelope was delivered, and its dead letter is removed.
pub struct DeadLetterResolved<'a> {
    pub envelope: &'a str,
}

impl DeadLetterResolved<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.counters.resolved.inc();
        metrics.all.redrive(&metrics.domain, Redrive::Resolved).inc();
        let domain = &*metrics.domain;
        limited!(
            INFO "dead letter delivered and removed", About::domain(domain);
            domain, envelope = self.envelope
        );
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
        limited!(
            WARN "delivered dead letter not removed, will retry", About::domain(domain).cause(error);
            %error, domain, envelope, retry_in = %rounded(retry_in)
        );
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
        limited!(
            WARN "dead letter of a redriven envelope not checked, delivering",
            About::domain(domain).cause(error);
            %error, domain, sequence
        );
    }
}

/// A redriven envelope was dropped untried: its dead letter was delivered, discarded or replaced.
pub struct RedrivenEnvelopeDropped<'a> {
    pub tenant: &'a str,
    pub subscription: &'a str,
    pub envelope: &'a str,
}

impl RedrivenEnvelopeDropped<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { tenant, subscription, envelope } = self;
        let domain = &*metrics.domain;
        metrics.all.redrive(domain, Redrive::Dropped).inc();
        limited!(
            INFO "redriven envelope dropped, its dead letter is resolved",
            About::domain(domain).of_parts(tenant, subscription);
            domain, tenant, subscription, envelope
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
        limited!(
            WARN "subscription look-up failed, will retry", About::default().of(subscription).cause(error);
            %error, tenant = subscription.tenant(), subscription = subscription.id(),
            retry_in = %rounded(retry_in)
        );
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
        let (tenant, subscription) = (subscription.tenant(), subscription.id());
        limited!(
            WARN "subscription disabled", About::default().of_parts(tenant, subscription);
            tenant, subscription, reason, remedy = "correct the endpoint, then `hub subscription resume`"
        );
    }
}

/// A subscription changed while it was to be disabled, so that it is not.
pub struct DisablingSuperseded<'a> {
    pub subscription: &'a SubscriptionRef,
}

impl DisablingSuperseded<'_> {
    pub fn emit(self) {
        let Self { subscription } = self;
        tracing::debug!(
            tenant = subscription.tenant(),
            subscription = subscription.id(),
            "subscription changed meanwhile, not disabled"
        );
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
        limited!(
            WARN "subscription not disabled, will retry after its next answer",
            About::default().of(subscription).cause(error);
            %error, tenant = subscription.tenant(), subscription = subscription.id()
        );
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
        limited!(
            WARN "subscription not disabled, it is resolved elsewhere", About::default().of(subscription);
            tenant = subscription.tenant(), subscription = subscription.id(), reason,
            remedy = "disable it in the subscription resolver"
        );
    }
}
