//! The processes that deliver, as this one knows them from their notices.
//!
//! A process hears its own notices too. Time in which it does not hear them does not count against the others, so that
//! an outage of the broker removes nobody.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use super::division::{Demand, Divided, Part, divide};

/// Interval of the notices.
pub const BEAT: Duration = Duration::from_secs(1);
/// A new process takes no part before it has listened to the others for this long. They answer its first notice.
const JOINING: Duration = Duration::from_millis(500);
/// A process that was not heard for this long is gone.
const EXPIRY: Duration = Duration::from_secs(4);
/// A process that does not hear itself for this long is cut off: the others may consider it gone.
const CUT_OFF: Duration = Duration::from_secs(3);
/// A process that does not hear itself for this long although it delivers lacks the permission, and uses its last parts.
const UNHEARD: Duration = Duration::from_secs(60);
/// Notices of one turn.
const BEATS_PER_TURN: u64 = 3;
/// Most processes that are known; further ones are ignored.
const MOST_MEMBERS: usize = 1000;

/// A process: a random number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(u64);

impl MemberId {
    pub fn new(random: u64) -> Self {
        Self(random)
    }

    /// Parses 16 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        (digits && text.len() == 16).then(|| u64::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    Delivering,
    /// It stops, and starts no delivery.
    Stopping,
    Gone,
}

/// What a process announces about a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// A hash of the subscription's identity.
    pub key: u64,
    pub demand: Option<Demand>,
    /// Its deliveries in progress, which may exceed its part after a change.
    pub in_flight: u32,
}

/// The notice of a process to all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberNotice {
    pub member: MemberId,
    pub state: MemberState,
    pub turn: u64,
    pub announced: Vec<Announced>,
    /// It has demands for further subscriptions.
    pub more: bool,
}

#[derive(Debug)]
struct Member {
    state: MemberState,
    /// When it was heard, in the time of `Members::listened`.
    heard: Duration,
    announced: HashMap<u64, Announced>,
    more: bool,
}

impl Member {
    fn demand(&self, key: u64) -> Option<Demand> {
        let announced = self.announced.get(&key).and_then(|announced| announced.demand);
        announced.or(self.more.then_some(Demand { slots: 1, rate: 1 }))
    }

    fn in_flight(&self, key: u64) -> usize {
        self.announced.get(&key).map_or(0, |announced| announced.in_flight as usize)
    }
}

/// A division as this process sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Own {
    pub(super) part: Part,
    /// Deliveries of other processes beyond their parts.
    pub(super) excess: usize,
}

#[derive(Debug)]
pub(super) struct Members {
    me: MemberId,
    members: BTreeMap<MemberId, Member>,
    turn: u64,
    own_notices: u64,
    first_echo: Option<Duration>,
    last_echo: Duration,
    /// The time in which this process has heard itself.
    listened: Duration,
    /// Changes with each change of a division.
    version: u64,
    changed: Duration,
}

impl Members {
    pub(super) fn new(me: MemberId) -> Self {
        Self {
            me,
            members: BTreeMap::new(),
            turn: 0,
            own_notices: 0,
            first_echo: None,
            last_echo: Duration::ZERO,
            listened: Duration::ZERO,
            version: 0,
            changed: Duration::ZERO,
        }
    }

