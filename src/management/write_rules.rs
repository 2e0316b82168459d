//! What a caller may change in a subscription: broker deliveries belong to the operator, and some fields to the hub.

use super::{Management, ManagementError, StoredSubscription, SubscriptionSelector};
use crate::domain::access::Caller;
use crate::domain::field_error::FieldError;
use crate::domain::subscription::{Subscription, SubscriptionState};

impl Management {
    /// The subscription, if the caller may change, test or remove it.
    pub async fn subscription_to_change(
        &self,
        caller: &Caller,
        naming: &SubscriptionSelector,
    ) -> Result<StoredSubscription, ManagementError> {
        let stored = self.subscription(caller, naming).await?;
        check_broker_owner(caller, &stored.subscription)?;
        Ok(stored)
    }
}

/// Refuses a caller that is bound to a tenant if the stored subscription delivers to a broker: it uses the operator's
/// credentials, so only an operator changes it.
fn check_broker_owner(caller: &Caller, stored: &Subscription) -> Result<(), ManagementError> {
    if caller.tenant().is_some() && stored.delivery.broker().is_some() {
        return Err(ManagementError::BrokerOfOperator { id: stored.id.to_string() });
    }
    Ok(())
}

/// Checks a write by what the caller may set. Fields that the hub sets keep their stored value if they are left out.
///
/// * `stored`: the subscription that is replaced
pub(super) fn check(
    caller: &Caller,
    subscription: &mut Subscription,
    stored: Option<&Subscription>,
) -> Result<(), ManagementError> {
    if let Some(stored) = stored {
        check_broker_owner(caller, stored)?;
    }
    if caller.tenant().is_some() && subscription.delivery.broker().is_some() {
        return Err(ManagementError::Invalid(vec![FieldError::new(
            "delivery.broker",
            "needs a token that is not bound to a tenant, because external brokers belong to the operator; write url, or \
             ask an operator to write it",
        )]));
    }
    // An operator may restore a backup.
    if caller.is_operator() {
        return Ok(());
    }
    let (reason, at) =
        stored.map(|stored| (&stored.disabled_reason, stored.disabled_at)).unwrap_or((&None, None));
    let mut errors = Vec::new();
    let mut refuse = |field: &str| {
        errors.push(FieldError::new(
            field,
            "is set by the hub and differs from its current value; leave it out",
        ));
    };
    if subscription.disabled_reason.is_some() && subscription.disabled_reason != *reason {
        refuse("disabled_reason");
    }
    if subscription.disabled_at.is_some() && subscription.disabled_at != at {
        refuse("disabled_at");
    }
    if !errors.is_empty() {
        return Err(ManagementError::Invalid(errors));
    }
    if subscription.state == SubscriptionState::Disabled {
        subscription.disabled_reason.clone_from(reason);
        subscription.disabled_at = at;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use time::OffsetDateTime;

    use super::*;
    use crate::domain::access::{Scope, StoredToken};

    fn subscription(delivery: Value) -> Subscription {
        let document = json!({"id": "a", "tenant": "acme", "events": ["user.>"], "delivery": delivery});
        Subscription::from_value(document).expect("a subscription")
    }

    fn bound() -> Caller {
        Caller::of(&StoredToken {
            id: "t".parse().expect("a name"),
            hash: String::new(),
            scopes: Scope::ALL.to_vec(),
            tenant: Some("acme".to_owned()),
            created_at: OffsetDateTime::UNIX_EPOCH,
            expires_at: None,
        })
    }

    #[test]
    fn a_bound_token_never_writes_a_broker_delivery() {
        let to = |stream: &str| subscription(json!({"broker": "partner_events", "stream": stream}));
        let endpoint = subscription(json!({"url": "https://a.example/"}));
        for stored in [None, Some(&endpoint), Some(&to("orders")), Some(&to("others"))] {
            let refused = check(&bound(), &mut to("orders"), stored).expect_err("a broker");
            match stored.is_some_and(|stored| stored.delivery.broker().is_some()) {
                true => assert!(matches!(refused, ManagementError::BrokerOfOperator { .. }), "{refused}"),
                false => assert!(refused.to_string().starts_with("delivery.broker: "), "{refused}"),
            }
            check(&Caller::unbound("t"), &mut to("orders"), stored).expect("an operator's write");
        }
        let replaced = check(&bound(), &mut endpoint.clone(), Some(&to("orders")));
        assert!(matches!(replaced, Err(ManagementError::BrokerOfOperator { .. })));
        check(&bound(), &mut endpoint.clone(), Some(&endpoint)).expect("an endpoint");
    }

    #[test]
    fn fields_of_the_hub_keep_their_value() {
        let mut stored = subscription(json!({"url": "https://a.example/"}));
        let active = stored.clone();
        stored.disable("410 Gone".to_owned(), OffsetDateTime::UNIX_EPOCH);
        let fields = |new: &Subscription, stored: Option<&Subscription>| {
            let mut new = new.clone();
            match check(&bound(), &mut new, stored) {
                Ok(()) => {
                    let of = |one: &Subscription| (one.disabled_reason.clone(), one.disabled_at);
                    let kept = new.state == SubscriptionState::Disabled;
                    assert_eq!(of(&new), stored.filter(|_| kept).map(of).unwrap_or_default());
                    Vec::new()
                }
                Err(ManagementError::Invalid(errors)) => {
                    errors.into_iter().map(|error| error.field).collect()
                }
                Err(other) => panic!("{other}"),
            }
        };
        let none: [&str; 0] = [];
        assert_eq!(fields(&stored, Some(&stored)), none, "what was read can be written");
        assert_eq!(fields(&active, Some(&stored)), none);
        let without = Subscription { disabled_reason: None, disabled_at: None, ..stored.clone() };
        assert_eq!(fields(&without, Some(&stored)), none);
        let other = Subscription { disabled_reason: Some("paid".to_owned()), ..stored.clone() };
        assert_eq!(fields(&other, Some(&stored)), ["disabled_reason"]);
        let later = Subscription {
            disabled_at: Some(OffsetDateTime::UNIX_EPOCH + time::Duration::DAY),
            ..stored.clone()
        };
        assert_eq!(fields(&later, Some(&stored)), ["disabled_at"]);
        for before in [None, Some(&active)] {
            assert_eq!(fields(&stored, before), ["disabled_reason", "disabled_at"]);
        }
        check(&Caller::unbound("t"), &mut other.clone(), Some(&stored))
            .expect("an operator restores a backup");
    }
}
