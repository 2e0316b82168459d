//! The ledger of a domain.
//!
//! A look at the stream gives the number of envelopes of each subscription, but not their size; the ledger estimates it
//! from the sizes that it added. Additions that a look cannot contain yet count in addition to it, so the ledger of a
//! process never has less than the stream has by this process. It does not know what other processes have added since
//! the last look: an envelope that does not fit is counted exactly by another look before it is refused.

use std::collections::HashMap;
use std::time::Duration;

use super::excess::{Unstored, stays};
use super::grace::Grace;
use super::limits::{BacklogLimits, Exceeded, Usage};
use super::own_lane::OwnLane;

/// What the ledger knows is not used for longer than this after a look.
const STALE: Duration = Duration::from_secs(10);
/// A backlog is reported at this part of its limit, in percent, and again after it was below the other.
const NEAR: u64 = 80;
const FAR: u64 = 60;

/// After a pause, a backlog may grow by this part of the outbox: its events do not wait until it has begun to drain.
const GRACE_PART: u64 = 8;

/// The envelopes of one subscription in the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    /// The subscription's token.
    pub token: String,
    /// Envelopes in its own lane.
    pub own: u64,
    /// Envelopes in any other lane.
    pub shared: u64,
}

/// The whole outbox, as the stream reported it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutboxLook {
    pub messages: u64,
    pub bytes: u64,
    /// Those with envelopes.
    pub backlogs: Vec<Backlog>,
}

/// What happens to an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaDecision {
    /// It is added.
    Fits { own_lane: bool },
    /// It does not fit, as far as the ledger knows.
    Exceeds { exceeded: Exceeded, messages: u64, bytes: u64 },
}

/// A backlog that is nearly full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BacklogNotice {
    pub token: String,
    pub percent: u64,
    pub messages: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    messages: u64,
    bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

#[derive(Debug, Default)]
struct Entry {
    /// With everything that was added.
    count: Count,
    /// Added in the group with this number.
    in_group: (u64, Count),
    /// Added since the look with this number was requested.
    since: (u64, Count),
    /// Of the subscription, as they were last seen.
    limits: BacklogLimits,
    lane: OwnLane,
    grace: Grace,
    is_reported: bool,
}

/// One more envelope.
struct Addition {
    size: u64,
    group: u64,
    /// The last look, and the group that was on its way then.
    look: (u64, Option<u64>),
    /// Now, if the last look is not stale.
    at: Option<Duration>,
}

/// See the module documentation. Callers pass the time as the duration since a fixed start.
#[derive(Debug)]
pub struct Ledger {
    settings: BacklogLimits,
    /// The size of the outbox (`limits.outbox`).
    capacity: u64,
    used: u64,
    /// What subscriptions with own lanes use of it.
    lanes: u64,
    /// Average size of an envelope of the outbox.
    mean: u64,
    entries: HashMap<Box<str>, Entry>,
    group: u64,
    /// Bytes that were added in the group.
    group_bytes: u64,
    /// Whether the group is on its way to the stream.
    in_flight: bool,
    look: u64,
    /// The group that was on its way when the look was requested.
    look_group: Option<u64>,
    looked_at: Option<Duration>,
}

impl Entry {
    /// Returns whether the addition goes to the own lane.
    fn add(&mut self, addition: &Addition) -> bool {
        let &Addition { size, group, look: (look, look_group), at } = addition;
        let mut since = self.since(look, look_group);
        since.add(size);
        self.since = (look, since);
        if self.in_group.0 != group {
            self.in_group = (group, Count::default());
        }
        self.in_group.1.add(size);
        self.count.add(size);
        at.is_some_and(|now| self.lane.is_used(now))
    }

    /// What the look with this number need not contain.
    fn since(&self, look: u64, look_group: Option<u64>) -> Count {
        match self.since {
            (of, since) if of == look => since,
            _ if look_group == Some(self.in_group.0) => self.in_group.1,
            _ => Count::default(),
        }
    }

    /// `unseen`: additions that the look does not contain, or perhaps not.
    fn note(&mut self, messages: u64, unseen: Count, mean: u64) {
        let known = self.count.messages.saturating_sub(unseen.messages);
        let known_bytes = self.count.bytes.saturating_sub(unseen.bytes);
        let part = |of: u64, numerator: u64, denominator: u64| {
            let part = u128::from(of) * u128::from(numerator) / u128::from(denominator.max(1));
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        let bytes = match messages.checked_sub(known) {
            // Some of them left.
            None => part(known_bytes, messages, known),
            // Others were added elsewhere.
            Some(more) if known == 0 => more.saturating_mul(mean),
            Some(more) => known_bytes.saturating_add(part(known_bytes, more, known)),
        };
        self.count.messages = messages.saturating_add(unseen.messages);
        self.count.bytes = bytes.saturating_add(unseen.bytes);
    }
}

impl Ledger {
    /// `settings`: the limits of every subscription.
    pub fn new(settings: BacklogLimits, capacity: u64) -> Self {
        Self {
            settings,
            capacity,
            used: 0,
            lanes: 0,
            mean: 0,
            entries: HashMap::new(),
            group: 1,
            group_bytes: 0,
            in_flight: false,
            look: 1,
            look_group: None,
            looked_at: None,
        }
    }

