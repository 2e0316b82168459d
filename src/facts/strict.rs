//! Strict orders.

use std::time::Duration;

use super::Cause;
use super::limited::{About, limited};
use super::metrics::DomainMetrics;
use crate::domain::words::rounded;

/// Events with a strict order cannot be committed at the moment.
pub struct OrderedEventsWait<'a> {
    pub error: Cause<'a>,
    pub retry_in: Duration,
}

impl OrderedEventsWait<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, retry_in } = self;
        let domain = &*metrics.domain;
        limited!(
            WARN "events in strict order wait", About::domain(domain).cause(error);
            %error, domain, retry_in = %rounded(retry_in)
        );
    }
}

/// An event delays later ones and is not processed by the process that has it, so this one does that.
pub struct EventTakenOver {
    pub sequence: u64,
}

impl EventTakenOver {
    pub fn emit(self) {
        let Self { sequence } = self;
        limited!(
            WARN "event that another process has delays events in strict order, processing it here", About::default();
            sequence
        );
    }
}

/// The notices between the processes that fan out events do not work: strict orders take longer.
pub struct OrderNoticeNotSent<'a> {
    pub error: Cause<'a>,
}

impl OrderNoticeNotSent<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "notice of the order of events not sent");
    }
}

/// The consumer of a strict lane could not be created. The outbox keeps the envelopes of the lane.
pub struct StrictLaneNotCreated<'a> {
    pub error: Cause<'a>,
    pub lane: &'a str,
    /// What an operator can do.
    pub remedy: &'static str,
    pub retry_in: Duration,
}

impl StrictLaneNotCreated<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, lane, remedy, retry_in } = self;
        let domain = &*metrics.domain;
        limited!(
            WARN "consumer of a strict lane not created, its envelopes wait",
            About::domain(domain).cause(error);
            %error, domain, lane, remedy, retry_in = %rounded(retry_in)
        );
    }
}

/// Strict lanes that cannot be created soon, because too many are missing, of one tenant or in all.
pub struct StrictLanesRefused {
    pub count: usize,
}

impl StrictLanesRefused {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { count } = self;
        metrics.counters.strict_lanes_refused.inc_by(count as u64);
        let domain = &*metrics.domain;
        limited!(
            WARN "too many strict lanes without a consumer, the sweep creates the rest", About::domain(domain);
            domain, count
        );
    }
}

/// A dead letter stops a strict order.
pub struct OrderStopped<'a> {
    pub tenant: &'a str,
    pub subscription: &'a str,
    pub lane: &'a str,
    pub envelope: &'a str,
}

impl OrderStopped<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { tenant, subscription, lane, envelope } = self;
        let domain = &*metrics.domain;
        limited!(
            WARN "order stopped, replay or discard the dead letter to continue",
            About::domain(domain).of_parts(tenant, subscription).with(lane);
            domain, tenant, subscription, lane, envelope
        );
    }
}

/// Whether a dead letter stops a strict order could not be read, so the order waits.
pub struct OrderNotChecked<'a> {
    pub error: Cause<'a>,
    pub envelope: &'a str,
    pub retry_in: Duration,
}

impl OrderNotChecked<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, envelope, retry_in } = self;
        let domain = &*metrics.domain;
        limited!(
            WARN "dead letter of a strict order not checked", About::domain(domain).cause(error);
            %error, domain, envelope, retry_in = %rounded(retry_in)
        );
    }
}
