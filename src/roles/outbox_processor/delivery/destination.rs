//! Where an envelope is sent.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{DeliveryParts, Destination, Prepared, PreparedFrom, Receiver};
use crate::domain::envelope::Envelope;
use crate::domain::index::IndexEntry;
use crate::domain::outcome::Reason;
use crate::domain::subscription::{self, Identity, SubscriptionState};
use crate::facts::LookUpFailed;
use crate::http_delivery::Target;
use crate::nats::{NatsError, Registry};

/// First pause between look-ups of a subscription that fail; it doubles each time.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(1);
const LONGEST_LOOK_UP_PAUSE: Duration = Duration::from_secs(15);
/// Most prepared targets; above that, all are prepared again.
const MOST_TARGETS: usize = 10_000;

impl DeliveryParts {
    /// Looks the subscription up until the registry answers: a failed look-up uses up no attempt. The worker sends
    /// heartbeats for the message meanwhile, and aborts this when it stops.
    pub(super) async fn known_destination(&self, registry: &Registry, id: &Identity) -> Destination {
        let mut pause = LOOK_UP_AGAIN;
        loop {
            match self.destination(registry, id).await {
                Ok(destination) => return destination,
                Err(error) => {
                    LookUpFailed { error: &error, subscription: &id.subscription, retry_in: pause }.emit();
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_LOOK_UP_PAUSE);
                }
            }
        }
    }

    /// The endpoint as the registry has it now, so that a corrected URL or a new credential applies to the envelopes
    /// that wait. A subscription that was created again under the same name gets nothing of the one before. If the
    /// index lacks the subscription, or has it as paused or in another incarnation, the bucket is read to be sure.
    async fn destination(&self, registry: &Registry, id: &Identity) -> Result<Destination, NatsError> {
        let known = registry.read().get(&id.subscription).cloned();
        let removed = |why: &str| Ok(Destination::DeadLetter(Reason::Removed, why.to_owned()));
        let entry = match known {
            Some(entry)
                if entry.subscription.state == SubscriptionState::Active
                    && entry.subscription.incarnation == id.incarnation =>
            {
                entry
            }
            _ => match self.js.subscription(&id.subscription).await? {
                None => return removed("the subscription was removed"),
                Some(stored) if stored.subscription.incarnation != id.incarnation => {
                    return removed("the subscription was removed; another one has its id now");
                }
                Some(stored) if stored.subscription.state == SubscriptionState::Paused => {
                    return Ok(Destination::DeadLetter(
                        Reason::Paused,
                        "the subscription is paused".to_owned(),
                    ));
                }
                Some(stored) if stored.subscription.state == SubscriptionState::Disabled => {
                    let why = stored.subscription.disabled_reason.as_deref().unwrap_or("no reason is kept");
                    let text = format!("the subscription is disabled: {why}");
                    return Ok(Destination::DeadLetter(Reason::Disabled, text));
                }
                Some(stored) => match IndexEntry::new(stored.subscription, stored.revision) {
                    Ok(entry) => Arc::new(entry),
                    Err(_) => {
                        return Ok(Destination::Deliver(Prepared::failed(PreparedFrom::Revision(
                            stored.revision,
                        ))));
                    }
                },
            },
        };
        Ok(self.destination_of(id, &entry))
    }

    pub(super) fn destination_of(&self, id: &Identity, entry: &IndexEntry) -> Destination {
        Destination::Deliver(self.prepared(id, PreparedFrom::Revision(entry.revision), || {
            entry.to_subscription().map(|subscription| subscription.delivery).ok()
        }))
    }

    /// The endpoint as the resolver returned it at the fan-out.
    pub(super) fn destination_of_envelope(&self, id: &Identity, envelope: &Envelope<'_>) -> Destination {
        let Some(delivery) = envelope.delivery else {
            let text = "the event and the subscription's delivery do not fit into one message (the server's max_payload); \
                        make the delivery smaller (headers, tls), then publish the event again";
            return Destination::DeadLetter(Reason::TooLarge, text.to_owned());
        };
        let json = delivery.get();
        Destination::Deliver(
            self.prepared(id, PreparedFrom::Json(json.into()), || serde_json::from_str(json).ok()),
        )
    }

    fn prepared(
        &self,
        id: &Identity,
        from: PreparedFrom,
        delivery: impl FnOnce() -> Option<subscription::Delivery>,
    ) -> Prepared {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prepared) = targets.get(id)
            && prepared.from == from
        {
            return prepared.clone();
        }
        if targets.len() >= MOST_TARGETS {
            targets.clear();
        }
        let prepared = match delivery() {
            Some(subscription::Delivery::Endpoint(endpoint)) => Prepared {
                from,
                receiver: Target::prepare(id, &endpoint, &*self.opener)
                    .map(|to| Receiver::Endpoint(to.into()))
                    .map_err(|error| error.attempt().into()),
                statuses: Arc::new(endpoint.statuses),
            },
            Some(subscription::Delivery::Broker(broker)) => {
                Prepared { from, receiver: Ok(Receiver::Broker(broker.into())), statuses: Arc::default() }
            }
            None => Prepared::failed(from),
        };
        targets.insert(id.clone(), prepared.clone());
        prepared
    }
}
