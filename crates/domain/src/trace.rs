//! The trace of an event, built from the messages about it that the streams still have.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::attempt_record::{AttemptRecord, ErrorKind, Settled};
use super::dead_letter::{DeadLetter, DeadLetterState};
use super::last_words::LastWords;
use super::outcome::{Fault, Reason};

#[cfg(test)]
mod tests;

/// The messages that were found about an event, unordered.
#[derive(Debug, Default)]
pub struct Findings {
    pub waiting: Vec<UnreadEvent>,
    pub rejected: Vec<Rejected>,
    /// Pending envelopes.
    pub pending: Vec<PendingEnvelope>,
    pub dead_letters: Vec<DeadLetter>,
    /// Records of the delivery log.
    pub records: Vec<Logged>,
    pub last_words: Vec<LastAttempt>,
}

/// The event is in the events stream, not processed yet.
#[derive(Debug)]
pub struct UnreadEvent {
    /// The time at which it was stored.
    pub at: OffsetDateTime,
    pub key: String,
    pub tenant: String,
}

/// The event was rejected.
#[derive(Debug)]
pub struct Rejected {
    pub at: OffsetDateTime,
    /// `None` if the rejected publication names none.
    pub tenant: Option<String>,
    pub reason: String,
    pub detail: String,
}

/// An envelope in a domain outbox.
#[derive(Debug)]
pub struct PendingEnvelope {
    pub domain: String,
    pub subscription: String,
    pub tenant: String,
    pub envelope: String,
    pub event_time: Option<String>,
    pub at: OffsetDateTime,
    /// True for a redrive or replay of a dead letter.
    pub redriven: bool,
}

/// A record of the delivery log, with its domain and subscription.
#[derive(Debug)]
pub struct Logged {
    pub domain: String,
    pub subscription: String,
    pub record: AttemptRecord<'static>,
}

/// A final failed attempt, with its domain, subscription and envelope.
#[derive(Debug)]
pub struct LastAttempt {
    pub domain: String,
    pub subscription: String,
    pub envelope: String,
    /// `None` if the message names none.
    pub tenant: Option<String>,
    pub at: OffsetDateTime,
    pub words: LastWords,
}

impl Findings {
    /// The tenant of each envelope at the time of its fan-out.
    fn tenants(&self) -> HashMap<String, String> {
        let pending = self.pending.iter().map(|one| (&*one.envelope, Some(&*one.tenant)));
        let dead = self.dead_letters.iter().map(|one| (&*one.id, Some(&*one.tenant)));
        let logged = self.records.iter().map(|one| (&*one.record.envelope, one.record.tenant.as_deref()));
        let words = self.last_words.iter().map(|one| (&*one.envelope, one.tenant.as_deref()));
        let all = pending.chain(dead).chain(logged).chain(words);
        let known =
            all.filter_map(|(envelope, tenant)| Some((envelope, tenant.filter(|name| !name.is_empty())?)));
        known.map(|(envelope, tenant)| (envelope.to_owned(), tenant.to_owned())).collect()
    }

    /// Keeps the findings of one tenant. Each finding names its tenant, because the subscription may be removed, or
    /// another tenant may use its id. A final attempt without a tenant has the tenant of its envelope; if the envelope is
    /// unknown, the attempt is dropped.
    pub fn keep_tenant(&mut self, tenant: &str) {
        self.waiting.retain(|one| one.tenant == tenant);
        self.rejected.retain(|one| one.tenant.as_deref() == Some(tenant));
        self.pending.retain(|one| one.tenant == tenant);
        self.dead_letters.retain(|one| one.tenant == tenant);
        self.records.retain(|one| one.record.tenant.as_deref() == Some(tenant));
        let pending = self.pending.iter().map(|one| one.envelope.as_str());
        let dead = self.dead_letters.iter().map(|one| one.id.as_str());
        let logged = self.records.iter().map(|one| &*one.record.envelope);
        let envelopes: HashSet<&str> = pending.chain(dead).chain(logged).collect();
        self.last_words.retain(|one| match &one.tenant {
            Some(other) => other == tenant,
            None => envelopes.contains(one.envelope.as_str()),
        });
    }
}

/// The trace of an event; its steps are ordered from old to new.
#[derive(Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Trace {
    pub event_id: String,
    pub timeline: Vec<TraceStep>,
    pub subscribers: Vec<Subscriber>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", schema(as = TraceStepKind))]
