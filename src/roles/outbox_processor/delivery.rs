//! One attempt, from the message to its settlement.

mod destination;
mod strict;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use foldhash::fast::RandomState;

use super::Subscriptions;
use super::brokers::Brokers;
use super::circuits::Probe;
use super::disable::disable;
use super::expiry::Expiry;
use super::holds::Asked;
use super::remembered::{Remembered, Settlement};
use super::settle::strict::Turn;
use super::settle::{Settle, Tried};
use super::tries::Tries;
use crate::domain::attempt::Attempt;
use crate::domain::circuit::{Sign, sign};
use crate::domain::deliveries::Deliveries;
use crate::domain::envelope::Envelope;
use crate::domain::fair_share::Finish;
use crate::domain::index::IndexEntry;
use crate::domain::outcome::{DeliveryDecision, Failure, Fault, Reason, disables};
use crate::domain::producer_outbox::ExternalMessage;
use crate::domain::status::Statuses;
use crate::domain::subscription::{BrokerDelivery, Identity, SubscriptionState};
use crate::domain::words::{rounded, span};
use crate::facts::DisablingElsewhere;
use crate::http_delivery::{EnvelopeView, HttpDelivery, OpenSecret, Target};
use crate::nats::{Delivered, JetStream};
use crate::panics::{self, Panicked};
use crate::sinks::OutgoingMessage;
use strict::StrictPlace;

/// Delay before an envelope that caused a panic is delivered again.
const PANIC_RETRY: Duration = Duration::from_secs(5);

/// A delivery that has ended, for the worker.
pub(super) struct Finished {
    pub(super) subscription: Identity,
    pub(super) sequence: u64,
    /// When the pool returned it.
    pub(super) started: Duration,
    pub(super) health: Health,
}

/// What an attempt shows about its endpoint.
#[derive(Debug, Clone)]
pub(super) struct Health {
    pub(super) finish: Finish,
    /// It asked for a pause with `Retry-After`.
    pub(super) hold: Option<Asked>,
    pub(super) evidence: Evidence,
}

/// What an attempt shows for the circuit of its subscription.
#[derive(Debug, Clone)]
pub(super) enum Evidence {
    Works,
    Fails { envelope: Box<str>, error: String },
    None,
}

impl Health {
    /// No attempt was made.
    pub(super) const UNTRIED: Self = Self { finish: Finish::Untried, hold: None, evidence: Evidence::None };
}

/// Delivers the envelopes of one domain. Cheap to clone.
#[derive(Clone)]
pub(super) struct EnvelopeDelivery {
    inner: Arc<DeliveryParts>,
}

struct DeliveryParts {
    js: JetStream,
    subscriptions: Subscriptions,
    transports: Transports,
    opener: Arc<dyn OpenSecret>,
    settle: Settle,
    expiry: Arc<Expiry>,
    targets: Mutex<HashMap<Identity, Prepared, RandomState>>,
}

/// The clients that send envelopes.
#[derive(Clone)]
pub(super) struct Transports {
    pub(super) http: HttpDelivery,
    pub(super) brokers: Brokers,
}

#[derive(Clone)]
struct Prepared {
    from: PreparedFrom,
    /// Or the attempt that fails because the stored delivery settings are unusable.
    receiver: Result<Receiver, Arc<Attempt>>,
    statuses: Arc<Statuses>,
}

impl Prepared {
    /// The stored delivery settings are unusable.
    fn failed(from: PreparedFrom) -> Self {
        let attempt = Attempt::failed_because(Failure::Request, "the stored delivery cannot be read");
        Self { from, receiver: Err(attempt.into()), statuses: Arc::default() }
    }
}

/// Where an envelope is sent.
#[derive(Clone)]
enum Receiver {
    Endpoint(Arc<Target>),
    Broker(Arc<BrokerDelivery>),
}

/// The version that a target was prepared from.
#[derive(Clone, PartialEq)]
enum PreparedFrom {
    /// The registry's revision.
    Revision(u64),
    /// The delivery in an envelope.
    Json(Box<str>),
}

