//! Dead letters that cannot be stored. What endpoints and operators do decides how often that changes.

use std::time::Duration;

use super::limited::{About, limited};
use super::metrics::DomainMetrics;
use crate::domain::dead_letter_room::DeadLetterRefusal;
use crate::domain::words::rounded;

/// The dead letters of a domain are refused.
pub struct DeadLettersBlocked<'a> {
    /// The last one.
    pub error: &'a str,
    pub refusal: DeadLetterRefusal,
    pub stream: &'a str,
}

impl DeadLettersBlocked<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, refusal, stream } = self;
        let domain = &*metrics.domain;
        let remedy = refusal.remedy();
        metrics.counters.dlt_blocked.set(1);
        limited!(
            WARN "dead letters cannot be stored, their envelopes stay in the outbox", About::domain(domain);
            domain, stream, error, remedy
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
        limited!(
            INFO "dead letters are stored again", About::domain(domain);
            domain, stream, after = %rounded(after)
        );
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
        limited!(
            WARN "dead-letter stream and outbox full, events with envelopes over quota wait", About::domain(domain);
            domain, retry_in = %rounded(self.retry_in), remedy
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
        limited!(
            INFO "events with envelopes over quota no longer wait", About::domain(domain);
            domain, after = %rounded(self.after)
        );
    }
}
