//! Circuit breakers: when the circuit of a subscription opens, what an attempt shows about its endpoint, and how long
//! each pause is.
//!
//! A circuit is *closed* until an endpoint keeps failing. It is then *open*: nothing is sent, and all envelopes wait in
//! the subscription's own lane, which the broker pauses. When the pause ends, the circuit is *half-open*: one envelope is
//! sent as a probe. If the endpoint answers, the circuit closes; otherwise it opens again, for twice as long.
//!
//! Open and half-open circuits are stored at the broker. This is what one process knows about those of one domain.

use std::collections::HashMap;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::outcome::{Failure, Fault, Outcome, is_permanent};
use super::status::Statuses;
use super::subscription::Identity;

/// Failures of a single envelope never open a circuit: the envelope itself may be the cause.
const LEAST_ENVELOPES: usize = 2;
/// Most subscriptions whose failures are counted; the oldest runs of failures are forgotten first.
const MOST_RUNS: usize = 10_000;
/// A pause is lengthened or shortened by at most this fraction, so that not all probes come at once.
const JITTER: f64 = 0.1;

/// When a circuit opens, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CircuitPolicy {
    pub enabled: bool,
    /// Failed attempts in a row, over at least two envelopes.
    pub failures: u32,
    /// The time from the first of these failures to the last.
    pub failing_for: Duration,
    /// The first pause; each further one is twice as long.
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

impl CircuitPolicy {
    /// The pause after one of length `last`, or the first. `jitter` is random, in `[0, 1)`.
    pub fn next_pause(&self, last: Option<Duration>, jitter: f64) -> Duration {
        let pause = match last {
            // The last pause is stored at the broker, where anybody may have changed it.
            Some(last) => last.saturating_mul(2).max(self.first_pause).min(self.longest_pause),
            None => self.first_pause,
        };
        let factor = 1.0 - JITTER + 2.0 * JITTER * jitter.clamp(0.0, 1.0);
        Duration::try_from_secs_f64(pause.as_secs_f64() * factor).unwrap_or(pause)
    }
}

/// What an attempt shows about its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It works: it answered, with whatever status means that it read the envelope or asks for patience.
    Works,
    /// It is down, unreachable or broken.
    Fails,
    /// The attempt shows nothing.
    None,
}

/// What an attempt shows about its endpoint.
///
/// | outcome | sign |
/// |---|---|
/// | 2xx; acknowledged by the broker | works |
/// | 1xx, 3xx, 4xx; a 5xx that is permanent for the envelope | works |
/// | 429, or a `Retry-After` with any status: the subscription is held instead | works |
/// | any other 5xx | fails |
/// | timeout, DNS, connect, TLS, broken connection, malformed answer, token endpoint | fails |
/// | broker unavailable, or rejects for now | fails |
/// | address not allowed, unpublishable; faults of the hub | none |
pub fn sign(outcome: &Outcome, statuses: &Statuses) -> Sign {
    match outcome {
        Outcome::Acknowledged => Sign::Works,
        Outcome::Answered { retry_after: Some(asked), .. } if !asked.is_zero() => Sign::Works,
        Outcome::Answered { status: 500.., .. } if !is_permanent(outcome, statuses) => Sign::Fails,
        Outcome::Answered { .. } => Sign::Works,
        Outcome::Failed(Failure::AddressRefused | Failure::Unpublishable) => Sign::None,
        Outcome::Failed(failure) if failure.fault() == Fault::Hub => Sign::None,
        Outcome::Failed(_) => Sign::Fails,
    }
}

/// The circuits of one domain, as one process knows them. Times are durations since a fixed start.
#[derive(Debug)]
pub struct Circuits {
    policy: CircuitPolicy,
    /// Failures in a row, of closed circuits.
    runs: HashMap<Identity, Run, RandomState>,
    /// Open and half-open circuits, with the time of the last news.
    tripped: HashMap<Identity, Duration, RandomState>,
    /// Circuits that were closed lately: an answer of the broker that is older than this is outdated.
    closed: HashMap<Identity, Duration, RandomState>,
}

/// Failures in a row.
#[derive(Debug)]
struct Run {
    since: Duration,
    last: Duration,
    failures: u32,
    /// The envelopes that failed, up to [`LEAST_ENVELOPES`].
    envelopes: Vec<Box<str>>,
    /// The broker was asked to open the circuit, and has not answered yet.
    opening: bool,
}

