//! Selects, replays and discards dead letters, and follows replayed ones. A callback reports the progress; it must not
//! block.

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
use crate::nats::{DeadLetterEntry, NatsError, RedriveTrigger};
use crate::settings::SubscriptionSource;

/// Maximum number of replays and deletions in progress.
const AT_ONCE: usize = 256;
/// Maximum number of subscription look-ups in progress.
const LOOKUPS_AT_ONCE: usize = 64;
/// How often to poll replayed dead letters; the server does not notify about deletions.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The position and owner of a selected dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedDeadLetter {
    pub domain: String,
    pub sequence: u64,
    pub id: String,
    /// Whether it is being replayed already.
    pub replaying: bool,
    /// Its subscription; `None` if its envelope could not be read.
    pub owner: Option<Identity>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum DeadLetterAction {
    Redrive(RedriveTrigger),
    Discard,
}

impl DeadLetterAction {
    fn verb(self) -> &'static str {
        match self {
            Self::Redrive(_) => "ordered",
            Self::Discard => "discarded",
        }
    }
}

/// The result of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Replayed {
    pub selected: usize,
    pub ordered: usize,
    /// Skipped because they are being replayed already.
    pub already_replaying: usize,
    /// Skipped because their subscription was removed; a new one with the same name does not count.
    pub removed: usize,
}

/// Which owners' subscriptions were removed; each is looked up once.
#[derive(Debug, Default)]
pub(super) struct RemovedOwners(HashMap<Identity, bool>);

impl RemovedOwners {
    pub(super) fn has(&self, one: &SelectedDeadLetter) -> bool {
        one.owner.as_ref().is_some_and(|owner| self.0.get(owner) == Some(&true))
    }
}

/// The outcome of replayed dead letters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Followed {
    pub delivered: usize,
    /// Failed again and are dead letters again.
    pub failed: usize,
    pub on_their_way: usize,
    /// Discarded in the meantime.
    pub discarded: usize,
}

impl Management {
    /// Reads all dead letters that match the filter. Fails if none matches or a given id does not. `seen` gets the number
    /// read so far.
    pub async fn select_dead_letters(
        &self,
        filter: &DeadLetterQuery,
        mut seen: impl FnMut(usize) + Send,
    ) -> Result<Vec<SelectedDeadLetter>, ManagementError> {
        let mut selected: Vec<SelectedDeadLetter> = Vec::new();
        let mut pages = self.dead_letter_pages(filter)?;
        while let Some(page) = pages.next(PAGE).await? {
            selected.extend(page.into_iter().map(SelectedDeadLetter::from));
            seen(selected.len());
        }
        let found: HashSet<&str> = selected.iter().map(|one| one.id.as_str()).collect();
        let missing: Vec<String> =
            filter.ids.iter().filter(|id| !found.contains(id.as_str())).cloned().collect();
        if selected.is_empty() || !missing.is_empty() {
            self.confirm_leader().await?;
            return Err(ManagementError::NoneSelected { ids: missing });
        }
        Ok(selected)
    }

    /// Requests a replay of each dead letter; with `force` also of those that are being replayed already. Skips dead
    /// letters of removed subscriptions, and fails if the only selected one is such. `done` gets the number requested
    /// and the total.
    pub async fn replay(
        &self,
        selected: &[SelectedDeadLetter],
        force: bool,
        done: impl FnMut(usize, usize) + Send,
    ) -> Result<Replayed, ManagementError> {
        let mut removals = RemovedOwners::default();
        self.look_up_owners(selected, &mut removals).await?;
        if let [one] = selected
            && removals.has(one)
            && let Some(owner) = &one.owner
        {
            let (id, subscription) = (one.id.clone(), owner.to_string());
            return Err(ManagementError::OwnerRemoved { id, subscription });
        }
        let (removed, standing): (Vec<_>, Vec<_>) = selected.iter().partition(|one| removals.has(one));
        let ordered: Vec<&SelectedDeadLetter> =
            standing.iter().copied().filter(|one| force || !one.replaying).collect();
        let trigger = if force { RedriveTrigger::OperatorForce } else { RedriveTrigger::Operator };
        self.each(&ordered, DeadLetterAction::Redrive(trigger), done).await?;
        Ok(Replayed {
            selected: selected.len(),
            ordered: ordered.len(),
            already_replaying: standing.len() - ordered.len(),
            removed: removed.len(),
        })
    }

