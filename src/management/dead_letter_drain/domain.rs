//! The dead letters of one domain: looks at its outbox and backlogs, and requests the replays that there is room for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::LeftLetters;
use super::pages::{Fate, Line, LinePage, Marks, Part};
use super::used_up::UsedUpWatch;
use crate::domain::backlog::{OutboxLook, Usage};
use crate::domain::replay_pace::{
    Allowance, Awaited, Extent, Fit, MOST_AT_ONCE, OVERHEAD, ReplayRoom, Wait, WaitingEvents,
};
use crate::domain::stream_fill::Fill;
use crate::management::dead_letter_actions::{DeadLetterAction, RemovedOwners, SelectedDeadLetter};
use crate::management::dead_letters::DeadLetterQuery;
use crate::management::{Management, ManagementError};
use crate::nats::{NatsError, RedriveTrigger};

/// Most replays of a domain that are requested with one look.
const MOST_PER_LOOK: u64 = 2_000;
/// No more are requested while the hub has not taken more than this of those before.
const MOST_NOT_TAKEN: usize = 64;
/// An event that had no room comes again within this time, and may make a dead letter then.
const EVENT_IS_BACK: Duration = Duration::from_secs(16);
/// A used-up envelope is looked at again within this time.
const USED_UP_IS_BACK: Duration = Duration::from_secs(40);
/// Dead letters in strict lanes that are read at once to find one that stops its lane.
const STOPS_READ: u64 = 16;
/// Subscriptions that are read at once.
pub(super) const READ_AT_ONCE: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Replaying,
    /// There is no room, or the server fails.
    Waiting,
    /// All are requested and taken. Events without room may still make some.
    Settling,
    Done,
    /// It had no room for too long.
    GivenUp,
    /// An error ended it.
    Failed,
}

/// A request that the hub has not taken yet.
#[derive(Clone)]
pub(super) struct Requested {
    pub(super) token: String,
    pub(super) size: u64,
}

/// The dead letters of one domain.
pub(super) struct DomainDrain<'a> {
    pub(super) management: &'a Management,
    pub(super) filter: &'a DeadLetterQuery,
    pub(super) domain: String,
    /// `None` before the first look.
    pub(super) extent: Option<Extent>,
    /// By the token of the subscription.
    pub(super) lines: BTreeMap<String, Line>,
    not_taken: HashMap<u64, Requested>,
    /// Requested or counted before the position of their line reached them.
    pub(super) ahead: HashSet<u64>,
    /// Perhaps requested: there was no answer.
    pub(super) uncertain: HashSet<u64>,
    pub(super) marks: Marks,
    pub(super) removals: RemovedOwners,
    pub(super) watch: UsedUpWatch,
    /// The subscription that was looked at last.
    last: String,
    pub(super) replayed: u64,
    pub(super) left: LeftLetters,
    pub(super) more_left: bool,
    /// Used-up envelopes that wait at the end.
    pub(super) used_up: u64,
    pub(super) state: State,
    pub(super) error: Option<ManagementError>,
    started: Instant,
    wait: Wait,
    /// What it waits for, or has waited for.
    pub(super) awaited: Option<Awaited>,
    settling: Option<Instant>,
}

impl<'a> DomainDrain<'a> {
    pub(super) fn new(management: &'a Management, filter: &'a DeadLetterQuery, domain: String) -> Self {
        Self {
            management,
            filter,
            domain,
            extent: None,
            lines: BTreeMap::new(),
            not_taken: HashMap::new(),
            ahead: HashSet::new(),
            uncertain: HashSet::new(),
            marks: Marks::default(),
            removals: RemovedOwners::default(),
            watch: UsedUpWatch::default(),
            last: String::new(),
            replayed: 0,
            left: LeftLetters::default(),
            more_left: false,
            used_up: 0,
            state: State::Replaying,
            error: None,
            started: Instant::now(),
            wait: Wait::new(Duration::ZERO),
            awaited: None,
            settling: None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Done | State::GivenUp | State::Failed)
    }

    pub(super) fn not_taken(&self) -> u64 {
        self.not_taken.len() as u64
    }

    fn waits_for(&mut self, what: Awaited, amount: u64) {
        let now = self.started.elapsed();
        if self.state != State::Waiting {
            (self.state, self.wait) = (State::Waiting, Wait::new(now));
        }
        self.wait.look(what, amount, now);
        self.awaited = Some(what);
    }

