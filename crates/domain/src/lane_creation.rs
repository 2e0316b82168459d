//! Which missing lanes of strict orders get their consumers next.
//!
//! An outbox keeps the envelopes of a lane without a consumer, so only the lane itself waits for its creation. Tenants
//! take turns, and each has a limited number of creations in progress and of lanes that are not created yet: one with many
//! new lanes delays no other. A lane that could not be created is tried again after a pause that grows up to a minute. The
//! sweep, or the next envelope, finds a lane that does not fit into memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

/// Creations in progress.
pub const AT_ONCE: usize = 16;
/// The same for one tenant.
pub const PER_TENANT: usize = 8;
/// Most lanes that are remembered. One that is not created yet takes the place of one that exists.
const MOST: usize = 16 * 1024;
/// Most lanes of one tenant that are not created yet.
const MOST_PER_TENANT: usize = MOST / 4;
/// Pause after the first failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why a lane was not created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreationFailure {
    /// The server refused it.
    Refused,
    /// The server did not answer. It is tried again soon.
    Unanswered,
}

#[derive(Debug)]
enum CreationState {
    Waits,
    InProgress,
    /// It failed.
    Paused,
    Exists,
}

#[derive(Debug)]
struct WantedLane {
    tenant: Box<str>,
    failures: u32,
    state: CreationState,
    /// It was asked for again since its creation began.
    asked_again: bool,
}

/// The lanes of a domain. Callers pass the time as the duration since a fixed start.
#[derive(Debug)]
pub struct LaneCreation {
    lanes: HashMap<Box<str>, WantedLane>,
    /// Those that wait, by tenant, in their order.
    waiting: BTreeMap<Box<str>, VecDeque<Box<str>>>,
    /// Those that failed, with the time of the next try.
    paused: BTreeSet<(Duration, Box<str>)>,
    /// Creations in progress by tenant.
    in_progress: BTreeMap<Box<str>, usize>,
    /// The number of lanes that are not created yet, by tenant.
    missing: BTreeMap<Box<str>, usize>,
    /// Those that exist, with the time since when this is known; the oldest first.
    existing: VecDeque<(Duration, Box<str>)>,
    /// The tenant that had the last turn.
    last: Box<str>,
    /// How long a lane is known to exist.
    known_for: Duration,
    refused: usize,
}

impl LaneCreation {
    pub fn new(known_for: Duration) -> Self {
        Self {
            lanes: HashMap::new(),
            waiting: BTreeMap::new(),
            paused: BTreeSet::new(),
            in_progress: BTreeMap::new(),
            missing: BTreeMap::new(),
            existing: VecDeque::new(),
            last: Box::default(),
            known_for,
            refused: 0,
        }
    }

    /// Asks for a lane of a tenant. Returns false if it exists, was asked for before, or is [refused](Self::take_refused).
    pub fn ask(&mut self, lane: &str, tenant: &str, now: Duration) -> bool {
        self.forget_old(now);
        if let Some(known) = self.lanes.get_mut(lane) {
            known.asked_again = true;
            return false;
        }
        if !self.make_room(tenant) {
            self.refused += 1;
            return false;
        }
        let waits = WantedLane {
            tenant: tenant.into(),
            failures: 0,
            state: CreationState::Waits,
            asked_again: false,
        };
        self.lanes.insert(lane.into(), waits);
        self.waiting.entry(tenant.into()).or_default().push_back(lane.into());
        *self.missing.entry(tenant.into()).or_default() += 1;
        true
    }

    /// The number of lanes that had no place since the last call.
    pub fn take_refused(&mut self) -> usize {
        std::mem::take(&mut self.refused)
    }