    /// The selected dead letters that can be delivered: their subscription has not been removed.
    pub async fn deliverable(
        &self,
        selected: &[SelectedDeadLetter],
    ) -> Result<Vec<SelectedDeadLetter>, ManagementError> {
        let mut removals = RemovedOwners::default();
        self.look_up_owners(selected, &mut removals).await?;
        Ok(selected.iter().filter(|one| !removals.has(one)).cloned().collect())
    }

    /// Looks up which owners' subscriptions were removed. Does nothing if a resolver holds the subscriptions.
    pub(super) async fn look_up_owners(
        &self,
        selected: &[SelectedDeadLetter],
        removals: &mut RemovedOwners,
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

    /// Discards each dead letter. `done` gets the number discarded and the total.
    pub async fn discard(
        &self,
        selected: &[SelectedDeadLetter],
        done: impl FnMut(usize, usize) + Send,
    ) -> Result<(), ManagementError> {
        self.each(&selected.iter().collect::<Vec<_>>(), DeadLetterAction::Discard, done).await
    }

    /// Applies an action to all, many at once. Stops at the first failure; the error holds the progress.
    async fn each(
        &self,
        selected: &[&SelectedDeadLetter],
        act: DeadLetterAction,
        mut report: impl FnMut(usize, usize) + Send,
    ) -> Result<(), ManagementError> {
        let (mut done, total, verb) = (0, selected.len(), act.verb());
        report(done, total);
        let one_done = |_: &SelectedDeadLetter| {
            done += 1;
            report(done, total);
        };
        let result = self.each_until(&CancellationToken::new(), selected, act, one_done).await;
        result.map_err(|source| ManagementError::PartlyDone { verb, done, total, source })
    }

    /// Applies an action to all, many at once, until the first failure or `halt`, then waits for the operations in
    /// progress. Calls `one_done` after each that succeeded.
    pub(super) async fn each_until(
        &self,
        halt: &CancellationToken,
        selected: &[&SelectedDeadLetter],
        act: DeadLetterAction,
        mut one_done: impl FnMut(&SelectedDeadLetter) + Send,
    ) -> Result<(), NatsError> {
        let (mut under_way, mut rest) = (FuturesUnordered::new(), selected.iter());
        let mut all = Ok(());
        loop {
            while under_way.len() < AT_ONCE
                && !halt.is_cancelled()
                && all.is_ok()
                && let Some(one) = rest.next()
            {
                under_way.push(async move { (*one, self.carry_out(one, act).await) });
            }
            match under_way.next().await {
                Some((one, Ok(()))) => one_done(one),
                Some((_, Err(error))) => all = all.and(Err(error)),
                None => return all,
            }
        }
    }

    async fn carry_out(&self, one: &SelectedDeadLetter, act: DeadLetterAction) -> Result<(), NatsError> {
        match act {
            DeadLetterAction::Redrive(trigger) => {
                self.js.request_redrive(&one.domain, one.sequence, trigger).await
            }
            DeadLetterAction::Discard => self.js.discard_dead_letter(&one.domain, one.sequence).await,
        }
    }

    /// Polls until none of the dead letters exists any more, or the time limit passes. A deleted one was delivered, unless
    /// it was discarded or a newer one with the same id exists, which means that it failed again. `report` gets each
    /// interim result.
    pub async fn follow(
        &self,
        ordered: &[SelectedDeadLetter],
        limit: Duration,
        mut report: impl FnMut(Followed) + Send,
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
                // The state is read first, so that changes during the read below are found by the next poll.
                let state = self.js.stream_info_of_leader(&self.js.names().dlt_stream(domain)).await?.state;
                let now = (state.messages, state.last_seq);
                if seen.insert(domain, now) == Some(now) {
                    continue;
                }
                let (standing, newest) = self.remaining(domain, pending).await?;
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
            report(followed);
            if followed.on_their_way == 0 || Instant::now() >= deadline {
                return Ok(followed);
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + LOOK_EVERY)).await;
        }
    }

    /// Which of the pending sequences still exist in the stream, and the newest sequence of each id.
    async fn remaining(
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

impl From<DeadLetterEntry> for SelectedDeadLetter {
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
