//! The worker of a domain: its queues, lanes, holds, delivery log and connections to external brokers.

use std::time::Duration;

use super::Cause;
use super::limited::{About, limited};
use super::metrics::DomainMetrics;
use crate::domain::words::rounded;

/// An envelope was moved to its subscription's own lane.
pub struct EnvelopeSpilled;

impl EnvelopeSpilled {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.counters.spilled.inc();
    }
}

/// The broker delivered an envelope again that this process had settled, or another one had delivered; it was settled again,
/// and not sent.
pub struct RedeliverySettled;

impl RedeliverySettled {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.counters.redeliveries_settled.inc();
    }
}

/// An envelope could not be moved to its subscription's own lane.
pub struct EnvelopeNotSpilled<'a> {
    pub error: Cause<'a>,
    pub lane: &'a str,
    pub retry_in: Duration,
}

impl EnvelopeNotSpilled<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, lane, retry_in } = self;
        let domain = &*metrics.domain;
        limited!(
            WARN "envelope not moved to its own lane, will retry",
            About::domain(domain).with(lane).cause(error);
            %error, domain, lane, retry_in = %rounded(retry_in)
        );
    }
}

/// The consumer of an own lane, which envelopes were moved to, could not be created.
pub struct OwnLaneNotCreated<'a> {
    pub error: Cause<'a>,
    pub lane: &'a str,
}

impl OwnLaneNotCreated<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, lane } = self;
        let domain = &*metrics.domain;
        limited!(
            WARN "own lane of a subscription not created, the sweep looks after its envelopes",
            About::domain(domain).cause(error);
            %error, domain, lane
        );
    }
}

/// Another process that delivers was heard, or one is gone.
pub struct LimitsShared {
    /// This one included.
    pub processes: usize,
}

impl LimitsShared {
    pub fn emit(self) {
        tracing::info!(processes = self.processes, "limits of subscriptions divided among processes");
    }
}

/// The process does not hear its own notices.
pub struct LimitsNotShared<'a> {
    pub subject: &'a str,
}

impl LimitsNotShared<'_> {
    pub fn emit(self) {
        tracing::warn!(
            subject = self.subject,
            "own notices not received, limits of subscriptions apply to each process; allow the NATS user to publish and \
             subscribe to the subject"
        );
    }
}

/// A notice to other processes could not be sent.
pub struct MemberNoticeNotSent<'a> {
    pub error: Cause<'a>,
}

impl MemberNoticeNotSent<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "notice to other processes not sent, will retry");
    }
}

/// The other processes were not notified of the envelopes that this one delivered.
pub struct SettledNoticeNotSent<'a> {
    pub error: Cause<'a>,
}

impl SettledNoticeNotSent<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "notice of delivered envelopes not sent");
    }
}

/// A worker stops.
pub struct WorkerStopping {
    pub in_flight: usize,
    pub handed_back: usize,
}

impl WorkerStopping {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { in_flight, handed_back } = self;
        let domain = &*metrics.domain;
        tracing::info!(domain, in_flight, handed_back, "stopping, finishing deliveries in flight");
    }
}

/// A delivery was cancelled at the end of the grace period; its envelope is delivered again.
pub struct DeliveryCut {
    pub sequence: u64,
}

impl DeliveryCut {
    pub fn emit(self, metrics: &DomainMetrics) {
        let domain = &*metrics.domain;
        limited!(
            WARN "delivery exceeded the grace period, handed back", About::domain(domain);
            domain, sequence = self.sequence
        );
    }
}

/// Untried envelopes could not be handed back at a stop.
pub struct EnvelopesNotHandedBack<'a> {
    pub error: Cause<'a>,
    pub count: usize,
}

impl EnvelopesNotHandedBack<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { error, count } = self;
        let domain = &*metrics.domain;
        tracing::warn!(%error, domain, count, "envelopes not handed back, redelivered after ack_wait, or dead-lettered if it was their last delivery");
    }
}

