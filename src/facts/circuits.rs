//! Changes of circuits. The process that makes a change logs and counts it.

use std::time::Duration;

use super::Cause;
use super::limited::{About, limited};
use super::metrics::{DomainMetrics, TransitionLabel};
use crate::domain::subscription::SubscriptionRef;
use crate::domain::words::rounded;

/// An endpoint keeps failing: its circuit is open.
pub struct CircuitOpened<'a> {
    pub subscription: &'a SubscriptionRef,
    pub error: &'a str,
    pub probe_in: Duration,
}

impl CircuitOpened<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { subscription, error, probe_in } = self;
        let domain = &*metrics.domain;
        count(metrics, "open");
        let (tenant, subscription) = (subscription.tenant(), subscription.id());
        limited!(
            WARN "endpoint keeps failing, circuit opened", About::domain(domain).of_parts(tenant, subscription);
            domain, tenant, subscription, error, probe_in = %rounded(probe_in)
        );
    }
}

/// The pause is over: an envelope is sent as a probe.
pub struct CircuitProbed<'a> {
    pub subscription: &'a SubscriptionRef,
}

impl CircuitProbed<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { subscription } = self;
        let domain = &*metrics.domain;
        count(metrics, "half-open");
        let (tenant, subscription) = (subscription.tenant(), subscription.id());
        limited!(
            INFO "circuit half-open, sending a probe", About::domain(domain).of_parts(tenant, subscription);
            domain, tenant, subscription
        );
    }
}

/// A probe failed: the circuit is open again.
pub struct CircuitOpenedAgain<'a> {
    pub subscription: &'a SubscriptionRef,
    pub error: &'a str,
    pub probe_in: Duration,
}

impl CircuitOpenedAgain<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { subscription, error, probe_in } = self;
        let domain = &*metrics.domain;
        count(metrics, "open");
        let (tenant, subscription) = (subscription.tenant(), subscription.id());
        limited!(
            INFO "probe failed, circuit open again", About::domain(domain).of_parts(tenant, subscription);
            domain, tenant, subscription, error, probe_in = %rounded(probe_in)
        );
    }
}

/// Why a circuit closed.
#[derive(Debug, Clone, Copy)]
pub enum CircuitClosedBecause {
    Answered,
    /// The subscription was removed, created again, paused or disabled.
    Subscription,
    Settings,
    /// No envelope came for minutes, so that there was none for a probe.
    Idle,
}

impl CircuitClosedBecause {
    fn text(self) -> &'static str {
        match self {
            Self::Answered => "the endpoint answered",
            Self::Subscription => "the subscription is not active any more",
            Self::Settings => "circuit.enabled is false",
            Self::Idle => "no envelope for a probe",
        }
    }
}

/// A circuit is closed: its lane is delivered as any other.
pub struct CircuitClosed<'a> {
    pub subscription: &'a SubscriptionRef,
    pub because: CircuitClosedBecause,
}

impl CircuitClosed<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { subscription, because } = self;
        let domain = &*metrics.domain;
        count(metrics, "closed");
        let (tenant, subscription) = (subscription.tenant(), subscription.id());
        limited!(
            INFO "circuit closed", About::domain(domain).of_parts(tenant, subscription);
            domain, tenant, subscription, reason = because.text()
        );
    }
}

/// The subscription was changed while its circuit was open: a probe follows at once.
pub struct CircuitPauseEnded<'a> {
    pub subscription: &'a SubscriptionRef,
}

impl CircuitPauseEnded<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { subscription } = self;
        let domain = &*metrics.domain;
        let (tenant, subscription) = (subscription.tenant(), subscription.id());
        limited!(
            INFO "subscription changed, pause of its circuit ended", About::domain(domain).of_parts(tenant, subscription);
            domain, tenant, subscription
        );
    }
}

/// The record of an open circuit was overwritten by an update of its durable, and is written again.
pub struct CircuitRecordRestored<'a> {
    pub subscription: &'a SubscriptionRef,
}

impl CircuitRecordRestored<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { subscription } = self;
        let domain = &*metrics.domain;
        let (tenant, subscription) = (subscription.tenant(), subscription.id());
        limited!(WARN "record of an open circuit was overwritten, wrote it again",
            About::domain(domain).of_parts(tenant, subscription); domain, tenant, subscription);
    }
}

/// The broker did not store a change of a circuit.
pub struct CircuitNotChanged<'a> {
    pub error: Cause<'a>,
    pub subscription: &'a SubscriptionRef,
}

impl CircuitNotChanged<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, subscription } = self;
        let domain = &*metrics.domain;
        limited!(
            WARN "circuit not changed, will retry", About::domain(domain).of(subscription).cause(error);
            %error, domain, tenant = subscription.tenant(), subscription = subscription.id()
        );
    }
}

/// A notice for other processes was not sent; they see the change when they list the lanes.
pub struct CircuitNoticeNotSent<'a> {
    pub error: Cause<'a>,
    pub subscription: &'a SubscriptionRef,
}

impl CircuitNoticeNotSent<'_> {
    pub fn emit(self) {
        let Self { error, subscription } = self;
        let (tenant, subscription) = (subscription.tenant(), subscription.id());
        tracing::debug!(%error, tenant, subscription, "circuit notice not sent");
    }
}

/// A message that is not a circuit notice was published to the subject of these.
pub struct CircuitNoticeIgnored<'a> {
    pub subject: &'a str,
}

impl CircuitNoticeIgnored<'_> {
    pub fn emit(self) {
        tracing::debug!(subject = self.subject, "invalid circuit notice ignored");
    }
}

fn count(metrics: &DomainMetrics, to: &'static str) {
    let label = TransitionLabel { domain: metrics.domain.to_string(), to };
    metrics.all.families().circuit_transitions.get_or_create(&label).inc();
}
