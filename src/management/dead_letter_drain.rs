//! Replays many dead letters at the pace at which their domains and subscriptions have room, until none is left that can be
//! replayed.
//!
//! The dead letters of each subscription are read by itself, from a position that only advances. So memory does not grow
//! with their number, one whose endpoint does not keep up delays no other, and each is requested once. Nothing is stored
//! for the whole: whoever interrupts it can start it again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dead_letter_actions::{DeadLetterAction, RemovedOwners, SelectedDeadLetter};
use super::dead_letters::DeadLetterQuery;
use super::{Management, ManagementError};
use crate::domain::backlog::{Backlog, BacklogLimits, Look, Usage};
use crate::domain::dead_letter::DeadLetterState;
use crate::domain::replay_pace::{self, LeftBecause, MOST_AT_ONCE};
use crate::domain::subscription::{DEFAULT_TENANT, SubscriptionRef};
use crate::from_settings::backlog_limits;
use crate::nats::subjects::is_strict_lane;
use crate::nats::{NatsError, RedriveTrigger};

/// Interval of the looks at the domains while replays are requested, and while all wait.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOK_AT_WAITING_EVERY: Duration = Duration::from_millis(500);
/// Most replays of a domain that are requested with one look.
const MOST_PER_LOOK: u64 = 2_000;
/// No more are requested while the hub has not taken more than this of those before.
const MOST_NOT_TAKEN: usize = 64;
/// An event that had no room comes again within this time, and may make a dead letter then.
const EVENT_IS_BACK: Duration = Duration::from_secs(16);
/// Dead letters that are read at once to count those that are left.
const COUNTED_AT_ONCE: usize = 1_000;

/// The dead letters that were not replayed, by the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LeftLetters {
    /// Their replay was in progress before.
    pub already_replaying: u64,
    /// Their subscriptions were removed.
    pub removed: u64,
    /// Their envelopes cannot be read.
    pub undecodable: u64,
    /// They failed after the start, perhaps after a replay.
    pub failed_since: u64,
    /// There was no room in the outbox or in the backlogs of their subscriptions.
    pub no_room: u64,
    /// Somebody interrupted the whole.
    pub interrupted: u64,
}

impl LeftLetters {
    fn add(&mut self, why: LeftBecause) {
        *match why {
            LeftBecause::Replaying => &mut self.already_replaying,
            LeftBecause::Removed => &mut self.removed,
            LeftBecause::Undecodable => &mut self.undecodable,
            LeftBecause::FailedSince => &mut self.failed_since,
        } += 1;
    }

    /// Whether another start would replay some of them.
    pub fn can_continue(&self) -> bool {
        self.no_room > 0 || self.interrupted > 0
    }
}

/// The result so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Drained {
    pub replayed: u64,
    pub left: LeftLetters,
    /// Replays that no process with the role dlt-processor has taken yet.
    pub not_taken: u64,
    /// It waits for room.
    #[serde(skip)]
    pub is_waiting: bool,
}

/// How long a domain may wait for room.
#[derive(Debug, Clone, Copy)]
pub struct Patience(pub Duration);

impl Management {
    /// Replays the dead letters that the filter selects, until none is left that can be replayed, or a domain has had no
    /// room for `patience`. On `stop` it finishes the requests in progress. `report` gets each interim result.
    pub async fn drain_dead_letters(
        &self,
        filter: &DeadLetterQuery,
        Patience(patience): Patience,
        stop: &CancellationToken,
        mut report: impl FnMut(Drained) + Send,
    ) -> Result<Drained, ManagementError> {
        let started = self.js.read_now().await?;
        let names = self.domain_names(&filter.domains)?;
        let mut domains: Vec<DomainDrain<'_>> =
            names.into_iter().map(|domain| DomainDrain::new(self, filter, domain, started)).collect();
        loop {
            let mut drained = Drained::default();
            for domain in &mut domains {
                if !stop.is_cancelled() && !domain.is_over(patience) {
                    domain.look(stop).await?;
                }
                drained.add(domain, patience);
            }
            report(drained);
            if stop.is_cancelled() || domains.iter().all(|domain| domain.is_over(patience)) {
                break;
            }
            let replays = domains.iter().any(|domain| domain.state == State::Replaying);
            tokio::select! {
                () = tokio::time::sleep(if replays { LOOK_EVERY } else { LOOK_AT_WAITING_EVERY }) => {}
                () = stop.cancelled() => {}
            }
        }
        let mut drained = Drained::default();
        for domain in &mut domains {
            if domain.state != State::Done {
                let rest = domain.count_rest().await?;
                let left = &mut domain.left;
                *if stop.is_cancelled() { &mut left.interrupted } else { &mut left.no_room } += rest;
            }
            drained.add(domain, patience);
        }
        Ok(drained)
    }
}