/// What to do with an envelope.
enum Destination {
    Deliver(Prepared),
    DeadLetter(Reason, String),
}

impl EnvelopeDelivery {
    pub(super) fn new(
        js: JetStream,
        subscriptions: Subscriptions,
        transports: Transports,
        opener: Arc<dyn OpenSecret>,
        settle: Settle,
        expiry: Arc<Expiry>,
    ) -> Self {
        let targets = Mutex::default();
        Self {
            inner: Arc::new(DeliveryParts { js, subscriptions, transports, opener, settle, expiry, targets }),
        }
    }

    /// What was settled lately.
    pub(super) fn remembered(&self) -> &Arc<Remembered> {
        self.inner.settle.remembered()
    }

    /// Takes note of the time since the start of the worker, before it takes or starts deliveries.
    pub(super) fn pass(&self, now: Duration) {
        self.remembered().pass(now);
        self.inner.expiry.pass();
    }

    /// Settles a redelivered message as before.
    pub(super) async fn settle_again(&self, message: &Delivered, settlement: Settlement) {
        self.inner.settle.settle_again(message, settlement).await;
    }

    /// Makes one attempt and settles the message. `probe`: it is the probe of a half-open circuit.
    pub(super) async fn deliver(&self, message: &Delivered, probe: Option<&Probe>) -> Health {
        let inner = &self.inner;
        let envelope = match Envelope::read(&message.payload) {
            Ok(envelope) => envelope,
            Err(error) => {
                let detail = format!("the envelope cannot be read: {error}");
                Box::pin(self.undecodable(message, &detail)).await;
                return Health::UNTRIED;
            }
        };
        // What happens rarely is boxed: otherwise each delivery's task would have room for it.
        if message.carried().dead_letter.is_some()
            && Box::pin(inner.settle.is_resolved(message, &envelope)).await
        {
            inner.settle.redriven_is_resolved(&envelope);
            inner.settle.tries().forget(message);
            message.acker.ack().await;
            return Health::UNTRIED;
        }
        if inner.settle.is_repeated(message, &envelope) {
            Box::pin(self.settle_again(message, Settlement::Delivered)).await;
            return Health::UNTRIED;
        }
        let Some(identity) = envelope.identity() else {
            Box::pin(self.undecodable(message, "the envelope names no subscription")).await;
            return Health::UNTRIED;
        };
        let subscription = &identity.subscription;
        let mut known = match inner.settle.tries().known_here(message) {
            Some(known) => known,
            None => Box::pin(inner.settle.tries().look_up(message)).await,
        };
        let turn = if inner.settle.is_in_strict_lane(message) {
            match Box::pin(self.place(message, &envelope, &identity)).await {
                StrictPlace::InOrder(turn) => Some(turn),
                StrictPlace::Settled => return Health::UNTRIED,
            }
        } else {
            None
        };
        if let Some(letter) = turn.as_ref().and_then(|turn| turn.letter) {
            known = known.replayed(letter.attempts);
        }
        let turn = turn.as_ref();
        let entry = inner.entry(&identity);
        let max_age = || match &inner.subscriptions {
            Subscriptions::Registry(_) => entry.as_ref().and_then(|entry| entry.max_age()),
            Subscriptions::InEnvelopes => envelope.max_age(),
        };
        if let Some(why) = inner.expired(message, max_age) {
            let decision = DeliveryDecision::DeadLetter { reason: Reason::Expired, fault: Fault::Subscriber };
            let tried = Tried::not_at_all(&why);
            Box::pin(inner.settle.settle_in(turn, message, &envelope, decision, tried, &known)).await;
            return Health::UNTRIED;
        }
        let destination = match entry {
            Some(entry) if entry.subscription.state == SubscriptionState::Active => {
                inner.destination_of(&identity, &entry)
            }
            _ => match &inner.subscriptions {
                Subscriptions::Registry(registry) => {
                    Box::pin(inner.known_destination(registry, &identity)).await
                }
                Subscriptions::InEnvelopes => inner.destination_of_envelope(&identity, &envelope),
            },
        };
        let prepared = match destination {
            Destination::Deliver(prepared) => prepared,
            Destination::DeadLetter(reason, text) => {
                let decision = DeliveryDecision::DeadLetter { reason, fault: Fault::Subscriber };
                let tried = Tried::not_at_all(&text);
                Box::pin(inner.settle.settle_in(turn, message, &envelope, decision, tried, &known)).await;
                return Health::UNTRIED;
            }
        };
        if turn.is_none() && inner.settle.goes_back(&known) {
            Box::pin(inner.settle.publish_again(message, &envelope, &known)).await;
            return Health::UNTRIED;
        }
        let attempt = match prepared.receiver {
            Ok(Receiver::Endpoint(target)) => inner.to_endpoint(message, &envelope, &target, &known).await,
            Ok(Receiver::Broker(delivery)) => Box::pin(inner.to_broker(&envelope, &delivery)).await,
            Err(failed) => (*failed).clone(),
        };
        if disables(&attempt.outcome, &prepared.statuses) {
            let reason = format!("the endpoint answered {}", attempt.outcome.error_text());
            match prepared.from {
                PreparedFrom::Revision(revision) => {
                    Box::pin(disable(&inner.js, subscription, revision, &reason)).await;
                }
                PreparedFrom::Json(_) => DisablingElsewhere { subscription, reason: &reason }.emit(),
            }
        }
        let origin = match (turn, probe) {
            (Some(turn), _) => AttemptOrigin::InOrder(turn),
            (None, Some(probe)) => AttemptOrigin::Probe(probe),
            (None, None) => AttemptOrigin::Free,
        };
        self.settle(message, &envelope, &attempt, &prepared.statuses, &known, origin).await
    }