pub enum StepKind {
    /// The time of the event.
    Published,
    /// The event is in the events stream.
    Waiting,
    Rejected,
    /// The domain outbox stored the envelope.
    Queued,
    /// The domain outbox stored the envelope again, from a dead letter.
    Redriven,
    Attempt,
    DeadLettered,
}

impl StepKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Waiting => "waiting",
            Self::Rejected => "rejected",
            Self::Queued => "queued",
            Self::Redriven => "redriven",
            Self::Attempt => "attempt",
            Self::DeadLettered => "dead-lettered",
        }
    }
}

/// One step; fields that do not apply are omitted.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = TraceStep))]
pub struct TraceStep {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub what: StepKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription: Option<String>,
    /// The envelope's tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envelope: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Settled>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub error: Option<ErrorKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// The error or reason, for display.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

/// The current state of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", schema(as = EnvelopeState))]
pub enum EnvelopeState {
    /// In the outbox, without a known attempt.
    Waiting,
    /// In the outbox after a failed attempt.
    Retrying,
    /// A dead letter whose envelope is sent again.
    Replaying,
    /// A scheduled or parked dead letter.
    DeadLettered,
    Delivered,
    /// Not pending, and not delivered according to the log: the delivery was not logged, or the dead letter was
    /// discarded.
    Gone,
}

impl EnvelopeState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Retrying => "retrying",
            Self::Replaying => "replaying",
            Self::DeadLettered => "dead-lettered",
            Self::Delivered => "delivered",
            Self::Gone => "gone",
        }
    }
}

/// The last known state of a subscriber.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = TraceSubscriber))]
pub struct Subscriber {
    pub domain: String,
    pub subscription: String,
    /// The envelope's tenant; omitted if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    pub envelope: String,
    pub state: EnvelopeState,
    /// The highest known number of attempts.
    pub attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub next_redrive_at: Option<OffsetDateTime>,
}

/// Domain, subscription, envelope.
type EnvelopePlace = (String, String, String);

fn step(at: OffsetDateTime, what: StepKind, place: Option<&EnvelopePlace>) -> TraceStep {
    let part = |pick: fn(&EnvelopePlace) -> &String| place.map(|place| pick(place).clone());
    TraceStep {
        at,
        what,
        domain: part(|place| &place.0),
        subscription: part(|place| &place.1),
        tenant: None,
        envelope: part(|place| &place.2),
        attempt: None,
        outcome: None,
        status: None,
        latency_ms: None,
        error: None,
        fault: None,
        detail: None,
        answer: None,
    }
}

