//! Planning: from a group of publications to envelopes in the queues of the committers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::stream::{self, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::committer::{BUSY_DELAY, Planned};
use super::decoder::Decoder;
use super::events_to_plan::{EventsToPlan, TURN, Turn, Work};
use super::outbox_room::OutboxRoom;
use super::rejecter::Rejecter;
use super::resolver::Resolver;
use super::settled::Settled;
use crate::domain::backlog::BacklogLimits;
use crate::domain::envelope::{EncodedEnvelope, FanOut};
use crate::domain::event::{Event, RejectReason, Rejection};
use crate::domain::index::IndexEntry;
use crate::facts::{
    DomainMetrics, EventMatched, EventPutAside, EventSettledBefore, Metrics, OutboxLimitsNotRead,
};
use crate::nats::subjects::{SHARED_LANE, strict_lane};
use crate::nats::{Delivered, EnvelopeMessage, JetStream, NatsError};
use crate::panics::{self, Panicked};
use crate::standstill::Leases;

/// Rejected publications stored at once.
const REJECTIONS_IN_FLIGHT: usize = 32;
/// Room that an envelope leaves in the server's max_payload for its headers.
const HEADER_ROOM: usize = 4 * 1024;

/// Steps after which the next events are read, though more could be planned.
const STEPS_AT_A_TIME: usize = 1_000_000;
/// What an envelope is worth, beside its bytes.
const STEPS_PER_ENVELOPE: usize = 64;

/// A publication with its place in memory.
pub(super) type Held = (Delivered, OwnedSemaphorePermit);
/// One that is read.
type Decoded = (Delivered, OwnedSemaphorePermit, Event);
/// One that is refused, with the reason.
type Rejected = (Delivered, Rejection, OwnedSemaphorePermit);

pub(super) struct Planner {
    pub(super) js: JetStream,
    pub(super) resolver: Resolver,
    pub(super) rejecter: Rejecter,
    pub(super) decoder: Decoder,
    pub(super) settled: Settled,
    pub(super) leases: Leases,
    /// The most events that are planned together.
    pub(super) batch: usize,
    pub(super) metrics: Metrics,
    /// One per domain, in the order of the categories.
    pub(super) queues: Vec<CommitQueue>,
}

/// The queue of a domain's committer.
pub(super) struct CommitQueue {
    pub(super) committer: mpsc::Sender<Planned>,
    /// Limits the bytes of planned events in memory.
    pub(super) room: Arc<Semaphore>,
    /// Bytes that one event takes at most, however large it is, so that others pass while it waits.
    pub(super) most_of_one: u32,
    /// The outbox refuses envelopes at the moment: events are handed back instead of waiting here.
    pub(super) blocked: Arc<AtomicBool>,
    /// What the outbox can hold.
    pub(super) outbox: OutboxRoom,
    pub(super) metrics: DomainMetrics,
}

impl CommitQueue {
    /// Passes an event to the committer, and waits while the queue is full. While the outbox is full, the event is
    /// handed back to its stream, so that other domains go on.
    async fn hand_over(
        &self,
        message: Delivered,
        tenant: &str,
        Plan { envelopes, shared, limits, ordered, .. }: Plan,
        permit: OwnedSemaphorePermit,
    ) {
        let own: usize = envelopes.iter().map(EnvelopeMessage::own_bytes).sum();
        let weight = u32::try_from(own + shared).unwrap_or(u32::MAX).min(self.most_of_one);
        let room = if self.blocked.load(Ordering::Relaxed) {
            self.room.clone().try_acquire_many_owned(weight).ok()
        } else {
            self.room.clone().acquire_many_owned(weight).await.ok()
        };
        let Some(room) = room else { return message.acker.nak(Some(BUSY_DELAY)).await };
        let tenant = tenant.into();
        let (later, early) = (None, None);
        let planned = Planned { message, tenant, ordered, envelopes, limits, later, early, permit, room };
        // A blocked committer empties its channel at once, so this never waits for a full outbox.
        if let Err(closed) = self.committer.send(planned).await {
            closed.0.message.acker.nak(None).await;
        }
    }
}

/// What an event becomes.
struct Plan {
    envelopes: Vec<EnvelopeMessage>,
    /// Bytes that all envelopes share.
    shared: usize,
    /// The limits of subscriptions that have their own, by the positions of their envelopes.
    limits: Vec<(usize, BacklogLimits)>,
    /// An envelope is for a strict order.
    ordered: bool,
    /// An envelope is without its delivery, which nobody else has, so that it will be dead-lettered as too large.
    is_without_delivery: bool,
}

