//! The whole registry, read once.

use std::collections::BTreeMap;

use super::{Revision, Slot, Stored, Unreadable};
use crate::domain::subscription::SubscriptionRef;
use crate::nats::scan::{Scan, ScanEvent, ScanOptions};
use crate::nats::{Delivered, JetStream, NatsError};

/// What the bucket holds.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    pub subscriptions: Vec<Stored>,
    pub unreadable: Vec<Unreadable>,
}

impl JetStream {
    /// All subscriptions in force, in order of their ids and tenants.
    pub async fn subscriptions(&self) -> Result<Vec<Stored>, NatsError> {
        Ok(self.registry_listing().await?.subscriptions)
    }

    /// What the bucket holds: the subscriptions in force, and which entries are unreadable.
    pub async fn registry_listing(&self) -> Result<Listing, NatsError> {
        let mut listing = Listing::default();
        for (key, newest) in self.registry_entries().await? {
            let name = self.names().subscription_of_key(&key).and_then(SubscriptionRef::from_token);
            let Some(name) = name else { continue };
            let Slot { revision, subscription, unreadable } =
                self.slot_of(&name, &Revision::delivered(&newest)).await?;
            listing.subscriptions.extend(subscription.map(|(one, _)| Stored { subscription: one, revision }));
            listing.unreadable.extend(unreadable);
        }
        listing.subscriptions.sort_by(
            |Stored { subscription: one, .. }, Stored { subscription: other, .. }| {
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
        if self.stream_info(&stream).await?.state.messages == 0 {
            return Ok(found);
        }
        let options = ScanOptions {
            filters: vec![names.subscriptions_filter()],
            last_per_subject: true,
            ..ScanOptions::default()
        };
        'again: loop {
            let mut scan = Scan::begin(self, &stream, &options).await?;
            while scan.remaining > 0 {
                let seconds = self.request_timeout().as_secs();
                let Ok(event) = tokio::time::timeout(self.request_timeout(), scan.next()).await else {
                    scan.end().await;
                    return Err(NatsError::Timeout { subject: stream, seconds });
                };
                match event? {
                    ScanEvent::Message(message) => {
                        found.insert(message.subject.clone(), *message);
                    }
                    ScanEvent::Lost => {
                        scan.end().await;
                        continue 'again;
                    }
                }
            }
            scan.end().await;
            return Ok(found);
        }
    }
}
