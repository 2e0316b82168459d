//! Dead letters: their routing, the sweep, timers and redrives.

use std::time::Duration;

use super::Cause;
use super::limited::{About, limited};
use super::metrics::{DomainMetrics, LetterBy, Metrics, ReasonLabel, Redrive, StrandedResult};
use crate::domain::dead_letter::DeadLetter;
use crate::domain::outcome::Reason;
use crate::domain::words::rounded;

/// A dead letter was written.
pub struct DeadLettered<'a> {
    pub letter: &'a DeadLetter,
    pub by: LetterBy,
    /// The envelope was a redrive or replay.
    pub is_redriven: bool,
}

impl DeadLettered<'_> {
    pub fn emit(self, metrics: &Metrics) {
        let DeadLetter {
            domain,
            tenant,
            subscription,
            id,
            event_key,
            reason,
            fault,
            attempts,
            last_error,
            state,
            ..
        } = self.letter;
        count(metrics, self.letter);
        if *reason == Reason::Exhausted {
            metrics.exhausted_routed(domain, self.by).inc();
        }
        if self.is_redriven {
            metrics.redrive(domain, Redrive::FailedAgain).inc();
        }
        limited!(
            WARN "dead-lettered", About::domain(domain).of_parts(tenant, subscription).with(reason.as_str());
            domain, tenant, subscription, envelope = id, event_key, %reason, %fault, attempts, last_error,
            %state
        );
    }
}

/// A dead letter that cannot be processed was stored again, parked.
pub struct DeadLetterSetAside<'a> {
    pub letter: &'a DeadLetter,
    /// Of the entry that it replaces.
    pub sequence: u64,
}

impl DeadLetterSetAside<'_> {
    pub fn emit(self, metrics: &Metrics) {
        let DeadLetter { domain, id, reason, last_error, .. } = self.letter;
        count(metrics, self.letter);
        let sequence = self.sequence;
        limited!(
            WARN "dead letter set aside", About::domain(domain).with(reason.as_str());
            domain, sequence, envelope = id, %reason, last_error
        );
    }
}

fn count(metrics: &Metrics, letter: &DeadLetter) {
    let label = ReasonLabel { domain: letter.domain.clone(), reason: letter.reason.as_str() };
    metrics.families().dead_lettered.get_or_create(&label).inc();
}

/// An advisory cannot be read; the sweep finds what it was about.
pub struct AdvisoryUnreadable<'a> {
    pub subject: &'a str,
}

impl AdvisoryUnreadable<'_> {
    pub fn emit(self) {
        limited!(WARN "unreadable advisory dropped", About::default(); subject = self.subject);
    }
}

/// An advisory names a stream that is not an outbox of a configured domain.
pub struct AdvisoryOfUnknownStream<'a> {
    pub stream: &'a str,
    pub sequence: u64,
}

impl AdvisoryOfUnknownStream<'_> {
    pub fn emit(self) {
        let Self { stream, sequence } = self;
        limited!(WARN "advisory of an unknown stream dropped", About::default(); stream, sequence);
    }
}

/// A worker terminated an envelope after it wrote the dead letter.
pub struct EnvelopeTerminated<'a> {
    pub stream: &'a str,
    pub sequence: u64,
    pub reason: Option<&'a str>,
}

impl EnvelopeTerminated<'_> {
    pub fn emit(self) {
        let Self { stream, sequence, reason } = self;
        tracing::debug!(stream, sequence, reason, "envelope terminated");
    }
}

/// An envelope that is to be dead-lettered is not in its outbox any more.
pub struct EnvelopeGone<'a> {
    pub stream: &'a str,
    pub sequence: u64,
}

impl EnvelopeGone<'_> {
    pub fn emit(self) {
        let Self { stream, sequence } = self;
        tracing::debug!(stream, sequence, "envelope not in its outbox any more");
    }
}

/// An exhausted redriven envelope was dropped: its dead letter was delivered, discarded or replaced.
pub struct ExhaustedRedriveDropped<'a> {
    pub domain: &'a str,
    pub stream: &'a str,
    pub sequence: u64,
}

impl ExhaustedRedriveDropped<'_> {
    pub fn emit(self, metrics: &Metrics) {
        let Self { domain, stream, sequence } = self;
        metrics.redrive(domain, Redrive::Dropped).inc();
        limited!(
            INFO "redriven envelope dropped, its dead letter is resolved", About::detail(stream);
            stream, sequence
        );
    }
}

