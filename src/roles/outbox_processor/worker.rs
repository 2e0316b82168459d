//! The worker of a domain: queues the messages that the readers bring, starts deliveries in the order of the fair share,
//! and keeps waiting messages from being delivered twice.

mod leases;
mod moves;
mod stopping;

use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::announcements::Announcements;
use super::circuits::{Breaker, News};
use super::delivery::{EnvelopeDelivery, Finished, Health};
use super::domain_pause::PauseEnd;
use super::holds::Holding;
use super::lane_gauges::Summaries;
use super::lanes::{self, FromLane, Lanes};
use super::members::Sharing;
use super::{DomainSettings, OutboxProcessorSettings, Subscriptions};
use crate::domain::circuit::Circuits;
use crate::domain::envelope::Envelope;
use crate::domain::fair_share::{FairShare, PoolLimits};
use crate::domain::subscription::{Identity, Incarnation, RateLimit};
use crate::facts::DomainMetrics;
use crate::health::ReadyFlag;
use crate::nats::subjects::{SHARED_LANE, lane_consumer};
use crate::nats::{Acker, Delivered, Heartbeat, JetStream, Malformed};
use crate::panics;
use crate::tasks::{Jobs, Task, TaskError};
pub(super) use moves::LANE_KNOWN_FOR;
use moves::SpillLanes;

/// Most messages received from a channel at a time.
const MOST_AT_ONCE: usize = 256;
/// Longest time at a stop for the messages that were requested before.
const LAST_READS: Duration = Duration::from_secs(3);
/// Interval in which waiting envelopes are made compact. Most never wait for so long.
const COMPACT_EVERY: Duration = Duration::from_secs(1);

/// An envelope in this process, with its permit.
pub(super) struct Held {
    pub(super) message: Box<Delivered>,
    pub(super) subscription: Identity,
    permit: OwnedSemaphorePermit,
}

pub(super) struct Worker {
    pub(super) js: JetStream,
    pub(super) subscriptions: Subscriptions,
    pub(super) domain: DomainSettings,
    pub(super) settings: OutboxProcessorSettings,
    pub(super) delivery: EnvelopeDelivery,
    pub(super) holding: Holding,
    pub(super) breaker: Breaker,
    /// The states of the lanes, for the metrics.
    pub(super) summaries: Summaries,
    pub(super) pause_end: PauseEnd,
    pub(super) sharing: Sharing,
    pub(super) metrics: DomainMetrics,
    pub(super) ready: ReadyFlag,
    /// What other processes delivered, which messages wait for after a reconnect.
    pub(super) announcements: Announcements,
}

/// `max_in_flight` and the rate limit.
type FlowLimits = (u32, Option<RateLimit>);

/// What is known of the subscription of a message.
struct KnownSubscription {
    subscription: Identity,
    limits: Option<FlowLimits>,
    max_age: Option<Duration>,
}

/// Why the subscription of a message is unknown.
#[derive(Debug, thiserror::Error)]
enum UnknownOwner {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the subject names no subscription")]
    NotInSubject,
}

/// The worker while it runs.
pub(super) struct Running {
    pub(super) pool: FairShare<Held>,
    pub(super) circuits: Circuits,
    /// Deliveries in progress, by sequence in the outbox.
    in_flight: HashMap<u64, Acker, RandomState>,
    /// Copies of these that came meanwhile.
    copies: HashMap<u64, Box<Delivered>>,
    /// Envelopes that wait, by sequence in the outbox, with the number of their deliveries.
    waiting: HashMap<u64, u32, RandomState>,
    deliveries: Jobs,
    /// Moves of envelopes to own lanes, and changes of circuits.
    pub(super) spills: Jobs,
    /// Own lanes that envelopes were moved to.
    own_lanes: SpillLanes,
    /// Notifies the reader of lanes of a new one.
    opened: Arc<Notify>,
    finished: mpsc::Sender<Finished>,
    pub(super) started: Instant,
}

impl Running {
    /// The envelope waits no longer: sets the number of its deliveries until now.
    fn waits_no_longer(&mut self, held: &mut Held) {
        if let Some(deliveries) = self.waiting.remove(&held.message.stream_sequence) {
            held.message.deliveries = deliveries;
        }
    }
}

