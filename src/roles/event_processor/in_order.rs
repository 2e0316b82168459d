//! Holds the ordered events of a domain, those with an envelope for a strict order, until the earlier events of their
//! tenant are settled ([`PublishingOrder`]).

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::CONSUMER;
use super::committer::Planned;
use super::decoder::Decoder;
use super::missing_lanes::MissingLanes;
use crate::domain::publishing_order::{PublishingOrder, Step};
use crate::nats::subjects::is_strict_lane;
use crate::nats::{JetStream, NatsError};
use crate::panics;

/// Pause before what is in the stream is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The same if nothing can be read or written.
const LOOK_AGAIN_AFTER_ERROR: Duration = Duration::from_secs(1);
/// An event that waits for longer returns to the stream, before the server delivers it to another process.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// Messages that are looked up before the next pause. A long backlog is settled faster than it is looked through.
const MOST_LOOKED_UP: usize = 64;

/// The ordered events of one domain that wait.
pub(super) struct InOrder {
    js: JetStream,
    decoder: Decoder,
    /// Its place in the categories.
    domain: usize,
    order: PublishingOrder,
    waiting: BTreeMap<u64, Planned>,
    /// The most events that wait, and the most permits for memory that they have; more return to the stream.
    most: usize,
    most_room: usize,
    room: usize,
    look_at: Instant,
    lanes: MissingLanes,
}

impl InOrder {
    /// `most` events, with at most `most_room` permits for memory, may wait.
    pub(super) fn new(
        js: JetStream,
        decoder: Decoder,
        lanes: MissingLanes,
        domain: usize,
        most: usize,
        most_room: usize,
    ) -> Self {
        Self {
            js,
            decoder,
            domain,
            order: PublishingOrder::new(),
            waiting: BTreeMap::new(),
            most,
            most_room,
            room: 0,
            look_at: Instant::now(),
            lanes,
        }
    }

    pub(super) fn js(&self) -> &JetStream {
        &self.js
    }

    /// Adds an ordered event. Returns one that has to return to the stream, if too many wait.
    pub(super) fn add(&mut self, planned: Planned) -> Option<Planned> {
        if self.waiting.is_empty() {
            self.look_at = Instant::now();
        }
        self.put_back(planned);
        if self.waiting.len() <= self.most && self.room <= self.most_room {
            return None;
        }
        let last = self.order.last()?;
        self.order.hand_back(last);
        self.take(last)
    }

    /// Adds an event that [`Self::ready`] returned again, because it could not be committed yet.
    pub(super) fn put_back(&mut self, planned: Planned) {
        let sequence = planned.message.stream_sequence;
        self.order.add(sequence, &planned.tenant);
        self.room += planned.room.num_permits();
        // The copy that the server has delivered again replaces the one before.
        if let Some(before) = self.waiting.insert(sequence, planned) {
            self.room = self.room.saturating_sub(before.room.num_permits());
        }
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
        LOOK_AGAIN_AFTER_ERROR
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
    pub(super) async fn ready(&mut self, most: usize) -> Result<Vec<Planned>, NatsError> {
        self.pause();
        let stream = self.js.names().events_stream();
        let reader = self.js.consumer_info(&stream, CONSUMER).await?;
        self.order.reader(reader.ack_floor.stream_seq, reader.delivered.stream_seq);
        let mut left = MOST_LOOKED_UP;
        self.look_for_blockers(&stream, &mut left).await?;
        self.look_at = Instant::now() + LOOK_AGAIN;
        loop {
            match self.order.next(most) {
                Step::Commit(sequences) => {
                    self.look_at = Instant::now();
                    return Ok(sequences.into_iter().filter_map(|sequence| self.take(sequence)).collect());
                }
                Step::LookUp(from) if left > 0 => {
                    left -= 1;
                    self.look_up(&stream, from).await?;
                }
                Step::Wait | Step::LookUp(_) => return Ok(Vec::new()),
            }
        }
    }

    /// Finds the blockers that are not in the stream any more.
    async fn look_for_blockers(&mut self, stream: &str, left: &mut usize) -> Result<(), NatsError> {
        let mut from = 0;
        // Half of the look-ups are left for what is not known yet.
        while *left > MOST_LOOKED_UP / 2
            && let Some(blocker) = self.order.blocker_from(from)
        {
            *left -= 1;
            let next = self.js.get_next(stream, blocker, ">").await?;
            from = next.map_or(u64::MAX, |message| message.sequence);
            self.order.settled_between(blocker, from);
            from = from.saturating_add(1);
        }
        Ok(())
    }

    async fn look_up(&mut self, stream: &str, from: u64) -> Result<(), NatsError> {
        match self.js.get_next(stream, from, ">").await? {
            Some(message) => {
                // A message that causes a panic is rejected, and is not an event.
                let tenant = panics::catch(|| self.decoder.tenant_in(self.domain, &message)).ok().flatten();
                self.order.stands(message.sequence, tenant.as_deref());
            }
            // The stream is empty: what waits here was deleted from it.
            None => self.order.nothing_before(self.order.last().unwrap_or(from).saturating_add(1)),
        }
        Ok(())
    }

    /// Removes and returns the events that have waited for longer than `longest`, or all of them.
    pub(super) fn hand_back(&mut self, longest: Option<Duration>) -> Vec<Planned> {
        let now = Instant::now();
        let is_over = |planned: &Planned| longest.is_none_or(|most| now.duration_since(planned.since) > most);
        let overdue: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, planned)| is_over(planned))
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in &overdue {
            self.order.hand_back(*sequence);
        }
        overdue.into_iter().filter_map(|sequence| self.take(sequence)).collect()
    }

    /// Asks for the consumers of these events' strict lanes. Nothing waits for them.
    pub(super) fn ask_for_lanes(&self, group: &[Planned]) {
        let names = self.js.names();
        let envelopes = group.iter().flat_map(|planned| &planned.envelopes);
        let lanes = envelopes.filter_map(|envelope| Some(names.parse_outbox(&envelope.subject)?.lane));
        self.lanes.ask(lanes.filter(|lane| is_strict_lane(lane)));
    }
}
