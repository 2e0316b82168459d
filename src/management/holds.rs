//! The hold of a subscription: its endpoint asked for a pause with `Retry-After`. The broker has it, for all processes.

use serde::Serialize;
use time::OffsetDateTime;

use super::subscriptions::reference;
use super::{Management, ManagementError};
use crate::domain::subscription::{Identity, SubscriptionState};
use crate::nats::StoredSubscription;

/// A hold: nothing is sent to the subscription until its end, in any domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = Hold)]
pub struct HoldRow {
    /// When it began. A hold that follows another one at once continues it.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    /// Why, for example `the endpoint answered 503 with Retry-After`.
    pub reason: String,
    /// The status of the endpoint's answer.
    pub status: u16,
}

impl Management {
    /// The hold of a subscription. A change of the subscription ends it.
    pub async fn hold(&self, stored: &StoredSubscription) -> Result<Option<HoldRow>, ManagementError> {
        if stored.subscription.state != SubscriptionState::Active {
            return Ok(None);
        }
        let identity = identity(stored)?;
        // This also reads the clock of the server, by which the hold ends.
        match self.js.stream_info(&self.js.names().redrive_stream()).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let hold = self.js.stored_hold(&identity.subscription).await?;
        let is_current = |revision: u64| revision >= stored.revision;
        let hold = hold.filter(|hold| hold.notice.subscription == identity);
        Ok(hold.filter(|hold| is_current(hold.notice.revision)).map(|hold| HoldRow {
            since: to_second(hold.since),
            until: to_second(hold.until),
            reason: format!("the endpoint answered {} with Retry-After", hold.notice.status),
            status: hold.notice.status,
        }))
    }

    /// Ends the hold of a subscription in all processes and domains, if there is one.
    pub(super) async fn end_hold(&self, stored: &StoredSubscription) -> Result<(), ManagementError> {
        Ok(self.js.end_hold(&identity(stored)?).await?)
    }
}

fn identity(stored: &StoredSubscription) -> Result<Identity, ManagementError> {
    let incarnation = stored.subscription.incarnation;
    Ok(Identity { subscription: reference(&stored.subscription)?, incarnation })
}

fn to_second(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(0).unwrap_or(at)
}