impl Worker {
    pub(super) async fn run(
        mut self,
        mut news: mpsc::Receiver<News>,
        stop: CancellationToken,
    ) -> Result<(), TaskError> {
        let (sink, mut incoming) =
            mpsc::channel(self.settings.held + lanes::MOST_OWN_LANES * lanes::OWN_LANE_HELD);
        let (finished, mut done) = mpsc::channel(self.domain.concurrency.max(1));
        let mut running = Running {
            pool: FairShare::sharing(
                PoolLimits {
                    slots: self.domain.concurrency,
                    queue_per_subscription: self.settings.queue_per_subscription,
                    queue_per_tenant: self.settings.held / 2,
                    memory: self.settings.held,
                },
                self.sharing.sharer.clone(),
            ),
            circuits: Circuits::new(self.settings.circuit.clone()),
            in_flight: HashMap::default(),
            copies: HashMap::new(),
            waiting: HashMap::default(),
            deliveries: Jobs::new(format!("a delivery of {}", self.domain.name)),
            spills: Jobs::new(format!("the move of an envelope of {}", self.domain.name)),
            own_lanes: SpillLanes::default(),
            opened: Arc::default(),
            finished,
            started: self.sharing.started,
        };
        let readers = Lanes::new(
            &self.domain.name,
            &self.settings,
            self.subscriptions.clone(),
            self.breaker.clone(),
            self.summaries.clone(),
            sink,
            self.ready.clone(),
            running.opened.clone(),
            stop.clone(),
        );
        let mut holds = self.holding.subscribe();
        self.take_holds(&mut running);
        let mut pause = self.pause_end.clone();
        let mut readers = Task::start("the list of lanes", readers.run());
        let (outbox, lane) = (self.js.names().outbox_stream(&self.domain.name), lane_consumer(SHARED_LANE));
        let leases = self.js.leases(&outbox, self.settings.ack_wait);
        let mut lease = leases.look();
        let mut heartbeat = Heartbeat::follow(&self.js, outbox, lane, self.settings.ack_wait);
        let (mut read, mut ended) = (Vec::<FromLane>::new(), Vec::new());
        let mut compact_at = COMPACT_EVERY;
        let mut stopped: Option<Instant> = None;
        let result = loop {
            let now = running.started.elapsed();
            self.delivery.pass(now);
            let looked = leases.look();
            if std::mem::replace(&mut lease, looked) != looked {
                self.drop_what_waits(&mut running);
            }
            let waits = self.announcements.wait();
            if waits.is_none() && !read.is_empty() {
                // News that came before these messages apply to them.
                while let Ok(news) = news.try_recv() {
                    self.hear_of_circuits(&mut running, news);
                }
                for read in read.drain(..).filter(|read| leases.holds(read.message.lease)) {
                    self.take(&mut running, read, now);
                }
            }
            while let Some(held) = running.pool.next(now) {
                self.start(&mut running, held, now);
            }
            for held in running.pool.relieve(now) {
                self.spill(&mut running, held);
            }
            if now >= compact_at {
                running.pool.for_each_waiting(|held| held.message.compact());
                compact_at = now + COMPACT_EVERY;
            }
            self.metrics.in_flight(running.in_flight.len());
            let wake = running.pool.next_wake(now);
            tokio::select! {
                // What was requested before comes yet, and is worked on until then.
                () = stop.cancelled(), if stopped.is_none() => stopped = Some(Instant::now()),
                () = sleep(stopped.map(|stopped| LAST_READS.saturating_sub(stopped.elapsed()))) => break Ok(()),
                result = readers.join(), if stopped.is_none() => break result.and_then(|ended| ended),
                _ = done.recv_many(&mut ended, MOST_AT_ONCE) => {
                    let now = running.started.elapsed();
                    for finished in ended.drain(..) {
                        self.finish(&mut running, &finished, now);
                    }
                }
                count = incoming.recv_many(&mut read, MOST_AT_ONCE), if waits.is_none() => if count == 0 {
                    self.start_the_last(&mut running, &mut done);
                    break readers.join().await.and_then(|ended| ended);
                },
                () = self.announcements.changed(waits) => {}
                news = holds.recv() => self.hear_of_holds(&mut running, news),
                Some(news) = news.recv() => self.hear_of_circuits(&mut running, news),
                Ok(()) = pause.changed() => self.take_pause(&mut running),
                () = sleep(wake) => {}
                () = self.sharing.woken.notified() => running.pool.wake(),
                _ = heartbeat.tick() => tokio::select! {
                    // If the connection stalls, it waits for room in the client's queue.
                    () = stop.cancelled() => {}
                    () = self.heartbeat(&mut running) => {}
                },
            }
        };
        self.sharing.starts_no_more();
        incoming.close();
        drop(news);
        let mut waiting: Vec<Delivered> = Vec::with_capacity(running.waiting.len());
        for mut held in running.pool.drain() {
            running.waits_no_longer(&mut held);
            waiting.push(*held.message);
        }
        waiting.extend(read.into_iter().map(|read| *read.message));
        // Also those that are being passed on at the moment.
        while let Some(read) = incoming.recv().await {
            waiting.push(*read.message);
        }
        self.shut_down(running, waiting, done, stopped.unwrap_or_else(Instant::now)).await;
        if !readers.is_finished() {
            let _ = tokio::time::timeout(self.settings.grace, readers.join()).await;
        }
        result
    }

