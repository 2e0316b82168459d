//! The ledger of a domain.
//!
//! A look at the stream gives the number of envelopes of each subscription, but not their size; the ledger estimates it
//! from the sizes that it added. Additions that a look cannot contain yet count in addition to it, so the ledger of a
//! process never has less than the stream has by this process. It does not know what other processes have added since
//! the last look: an envelope that does not fit is counted exactly by another look before it is refused.

use std::collections::HashMap;
use std::time::Duration;

use super::excess::{Unstored, stays};
use super::limits::{BacklogLimits, Exceeded, Usage};
use super::own_lane::OwnLane;

/// What the ledger knows is not used for longer than this after a look.
const STALE: Duration = Duration::from_secs(10);
/// A backlog is reported at this part of its limit, in percent, and again after it was below the other.
const NEAR: u64 = 80;
const FAR: u64 = 60;

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
pub struct Look {
    pub messages: u64,
    pub bytes: u64,
    /// Those with envelopes.
    pub backlogs: Vec<Backlog>,
}

/// What happens to an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is added.
    Fits { own_lane: bool },
    /// It does not fit, as far as the ledger knows.
    Exceeds { exceeded: Exceeded, messages: u64, bytes: u64 },
}

/// A backlog that is nearly full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
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

    /// Adds an envelope of the group, if it fits.
    pub fn add(&mut self, token: &str, size: u64, limits: BacklogLimits, now: Duration) -> Decision {
        let free = self.capacity.saturating_sub(self.used);
        let (addition, settings) = (self.addition(size, now), self.settings);
        // One look-up, and no copy of the token, in the common case.
        let entry = match self.entries.get_mut(token) {
            Some(entry) => entry,
            None => self.entries.entry(token.into()).or_default(),
        };
        entry.limits = limits;
        let usage = entry.usage(free);
        if let Some(exceeded) = limits.within(settings).exceeded(&usage, size) {
            return Decision::Exceeds { exceeded, messages: usage.messages, bytes: usage.bytes };
        }
        let own_lane = entry.add(&addition);
        self.count(size);
        Decision::Fits { own_lane }
    }

    /// Adds an envelope of the group, whether or not it fits. Returns whether it goes to the own lane.
    pub fn add_beyond(&mut self, token: &str, size: u64, now: Duration) -> bool {
        let addition = self.addition(size, now);
        self.count(size);
        self.entries.entry(token.into()).or_default().add(&addition)
    }

    /// Adds an envelope over quota whose dead letter was not stored, if it may stay in the outbox nevertheless. Returns
    /// whether it goes to the own lane; `None` if its event waits.
    pub fn add_excess(&mut self, token: &str, size: u64, unstored: Unstored, now: Duration) -> Option<bool> {
        stays(unstored, size, self.used, self.capacity).then(|| self.add_beyond(token, size, now))
    }

    fn count(&mut self, size: u64) {
        self.used = self.used.saturating_add(size);
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
    pub fn note(&mut self, look: &Look, at: Duration) -> (u64, Vec<Notice>) {
        self.looked_at = Some(at);
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
        self.report()
    }

    fn report(&mut self) -> (u64, Vec<Notice>) {
        let free = self.capacity.saturating_sub(self.used);
        let (mut fullest, mut notices) = (0, Vec::new());
        for (token, entry) in &mut self.entries {
            let usage = entry.usage(free);
            let percent = entry.limits.within(self.settings).percent(&usage);
            fullest = fullest.max(percent);
            if percent < FAR {
                entry.is_reported = false;
            } else if percent >= NEAR && !entry.is_reported {
                entry.is_reported = true;
                notices.push(Notice { token: token.to_string(), percent, messages: usage.messages });
            }
        }
        (fullest, notices)
    }

    /// Takes note of a look at one subscription, which was requested after [`Self::begin_group`] and before the group is
    /// stored. `outbox_bytes`: the size of the whole outbox then. Since the last look at all, others may have delivered
    /// as much as the outbox holds, and the limit is a part of what is free.
    pub fn note_one(&mut self, backlog: &Backlog, outbox_bytes: u64, at: Duration) {
        self.used = outbox_bytes.saturating_add(self.group_bytes);
        let (group, mean) = (self.group, self.mean);
        let entry = self.entries.entry(backlog.token.as_str().into()).or_default();
        let unseen = if entry.in_group.0 == group { entry.in_group.1 } else { Count::default() };
        entry.note(backlog.own.saturating_add(backlog.shared), unseen, mean);
        entry.lane.note(backlog.own, at);
    }

    /// The backlog of a subscription, as far as it is known.
    pub fn usage(&self, token: &str) -> Usage {
        let free = self.capacity.saturating_sub(self.used);
        self.entries.get(token).map_or(Usage { free, ..Usage::default() }, |entry| entry.usage(free))
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
    fn usage(&self, free: u64) -> Usage {
        let Count { messages, bytes } = self.count;
        Usage { messages, bytes, own_lane: self.lane.exists(), free }
    }
}
