//! How many subscriptions a tenant may have.

use std::collections::HashMap;

use tokio::sync::OwnedMutexGuard;

use super::{Management, ManagementError};
use crate::domain::subscription::Subscription;

/// Room for one subscription more, until this is dropped.
#[derive(Debug)]
pub(super) struct Room(#[expect(dead_code, reason = "it is held")] Option<OwnedMutexGuard<()>>);

impl Management {
    /// Refuses one more of a tenant that has as many as it may. While the room is kept no other is created for that
    /// tenant in this process; each further replica may create one more in the same moment.
    pub(super) async fn room_for(&self, subscription: &Subscription) -> Result<Room, ManagementError> {
        let tenant = &subscription.tenant;
        let quota = self.settings.subscription_quota(tenant);
        if quota.limit == 0 {
            return Ok(Room(None));
        }
        let (turn, room) = match &self.index {
            Some(index) => {
                let turn = self.creations.turn(tenant).await;
                index.catch_up(&self.js).await?;
                let index = index.read();
                let own = index.iter().filter(|entry| entry.subscription.reference.tenant() == tenant);
                (Some(turn), own.count() < quota.limit)
            }
            None => (None, self.count_one_more(tenant, quota.limit).await?),
        };
        if room {
            return Ok(Room(turn));
        }
        let id = subscription.id.to_string();
        Err(ManagementError::TooManySubscriptions { id, tenant: tenant.clone(), quota })
    }

    /// Without an index: counts what there was at the first question, and what was planned since.
    async fn count_one_more(&self, tenant: &str, limit: usize) -> Result<bool, ManagementError> {
        let mut counted = self.counted.lock().await;
        if counted.is_none() {
            let mut counts = HashMap::<String, usize>::new();
            for stored in self.js.subscriptions().await? {
                *counts.entry(stored.subscription.tenant).or_default() += 1;
            }
            *counted = Some(counts);
        }
        let count = counted.get_or_insert_default().entry(tenant.to_owned()).or_default();
        if *count >= limit {
            return Ok(false);
        }
        *count += 1;
        Ok(true)
    }
}
