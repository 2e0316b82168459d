//! Which missing lanes of strict orders get their consumers next.
//!
//! An outbox keeps the envelopes of a lane without a consumer, so only the lane itself waits for its creation. Tenants
//! take turns, and each has a limited number of creations in progress: one with many new lanes delays no other. A lane
//! that could not be created is tried again after a pause that grows, and is given up after a while. The sweep, or the
//! next envelope, finds what is given up or does not fit into memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

/// Creations in progress.
pub const AT_ONCE: usize = 16;
/// The same for one tenant.
pub const PER_TENANT: usize = 8;
/// Most lanes that are remembered.
const MOST: usize = 16 * 1024;
/// Pause after the first failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Failures after which a lane is given up, about seven minutes after the first.
const MOST_FAILURES: u32 = 12;

/// Why a lane was not created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The server refused it.
    Refused,
    /// The server did not answer. It is tried again soon, and never given up.
    Unanswered,
}

#[derive(Debug)]
enum State {
    Waits,
    InProgress,
    /// It failed.
    Paused,
    Exists {
        since: Duration,
    },
}

#[derive(Debug)]
struct Lane {
    tenant: Box<str>,
    failures: u32,
    state: State,
}

/// The lanes of a domain. Callers pass the time as the duration since a fixed start.
#[derive(Debug)]
pub struct LaneCreation {
    lanes: HashMap<Box<str>, Lane>,
    /// Those that wait, by tenant, in their order.
    waiting: BTreeMap<Box<str>, VecDeque<Box<str>>>,
    /// Those that failed, with the time of the next try.
    paused: BTreeSet<(Duration, Box<str>)>,
    /// Creations in progress by tenant.
    in_progress: BTreeMap<Box<str>, usize>,
    /// The tenant that had the last turn.
    last: Box<str>,
    /// How long a lane is known to exist.
    known_for: Duration,
    cleaned: Duration,
}

impl LaneCreation {
    pub fn new(known_for: Duration) -> Self {
        Self {
            lanes: HashMap::new(),
            waiting: BTreeMap::new(),
            paused: BTreeSet::new(),
            in_progress: BTreeMap::new(),
            last: Box::default(),
            known_for,
            cleaned: Duration::ZERO,
        }
    }

    /// Asks for a lane of a tenant. Returns false if it exists, or was asked for before.
    pub fn ask(&mut self, lane: &str, tenant: &str, now: Duration) -> bool {
        self.forget_old(now);
        if let Some(known) = self.lanes.get(lane) {
            match known.state {
                State::Exists { since } if now.saturating_sub(since) >= self.known_for => {}
                _ => return false,
            }
        } else if self.lanes.len() >= MOST {
            return false;
        }
        let waits = Lane { tenant: tenant.into(), failures: 0, state: State::Waits };
        self.lanes.insert(lane.into(), waits);
        self.waiting.entry(tenant.into()).or_default().push_back(lane.into());
        true
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
            known.state = State::InProgress;
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
        if let Some(known) = self.ended(lane) {
            known.state = State::Exists { since: now };
        }
    }

    /// The lane was not created. Returns the pause before the next try; `None` if it is given up.
    pub fn failed(&mut self, lane: &str, failure: Failure, now: Duration) -> Option<Duration> {
        let known = self.ended(lane)?;
        let pause = match failure {
            Failure::Unanswered => FIRST_PAUSE,
            Failure::Refused => {
                known.failures += 1;
                FIRST_PAUSE.saturating_mul(1 << (known.failures - 1).min(8)).min(LONGEST_PAUSE)
            }
        };
        if known.failures >= MOST_FAILURES {
            self.lanes.remove(lane);
            return None;
        }
        known.state = State::Paused;
        self.paused.insert((now + pause, lane.into()));
        Some(pause)
    }

    /// The number of lanes that are not created yet.
    pub fn missing(&self) -> usize {
        self.lanes.values().filter(|lane| !matches!(lane.state, State::Exists { .. })).count()
    }

    fn ended(&mut self, lane: &str) -> Option<&mut Lane> {
        let known = self.lanes.get_mut(lane).filter(|known| matches!(known.state, State::InProgress))?;
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
                known.state = State::Waits;
                self.waiting.entry(known.tenant.clone()).or_default().push_back(lane);
            }
        }
    }

    /// Not at each call: there may be thousands.
    fn forget_old(&mut self, now: Duration) {
        if now.saturating_sub(self.cleaned) < self.known_for / 2 {
            return;
        }
        self.cleaned = now;
        let is_known = |since: Duration| now.saturating_sub(since) < self.known_for;
        self.lanes.retain(|_, lane| !matches!(lane.state, State::Exists { since } if !is_known(since)));
    }
}

#[cfg(test)]
mod tests;