    async fn settle(
        &self,
        message: &Delivered,
        envelope: &Envelope<'_>,
        attempt: &Attempt,
        statuses: &Statuses,
        known: &Deliveries,
        origin: AttemptOrigin<'_>,
    ) -> Health {
        let settle = &self.inner.settle;
        let sign = sign(&attempt.outcome, statuses);
        if let AttemptOrigin::InOrder(turn) = origin {
            return Box::pin(self.settle_in_order(message, envelope, attempt, statuses, known, turn)).await;
        }
        if let AttemptOrigin::Probe(probe) = origin
            && sign == Sign::Fails
        {
            let next = Box::pin(probe.failed(&attempt.error_text())).await;
            settle.probe_failed(message, envelope, &Tried::once(attempt), known, next);
            Box::pin(probe.put_back(message, next, settle.tries(), known, settle.remembered())).await;
            return Health { finish: attempt.outcome.finish(), hold: None, evidence: Evidence::None };
        }
        let decision = settle.decide(&attempt.outcome, known, statuses);
        let hold = self.inner.hold(attempt, statuses);
        let tried = Tried::once(attempt).holding(hold.map(|hold| hold.wait));
        settle.settle(message, envelope, decision, tried, known).await;
        if let AttemptOrigin::Probe(probe) = origin
            && sign == Sign::Works
        {
            Box::pin(probe.worked()).await;
        }
        let evidence = match sign {
            Sign::Works => Evidence::Works,
            Sign::Fails => Evidence::Fails { envelope: (*envelope.id).into(), error: attempt.error_text() },
            Sign::None => Evidence::None,
        };
        Health { finish: attempt.outcome.finish(), hold, evidence }
    }

    /// The attempts on the envelopes of its domain.
    pub(super) fn tries(&self) -> &Arc<Tries> {
        self.inner.settle.tries()
    }

    /// Whether a message has waited for too long: [`Self::deliver`] then dead-letters it without an attempt.
    /// `max_age`: that of its subscription.
    pub(super) fn is_expired(&self, message: &Delivered, max_age: Option<Duration>) -> bool {
        self.inner.expired(message, || max_age).is_some()
    }