    /// Requests the replays that there is room for. Only an own look shows whether the patience is over.
    pub(super) async fn look(&mut self, patience: Duration, stop: &CancellationToken) {
        match self.try_look(stop).await {
            Ok(()) => self.error = None,
            Err(error) => {
                let passes = may_pass(&error)
                    // Whoever runs the hub makes a deleted stream again.
                    || (self.extent.is_some() && matches!(error, ManagementError::NotProvisioned { .. }));
                self.error = Some(error);
                self.marks.forget();
                if passes {
                    self.waits_for(Awaited::Server, 0);
                } else {
                    self.state = State::Failed;
                }
            }
        }
        if self.state == State::Waiting && self.wait.is_over(patience, self.started.elapsed()) {
            self.state = State::GivenUp;
        }
    }

    async fn try_look(&mut self, stop: &CancellationToken) -> Result<(), ManagementError> {
        // In this order: what is taken is in the outbox, what an event or a used-up envelope became is a dead letter, and
        // what is a dead letter has a subject.
        let due = self.forget_taken().await?;
        if self.not_taken.len() > MOST_NOT_TAKEN {
            self.waits_for(Awaited::Taken, self.not_taken());
            return Ok(());
        }
        let (js, names) = (&self.management.js, self.management.js.names());
        let events = js.stream_info_of_leader(&names.events_stream()).await?.state;
        let events = WaitingEvents { first: events.first_seq, last: events.last_seq };
        let (outbox, dlt) = (names.outbox_stream(&self.domain), names.dlt_stream(&self.domain));
        if self.extent.is_none() {
            // What is marked is in the outbox when its envelopes are counted afterwards.
            self.read_marks(true).await?;
        }
        self.look_at_used_up(self.state == State::Waiting).await?;
        self.forget_finished().await?;
        let used_up = self.used_up_of_filter();
        let (outbox, dlt) =
            tokio::try_join!(js.stream_info_of_leader(&outbox), js.stream_info_of_leader(&dlt))?;
        let (last_envelope, outbox, last_letter) = (outbox.state.last_seq, outbox.fill(), dlt.state.last_seq);
        let now = self.started.elapsed();
        let extent = self.extent.get_or_insert_with(|| {
            Extent::new(events, last_letter, now).with_used_up(used_up, last_envelope)
        });
        // Those that are no longer used up are dead letters.
        extent.look(events, last_letter, now);
        extent.look_at_used_up(used_up, now);
        let end = extent.last();
        let mut space = self.space(&outbox);
        if space.is_none() {
            self.waits_for(Awaited::Outbox, outbox.messages);
            return Ok(());
        }
        let (look, subjects) = tokio::try_join!(js.backlogs(&self.domain, None), self.subjects())?;
        self.read_marks(false).await?;
        let mut sums = Sums::default();
        let parts = self.parts(&look, &outbox, &subjects, end).await?;
        for parts in parts.chunks(READ_AT_ONCE) {
            if space.is_none() || stop.is_cancelled() {
                break;
            }
            self.replay(parts, &due, &mut space, &mut sums, stop).await?;
        }
        let is_done = |token: &String| self.lines.get(token).is_some_and(|line| line.position > end);
        let all_done = subjects.keys().all(is_done);
        if sums.requested > 0 {
            self.state = State::Replaying;
        } else if sums.without_room > 0 {
            self.waits_for(Awaited::Backlogs, sums.awaited);
        } else if sums.without_space {
            self.waits_for(Awaited::Outbox, outbox.messages);
        } else if !self.not_taken.is_empty() {
            self.waits_for(Awaited::Taken, self.not_taken());
        } else if all_done {
            self.settle(events, last_letter);
        } else {
            // Only dead letters that are left were read.
            self.state = State::Replaying;
        }
        Ok(())
    }

    /// The room of the outbox.
    fn space(&self, outbox: &Fill) -> Allowance {
        let (pending, bytes) = (self.not_taken(), self.not_taken.values().map(|one| one.size).sum());
        let beyond = (self.watch.used_up.total() > 0).then(|| {
            let (unfinished, more) = self.watch.unfinished_beside(&self.not_taken);
            ReplayRoom::beside_used_up(outbox, pending + unfinished, bytes + more)
        });
        Allowance::new(ReplayRoom::of_outbox(outbox, pending, bytes), beyond).at_most(MOST_PER_LOOK)
    }

