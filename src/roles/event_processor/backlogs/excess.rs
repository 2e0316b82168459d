//! Dead-letters the envelopes over quota of a group. One whose dead letter is not stored stays in the outbox beyond its quota
//! (`domain::backlog`): its dead-letter stream may be full, and the other envelopes of its event must not wait for that.
//! Only an event that the outbox has no room for, too, goes back.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::super::committer::{BUSY_DELAY, MOST_BLOCKED_DELAY, Planned};
use super::{Admitted, Backlogs, DomainLedger, Doubtful, QuotaRefusal};
use crate::domain::backlog::{PATIENCE, Unstored};
use crate::facts::{DomainMetrics, ExcessKept, ExcessWaits, ExcessWaitsNoLonger};
use crate::nats::{EnvelopeMessage, Fate};

/// Dead letters that are stored at once.
const IN_FLIGHT: usize = 64;
/// The group waits for the answer to a dead letter for this long, and then for no other: a stream without a leader gives none.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Most envelopes of which it is unknown whether their dead letters are stored.
const MOST_UNKNOWN: usize = 10_000;
/// An event that was handed back is here again within this time.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// Events wait because neither the dead-letter stream nor the outbox can take their envelopes over quota.
pub(super) struct Waits {
    since: Instant,
    /// When those that were handed back come again.
    until: Instant,
    delay: Duration,
}

/// The dead letter of an envelope, by the positions of its event and of itself.
struct Letter {
    event: usize,
    at: usize,
    token: String,
    envelope: EnvelopeMessage,
    why: String,
}

/// Positions of envelopes by those of their events.
type Positions = HashMap<usize, HashSet<usize>>;

impl Backlogs {
    /// Takes the refused envelopes out of their events and dead-letters them.
    pub(super) async fn dead_letter(&mut self, mut group: Vec<Planned>, doubtful: Vec<Doubtful>) -> Admitted {
        let mut letters = Vec::new();
        let mut out = Positions::new();
        for Doubtful { event, envelope: at, token, refusal, .. } in doubtful {
            let planned = group.get(event);
            let Some(envelope) = planned.and_then(|planned| planned.envelopes.get(at)) else { continue };
            if let QuotaRefusal::Exceeds(why) = refusal {
                letters.push(Letter { event, at, token, envelope: envelope.clone(), why });
            }
            out.entry(event).or_default().insert(at);
        }
        let unstored = self.put(letters).await;
        let waiting = self.keep(&mut group, unstored, &mut out);
        let mut admitted = Admitted { events: Vec::with_capacity(group.len()), kept: Vec::new() };
        for (event, mut planned) in group.drain(..).enumerate() {
            if let Some(delay) = waiting.get(&event) {
                if planned.is_committed_in_part() {
                    admitted.kept.push(planned);
                } else {
                    planned.message.acker.nak(Some(*delay)).await;
                }
                continue;
            }
            if let Some(out) = out.get(&event).filter(|out| !out.is_empty()) {
                take_out(&mut planned, out);
            }
            admitted.events.push(planned);
        }
        admitted
    }

    /// Stores dead letters. Returns those that were not stored, in their order.
    async fn put(&mut self, letters: Vec<Letter>) -> Vec<(Letter, Fate)> {
        let this = &*self;
        let written: Vec<_> = stream::iter(letters)
            .map(|letter| async move {
                let put = this.put_one(&letter.envelope, &letter.why);
                let written = match tokio::time::timeout(ANSWER_WITHIN, put).await {
                    Ok(written) => written.map_err(|error| error.fate()),
                    Err(_) => {
                        let size = letter.envelope.payload.size();
                        this.js.letter_unanswered(&this.domain, size, ANSWER_WITHIN);
                        Err(Fate::Unknown)
                    }
                };
                (letter, written)
            })
            .buffered(IN_FLIGHT)
            .collect()
            .await;
        let mut unstored = Vec::new();
        for (letter, written) in written {
            match written {
                Ok(()) => {
                    self.refused.remember(&letter.envelope.message_id);
                    self.unknown.remove(&letter.envelope.message_id);
                }
                Err(fate) => unstored.push((letter, fate)),
            }
        }
        unstored
    }

