//! Holds the ordered events of a domain, those with an envelope for a strict order, until the earlier events of their
//! tenant are settled ([`PublishingOrder`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::Instant;

use super::committer::Planned;
use super::decoder::Decoder;
use super::early::EarlyPlaces;
use super::leftovers::Again;
use super::missing_lanes::MissingLanes;
use super::order_notices::OrderNotes;
use super::{ACK_WAIT, CONSUMER};
use crate::domain::publishing_order::{OrderStep, PublishingOrder};
use crate::domain::take_over::TakeOver;
use crate::facts::EventTakenOver;
use crate::nats::subjects::is_strict_lane;
use crate::nats::{JetStream, NatsError};
use crate::panics;

/// Pause before what is in the stream is looked at again, while events become ready: another process that has the event
/// before needs a few milliseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// The same after none became ready for a while.
const LOOK_AGAIN_LATER: Duration = Duration::from_millis(20);
const A_WHILE: Duration = Duration::from_millis(500);
/// The same if nothing can be read or written.
const LOOK_AGAIN_AFTER_ERROR: Duration = Duration::from_secs(1);
/// Interval of the looks at the consumer. They take longer than a look-up in the stream, and what they show is found there, too.
const CONSUMER_EVERY: Duration = Duration::from_millis(200);
/// Heartbeats within one `ack_wait`. An event that waits stays here however long it takes: those that returned to the
/// stream would delay the later ones, which would return as well, without end.
const HEARTBEATS: u32 = 3;
/// Longest time that the heartbeats of all events take. They need room in the client's queue if the connection stalls.
const HEARTBEATS_WITHIN: Duration = Duration::from_secs(2);
/// Interval of the looks at what other processes have had for too long.
const TAKE_OVER_EVERY: Duration = Duration::from_millis(100);
/// Most events of a tenant that are taken over together.
const MOST_TAKEN_OVER: usize = 128;
/// Blockers that are looked up at the same time.
const AT_ONCE: usize = 16;
/// Messages that are looked up before the next pause. A long backlog is settled faster than it is looked through.
const MOST_LOOKED_UP: usize = 64;

#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    /// Events that wait.
    pub(super) events: usize,
    /// Permits for memory that these have.
    pub(super) room: usize,
    /// The age of an event that is taken over. An older one may have been committed in part so long ago that the outbox would
    /// not recognize a repetition. If its process has ended, the server has delivered it again before.
    pub(super) age: Duration,
}

/// The ordered events of one domain that wait.
pub(super) struct InOrder {
    js: JetStream,
    decoder: Decoder,
    /// Its place in the categories.
    domain: usize,
    order: PublishingOrder,
    waiting: BTreeMap<u64, Planned>,
    /// More return to the stream.
    most: Most,
    room: usize,
    look_at: Instant,
    /// When the last events became ready, or the first one was added.
    ready_at: Instant,
    /// When the consumer is looked at again.
    consumer_at: Instant,
    /// The last blocker that was looked up: the next look continues after it.
    looked_up_to: u64,
    /// `ack_wait` of the consumer.
    ack_wait: Duration,
    heartbeat_at: Instant,
    lanes: MissingLanes,
    early: EarlyPlaces,
    take_over: TakeOver,
    /// When what other processes have is looked at, to take it over.
    take_over_at: Instant,
    /// To the planner.
    again: Again,
    notes: OrderNotes,
    /// The last look failed, or nothing can be committed.
    is_paused: bool,
    started: Instant,
}

impl InOrder {
    pub(super) fn new(
        js: JetStream,
        decoder: Decoder,
        lanes: MissingLanes,
        again: Again,
        notes: OrderNotes,
        domain: usize,
        most: Most,
    ) -> Self {
        Self {
            again,
            notes,
            is_paused: false,
            early: EarlyPlaces::new(most.events / 2, most.room / 2),
            take_over: TakeOver::default(),
            take_over_at: Instant::now(),
            started: Instant::now(),
            js,
            decoder,
            domain,
            order: PublishingOrder::new(),
            waiting: BTreeMap::new(),
            most,
            room: 0,
            look_at: Instant::now(),
            ready_at: Instant::now(),
            consumer_at: Instant::now(),
            looked_up_to: 0,
            ack_wait: ACK_WAIT,
            heartbeat_at: Instant::now(),
            lanes,
        }
    }

