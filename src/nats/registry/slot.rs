//! What a key of the registry holds, also where its last revision cannot be used: then the last
//! readable one counts.

use serde_json::Value;

use crate::domain::index::IndexEntry;
use crate::domain::subscription::{Subscription, SubscriptionRef};
use crate::nats::registry_moves::Misplaced;
use crate::nats::{Delivered, JetStream, NatsError, StoredMessage};

/// One key of the registry.
#[derive(Debug, Clone)]
pub struct Slot {
    /// What the next conditional write must expect; 0 where there never was a revision.
    pub revision: u64,
    /// The subscription in force, and its own revision; `None` if there is none, or none is readable.
    pub subscription: Option<(Subscription, u64)>,
    /// Set if the last revision cannot be used.
    pub unreadable: Option<Unreadable>,
}

/// A key whose last revision cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub name: SubscriptionRef,
    /// The revision that cannot be used.
    pub revision: u64,
    pub reason: String,
    /// The earlier revision that is in force instead, possibly a removal; 0 if there never was a
    /// subscription. `None`: no revision is readable, earlier ones are not kept any more, and nobody knows
    /// which events the subscription wants.
    pub in_force: Option<u64>,
}

impl Unreadable {
    /// The key never held a subscription.
    pub fn is_no_subscription(&self) -> bool {
        self.in_force == Some(0)
    }
}

/// One revision of a key.
pub(in crate::nats) struct Revision<'a> {
    pub(in crate::nats) sequence: u64,
    /// Why its headers cannot be read.
    malformed: Option<String>,
    removed: bool,
    payload: &'a [u8],
}

/// What one revision says.
enum Reading {
    Readable(Box<Subscription>),
    Removed,
    Unreadable(String),
}

impl<'a> Revision<'a> {
    pub(in crate::nats) fn delivered(message: &'a Delivered) -> Self {
        Self {
            sequence: message.stream_sequence,
            malformed: message.malformed().map(|malformed| malformed.to_string()),
            removed: message.header("KV-Operation").is_some(),
            payload: &message.payload,
        }
    }

    fn stored(message: &'a StoredMessage) -> Self {
        Self {
            sequence: message.sequence,
            malformed: message.malformed().map(|malformed| malformed.to_string()),
            removed: message.header("KV-Operation").is_some(),
            payload: &message.payload,
        }
    }

    /// What it holds, where that can be a subscription.
    pub(in crate::nats) fn value(&self) -> Option<&'a [u8]> {
        (!self.removed && self.malformed.is_none()).then_some(self.payload)
    }

    /// The entry of a revision that holds the subscription of that name, as nearly all do.
    pub(super) fn entry(&self, name: &SubscriptionRef) -> Option<IndexEntry> {
        let subscription = serde_json::from_slice::<Subscription>(self.value()?).ok()?;
        let entry = IndexEntry::new(subscription, self.sequence).ok()?;
        (entry.subscription.reference == *name).then_some(entry)
    }

    /// A subscription counts if the index can hold it and it belongs under this key.
    fn read(&self, name: &SubscriptionRef) -> Reading {
        if let Some(malformed) = &self.malformed {
            return Reading::Unreadable(malformed.clone());
        }
        if self.removed {
            return Reading::Removed;
        }
        let subscription: Subscription = match serde_json::from_slice(self.payload) {
            Ok(subscription) => subscription,
            Err(error) => return Reading::Unreadable(format!("the entry is not a subscription: {error}")),
        };
        match IndexEntry::new(subscription.clone(), self.sequence) {
            Ok(entry) if entry.subscription.reference == *name => Reading::Readable(Box::new(subscription)),
            Ok(entry) => {
                Reading::Unreadable(format!("the entry is that of {}", entry.subscription.reference))
            }
            Err(error) => Reading::Unreadable(error.to_string()),
        }
    }
}

impl JetStream {
    /// What stands under a name.
    pub async fn subscription_slot(&self, name: &SubscriptionRef) -> Result<Slot, NatsError> {
        let key = self.names().subscription_key(name);
        let stream = self.names().subscriptions_stream();
        match self.get_last(&stream, &key).await? {
            None => Ok(Slot { revision: 0, subscription: None, unreadable: None }),
            Some(message) => {
                let revision = Revision::stored(&message);
                // Nobody may write over it before it was moved.
                if let Some(other) = Misplaced::find(self.names(), &key, &revision) {
                    let owner = other.name();
                    let reason =
                        format!("the entry is that of {owner}; `hub provision` moves it to its own key");
                    return Err(NatsError::answer(key, reason));
                }
                self.slot_of(name, &revision).await
            }
        }
    }

    /// The slot of a key whose last revision is this one.
    pub(super) async fn slot_of(
        &self,
        name: &SubscriptionRef,
        last: &Revision<'_>,
    ) -> Result<Slot, NatsError> {
        let revision = last.sequence;
        let reason = match last.read(name) {
            Reading::Readable(subscription) => {
                let subscription = Some((*subscription, revision));
                return Ok(Slot { revision, subscription, unreadable: None });
            }
            Reading::Removed => return Ok(Slot { revision, subscription: None, unreadable: None }),
            Reading::Unreadable(reason) => reason,
        };
        let (names, mut last, mut kept) = (self.names(), None, 0);
        let key = names.subscription_key(name);
        self.browse(&names.subscriptions_stream(), &key, None, |message| {
            kept += 1;
            if message.sequence < revision {
                match Revision::stored(&message).read(name) {
                    Reading::Readable(subscription) => last = Some((message.sequence, Some(*subscription))),
                    Reading::Removed => last = Some((message.sequence, None)),
                    Reading::Unreadable(_) => {}
                }
            }
        })
        .await?;
        let in_force = match &last {
            Some((revision, _)) => Some(*revision),
            // With fewer revisions than the bucket keeps, these are all that there ever were.
            None => {
                let config = self.stream_info(&names.subscriptions_stream()).await?.config;
                let most = config.get("max_msgs_per_subject").and_then(Value::as_i64).unwrap_or_default();
                (most < 1 || kept < most).then_some(0)
            }
        };
        let subscription = last.and_then(|(revision, subscription)| Some((subscription?, revision)));
        let unreadable = Some(Unreadable { name: name.clone(), revision, reason, in_force });
        Ok(Slot { revision, subscription, unreadable })
    }
}

/// What `/readyz` says of such entries; `None` if there are none.
pub(super) fn note(entries: &[Unreadable]) -> Option<String> {
    let named = |is: fn(&Unreadable) -> bool, says: &str, remedy: &str| {
        let names: Vec<String> =
            entries.iter().filter(|entry| is(entry)).map(|entry| entry.name.to_string()).collect();
        (!names.is_empty()).then(|| format!("{says}: {}; {remedy}", names.join(", ")))
    };
    let text: Vec<String> = [
        named(
            |entry| entry.in_force.is_none(),
            "registry entries unreadable, no revision left, the events of their tenants wait",
            "repair or remove them",
        ),
        named(
            |entry| entry.in_force.is_some() && !entry.is_no_subscription(),
            "registry entries unreadable, an earlier revision is in force",
            "apply them again",
        ),
        named(
            Unreadable::is_no_subscription,
            "registry entries unreadable, which never were subscriptions",
            "remove them with `hub subscription remove`",
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!text.is_empty()).then(|| text.join("; "))
}