    /// Decides about the envelopes whose dead letters were not stored. Those that stay are not taken out of their events.
    /// Returns the events that wait, with their delays.
    fn keep(
        &mut self,
        group: &mut [Planned],
        letters: Vec<(Letter, Fate)>,
        out: &mut Positions,
    ) -> HashMap<usize, Duration> {
        let mut waiting = HashMap::new();
        if letters.is_empty() {
            return waiting;
        }
        let shared = self.shared.clone();
        let now = shared.started.elapsed();
        let (mut kept, mut is_full) = (0, None);
        let mut ledger = shared.ledger();
        for (letter, fate) in letters {
            let Letter { event, at, token, envelope, .. } = letter;
            let unstored = self.unstored(&envelope.message_id, fate, now);
            let size = envelope.stored_bytes() as u64;
            let Some(own_lane) = ledger.add_excess(&token, size, unstored, now) else {
                let delay = match unstored {
                    Unstored::Refused => *is_full.get_or_insert_with(|| shared.wait(&self.metrics)),
                    Unstored::Unknown { .. } => BUSY_DELAY,
                };
                let longest = waiting.entry(event).or_insert(delay);
                *longest = delay.max(*longest);
                continue;
            };
            self.unknown.remove(&envelope.message_id);
            kept += 1;
            if let Some(out) = out.get_mut(&event) {
                out.remove(&at);
            }
            let planned = group.get_mut(event).and_then(|planned| planned.envelopes.get_mut(at));
            if let Some(envelope) = planned
                && own_lane
                && !self.is_strict(&envelope.subject)
            {
                envelope.subject = self.subject_in_own_lane(&token);
            }
        }
        drop(ledger);
        ExcessKept { count: kept }.emit(&self.metrics);
        waiting
    }

    /// What is known about a dead letter after this try and earlier ones. An answer of the server is final: it would have
    /// recognized a repetition by the message id.
    fn unstored(&mut self, id: &str, fate: Fate, now: Duration) -> Unstored {
        let since = match fate {
            Fate::Refused => {
                self.unknown.remove(id);
                return Unstored::Refused;
            }
            Fate::NotSent => self.unknown.get(id).copied(),
            Fate::Unknown => {
                if self.unknown.len() >= MOST_UNKNOWN {
                    self.unknown.retain(|_, since| now.saturating_sub(*since) < PATIENCE);
                }
                if self.unknown.len() >= MOST_UNKNOWN {
                    self.unknown.clear();
                }
                Some(*self.unknown.entry(id.to_owned()).or_insert(now))
            }
        };
        since.map_or(Unstored::Refused, |since| Unstored::Unknown { waited: now.saturating_sub(since) })
    }
}

impl DomainLedger {
    /// Notes that an event waits for room; returns for how long.
    fn wait(&self, metrics: &DomainMetrics) -> Duration {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let Some(known) = &mut *waits else {
            ExcessWaits { retry_in: BUSY_DELAY }.emit(metrics);
            *waits = Some(Waits { since: now, until: now + BUSY_DELAY, delay: BUSY_DELAY });
            return BUSY_DELAY;
        };
        if now >= known.until {
            known.delay = (known.delay * 2).min(MOST_BLOCKED_DELAY);
            known.until = now + known.delay;
        }
        (known.until - now).max(BUSY_DELAY)
    }

    /// Notes that no event waits any more, once those that were handed back had the time to come again.
    pub(super) fn look_at_waiting(&self, metrics: &DomainMetrics) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(waited) = waits.take_if(|waits| now > waits.until + BACK_WITHIN) {
            ExcessWaitsNoLonger { after: now - waited.since }.emit(metrics);
        }
    }
}

/// Takes the envelopes at these positions out of their event.
fn take_out(planned: &mut Planned, out: &HashSet<usize>) {
    let mut at = 0;
    planned.envelopes.retain(|_| {
        at += 1;
        !out.contains(&(at - 1))
    });
    planned.limits.retain(|(of, _)| !out.contains(of));
    for (of, _) in &mut planned.limits {
        *of -= out.iter().filter(|out| **out < *of).count();
    }
}