    /// Returns the message unless it is a copy of one that is being delivered or was settled lately. `permit`: dropped when
    /// the message is.
    fn settles_elsewhere<M, P>(&self, running: &mut Running, message: M, permit: P) -> Option<(M, P)>
    where
        M: Borrow<Delivered> + Send + Sync + 'static,
        P: Send + 'static,
    {
        let copy: &Delivered = message.borrow();
        // A restarted server delivers again what is being delivered here: the end of the delivery settles both.
        if let Some(acker) = running.in_flight.get_mut(&copy.stream_sequence) {
            *acker = copy.acker.clone();
            running.copies.insert(copy.stream_sequence, Box::new(copy.clone()));
            return None;
        }
        let Some(settlement) = self.delivery.remembered().of(copy) else { return Some((message, permit)) };
        let delivery = self.delivery.clone();
        running.spills.start(async move {
            delivery.settle_again(message.borrow(), settlement).await;
            drop(permit);
        });
        None
    }

    /// Adds a message to the queue of its subscription, or moves it to its own lane.
    fn take(&self, running: &mut Running, read: FromLane, now: Duration) {
        let FromLane { message, permit, own_lane } = read;
        let Some((message, permit)) = self.settles_elsewhere(running, message, permit) else { return };
        let KnownSubscription { subscription, limits, max_age } = match panics::catch(|| self.place(&message))
        {
            Ok(Ok(place)) => place,
            Ok(Err(detail)) => {
                let delivery = self.delivery.clone();
                running.spills.start(async move {
                    delivery.undecodable(&message, &detail.to_string()).await;
                    drop(permit);
                });
                return;
            }
            Err(panicked) => {
                let (delivery, most) = (self.delivery.clone(), self.settings.retry.max_deliver);
                running.spills.start(async move {
                    delivery.panicked(&message, &panicked, most).await;
                    drop(permit);
                });
                return;
            }
        };
        // A server that restarted or was unavailable delivers the waiting messages again: the copy is dropped, and its
        // delivery is counted.
        let (sequence, deliveries) = (message.stream_sequence, message.deliveries);
        if running.waiting.insert(sequence, deliveries).is_some() {
            return;
        }
        if self.delivery.is_expired(&message, max_age) {
            running.waiting.remove(&sequence);
            let delivery = self.delivery.clone();
            running.spills.start(async move {
                delivery.deliver(&message, None).await;
                drop(permit);
            });
            return;
        }
        let (mut max_in_flight, rate) = limits.unwrap_or((1, None));
        let held = Held { message, subscription: subscription.clone(), permit };
        let tripped = running.circuits.is_tripped(&subscription);
        if tripped {
            max_in_flight = 1;
        }
        let refused = if tripped && !own_lane {
            Some(held)
        } else if own_lane {
            running.pool.offer_beyond(&subscription, max_in_flight, rate, held, now);
            None
        } else {
            let weight = self.weight(&held.message);
            running.pool.offer_of_weight(&subscription, max_in_flight, rate, (held, weight), now).err()
        };
        if let Some(held) = refused {
            self.spill(running, held);
        }
    }

    /// The memory of an envelope as a number of envelopes of average size, by its part of the bytes in memory.
    fn weight(&self, message: &Delivered) -> u32 {
        let average = (self.settings.held_bytes / self.settings.held.max(1)).max(1);
        u32::try_from(message.payload.len() / average).unwrap_or(u32::MAX)
    }