/// The last acknowledgements before a stop were not flushed.
pub struct AcknowledgementsNotFlushed<'a> {
    pub error: Cause<'a>,
}

impl AcknowledgementsNotFlushed<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "last acknowledgements not flushed, their messages are delivered again");
    }
}

/// The lanes of a domain could not be listed.
pub struct LanesNotListed<'a> {
    pub error: Cause<'a>,
    pub stream: &'a str,
}

impl LanesNotListed<'_> {
    pub fn emit(self) {
        let Self { error, stream } = self;
        tracing::debug!(%error, stream, "lanes not listed, will retry");
    }
}

/// A subscription's own lane is read from now on.
pub struct OwnLaneOpened<'a> {
    pub stream: &'a str,
    pub lane: &'a str,
}

impl OwnLaneOpened<'_> {
    pub fn emit(self) {
        let Self { stream, lane } = self;
        limited!(INFO "reading a subscription's own lane", About::detail(stream); stream, lane);
    }
}

/// An own lane was empty for long, and its consumer is removed.
pub struct OwnLaneRemoved<'a> {
    pub stream: &'a str,
    pub lane: &'a str,
}

impl OwnLaneRemoved<'_> {
    pub fn emit(self) {
        let Self { stream, lane } = self;
        limited!(INFO "own lane empty, removed", About::detail(stream); stream, lane);
    }
}

/// The reader of an own lane failed or panicked; another one replaces it.
pub struct LaneReaderFailed<'a> {
    pub error: Cause<'a>,
}

impl LaneReaderFailed<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(WARN "lane reader failed, will restart", About::default().cause(error); %error);
    }
}

/// Records of attempts were stored in the delivery log.
pub struct AttemptsLogged {
    pub count: u64,
}

impl AttemptsLogged {
    pub fn emit(self, metrics: &DomainMetrics) {
        metrics.counters.attempts_logged.inc_by(self.count);
    }
}

/// Records of attempts were left out of the delivery log, because more are made than it stores; deliveries go on.
pub struct AttemptsLeftOut {
    pub count: u64,
    /// None was left out for this reason before, since the log last kept up.
    pub is_new: bool,
}

impl AttemptsLeftOut {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { count, is_new } = self;
        metrics.counters.attempts_unlogged.inc_by(count);
        if is_new {
            let domain = &*metrics.domain;
            tracing::warn!(
                domain,
                metric = "hub_attempts_unlogged_total",
                "delivery log overloaded, attempts left out"
            );
        }
    }
}

/// Records of attempts were lost, because they could not be written or the server did not store them; deliveries go on.
pub struct AttemptsNotStored<'a> {
    pub count: u64,
    pub error: Cause<'a>,
    /// None was lost for such a reason before, since the log was last complete.
    pub is_new: bool,
}

impl AttemptsNotStored<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { count, error, is_new } = self;
        metrics.counters.attempts_unlogged.inc_by(count);
        if is_new {
            let domain = &*metrics.domain;
            limited!(
                WARN "delivery log not stored, attempts left out", About::domain(domain).cause(error);
                domain, %error, metric = "hub_attempts_unlogged_total"
            );
        }
    }
}

/// The delivery log keeps up again.
pub struct DeliveryLogRecovered;

impl DeliveryLogRecovered {
    pub fn emit(self, metrics: &DomainMetrics) {
        let domain = &*metrics.domain;
        tracing::info!(domain, "delivery log complete again");
    }
}

/// An external broker did not answer a check of its connection.
pub struct BrokerCheckFailed<'a> {
    pub error: Cause<'a>,
    pub broker: &'a str,
}

impl BrokerCheckFailed<'_> {
    pub fn emit(self) {
        let Self { error, broker } = self;
        tracing::debug!(%error, broker, "external broker check failed");
    }
}

/// Connections to external brokers did not close in time at a stop, and were dropped.
pub struct BrokersNotClosed;

impl BrokersNotClosed {
    pub fn emit(self) {
        tracing::debug!("connections to external brokers not closed in time, dropped");
    }
}
