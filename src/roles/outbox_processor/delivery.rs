//! One attempt, from the message to its settlement.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Subscriptions;
use super::settle::{Settle, Tried};
use crate::domain::envelope::Envelope;
use crate::domain::index::Entry;
use crate::domain::outcome::{Decision, Failure, Fault, Reason};
use crate::domain::subscription::{State, SubscriptionId};
use crate::http_delivery::{Attempt, EnvelopeView, HttpDelivery, OpenSecret, Target};
use crate::nats::{Delivered, JetStream, NatsError, Registry};

/// Prepared targets kept for the next delivery; beyond this they are made anew.
const MOST_TARGETS: usize = 10_000;

/// What the worker needs to know of a delivery that ended.
pub(super) struct Finished {
    pub(super) subscription: SubscriptionId,
    pub(super) sequence: u64,
    /// The endpoint answers as an endpoint that works.
    pub(super) healthy: bool,
}

/// What each delivery needs. Cheap to clone.
#[derive(Clone)]
pub(super) struct Delivery {
    inner: Arc<Inner>,
}

struct Inner {
    js: JetStream,
    subscriptions: Subscriptions,
    http: HttpDelivery,
    opener: Arc<dyn OpenSecret>,
    settle: Settle,
    targets: Mutex<HashMap<SubscriptionId, Prepared>>,
}

#[derive(Clone)]
struct Prepared {
    form: Form,
    target: Result<Arc<Target>, Failure>,
}

/// What a target was prepared from.
#[derive(Clone, PartialEq)]
enum Form {
    /// The registry's revision.
    Revision(u64),
    /// The delivery in an envelope.
    Json(Box<str>),
}

/// Where an envelope goes now.
enum Destination {
    Deliver(Result<Arc<Target>, Failure>),
    DeadLetter(Reason, &'static str),
}

impl Delivery {
    pub(super) fn new(
        js: JetStream,
        subscriptions: Subscriptions,
        http: HttpDelivery,
        opener: Arc<dyn OpenSecret>,
        settle: Settle,
    ) -> Self {
        let targets = Mutex::new(HashMap::new());
        Self { inner: Arc::new(Inner { js, subscriptions, http, opener, settle, targets }) }
    }

    /// Tries once and settles the message. Returns whether the endpoint is healthy.
    pub(super) async fn deliver(&self, message: &Delivered, subscription: &SubscriptionId) -> bool {
        let inner = &self.inner;
        let envelope = match Envelope::read(&message.payload) {
            Ok(envelope) => envelope,
            Err(error) => {
                self.undecodable(message, &format!("the envelope cannot be read: {error}")).await;
                return true;
            }
        };
        let destination = match &inner.subscriptions {
            Subscriptions::Registry(registry) => inner.destination(registry, subscription).await,
            Subscriptions::InEnvelopes => {
                Ok(Destination::Deliver(inner.target_of_envelope(subscription, &envelope)))
            }
        };
        let target = match destination {
            Ok(Destination::Deliver(target)) => target,
            Ok(Destination::DeadLetter(reason, text)) => {
                let decision = Decision::DeadLetter { reason, fault: Fault::Subscriber };
                inner.settle.settle(message, &envelope, decision, Tried::not_at_all(text)).await;
                return true;
            }
            Err(error) => {
                tracing::warn!(%error, %subscription, "the subscription cannot be looked up");
                let attempt = Attempt::failed(Failure::Request);
                return self.settle(message, &envelope, &attempt).await;
            }
        };
        let attempt = match target {
            Ok(target) => {
                let event = envelope.event.get().as_bytes();
                let view = EnvelopeView {
                    id: &envelope.id,
                    event: message.payload.slice_ref(event),
                    traceparent: envelope.traceparent.as_deref(),
                };
                let attempt = Settle::attempts_before(message) + message.deliveries;
                inner.http.attempt(&target, &view, attempt).await
            }
            Err(failure) => Attempt::failed(failure),
        };
        self.settle(message, &envelope, &attempt).await
    }

    async fn settle(&self, message: &Delivered, envelope: &Envelope<'_>, attempt: &Attempt) -> bool {
        let settle = &self.inner.settle;
        let decision = settle.decide(&attempt.outcome, message.deliveries);
        settle.settle(message, envelope, decision, Tried::once(attempt)).await;
        attempt.outcome.is_healthy()
    }

    /// Dead-letters what is no envelope.
    pub(super) async fn undecodable(&self, message: &Delivered, detail: &str) {
        self.inner.settle.undecodable(message, detail).await;
    }
}

impl Inner {
    /// The endpoint as the registry has it now: a corrected URL or a new credential reaches the
    /// envelopes that wait. What the index does not know, or knows as paused, is asked of the
    /// bucket itself before it is believed.
    async fn destination(&self, registry: &Registry, id: &SubscriptionId) -> Result<Destination, NatsError> {
        let known = registry.read().get(id).cloned();
        let entry = match known {
            Some(entry) if entry.subscription.state == State::Active => entry,
            _ => match self.js.subscription(id).await? {
                None => return Ok(Destination::DeadLetter(Reason::Removed, "the subscription was removed")),
                Some(stored) if stored.subscription.state == State::Paused => {
                    return Ok(Destination::DeadLetter(Reason::Paused, "the subscription is paused"));
                }
                Some(stored) => match Entry::new(stored.subscription, stored.revision) {
                    Ok(entry) => Arc::new(entry),
                    Err(_) => return Ok(Destination::Deliver(Err(Failure::Request))),
                },
            },
        };
        let target = self.target(id, Form::Revision(entry.revision), || {
            entry.to_subscription().map(|subscription| subscription.delivery).ok()
        });
        Ok(Destination::Deliver(target))
    }

    /// The endpoint as the resolver had it at the fan-out.
    fn target_of_envelope(
        &self,
        id: &SubscriptionId,
        envelope: &Envelope<'_>,
    ) -> Result<Arc<Target>, Failure> {
        let json = envelope.delivery.get();
        self.target(id, Form::Json(json.into()), || serde_json::from_str(json).ok())
    }

    fn target(
        &self,
        id: &SubscriptionId,
        form: Form,
        delivery: impl FnOnce() -> Option<crate::domain::subscription::Delivery>,
    ) -> Result<Arc<Target>, Failure> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prepared) = targets.get(id)
            && prepared.form == form
        {
            return prepared.target.clone();
        }
        if targets.len() >= MOST_TARGETS {
            targets.clear();
        }
        let target = match delivery() {
            Some(delivery) => Target::prepare(id.as_str(), &delivery, &*self.opener).map(Arc::new),
            None => Err(Failure::Request),
        };
        targets.insert(id.clone(), Prepared { form, target: target.clone() });
        target
    }
}