    /// The subscription of a message and the limits of its deliveries, or why it is undecodable.
    fn place(&self, message: &Delivered) -> Result<KnownSubscription, UnknownOwner> {
        if let Some(malformed) = message.malformed() {
            return Err(malformed.into());
        }
        // The body names the subscription; early versions wrote an id without tenant into the subject. An unreadable body
        // waits in the queue that the subject names.
        let subscription = Identity::of_envelope(&message.payload).or_else(|| {
            let subscription = self.js.names().parse_outbox(&message.subject)?.reference()?;
            Some(Identity { subscription, incarnation: Incarnation::LEGACY })
        });
        let subscription = subscription.ok_or(UnknownOwner::NotInSubject)?;
        Ok(match &self.subscriptions {
            Subscriptions::Registry(registry) => {
                let index = registry.read();
                let entry = index.get(&subscription.subscription);
                let entry = entry.filter(|entry| entry.subscription.incarnation == subscription.incarnation);
                let limits = entry.map(|entry| (entry.max_in_flight, entry.rate_limit.as_deref().copied()));
                let max_age = entry.and_then(|entry| entry.max_age());
                KnownSubscription { subscription, limits, max_age }
            }
            Subscriptions::InEnvelopes => {
                let envelope = Envelope::read(&message.payload).ok();
                let limits = envelope.as_ref().and_then(Envelope::share);
                KnownSubscription {
                    subscription,
                    limits,
                    max_age: envelope.and_then(|envelope| envelope.max_age()),
                }
            }
        })
    }

    /// Queues an envelope again that is never moved: of a strict lane, or of an unknown subscription.
    pub(super) fn keep(&self, running: &mut Running, held: Held) {
        let place = panics::catch(|| self.place(&held.message)).ok().and_then(Result::ok);
        let (max_in_flight, rate) = place.and_then(|place| place.limits).unwrap_or((1, None));
        let (subscription, now) = (held.subscription.clone(), running.started.elapsed());
        running.pool.offer_beyond(&subscription, max_in_flight, rate, held, now);
    }

    fn start(&self, running: &mut Running, mut held: Held, started: Duration) {
        let probe = self.probe(running, &held);
        let sequence = held.message.stream_sequence;
        running.waits_no_longer(&mut held);
        running.in_flight.insert(sequence, held.message.acker.clone());
        let (delivery, finished) = (self.delivery.clone(), running.finished.clone());
        let max_deliver = self.settings.retry.max_deliver;
        running.deliveries.start(async move {
            // A delivery that panics would keep its slot, and its heartbeats the envelope, forever.
            let delivered = delivery.deliver(&held.message, probe.as_ref());
            let health = match panics::catch_async(delivered).await {
                Ok(health) => health,
                Err(panicked) => {
                    Box::pin(delivery.panicked(&held.message, &panicked, max_deliver)).await;
                    Health::UNTRIED
                }
            };
            let Held { subscription, permit, .. } = held;
            // The receiver lives as long as the worker.
            let _ = finished.send(Finished { subscription, sequence, started, health }).await;
            // The next message of a strict lane comes after this.
            drop(permit);
        });
    }

    fn finish(&self, running: &mut Running, finished: &Finished, now: Duration) {
        running.in_flight.remove(&finished.sequence);
        // One that came after the settlement has no answer yet. For one that came before, a second answer has no effect.
        if let Some(copy) = running.copies.remove(&finished.sequence)
            && let Some(settlement) = self.delivery.remembered().of(&copy)
        {
            let delivery = self.delivery.clone();
            running.spills.start(async move { delivery.settle_again(&copy, settlement).await });
        }
        running.pool.finished(&finished.subscription, finished.health.finish, finished.started, now);
        self.count_for_circuit(running, finished);
        if let Some(asked) = finished.health.hold {
            self.hold_as_asked(running, &finished.subscription, asked);
        }
    }

    async fn heartbeat(&self, running: &mut Running) {
        let mut ackers: Vec<Acker> = running.in_flight.values().cloned().collect();
        running.pool.for_each_waiting(|held| ackers.push(held.message.acker.clone()));
        for acker in ackers {
            acker.in_progress().await;
        }
    }
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
