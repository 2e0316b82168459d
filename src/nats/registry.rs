//! The subscription registry: a KV bucket (ADR-8) and an in-memory index that follows it.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::watch;

use super::connection::JetStream;
use super::error::NatsError;
use super::ordered_reader::{OrderedEvent, OrderedReader, OrderedReaderOptions};
use super::stream_api::StreamInfo;
use crate::domain::filter::is_oversized;
use crate::domain::index::{IndexEntry, SubscriptionIndex};
use crate::domain::subscription::{Subscription, SubscriptionId, SubscriptionRef};
use crate::facts::{
    RegistryEntryUnreadable, RegistryKeySkipped, RegistryLoaded, RegistryNotFollowed, StoredFilterTooLarge,
};
use crate::health::Readiness;

mod entry;
mod listing;
mod misplaced;
mod size;

pub(in crate::nats) use entry::KeyRevision;
pub use entry::{RegistryEntry, UnreadableEntry, UnreadableRevision};
pub use listing::RegistryListing;
use misplaced::MisplacedEntry;
pub use size::RegistrySize;

/// The in-memory index of the bucket, shared by the roles of a process.
#[derive(Clone)]
pub struct Registry {
    index: Arc<RwLock<SubscriptionIndex>>,
    unreadable: Arc<RwLock<Vec<UnreadableEntry>>>,
    /// Changes when `unreadable` does.
    reported: watch::Receiver<()>,
    read_up_to: watch::Receiver<ReadPosition>,
    loaded: watch::Receiver<bool>,
}

/// The task that keeps the index up to date.
pub struct RegistryFollower {
    js: JetStream,
    index: Arc<RwLock<SubscriptionIndex>>,
    unreadable: Arc<RwLock<Vec<UnreadableEntry>>>,
    readiness: Readiness,
    report: watch::Sender<()>,
    read_up_to: watch::Sender<ReadPosition>,
    loaded: watch::Sender<bool>,
}

/// How far the bucket was read. A bucket that was created again counts from the beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ReadPosition {
    /// Creation time of the bucket.
    made: String,
    revision: u64,
}

/// A stored subscription.
#[derive(Debug, Clone)]
pub struct StoredSubscription {
    pub subscription: Subscription,
    /// The revision that a conditional write must expect.
    pub revision: u64,
}

impl Registry {
    /// Creates the index and its follower. `readiness` reports unreadable entries.
    pub fn new(js: &JetStream, readiness: Readiness) -> (Self, RegistryFollower) {
        let index = Arc::new(RwLock::new(SubscriptionIndex::default()));
        let unreadable = Arc::new(RwLock::default());
        let (revision_sender, read_up_to) = watch::channel(ReadPosition::default());
        let (loaded_sender, loaded) = watch::channel(false);
        let (report, reported) = watch::channel(());
        let follower = RegistryFollower {
            js: js.clone(),
            index: index.clone(),
            unreadable: Arc::clone(&unreadable),
            readiness,
            report,
            read_up_to: revision_sender,
            loaded: loaded_sender,
        };
        (Self { index, unreadable, reported, read_up_to, loaded }, follower)
    }