impl Planner {
    /// Decodes a group, and plans a part of the backlog in turns. Acknowledges the events that match no subscription,
    /// and rejects the invalid ones. A publication that causes a panic is delivered again, and is rejected after
    /// [`panics::TRIES`] deliveries; the others are not affected.
    pub(super) async fn process(&self, mut backlog: EventsToPlan, group: Vec<Held>) -> EventsToPlan {
        let mut rejected = Vec::new();
        self.take_in(&mut backlog, group, &mut rejected).await;
        let (mut steps, mut planned, mut unyielded) = (0, 0, 0);
        while planned < self.batch && steps < STEPS_AT_A_TIME {
            let Some((turn, taken)) = backlog.turn() else { break };
            steps += taken;
            unyielded += taken;
            match turn {
                Turn::Unfinished => {}
                Turn::Matched(work, wanting) => {
                    planned += 1;
                    let (tenant, before) = (work.event.tenant.clone(), work.steps());
                    let made = self.finish(*work, wanting, &mut rejected).await;
                    steps += made;
                    unyielded += made;
                    backlog.done(&tenant, before, made);
                }
                Turn::Panicked(work, panicked) => self.rejecter.panicked(&work.message, &panicked).await,
            }
            // Deliveries and the API run on the same threads.
            if unyielded >= TURN {
                unyielded = 0;
                tokio::task::yield_now().await;
            }
        }
        stream::iter(rejected)
            .for_each_concurrent(REJECTIONS_IN_FLIGHT, |(message, rejection, permit)| async move {
                self.rejecter.reject(&message, &rejection).await;
                drop(permit);
            })
            .await;
        backlog
    }

    /// Decodes a group's events and adds them to the backlog.
    async fn take_in(&self, backlog: &mut EventsToPlan, group: Vec<Held>, rejected: &mut Vec<Rejected>) {
        let mut events = Vec::with_capacity(group.len());
        self.leases.look();
        for (message, permit) in group {
            if !self.leases.holds(message.lease) {
                continue;
            }
            if self.settled.knows(message.stored()) {
                EventSettledBefore { sequence: message.stream_sequence }.emit();
                self.settled.ack(&message).await;
                continue;
            }
            match panics::catch(|| self.decoder.event(&message)) {
                Ok(Ok(event)) if self.queue(&event).is_none() => {
                    rejected.push((message, Rejection::no_domain(&event.key), permit));
                }
                Ok(Ok(event)) => events.push((message, permit, event)),
                Ok(Err(rejection)) => rejected.push((message, rejection, permit)),
                Err(panicked) => self.rejecter.panicked(&message, &panicked).await,
            }
        }
        self.resolve(backlog, events).await;
    }

    /// Resolves the subscriptions of these events. If that panics, resolves each event alone to find the one that causes it.
    async fn resolve(&self, backlog: &mut EventsToPlan, events: Vec<Decoded>) {
        if events.is_empty() {
            return;
        }
        let asked = self.resolver.prepare(&self.js, events.iter().map(|(_, _, event)| event));
        let resolution = match panics::catch_async(asked).await {
            Ok(Ok(resolution)) => resolution,
            Err(panicked) => {
                if let [(message, _permit, _)] = &events[..] {
                    return self.rejecter.panicked(message, &panicked).await;
                }
                for event in events {
                    Box::pin(self.resolve(backlog, vec![event])).await;
                }
                return;
            }
            Ok(Err(wait)) => {
                for (message, _permit, _) in &events {
                    message.acker.nak(Some(wait)).await;
                }
                return;
            }
        };
        for (message, permit, event) in events {
            match resolution.of(&event) {
                Ok(source) => {
                    if let Err((work, wait)) = backlog.add(Work::new(message, permit, event, source)) {
                        EventPutAside.emit(&self.metrics);
                        work.message.acker.nak(Some(wait)).await;
                    }
                }
                Err(wait) => message.acker.nak(Some(wait)).await,
            }
        }
    }

    /// Makes an event's envelopes and passes them to the committer; returns the steps of work.
    async fn finish(&self, work: Work, wanting: Vec<Arc<IndexEntry>>, rejected: &mut Vec<Rejected>) -> usize {
        let Work { message, permit, event, .. } = work;
        // An event without a domain was rejected in `take_in`.
        let Some((queue, domain)) = self.queue(&event) else { return 0 };
        EventMatched { subscriptions: wanting.len() }.emit(&queue.metrics);
        if wanting.is_empty() {
            message.acker.ack().await;
            return 0;
        }
        let published_at = u64::try_from(message.stored_at_nanos / 1_000_000).ok();
        let planned = self.plan_for_outbox(&queue.outbox, &event, domain, published_at, &wanting).await;
        let planned = match planned {
            Ok(planned) => planned,
            Err(error) => {
                OutboxLimitsNotRead { error: &error, stream: queue.outbox.stream() }.emit();
                message.acker.nak(Some(BUSY_DELAY)).await;
                return 0;
            }
        };
        let plan = match planned {
            Ok(Ok(plan)) => plan,
            Ok(Err(rejection)) => {
                rejected.push((message, rejection, permit));
                return 0;
            }
            Err(panicked) => {
                self.rejecter.panicked(&message, &panicked).await;
                return 0;
            }
        };
        let bytes: usize = plan.envelopes.iter().map(|envelope| envelope.payload.size()).sum();
        let made = plan.envelopes.len() * STEPS_PER_ENVELOPE + bytes / 1024;
        queue.hand_over(message, &event.tenant, plan, permit).await;
        made
    }