impl Drained {
    fn add(&mut self, domain: &DomainDrain<'_>, patience: Duration) {
        self.replayed += domain.replayed;
        self.not_taken += domain.not_taken.len() as u64;
        let LeftLetters { already_replaying, removed, undecodable, failed_since, no_room, interrupted } =
            domain.left;
        self.left.already_replaying += already_replaying;
        self.left.removed += removed;
        self.left.undecodable += undecodable;
        self.left.failed_since += failed_since;
        self.left.no_room += no_room;
        self.left.interrupted += interrupted;
        self.is_waiting |= domain.state == State::Waiting && !domain.is_over(patience);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Replaying,
    /// There is no room.
    Waiting,
    /// All are requested and taken. Events without room may still make some.
    Settling,
    Done,
}

/// The dead letters of one domain.
struct DomainDrain<'a> {
    management: &'a Management,
    filter: &'a DeadLetterQuery,
    domain: String,
    started: OffsetDateTime,
    /// Where the unread dead letters of each subscription begin, by its token.
    positions: HashMap<String, u64>,
    /// The requests that the hub has not taken yet.
    not_taken: HashSet<u64>,
    /// The dead letters whose requests were interrupted.
    in_hand: HashSet<u64>,
    limits: HashMap<String, BacklogLimits>,
    removals: RemovedOwners,
    /// The subscription that was looked at last.
    last: String,
    replayed: u64,
    left: LeftLetters,
    state: State,
    /// Since when it is in its state without progress.
    since: Instant,
    /// The backlogs that it waits for.
    awaited: u64,
}

impl<'a> DomainDrain<'a> {
    fn new(
        management: &'a Management,
        filter: &'a DeadLetterQuery,
        domain: String,
        started: OffsetDateTime,
    ) -> Self {
        Self {
            management,
            filter,
            domain,
            started,
            positions: HashMap::new(),
            not_taken: HashSet::new(),
            in_hand: HashSet::new(),
            limits: HashMap::new(),
            removals: RemovedOwners::default(),
            last: String::new(),
            replayed: 0,
            left: LeftLetters::default(),
            state: State::Replaying,
            since: Instant::now(),
            awaited: 0,
        }
    }

    /// Whether nothing more can be done.
    fn is_over(&self, patience: Duration) -> bool {
        match self.state {
            State::Done => true,
            State::Waiting => self.since.elapsed() >= patience,
            State::Replaying | State::Settling => false,
        }
    }

    fn enter(&mut self, state: State) {
        if self.state != state {
            (self.state, self.since) = (state, Instant::now());
        }
    }

    /// Waits for room. Less to wait for is progress.
    fn wait(&mut self, awaited: u64) {
        if awaited < self.awaited {
            self.since = Instant::now();
        }
        self.awaited = awaited;
        self.enter(State::Waiting);
    }

