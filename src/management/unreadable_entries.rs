//! Lists unreadable registry entries, so that they can be repaired or removed.

use super::subscriptions::{SubscriptionFilter, SubscriptionSelector};
use super::{Management, ManagementError};
use crate::domain::subscription::SubscriptionRef;
use crate::nats::{StoredSubscription, UnreadableEntry};

impl Management {
    /// The subscriptions that the filter accepts, and the unreadable entries of its tenant, read from the bucket and
    /// sorted by id and tenant.
    pub async fn subscriptions_and_unreadable(
        &self,
        filter: &SubscriptionFilter,
    ) -> Result<(Vec<StoredSubscription>, Vec<UnreadableEntry>), ManagementError> {
        let mut found = self.js.registry_listing().await?;
        found.subscriptions.retain(|stored| filter.accepts_stored(stored));
        found
            .unreadable
            .retain(|entry| filter.tenant.as_ref().is_none_or(|tenant| tenant == entry.name.tenant()));
        Ok((found.subscriptions, found.unreadable))
    }

    /// The name of the unreadable entry that a selector matches, if there is exactly one.
    pub async fn unreadable_entry(
        &self,
        naming: &SubscriptionSelector,
    ) -> Result<Option<SubscriptionRef>, ManagementError> {
        let SubscriptionSelector { id, tenant } = naming;
        let mut found = self.js.registry_listing().await?.unreadable;
        found.retain(|entry| {
            entry.name.id() == id.as_str()
                && tenant.as_ref().is_none_or(|tenant| tenant == entry.name.tenant())
        });
        let last = found.pop();
        Ok(last.filter(|_| found.is_empty()).map(|entry| entry.name))
    }
}