    /// The entries whose last revision is unreadable.
    pub fn unreadable(&self) -> Vec<UnreadableEntry> {
        self.unreadable.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Calls `report` with the unreadable entries, now and after each change. Never returns.
    pub async fn watch_unreadable(&self, mut report: impl FnMut(&[UnreadableEntry])) {
        let mut reported = self.reported.clone();
        loop {
            reported.mark_unchanged();
            report(&self.unreadable());
            // The follower is dropped only at shutdown, when the caller is cancelled too.
            if reported.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the tenant has an unreadable entry without an earlier readable revision, so that it is unknown which
    /// events that subscription wants.
    pub fn is_incomplete(&self, tenant: &str) -> bool {
        let unreadable = self.unreadable.read().unwrap_or_else(PoisonError::into_inner);
        unreadable.iter().any(|entry| entry.in_force.is_none() && entry.name.tenant() == tenant)
    }

    pub fn read(&self) -> RwLockReadGuard<'_, SubscriptionIndex> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_loaded(&self) -> bool {
        *self.loaded.borrow()
    }

    /// Waits until the whole bucket has been read once.
    pub async fn wait_until_loaded(&self) {
        let mut loaded = self.loaded.clone();
        // The follower is dropped only at shutdown, when the caller is cancelled too.
        if loaded.wait_for(|loaded| *loaded).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Registry {
    /// The names with this id, including unreadable entries, sorted by tenant.
    pub fn names_of_id(&self, id: &SubscriptionId) -> Vec<SubscriptionRef> {
        let unreadable = self.unreadable();
        let index = self.read();
        let readable = index.iter().map(|entry| &entry.subscription.reference);
        let all = readable.chain(unreadable.iter().map(|entry| &entry.name));
        let named: BTreeSet<_> = all.filter(|name| name.id() == id.as_str()).cloned().collect();
        named.into_iter().collect()
    }

    /// Waits until the index includes every write that the bucket holds now.
    pub async fn catch_up(&self, js: &JetStream) -> Result<(), NatsError> {
        let stream = js.names().subscriptions_stream();
        let StreamInfo { created, state, .. } = js.registry_info().await?;
        let mut read_up_to = self.read_up_to.clone();
        let caught_up = async {
            let done = |now: &ReadPosition| now.made == created && now.revision >= state.last_seq;
            if read_up_to.wait_for(done).await.is_err() {
                // The follower is dropped only at shutdown, when the caller is cancelled too.
                std::future::pending::<()>().await;
            }
        };
        tokio::time::timeout(js.request_timeout(), caught_up)
            .await
            .map_err(|_| NatsError::timeout(stream, js.request_timeout()))
    }
}

impl RegistryFollower {
    /// Follows the bucket forever. If the reader is lost, it reads the whole bucket again, so the index misses no change;
    /// until then the index keeps its previous contents.
    ///
    /// If the bucket is missing or is not the recorded one, the index keeps its contents until the registry is restored or
    /// accepted.
    pub async fn run(self) {
        let mut lost = false;
        loop {
            if let Err(error) = self.follow().await {
                // Its loss is reported once by the watch of the agreement.
                if !lost || !error.is_registry_lost() {
                    RegistryNotFollowed { error: &error }.emit();
                }
                lost = error.is_registry_lost();
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
        }
    }

    async fn follow(&self) -> Result<(), NatsError> {
        let names = self.js.names().clone();
        let stream = names.subscriptions_stream();
        self.js.check_registry().await?;
        let StreamInfo { created: made, state, .. } = self.js.registry_info().await?;
        let last = state.last_seq;
        let options = OrderedReaderOptions {
            filters: vec![names.subscriptions_filter()],
            last_per_subject: true,
            ..OrderedReaderOptions::default()
        };
        let mut reader = OrderedReader::open(&self.js, &stream, &options).await?;
        if self.js.stream_info(&stream).await?.created != made {
            // The bucket was created again in between: its revisions would count for the previous one, and `catch_up`
            // would never end.
            reader.close().await;
            return Ok(());
        }
        let mut loading = Some(HashSet::new());
        let mut misplaced = Vec::new();
        loop {
            if reader.remaining == 0 {
                // Before the registry counts as loaded, because events wait until these entries are moved.
                for entry in misplaced.drain(..) {
                    self.js.move_entry(&entry).await?;
                }
            }
            if reader.remaining == 0
                && let Some(seen) = loading.take()
            {
                let mut index = self.write();
                let gone: Vec<SubscriptionRef> = index
                    .iter()
                    .map(|entry| &entry.subscription.reference)
                    .filter(|name| !seen.contains(&*name.token()))
                    .cloned()
                    .collect();
                for name in &gone {
                    index.remove(name);
                }
                drop(index);
                self.update_unreadable(|entries| entries.retain(|entry| seen.contains(&*entry.name.token())));
                self.advance(&made, last);
                if !self.loaded.send_replace(true) {
                    let subscriptions = self.write().len();
                    RegistryLoaded { subscriptions }.emit();
                }
            }
            let message = match reader.next().await? {
                OrderedEvent::Message(message) => message,
                OrderedEvent::Lost => {
                    reader.close().await;
                    return Ok(());
                }
            };
            if let Some(token) = names.subscription_of_key(&message.subject) {
                if let Some(seen) = &mut loading {
                    seen.insert(token.to_owned());
                }
                let last = KeyRevision::delivered(&message);
                match MisplacedEntry::find(&names, &message.subject, &last) {
                    Some(entry) => misplaced.push(entry),
                    None => self.apply(token, &last, loading.is_none()).await?,
                }
            }
            let sequence = message.stream_sequence;
            if loading.is_none() {
                self.advance(&made, sequence);
            }
        }
    }

    fn advance(&self, made: &str, revision: u64) {
        self.read_up_to.send_if_modified(|now| {
            if now.made == made && now.revision >= revision {
                return false;
            }
            *now = ReadPosition { made: made.to_owned(), revision };
            true
        });
    }

    fn write(&self) -> RwLockWriteGuard<'_, SubscriptionIndex> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies one revision. `live` is true if all earlier revisions have been read.
    async fn apply(&self, token: &str, last: &KeyRevision<'_>, live: bool) -> Result<(), NatsError> {
        let Some(name) = SubscriptionRef::from_token(token) else {
            RegistryKeySkipped { key: token }.emit();
            return Ok(());
        };
        // Nearly all revisions are readable; these are parsed once.
        if let Some(entry) = last.entry(&name) {
            let comparisons = entry.program.comparisons();
            if is_oversized(comparisons) {
                StoredFilterTooLarge { subscription: &name, comparisons }.emit();
            }
            drop(self.write().insert(entry));
            self.update_unreadable(|entries| entries.retain(|entry| entry.name != name));
            return Ok(());
        }
        let RegistryEntry { subscription, mut unreadable, .. } = self.js.entry_at(&name, last).await?;
        let kept = match (&unreadable, subscription) {
            (_, Some((subscription, revision))) => IndexEntry::new(subscription, revision).ok(),
            (_, None) => None,
        };
        let revision = last.sequence;
        // An earlier read established that the key never held a subscription.
        let known_empty = {
            let entries = self.unreadable.read().unwrap_or_else(PoisonError::into_inner);
            entries.iter().any(|entry| entry.name == name && entry.in_force == Some(0))
        };
        let mut index = self.write();
        match (kept, &mut unreadable) {
            (Some(entry), _) => drop(index.insert(entry)),
            // The bucket has no readable revision left, but this process may still hold one.
            (None, Some(entry)) if entry.in_force.is_none() => {
                entry.in_force = match index.get(&name) {
                    Some(known) => Some(known.revision),
                    None => (live || known_empty).then_some(0),
                };
            }
            (None, _) => drop(index.remove(&name)),
        }
        drop(index);
        if let Some(UnreadableEntry { reason, in_force, .. }) = &unreadable {
            let in_force = *in_force;
            RegistryEntryUnreadable { subscription: &name, revision, reason, in_force }.emit();
        }
        self.update_unreadable(|entries| {
            entries.retain(|entry| entry.name != name);
            entries.extend(unreadable);
        });
        Ok(())
    }

    /// Changes the list of unreadable entries, and reports it at `/readyz`.
    fn update_unreadable(&self, change: impl FnOnce(&mut Vec<UnreadableEntry>)) {
        let mut entries = self.unreadable.write().unwrap_or_else(PoisonError::into_inner);
        let were = entries.len();
        change(&mut entries);
        if were + entries.len() == 0 {
            return;
        }
        self.readiness.note("registry", entry::note(&entries));
        drop(entries);
        self.report.send_replace(());
    }
}

impl JetStream {
    /// Writes a subscription, whose secrets must be sealed. `expected` is the revision it must have now, 0 for a new one,
    /// `None` for any. Returns the new revision.
    pub async fn put_subscription(
        &self,
        subscription: &Subscription,
        expected: Option<u64>,
    ) -> Result<u64, NatsError> {
        let invalid = |source| NatsError::InvalidSubscription { id: subscription.id.to_string(), source };
        let name = subscription.reference().map_err(invalid)?;
        let key = self.names().subscription_key(&name);
        let value =
            serde_json::to_vec(subscription).map_err(|error| NatsError::encode(key.as_str(), error))?;
        self.write_key(&key, value.into(), expected, &[]).await
    }

    /// Removes a subscription and all its revisions, which hold credentials: a purge of the key (ADR-8). Only the purge
    /// marker, which is a revision too, remains.
    pub async fn remove_subscription(
        &self,
        name: &SubscriptionRef,
        expected: Option<u64>,
    ) -> Result<u64, NatsError> {
        let key = self.names().subscription_key(name);
        let purge = [("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")];
        self.write_key(&key, Bytes::new(), expected, &purge).await
    }

    pub(super) async fn write_key(
        &self,
        key: &str,
        value: Bytes,
        expected: Option<u64>,
        headers: &[(&str, &str)],
    ) -> Result<u64, NatsError> {
        let expected = expected.map(|revision| revision.to_string());
        let mut headers = headers.to_vec();
        if let Some(expected) = &expected {
            headers.push(("Nats-Expected-Last-Subject-Sequence", expected));
        }
        Ok(self.publish(key, value, &headers).await?.seq)
    }

    /// The subscription in effect under a name, with the revision that the next conditional write must expect. Fails if
    /// no kept revision is readable.
    pub async fn subscription(
        &self,
        name: &SubscriptionRef,
    ) -> Result<Option<StoredSubscription>, NatsError> {
        let RegistryEntry { revision, subscription, unreadable } = self.registry_entry(name).await?;
        match (subscription, unreadable) {
            (Some((subscription, _)), _) => Ok(Some(StoredSubscription { subscription, revision })),
            (None, Some(UnreadableEntry { reason, in_force: None, .. })) => {
                Err(NatsError::UnreadableEntry { key: self.names().subscription_key(name), source: reason })
            }
            (None, _) => Ok(None),
        }
    }

    /// The names with this id in the bucket, one for each tenant that has one, sorted by tenant.
    pub async fn names_of_id(&self, id: &SubscriptionId) -> Result<Vec<SubscriptionRef>, NatsError> {
        let names = self.names();
        let keys = self.stream_subjects(&names.subscriptions_stream(), &names.subscriptions_filter()).await?;
        let mut found = keys
            .iter()
            .filter_map(|(key, _)| SubscriptionRef::from_token(names.subscription_of_key(key)?))
            .filter(|name| name.id() == id.as_str())
            .collect::<Vec<_>>();
        found.sort_unstable();
        Ok(found)
    }

    /// The subscriptions with these names that exist. Fails if none of them is readable.
    pub async fn subscriptions_named(
        &self,
        names: &[SubscriptionRef],
    ) -> Result<Vec<StoredSubscription>, NatsError> {
        let mut stored = Vec::with_capacity(names.len());
        let mut unreadable = None;
        for name in names {
            match self.subscription(name).await {
                Ok(one) => stored.extend(one),
                // An unreadable entry of one tenant must not affect the others.
                Err(error @ NatsError::UnreadableEntry { .. }) => unreadable = Some(error),
                Err(error) => return Err(error),
            }
        }
        match unreadable {
            Some(error) if stored.is_empty() => Err(error),
            _ => Ok(stored),
        }
    }
}
