//! Reads the lanes of a domain outbox.
//!
//! Every subscription starts in the shared lane. When its queue is full, its envelopes move to a lane of its own
//! (`own-<subscription>`), which is read at the subscription's own pace. A subscription with a strict order has lanes of
//! its own from the beginning. Lanes are durable consumers of the outbox, so
//! every replica finds them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::circuits::Breaker;
use super::lane_gauges::{Summaries, Summary};
use super::lane_removal::Idle;
use super::lost_lanes::LostLanes;
use super::{OutboxProcessorSettings, Subscriptions};
use crate::domain::lane_places::{LaneCandidate, plan};
use crate::domain::subscription::SubscriptionRef;
use crate::facts::{LaneReaderFailed, LanesNotListed, OwnLaneOpened, OwnLaneRemoved};
use crate::health::ReadyFlag;
use crate::nats::definitions::StreamParameters;
use crate::nats::subjects::{
    SHARED_LANE, is_strict_lane, lane_consumer, lane_of_consumer, subscription_of_lane,
};
use crate::nats::{ByteBudget, ConsumerInfo, Delivered, Held, JetStream, NatsError, Read, Reader};
use crate::standstill::Leases;
use crate::tasks::{Task, TaskError, Tasks};

/// Interval of the rounds, each of which lists a domain's lanes.
pub(super) const LIST_INTERVAL: Duration = Duration::from_secs(5);
/// Shortest wait before a listing for a new lane, in which envelopes wait until it is read.
const SHORTEST_LIST_INTERVAL: Duration = Duration::from_millis(250);
/// Most envelopes of one own lane in memory.
pub(super) const OWN_LANE_HELD: usize = 64;
/// The same for a lane that was opened just now. It doubles each time that twice as many were taken: hundreds of endpoints that do
/// not answer have little memory.
const OWN_LANE_HELD_FIRST: usize = 8;
/// Most own lanes that are read at once; when there are more, they take turns.
pub(super) const MOST_OWN_LANES: usize = 256;

/// Own lanes together have the bytes in memory divided by this; the shared lane has the rest. So the envelopes of stuck
/// subscriptions, which wait in own lanes, take nothing from the others.
const OWN_BYTES_PART: usize = 4;
/// One request takes at most one of this number of parts of these bytes.
const SHARED_BYTE_PARTS: u32 = 8;
const OWN_BYTE_PARTS: u32 = MOST_OWN_LANES as u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// One of those whose number shows how long a lane is idle.
    Round,
    /// For a new lane: only the names, so that many new lanes cost little.
    Early,
}

/// What the reader of one lane may have in memory.
struct LaneLimits {
    /// At first.
    messages: usize,
    most_messages: usize,
    bytes: ByteBudget,
    byte_parts: u32,
    leases: Leases,
}

/// A message of a lane, with its permit.
pub(super) struct FromLane {
    pub(super) message: Box<Delivered>,
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) own_lane: bool,
}

/// Reads one lane until `stop`, within the limits of its messages in memory, and then passes on what was requested before.
async fn read_lane(
    js: JetStream,
    stream: String,
    lane: String,
    limits: LaneLimits,
    sink: mpsc::Sender<FromLane>,
    ready: Option<ReadyFlag>,
    stop: CancellationToken,
) -> Result<(), NatsError> {
    let own_lane = lane != SHARED_LANE;
    let reader = Reader::bind(&js, &stream, &lane_consumer(&lane), limits.messages, ready, &stop).await?;
    let Some(reader) = reader else { return Ok(()) };
    let mut reader = reader.within(&limits.bytes, limits.byte_parts).leased(limits.leases);
    let (mut most, mut taken) = (limits.messages, 0);
    loop {
        let mut next = tokio::select! {
            () = stop.cancelled() => break,
            read = reader.next() => Some(read?),
        };
        while let Some(read) = next {
            match read {
                Read::Message(held) => {
                    pass_on(held, own_lane, &sink).await;
                    taken += 1;
                    // Twice as many as it may have were taken, so that many are done with.
                    if most < limits.most_messages && taken >= 2 * most {
                        let more = most.min(limits.most_messages - most);
                        reader.widen(more);
                        (most, taken) = (most + more, 0);
                    }
                }
                // A lane whose consumer exists has no leader at the moment.
                Read::Missing if own_lane && is_deleted(&js, &stream, &lane).await => return Ok(()),
                Read::Missing => {}
            }
            next = reader.try_next();
        }
    }
    while let Some(held) = reader.last().await {
        pass_on(held, own_lane, &sink).await;
    }
    Ok(())
}

async fn pass_on((mut message, permit): Held, own_lane: bool, sink: &mpsc::Sender<FromLane>) {
    // It may wait for long, in a queue or for an endpoint that does not answer.
    if own_lane {
        message.compact();
    }
    // The sink has room for as many as there are permits, so this does not wait. It is closed only when the worker has ended.
    if let Err(refused) = sink.send(FromLane { message, permit, own_lane }).await {
        refused.0.message.acker.nak(None).await;
    }
}