/// An exhausted envelope could not be dead-lettered.
pub struct RoutingFailed<'a> {
    pub error: Cause<'a>,
    pub stream: &'a str,
    pub sequence: u64,
    pub retry_in: Duration,
}

impl RoutingFailed<'_> {
    pub fn emit(self) {
        let Self { error, stream, sequence, retry_in } = self;
        limited!(
            WARN "envelope not dead-lettered, will retry", About::detail(stream).cause(error);
            %error, stream, sequence, retry_in = %rounded(retry_in)
        );
    }
}

/// A pass of the sweep failed.
pub struct SweepFailed<'a> {
    pub error: Cause<'a>,
    pub domain: &'a str,
    pub retry_in: Duration,
}

impl SweepFailed<'_> {
    pub fn emit(self) {
        let Self { error, domain, retry_in } = self;
        limited!(
            WARN "sweep for stranded envelopes failed, will retry", About::domain(domain).cause(error);
            %error, domain, retry_in = %rounded(retry_in)
        );
    }
}

/// The sweep could not look through a lane.
pub struct LaneNotSwept<'a> {
    pub error: Cause<'a>,
    pub stream: &'a str,
    pub lane: &'a str,
    pub retry_in: Duration,
}

impl LaneNotSwept<'_> {
    pub fn emit(self) {
        let Self { error, stream, lane, retry_in } = self;
        limited!(
            WARN "lane not swept for stranded envelopes, will retry", About::detail(stream).cause(error);
            %error, stream, lane, retry_in = %rounded(retry_in)
        );
    }
}

/// The sweep dead-lettered an envelope, or published it again, that no consumer would have delivered.
pub struct StrandedEnvelopeFound<'a> {
    pub domain: &'a str,
    pub stream: &'a str,
    pub sequence: u64,
    pub result: StrandedResult,
}

impl StrandedEnvelopeFound<'_> {
    pub fn emit(self, metrics: &Metrics) {
        let Self { domain, stream, sequence, result } = self;
        metrics.stranded_found(domain, result).inc();
        limited!(WARN "stranded envelope found", About::detail(stream); stream, sequence);
    }
}

/// The sweep could not dead-letter a stranded envelope.
pub struct StrandedEnvelopeNotRouted<'a> {
    pub error: Cause<'a>,
    pub stream: &'a str,
    pub sequence: u64,
    pub retry_in: Duration,
}

impl StrandedEnvelopeNotRouted<'_> {
    pub fn emit(self) {
        let Self { error, stream, sequence, retry_in } = self;
        limited!(
            WARN "stranded envelope not dead-lettered, will retry", About::detail(stream).cause(error);
            %error, stream, sequence, retry_in = %rounded(retry_in)
        );
    }
}

/// The sweep found a lane with envelopes and without a consumer, and creates the consumer.
pub struct LaneWithoutConsumer<'a> {
    pub stream: &'a str,
    pub lane: &'a str,
}

impl LaneWithoutConsumer<'_> {
    pub fn emit(self) {
        let Self { stream, lane } = self;
        limited!(WARN "lane has envelopes but no consumer, creating it", About::detail(lane); stream, lane);
    }
}

/// An envelope that nobody will deliver again was delivered already.
pub struct DeliveredEnvelopeRemoved<'a> {
    pub stream: &'a str,
    pub sequence: u64,
}

impl DeliveredEnvelopeRemoved<'_> {
    pub fn emit(self, metrics: &DomainMetrics) {
        let Self { stream, sequence } = self;
        metrics.counters.delivered_removed.inc();
        limited!(
            INFO "removed a delivered envelope that was still in its outbox", About::detail(stream);
            stream, sequence
        );
    }
}

/// The consumer of a lane could not be created.
pub struct LaneNotCreated<'a> {
    pub error: Cause<'a>,
    pub stream: &'a str,
    pub lane: &'a str,
}

impl LaneNotCreated<'_> {
    pub fn emit(self) {
        let Self { error, stream, lane } = self;
        limited!(
            WARN "consumer of a lane not created", About::detail(stream).cause(error);
            %error, stream, lane
        );
    }
}

/// The sweep emptied a lane that no subscription owns, and that nobody reads.
pub struct UnreadLaneEmptied<'a> {
    pub stream: &'a str,
    pub lane: &'a str,
    /// Envelopes that moved to the shared lane.
    pub moved: usize,
    /// Other messages.
    pub dead_lettered: usize,
}

