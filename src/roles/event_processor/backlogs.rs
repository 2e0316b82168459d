//! Chooses the lane of each new envelope, and dead-letters those that exceed the quota of their subscription.
//!
//! A look at the stream, every second, shows which subscriptions have envelopes in a lane of their own; new ones go
//! straight there. An envelope that does not fit according to the ledger is refused only after another look at
//! its subscription alone. Its dead letter is stored before any envelope of its event is committed. If that fails, the
//! envelope stays in the outbox ([`excess`]).

mod excess;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use excess::Waits;
use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::committer::Planned;
use super::recent::Recent;
use crate::domain::backlog::{Backlog, BacklogLimits, BacklogNotice, Ledger, QuotaDecision, size};
use crate::domain::dead_letter::{DeadLetter, Failed, Origin};
use crate::domain::envelope::Envelope;
use crate::domain::outcome::{Fault, Reason};
use crate::domain::subscription::SubscriptionRef;
use crate::facts::{
    BacklogNearLimit, BacklogsNotRead, DeadLettered, DomainMetrics, EnvelopesCommittedToOwnLanes, LetterBy,
    Metrics,
};
use crate::nats::subjects::{SHARED_LANE, is_strict_lane, own_lane};
use crate::nats::{EnvelopeMessage, JetStream, NatsError};

/// Interval of the looks. A look that takes long is followed by a longer pause.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const PAUSE_FACTOR: u32 = 20;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Looks at single subscriptions at once.
const LOOKS_IN_FLIGHT: usize = 16;

/// The quotas of a domain.
#[derive(Debug, Clone)]
pub(super) struct QuotaSettings {
    /// The limits of every subscription.
    pub(super) limits: BacklogLimits,
    /// The most bytes that the outbox holds.
    pub(super) outbox_size: u64,
    /// Waits before the redrives of a dead letter.
    pub(super) schedule: Vec<Duration>,
}

/// The ledger of a domain, with its clock.
struct DomainLedger {
    ledger: Mutex<Ledger>,
    /// Events wait because of their envelopes over quota.
    waits: Mutex<Option<Waits>>,
    started: Instant,
}

impl DomainLedger {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at the stream.
pub(super) struct Watch {
    js: JetStream,
    domain: String,
    shared: Arc<DomainLedger>,
    metrics: DomainMetrics,
}

/// The committer's part.
pub(super) struct Backlogs {
    js: JetStream,
    domain: String,
    shared: Arc<DomainLedger>,
    schedule: Vec<Duration>,
    metrics: DomainMetrics,
    all: Metrics,
    /// Envelopes that were dead-lettered here; a repetition of their event adds nothing.
    refused: Recent,
    /// Envelopes whose dead letters may be stored, by their ids, and since when they wait for an answer.
    unknown: HashMap<String, Duration>,
}

/// The events of a group.
pub(super) struct Admitted {
    /// Those that are to be committed.
    pub(super) events: Vec<Planned>,
    /// Those that cannot be committed now, and are committed in part.
    pub(super) kept: Vec<Planned>,
}

/// An envelope that may not be added, by the positions of its event and of itself.
struct Doubtful {
    event: usize,
    envelope: usize,
    token: String,
    limits: BacklogLimits,
    refusal: QuotaRefusal,
}

enum QuotaRefusal {
    /// It is dead-lettered already.
    Before,
    /// It does not fit, as far as the ledger knows.
    Perhaps,
    /// It does not fit, for this reason.
    Exceeds(String),
}

impl Backlogs {
    pub(super) fn new(
        js: JetStream,
        domain: &str,
        settings: QuotaSettings,
        all: Metrics,
        metrics: DomainMetrics,
    ) -> (Self, Watch) {
        let ledger = Ledger::new(settings.limits, settings.outbox_size);
        let (ledger, waits) = (Mutex::new(ledger), Mutex::default());
        let shared = Arc::new(DomainLedger { ledger, waits, started: Instant::now() });
        let domain = domain.to_owned();
        let watch = Watch {
            js: js.clone(),
            domain: domain.clone(),
            shared: shared.clone(),
            metrics: metrics.clone(),
        };
        let (schedule, refused, unknown) = (settings.schedule, Recent::default(), HashMap::new());
        (Self { js, domain, shared, schedule, metrics, all, refused, unknown }, watch)
    }

