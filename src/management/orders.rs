//! Orders on many dead letters at once: replay, discard, and following what was replayed. The
//! caller is told how far it has come by a callback, which must not block.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, FuturesUnordered};
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dead_letters::{DeadLetterQuery, PAGE, Pages};
use super::{Management, ManagementError};
use crate::domain::dead_letter::DeadLetterState;
use crate::domain::subscription::Identity;
use crate::nats::{DeadLetterEntry, NatsError, RedriveOrder};
use crate::settings::SubscriptionSource;

/// Orders and deletions under way at once.
const AT_ONCE: usize = 256;
/// Subscriptions looked up at once.
const LOOKUPS_AT_ONCE: usize = 64;
/// How often replayed dead letters are looked at; the server tells nobody when one is dropped.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Where one selected dead letter stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    pub domain: String,
    pub sequence: u64,
    pub id: String,
    /// Its envelope is on its way again already.
    pub replaying: bool,
    /// Whose it is; `None` where its envelope could not be read.
    pub owner: Option<Identity>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    Order(RedriveOrder),
    Discard,
}

impl Act {
    fn verb(self) -> &'static str {
        match self {
            Self::Order(_) => "ordered",
            Self::Discard => "discarded",
        }
    }
}

/// What a replay did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Replayed {
    pub selected: usize,
    pub ordered: usize,
    /// On their way again already, and left alone.
    pub already_replaying: usize,
    /// Left alone because their subscription was removed; one created again under its name is another.
    pub removed: usize,
}

/// Which subscriptions were removed, each looked up once.
#[derive(Debug, Default)]
pub(super) struct Removals(HashMap<Identity, bool>);

impl Removals {
    pub(super) fn has(&self, one: &Selected) -> bool {
        one.owner.as_ref().is_some_and(|owner| self.0.get(owner) == Some(&true))
    }
}

/// What became of replayed dead letters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Followed {
    pub delivered: usize,
    /// Failed again: each stands as a dead letter anew.
    pub failed: usize,
    pub on_their_way: usize,
    /// Discarded meanwhile, by whoever.
    pub discarded: usize,
}

impl Management {
    /// All that the filter means, before anything is done to them: what is put there meanwhile is
    /// not. Nothing, or an id that is not among them, is an error. `seen` is told how many there are
    /// so far.
    pub async fn select_dead_letters(
        &self,
        filter: &DeadLetterQuery,
        mut seen: impl FnMut(usize) + Send,
    ) -> Result<Vec<Selected>, ManagementError> {
        let mut selected: Vec<Selected> = Vec::new();
        let mut pages = self.dead_letter_pages(filter)?;
        while let Some(page) = pages.next(PAGE).await? {
            selected.extend(page.into_iter().map(Selected::from));
            seen(selected.len());
        }
        let found: HashSet<&str> = selected.iter().map(|one| one.id.as_str()).collect();
        let missing: Vec<String> =
            filter.ids.iter().filter(|id| !found.contains(id.as_str())).cloned().collect();
        if selected.is_empty() || !missing.is_empty() {
            return Err(ManagementError::NoneSelected { ids: missing });
        }
        Ok(selected)
    }

    /// Orders each to be sent again now; by force also what is on its way already. `done` is told
    /// how many are ordered, of how many. What belongs to a removed subscription is left alone; if that
    /// is the only one, it is an error.
    pub async fn replay(
        &self,
        selected: &[Selected],
        force: bool,
        done: impl FnMut(usize, usize) + Send,
    ) -> Result<Replayed, ManagementError> {
        let mut removals = Removals::default();
        self.look_up_owners(selected, &mut removals).await?;
        if let [one] = selected
            && removals.has(one)
            && let Some(owner) = &one.owner
        {
            let (id, subscription) = (one.id.clone(), owner.to_string());
            return Err(ManagementError::OwnerRemoved { id, subscription });
        }
        let (removed, standing): (Vec<_>, Vec<_>) = selected.iter().partition(|one| removals.has(one));
        let ordered: Vec<&Selected> =
            standing.iter().copied().filter(|one| force || !one.replaying).collect();
        let order = if force { RedriveOrder::OperatorForce } else { RedriveOrder::Operator };
        self.each(&ordered, Act::Order(order), done).await?;
        Ok(Replayed {
            selected: selected.len(),
            ordered: ordered.len(),
            already_replaying: standing.len() - ordered.len(),
            removed: removed.len(),
        })
    }

    /// Those of the selected that can be delivered again: all whose subscription still is the one that they were for.
    pub async fn deliverable(&self, selected: &[Selected]) -> Result<Vec<Selected>, ManagementError> {
        let mut removals = Removals::default();
        self.look_up_owners(selected, &mut removals).await?;
        Ok(selected.iter().filter(|one| !removals.has(one)).cloned().collect())
    }

    /// Looks up whose subscriptions are still there. Where they are resolved elsewhere nobody can say.
    pub(super) async fn look_up_owners(
        &self,
        selected: &[Selected],
        removals: &mut Removals,
    ) -> Result<(), ManagementError> {
        if self.settings.subscriptions.source != SubscriptionSource::Registry {
            return Ok(());
        }
        let mut unknown: Vec<&Identity> = selected.iter().filter_map(|one| one.owner.as_ref()).collect();
        unknown.retain(|owner| !removals.0.contains_key(owner));
        let unknown: HashSet<Identity> = unknown.into_iter().cloned().collect();
        let mut found = stream::iter(unknown)
            .map(|owner| async move {
                let stored = self.js.subscription(&owner.subscription).await?;
                let is_there = stored.is_some_and(|one| one.subscription.incarnation == owner.incarnation);
                Ok::<_, NatsError>((owner, !is_there))
            })
            .buffer_unordered(LOOKUPS_AT_ONCE);
        while let Some(found) = found.next().await {
            let (owner, removed) = found?;
            removals.0.insert(owner, removed);
        }
        Ok(())
    }