    /// Requests the replays that there is room for.
    async fn look(&mut self, stop: &CancellationToken) -> Result<(), ManagementError> {
        self.forget_taken().await?;
        if self.not_taken.len() > MOST_NOT_TAKEN {
            self.wait(self.not_taken.len() as u64);
            return Ok(());
        }
        let js = &self.management.js;
        let outbox = js.stream_info(&js.names().outbox_stream(&self.domain)).await?.fill();
        if outbox.is_closed_to_excess() {
            self.wait(outbox.messages);
            return Ok(());
        }
        let end = js.stream_info(&js.names().dlt_stream(&self.domain)).await?.state.last_seq;
        let look = js.backlogs(&self.domain, None).await?;
        let backlogs: HashMap<&str, &Backlog> =
            look.backlogs.iter().map(|backlog| (backlog.token.as_str(), backlog)).collect();
        let by_token = self.subjects().await?;
        let (mut requested, mut awaited, mut waits) = (0, 0, false);
        // Each look begins after the subscription that was the last one.
        let after = by_token
            .range::<str, _>((std::ops::Bound::Excluded(self.last.as_str()), std::ops::Bound::Unbounded));
        let tokens: Vec<String> = after.chain(by_token.iter()).map(|(token, _)| token.clone()).collect();
        for token in tokens.into_iter().take(by_token.len()) {
            let position = self.positions.get(&token).copied().unwrap_or(1);
            let Some(subjects) = by_token.get(&token) else { continue };
            if position > end || stop.is_cancelled() || requested >= MOST_PER_LOOK {
                continue;
            }
            self.last.clone_from(&token);
            let usage = usage(&look, backlogs.get(token.as_str()).copied(), outbox.max_bytes);
            // What stops a strict order is the first of its lane, and leaves it by its replay only.
            let is_strict = subjects.iter().any(|subject| {
                js.names().parse_dead_letter(subject).is_some_and(|parsed| is_strict_lane(parsed.lane))
            });
            let least = u64::from(is_strict);
            let room = replay_pace::room(&self.limits_of(&token).await?, &usage).max(least);
            if room == 0 {
                (waits, awaited) = (true, awaited + usage.messages);
                continue;
            }
            let most = room.min(MOST_AT_ONCE).min(MOST_PER_LOOK);
            requested += self.replay(&token, subjects, end, most, stop).await?;
        }
        if requested > 0 {
            (self.state, self.since) = (State::Replaying, Instant::now());
        } else if waits {
            self.wait(awaited);
        } else if !self.not_taken.is_empty() {
            self.wait(self.not_taken.len() as u64);
        } else if by_token.keys().all(|token| self.positions.get(token).is_some_and(|next| *next > end)) {
            self.settle().await?;
        } else {
            // Only dead letters that are left were read.
            self.enter(State::Replaying);
        }
        Ok(())
    }

    /// All that there was is done. Whether events had no room, and come again.
    async fn settle(&mut self) -> Result<(), ManagementError> {
        self.enter(State::Settling);
        let js = &self.management.js;
        let events = js.stream_info(&js.names().events_stream()).await?.state.messages;
        if events == 0 || self.since.elapsed() >= EVENT_IS_BACK {
            self.enter(State::Done);
        }
        Ok(())
    }

    /// Requests the next replays of a subscription, at most `most`; returns their number.
    async fn replay(
        &mut self,
        token: &str,
        subjects: &[String],
        end: u64,
        most: u64,
        stop: &CancellationToken,
    ) -> Result<u64, ManagementError> {
        let limit = usize::try_from(most).unwrap_or(1).max(1);
        let (chosen, left, next) = self.read(token, subjects, end, limit).await?;
        let chosen: Vec<&SelectedDeadLetter> = chosen.iter().collect();
        let mut requested = 0;
        let act = DeadLetterAction::Redrive(RedriveTrigger::Operator);
        let result = self.management.each_until(stop, &chosen, act, || requested += 1).await;
        self.replayed += requested;
        result?;
        let sequences = chosen.iter().map(|one| one.sequence);
        if requested < chosen.len() as u64 {
            self.in_hand.extend(sequences);
            return Ok(requested);
        }
        self.not_taken.extend(sequences);
        left.into_iter().for_each(|why| self.left.add(why));
        self.positions.insert(token.to_owned(), next);
        Ok(requested)
    }

    /// The next dead letters of a subscription: those to replay, why others are left, and where the next ones begin.
    async fn read(
        &mut self,
        token: &str,
        subjects: &[String],
        end: u64,
        limit: usize,
    ) -> Result<(Vec<SelectedDeadLetter>, Vec<LeftBecause>, u64), ManagementError> {
        let from = self.positions.get(token).copied().unwrap_or(1);
        let js = &self.management.js;
        let page = js.dead_letters_in(&self.domain, subjects, self.filter, from, limit).await?;
        let last = page.entries.last().map_or(0, |entry| entry.sequence);
        let next = page.next.unwrap_or_else(|| last.max(end) + 1);
        let letters: Vec<_> = page.entries.iter().map(|entry| entry.letter.clone()).collect();
        let selected: Vec<_> = page.entries.into_iter().map(SelectedDeadLetter::from).collect();
        self.management.look_up_owners(&selected, &mut self.removals).await?;
        let (mut chosen, mut left) = (Vec::new(), Vec::new());
        for (letter, one) in letters.iter().zip(selected) {
            let is_requested =
                letter.state == DeadLetterState::Replaying || self.not_taken.contains(&one.sequence);
            if is_requested && self.in_hand.contains(&one.sequence) {
                continue;
            }
            match replay_pace::is_left(letter, self.removals.has(&one), self.started) {
                Some(why) => left.push(why),
                None => chosen.push(one),
            }
        }
        Ok((chosen, left, next))
    }

