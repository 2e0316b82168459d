//! Reads the whole registry once.

use std::collections::BTreeMap;

use super::{KeyRevision, RegistryEntry, StoredSubscription, UnreadableEntry};
use crate::domain::subscription::SubscriptionRef;
use crate::nats::ordered_reader::{OrderedEvent, OrderedReader, OrderedReaderOptions};
use crate::nats::{Delivered, JetStream, NatsError};

/// The contents of the registry bucket.
#[derive(Debug, Clone, Default)]
pub struct RegistryListing {
    pub subscriptions: Vec<StoredSubscription>,
    pub unreadable: Vec<UnreadableEntry>,
}

impl JetStream {
    /// All subscriptions in effect, sorted by id and tenant.
    pub async fn subscriptions(&self) -> Result<Vec<StoredSubscription>, NatsError> {
        Ok(self.registry_listing().await?.subscriptions)
    }

    /// The subscriptions in effect, sorted by id and tenant, and the unreadable entries.
    pub async fn registry_listing(&self) -> Result<RegistryListing, NatsError> {
        let mut listing = RegistryListing::default();
        for (key, newest) in self.registry_entries().await? {
            let name = self.names().subscription_of_key(&key).and_then(SubscriptionRef::from_token);
            let Some(name) = name else { continue };
            let RegistryEntry { revision, subscription, unreadable } =
                self.entry_at(&name, &KeyRevision::delivered(&newest)).await?;
            listing
                .subscriptions
                .extend(subscription.map(|(one, _)| StoredSubscription { subscription: one, revision }));
            listing.unreadable.extend(unreadable);
        }
        listing.subscriptions.sort_by(
            |StoredSubscription { subscription: one, .. }, StoredSubscription { subscription: other, .. }| {
                (&one.id, &one.tenant).cmp(&(&other.id, &other.tenant))
            },
        );
        Ok(listing)
    }

    /// The newest revision of each key.
    pub(in crate::nats) async fn registry_entries(&self) -> Result<BTreeMap<String, Delivered>, NatsError> {
        let names = self.names().clone();
        let stream = names.subscriptions_stream();
        let mut found = BTreeMap::new();
        if self.stream_info_of_leader(&stream).await?.state.messages == 0 {
            return Ok(found);
        }
        let options = OrderedReaderOptions {
            filters: vec![names.subscriptions_filter()],
            last_per_subject: true,
            ..OrderedReaderOptions::default()
        };
        'again: loop {
            let mut reader = OrderedReader::open(self, &stream, &options).await?;
            while reader.remaining > 0 {
                let Ok(event) = tokio::time::timeout(self.request_timeout(), reader.next()).await else {
                    reader.close().await;
                    return Err(NatsError::timeout(stream, self.request_timeout()));
                };
                match event? {
                    OrderedEvent::Message(message) => {
                        found.insert(message.subject.clone(), *message);
                    }
                    OrderedEvent::Lost => {
                        reader.close().await;
                        continue 'again;
                    }
                }
            }
            reader.close().await;
            return Ok(found);
        }
    }
}
