//! The value of a registry key. If its last revision is unreadable, the last readable one is in effect.

use std::sync::Arc;

use serde_json::Value;

use super::misplaced::MisplacedEntry;
use crate::domain::index::{EntryError, IndexEntry};
use crate::domain::subscription::{Subscription, SubscriptionRef};
use crate::nats::{Delivered, JetStream, Malformed, NatsError, StoredMessage};

/// One key of the registry.
#[derive(Debug, Clone)]
pub struct RegistryEntry {
    /// The revision that the next conditional write must expect; 0 if the key never had one.
    pub revision: u64,
    /// The subscription in effect and its revision; `None` if there is none, or none is readable.
    pub subscription: Option<(Subscription, u64)>,
    /// Set if the last revision is unreadable.
    pub unreadable: Option<UnreadableEntry>,
}

/// Why a revision is not a usable subscription of its key.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UnreadableRevision {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the entry is not a subscription: {0}")]
    NotASubscription(#[source] Arc<serde_json::Error>),
    #[error("the entry belongs to {0}")]
    OfAnotherKey(SubscriptionRef),
    #[error("{0}")]
    Unusable(#[source] Arc<EntryError>),
}

/// A key whose last revision is unreadable.
#[derive(Debug, Clone)]
pub struct UnreadableEntry {
    pub name: SubscriptionRef,
    /// The unreadable revision.
    pub revision: u64,
    pub reason: UnreadableRevision,
    /// The earlier revision that is in effect instead, possibly a removal; 0 if the key never held a subscription. `None`
    /// if no kept revision is readable, so that it is unknown which events the subscription wants.
    pub in_force: Option<u64>,
}

impl UnreadableEntry {
    /// The key never held a subscription.
    pub fn is_no_subscription(&self) -> bool {
        self.in_force == Some(0)
    }
}

/// One revision of a key.
pub(in crate::nats) struct KeyRevision<'a> {
    pub(in crate::nats) sequence: u64,
    /// Why its headers cannot be parsed.
    malformed: Option<Malformed>,
    removed: bool,
    payload: &'a [u8],
}

/// The parsed content of a revision.
enum RevisionContent {
    Readable(Box<Subscription>),
    Removed,
    Unreadable(UnreadableRevision),
}

impl<'a> KeyRevision<'a> {
    pub(in crate::nats) fn delivered(message: &'a Delivered) -> Self {
        Self {
            sequence: message.stream_sequence,
            malformed: message.malformed(),
            removed: message.header("KV-Operation").is_some(),
            payload: &message.payload,
        }
    }

    fn stored(message: &'a StoredMessage) -> Self {
        Self {
            sequence: message.sequence,
            malformed: message.malformed(),
            removed: message.header("KV-Operation").is_some(),
            payload: &message.payload,
        }
    }

    /// The value, if it can be a subscription.
    pub(in crate::nats) fn value(&self) -> Option<&'a [u8]> {
        (!self.removed && self.malformed.is_none()).then_some(self.payload)
    }

    /// The index entry, if the revision holds the subscription with this name, as nearly all do.
    pub(super) fn entry(&self, name: &SubscriptionRef) -> Option<IndexEntry> {
        let subscription = serde_json::from_slice::<Subscription>(self.value()?).ok()?;
        let entry = IndexEntry::new(subscription, self.sequence).ok()?;
        (entry.subscription.reference == *name).then_some(entry)
    }

    /// Parses the revision. A subscription is readable if the index accepts it and it belongs under this key.
    fn read(&self, name: &SubscriptionRef) -> RevisionContent {
        if let Some(malformed) = self.malformed {
            return RevisionContent::Unreadable(malformed.into());
        }
        if self.removed {
            return RevisionContent::Removed;
        }
        let subscription: Subscription = match serde_json::from_slice(self.payload) {
            Ok(subscription) => subscription,
            Err(error) => {
                return RevisionContent::Unreadable(UnreadableRevision::NotASubscription(error.into()));
            }
        };
        match IndexEntry::new(subscription.clone(), self.sequence) {
            Ok(entry) if entry.subscription.reference == *name => {
                RevisionContent::Readable(Box::new(subscription))
            }
            Ok(entry) => {
                RevisionContent::Unreadable(UnreadableRevision::OfAnotherKey(entry.subscription.reference))
            }
            Err(error) => RevisionContent::Unreadable(UnreadableRevision::Unusable(error.into())),
        }
    }
}

