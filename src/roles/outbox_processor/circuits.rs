//! Circuit breakers of a domain: opens and closes circuits at the broker, learns of those that other processes open and
//! close, and sends the probes.
//!
//! The core decides when a circuit opens (`circuit`); the durable of the subscription's own lane stores it
//! (`nats/circuits.rs`). While it is open or half-open, envelopes leave the shared lane and the memory of the worker
//! for the own lane, untried. The broker gives one envelope of that lane at a time to one process: the probe.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Subscriptions;
use super::circuit_records::KnownCircuits;
use super::delivery::{Evidence, Finished};
use super::remembered::{Remembered, Settlement};
use super::tries::Tries;
use super::worker::{Held, Running, Worker};
use crate::domain::circuit::{CircuitChange, CircuitPolicy};
use crate::domain::deliveries::Deliveries;
use crate::domain::subscription::{Identity, SubscriptionState};
use crate::facts::{
    CircuitClosed, CircuitClosedBecause, CircuitNotChanged, CircuitNoticeNotSent, CircuitOpened,
    CircuitOpenedAgain, CircuitPauseEnded, CircuitProbed, CircuitRecordRestored, DomainMetrics,
    EnvelopeNotSpilled, EnvelopeSpilled, LanesNotListed,
};
use crate::nats::definitions::StreamParameters;
use crate::nats::subjects::{lane_consumer, own_lane};
use crate::nats::{
    CircuitNotice, CircuitNotices, CircuitRecord, ConsumerInfo, Delivered, JetStream, NatsError, Trip,
    Tripped,
};

/// Capacity of the channel of news; senders wait for the worker.
const NEWS: usize = 256;
/// Questions about lanes in progress.
const AT_ONCE: usize = 16;

/// News about circuits, for the worker.
#[derive(Debug)]
pub(super) enum News {
    Tripped(Identity),
    NotTripped(Identity),
    Closed(Identity),
    /// The open and half-open circuits, as the broker has had them since `asked`. Not complete if some lane could not be
    /// read.
    Listed {
        found: Vec<Identity>,
        complete: bool,
        asked: Instant,
    },
}

/// The circuits of a domain at the broker. Cheap to clone.
#[derive(Clone)]
pub(super) struct Breaker {
    inner: Arc<BreakerState>,
}

struct BreakerState {
    js: JetStream,
    domain: String,
    parameters: StreamParameters,
    policy: CircuitPolicy,
    subscriptions: Subscriptions,
    metrics: DomainMetrics,
    news: mpsc::Sender<News>,
    /// By lane, to write the records again that somebody overwrites.
    known: KnownCircuits,
}

impl Breaker {
    pub(super) fn new(
        js: JetStream,
        domain: String,
        parameters: StreamParameters,
        policy: CircuitPolicy,
        subscriptions: Subscriptions,
        metrics: DomainMetrics,
    ) -> (Self, mpsc::Receiver<News>) {
        let (news, receiver) = mpsc::channel(NEWS);
        let known = KnownCircuits::default();
        let inner = BreakerState { js, domain, parameters, policy, subscriptions, metrics, news, known };
        (Self { inner: Arc::new(inner) }, receiver)
    }

    pub(super) fn js(&self) -> &JetStream {
        &self.inner.js
    }

    /// Opens a circuit, or opens it again after a probe. Returns the time until the next probe.
    async fn trip(&self, subscription: &Identity, error: &str, after_probe: bool) -> Option<Duration> {
        let BreakerState { js, domain, parameters, policy, metrics, .. } = &*self.inner;
        let name = &subscription.subscription;
        let lane = own_lane(&name.token());
        let pause = |last| policy.next_pause(last, rand::random::<f64>());
        let trip = Trip { subscription, error, revision: self.revision_of(subscription), after_probe };
        let changed = async {
            js.ensure_lane(parameters, domain, &lane).await?;
            js.trip_circuit(&js.names().outbox_stream(domain), &lane_consumer(&lane), trip, pause).await
        };
        let tripped = match changed.await {
            Ok(tripped) => tripped,
            Err(error) => {
                CircuitNotChanged { error: &error, subscription: name }.emit(metrics);
                self.tell_worker(News::NotTripped(subscription.clone())).await;
                return None;
            }
        };
        self.inner.known.note(&lane, tripped.record());
        let probe_in = tripped.record().pause;
        match tripped {
            Tripped::Opened(_) => CircuitOpened { subscription: name, error, probe_in }.emit(metrics),
            Tripped::Again(_) => CircuitOpenedAgain { subscription: name, error, probe_in }.emit(metrics),
            Tripped::Already(_) => {}
        }
        self.tell_worker(News::Tripped(subscription.clone())).await;
        self.tell_others(subscription).await;
        Some(probe_in)
    }