    fn queue(&self, event: &Event) -> Option<(&CommitQueue, &str)> {
        let index = self.decoder.categories.index_of(&event.key)?;
        Some((self.queues.get(index)?, self.decoder.categories.name(index)?))
    }

    /// Plans within the limits of the outbox as they are known. Before anything is set aside because of them, they are
    /// read from the stream.
    async fn plan_for_outbox(
        &self,
        outbox: &OutboxRoom,
        event: &Event,
        domain: &str,
        published_at: Option<u64>,
        wanting: &[Arc<IndexEntry>],
    ) -> Result<Result<Result<Plan, Rejection>, Panicked>, NatsError> {
        let largest = outbox.known().largest();
        let planned = panics::catch(|| self.plan(event, domain, published_at, wanting, largest));
        if matches!(&planned, Ok(Ok(plan)) if !plan.is_without_delivery) || planned.is_err() {
            return Ok(planned);
        }
        let (now, _) = outbox.read().await?;
        if now.largest() == largest {
            return Ok(planned);
        }
        Ok(panics::catch(|| self.plan(event, domain, published_at, wanting, now.largest())))
    }

    /// One envelope per subscription in `wanting`; `published_at`: when the event was stored, in milliseconds since 1970;
    /// `largest`: the largest that the outbox can store. The event is rejected only if it is too large by itself.
    fn plan(
        &self,
        event: &Event,
        domain: &str,
        published_at: Option<u64>,
        wanting: &[Arc<IndexEntry>],
        largest: usize,
    ) -> Result<Plan, Rejection> {
        let limit = self.js.max_payload().saturating_sub(HEADER_ROOM);
        let fan_out = FanOut::published(event, domain, published_at);
        if fan_out.largest_bare_size() > limit {
            return Err(Rejection::new(
                RejectReason::TooLarge,
                format!(
                    "envelopes of up to {} bytes without the subscription's settings exceed the server's max_payload \
                     ({limit} bytes available); raise max_payload on the server or lower events.max_size",
                    fan_out.largest_bare_size()
                ),
            ));
        }
        let mut plan = Plan {
            envelopes: Vec::with_capacity(wanting.len()),
            shared: fan_out.shared_size(),
            limits: Vec::new(),
            ordered: false,
            is_without_delivery: false,
        };
        let fits =
            |message: &EnvelopeMessage| message.payload.size() <= limit && message.stored_bytes() <= largest;
        for entry in wanting {
            let (id, incarnation) = (&entry.subscription.reference, entry.subscription.incarnation);
            let token = id.token();
            let lane = entry.order().map(|order| strict_lane(order.partition(event), &token));
            let lane = lane.as_deref().unwrap_or(SHARED_LANE);
            let message = |envelope: EncodedEnvelope| EnvelopeMessage {
                subject: self.js.names().outbox(domain, lane, &token),
                message_id: envelope.id,
                payload: envelope.body,
                headers: Vec::new(),
            };
            let at = plan.envelopes.len();
            plan.limits.extend(entry.backlog().map(|limits| (at, *limits)));
            let whole = message(fan_out.envelope(id, incarnation, Some(&entry.delivery)));
            if fits(&whole) {
                plan.ordered |= entry.order().is_some();
                plan.envelopes.push(whole);
                continue;
            }
            // The registry has the delivery as well, and the outbox processor reads it there first.
            let bare = fan_out.envelope(id, incarnation, None);
            let bytes = message(bare.clone()).stored_bytes();
            if bytes > largest {
                return Err(Rejection::new(
                    RejectReason::TooLarge,
                    format!(
                        "an envelope takes {bytes} bytes without the subscription's settings, more than the outbox can \
                         store ({largest} bytes by max_bytes (limits.outbox) and max_msg_size of its stream); raise \
                         these, or publish smaller events"
                    ),
                ));
            }
            let mut bare = message(bare);
            if self.resolver.is_registry() {
                plan.ordered |= entry.order().is_some();
            } else {
                // Its worker dead-letters it, so that the other envelopes do not wait for that. It stops no strict order.
                bare.subject = self.js.names().outbox(domain, SHARED_LANE, &token);
                plan.is_without_delivery = true;
            }
            plan.envelopes.push(bare);
        }
        Ok(plan)
    }
}