    /// The next lane to create. Its end is to be reported with [`Self::created`] or [`Self::failed`].
    pub fn next(&mut self, now: Duration) -> Option<Box<str>> {
        self.end_pauses(now);
        if self.in_progress.values().sum::<usize>() >= AT_ONCE {
            return None;
        }
        let after = (Bound::Excluded(self.last.clone()), Bound::Unbounded);
        let has_place = |tenant: &str| self.in_progress.get(tenant).is_none_or(|count| *count < PER_TENANT);
        let behind = self.waiting.range(after).chain(self.waiting.range(..=self.last.clone()));
        let tenant = behind.map(|(tenant, _)| tenant).find(|tenant| has_place(tenant))?.clone();
        let queue = self.waiting.get_mut(&tenant)?;
        let lane = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&tenant);
        }
        if let Some(known) = self.lanes.get_mut(&lane) {
            (known.state, known.asked_again) = (CreationState::InProgress, false);
        }
        *self.in_progress.entry(tenant.clone()).or_default() += 1;
        self.last = tenant;
        Some(lane)
    }

    /// When [`Self::next`] may return a lane that failed.
    pub fn due(&self) -> Option<Duration> {
        self.paused.first().map(|(at, _)| *at)
    }

    /// The lane exists.
    pub fn created(&mut self, lane: &str, now: Duration) {
        let Some(known) = self.ended(lane) else { return };
        known.state = CreationState::Exists;
        let tenant = known.tenant.clone();
        self.existing.push_back((now, lane.into()));
        self.is_not_missing(&tenant);
    }

    /// The lane was not created. Returns the pause before the next try; `None` if no creation was in progress.
    pub fn failed(&mut self, lane: &str, failure: CreationFailure, now: Duration) -> Option<Duration> {
        let known = self.ended(lane)?;
        let pause = match failure {
            CreationFailure::Unanswered => FIRST_PAUSE,
            CreationFailure::Refused => {
                known.failures = known.failures.saturating_add(1);
                pause_after(known.failures)
            }
        };
        known.state = CreationState::Paused;
        self.paused.insert((now + pause, lane.into()));
        Some(pause)
    }

    /// Whether the lane was refused so often that it may have no envelopes any more.
    pub fn fails_for_long(&self, lane: &str) -> bool {
        self.lanes.get(lane).is_some_and(|known| pause_after(known.failures) == LONGEST_PAUSE)
    }

    /// The lane in progress has no envelopes: it is forgotten, unless it was asked for meanwhile.
    pub fn unneeded(&mut self, lane: &str) {
        let Some(known) = self.ended(lane) else { return };
        let tenant = known.tenant.clone();
        if known.asked_again {
            known.state = CreationState::Waits;
            return self.waiting.entry(tenant).or_default().push_back(lane.into());
        }
        self.lanes.remove(lane);
        self.is_not_missing(&tenant);
    }

    /// The number of lanes that are not created yet.
    pub fn missing(&self) -> usize {
        self.lanes.len() - self.existing.len()
    }

    /// Whether there is room for another lane of the tenant that is not created yet.
    fn make_room(&mut self, tenant: &str) -> bool {
        let own = self.missing.get(tenant).copied().unwrap_or_default();
        if own >= MOST_PER_TENANT {
            return false;
        }
        if self.lanes.len() < MOST {
            return true;
        }
        // What exists is only remembered to ask the server less often.
        if let Some((_, lane)) = self.existing.pop_front() {
            self.lanes.remove(&lane);
            return true;
        }
        self.displace_one_beyond(own + 1)
    }

    /// Takes the last place of the tenant with the most missing lanes, if these are more than `count`.
    fn displace_one_beyond(&mut self, count: usize) -> bool {
        let most = self.missing.iter().max_by_key(|(_, count)| **count).filter(|(_, most)| **most > count);
        let Some(tenant) = most.map(|(tenant, _)| tenant.clone()) else { return false };
        let waiting = self.waiting.get_mut(&tenant).and_then(VecDeque::pop_back);
        if self.waiting.get(&tenant).is_some_and(VecDeque::is_empty) {
            self.waiting.remove(&tenant);
        }
        let lane = waiting.or_else(|| {
            let is_of = |lane: &str| self.lanes.get(lane).is_some_and(|known| known.tenant == tenant);
            let paused = self.paused.iter().rev().find(|(_, lane)| is_of(lane)).cloned()?;
            self.paused.remove(&paused);
            Some(paused.1)
        });
        let Some(lane) = lane else { return false };
        self.lanes.remove(&lane);
        self.is_not_missing(&tenant);
        self.refused += 1;
        true
    }

    fn is_not_missing(&mut self, tenant: &str) {
        if let Some(count) = self.missing.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                self.missing.remove(tenant);
            }
        }
    }

    fn ended(&mut self, lane: &str) -> Option<&mut WantedLane> {
        let known =
            self.lanes.get_mut(lane).filter(|known| matches!(known.state, CreationState::InProgress))?;
        if let Some(count) = self.in_progress.get_mut(&known.tenant) {
            *count -= 1;
            if *count == 0 {
                self.in_progress.remove(&known.tenant);
            }
        }
        Some(known)
    }

    fn end_pauses(&mut self, now: Duration) {
        while let Some((at, lane)) = self.paused.pop_first() {
            if at > now {
                self.paused.insert((at, lane));
                return;
            }
            if let Some(known) = self.lanes.get_mut(&lane) {
                known.state = CreationState::Waits;
                self.waiting.entry(known.tenant.clone()).or_default().push_back(lane);
            }
        }
    }

    fn forget_old(&mut self, now: Duration) {
        let is_old = |since: Duration| now.saturating_sub(since) >= self.known_for;
        while let Some((_, lane)) = self.existing.pop_front_if(|(since, _)| is_old(*since)) {
            self.lanes.remove(&lane);
        }
    }
}

fn pause_after(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests;