    pub(super) fn js(&self) -> &JetStream {
        &self.js
    }

    /// Sets the envelopes of an ordered event that wait for its turn aside, if the others need not wait.
    pub(super) fn split(&self, mut planned: Planned) -> Planned {
        planned.split(self.js.names(), &self.early);
        planned
    }

    /// Adds an ordered event. Returns one that has to return to the stream, if too many wait.
    pub(super) fn add(&mut self, planned: Planned) -> Option<Planned> {
        if self.waiting.is_empty() {
            let now = Instant::now();
            (self.look_at, self.consumer_at, self.ready_at) = (now, now, now);
        }
        self.put_back(planned);
        if self.waiting.len() <= self.most.events && self.room <= self.most.room {
            return None;
        }
        let excess = self.excess()?;
        self.order.hand_back(excess);
        self.take(excess)
    }

    /// The last event of the tenant that has the most of what is short: a tenant whose events wait for long must not keep
    /// those of others out. One that is committed in part stays; there are few of these.
    fn excess(&self) -> Option<u64> {
        let is_short_of_room = self.room > self.most.room;
        let mut tenants: BTreeMap<&str, (usize, Option<u64>)> = BTreeMap::new();
        for (sequence, planned) in &self.waiting {
            let (part, last) = tenants.entry(&planned.tenant).or_default();
            *part += if is_short_of_room { planned.room.num_permits() } else { 1 };
            if planned.early.is_none() {
                *last = Some(*sequence);
            }
        }
        tenants.into_values().filter_map(|(part, last)| Some((part, last?))).max().map(|(_, last)| last)
    }

    /// Adds an event that [`Self::ready`] returned again, because it could not be committed yet.
    pub(super) fn put_back(&mut self, planned: Planned) {
        let sequence = planned.message.stream_sequence;
        self.order.add(sequence, &planned.tenant);
        // A whole copy of what is committed in part would store that part again.
        if let Some(before) = self.waiting.get_mut(&sequence)
            && before.is_committed_in_part()
            && !planned.is_committed_in_part()
        {
            before.message = planned.message;
            return;
        }
        self.room += planned.room.num_permits();
        // The copy that the server has delivered again replaces the one before.
        if let Some(before) = self.waiting.insert(sequence, planned) {
            self.room = self.room.saturating_sub(before.room.num_permits());
        }
    }

    /// Adds an event again that cannot be committed for a while.
    pub(super) fn keep(&mut self, planned: Planned) {
        self.put_back(planned);
        self.pause();
    }

    fn take(&mut self, sequence: u64) -> Option<Planned> {
        let planned = self.waiting.remove(&sequence)?;
        self.room = self.room.saturating_sub(planned.room.num_permits());
        Some(planned)
    }

