//! The subscription registry: a KV bucket (ADR-8), followed into an in-memory index.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::watch;

use super::connection::JetStream;
use super::error::NatsError;
use super::inspect::StreamInfo;
use super::registry_moves::Misplaced;
use super::scan::{Scan, ScanEvent, ScanOptions};
use crate::domain::filter::is_oversized;
use crate::domain::index::{IndexEntry, SubscriptionIndex};
use crate::domain::subscription::{Subscription, SubscriptionId, SubscriptionRef};
use crate::health::Readiness;

mod listing;
mod slot;

pub use listing::Listing;
pub(in crate::nats) use slot::Revision;
pub use slot::{Slot, Unreadable};

/// The index that follows the bucket, shared by the roles of a process.
#[derive(Clone)]
pub struct Registry {
    index: Arc<RwLock<SubscriptionIndex>>,
    unreadable: Arc<RwLock<Vec<Unreadable>>>,
    read_up_to: watch::Receiver<ReadUpTo>,
    loaded: watch::Receiver<bool>,
}

/// The task side: keeps the index up to date until it is dropped.
pub struct RegistryFollower {
    js: JetStream,
    index: Arc<RwLock<SubscriptionIndex>>,
    unreadable: Arc<RwLock<Vec<Unreadable>>>,
    readiness: Readiness,
    read_up_to: watch::Sender<ReadUpTo>,
    loaded: watch::Sender<bool>,
}

/// How far the bucket was read. One that was made anew counts from the beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ReadUpTo {
    /// When the bucket was made.
    made: String,
    revision: u64,
}

/// A stored subscription.
#[derive(Debug, Clone)]
pub struct Stored {
    pub subscription: Subscription,
    /// For a conditional write.
    pub revision: u64,
}

impl Registry {
    /// `readiness` tells of entries that are unreadable.
    pub fn new(js: &JetStream, readiness: Readiness) -> (Self, RegistryFollower) {
        let index = Arc::new(RwLock::new(SubscriptionIndex::default()));
        let unreadable = Arc::new(RwLock::default());
        let (revision_sender, read_up_to) = watch::channel(ReadUpTo::default());
        let (loaded_sender, loaded) = watch::channel(false);
        let follower = RegistryFollower {
            js: js.clone(),
            index: index.clone(),
            unreadable: Arc::clone(&unreadable),
            readiness,
            read_up_to: revision_sender,
            loaded: loaded_sender,
        };
        (Self { index, unreadable, read_up_to, loaded }, follower)
    }

