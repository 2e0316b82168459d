//! Used-up envelopes, and the replays that go on beyond the pace because of them.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use super::domain::{DomainDrain, Requested};
use crate::domain::dead_letter_query::DeadLetterQuery;
use crate::domain::outcome::Reason;
use crate::domain::replay_pace::UsedUp;
use crate::domain::subscription::{DEFAULT_TENANT, SubscriptionRef};
use crate::nats::NatsError;

/// A look at the used-up envelopes, or at the unfinished replays, is repeated after this many times what it took.
const PAUSE_FACTOR: u32 = 10;
/// Dead letters that are looked up at once.
const LOOKUPS_AT_ONCE: usize = 16;

/// When something is read again.
#[derive(Default)]
struct Again(Option<Instant>);

impl Again {
    fn is_due(&self) -> bool {
        self.0.is_none_or(|again| Instant::now() >= again)
    }

    fn took(&mut self, time: Duration) {
        self.0 = Some(Instant::now() + time * PAUSE_FACTOR);
    }
}

#[derive(Default)]
pub(super) struct UsedUpWatch {
    pub(super) used_up: UsedUp,
    again: Again,
    /// Replays beyond the pace that are neither delivered nor failed, by the sequence of their dead letter.
    unfinished: HashMap<u64, Requested>,
    finished_again: Again,
}

impl UsedUpWatch {
    pub(super) fn add(&mut self, sequence: u64, requested: Requested) {
        self.unfinished.insert(sequence, requested);
    }

    /// The unfinished replays of a subscription.
    pub(super) fn unfinished_of(&self, token: &str) -> u64 {
        self.unfinished.values().filter(|one| one.token == token).count() as u64
    }

    /// Those that are not among these requests, and their bytes.
    pub(super) fn unfinished_beside(&self, requests: &HashMap<u64, Requested>) -> (u64, u64) {
        let beside = self.unfinished.iter().filter(|(sequence, _)| !requests.contains_key(sequence));
        beside.fold((0, 0), |(count, bytes), (_, one)| (count + 1, bytes + one.size))
    }
}

impl DomainDrain<'_> {
    /// Reads which envelopes are used up, unless that is fresh or can change nothing.
    pub(super) async fn look_at_used_up(&mut self, matters: bool) -> Result<(), NatsError> {
        let is_first = self.extent.is_none();
        if !is_first && !(self.watch.again.is_due() && (matters || self.watch.used_up.total() > 0)) {
            return Ok(());
        }
        let asked = Instant::now();
        self.watch.used_up = self.management.js.used_up(&self.domain).await?;
        self.watch.again.took(asked.elapsed());
        Ok(())
    }

    /// Forgets the replays beyond the pace whose dead letters are gone: delivered, or replaced by a new one.
    pub(super) async fn forget_finished(&mut self) -> Result<(), NatsError> {
        if self.watch.unfinished.is_empty() || !self.watch.finished_again.is_due() {
            return Ok(());
        }
        let asked = Instant::now();
        let (js, dlt) = (&self.management.js, self.management.js.names().dlt_stream(&self.domain));
        let dlt = &dlt;
        let looked: Vec<(u64, bool)> =
            stream::iter(self.watch.unfinished.keys().copied())
                .map(|sequence| async move {
                    Ok::<_, NatsError>((sequence, js.get(dlt, sequence).await?.is_some()))
                })
                .buffer_unordered(LOOKUPS_AT_ONCE)
                .try_collect()
                .await?;
        for (sequence, _) in looked.into_iter().filter(|(_, is_there)| !is_there) {
            self.watch.unfinished.remove(&sequence);
        }
        self.watch.finished_again.took(asked.elapsed());
        Ok(())
    }

    /// The used-up envelopes whose dead letters the filter will select.
    pub(super) fn used_up_of_filter(&self) -> u64 {
        let used_up = &self.watch.used_up;
        let DeadLetterQuery {
            tenant,
            subscription,
            reason,
            state,
            event_key,
            event_id,
            since,
            until,
            ids,
            domains: _,
        } = self.filter;
        let is_narrow = state.is_some()
            || event_key.is_some()
            || event_id.is_some()
            || since.is_some()
            || until.is_some()
            || !ids.is_empty();
        if is_narrow || reason.is_some_and(|reason| reason != Reason::Exhausted) {
            return 0;
        }
        if tenant.is_none() && subscription.is_none() {
            return used_up.total();
        }
        used_up
            .tokens()
            .filter(|token| self.wants(SubscriptionRef::from_token(token)))
            .map(|token| used_up.least(token))
            .sum()
    }

    /// Whether the filter may select dead letters of this subscription.
    pub(super) fn wants(&self, name: Option<SubscriptionRef>) -> bool {
        let is = |wanted: Option<&str>, value: Option<&str>| wanted.is_none() || wanted == value;
        // Older versions stored the dead letters of all tenants under the bare id.
        let is_bare = name.as_ref().is_some_and(|name| name.tenant() == DEFAULT_TENANT);
        (is_bare || is(self.filter.tenant.as_deref(), name.as_ref().map(SubscriptionRef::tenant)))
            && is(self.filter.subscription.as_deref(), name.as_ref().map(SubscriptionRef::id))
    }
}
