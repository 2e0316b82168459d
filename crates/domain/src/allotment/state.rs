//! The limits of one subscription in this process.

use std::time::Duration;

use super::bucket::TokenBucket;
use super::division::{Demand, Part};
use super::members::{Announced, Members};
use super::{
    ASK_AGAIN, ASK_AGAIN_SOON, FlowLimits, KEPT, LATE, Line, Pool, REMEMBERED_FOR, Refused, RefusedPool,
};

/// A larger part applies after this time, in which the others hear what made it larger.
const SETTLE: Duration = Duration::from_millis(250);
/// A demand is announced while deliveries are in progress, and for this long after the last start or refusal.
const LISTED_FOR: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) enum TakeAnswer {
    Taken,
    /// With the pool that is the next instead, if it should be woken.
    Refused(Refused, Option<Pool>),
}

#[derive(Debug)]
pub(super) struct AllotmentState {
    key: u64,
    limits: FlowLimits,
    bucket: Option<TokenBucket>,
    in_flight: usize,
    line: Line,
    /// What is available is kept for the first in the line until this time.
    kept_until: Option<Duration>,
    /// Version of the members that `part` is computed from.
    version: Option<u64>,
    part: Part,
    /// A larger part and its time.
    pending: Option<(Part, Duration)>,
    excess: usize,
    /// Last delivery or refusal.
    used: Duration,
    /// Since it was refused, and until it is unused.
    listed: bool,
    /// Of the current window and of the one before.
    peaks: [usize; 2],
    taken: [usize; 2],
    waiting: [usize; 2],
}

impl AllotmentState {
    /// `since`: when this process joined others.
    pub(super) fn new(
        key: u64,
        limits: FlowLimits,
        since: Option<Duration>,
        members: &Members,
        now: Duration,
    ) -> Self {
        let bucket = limits.rate.map(|rate| match since {
            Some(since) => TokenBucket::empty(rate, since),
            None => TokenBucket::changed(None, rate, now),
        });
        let slots = limits.max_in_flight.max(1) as usize;
        let mut state = Self {
            key,
            limits,
            bucket,
            in_flight: 0,
            line: Line::new(),
            kept_until: None,
            version: None,
            part: Part { slots, rate: 1.0 },
            pending: None,
            excess: 0,
            used: now,
            listed: false,
            peaks: [0; 2],
            taken: [0; 2],
            waiting: [0; 2],
        };
        state.refresh(members, now);
        state
    }

