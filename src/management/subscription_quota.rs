//! Quotas of a tenant's subscriptions: their number and their total size.

use std::collections::HashMap;

use tokio::sync::OwnedMutexGuard;

use super::{Management, ManagementError};
use crate::domain::subscription::Subscription;

/// A reservation for one write, until it is dropped.
#[derive(Debug)]
pub(super) struct QuotaReservation(
    #[expect(dead_code, reason = "held until dropped")] Option<OwnedMutexGuard<()>>,
);

/// Number and total size in bytes of a tenant's subscriptions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct QuotaUsage {
    count: usize,
    bytes: usize,
}

impl QuotaUsage {
    fn plus(self, count: usize, bytes: usize) -> Self {
        Self { count: self.count + count, bytes: self.bytes.saturating_add(bytes) }
    }
}

impl Management {
    /// Fails if the write would exceed the tenant's quota of number or size. `before` is the subscription that it
    /// replaces. While the reservation is held, this process writes no other subscription of the tenant; each further
    /// replica may write one at the same moment.
    pub(super) async fn reserve_quota(
        &self,
        subscription: &Subscription,
        before: Option<&Subscription>,
    ) -> Result<QuotaReservation, ManagementError> {
        let tenant = &subscription.tenant;
        let (most, size) =
            (self.settings.subscription_quota(tenant), self.settings.subscriptions_size_quota(tenant));
        let (bytes, bytes_before) =
            (subscription.stored_bytes(), before.map_or(0, Subscription::stored_bytes));
        let grows = bytes > bytes_before;
        if (before.is_some() || most.limit == 0) && (!grows || size.limit == 0) {
            return Ok(QuotaReservation(None));
        }
        let guard = self.creations.lock(tenant).await;
        let used = match &self.index {
            Some(index) => {
                index.catch_up(&self.js).await?;
                let index = index.read();
                let own = index.iter().filter(|entry| entry.subscription.reference.tenant() == tenant);
                own.fold(QuotaUsage::default(), |used, entry| used.plus(1, entry.bytes as usize))
            }
            None => self.used(tenant).await?,
        };
        let (id, tenant) = (subscription.id.to_string(), tenant.clone());
        if before.is_none() && most.limit > 0 && used.count >= most.limit {
            return Err(ManagementError::TooManySubscriptions { id, tenant, quota: most });
        }
        let after = used.bytes.saturating_sub(bytes_before).saturating_add(bytes);
        if grows && size.limit > 0 && after > size.limit {
            return Err(ManagementError::SubscriptionsTooLarge { id, tenant, bytes: after, quota: size });
        }
        if self.index.is_none()
            && let Some(counted) = self.counted.lock().await.get_or_insert_default().get_mut(&tenant)
        {
            *counted = QuotaUsage { count: used.count + usize::from(before.is_none()), bytes: after };
        }
        // Without an index the planned write is counted above, so other writes need not wait for it.
        Ok(QuotaReservation(self.index.is_some().then_some(guard)))
    }

    /// Usage without an index: the stored subscriptions at the first call, plus the writes planned since.
    async fn used(&self, tenant: &str) -> Result<QuotaUsage, ManagementError> {
        let mut counted = self.counted.lock().await;
        if counted.is_none() {
            let mut counts = HashMap::<String, QuotaUsage>::new();
            for stored in self.js.subscriptions().await? {
                let bytes = stored.subscription.stored_bytes();
                let used = counts.entry(stored.subscription.tenant).or_default();
                *used = used.plus(1, bytes);
            }
            *counted = Some(counts);
        }
        Ok(*counted.get_or_insert_default().entry(tenant.to_owned()).or_default())
    }
}