    /// All that there was is done. Whether events or used-up envelopes had no room, and come again.
    fn settle(&mut self, events: WaitingEvents, last_letter: u64) {
        let Some(extent) = &mut self.extent else { return };
        let since = *self.settling.get_or_insert_with(Instant::now);
        self.state = State::Settling;
        if since.elapsed() >= if extent.expects_used_up() { USED_UP_IS_BACK } else { EVENT_IS_BACK } {
            extent.stop_growing();
        }
        if extent.is_growing() {
            return;
        }
        self.settling = None;
        if extent.begin_second(events, last_letter, self.replayed, self.started.elapsed()) {
            self.state = State::Replaying;
        } else {
            self.state = State::Done;
        }
    }

    /// What to read of each subscription that has unread dead letters, from the one after the last.
    async fn parts(
        &mut self,
        look: &OutboxLook,
        outbox: &Fill,
        subjects: &BTreeMap<String, Vec<String>>,
        end: u64,
    ) -> Result<Vec<Part>, ManagementError> {
        let backlogs: HashMap<&str, u64> =
            look.backlogs.iter().map(|one| (one.token.as_str(), one.own + one.shared)).collect();
        let own: HashSet<&str> =
            look.backlogs.iter().filter(|one| one.own > 0).map(|one| one.token.as_str()).collect();
        let average = look.bytes.checked_div(look.messages).unwrap_or(0);
        let after = subjects.range::<str, _>((Excluded(self.last.as_str()), Unbounded));
        let tokens: Vec<&String> =
            after.chain(subjects.iter()).map(|(token, _)| token).take(subjects.len()).collect();
        let is_open = |token: &&String| self.lines.get(*token).is_none_or(|line| line.position <= end);
        let tokens: Vec<&String> = tokens.into_iter().filter(is_open).collect();
        self.look_up_limits(&tokens).await?;
        let mut requested: HashMap<&str, u64> = HashMap::new();
        for one in self.not_taken.values() {
            *requested.entry(one.token.as_str()).or_default() += 1;
        }
        let (mut parts, mut planned) = (Vec::new(), 0);
        for token in tokens {
            if planned >= MOST_PER_LOOK {
                break;
            }
            let line = self.lines.entry(token.clone()).or_default();
            let used_up = &self.watch.used_up;
            let backlog = backlogs.get(token.as_str()).copied().unwrap_or(0);
            let messages = backlog.saturating_sub(used_up.least(token))
                + requested.get(token.as_str()).copied().unwrap_or(0);
            let usage = Usage {
                messages,
                bytes: messages.saturating_mul(average).max(line.sizes.most_bytes_of(messages)),
                own_lane: own.contains(token.as_str()),
                free: outbox.max_bytes.map_or(u64::MAX, |limit| limit.saturating_sub(look.bytes)),
                grace: 0,
            };
            let room = ReplayRoom::of_subscription(&line.limits.unwrap_or_default(), &usage);
            let beyond = (used_up.is_uncertain(token) || used_up.is_all(token))
                .then(|| ReplayRoom::of_few(self.watch.unfinished_of(token)));
            let room = Allowance::new(room, beyond);
            let is_of_stops = room.is_none();
            let count = if is_of_stops { STOPS_READ } else { room.count(line.average).min(MOST_AT_ONCE) };
            let from = if is_of_stops { line.stops.max(line.position) } else { line.position };
            let limit = usize::try_from(count).unwrap_or(1).max(1);
            let subjects = subjects.get(token).cloned().unwrap_or_default();
            let mut part =
                Part { token: token.clone(), subjects, from, limit, room, waiting: messages, is_of_stops };
            if is_of_stops {
                part.keep_strict(self);
            }
            planned += if part.subjects.is_empty() { 0 } else { count };
            parts.push(part);
        }
        Ok(parts)
    }