    /// Dead-letters a message that is not a readable envelope.
    pub(super) async fn undecodable(&self, message: &Delivered, detail: &str) {
        self.inner.settle.set_aside(message, Reason::Undecodable, detail).await;
    }

    /// Hands a message that caused a panic back, or dead-letters it after [`panics::TRIES`] deliveries.
    pub(super) async fn panicked(&self, message: &Delivered, panicked: &Panicked, most: u32) {
        let stream = self.inner.settle.stream();
        let had_its_tries = panicked.on_input(&stream, message.stream_sequence, message.deliveries);
        // A strict lane delivers without end.
        let is_last = message.deliveries >= most && !self.inner.settle.is_in_strict_lane(message);
        if !had_its_tries && !is_last {
            // It counts as an attempt, so that the envelope is not published again because of it.
            let tries = self.tries();
            tries.keep(message, tries.known(message).tried().saturating_add(1));
            return message.acker.nak(Some(PANIC_RETRY)).await;
        }
        let detail = panicked.to_string();
        let aside = self.inner.settle.set_aside(message, Reason::InternalError, &detail);
        if let Err(panicked) = panics::catch_async(aside).await {
            panicked.on_input(&stream, message.stream_sequence, message.deliveries);
            message.acker.nak(Some(PANIC_RETRY)).await;
        }
    }
}

/// How an envelope came to its attempt.
#[derive(Clone, Copy)]
enum AttemptOrigin<'a> {
    Free,
    /// It is the probe of a half-open circuit.
    Probe(&'a Probe),
    InOrder(&'a Turn),
}

impl DeliveryParts {
    fn hold(&self, attempt: &Attempt, statuses: &Statuses) -> Option<Asked> {
        match self.subscriptions {
            Subscriptions::Registry(_) => {
                let wait = self.settle.hold(&attempt.outcome, statuses)?;
                Some(Asked { wait, status: attempt.outcome.status().unwrap_or_default() })
            }
            // This envelope waits as its endpoint asked; others may have another endpoint in their copy.
            Subscriptions::InEnvelopes => None,
        }
    }

    /// The subscription in this incarnation, as the index has it.
    fn entry(&self, id: &Identity) -> Option<Arc<IndexEntry>> {
        let Subscriptions::Registry(registry) = &self.subscriptions else { return None };
        let index = registry.read();
        index.get(&id.subscription).filter(|one| one.subscription.incarnation == id.incarnation).cloned()
    }

    /// Why a message is expired; `None` if it is not. `max_age`: that of its subscription.
    fn expired(&self, message: &Delivered, max_age: impl FnOnce() -> Option<Duration>) -> Option<String> {
        let age = self.expiry.age(message)?;
        let most = self.expiry.limit(max_age()).filter(|most| age > *most)?;
        Some(format!("it waited for {}; the limit is {} (max_age)", rounded(age), span(most)))
    }

    async fn to_endpoint(
        &self,
        message: &Delivered,
        envelope: &Envelope<'_>,
        target: &Target,
        known: &Deliveries,
    ) -> Attempt {
        let event = envelope.event.get().as_bytes();
        let view = EnvelopeView {
            id: &envelope.id,
            event: message.payload.slice_ref(event),
            traceparent: envelope.traceparent.as_deref(),
        };
        let attempt = known.attempts().saturating_add(1);
        self.transports.http.attempt(target, &view, attempt).await
    }

    /// The envelope's id is the message id, the same on every attempt and redrive, as the `webhook-id` is.
    async fn to_broker(&self, envelope: &Envelope<'_>, delivery: &BrokerDelivery) -> Attempt {
        let message = match ExternalMessage::new(envelope.event.get(), envelope.external_metadata) {
            Ok(message) => message,
            Err(error) => return Attempt::failed_by(Failure::Request, &error),
        };
        let outgoing = OutgoingMessage {
            id: envelope.id.to_string(),
            stream: delivery.stream.clone(),
            key: message.key,
            body: message.body.into(),
            headers: message.headers,
        };
        self.transports.brokers.attempt(&delivery.broker, &outgoing, delivery.timeout).await
    }
}