async fn is_deleted(js: &JetStream, stream: &str, lane: &str) -> bool {
    let info = js.consumer_info(stream, &lane_consumer(lane)).await;
    info.is_err_and(|error| error.is_not_found())
}

/// The readers of a domain's lanes.
pub(super) struct Lanes {
    js: JetStream,
    domain: String,
    stream: String,
    stream_parameters: StreamParameters,
    subscriptions: Subscriptions,
    breaker: Breaker,
    summaries: Summaries,
    held: usize,
    shared_bytes: ByteBudget,
    own_bytes: ByteBudget,
    leases: Leases,
    sink: mpsc::Sender<FromLane>,
    stop: CancellationToken,
    ready: ReadyFlag,
    started: Instant,
    /// The worker has opened a lane, or places became free.
    opened: Arc<Notify>,
}

impl Lanes {
    #[expect(clippy::too_many_arguments, reason = "each is a part of the worker that it is joined to")]
    pub(super) fn new(
        domain: &str,
        settings: &OutboxProcessorSettings,
        subscriptions: Subscriptions,
        breaker: Breaker,
        summaries: Summaries,
        sink: mpsc::Sender<FromLane>,
        ready: ReadyFlag,
        opened: Arc<Notify>,
        stop: CancellationToken,
    ) -> Self {
        let js = breaker.js().clone();
        let stream = js.names().outbox_stream(domain);
        let own_bytes = settings.held_bytes / OWN_BYTES_PART;
        Self {
            leases: js.leases(&stream, settings.ack_wait),
            js,
            domain: domain.to_owned(),
            stream,
            stream_parameters: settings.stream_parameters.clone(),
            subscriptions,
            breaker,
            summaries,
            held: settings.held,
            shared_bytes: ByteBudget::new(settings.held_bytes - own_bytes),
            own_bytes: ByteBudget::new(own_bytes),
            sink,
            stop,
            ready,
            started: Instant::now(),
            opened,
        }
    }

    /// Reads the shared lane, and each own lane while it exists, until `stop`.
    pub(super) async fn run(self) -> Result<(), TaskError> {
        let mut shared = Tasks::new(self.stop.clone());
        let mut own = LaneReaders::default();
        // A lane that is created from now on is not missed.
        let mut new_lanes = self.js.new_lanes(&self.stream).await.map_err(TaskError::of_owner)?;
        let mut looked = Instant::now();
        // The worker knows the open circuits before it gets an envelope.
        tokio::select! {
            () = self.stop.cancelled() => return Ok(()),
            result = self.look(&mut own, Look::Round) => {
                if let Err(error) = result {
                    LanesNotListed { error: &error, stream: &self.stream }.emit();
                }
            }
        }
        let reader = read_lane(
            self.js.clone(),
            self.stream.clone(),
            SHARED_LANE.to_owned(),
            LaneLimits {
                messages: self.held,
                most_messages: self.held,
                bytes: self.shared_bytes.clone(),
                byte_parts: SHARED_BYTE_PARTS,
                leases: self.leases.clone(),
            },
            self.sink.clone(),
            Some(self.ready.clone()),
            self.stop.clone(),
        );
        shared.graceful(format!("the reader of the shared lane of {}", self.stream), reader);
        let mut rounds = tokio::time::interval_at(Instant::now() + LIST_INTERVAL, LIST_INTERVAL);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut early: Option<Instant> = None;
        loop {
            let look = tokio::select! {
                () = self.stop.cancelled() => break,
                Some(failed) = shared.failure() => return Err(failed),
                () = new_lanes.created() => None,
                () = self.opened.notified() => None,
                () = until(early) => Some(Look::Early),
                _ = rounds.tick() => Some(Look::Round),
            };
            let Some(look) = look else {
                early = early.or(Some(looked + SHORTEST_LIST_INTERVAL));
                continue;
            };
            (early, looked) = (None, Instant::now());
            if let Err(error) = self.look(&mut own, look).await {
                LanesNotListed { error: &error, stream: &self.stream }.emit();
            }
        }
        let ended = shared.join().await;
        for own in own.open.into_values() {
            own.end().await;
        }
        ended
    }

