//! How often the log repeats a line: the number of lines is bounded, however many events, endpoints or tenants cause them.
//!
//! The first line about a thing (a subscription and a reason, for example) is written. Those that follow within the
//! interval are counted, and the next line that is written carries their number. A kind of line is written at most
//! [`LINES_OF_KIND`] times per interval, of which at most [`LINES_OF_TENANT`] are about one tenant, and the number of
//! subscriptions does not change that. What is known about lines that are left out is bounded as well: only a
//! thing with a line has an entry, and an entry lasts until its last count is written.
//!
//! Times are durations since any fixed moment.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Lines of one kind per interval.
pub const LINES_OF_KIND: u32 = 30;
/// Lines of one kind per interval that are about one tenant.
pub const LINES_OF_TENANT: u32 = 10;
/// Bytes of each field of a [`Thing`] that distinguish it from others.
const MOST_BYTES: usize = 128;
const SEPARATOR: char = '\0';

/// What a line is about. A field that is empty does not matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Thing<'a> {
    pub domain: &'a str,
    pub tenant: &'a str,
    pub subscription: &'a str,
    /// A reason, a stream, a broker or another detail.
    pub detail: &'a str,
}

/// Whether a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineDecision {
    Write {
        /// Lines about the same thing that were left out since the last one.
        left_out: u64,
    },
    LeaveOut,
}

/// A number of lines that were left out, and are not followed by a line that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut<K> {
    pub kind: K,
    /// What they were about, as the fields of a [`Thing`]; all empty for many different things.
    pub about: [String; 4],
    pub count: u64,
}

/// The lines that were written lately, of each kind `K`. There are as many kinds as the program has sentences.
#[derive(Debug)]
pub struct RepeatedLines<K> {
    interval: Duration,
    kinds: BTreeMap<K, LinesOfKind>,
    /// Kept to save allocations.
    key: String,
}

#[derive(Debug, Default)]
struct LinesOfKind {
    /// Start of the interval in which lines are counted.
    since: Duration,
    lines: u32,
    lines_of_tenants: HashMap<String, u32>,
    /// In the order in which their counts get lines.
    things: BTreeMap<String, Written>,
    /// Lines without an entry that were left out.
    others: u64,
    others_since: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Written {
    at: Duration,
    left_out: u64,
}

impl<K: Copy + Ord> RepeatedLines<K> {
    /// With an interval of zero every line is written.
    pub fn new(interval: Duration) -> Self {
        Self { interval, kinds: BTreeMap::new(), key: String::new() }
    }

    /// Decides about one line. The caller writes it, or leaves it out.
    pub fn turn(&mut self, kind: K, thing: Thing<'_>, now: Duration) -> LineDecision {
        if self.interval.is_zero() {
            return LineDecision::Write { left_out: 0 };
        }
        self.key.clear();
        for (place, field) in
            [thing.domain, thing.tenant, thing.subscription, thing.detail].iter().enumerate()
        {
            if place > 0 {
                self.key.push(SEPARATOR);
            }
            self.key.push_str(&field[..field.floor_char_boundary(MOST_BYTES)]);
        }
        let interval = self.interval;
        let kind = self.kinds.entry(kind).or_default();
        kind.begin(now, interval);
        let tenant = &thing.tenant[..thing.tenant.floor_char_boundary(MOST_BYTES)];
        match kind.things.get_mut(self.key.as_str()) {
            Some(written) if now.saturating_sub(written.at) < interval => {
                written.left_out = written.left_out.saturating_add(1);
                LineDecision::LeaveOut
            }
            known => {
                let known = known.copied();
                if kind.spend(tenant) {
                    kind.things.insert(self.key.clone(), Written { at: now, left_out: 0 });
                    LineDecision::Write { left_out: known.map_or(0, |written| written.left_out) }
                } else {
                    match kind.things.get_mut(self.key.as_str()) {
                        Some(written) => written.left_out = written.left_out.saturating_add(1),
                        None => kind.leave_out(1, now),
                    }
                    LineDecision::LeaveOut
                }
            }
        }
    }

    /// The counts that no line has carried for an interval; to be called every few seconds. Each is returned once, and
    /// counts as a line.
    pub fn due(&mut self, now: Duration) -> Vec<LeftOut<K>> {
        let mut found = Vec::new();
        for (name, kind) in &mut self.kinds {
            kind.begin(now, self.interval);
            kind.collect(*name, now, self.interval, &mut found);
        }
        found
    }

    /// All counts, at the end of the process. Bounded as those of one interval.
    pub fn rest(&mut self) -> Vec<LeftOut<K>> {
        let mut found = Vec::new();
        for (name, mut kind) in std::mem::take(&mut self.kinds) {
            kind.lines = 0;
            kind.lines_of_tenants.clear();
            kind.collect(name, Duration::ZERO, Duration::ZERO, &mut found);
        }
        found
    }

    /// Number of things that are remembered.
    pub fn len(&self) -> usize {
        self.kinds.values().map(|kind| kind.things.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl LinesOfKind {
    /// Begins the next interval of the kind, if the last one is over. Entries that were not collected for more than an
    /// interval are forgotten; their counts are kept as those of others.
    fn begin(&mut self, now: Duration, interval: Duration) {
        if now.saturating_sub(self.since) < interval {
            return;
        }
        (self.since, self.lines) = (now, 0);
        self.lines_of_tenants.clear();
        let (mut forgotten, mut count) = (false, 0_u64);
        self.things.retain(|_, written| {
            let keep = now.saturating_sub(written.at) < interval * 2;
            if !keep {
                (forgotten, count) = (true, count.saturating_add(written.left_out));
            }
            keep
        });
        if forgotten {
            self.leave_out(count, now);
        }
    }

    /// Takes a line of the interval, if there is one left.
    fn spend(&mut self, tenant: &str) -> bool {
        if self.lines >= LINES_OF_KIND {
            return false;
        }
        if !tenant.is_empty() {
            match self.lines_of_tenants.get_mut(tenant) {
                Some(lines) if *lines >= LINES_OF_TENANT => return false,
                Some(lines) => *lines += 1,
                None => {
                    self.lines_of_tenants.insert(tenant.to_owned(), 1);
                }
            }
        }
        self.lines += 1;
        true
    }

    fn leave_out(&mut self, count: u64, now: Duration) {
        if count > 0 && self.others == 0 {
            self.others_since = now;
        }
        self.others = self.others.saturating_add(count);
    }

    fn collect<K: Copy>(&mut self, name: K, now: Duration, interval: Duration, found: &mut Vec<LeftOut<K>>) {
        let is_due = |written: &Written| now.saturating_sub(written.at) >= interval;
        let due: Vec<String> =
            self.things.iter().filter(|(_, written)| is_due(written)).map(|(key, _)| key.clone()).collect();
        for key in due {
            let Some(Written { left_out, .. }) = self.things.remove(&key) else { continue };
            if left_out == 0 {
                continue;
            }
            let about = fields(&key);
            if self.spend(&about[1]) {
                found.push(LeftOut { kind: name, about, count: left_out });
                self.things.insert(key, Written { at: now, left_out: 0 });
            } else {
                self.leave_out(left_out, now);
            }
        }
        if self.others > 0 && now.saturating_sub(self.others_since) >= interval {
            let count = std::mem::take(&mut self.others);
            found.push(LeftOut { kind: name, about: Default::default(), count });
        }
    }
}

fn fields(key: &str) -> [String; 4] {
    let mut parts = key.splitn(4, SEPARATOR).map(str::to_owned);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

#[cfg(test)]
mod tests;
