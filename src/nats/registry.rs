//! The subscription registry: a KV bucket (ADR-8), followed into an in-memory index.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::watch;

use super::connection::JetStream;
use super::error::NatsError;
use super::scan::{Scan, ScanEvent, ScanOptions};
use crate::domain::index::{Entry, EntryError, SubscriptionIndex};
use crate::domain::subscription::{Subscription, SubscriptionId, SubscriptionRef};

/// The index that follows the bucket, shared by the roles of a process.
#[derive(Clone)]
pub struct Registry {
    index: Arc<RwLock<SubscriptionIndex>>,
    revision: watch::Receiver<u64>,
    loaded: watch::Receiver<bool>,
}

/// The task side: keeps the index up to date until it is dropped.
pub struct RegistryFollower {
    js: JetStream,
    index: Arc<RwLock<SubscriptionIndex>>,
    revision: watch::Sender<u64>,
    loaded: watch::Sender<bool>,
}

/// A stored subscription.
#[derive(Debug, Clone)]
pub struct Stored {
    pub subscription: Subscription,
    /// For a conditional write.
    pub revision: u64,
}

impl Registry {
    pub fn new(js: &JetStream) -> (Self, RegistryFollower) {
        let index = Arc::new(RwLock::new(SubscriptionIndex::default()));
        let (revision_sender, revision) = watch::channel(0);
        let (loaded_sender, loaded) = watch::channel(false);
        let follower = RegistryFollower {
            js: js.clone(),
            index: index.clone(),
            revision: revision_sender,
            loaded: loaded_sender,
        };
        (Self { index, revision, loaded }, follower)
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

    /// Waits until the index holds every write up to a revision of the bucket.
    pub async fn wait_for_revision(&self, revision: u64) {
        let mut current = self.revision.clone();
        if current.wait_for(|current| *current >= revision).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Registry {
    /// Waits until the index holds every write that the bucket holds now.
    pub async fn catch_up(&self, js: &JetStream) -> Result<(), NatsError> {
        let stream = js.names().subscriptions_stream();
        let revision = js.stream_info(&stream).await?.state.last_seq;
        match tokio::time::timeout(js.request_timeout(), self.wait_for_revision(revision)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(NatsError::Timeout { subject: stream, seconds: js.request_timeout().as_secs() }),
        }
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
        let last = self.js.stream_info(&stream).await?.state.last_seq;
        let options = ScanOptions {
            filters: vec![names.subscriptions_filter()],
            last_per_subject: true,
            ..ScanOptions::default()
        };
        let mut scan = Scan::begin(&self.js, &stream, &options).await?;
        let mut loading = Some(HashSet::new());
        loop {
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
                self.revision.send_if_modified(|revision| replace_if_greater(revision, last));
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
                let deleted = message.header("KV-Operation").is_some();
                match message.malformed() {
                    Some(error) => tracing::error!(
                        key = token,
                        revision = message.stream_sequence,
                        %error,
                        "a stored subscription cannot be read; the version before stays in force"
                    ),
                    None => {
                        self.apply(token, message.stream_sequence, (!deleted).then_some(&message.payload));
                    }
                }
            }
            let sequence = message.stream_sequence;
            if loading.is_none() {
                self.revision.send_if_modified(|revision| replace_if_greater(revision, sequence));
            }
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, SubscriptionIndex> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, token: &str, revision: u64, value: Option<&Bytes>) {
        let Some(name) = SubscriptionRef::from_token(token) else {
            tracing::warn!(key = token, "a registry key names no subscription and is passed over");
            return;
        };
        let Some(value) = value else {
            self.write().remove(&name);
            return;
        };
        let read = serde_json::from_slice::<Subscription>(value).map_err(EntryError::from);
        match read.and_then(|subscription| Entry::new(subscription, revision)) {
            Ok(entry) if entry.subscription.reference == name => drop(self.write().insert(entry)),
            Ok(entry) => {
                tracing::error!(
                    key = token,
                    subscription = %entry.subscription.reference,
                    "a registry entry is stored under the key of another subscription and is passed over; \
                     `hub provision` moves it"
                );
            }
            Err(error) => {
                tracing::error!(subscription = %name, %error, "a stored subscription cannot be used; the version before stays in force");
            }
        }
    }
}

fn replace_if_greater(current: &mut u64, new: u64) -> bool {
    let greater = new > *current;
    if greater {
        *current = new;
    }
    greater
}

impl JetStream {
    /// Writes a subscription, whose secrets must be sealed. `expected`: the revision it must have
    /// now, 0 for none yet. Returns the new revision.
    pub async fn put_subscription(
        &self,
        subscription: &Subscription,
        expected: Option<u64>,
    ) -> Result<u64, NatsError> {
        let unusable = |reason: String| NatsError::Answer {
            subject: self.names().subscriptions_bucket(),
            reason: format!("subscription {}: {reason}", subscription.id),
        };
        let name = subscription.reference().map_err(|error| unusable(error.to_string()))?;
        let key = self.names().subscription_key(&name);
        let value = serde_json::to_vec(subscription).map_err(|error| unusable(error.to_string()))?;
        self.write_key(&key, value.into(), expected, &[]).await
    }

    pub async fn remove_subscription(
        &self,
        name: &SubscriptionRef,
        expected: Option<u64>,
    ) -> Result<u64, NatsError> {
        let key = self.names().subscription_key(name);
        self.write_key(&key, Bytes::new(), expected, &[("KV-Operation", "DEL")]).await
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

    pub async fn subscription(&self, name: &SubscriptionRef) -> Result<Option<Stored>, NatsError> {
        let (revision, subscription) = self.subscription_at(name).await?;
        Ok(subscription.map(|subscription| Stored { subscription, revision }))
    }

    /// A subscription, and the revision that the next conditional write of it must expect: also
    /// where there is none any more, for a removal is a revision too. 0 where there never was one.
    pub async fn subscription_at(
        &self,
        name: &SubscriptionRef,
    ) -> Result<(u64, Option<Subscription>), NatsError> {
        let key = self.names().subscription_key(name);
        let stream = self.names().subscriptions_stream();
        let Some(message) = self.get_last(&stream, &key).await? else { return Ok((0, None)) };
        if message.header("KV-Operation").is_some() {
            return Ok((message.sequence, None));
        }
        let unusable = |reason| NatsError::Answer { subject: key.clone(), reason };
        if let Some(malformed) = message.malformed() {
            return Err(unusable(malformed.to_string()));
        }
        let subscription: Subscription =
            serde_json::from_slice(&message.payload).map_err(|error| unusable(error.to_string()))?;
        if subscription.reference().is_ok_and(|stored| stored == *name) {
            Ok((message.sequence, Some(subscription)))
        } else {
            let other = format!("{}/{}", subscription.tenant, subscription.id);
            Err(unusable(format!("the entry is that of {other}; `hub provision` moves it to its own key")))
        }
    }

    /// The subscriptions of that id, one for each tenant that has one, in order of their tenants.
    pub async fn subscriptions_of_id(&self, id: &SubscriptionId) -> Result<Vec<Stored>, NatsError> {
        let names = self.names();
        let keys = self.stream_subjects(&names.subscriptions_stream(), &names.subscriptions_filter()).await?;
        let mut found = keys
            .iter()
            .filter_map(|(key, _)| SubscriptionRef::from_token(names.subscription_of_key(key)?))
            .filter(|name| name.id() == id.as_str())
            .collect::<Vec<_>>();
        found.sort_unstable();
        let mut stored = Vec::with_capacity(found.len());
        for name in found {
            stored.extend(self.subscription(&name).await?);
        }
        Ok(stored)
    }

    /// All subscriptions, in order of their ids and tenants.
    pub async fn subscriptions(&self) -> Result<Vec<Stored>, NatsError> {
        let names = self.names().clone();
        let stream = names.subscriptions_stream();
        let mut found = std::collections::BTreeMap::new();
        if self.stream_info(&stream).await?.state.messages == 0 {
            return Ok(Vec::new());
        }
        let options = ScanOptions {
            filters: vec![names.subscriptions_filter()],
            last_per_subject: true,
            ..ScanOptions::default()
        };
        'again: loop {
            let mut scan = Scan::begin(self, &stream, &options).await?;
            while scan.remaining > 0 {
                match tokio::time::timeout(self.request_timeout(), scan.next()).await {
                    Ok(event) => match event? {
                        ScanEvent::Message(message) => {
                            let key = message.subject.clone();
                            if let Some(malformed) = message.malformed() {
                                tracing::warn!(key, error = %malformed, "a stored subscription cannot be read");
                                continue;
                            }
                            if message.header("KV-Operation").is_some() {
                                found.remove(&key);
                                continue;
                            }
                            let revision = message.stream_sequence;
                            match serde_json::from_slice::<Subscription>(&message.payload) {
                                Ok(subscription) if self.is_key_of(&key, &subscription) => {
                                    found.insert(key, Stored { subscription, revision });
                                }
                                Ok(other) => {
                                    let subscription = format!("{}/{}", other.tenant, other.id);
                                    tracing::warn!(
                                        key,
                                        subscription,
                                        "a registry entry is stored under the key of another subscription"
                                    );
                                }
                                Err(error) => {
                                    tracing::warn!(key, %error, "a stored subscription cannot be read");
                                }
                            }
                        }
                        ScanEvent::Lost => {
                            scan.end().await;
                            continue 'again;
                        }
                    },
                    Err(_) => break,
                }
            }
            scan.end().await;
            let mut found: Vec<Stored> = found.into_values().collect();
            found.sort_by(|Stored { subscription: one, .. }, Stored { subscription: other, .. }| {
                (&one.id, &one.tenant).cmp(&(&other.id, &other.tenant))
            });
            return Ok(found);
        }
    }

    fn is_key_of(&self, key: &str, subscription: &Subscription) -> bool {
        subscription.reference().is_ok_and(|name| self.names().subscription_key(&name) == key)
    }
}
