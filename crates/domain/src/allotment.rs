//! The limits of subscriptions, `max_in_flight` and `rate_limit`, for all pools of a process and for all processes.
//!
//! A process has one state for each subscription, which its pools (one per domain) share: whoever needs a slot or a token
//! gets it. A pool that was refused is in a line; the first in the line is next.
//!
//! Processes divide the limits by their notices (see `division`). A smaller part applies at once, a larger one only
//! after the others have had time to hear the same. Deliveries in progress beyond a part are announced, and the others
//! leave room for them. So the parts together exceed a limit only for the time that a notice takes, or for the time until
//! a process that is new is heard.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use foldhash::fast::RandomState;
use sha2::{Digest as _, Sha256};

use crate::subscription::{Identity, RateLimit};

mod bucket;
mod division;
mod members;
mod shared;
mod state;
#[cfg(test)]
mod tests;

pub use division::Demand;
pub use members::{Announced, BEAT, MemberId, MemberNotice, MemberState};
pub use shared::{SharedAllotments, Sharer, Wake};

use members::Members;
use state::AllotmentState;

/// Most subscriptions in a notice; those beyond are announced together.
pub const MOST_ANNOUNCED: usize = 1000;
/// Subscriptions with a state, without those that cannot be forgotten yet.
const MOST_REMEMBERED: usize = 50_000;
/// The state of a subscription is kept this long after its last delivery.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// A slot or token is kept for the first in the line for this long.
const KEPT: Duration = Duration::from_millis(20);
/// A pool that waits asks again after this time, because its part may have changed.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The same if its process has nothing in flight.
const ASK_AGAIN_SOON: Duration = Duration::from_millis(100);
/// A pool in the line that does not ask by this long after its time has nothing to deliver any more.
const LATE: Duration = Duration::from_secs(1);

/// The number of a pool in its process.
type Pool = usize;

/// The limits of a subscription, as they were when the pool got its last item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct FlowLimits {
    pub(crate) max_in_flight: u32,
    pub(crate) rate: Option<RateLimit>,
    pub(crate) offered: Duration,
}

/// Why a delivery may not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The pool asks again after this time, or when it is woken.
    pub(crate) wait: Duration,
    /// If all slots are in use: how many the process has.
    pub(crate) in_flight: Option<usize>,
}

/// The limits of all subscriptions with deliveries in this process. Times are durations since the same fixed start for
/// all pools.
#[derive(Debug)]
pub(crate) struct Allotments {
    members: Members,
    states: HashMap<Identity, AllotmentState, RandomState>,
    /// For each pool the subscriptions for which it is the next.
    freed: Vec<HashSet<Identity>>,
    /// Pools to wake.
    to_wake: Vec<Pool>,
    /// The others should learn of a change before the next regular notice.
    urgent: bool,
    stopping: bool,
    /// Announced in the last notice.
    announced: HashMap<u64, u32>,
}

impl Allotments {
    pub(crate) fn new(me: MemberId, pools: usize) -> Self {
        Self {
            members: Members::new(me),
            states: HashMap::default(),
            freed: vec![HashSet::new(); pools],
            to_wake: Vec::new(),
            urgent: false,
            stopping: false,
            announced: HashMap::new(),
        }
    }

    /// Takes a slot, and a token if there is a rate limit, for a pool in which `waiting` items wait. Call `release` at
    /// the end of the delivery.
    pub(crate) fn take(
        &mut self,
        pool: Pool,
        id: &Identity,
        limits: FlowLimits,
        waiting: usize,
        now: Duration,
    ) -> Result<(), Refused> {
        if self.members.is_cut_off(now) {
            return Err(Refused { wait: ASK_AGAIN_SOON, in_flight: None });
        }
        if !self.states.contains_key(id) {
            let since = self.members.joined_others();
            self.states.insert(id.clone(), AllotmentState::new(key(id), limits, since, &self.members, now));
        }
        let state = self.states.get_mut(id).expect("it was inserted");
        state.set_limits(limits, now);
        state.refresh(&self.members, now);
        match state.take(pool, now) {
            state::TakeAnswer::Taken => Ok(()),
            state::TakeAnswer::Refused(refused, kept_for) => {
                if let Some(first) = kept_for {
                    self.freed[first].insert(id.clone());
                    self.to_wake.push(first);
                }
                let was_listed = state.is_listed(now);
                state.queue(pool, waiting, refused.wait, now);
                self.urgent |= !was_listed && self.members.are_several();
                Err(refused)
            }
        }
    }