impl UnreadLaneEmptied<'_> {
    pub fn emit(self) {
        let Self { stream, lane, moved, dead_lettered } = self;
        limited!(
            WARN "emptied a lane that nobody reads", About::detail(stream);
            stream, lane, moved, dead_lettered
        );
    }
}

/// The sweep could not empty the lanes that nobody reads.
pub struct UnreadLanesNotEmptied<'a> {
    pub error: Cause<'a>,
    pub stream: &'a str,
}

impl UnreadLanesNotEmptied<'_> {
    pub fn emit(self) {
        let Self { error, stream } = self;
        limited!(
            WARN "lanes without a subscription not emptied, will retry", About::detail(stream).cause(error);
            %error, stream
        );
    }
}

/// A timer could not be set, or a redrive not carried out.
pub struct RedriveFailed<'a> {
    pub error: Cause<'a>,
    pub subject: &'a str,
    pub retry_in: Duration,
}

impl RedriveFailed<'_> {
    pub fn emit(self) {
        let Self { error, subject, retry_in } = self;
        limited!(
            WARN "dead letter not processed, will retry", About::default().cause(error);
            %error, subject, retry_in = %rounded(retry_in)
        );
    }
}

/// A message on the redrive stream names no dead letter of a configured domain.
pub struct RedriveUnreadable<'a> {
    pub subject: &'a str,
    pub sequence: u64,
}

impl RedriveUnreadable<'_> {
    pub fn emit(self) {
        let Self { subject, sequence } = self;
        limited!(WARN "unreadable redrive request dropped", About::default(); subject, sequence);
    }
}

/// A dead letter that is to be redriven does not exist any more.
pub struct RedriveOfResolved<'a> {
    pub domain: &'a str,
    pub sequence: u64,
}

impl RedriveOfResolved<'_> {
    pub fn emit(self) {
        let Self { domain, sequence } = self;
        tracing::debug!(domain, sequence, "dead letter to redrive is already resolved");
    }
}

/// A dead letter's envelope was sent back to its outbox.
pub struct Redriven<'a> {
    pub letter: &'a DeadLetter,
    pub domain: &'a str,
    pub redrives: u32,
    /// The schedule or the request that caused it.
    pub trigger: &'static str,
    /// By the schedule, not by an operator.
    pub is_scheduled: bool,
}

impl Redriven<'_> {
    pub fn emit(self, metrics: &Metrics) {
        let Self { letter, domain, redrives, trigger, is_scheduled } = self;
        metrics.redriven(domain).inc();
        metrics.redrive(domain, if is_scheduled { Redrive::Redriven } else { Redrive::Replayed }).inc();
        let DeadLetter { tenant, subscription, id, .. } = letter;
        limited!(
            INFO "redriven", About::domain(domain).of_parts(tenant, subscription);
            domain, tenant, subscription, envelope = id, redrives, trigger
        );
    }
}

/// The search for overdue dead letters failed.
pub struct OverdueSearchFailed<'a> {
    pub error: Cause<'a>,
    pub domain: &'a str,
    pub retry_in: Duration,
}

impl OverdueSearchFailed<'_> {
    pub fn emit(self) {
        let Self { error, domain, retry_in } = self;
        limited!(
            WARN "search for overdue dead letters failed, will retry", About::domain(domain).cause(error);
            %error, domain, retry_in = %rounded(retry_in)
        );
    }
}

/// The search for overdue dead letters panicked.
pub struct OverdueSearchPanicked<'a> {
    pub panic: &'a str,
    pub domain: &'a str,
    pub retry_in: Duration,
}

impl OverdueSearchPanicked<'_> {
    pub fn emit(self) {
        let Self { panic, domain, retry_in } = self;
        limited!(
            ERROR "search for overdue dead letters panicked, will retry", About::domain(domain);
            panic, domain, retry_in = %rounded(retry_in)
        );
    }
}

/// A scheduled dead letter was overdue without a timer, and its redrive is ordered.
pub struct OverdueDeadLetterFound<'a> {
    pub domain: &'a str,
    pub envelope: &'a str,
}

impl OverdueDeadLetterFound<'_> {
    pub fn emit(self) {
        let Self { domain, envelope } = self;
        limited!(
            WARN "overdue dead letter without a timer, redriving", About::domain(domain);
            domain, envelope
        );
    }
}
