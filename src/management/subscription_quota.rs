//! How many subscriptions a tenant may have, and of what size together.

use std::collections::HashMap;

use tokio::sync::OwnedMutexGuard;

use super::{Management, ManagementError};
use crate::domain::subscription::Subscription;

/// Room for one subscription more, until this is dropped.
#[derive(Debug)]
pub(super) struct Room(#[expect(dead_code, reason = "it is held")] Option<OwnedMutexGuard<()>>);

/// What a tenant's subscriptions are together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    count: usize,
    bytes: usize,
}

impl Used {
    fn plus(self, count: usize, bytes: usize) -> Self {
        Self { count: self.count + count, bytes: self.bytes.saturating_add(bytes) }
    }
}

impl Management {
    /// Refuses one more of a tenant that has as many as it may, and what grows beyond what they may take together.
    /// `before`: what stands, and is replaced. While the room is kept no other is written for that tenant in this
    /// process; each further replica may write one more in the same moment.
    pub(super) async fn room_for(
        &self,
        subscription: &Subscription,
        before: Option<&Subscription>,
    ) -> Result<Room, ManagementError> {
        let tenant = &subscription.tenant;
        let (most, size) =
            (self.settings.subscription_quota(tenant), self.settings.subscriptions_size_quota(tenant));
        let (bytes, bytes_before) =
            (subscription.stored_bytes(), before.map_or(0, Subscription::stored_bytes));
        let grows = bytes > bytes_before;
        if (before.is_some() || most.limit == 0) && (!grows || size.limit == 0) {
            return Ok(Room(None));
        }
        let turn = self.creations.turn(tenant).await;
        let used = match &self.index {
            Some(index) => {
                index.catch_up(&self.js).await?;
                let index = index.read();
                let own = index.iter().filter(|entry| entry.subscription.reference.tenant() == tenant);
                own.fold(Used::default(), |used, entry| used.plus(1, entry.bytes))
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
            *counted = Used { count: used.count + usize::from(before.is_none()), bytes: after };
        }
        // What is planned is counted above where there is no index: others need not wait for it to be written.
        Ok(Room(self.index.is_some().then_some(turn)))
    }

    /// Without an index: what there was at the first question, and what was planned since.
    async fn used(&self, tenant: &str) -> Result<Used, ManagementError> {
        let mut counted = self.counted.lock().await;
        if counted.is_none() {
            let mut counts = HashMap::<String, Used>::new();
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
