//! Registry entries that are unreadable: which there are, so that they can be repaired or removed.

use super::subscriptions::{Naming, SubscriptionFilter};
use super::{Management, ManagementError};
use crate::domain::subscription::SubscriptionRef;
use crate::nats::{Stored, Unreadable};

impl Management {
    /// The subscriptions that the filter leaves, and the unreadable entries of its tenant, in order of
    /// their ids and tenants, read from the bucket.
    pub async fn subscriptions_and_unreadable(
        &self,
        filter: &SubscriptionFilter,
    ) -> Result<(Vec<Stored>, Vec<Unreadable>), ManagementError> {
        let mut found = self.js.registry_listing().await?;
        found.subscriptions.retain(|stored| filter.leaves(stored));
        found
            .unreadable
            .retain(|entry| filter.tenant.as_ref().is_none_or(|tenant| tenant == entry.name.tenant()));
        Ok((found.subscriptions, found.unreadable))
    }

    /// The unreadable entry that a name means, if there is just one.
    pub async fn unreadable_entry(
        &self,
        naming: &Naming,
    ) -> Result<Option<SubscriptionRef>, ManagementError> {
        let Naming { id, tenant } = naming;
        let mut found = self.js.registry_listing().await?.unreadable;
        found.retain(|entry| {
            entry.name.id() == id.as_str()
                && tenant.as_ref().is_none_or(|tenant| tenant == entry.name.tenant())
        });
        let last = found.pop();
        Ok(last.filter(|_| found.is_empty()).map(|entry| entry.name))
    }
}