    /// Takes back the token of a delivery that ends without an attempt: a rate limit is one of attempts. Call `release`
    /// afterwards.
    pub(crate) fn put_back(&mut self, id: &Identity) {
        if let Some(state) = self.states.get_mut(id) {
            state.put_back();
        }
    }

    /// Frees the slot of a delivery that ended.
    pub(crate) fn release(&mut self, pool: Pool, id: &Identity, now: Duration) {
        if let Some(state) = self.states.get_mut(id)
            && let Some(next) = state.release(pool, now)
        {
            self.freed[next].insert(id.clone());
            self.to_wake.push(next);
        }
    }

    /// The subscriptions for which the pool is the next since the last call.
    pub(crate) fn freed(&mut self, pool: Pool) -> HashSet<Identity> {
        std::mem::take(&mut self.freed[pool])
    }

    pub(crate) fn take_to_wake(&mut self) -> Vec<Pool> {
        std::mem::take(&mut self.to_wake)
    }

    pub(crate) fn has_joined(&self, now: Duration) -> bool {
        self.members.has_joined(now)
    }

    /// Number of other processes.
    pub(crate) fn others(&self) -> usize {
        self.members.others()
    }

    /// Announces from now on that this process starts no deliveries.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
        self.urgent = true;
    }

    /// The regular notice, every [`BEAT`].
    pub(crate) fn beat(&mut self, now: Duration) -> MemberNotice {
        let turn = self.members.next_turn();
        let mut notice = self.notice(now);
        notice.turn = turn;
        self.states.values_mut().for_each(AllotmentState::next_window);
        let over = self.states.len() > MOST_REMEMBERED;
        self.states.retain(|_, state| !state.may_be_forgotten(over, now));
        notice
    }

    /// A notice between two regular ones, if the others should learn of a change.
    pub(crate) fn urgent_notice(&mut self, now: Duration) -> Option<MemberNotice> {
        if !self.members.are_several() {
            self.urgent = false;
            return None;
        }
        // The first notice after an outage ends it.
        let mut urgent = self.urgent || self.members.is_cut_off(now);
        for state in self.states.values_mut() {
            let told = self.announced.get(&state.key()).map(|told| *told as usize);
            if !state.is_active() && told.is_none() {
                continue;
            }
            state.refresh(&self.members, now);
            let slots = if self.stopping { 0 } else { state.slots() };
            // Others leave room for what is in flight beyond the part.
            let beyond = |in_flight: usize| in_flight.saturating_sub(slots);
            urgent |= beyond(told.unwrap_or(0)) != beyond(state.in_flight());
        }
        urgent.then(|| self.notice(now))
    }

    fn notice(&mut self, now: Duration) -> MemberNotice {
        self.urgent = false;
        let mut announced = Vec::new();
        let several = self.members.are_several();
        for state in self.states.values_mut().filter(|_| several) {
            if state.is_active() {
                state.refresh(&self.members, now);
            }
            announced.extend(state.announce(self.stopping, now));
        }
        // Deliveries beyond a part come first; then all processes have the same order.
        announced.sort_unstable_by_key(|one| (one.demand.is_some(), one.key));
        let more = announced.len() > MOST_ANNOUNCED;
        announced.truncate(MOST_ANNOUNCED);
        self.announced = announced.iter().map(|one| (one.key, one.in_flight)).collect();
        let state = if self.stopping { MemberState::Stopping } else { MemberState::Delivering };
        MemberNotice { member: self.members.me(), state, turn: self.members.turn(), announced, more }
    }

    /// The last notice of this process.
    pub(crate) fn goodbye(&self) -> MemberNotice {
        MemberNotice {
            member: self.members.me(),
            state: MemberState::Gone,
            turn: self.members.turn(),
            announced: Vec::new(),
            more: false,
        }
    }

    /// A notice of any process, this one included.
    pub(crate) fn hear(&mut self, notice: &MemberNotice, now: Duration) {
        // A new process waits for the answers.
        self.urgent |= self.members.hear(notice, now);
    }
}

/// The same in all processes.
fn key(id: &Identity) -> u64 {
    let text = format!("{}/{}", id.subscription.token(), id.incarnation);
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte))
}

/// A pool that was refused.
#[derive(Debug, Clone, Copy)]
struct RefusedPool {
    pool: Pool,
    /// It asks again by this time, or it has nothing to deliver any more.
    asks_by: Duration,
}

/// Pools that wait, the next one first.
type Line = VecDeque<RefusedPool>;