    async fn look(&self, own: &mut LaneReaders, look: Look) -> Result<(), NatsError> {
        let ended: Vec<String> =
            own.open.iter().filter(|(_, lane)| lane.reader.is_finished()).map(name_of).collect();
        for lane in ended {
            if let Some(reader) = own.open.remove(&lane) {
                if !reader.stop.is_cancelled() {
                    own.lost.add(&lane);
                }
                own.last_read.insert(lane, self.started.elapsed());
                reader.end().await;
            }
        }
        if look == Look::Round {
            own.lost.restore(&self.js, &self.stream_parameters, &self.domain, &self.subscriptions).await?;
        }
        let consumers = self.js.consumer_names(&self.stream).await?;
        let lanes: Vec<&str> = consumers
            .iter()
            .filter_map(|name| lane_of_consumer(name).filter(|lane| subscription_of_lane(lane).is_some()))
            .collect();
        let infos = match look {
            Look::Round => Some(self.breaker.look(&self.stream, &lanes).await),
            Look::Early => None,
        };
        // The sums would be too low without a lane that could not be read.
        if let Some(infos) = infos.as_ref().filter(|infos| infos.len() == lanes.len()) {
            let held = [self.shared_bytes.used(), self.own_bytes.used()];
            self.summaries.send_replace(Summary::of(infos, held));
        }
        own.last_read.retain(|known, _| lanes.contains(&known.as_str()));
        let owners: Vec<Option<SubscriptionRef>> = lanes
            .iter()
            .map(|lane| subscription_of_lane(lane).and_then(SubscriptionRef::from_token))
            .collect();
        let states: Vec<LaneCandidate<'_>> = lanes
            .iter()
            .zip(&owners)
            .map(|(name, owner)| {
                let open = own.open.get(*name);
                LaneCandidate {
                    name,
                    tenant: owner.as_ref().map_or("", SubscriptionRef::tenant),
                    is_empty: match (open, infos.as_ref().and_then(|infos| infos.get(*name))) {
                        (Some(open), _) => open.idle.is_idle(),
                        (None, Some(info)) => info.num_pending + info.num_ack_pending == 0,
                        (None, None) => false,
                    },
                    reading_since: open.map(|open| open.since),
                    last_read: own.last_read.get(*name).copied(),
                }
            })
            .collect();
        let plan = plan(&states, MOST_OWN_LANES);
        for lane in plan.open {
            OwnLaneOpened { stream: &self.stream, lane }.emit();
            own.open.insert(lane.to_owned(), self.open(lane));
        }
        let Some(infos) = infos else { return Ok(()) };
        // Turns end in the rounds only, so that none is short.
        for lane in &plan.close {
            if let Some(open) = own.open.get(*lane) {
                open.stop.cancel();
            }
        }
        if !plan.close.is_empty() {
            self.opened.notify_one();
        }
        self.remove_idle(own, &infos, &lanes).await
    }

    fn open(&self, lane: &str) -> Own {
        let stop = self.stop.child_token();
        // The broker has one message of a strict lane in flight.
        let (first, most) = if is_strict_lane(lane) { (1, 1) } else { (OWN_LANE_HELD_FIRST, OWN_LANE_HELD) };
        let reading = read_lane(
            self.js.clone(),
            self.stream.clone(),
            lane.to_owned(),
            LaneLimits {
                messages: first,
                most_messages: most,
                bytes: self.own_bytes.clone(),
                byte_parts: OWN_BYTE_PARTS,
                leases: self.leases.clone(),
            },
            self.sink.clone(),
            None,
            stop.clone(),
        );
        let reader = Task::start(format!("the reader of the lane {lane} of {}", self.stream), reading);
        Own { reader, stop, since: self.started.elapsed(), idle: Idle::default() }
    }

    /// Removes the consumers of idle lanes; see [`super::lane_removal`].
    async fn remove_idle(
        &self,
        own: &mut LaneReaders,
        infos: &HashMap<String, ConsumerInfo>,
        listed: &[&str],
    ) -> Result<(), NatsError> {
        let LaneReaders { open, lost, .. } = own;
        for (lane, state) in open.iter_mut() {
            let Some(info) = infos.get(lane) else {
                // A reader without room requests nothing, so it does not notice.
                if !listed.contains(&lane.as_str()) {
                    lost.add(lane);
                }
                continue;
            };
            state.idle.note(info);
            // A lane whose circuit is open stays at least until the probe is due.
            if state.idle.is_over(self.is_removed(lane)) && !info.is_paused_by_circuit() {
                self.js.delete_consumer(&self.stream, &lane_consumer(lane)).await?;
                // A late writer may still use it.
                lost.add(lane);
                OwnLaneRemoved { stream: &self.stream, lane }.emit();
                self.breaker.removed(info);
            }
        }
        Ok(())
    }
}

impl Lanes {
    /// Whether the subscription of an own lane was removed.
    fn is_removed(&self, lane: &str) -> bool {
        let name = subscription_of_lane(lane).and_then(SubscriptionRef::from_token);
        name.is_none_or(|name| self.subscriptions.lacks(&name))
    }
}

/// The own lanes of a domain.
#[derive(Default)]
struct LaneReaders {
    /// Those that are read.
    open: HashMap<String, Own>,
    /// When the reader of a lane ended.
    last_read: HashMap<String, Duration>,
    lost: LostLanes,
}

struct Own {
    reader: Task<Result<(), NatsError>>,
    stop: CancellationToken,
    since: Duration,
    idle: Idle,
}

impl Own {
    /// A reader that failed or panicked is logged, and another one replaces it: the server delivers again what it had.
    async fn end(mut self) {
        if let Err(failed) = self.reader.join_result().await {
            LaneReaderFailed { error: &failed }.emit();
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn name_of((lane, _): (&String, &Own)) -> String {
    lane.clone()
}