    /// Counts the dead letters that would be replayed, and notes why others are left.
    async fn count_rest(&mut self) -> Result<u64, ManagementError> {
        let js = &self.management.js;
        let end = js.stream_info(&js.names().dlt_stream(&self.domain)).await?.state.last_seq;
        let due = js.redrives_due(&self.domain).await?;
        self.not_taken.extend(self.in_hand.intersection(&due));
        let mut rest = 0;
        for (token, subjects) in self.subjects().await? {
            while self.positions.get(&token).copied().unwrap_or(1) <= end {
                let (chosen, left, next) = self.read(&token, &subjects, end, COUNTED_AT_ONCE).await?;
                rest += chosen.len() as u64;
                left.into_iter().for_each(|why| self.left.add(why));
                self.positions.insert(token.clone(), next);
            }
        }
        Ok(rest)
    }

    /// Forgets the requests that the hub has taken.
    async fn forget_taken(&mut self) -> Result<(), NatsError> {
        if self.not_taken.is_empty() {
            return Ok(());
        }
        let due = self.management.js.redrives_due(&self.domain).await?;
        self.not_taken.retain(|sequence| due.contains(sequence));
        Ok(())
    }

    /// The subjects of the dead letters that the filter may select, by the token of their subscription.
    async fn subjects(&self) -> Result<BTreeMap<String, Vec<String>>, NatsError> {
        let js = &self.management.js;
        let (names, mut by_token) = (js.names(), BTreeMap::<String, Vec<String>>::new());
        for subject in js.dead_letter_subjects(&self.domain).await? {
            let Some(parsed) = names.parse_dead_letter(&subject) else { continue };
            let is_wanted = |name: Option<SubscriptionRef>| {
                let is = |wanted: Option<&str>, value: Option<&str>| wanted.is_none() || wanted == value;
                // Older versions stored the dead letters of all tenants under the bare id.
                let is_bare = name.as_ref().is_some_and(|name| name.tenant() == DEFAULT_TENANT);
                (is_bare || is(self.filter.tenant.as_deref(), name.as_ref().map(SubscriptionRef::tenant)))
                    && is(self.filter.subscription.as_deref(), name.as_ref().map(SubscriptionRef::id))
            };
            let token = parsed.subscription.to_owned();
            if is_wanted(parsed.reference()) {
                by_token.entry(token).or_default().push(subject);
            }
        }
        Ok(by_token)
    }

    /// The quota of a subscription; that of every subscription if it was removed.
    async fn limits_of(&mut self, token: &str) -> Result<BacklogLimits, NatsError> {
        if let Some(limits) = self.limits.get(token) {
            return Ok(*limits);
        }
        let all = backlog_limits(&self.management.settings);
        let stored = match SubscriptionRef::from_token(token) {
            Some(name) => self.management.js.subscription(&name).await?,
            None => None,
        };
        let limits = stored.map_or(all, |stored| stored.subscription.delivery.backlog().within(all));
        self.limits.insert(token.to_owned(), limits);
        Ok(limits)
    }
}

/// The backlog of a subscription in a look at its domain.
fn usage(look: &Look, backlog: Option<&Backlog>, outbox: Option<u64>) -> Usage {
    let (own, messages) = backlog.map_or((0, 0), |backlog| (backlog.own, backlog.own + backlog.shared));
    Usage {
        messages,
        bytes: messages.saturating_mul(look.bytes.checked_div(look.messages).unwrap_or(0)),
        own_lane: own > 0,
        free: outbox.map_or(u64::MAX, |limit| limit.saturating_sub(look.bytes)),
    }
}
