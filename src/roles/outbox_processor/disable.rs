//! Disabling a subscription whose endpoint said that it is gone.

use time::OffsetDateTime;

use crate::domain::subscription::{SubscriptionRef, SubscriptionState};
use crate::nats::{JetStream, RegistryEntry};

/// Writes it as disabled, if it still is as it was when the attempt was made: whoever changed it
/// meanwhile, to another endpoint perhaps, or created it again, is not overruled.
pub(super) async fn disable(js: &JetStream, name: &SubscriptionRef, revision: u64, reason: &str) {
    let written = match js.registry_entry(name).await {
        Ok(RegistryEntry { revision: last, subscription: Some((mut subscription, current)), .. })
            if current == revision && subscription.state == SubscriptionState::Active =>
        {
            subscription.disable(reason.to_owned(), OffsetDateTime::now_utc());
            js.put_subscription(&subscription, Some(last)).await
        }
        // Gone, changed, or disabled by another attempt.
        Ok(_) => return,
        Err(error) => Err(error),
    };
    match written {
        Ok(_) => tracing::warn!(
            subscription = %name,
            reason,
            "the subscription is disabled; `hub subscription resume` enables it again"
        ),
        Err(error) if error.is_wrong_last_sequence() => {
            tracing::debug!(subscription = %name, "changed meanwhile, and so not disabled");
        }
        Err(error) => {
            tracing::warn!(%error, subscription = %name, "cannot be disabled yet; its next answer tries again");
        }
    }
}
