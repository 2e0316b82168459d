//! Disables a subscription whose endpoint answered 410 or the like.

use crate::domain::subscription::{SubscriptionRef, SubscriptionState};
use crate::facts::{DisablingFailed, DisablingSuperseded, SubscriptionDisabled};
use crate::nats::{JetStream, RegistryEntry};

/// Disables the subscription if it has not changed since the attempt: a change of its endpoint, or a new incarnation,
/// takes precedence.
pub(super) async fn disable(js: &JetStream, name: &SubscriptionRef, revision: u64, reason: &str) {
    let written = match js.registry_entry(name).await {
        Ok(RegistryEntry { revision: last, subscription: Some((mut subscription, current)), .. })
            if current == revision && subscription.state == SubscriptionState::Active =>
        {
            subscription.disable(reason.to_owned(), js.now());
            js.put_subscription(&subscription, Some(last)).await
        }
        // Removed, changed, or disabled by another attempt.
        Ok(_) => return,
        Err(error) => Err(error),
    };
    match written {
        Ok(_) => SubscriptionDisabled { subscription: name, reason }.emit(),
        Err(error) if error.is_wrong_last_sequence() => DisablingSuperseded { subscription: name }.emit(),
        Err(error) => DisablingFailed { error: &error, subscription: name }.emit(),
    }
}