    async fn close(&self, subscription: &Identity, because: CircuitClosedBecause) {
        let BreakerState { js, domain, parameters, metrics, .. } = &*self.inner;
        let name = &subscription.subscription;
        let lane = own_lane(&name.token());
        match js.close_circuit(parameters, domain, &lane).await {
            Ok(closed) => {
                self.inner.known.forget(&lane);
                self.tell_worker(News::Closed(subscription.clone())).await;
                // Otherwise another process has closed it, and has sent the notice.
                if closed.is_some() {
                    CircuitClosed { subscription: name, because }.emit(metrics);
                    self.tell_others(subscription).await;
                }
            }
            Err(error) => CircuitNotChanged { error: &error, subscription: name }.emit(metrics),
        }
    }

    /// Reports that a lane with a circuit was removed because it was empty for long.
    pub(super) fn removed(&self, info: &ConsumerInfo) {
        if let Some(circuit) = info.circuit() {
            let subscription = &circuit.subscription.subscription;
            self.inner.known.forget(&own_lane(&subscription.token()));
            CircuitClosed { subscription, because: CircuitClosedBecause::Idle }.emit(&self.inner.metrics);
        }
    }

    /// Reads the states of own lanes, reports to the worker which circuits are open or half-open, ends the pauses of
    /// subscriptions that were changed since, and closes circuits of subscriptions that are not active. Returns the states
    /// of the lanes that could be read.
    pub(super) async fn look(&self, stream: &str, lanes: &[&str]) -> HashMap<String, ConsumerInfo> {
        let asked = Instant::now();
        let js = &self.inner.js;
        let names: Vec<String> = lanes.iter().map(|lane| (*lane).to_owned()).collect();
        let mut answers = stream::iter(names)
            .map(|lane| async move {
                let info = js.consumer_info(stream, &lane_consumer(&lane)).await;
                (lane, info)
            })
            .buffer_unordered(AT_ONCE);
        let (mut infos, mut complete) = (HashMap::new(), true);
        while let Some((lane, info)) = answers.next().await {
            match info {
                Ok(info) => {
                    infos.insert(lane, info);
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    LanesNotListed { error: &error, stream }.emit();
                    complete = false;
                }
            }
        }
        if complete {
            self.inner.known.keep(|lane| infos.contains_key(lane), asked);
        }
        let mut found = Vec::new();
        for (lane, info) in &infos {
            let Some(circuit) = info.circuit() else {
                found.extend(self.restore(stream, lane, info, asked).await);
                continue;
            };
            self.inner.known.note(lane, &circuit);
            match self.reason_to_close(&circuit) {
                Some(because) => self.close(&circuit.subscription, because).await,
                None => {
                    self.follow(stream, lane, &circuit, info).await;
                    found.push(circuit.subscription);
                }
            }
        }
        self.tell_worker(News::Listed { found, complete, asked }).await;
        infos
    }

    /// Writes the record of a circuit again that this process knows and the durable has lost, so that the lane does not stay
    /// paused without a probe. Returns the subscription of the circuit, which is open.
    async fn restore(
        &self,
        stream: &str,
        lane: &str,
        info: &ConsumerInfo,
        asked: Instant,
    ) -> Option<Identity> {
        let BreakerState { js, metrics, known, .. } = &*self.inner;
        let circuit = known.lost_by(lane, info, asked)?;
        let subscription = &circuit.subscription.subscription;
        match js.restore_circuit(stream, &lane_consumer(lane), &circuit).await {
            Ok(true) => CircuitRecordRestored { subscription }.emit(metrics),
            // Another process was first.
            Ok(false) => {}
            Err(error) => CircuitNotChanged { error: &error, subscription }.emit(metrics),
        }
        Some(circuit.subscription)
    }

