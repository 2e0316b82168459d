//! In-memory index of subscriptions; the cost of a look-up depends on its matches, not on the number of subscriptions.
//!
//! Each tenant has a trie over the tokens of its patterns. A look-up walks the tokens of the key once and follows the
//! literal branch, the `*` branch and the `>` ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use super::backlog::BacklogLimits;
use super::event::Event;
use super::filter::{Filter, Program};
use super::key::{EventKey, KeyPattern};
use super::strict_order::StrictOrder;
use super::subscription::{
    Identity, Incarnation, InvalidTenant, RateLimit, Subscription, SubscriptionRef, SubscriptionState,
};

mod matching;
mod trie;

pub use matching::Matching;
use trie::{Slot, Trie};

/// A subscription in the form that the fan-out needs.
#[derive(Debug)]
pub struct IndexEntry {
    pub subscription: Interest,
    /// The delivery as JSON, with sealed secrets; copied unchanged into every envelope.
    pub delivery: Arc<RawValue>,
    /// The limits of the delivery, for the fair share.
    pub max_in_flight: u32,
    pub rate_limit: Option<Box<RateLimit>>,
    /// What few subscriptions have.
    special: Option<Box<Special>>,
    /// The prepared filters.
    pub program: Box<Program>,
    /// Its revision in the registry.
    pub revision: u64,
    /// Its size in the registry, in bytes.
    pub bytes: u32,
}

/// What few subscriptions have.
#[derive(Debug)]
struct Special {
    backlog: Option<BacklogLimits>,
    order: Option<StrictOrder>,
}

/// The subscription without its delivery, which an entry holds as JSON only, to save memory with 100,000 entries.
#[derive(Debug)]
pub struct Interest {
    pub reference: SubscriptionRef,
    pub incarnation: Incarnation,
    pub events: Box<[KeyPattern]>,
    pub filter: Box<[Filter]>,
    pub state: SubscriptionState,
}

