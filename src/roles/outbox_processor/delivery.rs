//! One attempt, from the message to its settlement.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::disable::disable;
use super::settle::{Settle, Tried};
use crate::domain::envelope::Envelope;
use crate::domain::index::Entry;
use crate::domain::outcome::{Decision, Failure, Fault, Reason, disables};
use crate::domain::status::Statuses;
use crate::domain::subscription::{State, SubscriptionId};
use crate::http_delivery::{Attempt, EnvelopeView, HttpDelivery, OpenSecret, Target};
use crate::nats::{Delivered, JetStream, NatsError, Registry};

/// Prepared targets kept for the next delivery; beyond this they are made anew.
const MOST_TARGETS: usize = 10_000;

/// What the worker needs to know of a delivery that ended.
pub(super) struct Finished {
    pub(super) subscription: SubscriptionId,
    pub(super) sequence: u64,
    pub(super) health: Health,
}

/// What an attempt tells of its endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Health {
    /// The endpoint answers as an endpoint that works.
    pub(super) healthy: bool,
    /// It asked to be left alone for so long.
    pub(super) hold: Option<Duration>,
}

impl Health {
    /// Nothing was tried.
    const UNTRIED: Self = Self { healthy: true, hold: None };
}

/// What each delivery needs. Cheap to clone.
#[derive(Clone)]
pub(super) struct Delivery {
    inner: Arc<Inner>,
}

struct Inner {
    js: JetStream,
    registry: Registry,
    http: HttpDelivery,
    opener: Arc<dyn OpenSecret>,
    settle: Settle,
    targets: Mutex<HashMap<SubscriptionId, Prepared>>,
}

#[derive(Clone)]
struct Prepared {
    revision: u64,
    target: Result<Arc<Target>, Failure>,
    statuses: Arc<Statuses>,
}

impl Prepared {
    /// What is stored cannot be delivered with.
    fn failed(revision: u64) -> Self {
        Self { revision, target: Err(Failure::Request), statuses: Arc::default() }
    }
}

/// Where an envelope goes now.
enum Destination {
    Deliver(Prepared),
    DeadLetter(Reason, String),
}

impl Delivery {
    pub(super) fn new(
        js: JetStream,
        registry: Registry,
        http: HttpDelivery,
        opener: Arc<dyn OpenSecret>,
        settle: Settle,
    ) -> Self {
        let targets = Mutex::new(HashMap::new());
        Self { inner: Arc::new(Inner { js, registry, http, opener, settle, targets }) }
    }

    /// Tries once and settles the message.
    pub(super) async fn deliver(&self, message: &Delivered, subscription: &SubscriptionId) -> Health {
        let inner = &self.inner;
        let envelope = match Envelope::read(&message.payload) {
            Ok(envelope) => envelope,
            Err(error) => {
                self.undecodable(message, &format!("the envelope cannot be read: {error}")).await;
                return Health::UNTRIED;
            }
        };
        let prepared = match inner.destination(subscription).await {
            Ok(Destination::Deliver(prepared)) => prepared,
            Ok(Destination::DeadLetter(reason, text)) => {
                let decision = Decision::DeadLetter { reason, fault: Fault::Subscriber };
                inner.settle.settle(message, &envelope, decision, Tried::not_at_all(&text)).await;
                return Health::UNTRIED;
            }
            Err(error) => {
                tracing::warn!(%error, %subscription, "the subscription cannot be looked up");
                let attempt = Attempt::failed(Failure::Request);
                return self.settle(message, &envelope, &attempt, &Statuses::default()).await;
            }
        };
        let attempt = match prepared.target {
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
        if disables(&attempt.outcome, &prepared.statuses) {
            let reason = format!("the endpoint answered {}", attempt.outcome.error_text());
            disable(&inner.js, subscription, prepared.revision, &reason).await;
        }
        self.settle(message, &envelope, &attempt, &prepared.statuses).await
    }

    async fn settle(
        &self,
        message: &Delivered,
        envelope: &Envelope<'_>,
        attempt: &Attempt,
        statuses: &Statuses,
    ) -> Health {
        let settle = &self.inner.settle;
        let decision = settle.decide(&attempt.outcome, message.deliveries, statuses);
        settle.settle(message, envelope, decision, Tried::once(attempt)).await;
        Health { healthy: attempt.outcome.is_healthy(), hold: settle.hold(&attempt.outcome, statuses) }
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
    async fn destination(&self, id: &SubscriptionId) -> Result<Destination, NatsError> {
        let known = self.registry.read().get(id).cloned();
        let entry = match known {
            Some(entry) if entry.subscription.state == State::Active => entry,
            _ => match self.js.subscription(id).await? {
                None => {
                    return Ok(Destination::DeadLetter(
                        Reason::Removed,
                        "the subscription was removed".to_owned(),
                    ));
                }
                Some(stored) if stored.subscription.state == State::Paused => {
                    return Ok(Destination::DeadLetter(
                        Reason::Paused,
                        "the subscription is paused".to_owned(),
                    ));
                }
                Some(stored) if stored.subscription.state == State::Disabled => {
                    let why = stored.subscription.disabled_reason.as_deref().unwrap_or("no reason is kept");
                    let text = format!("the subscription is disabled: {why}");
                    return Ok(Destination::DeadLetter(Reason::Disabled, text));
                }
                Some(stored) => match Entry::new(stored.subscription, stored.revision) {
                    Ok(entry) => Arc::new(entry),
                    Err(_) => return Ok(Destination::Deliver(Prepared::failed(stored.revision))),
                },
            },
        };
        Ok(Destination::Deliver(self.prepared(id, &entry)))
    }

    fn prepared(&self, id: &SubscriptionId, entry: &Entry) -> Prepared {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prepared) = targets.get(id)
            && prepared.revision == entry.revision
        {
            return prepared.clone();
        }
        if targets.len() >= MOST_TARGETS {
            targets.clear();
        }
        let prepared = match entry.to_subscription() {
            Ok(subscription) => Prepared {
                revision: entry.revision,
                target: Target::prepare(id.as_str(), &subscription.delivery, &*self.opener).map(Arc::new),
                statuses: Arc::new(subscription.delivery.statuses),
            },
            Err(_) => Prepared::failed(entry.revision),
        };
        targets.insert(id.clone(), prepared.clone());
        prepared
    }
}
