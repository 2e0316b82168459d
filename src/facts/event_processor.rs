//! From an event to its envelopes.

use super::Cause;
use super::limited::{About, limited};
use super::metrics::{DomainMetrics, Metrics, RejectedLabel};

/// An event was matched with the subscriptions of its domain.
pub struct EventMatched {
    /// Subscriptions that want it.
    pub subscriptions: usize,
}

impl EventMatched {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.counters.events.inc();
        metrics.counters.fan_out.observe(self.subscriptions as f64);
        if self.subscriptions == 0 {
            metrics.counters.unmatched.inc();
        }
    }
}

/// An event went back to its stream for a few seconds because its tenant has much work waiting.
pub struct EventPutAside;

impl EventPutAside {
    pub fn emit(self, metrics: &Metrics) {
        metrics.families().put_aside.inc();
    }
}

/// A publication was stored in the rejected stream.
pub struct EventRejected<'a> {
    pub subject: &'a str,
    pub sequence: u64,
    pub reason: &'static str,
    pub detail: &'a str,
}

impl EventRejected<'_> {
    pub fn emit(self, metrics: &Metrics) {
        let Self { subject, sequence, reason, detail } = self;
        metrics.families().rejected.get_or_create(&RejectedLabel { reason }).inc();
        limited!(WARN "event rejected", About::detail(reason); subject, sequence, reason, detail);
    }
}

/// A publication that is to be rejected could not be stored.
pub struct EventNotRejected<'a> {
    pub error: Cause<'a>,
    pub subject: &'a str,
    pub sequence: u64,
}

impl EventNotRejected<'_> {
    pub fn emit(self) {
        let Self { error, subject, sequence } = self;
        limited!(
            ERROR "rejected event not stored, will retry", About::default().cause(error);
            %error, subject, sequence
        );
    }
}

/// An event's envelopes are in the outbox.
pub struct EnvelopesCommitted {
    pub count: usize,
}

impl EnvelopesCommitted {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.counters.envelopes.inc_by(self.count as u64);
    }
}

/// The outbox stored only those envelopes of a batch that it did not have.
pub struct EventRepeated {
    pub envelopes: usize,
    pub added: usize,
}

impl EventRepeated {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { envelopes, added } = self;
        let domain = &*metrics.domain;
        limited!(
            INFO "event repeated, missing envelopes added", About::domain(domain);
            domain, envelopes, added
        );
    }
}

/// Envelopes that this process committed a short while ago were published once more.
pub struct EnvelopesRepeated {
    pub envelopes: usize,
    pub added: usize,
}

impl EnvelopesRepeated {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { envelopes, added } = self;
        let domain = &*metrics.domain;
        tracing::debug!(domain, envelopes, added, "envelopes repeated");
    }
}

/// A commit failed, and those before it did not.
pub struct OutboxBlocked<'a> {
    pub error: Cause<'a>,
    pub is_full: bool,
}

impl OutboxBlocked<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, is_full } = self;
        let domain = &*metrics.domain;
        if is_full {
            limited!(
                WARN "domain outbox full, its events wait", About::domain(domain).cause(error);
                domain, %error
            );
        } else {
            limited!(
                WARN "envelopes not committed, their events wait", About::domain(domain).cause(error);
                domain, %error
            );
        }
    }
}

/// The limits of an outbox could not be read from its stream.
pub struct OutboxLimitsNotRead<'a> {
    pub error: Cause<'a>,
    pub stream: &'a str,
}

impl OutboxLimitsNotRead<'_> {
    pub fn emit(self) {
        let Self { error, stream } = self;
        limited!(WARN "limits of the outbox not read", About::detail(stream).cause(error); %error, stream);
    }
}

/// A commit succeeded after others failed.
pub struct OutboxUnblocked;

impl OutboxUnblocked {
    pub fn emit(self, metrics: &DomainMetrics) {
        let domain = &*metrics.domain;
        tracing::info!(domain, "domain outbox accepts envelopes again");
    }
}