impl JetStream {
    /// The registry entry under a name.
    pub async fn registry_entry(&self, name: &SubscriptionRef) -> Result<RegistryEntry, NatsError> {
        let entry = self.entry_of_lost_registry(name).await?;
        if entry.revision == 0 {
            // A lost bucket says nothing about the subscription.
            self.check_registry().await?;
        }
        Ok(entry)
    }

    /// The same, of a bucket that is to be restored.
    pub async fn entry_of_lost_registry(&self, name: &SubscriptionRef) -> Result<RegistryEntry, NatsError> {
        let key = self.names().subscription_key(name);
        let stream = self.names().subscriptions_stream();
        match self.get_last(&stream, &key).await? {
            None => Ok(RegistryEntry { revision: 0, subscription: None, unreadable: None }),
            Some(message) => {
                let revision = KeyRevision::stored(&message);
                // It must be moved before anything is written here.
                if let Some(other) = MisplacedEntry::find(self.names(), &key, &revision) {
                    return Err(NatsError::MisplacedEntry { key, owner: other.name().clone() });
                }
                self.entry_at(name, &revision).await
            }
        }
    }

    /// The registry entry of a key with this last revision.
    pub(super) async fn entry_at(
        &self,
        name: &SubscriptionRef,
        last: &KeyRevision<'_>,
    ) -> Result<RegistryEntry, NatsError> {
        let revision = last.sequence;
        let reason = match last.read(name) {
            RevisionContent::Readable(subscription) => {
                let subscription = Some((*subscription, revision));
                return Ok(RegistryEntry { revision, subscription, unreadable: None });
            }
            RevisionContent::Removed => {
                return Ok(RegistryEntry { revision, subscription: None, unreadable: None });
            }
            RevisionContent::Unreadable(reason) => reason,
        };
        let (names, mut last, mut kept) = (self.names(), None, 0);
        let key = names.subscription_key(name);
        self.for_each_stored(&names.subscriptions_stream(), &key, None, |message| {
            kept += 1;
            if message.sequence < revision {
                match KeyRevision::stored(&message).read(name) {
                    RevisionContent::Readable(subscription) => {
                        last = Some((message.sequence, Some(*subscription)))
                    }
                    RevisionContent::Removed => last = Some((message.sequence, None)),
                    RevisionContent::Unreadable(_) => {}
                }
            }
        })
        .await?;
        let in_force = match &last {
            Some((revision, _)) => Some(*revision),
            // If there are fewer revisions than the bucket keeps, none has been deleted.
            None => {
                let config = self.stream_info(&names.subscriptions_stream()).await?.config;
                let most = config.get("max_msgs_per_subject").and_then(Value::as_i64).unwrap_or_default();
                (most < 1 || kept < most).then_some(0)
            }
        };
        let subscription = last.and_then(|(revision, subscription)| Some((subscription?, revision)));
        let unreadable = Some(UnreadableEntry { name: name.clone(), revision, reason, in_force });
        Ok(RegistryEntry { revision, subscription, unreadable })
    }
}

/// The note about unreadable entries at `/readyz`; `None` if there are none.
pub(super) fn note(entries: &[UnreadableEntry]) -> Option<String> {
    let named = |is: fn(&UnreadableEntry) -> bool, problem: &str, remedy: &str| {
        let names: Vec<String> =
            entries.iter().filter(|entry| is(entry)).map(|entry| entry.name.to_string()).collect();
        (!names.is_empty()).then(|| format!("{problem}: {}; {remedy}", names.join(", ")))
    };
    let text: Vec<String> = [
        named(
            |entry| entry.in_force.is_none(),
            "unreadable registry entries without an earlier revision, events of their tenants wait",
            "apply them again or remove them",
        ),
        named(
            |entry| entry.in_force.is_some() && !entry.is_no_subscription(),
            "unreadable registry entries with an earlier revision in effect",
            "apply them again",
        ),
        named(
            UnreadableEntry::is_no_subscription,
            "unreadable registry entries that never held a subscription",
            "remove them with `hub subscription remove`",
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!text.is_empty()).then(|| text.join("; "))
}
