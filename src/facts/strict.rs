//! Strict orders.

use std::time::Duration;

use super::Cause;
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
        tracing::warn!(%error, domain, retry_in = %rounded(retry_in), "events in strict order wait");
    }
}

/// A dead letter stops a strict order.
pub struct OrderStopped<'a> {
    pub subscription: &'a str,
    pub lane: &'a str,
    pub envelope: &'a str,
}

impl OrderStopped<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { subscription, lane, envelope } = self;
        let domain = &*metrics.domain;
        tracing::warn!(
            domain,
            subscription,
            lane,
            envelope,
            "order stopped, replay or discard the dead letter to continue"
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
        tracing::warn!(%error, domain, envelope, retry_in = %rounded(retry_in), "dead letter of a strict order not checked");
    }
}