    pub(super) fn key(&self) -> u64 {
        self.key
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Slots of this process.
    pub(super) fn slots(&self) -> usize {
        self.part.slots
    }

    /// Applies limits that are newer than the known ones.
    pub(super) fn set_limits(&mut self, limits: FlowLimits, now: Duration) {
        if limits.offered < self.limits.offered {
            return;
        }
        let changed = limits.max_in_flight != self.limits.max_in_flight || limits.rate != self.limits.rate;
        self.limits = limits;
        if !changed {
            return;
        }
        if self.bucket.as_ref().map(TokenBucket::limit) != limits.rate {
            self.bucket = limits.rate.map(|rate| TokenBucket::changed(self.bucket.as_ref(), rate, now));
        }
        self.part.slots = limits.max_in_flight.max(1) as usize;
        self.version = None;
    }

    /// Computes the part again after a change of the members.
    pub(super) fn refresh(&mut self, members: &Members, now: Duration) {
        if let Some((part, at)) = self.pending
            && at <= now
        {
            self.pending = None;
            self.set_part(part, now);
        }
        if self.version == Some(members.version()) {
            return;
        }
        let is_first = self.version.replace(members.version()).is_none();
        let slots = self.limits.max_in_flight.max(1) as usize;
        let own = members.own_part(self.key, slots, self.limits.rate.map(|rate| rate.per_second));
        self.excess = own.excess;
        let target = own.part;
        if is_first {
            self.pending = None;
            return self.set_part(target, now);
        }
        let smaller =
            Part { slots: target.slots.min(self.part.slots), rate: target.rate.min(self.part.rate) };
        self.pending = (target != smaller).then(|| {
            let kept =
                self.pending.filter(|(part, _)| target.slots <= part.slots && target.rate <= part.rate);
            (target, kept.map_or(members.changed() + SETTLE, |(_, at)| at))
        });
        self.set_part(smaller, now);
    }

    fn set_part(&mut self, part: Part, now: Duration) {
        self.part = part;
        if let Some(bucket) = &mut self.bucket {
            bucket.divide(part.rate, now);
        }
    }

    pub(super) fn take(&mut self, pool: Pool, now: Duration) -> TakeAnswer {
        self.used = now;
        self.line.retain(|waiting| waiting.asks_by >= now || waiting.pool == pool);
        loop {
            if self.in_flight >= self.part.slots.saturating_sub(self.excess) {
                self.kept_until = None;
                return TakeAnswer::Refused(self.no_slot(now), None);
            }
            let ahead = self.line.iter().take_while(|waiting| waiting.pool != pool).count();
            // Others that were kept a token for and do not come are behind.
            let first = self.line.front().map(|waiting| waiting.pool).filter(|first| *first != pool);
            if let Some(wait) = self.bucket.as_mut().and_then(|bucket| bucket.wait(0, now)) {
                let behind = self.bucket.as_mut().and_then(|bucket| bucket.wait(ahead, now));
                self.kept_until = None;
                let wait = behind.unwrap_or(wait).min(ASK_AGAIN);
                return TakeAnswer::Refused(Refused { wait, in_flight: None }, None);
            }
            match (first, self.kept_until) {
                (None, _) => break,
                (Some(first), None) => {
                    self.kept_until = Some(now + KEPT);
                    return TakeAnswer::Refused(Refused { wait: KEPT, in_flight: None }, Some(first));
                }
                (Some(_), Some(until)) if now < until => {
                    return TakeAnswer::Refused(Refused { wait: until - now, in_flight: None }, None);
                }
                (Some(_), Some(_)) => {
                    // It does not come, so the next one is the first.
                    self.line.pop_front();
                    self.kept_until = None;
                }
            }
        }
        self.line.retain(|waiting| waiting.pool != pool);
        self.kept_until = None;
        if let Some(bucket) = &mut self.bucket {
            bucket.spend();
        }
        self.in_flight += 1;
        self.peaks[0] = self.peaks[0].max(self.in_flight);
        self.taken[0] += 1;
        TakeAnswer::Taken
    }

    fn no_slot(&self, now: Duration) -> Refused {
        let wait = if self.in_flight == 0 { ASK_AGAIN_SOON } else { ASK_AGAIN };
        let larger = self.pending.map(|(_, at)| at.saturating_sub(now).max(Duration::from_millis(1)));
        let wait = larger.map_or(wait, |larger| larger.min(wait));
        Refused { wait, in_flight: Some(self.in_flight).filter(|in_flight| *in_flight > 0) }
    }

    /// Puts a pool that was refused into the line, in which it keeps its place.
    pub(super) fn queue(&mut self, pool: Pool, waiting: usize, wait: Duration, now: Duration) {
        self.listed = true;
        self.waiting[0] = self.waiting[0].max(waiting);
        let asks_by = now + wait + LATE;
        match self.line.iter_mut().find(|waiting| waiting.pool == pool) {
            Some(waiting) => waiting.asks_by = asks_by,
            None => self.line.push_back(RefusedPool { pool, asks_by }),
        }
    }

    /// Takes back the token of a delivery that ends without an attempt.
    pub(super) fn put_back(&mut self) {
        if let Some(bucket) = &mut self.bucket {
            bucket.put_back();
        }
        self.taken[0] = self.taken[0].saturating_sub(1);
    }

    /// Returns another pool that is the next.
    pub(super) fn release(&mut self, pool: Pool, now: Duration) -> Option<Pool> {
        self.in_flight = self.in_flight.saturating_sub(1);
        let first = self.line.iter().find(|waiting| waiting.asks_by >= now)?.pool;
        if first == pool || self.in_flight >= self.part.slots.saturating_sub(self.excess) {
            return None;
        }
        self.kept_until.get_or_insert(now + KEPT);
        Some(first)
    }

    /// Whether it has deliveries in progress, or pools wait.
    pub(super) fn is_active(&self) -> bool {
        self.in_flight > 0 || !self.line.is_empty()
    }

    pub(super) fn is_listed(&self, now: Duration) -> bool {
        self.listed && self.is_in_use(now)
    }

    /// A pool that has all slots asks again at its next finish, which may be a minute away.
    fn is_in_use(&self, now: Duration) -> bool {
        self.in_flight > 0 || self.used + LISTED_FOR > now
    }

    /// What the others should know, if anything.
    pub(super) fn announce(&mut self, stopping: bool, now: Duration) -> Option<Announced> {
        self.line.retain(|waiting| waiting.asks_by >= now);
        self.listed &= self.is_in_use(now) || !self.line.is_empty();
        let beyond = self.in_flight > if stopping { 0 } else { self.part.slots };
        let demand = (self.listed && !stopping).then(|| {
            let waiting = self.waiting[0].max(self.waiting[1]);
            let slots = self.peaks[0].max(self.peaks[1]).max(self.in_flight) + waiting;
            let rate = self.taken[0].max(self.taken[1]) + waiting;
            Demand { slots: rounded(slots), rate: rounded(rate) }
        });
        let in_flight = u32::try_from(self.in_flight).unwrap_or(u32::MAX);
        (demand.is_some() || beyond).then_some(Announced { key: self.key, demand, in_flight })
    }

    pub(super) fn next_window(&mut self) {
        self.peaks = [self.in_flight, self.peaks[0]];
        self.taken = [0, self.taken[0]];
        self.waiting = [0, self.waiting[0]];
    }

    pub(super) fn may_be_forgotten(&self, over: bool, now: Duration) -> bool {
        let is_full = self.bucket.as_ref().is_none_or(|bucket| bucket.is_full(now));
        !self.is_active() && (over || (is_full && self.used + REMEMBERED_FOR < now))
    }
}

/// A power of two, so that a demand seldom changes.
fn rounded(number: usize) -> u32 {
    u32::try_from(number.max(1).next_power_of_two()).unwrap_or(u32::MAX)
}