    /// Puts each envelope of a group into its lane, and dead-letters those over quota. Events that cannot be committed and
    /// may return to the stream are handed back. `known`: envelopes that the stream may have already, which it drops.
    pub(super) async fn admit(&mut self, mut group: Vec<Planned>, known: &Recent) -> Admitted {
        let mut doubtful = self.place(&mut group, known);
        if doubtful.is_empty() {
            return Admitted { events: group, kept: Vec::new() };
        }
        if doubtful.iter().any(|one| matches!(one.refusal, QuotaRefusal::Perhaps)) {
            let (paused, counted) = tokio::join!(self.is_paused(), self.look_again(&doubtful));
            self.decide(&mut group, &mut doubtful, &counted, paused);
        }
        self.dead_letter(group, doubtful).await
    }

    /// Takes note that the group is committed, or is not.
    pub(super) fn settled(&self) {
        self.shared.ledger().end_group();
    }

    /// Adds a group to the ledger; returns the envelopes that do not fit, and those that were refused before (without a
    /// reason).
    fn place(&self, group: &mut [Planned], known: &Recent) -> Vec<Doubtful> {
        let now = self.shared.started.elapsed();
        let (mut doubtful, mut to_own_lanes) = (Vec::new(), 0);
        let mut ledger = self.shared.ledger();
        ledger.begin_group();
        for (event, planned) in group.iter_mut().enumerate() {
            let mut limits = planned.limits.iter().peekable();
            for (at, envelope) in planned.envelopes.iter_mut().enumerate() {
                let limits =
                    limits.next_if(|(of, _)| *of == at).map(|(_, limits)| *limits).unwrap_or_default();
                if known.contains(&envelope.message_id) {
                    continue;
                }
                let Some(parsed) = self.js.names().parse_outbox(&envelope.subject) else { continue };
                let refusal = if self.refused.contains(&envelope.message_id) {
                    QuotaRefusal::Before
                } else {
                    let size = envelope.stored_bytes() as u64;
                    match ledger.add(parsed.subscription, size, limits, now) {
                        QuotaDecision::Fits { own_lane } => {
                            if own_lane && !is_strict_lane(parsed.lane) {
                                to_own_lanes += 1;
                                envelope.subject = self.subject_in_own_lane(parsed.subscription);
                            }
                            continue;
                        }
                        QuotaDecision::Exceeds { .. } => QuotaRefusal::Perhaps,
                    }
                };
                let token = parsed.subscription.to_owned();
                doubtful.push(Doubtful { event, envelope: at, token, limits, refusal });
            }
        }
        drop(ledger);
        if to_own_lanes > 0 {
            EnvelopesCommittedToOwnLanes { count: to_own_lanes }.emit(&self.metrics);
        }
        doubtful
    }

    fn is_strict(&self, subject: &str) -> bool {
        self.js.names().is_in_strict_lane(subject)
    }

    fn subject_in_own_lane(&self, token: &str) -> String {
        self.js.names().outbox(&self.domain, &own_lane(token), token)
    }

    /// Whether the domain is paused, so that a full backlog is not the subscriber's; `None` if that is not known.
    async fn is_paused(&self) -> Option<bool> {
        match self.js.is_paused(&self.domain).await {
            Ok(paused) => Some(paused),
            Err(error) => {
                BacklogsNotRead { error: &error, retry_in: LOOK_INTERVAL }.emit(&self.metrics);
                None
            }
        }
    }

    /// Counts the backlogs of the subscriptions with doubtful envelopes exactly. Returns those that are counted.
    async fn look_again(&self, doubtful: &[Doubtful]) -> HashSet<String> {
        let perhaps = doubtful.iter().filter(|one| matches!(one.refusal, QuotaRefusal::Perhaps));
        let tokens: HashSet<String> = perhaps.map(|one| one.token.clone()).collect();
        let at = self.shared.started.elapsed();
        let looks: Vec<_> = stream::iter(tokens)
            .map(|token| async move {
                let look = self.js.backlogs(&self.domain, Some(&token)).await;
                (token, look)
            })
            .buffer_unordered(LOOKS_IN_FLIGHT)
            .collect()
            .await;
        let mut counted = HashSet::new();
        let mut ledger = self.shared.ledger();
        for (token, look) in looks {
            match look {
                Ok(look) => {
                    let outbox_bytes = look.bytes;
                    let found = look.backlogs.into_iter().find(|backlog| backlog.token == token);
                    let none = || Backlog { token: token.clone(), own: 0, shared: 0 };
                    ledger.note_one(&found.unwrap_or_else(none), outbox_bytes, at);
                    counted.insert(token);
                }
                Err(error) => {
                    BacklogsNotRead { error: &error, retry_in: LOOK_INTERVAL }.emit(&self.metrics);
                }
            }
        }
        counted
    }

