//! Holds the ordered events of a domain, those with an envelope for a strict order, until the earlier events of their
//! tenant are settled ([`PublishingOrder`]).

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::CONSUMER;
use super::committer::Planned;
use super::decoder::Decoder;
use crate::domain::publishing_order::{PublishingOrder, Step};
use crate::nats::{JetStream, NatsError};
use crate::panics;

/// Pause before what stands in the stream is looked at again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The same after the server did not answer.
const LOOK_AGAIN_AFTER_ERROR: Duration = Duration::from_secs(1);
/// Most events that wait; more return to the stream. The planner's other events must find room.
const MOST_WAITING: usize = 1_024;
/// An event that waits for longer returns to the stream, before the server delivers it to another process.
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// Messages that are looked up before the next pause. A long backlog is settled faster than it is looked through.
const MOST_LOOKED_UP: usize = 64;

/// The ordered events of one domain that wait.
pub(super) struct InOrder {
    js: JetStream,
    decoder: Decoder,
    /// Its place in the categories.
    domain: usize,
    order: PublishingOrder,
    waiting: HashMap<u64, Waiting>,
    look_at: Instant,
}

struct Waiting {
    planned: Planned,
    since: Instant,
}

impl InOrder {
    pub(super) fn new(js: JetStream, decoder: Decoder, domain: usize) -> Self {
        let order = PublishingOrder::new();
        Self { js, decoder, domain, order, waiting: HashMap::new(), look_at: Instant::now() }
    }

    /// Adds an ordered event. Returns one that has to return to the stream, if too many wait.
    pub(super) fn add(&mut self, planned: Planned) -> Option<Planned> {
        let sequence = planned.message.stream_sequence;
        if self.waiting.is_empty() {
            self.look_at = Instant::now();
        }
        self.order.add(sequence, &planned.tenant);
        // The copy that the server has delivered again replaces the one before.
        self.waiting.insert(sequence, Waiting { planned, since: Instant::now() });
        if self.waiting.len() <= MOST_WAITING {
            return None;
        }
        let last = self.order.last()?;
        self.order.hand_back(last);
        self.waiting.remove(&last).map(|waiting| waiting.planned)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When [`Self::ready`] is to be called; `None` if nothing waits.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.look_at)
    }

    /// An event of this domain was committed and acknowledged.
    pub(super) fn settled(&mut self, sequence: u64) {
        self.order.settled(sequence);
    }

    /// An event that [`Self::ready`] returned goes back to the stream.
    pub(super) fn failed(&mut self, planned: &Planned) {
        self.order.failed(planned.message.stream_sequence, &planned.tenant);
    }

    /// The events whose turn it is, in their order, at most `most`. None of them may be committed if one before it fails.
    pub(super) async fn ready(&mut self, most: usize) -> Result<Vec<Planned>, NatsError> {
        self.look_at = Instant::now() + LOOK_AGAIN_AFTER_ERROR;
        let stream = self.js.names().events_stream();
        let reader = self.js.consumer_info(&stream, CONSUMER).await?;
        self.order.reader(reader.ack_floor.stream_seq, reader.delivered.stream_seq);
        if let Some(blocker) = self.order.first_blocker()
            && !self.js.has_message(&stream, blocker).await?
        {
            self.order.settled(blocker);
        }
        self.look_at = Instant::now() + LOOK_AGAIN;
        for _ in 0..MOST_LOOKED_UP {
            match self.order.next(most) {
                Step::Commit(sequences) => {
                    self.look_at = Instant::now();
                    return Ok(sequences
                        .iter()
                        .filter_map(|sequence| self.waiting.remove(sequence))
                        .map(|waiting| waiting.planned)
                        .collect());
                }
                Step::Wait => break,
                Step::LookUp(from) => self.look_up(&stream, from).await?,
            }
        }
        Ok(Vec::new())
    }

    async fn look_up(&mut self, stream: &str, from: u64) -> Result<(), NatsError> {
        match self.js.get_next(stream, from, ">").await? {
            Some(message) => {
                // A message that causes a panic is rejected, and is no event.
                let tenant = panics::catch(|| self.decoder.tenant_in(self.domain, &message)).ok().flatten();
                self.order.stands(message.sequence, tenant.as_deref());
            }
            // The stream is empty: what waits here was deleted from it.
            None => self.order.nothing_before(self.order.last().unwrap_or(from).saturating_add(1)),
        }
        Ok(())
    }

    /// Removes and returns the events that have waited for too long, or all of them.
    pub(super) fn hand_back(&mut self, all: bool) -> Vec<Planned> {
        let now = Instant::now();
        let overdue: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| all || now.duration_since(waiting.since) > LONGEST_WAIT)
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in &overdue {
            self.order.hand_back(*sequence);
        }
        overdue.iter().filter_map(|sequence| self.waiting.remove(sequence)).map(|waiting| waiting.planned).collect()
    }
}
