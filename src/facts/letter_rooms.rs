//! Dead letters that cannot be stored.

use std::time::Duration;

use super::metrics::DomainMetrics;
use crate::domain::dead_letter_room::Refusal;
use crate::domain::words::rounded;

/// The dead letters of a domain are refused.
pub struct DeadLettersBlocked<'a> {
    /// The last one.
    pub error: &'a str,
    pub refusal: Refusal,
    pub stream: &'a str,
}

impl DeadLettersBlocked<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, refusal, stream } = self;
        let domain = &*metrics.domain;
        let remedy = refusal.remedy();
        metrics.counters.dlt_blocked.set(1);
        tracing::warn!(
            domain,
            stream,
            error,
            remedy,
            "dead letters cannot be stored, their envelopes stay in the outbox"
        );
    }
}

/// The dead letters of a domain are stored again.
pub struct DeadLettersUnblocked<'a> {
    pub stream: &'a str,
    pub after: Duration,
}

impl DeadLettersUnblocked<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { stream, after } = self;
        let domain = &*metrics.domain;
        metrics.counters.dlt_blocked.set(0);
        tracing::info!(domain, stream, after = %rounded(after), "dead letters are stored again");
    }
}

/// Envelopes over quota stay in the outbox, because their dead letters were not stored.
pub struct ExcessKept {
    pub count: u64,
}

impl ExcessKept {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.counters.beyond_quota.inc_by(self.count);
    }
}

/// Events wait: they have envelopes over quota, which neither the dead-letter stream nor the outbox can take.
pub struct ExcessWaits {
    pub retry_in: Duration,
}

impl ExcessWaits {
    pub fn emit(self, metrics: &DomainMetrics) {
        let domain = &*metrics.domain;
        let remedy = "repair the endpoints with the fullest backlogs, make room in the dead-letter stream, or raise \
                      limits.outbox";
        tracing::warn!(
            domain,
            retry_in = %rounded(self.retry_in),
            remedy,
            "dead-letter stream and outbox full, events with envelopes over quota wait"
        );
    }
}

/// No event waits because of its envelopes over quota any more.
pub struct ExcessWaitsNoLonger {
    pub after: Duration,
}

impl ExcessWaitsNoLonger {
    pub fn emit(self, metrics: &DomainMetrics) {
        let domain = &*metrics.domain;
        tracing::info!(domain, after = %rounded(self.after), "events with envelopes over quota no longer wait");
    }
}