    /// When [`Self::ready`] is to be called; `None` if nothing waits.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.look_at)
    }

    /// Nothing can be committed at the moment.
    pub(super) fn pause(&mut self) -> Duration {
        self.look_at = Instant::now() + LOOK_AGAIN_AFTER_ERROR;
        self.is_paused = true;
        LOOK_AGAIN_AFTER_ERROR
    }

    /// Waits until another process says that it has settled events.
    pub(super) async fn heard(&self) {
        self.notes.heard().await;
    }

    /// What was settled elsewhere may be what the events here wait for.
    pub(super) fn look_now(&mut self) {
        if !self.is_paused {
            self.look_at = Instant::now();
        }
    }

    /// Notifies the others, if they wait, that events were settled here.
    pub(super) async fn tell(&self) {
        self.notes.settled().await;
    }

    /// An event of this domain was committed and acknowledged.
    pub(super) fn settled(&mut self, sequence: u64) {
        self.order.settled(sequence);
    }

    /// An event that [`Self::ready`] returned may go back to the stream; [`Self::settled`] follows if it does not.
    pub(super) fn failed(&mut self, sequence: u64, tenant: &str) {
        self.order.failed(sequence, tenant);
    }

    /// The events whose turn it is, in their order, at most `most`. None of them may be committed if one before it fails.
    /// `is_free`: what waits elsewhere could be committed here.
    pub(super) async fn ready(&mut self, most: usize, is_free: bool) -> Result<Vec<Planned>, NatsError> {
        self.pause();
        self.send_heartbeats().await;
        let stream = self.js.names().events_stream();
        if self.consumer_at <= Instant::now() {
            let reader = self.js.consumer_info(&stream, CONSUMER).await?;
            self.order.reader(reader.ack_floor.stream_seq, reader.delivered.stream_seq);
            self.ack_wait = reader.ack_wait().unwrap_or(self.ack_wait);
            self.heartbeat_at = self.heartbeat_at.min(Instant::now() + self.ack_wait / HEARTBEATS);
            self.consumer_at = Instant::now() + CONSUMER_EVERY;
        }
        let mut left = MOST_LOOKED_UP;
        self.look_for_blockers(&stream, &mut left).await?;
        if is_free && self.take_over_at <= Instant::now() {
            self.take_over(&stream).await?;
            self.take_over_at = Instant::now() + TAKE_OVER_EVERY;
        }
        loop {
            match self.order.next(most) {
                OrderStep::Commit(sequences) => {
                    let now = Instant::now();
                    (self.look_at, self.ready_at) = (now, now);
                    self.is_paused = false;
                    return Ok(sequences.into_iter().filter_map(|sequence| self.take(sequence)).collect());
                }
                OrderStep::LookUp(from) if left > 0 => {
                    let together = self.order.unknown_from(from, left.min(AT_ONCE));
                    left -= together.len();
                    self.look_up(&stream, together).await?;
                }
                OrderStep::Wait | OrderStep::LookUp(_) => {
                    let is_soon = self.ready_at.elapsed() < A_WHILE;
                    self.look_at = Instant::now() + if is_soon { LOOK_AGAIN } else { LOOK_AGAIN_LATER };
                    self.is_paused = false;
                    self.notes.ask().await;
                    return Ok(Vec::new());
                }
            }
        }
    }

    /// Keeps the server from delivering the events that wait to another process.
    async fn send_heartbeats(&mut self) {
        let now = Instant::now();
        if now < self.heartbeat_at {
            return;
        }
        let heartbeats = async {
            for planned in self.waiting.values() {
                planned.message.acker.in_progress().await;
            }
        };
        // Those that were not sent follow with the next ones, or their events are delivered again, which does no harm.
        let _ = tokio::time::timeout(HEARTBEATS_WITHIN, heartbeats).await;
        self.heartbeat_at = now + self.ack_wait / HEARTBEATS;
    }

    /// Finds the blockers that are not in the stream any more, as far as the next step depends on them.
    async fn look_for_blockers(&mut self, stream: &str, left: &mut usize) -> Result<(), NatsError> {
        let mut standing = BTreeSet::new();
        // Half of the look-ups are left for what is not known yet.
        while *left > MOST_LOOKED_UP / 2 {
            let mut blockers = self.order.decisive_blockers();
            blockers.retain(|blocker| !standing.contains(blocker));
            let after = blockers.partition_point(|blocker| *blocker <= self.looked_up_to);
            blockers.rotate_left(after);
            blockers.truncate((*left - MOST_LOOKED_UP / 2).min(AT_ONCE));
            let Some(last) = blockers.last() else { return Ok(()) };
            self.looked_up_to = *last;
            *left -= blockers.len();
            let js = &self.js;
            let look_ups = blockers.into_iter().map(|blocker| async move {
                let next = js.get_next(stream, blocker, ">").await?;
                Ok::<_, NatsError>((blocker, next.map_or(u64::MAX, |message| message.sequence)))
            });
            let found: Vec<(u64, u64)> =
                stream::iter(look_ups).buffer_unordered(AT_ONCE).try_collect().await?;
            for (blocker, next) in found {
                self.order.settled_between(blocker, next);
                if next == blocker {
                    standing.insert(blocker);
                }
            }
        }
        Ok(())
    }

    /// Takes over events that another process has had for too long.
    async fn take_over(&mut self, stream: &str) -> Result<(), NatsError> {
        let now = self.started.elapsed();
        let decisive = self.order.decisive_blockers();
        let named: Vec<(u64, &str)> =
            decisive.iter().filter_map(|at| Some((*at, self.order.tenant_of_blocker(*at)?))).collect();
        let mut taken = Vec::new();
        for tenant in self.take_over.due(&named, now) {
            let blockers = self.order.blockers_of(tenant);
            taken.extend(self.take_over.take(tenant, blockers, MOST_TAKEN_OVER, now));
        }
        let js = &self.js;
        let look_ups = taken.into_iter().map(|sequence| async move {
            let message = js.get_next(stream, sequence, ">").await?;
            Ok::<_, NatsError>(message.filter(|message| message.sequence == sequence))
        });
        let mut messages = stream::iter(look_ups).buffered(AT_ONCE);
        while let Some(message) = messages.next().await {
            let Some(message) = message? else { continue };
            let (sequence, stored_at) = (message.sequence, message.stored_at());
            if stored_at.is_none_or(|stored_at| self.js.now() - stored_at > self.most.age) {
                continue;
            }
            if self.again.fan_out(&self.js, stream, message) {
                EventTakenOver { sequence }.emit();
            } else {
                self.take_over.not_taken(sequence);
            }
        }
        Ok(())
    }

    /// Looks up what is in the stream at or after each of these sequences, of which nothing is known.
    async fn look_up(&mut self, stream: &str, sequences: Vec<u64>) -> Result<(), NatsError> {
        let js = &self.js;
        let look_ups = sequences.into_iter().map(|from| async move {
            let message = js.get_next(stream, from, ">").await?;
            Ok::<_, NatsError>((from, message))
        });
        let found: Vec<_> = stream::iter(look_ups).buffered(AT_ONCE).try_collect().await?;
        for (from, message) in found {
            // What an answer before this one showed.
            if !self.order.is_unknown(from) {
                continue;
            }
            match message {
                Some(message) => {
                    // A message that causes a panic is rejected, and is not an event.
                    let tenant =
                        panics::catch(|| self.decoder.tenant_in(self.domain, &message)).ok().flatten();
                    self.order.stands(message.sequence, tenant.as_deref());
                }
                // The stream is empty: what waits here was deleted from it.
                None => self.order.nothing_before(self.order.last().unwrap_or(from).saturating_add(1)),
            }
        }
        Ok(())
    }

    /// Removes and returns all events.
    pub(super) fn hand_back(&mut self) -> Vec<Planned> {
        for sequence in self.waiting.keys() {
            self.order.hand_back(*sequence);
        }
        self.room = 0;
        std::mem::take(&mut self.waiting).into_values().collect()
    }

    /// Asks for the consumers of these events' strict lanes. Nothing waits for them.
    pub(super) fn ask_for_lanes(&self, group: &[Planned]) {
        let names = self.js.names();
        let envelopes = group.iter().flat_map(|planned| &planned.envelopes);
        let lanes = envelopes.filter_map(|envelope| Some(names.parse_outbox(&envelope.subject)?.lane));
        self.lanes.ask(lanes.filter(|lane| is_strict_lane(lane)));
    }
}