    /// Ends the pause if the subscription was changed since.
    async fn follow(&self, stream: &str, lane: &str, circuit: &CircuitRecord, info: &ConsumerInfo) {
        let BreakerState { js, metrics, .. } = &*self.inner;
        let subscription = &circuit.subscription.subscription;
        let revision = self.revision_of(&circuit.subscription);
        if revision > circuit.revision && info.is_paused_by_circuit() {
            match js.end_circuit_pause(stream, &lane_consumer(lane)).await {
                Ok(()) => CircuitPauseEnded { subscription }.emit(metrics),
                Err(error) => CircuitNotChanged { error: &error, subscription }.emit(metrics),
            }
        }
    }

    /// Why the circuit of an inactive subscription, whose envelopes become dead letters, is to be closed.
    fn reason_to_close(&self, circuit: &CircuitRecord) -> Option<CircuitClosedBecause> {
        if !self.inner.policy.enabled {
            return Some(CircuitClosedBecause::Settings);
        }
        let Subscriptions::Registry(registry) = &self.inner.subscriptions else { return None };
        let index = registry.read();
        let active = index.get(&circuit.subscription.subscription).is_some_and(|entry| {
            entry.subscription.incarnation == circuit.subscription.incarnation
                && entry.subscription.state == SubscriptionState::Active
        });
        (!active).then_some(CircuitClosedBecause::Subscription)
    }

    /// The revision of a subscription in the registry; 0 with a resolver.
    fn revision_of(&self, subscription: &Identity) -> u64 {
        let Subscriptions::Registry(registry) = &self.inner.subscriptions else { return 0 };
        registry.read().get(&subscription.subscription).map_or(0, |entry| entry.revision)
    }

    /// Takes over the changes of other processes, until `stop`. Best effort: the lanes are listed every few seconds.
    pub(super) async fn follow_others(self, stop: CancellationToken) -> Result<(), NatsError> {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            failed = self.hear_others() => failed,
        }
    }

    /// Ends only if it fails. May be dropped at any point.
    async fn hear_others(&self) -> Result<(), NatsError> {
        let BreakerState { js, domain, .. } = &*self.inner;
        let stream = js.names().outbox_stream(domain);
        let mut notices = js.circuit_notices(domain).await?;
        loop {
            let notice = hear(&mut notices).await;
            // The broker has the truth, whoever published the notice.
            let lane = own_lane(&notice.subscription.subscription.token());
            let circuit = match js.consumer_info(&stream, &lane_consumer(&lane)).await {
                Ok(info) => info.circuit(),
                Err(error) if error.is_not_found() => None,
                Err(_) => continue,
            };
            let news = match circuit {
                Some(circuit) => News::Tripped(circuit.subscription),
                None => News::Closed(notice.subscription),
            };
            self.tell_worker(news).await;
        }
    }

    async fn tell_others(&self, subscription: &Identity) {
        let BreakerState { js, domain, .. } = &*self.inner;
        let notice = CircuitNotice { subscription: subscription.clone() };
        if let Err(error) = js.publish_circuit_notice(domain, &notice).await {
            CircuitNoticeNotSent { error: &error, subscription: &subscription.subscription }.emit();
        }
    }

    async fn tell_worker(&self, news: News) {
        // The worker ends first at a stop, and then needs no news.
        let _ = self.inner.news.send(news).await;
    }
}

/// A connection that is closed ends the process elsewhere; here it only yields nothing.
async fn hear(notices: &mut CircuitNotices) -> CircuitNotice {
    match notices.next().await {
        Some(notice) => notice,
        None => std::future::pending().await,
    }
}

