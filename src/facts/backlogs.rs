//! The backlogs of subscriptions: their lanes, quotas and ages.

use std::time::Duration;

use super::Cause;
use super::limited::{About, limited};
use super::metrics::{DomainMetrics, Metrics, Redrive};
use crate::domain::subscription::SubscriptionRef;
use crate::domain::words::rounded;

/// Envelopes were committed to the own lanes of their subscriptions.
pub struct EnvelopesCommittedToOwnLanes {
    pub count: usize,
}

impl EnvelopesCommittedToOwnLanes {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.counters.own_lane_envelopes.inc_by(self.count as u64);
    }
}

/// The backlogs of a domain could not be read.
pub struct BacklogsNotRead<'a> {
    pub error: Cause<'a>,
    pub retry_in: Duration,
}

impl BacklogsNotRead<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, retry_in } = self;
        let domain = &*metrics.domain;
        tracing::debug!(%error, domain, retry_in = %rounded(retry_in), "backlogs not read, will retry");
    }
}

/// A backlog has reached 80% of its limit.
pub struct BacklogNearLimit<'a> {
    pub subscription: &'a SubscriptionRef,
    pub percent: u64,
    pub messages: u64,
}

impl BacklogNearLimit<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { subscription, percent, messages } = self;
        let domain = &*metrics.domain;
        limited!(
            WARN "backlog near its limit, further envelopes will be dead-lettered",
            About::domain(domain).of(subscription);
            domain, tenant = subscription.tenant(), subscription = subscription.id(), percent, messages
        );
    }
}

/// A dead letter is not redriven, because the backlog of its subscription is still full.
pub struct RedrivePostponed<'a> {
    pub domain: &'a str,
    pub tenant: &'a str,
    pub subscription: &'a str,
    pub envelope: &'a str,
    pub reason: &'a str,
}

impl RedrivePostponed<'_> {
    pub fn emit(self, metrics: &Metrics) {
        let Self { domain, tenant, subscription, envelope, reason } = self;
        metrics.redrive(domain, Redrive::Postponed).inc();
        limited!(
            INFO "backlog still full, redrive postponed",
            About::domain(domain).of_parts(tenant, subscription);
            domain, tenant, subscription, envelope, reason
        );
    }
}

/// The clock of the server could not be read.
pub struct ServerTimeNotRead<'a> {
    pub error: Cause<'a>,
}

impl ServerTimeNotRead<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "server time not read, will retry");
    }
}