/// The reason why a subscription cannot be indexed.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error(transparent)]
    Tenant(#[from] InvalidTenant),
    /// A secret is not sealed.
    #[error(transparent)]
    Delivery(#[from] serde_json::Error),
}

impl Interest {
    pub fn id(&self) -> &str {
        self.reference.id()
    }

    pub fn tenant(&self) -> &str {
        self.reference.tenant()
    }
}

impl IndexEntry {
    /// Fails if a secret of the subscription is not sealed, or if its tenant is invalid.
    pub fn new(subscription: Subscription, revision: u64) -> Result<Self, EntryError> {
        let reference = subscription.reference()?;
        let bytes = u32::try_from(subscription.stored_bytes()).unwrap_or(u32::MAX);
        let delivery = serde_json::value::to_raw_value(&subscription.delivery)?.into();
        let (max_in_flight, rate_limit) =
            (subscription.delivery.max_in_flight(), subscription.delivery.rate_limit().map(Box::new));
        let backlog = Some(subscription.delivery.backlog()).filter(|limits| !limits.is_none());
        let order = StrictOrder::of(&subscription.delivery);
        let special = (backlog.is_some() || order.is_some()).then(|| Box::new(Special { backlog, order }));
        let Subscription { incarnation, events, filter, state, .. } = subscription;
        let program = Box::new(Program::new(&filter));
        let (events, filter) = (events.into(), filter.into());
        let subscription = Interest { reference, incarnation, events, filter, state };
        Ok(Self { subscription, delivery, max_in_flight, rate_limit, special, program, revision, bytes })
    }

    /// The limits of the backlog, if it has any of its own.
    pub fn backlog(&self) -> Option<&BacklogLimits> {
        self.special.as_deref()?.backlog.as_ref()
    }

    /// The longest time that an envelope may wait, if it has one of its own.
    pub fn max_age(&self) -> Option<Duration> {
        self.backlog()?.age
    }

    /// The strict order of the delivery, if it has one.
    pub fn order(&self) -> Option<&StrictOrder> {
        self.special.as_deref()?.order.as_ref()
    }

    /// True if all its filters match the event.
    pub fn wants(&self, event: &Event) -> bool {
        self.program.matches(&|name| event.attribute(name))
    }

    /// The subscription, without the reason why it was disabled.
    pub fn to_subscription(&self) -> Result<Subscription, serde_json::Error> {
        let Interest { reference, incarnation, events, filter, state } = &self.subscription;
        Ok(Subscription {
            id: reference.to_id(),
            tenant: reference.tenant().to_owned(),
            incarnation: *incarnation,
            events: events.to_vec(),
            filter: filter.to_vec(),
            state: *state,
            disabled_reason: None,
            disabled_at: None,
            delivery: serde_json::from_str(self.delivery.get())?,
        })
    }
}

/// All subscriptions, by name and by pattern. Changes are incremental.
#[derive(Debug, Default)]
pub struct SubscriptionIndex {
    slots: HashMap<SubscriptionRef, Slot>,
    /// By slot; slots of removed subscriptions are reused.
    entries: Vec<Option<Arc<IndexEntry>>>,
    free: Vec<Slot>,
    tenants: HashMap<Box<str>, Trie>,
}

impl SubscriptionIndex {
    pub fn new() -> Self {
        Self::default()
    }

    /// Inserts a subscription. Returns the one that it replaces.
    pub fn insert(&mut self, entry: IndexEntry) -> Option<Arc<IndexEntry>> {
        let replaced = self.remove(&entry.subscription.reference);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            Slot::try_from(self.entries.len() - 1).expect("memory ends long before 2^32 subscriptions")
        });
        let entry = Arc::new(entry);
        let subscription = &entry.subscription;
        if subscription.state == SubscriptionState::Active {
            if !self.tenants.contains_key(subscription.tenant()) {
                self.tenants.insert(subscription.tenant().into(), Trie::default());
            }
            let trie = self.tenants.get_mut(subscription.tenant()).expect("inserted above");
            subscription.events.iter().for_each(|pattern| trie.insert(pattern, slot));
        }
        self.slots.insert(subscription.reference.clone(), slot);
        self.entries[slot as usize] = Some(entry);
        replaced
    }

    /// Removes a subscription, and returns it.
    pub fn remove(&mut self, reference: &SubscriptionRef) -> Option<Arc<IndexEntry>> {
        let slot = self.slots.remove(reference)?;
        let entry = self.entries[slot as usize].take()?;
        self.free.push(slot);
        let Interest { reference, events, .. } = &entry.subscription;
        if let Some(trie) = self.tenants.get_mut(reference.tenant()) {
            events.iter().for_each(|pattern| trie.remove(pattern, slot));
            if trie.is_empty() {
                self.tenants.remove(reference.tenant());
            }
        }
        Some(entry)
    }

    pub fn get(&self, reference: &SubscriptionRef) -> Option<&Arc<IndexEntry>> {
        self.entries[*self.slots.get(reference)? as usize].as_ref()
    }

    /// True if the index has this incarnation of the subscription.
    pub fn has(&self, identity: &Identity) -> bool {
        let entry = self.get(&identity.subscription);
        entry.is_some_and(|entry| entry.subscription.incarnation == identity.incarnation)
    }

    /// The active subscriptions of the event's tenant that match the event, each once.
    pub fn matching(&self, event: &Event) -> Vec<Arc<IndexEntry>> {
        let (candidates, _) = self.candidates(event);
        candidates.into_iter().filter(|entry| entry.wants(event)).cloned().collect()
    }

    /// The active subscriptions of a tenant whose patterns match a key, each once, without regard to their filters.
    pub fn of_key(&self, tenant: &str, key: &EventKey) -> Vec<Arc<IndexEntry>> {
        self.candidates_of(tenant, key).0.into_iter().cloned().collect()
    }

    fn candidates(&self, event: &Event) -> (Vec<&Arc<IndexEntry>>, usize) {
        self.candidates_of(&event.tenant, &event.key)
    }

    /// Subscriptions whose patterns match the key, and the number of visited nodes.
    fn candidates_of(&self, tenant: &str, key: &EventKey) -> (Vec<&Arc<IndexEntry>>, usize) {
        let Some(trie) = self.tenants.get(tenant) else { return (Vec::new(), 0) };
        let (slots, visited) = trie.matching(key);
        let entries = slots.into_iter().filter_map(|slot| self.entries[slot as usize].as_ref()).collect();
        (entries, visited)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<IndexEntry>> {
        self.entries.iter().flatten()
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests;