/// An envelope that is sent to learn whether the endpoint works again.
pub(super) struct Probe {
    breaker: Breaker,
    subscription: Identity,
}

impl Probe {
    /// Opens the circuit again. Returns the time until the next probe.
    pub(super) async fn failed(&self, error: &str) -> Duration {
        let pause = self.breaker.trip(&self.subscription, error, true).await;
        pause.unwrap_or(self.breaker.inner.policy.first_pause)
    }

    /// Puts the envelope back into the lane, which is paused now. The probe has used up none of its attempts.
    pub(super) async fn put_back(
        &self,
        message: &Delivered,
        pause: Duration,
        tries: &Tries,
        known: &Deliveries,
        remembered: &Remembered,
    ) {
        let BreakerState { js, domain, metrics, .. } = &*self.breaker.inner;
        let token = self.subscription.subscription.token();
        let lane = own_lane(&token);
        let again = tries.copy(message, known.moved(), js.names().outbox(domain, &lane, &token));
        match js.publish_each(std::slice::from_ref(&again)).await {
            Ok(_) => {
                EnvelopeSpilled.emit(metrics);
                tries.forget(message);
                remembered.remember(message, Settlement::Moved);
                remembered.answers.ack(&message.acker).await;
            }
            Err(error) => {
                EnvelopeNotSpilled { error: &error, lane: &lane, retry_in: pause }.emit(metrics);
                tries.keep(message, known.tried());
                message.acker.nak(Some(pause)).await;
            }
        }
    }

    /// The endpoint answered.
    pub(super) async fn worked(&self) {
        self.breaker.close(&self.subscription, CircuitClosedBecause::Answered).await;
    }
}

impl Worker {
    /// The probe that an envelope is, if the circuit of its subscription is half-open.
    pub(super) fn probe(&self, running: &Running, held: &Held) -> Option<Probe> {
        let subscription = &held.subscription;
        let in_order = self.js.names().is_in_strict_lane(&held.message.subject);
        if in_order || !running.circuits.is_tripped(subscription) {
            return None;
        }
        CircuitProbed { subscription: &subscription.subscription }.emit(&self.metrics);
        Some(Probe { breaker: self.breaker.clone(), subscription: subscription.clone() })
    }

    /// Counts what an attempt shows about its endpoint, and opens the circuit if it keeps failing.
    pub(super) fn count_for_circuit(&self, running: &mut Running, finished: &Finished) {
        let now = running.started.elapsed();
        match &finished.health.evidence {
            Evidence::Works => running.circuits.works(&finished.subscription),
            Evidence::Fails { envelope, error } => {
                if running.circuits.fails(&finished.subscription, envelope, now) {
                    let (breaker, subscription) = (self.breaker.clone(), finished.subscription.clone());
                    let error = error.clone();
                    running.spills.start(async move {
                        breaker.trip(&subscription, &error, false).await;
                    });
                }
            }
            Evidence::None => {}
        }
    }

    /// Takes over news, and moves what waits for a subscription whose circuit is open to its lane.
    pub(super) fn hear_of_circuits(&self, running: &mut Running, news: News) {
        let now = running.started.elapsed();
        match news {
            News::Tripped(subscription) => {
                running.circuits.opened(&subscription, now);
                self.empty(running, &subscription);
            }
            News::NotTripped(subscription) => running.circuits.not_opened(&subscription),
            News::Closed(subscription) => running.circuits.closed(&subscription, now),
            News::Listed { found, complete, asked } => {
                let asked = asked.saturating_duration_since(running.started);
                for change in running.circuits.listed(&found, complete, asked, now) {
                    if let CircuitChange::Tripped(subscription) = change {
                        self.empty(running, &subscription);
                    }
                }
            }
        }
        self.metrics.circuits(running.circuits.tripped());
    }

    fn empty(&self, running: &mut Running, subscription: &Identity) {
        for held in running.pool.withdraw(subscription) {
            if self.js.names().is_in_strict_lane(&held.message.subject) {
                self.keep(running, held);
                continue;
            }
            self.spill(running, held);
        }
    }
}