    /// The entries whose last revision cannot be used.
    pub fn unreadable(&self) -> Vec<Unreadable> {
        self.unreadable.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a subscription of this tenant may want the tenant's events, and nobody knows which.
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

    /// Waits until the whole bucket was read once.
    pub async fn wait_until_loaded(&self) {
        let mut loaded = self.loaded.clone();
        // A dropped follower means shutdown: the caller is cancelled as well.
        if loaded.wait_for(|loaded| *loaded).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Registry {
    /// The names of that id, also of unreadable entries, in order of their tenants.
    pub fn names_of_id(&self, id: &SubscriptionId) -> Vec<SubscriptionRef> {
        let unreadable = self.unreadable();
        let index = self.read();
        let readable = index.iter().map(|entry| &entry.subscription.reference);
        let all = readable.chain(unreadable.iter().map(|entry| &entry.name));
        let named: BTreeSet<_> = all.filter(|name| name.id() == id.as_str()).cloned().collect();
        named.into_iter().collect()
    }

    /// Waits until the index holds every write that the bucket holds now.
    pub async fn catch_up(&self, js: &JetStream) -> Result<(), NatsError> {
        let stream = js.names().subscriptions_stream();
        let StreamInfo { created, state, .. } = js.stream_info(&stream).await?;
        let mut read_up_to = self.read_up_to.clone();
        let caught_up = async {
            let done = |now: &ReadUpTo| now.made == created && now.revision >= state.last_seq;
            if read_up_to.wait_for(done).await.is_err() {
                // A dropped follower means shutdown: the caller is cancelled as well.
                std::future::pending::<()>().await;
            }
        };
        tokio::time::timeout(js.request_timeout(), caught_up)
            .await
            .map_err(|_| NatsError::Timeout { subject: stream, seconds: js.request_timeout().as_secs() })
    }
}

impl RegistryFollower {
    /// Follows the bucket for ever. Whenever it lost its place it reads the whole bucket again,
    /// so the index never misses a change; while it does, the index serves what it had.
    pub async fn run(self) {
        loop {
            if let Err(error) = self.follow().await {
                tracing::warn!(%error, "the subscription registry cannot be followed; trying again");
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
        }
    }

    async fn follow(&self) -> Result<(), NatsError> {
        let names = self.js.names().clone();
        let stream = names.subscriptions_stream();
        let StreamInfo { created: made, state, .. } = self.js.stream_info(&stream).await?;
        let last = state.last_seq;
        let options = ScanOptions {
            filters: vec![names.subscriptions_filter()],
            last_per_subject: true,
            ..ScanOptions::default()
        };
        let mut scan = Scan::begin(&self.js, &stream, &options).await?;
        if self.js.stream_info(&stream).await?.created != made {
            // Made anew between the two: what is read would count for the one before, and nobody would ever catch up.
            scan.end().await;
            return Ok(());
        }
        let mut loading = Some(HashSet::new());
        let mut misplaced = Vec::new();
        loop {
            if scan.remaining == 0 {
                // Before the registry counts as loaded: events wait until these are there.
                for entry in misplaced.drain(..) {
                    self.js.move_entry(&entry).await?;
                }
            }
            if scan.remaining == 0
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
                self.settle_unreadable(|entries| entries.retain(|entry| seen.contains(&*entry.name.token())));
                self.have_read(&made, last);
                if !self.loaded.send_replace(true) {
                    tracing::info!(subscriptions = self.write().len(), "the subscription registry is loaded");
                }
            }
            let message = match scan.next().await? {
                ScanEvent::Message(message) => message,
                ScanEvent::Lost => {
                    scan.end().await;
                    return Ok(());
                }
            };
            if let Some(token) = names.subscription_of_key(&message.subject) {
                if let Some(seen) = &mut loading {
                    seen.insert(token.to_owned());
                }
                let last = Revision::delivered(&message);
                match Misplaced::find(&names, &message.subject, &last) {
                    Some(entry) => misplaced.push(entry),
                    None => self.apply(token, &last, loading.is_none()).await?,
                }
            }
            let sequence = message.stream_sequence;
            if loading.is_none() {
                self.have_read(&made, sequence);
            }
        }
    }

    fn have_read(&self, made: &str, revision: u64) {
        self.read_up_to.send_if_modified(|now| {
            if now.made == made && now.revision >= revision {
                return false;
            }
            *now = ReadUpTo { made: made.to_owned(), revision };
            true
        });
    }

    fn write(&self) -> RwLockWriteGuard<'_, SubscriptionIndex> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// `live`: the revision was written just now, and all before it were seen.
    async fn apply(&self, token: &str, last: &Revision<'_>, live: bool) -> Result<(), NatsError> {
        let Some(name) = SubscriptionRef::from_token(token) else {
            tracing::warn!(key = token, "a registry key names no subscription and is passed over");
            return Ok(());
        };
        // Nearly all are readable: those are read once.
        if let Some(entry) = last.entry(&name) {
            let comparisons = entry.program.comparisons();
            if is_oversized(comparisons) {
                tracing::warn!(
                    subscription = %name,
                    comparisons,
                    "a stored filter is larger than one may be now; make it smaller"
                );
            }
            drop(self.write().insert(entry));
            self.settle_unreadable(|entries| entries.retain(|entry| entry.name != name));
            return Ok(());
        }
        let Slot { subscription, mut unreadable, .. } = self.js.slot_of(&name, last).await?;
        let kept = match (&unreadable, subscription) {
            (_, Some((subscription, revision))) => IndexEntry::new(subscription, revision).ok(),
            (_, None) => None,
        };
        let revision = last.sequence;
        // Seen before, when it was known that there had been no subscription.
        let known_empty = {
            let entries = self.unreadable.read().unwrap_or_else(PoisonError::into_inner);
            entries.iter().any(|entry| entry.name == name && entry.in_force == Some(0))
        };
        let mut index = self.write();
        match (kept, &mut unreadable) {
            (Some(entry), _) => drop(index.insert(entry)),
            // The bucket has no readable revision any more, but this process still has one.
            (None, Some(entry)) if entry.in_force.is_none() => {
                entry.in_force = match index.get(&name) {
                    Some(known) => Some(known.revision),
                    None => (live || known_empty).then_some(0),
                };
            }
            (None, _) => drop(index.remove(&name)),
        }
        drop(index);
        if let Some(Unreadable { reason, in_force, .. }) = &unreadable {
            match in_force {
                Some(0) => tracing::error!(
                    subscription = %name, revision, reason,
                    "a registry entry is unreadable and never was a subscription; remove it with \
                     `hub subscription remove`"
                ),
                Some(in_force) => tracing::error!(
                    subscription = %name, revision, reason, in_force,
                    "a registry entry is unreadable; an earlier revision is in force"
                ),
                None => tracing::error!(
                    subscription = %name, revision, reason,
                    "a registry entry is unreadable and no revision is left; events of its tenant wait until it \
                     is repaired (`hub subscription apply`) or removed (`hub subscription remove`)"
                ),
            }
        }
        self.settle_unreadable(|entries| {
            entries.retain(|entry| entry.name != name);
            entries.extend(unreadable);
        });
        Ok(())
    }

    /// Changes the list of what is unreadable, and tells `/readyz`.
    fn settle_unreadable(&self, change: impl FnOnce(&mut Vec<Unreadable>)) {
        let mut entries = self.unreadable.write().unwrap_or_else(PoisonError::into_inner);
        let were = entries.len();
        change(&mut entries);
        if were + entries.len() == 0 {
            return;
        }
        self.readiness.note("registry", slot::note(&entries));
    }
}

impl JetStream {
    /// Writes a subscription, whose secrets must be sealed. `expected`: the revision it must have
    /// now, 0 for none yet. Returns the new revision.
    pub async fn put_subscription(
        &self,
        subscription: &Subscription,
        expected: Option<u64>,
    ) -> Result<u64, NatsError> {
        let unusable = |reason: String| {
            NatsError::answer(
                self.names().subscriptions_bucket(),
                format!("subscription {}: {reason}", subscription.id),
            )
        };
        let name = subscription.reference().map_err(|error| unusable(error.to_string()))?;
        let key = self.names().subscription_key(&name);
        let value = serde_json::to_vec(subscription).map_err(|error| unusable(error.to_string()))?;
        self.write_key(&key, value.into(), expected, &[]).await
    }

    /// Removes a subscription, and all its revisions with the credentials in them: a purge of the key
    /// (ADR-8) leaves its marker alone, which is a revision too.
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

    /// The subscription in force under a name, with the revision that the next conditional write must expect.
    /// An error if what is stored is unreadable, down to the last revision that is kept.
    pub async fn subscription(&self, name: &SubscriptionRef) -> Result<Option<Stored>, NatsError> {
        let Slot { revision, subscription, unreadable } = self.subscription_slot(name).await?;
        match (subscription, unreadable) {
            (Some((subscription, _)), _) => Ok(Some(Stored { subscription, revision })),
            (None, Some(Unreadable { reason, in_force: None, .. })) => {
                Err(NatsError::answer(self.names().subscription_key(name), reason))
            }
            (None, _) => Ok(None),
        }
    }

    /// The names of that id in the bucket, one for each tenant that has one, in order of their tenants.
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

    /// The subscriptions of these names, as far as there are any. An error if none can be read.
    pub async fn subscriptions_named(&self, names: &[SubscriptionRef]) -> Result<Vec<Stored>, NatsError> {
        let mut stored = Vec::with_capacity(names.len());
        let mut unreadable = None;
        for name in names {
            match self.subscription(name).await {
                Ok(one) => stored.extend(one),
                // That of one tenant is in no other's way.
                Err(error @ NatsError::Answer { .. }) => unreadable = Some(error),
                Err(error) => return Err(error),
            }
        }
        match unreadable {
            Some(error) if stored.is_empty() => Err(error),
            _ => Ok(stored),
        }
    }
}