impl Trace {
    /// Builds the trace; `None` if nothing was found.
    pub fn new(event_id: &str, findings: Findings) -> Option<Self> {
        let tenants = findings.tenants();
        let (mut timeline, mut taken) = (Vec::new(), BTreeSet::new());
        let mut times = BTreeSet::new();
        let mut subscribers: BTreeMap<EnvelopePlace, Subscriber> = BTreeMap::new();
        for UnreadEvent { at, key, .. } in findings.waiting {
            timeline.push(TraceStep { detail: Some(key), ..step(at, StepKind::Waiting, None) });
        }
        for Rejected { at, reason, detail, .. } in findings.rejected {
            let detail = Some(format!("{reason}: {detail}"));
            timeline.push(TraceStep { detail, ..step(at, StepKind::Rejected, None) });
        }
        let mut attempts = Vec::new();
        for Logged { domain, subscription, record } in findings.records {
            times.extend(record.event_time.as_deref().and_then(read_time));
            let place = (domain, subscription, record.envelope.clone().into_owned());
            taken.insert((record.queued_at, record.redriven, place.clone()));
            let attempt = TraceStep {
                attempt: Some(record.attempt),
                outcome: Some(record.outcome),
                status: record.status,
                latency_ms: Some(record.latency_ms),
                error: record.error,
                fault: record.fault,
                detail: record.detail.map(|text| text.into_owned()),
                answer: record.answer.map(|text| text.into_owned()),
                ..step(record.at, StepKind::Attempt, Some(&place))
            };
            attempts.push((place, attempt));
        }
        for LastAttempt { domain, subscription, envelope, at, words, .. } in findings.last_words {
            let place = (domain, subscription, envelope);
            if attempts.iter().any(|(other, step)| *other == place && step.attempt == Some(words.attempt)) {
                continue;
            }
            // A dead letter with another reason was stored right after this attempt.
            let at_once = findings.dead_letters.iter().any(|letter| {
                letter.id == place.2 && letter.domain == place.0 && letter.reason != Reason::Exhausted
            });
            let attempt = TraceStep {
                attempt: Some(words.attempt),
                outcome: Some(if at_once { Settled::DeadLettered } else { Settled::Exhausted }),
                status: words.status,
                latency_ms: Some(words.latency_ms),
                fault: Some(words.fault),
                detail: Some(words.error),
                answer: words.answer,
                ..step(at, StepKind::Attempt, Some(&place))
            };
            attempts.push((place, attempt));
        }
        attempts.sort_by_key(|(_, step)| (step.attempt, step.at));
        for (place, attempt) in attempts {
            let entry = subscribers.entry(place.clone()).or_insert_with(|| Subscriber::at(place));
            entry.attempts = attempt.attempt.unwrap_or(0);
            entry.last_status = attempt.status;
            entry.last_error.clone_from(&attempt.detail);
            entry.state = match attempt.outcome {
                Some(Settled::Delivered) => EnvelopeState::Delivered,
                _ => EnvelopeState::Gone,
            };
            timeline.push(attempt);
        }
        for letter in findings.dead_letters {
            let place = (letter.domain, letter.subscription, letter.id);
            let detail = match &letter.last_error {
                Some(error) => format!("{}: {error}; {}", letter.reason, letter.state),
                None => format!("{}; {}", letter.reason, letter.state),
            };
            timeline.push(TraceStep {
                status: letter.last_status,
                fault: Some(letter.fault),
                detail: Some(detail),
                ..step(letter.failed_at, StepKind::DeadLettered, Some(&place))
            });
            let entry = subscribers.entry(place.clone()).or_insert_with(|| Subscriber::at(place));
            entry.attempts = entry.attempts.max(letter.attempts);
            entry.last_status = letter.last_status.or(entry.last_status);
            entry.last_error = letter.last_error.or(entry.last_error.take());
            entry.next_redrive_at = letter.next_redrive_at;
            // Just delivered; its dead letter will be removed.
            if entry.state != EnvelopeState::Delivered {
                entry.state = match letter.state {
                    DeadLetterState::Replaying => EnvelopeState::Replaying,
                    DeadLetterState::Scheduled | DeadLetterState::Parked => EnvelopeState::DeadLettered,
                };
            }
        }
        for PendingEnvelope { domain, subscription, envelope, event_time, at, redriven, .. } in
            findings.pending
        {
            times.extend(event_time.as_deref().and_then(read_time));
            let place = (domain, subscription, envelope);
            taken.insert((at, redriven, place.clone()));
            let entry = subscribers.entry(place.clone()).or_insert_with(|| Subscriber::at(place));
            entry.state = match entry.state {
                // Delivered, but not acknowledged yet.
                EnvelopeState::Delivered => EnvelopeState::Delivered,
                _ if redriven => EnvelopeState::Replaying,
                _ if entry.attempts > 0 => EnvelopeState::Retrying,
                _ => EnvelopeState::Waiting,
            };
        }
        timeline.extend(times.into_iter().map(|at| step(at, StepKind::Published, None)));
        timeline.extend(taken.iter().map(|(at, redriven, place)| {
            step(*at, if *redriven { StepKind::Redriven } else { StepKind::Queued }, Some(place))
        }));
        timeline.sort_by(|a, b| (a.at, a.what, &a.subscription).cmp(&(b.at, b.what, &b.subscription)));
        for step in &mut timeline {
            step.tenant = step.envelope.as_ref().and_then(|envelope| tenants.get(envelope).cloned());
        }
        let mut subscribers: Vec<Subscriber> = subscribers.into_values().collect();
        for one in &mut subscribers {
            one.tenant = tenants.get(&one.envelope).cloned();
        }
        (!timeline.is_empty()).then(|| Self { event_id: event_id.to_owned(), timeline, subscribers })
    }
}

impl Subscriber {
    fn at((domain, subscription, envelope): EnvelopePlace) -> Self {
        Self {
            domain,
            subscription,
            tenant: None,
            envelope,
            state: EnvelopeState::Gone,
            attempts: 0,
            last_status: None,
            last_error: None,
            next_redrive_at: None,
        }
    }
}

fn read_time(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}