    /// Removes each for good, undelivered. `done` is told how many are, of how many.
    pub async fn discard(
        &self,
        selected: &[Selected],
        done: impl FnMut(usize, usize) + Send,
    ) -> Result<(), ManagementError> {
        self.each(&selected.iter().collect::<Vec<_>>(), Act::Discard, done).await
    }

    /// Does it to all, many at once; stops at the first failure and tells how far it came.
    async fn each(
        &self,
        selected: &[&Selected],
        act: Act,
        mut told: impl FnMut(usize, usize) + Send,
    ) -> Result<(), ManagementError> {
        let (mut done, total, verb) = (0, selected.len(), act.verb());
        told(done, total);
        let one_done = || {
            done += 1;
            told(done, total);
        };
        let result = self.each_until(&CancellationToken::new(), selected, act, one_done).await;
        result.map_err(|source| ManagementError::Halfway { verb, done, total, source })
    }

    /// Does it to all, many at once, until the first failure or until told to halt; what is under way
    /// then is still awaited. `one_done` hears of each.
    pub(super) async fn each_until(
        &self,
        halt: &CancellationToken,
        selected: &[&Selected],
        act: Act,
        mut one_done: impl FnMut() + Send,
    ) -> Result<(), NatsError> {
        let (mut under_way, mut rest) = (FuturesUnordered::new(), selected.iter());
        loop {
            while under_way.len() < AT_ONCE
                && !halt.is_cancelled()
                && let Some(one) = rest.next()
            {
                under_way.push(self.carry_out(one, act));
            }
            let Some(result) = under_way.next().await else { return Ok(()) };
            result?;
            one_done();
        }
    }

    async fn carry_out(&self, one: &Selected, act: Act) -> Result<(), NatsError> {
        match act {
            Act::Order(order) => self.js.order_redrive(&one.domain, one.sequence, order).await,
            Act::Discard => self.js.discard_dead_letter(&one.domain, one.sequence).await,
        }
    }

    /// Looks until none of them stands any more, or the time is up. One that is gone was delivered, unless it was
    /// discarded, or one of the same id stands behind it: that is its successor, which failed again. `told`
    /// hears of each look.
    pub async fn follow(
        &self,
        ordered: &[Selected],
        limit: Duration,
        mut told: impl FnMut(Followed) + Send,
    ) -> Result<Followed, ManagementError> {
        let deadline = Instant::now() + limit;
        let mut waiting: BTreeMap<&str, HashMap<u64, &str>> = BTreeMap::new();
        for one in ordered {
            waiting.entry(&one.domain).or_default().insert(one.sequence, &one.id);
        }
        let mut followed = Followed { on_their_way: ordered.len(), ..Followed::default() };
        let mut seen: HashMap<&str, (u64, u64)> = HashMap::new();
        loop {
            for (domain, pending) in waiting.iter_mut().filter(|(_, pending)| !pending.is_empty()) {
                // Counted before it is read: what changes in between is read again.
                let state = self.js.stream_info(&self.js.names().dlt_stream(domain)).await?.state;
                let now = (state.messages, state.last_seq);
                if seen.insert(domain, now) == Some(now) {
                    continue;
                }
                let (standing, newest) = self.standing(domain, pending).await?;
                let discarded = self.js.discarded(domain).await?;
                pending.retain(|sequence, id| {
                    if standing.contains(sequence) {
                        return true;
                    }
                    let failed = newest.get(*id).is_some_and(|newer| newer > sequence);
                    let became = if discarded.contains(sequence) {
                        &mut followed.discarded
                    } else if failed {
                        &mut followed.failed
                    } else {
                        &mut followed.delivered
                    };
                    *became += 1;
                    false
                });
            }
            followed.on_their_way = waiting.values().map(HashMap::len).sum();
            told(followed);
            if followed.on_their_way == 0 || Instant::now() >= deadline {
                return Ok(followed);
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + LOOK_EVERY)).await;
        }
    }

    /// Which of the pending sequences stand in the stream, and the newest sequence of each id.
    async fn standing(
        &self,
        domain: &str,
        pending: &HashMap<u64, &str>,
    ) -> Result<(HashSet<u64>, HashMap<String, u64>), ManagementError> {
        let query = DeadLetterQuery {
            ids: pending.values().map(|id| (*id).to_owned()).collect(),
            ..DeadLetterQuery::default()
        };
        let (mut standing, mut newest) = (HashSet::new(), HashMap::new());
        let mut pages = Pages::new(&self.js, query, vec![domain.to_owned()]);
        while let Some(page) = pages.next(PAGE).await? {
            for entry in page {
                if pending.contains_key(&entry.sequence) {
                    standing.insert(entry.sequence);
                }
                newest.insert(entry.letter.id, entry.sequence);
            }
        }
        Ok((standing, newest))
    }
}

impl From<DeadLetterEntry> for Selected {
    fn from(entry: DeadLetterEntry) -> Self {
        Self {
            sequence: entry.sequence,
            replaying: entry.letter.state == DeadLetterState::Replaying,
            owner: entry.letter.owner(),
            domain: entry.letter.domain,
            id: entry.letter.id,
        }
    }
}