/// A circuit whose state another process changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CircuitChange {
    /// It is open or half-open: its waiting envelopes move to the lane.
    Tripped(Identity),
    Closed(Identity),
}

impl Circuits {
    pub fn new(policy: CircuitPolicy) -> Self {
        Self { policy, runs: HashMap::default(), tripped: HashMap::default(), closed: HashMap::default() }
    }

    /// Whether the circuit is open or half-open, so that only a probe from the lane may be sent.
    pub fn is_tripped(&self, subscription: &Identity) -> bool {
        self.tripped.contains_key(subscription)
    }

    /// Number of open and half-open circuits.
    pub fn tripped(&self) -> usize {
        self.tripped.len()
    }

    /// An attempt worked.
    pub fn works(&mut self, subscription: &Identity) {
        self.runs.remove(subscription);
    }

    /// An attempt for an envelope failed. True if the broker is to open the circuit now; call [`Self::opened`] or
    /// [`Self::not_opened`] afterwards.
    #[must_use]
    pub fn fails(&mut self, subscription: &Identity, envelope: &str, now: Duration) -> bool {
        if !self.policy.enabled || self.is_tripped(subscription) {
            return false;
        }
        if !self.runs.contains_key(subscription) {
            self.make_room();
            let run = Run { since: now, last: now, failures: 0, envelopes: Vec::new(), opening: false };
            self.runs.insert(subscription.clone(), run);
        }
        let Some(run) = self.runs.get_mut(subscription) else { return false };
        run.failures = run.failures.saturating_add(1);
        run.last = now;
        if run.envelopes.len() < LEAST_ENVELOPES && !run.envelopes.iter().any(|known| **known == *envelope) {
            run.envelopes.push(envelope.into());
        }
        let opens = !run.opening
            && run.failures >= self.policy.failures
            && run.envelopes.len() >= LEAST_ENVELOPES
            && now.saturating_sub(run.since) >= self.policy.failing_for;
        run.opening |= opens;
        opens
    }

    /// The broker has opened the circuit.
    pub fn opened(&mut self, subscription: &Identity, now: Duration) {
        self.runs.remove(subscription);
        self.closed.remove(subscription);
        self.tripped.insert(subscription.clone(), now);
    }

    /// The broker has not opened the circuit; the next failure tries again.
    pub fn not_opened(&mut self, subscription: &Identity) {
        if let Some(run) = self.runs.get_mut(subscription) {
            run.opening = false;
        }
    }

    /// The circuit is closed at the broker.
    pub fn closed(&mut self, subscription: &Identity, now: Duration) {
        self.runs.remove(subscription);
        if self.tripped.remove(subscription).is_some() {
            self.closed.insert(subscription.clone(), now);
        }
    }

    /// Takes over the open and half-open circuits that the broker has; all of them, if the list is `complete`. `asked` is
    /// when the question was sent: what became known since then is newer.
    pub fn listed(
        &mut self,
        found: &[Identity],
        complete: bool,
        asked: Duration,
        now: Duration,
    ) -> Vec<CircuitChange> {
        let mut changes = Vec::new();
        for subscription in found {
            let outdated = self.closed.get(subscription).is_some_and(|closed| *closed >= asked);
            if !outdated && !self.is_tripped(subscription) {
                self.opened(subscription, now);
                changes.push(CircuitChange::Tripped(subscription.clone()));
            }
        }
        let mut gone: Vec<Identity> = self
            .tripped
            .iter()
            .filter(|(subscription, since)| complete && **since < asked && !found.contains(subscription))
            .map(|(subscription, _)| subscription.clone())
            .collect();
        gone.sort_unstable();
        for subscription in gone {
            self.closed(&subscription, now);
            changes.push(CircuitChange::Closed(subscription));
        }
        self.closed.retain(|_, closed| *closed >= asked);
        changes
    }

    /// Keeps the number of runs bounded.
    fn make_room(&mut self) {
        if self.runs.len() < MOST_RUNS {
            return;
        }
        let mut ends: Vec<Duration> = self.runs.values().map(|run| run.last).collect();
        let middle = ends.len() / 2;
        let (_, median, _) = ends.select_nth_unstable(middle);
        let median = *median;
        self.runs.retain(|_, run| run.opening || run.last > median);
    }
}

#[cfg(test)]
mod tests;