    /// Requests the next replays of some subscriptions.
    async fn replay(
        &mut self,
        parts: &[Part],
        due: &HashSet<u64>,
        space: &mut Allowance,
        sums: &mut Sums,
        stop: &CancellationToken,
    ) -> Result<(), ManagementError> {
        let end = self.extent.map_or(0, |extent| extent.last());
        let mut pages = self.read(parts, end).await?;
        self.look_up_removed(&pages).await?;
        for (part, page) in parts.iter().zip(&mut pages) {
            self.last.clone_from(&part.token);
            if part.is_of_stops {
                (sums.without_room, sums.awaited) = (sums.without_room + 1, sums.awaited + part.waiting);
            }
            self.judge(page, due);
            let (mut room, mut chosen) = (part.room, 0);
            let mut cut = None;
            for (index, letter) in page.letters.iter_mut().enumerate() {
                if letter.fate != Fate::Replay || page.is_of_stops {
                    continue;
                }
                let size = letter.size.saturating_add(OVERHEAD);
                let fit = if letter.is_stuck { room.fit_beyond(size) } else { room.fit(size) };
                let (Some(fit), Some(fit_of_outbox)) = (fit, space.fit(size)) else {
                    if chosen == 0 {
                        let is_full = fit.is_none();
                        sums.without_room += u64::from(is_full);
                        sums.awaited += if is_full { part.waiting } else { 0 };
                        sums.without_space |= !is_full;
                    }
                    cut = Some(index);
                    break;
                };
                room.take(size, fit);
                space.take(size, fit_of_outbox);
                letter.is_beyond = [fit, fit_of_outbox].contains(&Fit::Beyond);
                chosen += 1;
            }
            page.cut(cut);
        }
        let (mut confirmed, mut result) = (HashSet::new(), Ok(()));
        for (is_stuck, trigger) in [(false, RedriveTrigger::Operator), (true, RedriveTrigger::OperatorForce)]
        {
            let chosen: Vec<&SelectedDeadLetter> = pages
                .iter()
                .flat_map(|page| &page.letters)
                .filter(|letter| letter.fate == Fate::Replay && letter.is_stuck == is_stuck)
                .map(|letter| &letter.selected)
                .collect();
            if result.is_ok() && !chosen.is_empty() {
                let act = DeadLetterAction::Redrive(trigger);
                let confirm = |one: &SelectedDeadLetter| {
                    confirmed.insert(one.sequence);
                };
                result = self.management.each_until(stop, &chosen, act, confirm).await;
            }
        }
        if !confirmed.is_empty() {
            (self.state, self.settling) = (State::Replaying, None);
        }
        sums.requested += confirmed.len() as u64;
        self.replayed += confirmed.len() as u64;
        for page in pages {
            self.advance(page, &confirmed, result.is_err());
        }
        Ok(result?)
    }

    /// Moves the position of a line beyond all that are done.
    fn advance(&mut self, page: LinePage, confirmed: &HashSet<u64>, failed: bool) {
        let line = self.lines.entry(page.token.clone()).or_default();
        let mut position = if page.is_of_stops { line.stops } else { line.position };
        let mut is_blocked = false;
        for letter in &page.letters {
            let sequence = letter.selected.sequence;
            let is_confirmed = confirmed.contains(&sequence);
            if is_confirmed {
                let size = letter.size.saturating_add(OVERHEAD);
                if !page.is_of_stops {
                    line.sizes.add(size);
                }
                let size = if page.is_of_stops { 0 } else { size };
                let requested = Requested { token: page.token.clone(), size };
                if letter.is_beyond {
                    self.watch.add(sequence, requested.clone());
                }
                self.not_taken.insert(sequence, requested);
            }
            match letter.fate {
                Fate::Replay if !is_confirmed => {
                    is_blocked = true;
                    if failed {
                        self.uncertain.insert(sequence);
                    }
                }
                Fate::Replay if is_blocked || page.is_of_stops => {
                    self.ahead.insert(sequence);
                }
                Fate::Left(why) if !is_blocked && !page.is_of_stops => self.left.add(why),
                Fate::Done if !is_blocked && !page.is_of_stops => {
                    self.ahead.remove(&sequence);
                }
                Fate::Replay | Fate::Left(_) | Fate::Done => {}
            }
            if !is_blocked {
                position = sequence + 1;
            }
        }
        if !is_blocked {
            position = position.max(page.next);
        }
        *(if page.is_of_stops { &mut line.stops } else { &mut line.position }) = position;
    }

    /// Forgets the requests that the hub has taken; returns those that are not taken.
    async fn forget_taken(&mut self) -> Result<HashSet<u64>, NatsError> {
        if self.not_taken.is_empty() && self.uncertain.is_empty() {
            return Ok(HashSet::new());
        }
        let due = self.management.js.redrives_due(&self.domain).await?;
        self.not_taken.retain(|sequence, _| due.contains(sequence));
        Ok(due)
    }
}

/// What one look found.
#[derive(Default)]
struct Sums {
    requested: u64,
    without_room: u64,
    /// The backlogs of the subscriptions without room.
    awaited: u64,
    /// The outbox has no room for the next one.
    without_space: bool,
}

/// The same request may succeed later.
fn may_pass(error: &ManagementError) -> bool {
    let is_of_connection =
        |error: &NatsError| matches!(error, NatsError::NotConnected | NatsError::Status { .. });
    error.is_passing() || matches!(error, ManagementError::Nats(error) if is_of_connection(error))
}