    /// Begins a group of envelopes. The caller stores one group at a time.
    pub fn begin_group(&mut self) {
        self.group += 1;
        self.group_bytes = 0;
        self.in_flight = true;
    }

    /// Ends the group: it is stored, or not.
    pub fn end_group(&mut self) {
        self.in_flight = false;
    }

    /// Adds an envelope of the group, if it fits, whether or not the domain is paused.
    pub fn add(&mut self, token: &str, size: u64, limits: BacklogLimits, now: Duration) -> QuotaDecision {
        self.add_within(token, size, limits, false, now)
    }

    /// As [`Self::add`], if it is known that the domain is not paused: the backlog of a pause may grow a little.
    pub fn add_unpaused(
        &mut self,
        token: &str,
        size: u64,
        limits: BacklogLimits,
        now: Duration,
    ) -> QuotaDecision {
        self.add_within(token, size, limits, true, now)
    }

    fn add_within(
        &mut self,
        token: &str,
        size: u64,
        limits: BacklogLimits,
        is_unpaused: bool,
        now: Duration,
    ) -> QuotaDecision {
        let (free, addition, settings) = (self.free(), self.addition(size, now), self.settings);
        // One look-up, and no copy of the token, in the common case.
        let entry = match self.entries.get_mut(token) {
            Some(entry) => entry,
            None => self.entries.entry(token.into()).or_default(),
        };
        entry.limits = limits;
        let grace = entry.grace.bytes(is_unpaused, now);
        let usage = Usage { grace, ..entry.usage(free, now) };
        if let Some(exceeded) = limits.within(settings).exceeded(&usage, size) {
            return QuotaDecision::Exceeds { exceeded, messages: usage.messages, bytes: usage.bytes };
        }
        let own_lane = entry.add(&addition);
        self.count(size, usage.own_lane);
        QuotaDecision::Fits { own_lane }
    }

    /// Adds an envelope of the group, whether or not it fits. Returns whether it goes to the own lane.
    pub fn add_beyond(&mut self, token: &str, size: u64, now: Duration) -> bool {
        let addition = self.addition(size, now);
        let entry = self.entries.entry(token.into()).or_default();
        let (to_own_lane, has_lane) = (entry.add(&addition), entry.lane.exists());
        self.count(size, has_lane);
        to_own_lane
    }

    /// As [`Self::add_beyond`], because the domain is paused: the backlog may drain from there after the pause.
    pub fn add_in_pause(&mut self, token: &str, size: u64, now: Duration) -> bool {
        let to_own_lane = self.add_beyond(token, size, now);
        let more = self.capacity / GRACE_PART;
        if let Some(entry) = self.entries.get_mut(token) {
            entry.grace.begin(entry.count.bytes, more, now);
        }
        to_own_lane
    }

    /// Adds an envelope over quota whose dead letter was not stored, if it may stay in the outbox nevertheless. Returns
    /// whether it goes to the own lane; `None` if its event waits.
    pub fn add_excess(&mut self, token: &str, size: u64, unstored: Unstored, now: Duration) -> Option<bool> {
        stays(unstored, size, self.used, self.capacity).then(|| self.add_beyond(token, size, now))
    }

    fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.lanes.min(self.used))
    }

    fn count(&mut self, size: u64, has_lane: bool) {
        self.used = self.used.saturating_add(size);
        if has_lane {
            self.lanes = self.lanes.saturating_add(size);
        }
        self.group_bytes = self.group_bytes.saturating_add(size);
    }

    fn addition(&self, size: u64, now: Duration) -> Addition {
        let fresh = self.looked_at.is_some_and(|looked| now.saturating_sub(looked) <= STALE);
        Addition { size, group: self.group, look: (self.look, self.look_group), at: fresh.then_some(now) }
    }

    /// Takes note that a look at the stream is requested.
    pub fn request_look(&mut self) {
        self.look += 1;
        self.look_group = self.in_flight.then_some(self.group);
    }

    /// Takes note of a look at all subscriptions, which was requested at `at`. Returns the percentage of the fullest
    /// backlog, and those that are nearly full for the first time.
    pub fn note(&mut self, look: &OutboxLook, at: Duration) -> (u64, Vec<BacklogNotice>) {
        let is_first = self.looked_at.replace(at).is_none();
        self.mean = look.bytes.checked_div(look.messages).unwrap_or(self.mean);
        let (number, group, mean) = (self.look, self.look_group, self.mean);
        let mut found: HashMap<&str, &Backlog> =
            look.backlogs.iter().map(|backlog| (backlog.token.as_str(), backlog)).collect();
        let mut unseen_bytes = 0_u64;
        self.entries.retain(|token, entry| {
            let backlog = found.remove(&**token);
            let (own, shared) = backlog.map_or((0, 0), |backlog| (backlog.own, backlog.shared));
            let unseen = entry.since(number, group);
            unseen_bytes = unseen_bytes.saturating_add(unseen.bytes);
            entry.note(own.saturating_add(shared), unseen, mean);
            entry.lane.note(own, at);
            entry.count.messages > 0 || !entry.lane.is_forgotten(at)
        });
        for (token, backlog) in found {
            let mut entry = Entry::default();
            entry.note(backlog.own.saturating_add(backlog.shared), Count::default(), mean);
            entry.lane.note(backlog.own, at);
            self.entries.insert(token.into(), entry);
        }
        self.used = look.bytes.saturating_add(unseen_bytes);
        self.lanes = self.entries.values().map(Entry::lane_bytes).fold(0, u64::saturating_add);
        // Whoever kept this ledger before may have known of a pause.
        if is_first {
            self.begin_graces(0, at);
        }
        self.report(at)
    }

    fn report(&mut self, at: Duration) -> (u64, Vec<BacklogNotice>) {
        let free = self.free();
        let (mut fullest, mut notices) = (0, Vec::new());
        for (token, entry) in &mut self.entries {
            let usage = entry.usage(free, at);
            let limits = entry.limits.within(self.settings);
            if !limits.is_passed(&usage) {
                entry.grace.end();
            }
            let percent = limits.percent(&usage);
            fullest = fullest.max(percent);
            if percent < FAR {
                entry.is_reported = false;
            } else if percent >= NEAR && !entry.is_reported {
                entry.is_reported = true;
                notices.push(BacklogNotice { token: token.to_string(), percent, messages: usage.messages });
            }
        }
        notices.sort_unstable_by(|one, other| one.token.cmp(&other.token));
        (fullest, notices)
    }

    /// Whether a backlog is larger than its quota.
    pub fn has_excess(&self, now: Duration) -> bool {
        let free = self.free();
        self.entries
            .values()
            .any(|entry| entry.limits.within(self.settings).is_passed(&entry.usage(free, now)))
    }

    /// Lets each backlog that is larger than its quota drain from what it has now: the domain is paused.
    pub fn note_pause(&mut self, now: Duration) {
        self.begin_graces(self.capacity / GRACE_PART, now);
    }

    fn begin_graces(&mut self, more: u64, now: Duration) {
        let (free, settings) = (self.free(), self.settings);
        for entry in self.entries.values_mut() {
            if entry.limits.within(settings).is_passed(&entry.usage(free, now)) {
                entry.grace.begin(entry.count.bytes, more, now);
            }
        }
    }

    /// Takes note of a look at one subscription, which was requested after [`Self::begin_group`] and before the group is
    /// stored. `outbox_bytes`: the size of the whole outbox then. Since the last look at all, others may have delivered
    /// as much as the outbox holds, and the limit is a part of what is free.
    pub fn note_one(&mut self, backlog: &Backlog, outbox_bytes: u64, at: Duration) {
        self.used = outbox_bytes.saturating_add(self.group_bytes);
        let (group, mean) = (self.group, self.mean);
        let entry = self.entries.entry(backlog.token.as_str().into()).or_default();
        let unseen = if entry.in_group.0 == group { entry.in_group.1 } else { Count::default() };
        let before = entry.lane_bytes();
        entry.note(backlog.own.saturating_add(backlog.shared), unseen, mean);
        entry.lane.note(backlog.own, at);
        let after = entry.lane_bytes();
        self.lanes = self.lanes.saturating_sub(before).saturating_add(after);
    }

    /// The backlog of a subscription, as far as it is known.
    pub fn usage(&self, token: &str, now: Duration) -> Usage {
        let free = self.free();
        self.entries.get(token).map_or(Usage { free, ..Usage::default() }, |entry| entry.usage(free, now))
    }

    /// The bytes of the whole outbox, as far as they are known.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The number of subscriptions that it knows.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Entry {
    fn usage(&self, free: u64, now: Duration) -> Usage {
        let Count { messages, bytes } = self.count;
        Usage { messages, bytes, own_lane: self.lane.exists(), free, grace: self.grace.bytes(true, now) }
    }

    fn lane_bytes(&self) -> u64 {
        if self.lane.exists() { self.count.bytes } else { 0 }
    }
}