    /// Decides again about the doubtful envelopes. Those that fit, and those of subscriptions that are not `counted`, are
    /// admitted; so are all unless it is known that the domain is not paused.
    fn decide(
        &self,
        group: &mut [Planned],
        doubtful: &mut Vec<Doubtful>,
        counted: &HashSet<String>,
        paused: Option<bool>,
    ) {
        let now = self.shared.started.elapsed();
        let mut ledger = self.shared.ledger();
        doubtful.retain_mut(|one| {
            if matches!(one.refusal, QuotaRefusal::Before) {
                return true;
            }
            let planned = group.get_mut(one.event);
            let Some(envelope) = planned.and_then(|planned| planned.envelopes.get_mut(one.envelope)) else {
                return false;
            };
            let size = envelope.stored_bytes() as u64;
            let decision = match paused {
                Some(false) => ledger.add_unpaused(&one.token, size, one.limits, now),
                Some(true) | None => ledger.add(&one.token, size, one.limits, now),
            };
            let own_lane = match decision {
                QuotaDecision::Fits { own_lane } => own_lane,
                QuotaDecision::Exceeds { .. } if paused == Some(true) => {
                    ledger.add_in_pause(&one.token, size, now)
                }
                QuotaDecision::Exceeds { .. } if paused.is_none() || !counted.contains(&one.token) => {
                    ledger.add_beyond(&one.token, size, now)
                }
                QuotaDecision::Exceeds { exceeded, messages, bytes } => {
                    let bytes = size::shown(bytes);
                    let why = format!("the backlog has {messages} envelopes, about {bytes}; {exceeded}");
                    one.refusal = QuotaRefusal::Exceeds(why);
                    return true;
                }
            };
            if own_lane && !self.is_strict(&envelope.subject) {
                envelope.subject = self.subject_in_own_lane(&one.token);
            }
            false
        });
    }

    async fn put_one(&self, envelope: &EnvelopeMessage, why: &str) -> Result<(), NatsError> {
        let body = envelope.payload.to_bytes();
        let read = Envelope::read(&body);
        let origin = match &read {
            Ok(envelope) => Origin::of(envelope),
            // The fan-out has just written it.
            Err(_) => Origin::unread(&self.domain, 0, None),
        };
        let failed = Failed {
            reason: Reason::OverQuota,
            fault: Fault::Subscriber,
            attempts: 0,
            redrives: 0,
            status: None,
            error: Some(why.to_owned()),
            at: self.js.now(),
        };
        let id = format!("over-quota-{}", envelope.message_id);
        let letter = if self.is_strict(&envelope.subject) {
            // Parked: a scheduled redrive would be out of order.
            DeadLetter::new(&self.domain, origin, failed, &[])
        } else {
            DeadLetter::new(&self.domain, origin, failed, &self.schedule)
        };
        // The last dead letter of a strict lane is the one that stops it.
        let token = self.js.names().parse_outbox(&envelope.subject).map_or("", |parsed| parsed.subscription);
        let subject = self.js.names().outbox(&self.domain, SHARED_LANE, token);
        self.js.put_dead_letter_with_id(&id, &subject, &letter, body.clone()).await?;
        let by = LetterBy::EventProcessor;
        DeadLettered { letter: &letter, by, is_redriven: false }.emit(&self.all);
        Ok(())
    }
}

impl Watch {
    /// Never returns.
    pub(super) async fn run(self) {
        loop {
            let asked = Instant::now();
            match self.look().await {
                Ok(()) => {}
                Err(error) => {
                    BacklogsNotRead { error: &error, retry_in: LOOK_INTERVAL }.emit(&self.metrics);
                }
            }
            self.shared.look_at_waiting(&self.metrics);
            let pause = (asked.elapsed() * PAUSE_FACTOR).clamp(LOOK_INTERVAL, LONGEST_PAUSE);
            tokio::time::sleep(pause).await;
        }
    }

    async fn look(&self) -> Result<(), NatsError> {
        let at = self.shared.started.elapsed();
        self.shared.ledger().request_look();
        let look = self.js.backlogs(&self.domain, None).await?;
        let (fullest, notices) = self.shared.ledger().note(&look, at);
        self.metrics.fullest_backlog(fullest);
        for BacklogNotice { token, percent, messages } in notices {
            if let Some(subscription) = SubscriptionRef::from_token(&token) {
                BacklogNearLimit { subscription: &subscription, percent, messages }.emit(&self.metrics);
            }
        }
        let has_excess = self.shared.ledger().has_excess(at);
        if has_excess && self.js.is_paused(&self.domain).await? {
            self.shared.ledger().note_pause(self.shared.started.elapsed());
        }
        Ok(())
    }
}