    pub(super) fn me(&self) -> MemberId {
        self.me
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// When the last change was heard.
    pub(super) fn changed(&self) -> Duration {
        self.changed
    }

    pub(super) fn are_several(&self) -> bool {
        self.members.keys().any(|member| *member != self.me)
    }

    /// Number of other processes.
    pub(super) fn others(&self) -> usize {
        self.members.keys().filter(|member| **member != self.me).count()
    }

    pub(super) fn has_joined(&self, now: Duration) -> bool {
        self.first_echo.is_some_and(|first| first + JOINING <= now)
    }

    /// When this process joined; `None` if it had no other process to share with then.
    pub(super) fn joined_others(&self) -> Option<Duration> {
        self.are_several().then_some(self.first_echo?)
    }

    /// Whether others may consider this process gone.
    pub(super) fn is_cut_off(&self, now: Duration) -> bool {
        let unheard = now.saturating_sub(self.last_echo);
        self.are_several() && (CUT_OFF..UNHEARD).contains(&unheard)
    }

    /// The turn to announce. The process with the lowest id advances it.
    pub(super) fn next_turn(&mut self) -> u64 {
        self.own_notices += 1;
        let mut delivering = self.delivering();
        let keeps_time = delivering.next().is_some_and(|(first, _)| *first == self.me);
        if keeps_time && self.own_notices.is_multiple_of(BEATS_PER_TURN) {
            return self.turn.wrapping_add(1);
        }
        self.turn
    }

    pub(super) fn turn(&self) -> u64 {
        self.turn
    }

    /// Returns true if the notice is of a process that was not known.
    pub(super) fn hear(&mut self, notice: &MemberNotice, now: Duration) -> bool {
        let is_me = notice.member == self.me;
        if is_me {
            self.echo(now);
        }
        let before = self.members.get(&notice.member);
        let is_new = before.is_none() && notice.state != MemberState::Gone;
        if is_new && self.members.len() >= MOST_MEMBERS && !is_me {
            return false;
        }
        // The turn is ahead, also after an overflow.
        let ahead = notice.turn.wrapping_sub(self.turn);
        let mut changes = is_new;
        if ahead > 0 && ahead < u64::MAX / 2 {
            self.turn = notice.turn;
            changes = true;
        }
        if notice.state == MemberState::Gone {
            // A process that hears its own last notice is still there.
            changes |= !is_me && self.members.remove(&notice.member).is_some();
        } else {
            let announced: HashMap<u64, Announced> =
                notice.announced.iter().map(|one| (one.key, *one)).collect();
            changes |= before.is_some_and(|before| {
                before.state != notice.state || before.more != notice.more || before.announced != announced
            });
            let member = Member { state: notice.state, heard: self.listened, announced, more: notice.more };
            self.members.insert(notice.member, member);
        }
        if changes {
            self.change(now);
        }
        is_new && !is_me
    }

    fn echo(&mut self, now: Duration) {
        if self.first_echo.is_some() {
            self.listened += now.saturating_sub(self.last_echo).min(2 * BEAT);
        }
        self.first_echo.get_or_insert(now);
        self.last_echo = now;
        let (known, me, listened) = (self.members.len(), self.me, self.listened);
        self.members.retain(|member, state| *member == me || listened - state.heard <= EXPIRY);
        if self.members.len() != known {
            self.change(now);
        }
    }

    fn change(&mut self, now: Duration) {
        self.version += 1;
        self.changed = now;
    }

    fn delivering(&self) -> impl Iterator<Item = (&MemberId, &Member)> {
        self.members.iter().filter(|(_, member)| member.state == MemberState::Delivering)
    }

    /// The part of this process in the limits of a subscription with that key.
    pub(super) fn own_part(&self, key: u64, slots: usize, per_second: Option<f64>) -> Own {
        if !self.are_several() || !self.members.contains_key(&self.me) {
            return Own { part: Part { slots, rate: 1.0 }, excess: 0 };
        }
        let demands: Vec<Option<Demand>> = self.delivering().map(|(_, member)| member.demand(key)).collect();
        let limits = Divided { slots, per_second, shift: key, turn: self.turn };
        let parts = if demands.is_empty() { Vec::new() } else { divide(limits, &demands) };
        let mut own = Own { part: Part { slots: 0, rate: 0.0 }, excess: 0 };
        for ((member, state), part) in self.delivering().zip(parts) {
            if *member == self.me {
                own.part = part;
            } else {
                own.excess += state.in_flight(key).saturating_sub(part.slots);
            }
        }
        let stopping = self.members.values().filter(|member| member.state == MemberState::Stopping);
        own.excess += stopping.map(|member| member.in_flight(key)).sum::<usize>();
        own
    }
}
