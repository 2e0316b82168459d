//! Finds the events that the consumer has passed and that are still in their stream, and removes them or fans them out
//! ([`leftovers`](crate::domain::leftovers) decides).
//!
//! A look costs two requests. The server removes a message when it is acknowledged, also if the consumer does not wait for
//! that, so an event that is to be removed is acknowledged once more, and one that is to be fanned out goes the way of
//! those that are delivered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::CONSUMER;
use super::decoder::Decoder;
use super::planner::Held;
use super::settled::Settled;
use crate::domain::lately::Stored;
use crate::domain::leftovers::{EventMark, LeftoverStep, LeftoverVerdict, Leftovers, decide};
use crate::facts::{LeftoverFannedOut, LeftoverRemoved, LeftoversNotHandled};
use crate::nats::{JetStream, NatsError, Sought, StoredMessage};
use crate::panics;
use crate::standstill::Leases;

/// Interval of the looks.
const LOOK: Duration = Duration::from_secs(5);
/// The same after a look that found something.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Most events of one look. The next one begins with the same ones, if they are still there.
const MOST_PER_LOOK: usize = 2_000;
/// Most events whose traces are looked for together, and their bytes.
const MOST_TOGETHER: usize = 256;
const MOST_BYTES_TOGETHER: usize = 8 * 1024 * 1024;
/// Events that are being fanned out, and their size in KiB.
const MOST_IN_FLIGHT: usize = MOST_TOGETHER;
const MOST_KIB_IN_FLIGHT: usize = 16 * 1024;
/// What a small event counts for, so that there are at most [`MOST_IN_FLIGHT`].
const LEAST_KIB: usize = MOST_KIB_IN_FLIGHT / MOST_IN_FLIGHT;

pub(super) struct Sweep {
    js: JetStream,
    decoder: Decoder,
    domains: Vec<String>,
    settled: Settled,
    leftovers: Leftovers,
    again: Again,
}

/// The way to the planner for events that are read from the stream, and not delivered. Cheap to clone.
#[derive(Clone)]
pub(super) struct Again {
    planner: mpsc::Sender<Held>,
    /// In KiB.
    room: Arc<Semaphore>,
    leases: Leases,
}

impl Again {
    /// Returns the events as well.
    pub(super) fn new(leases: Leases) -> (Self, mpsc::Receiver<Held>) {
        let (planner, receiver) = mpsc::channel(MOST_IN_FLIGHT);
        (Self { planner, room: Arc::new(Semaphore::new(MOST_KIB_IN_FLIGHT)), leases }, receiver)
    }

    /// Passes an event to the planner; returns false if too many are on their way.
    pub(super) fn fan_out(&self, js: &JetStream, stream: &str, message: StoredMessage) -> bool {
        let size = (message.payload.len() / 1024).clamp(LEAST_KIB, MOST_KIB_IN_FLIGHT);
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let Ok(permit) = self.room.clone().try_acquire_many_owned(size) else { return false };
        // The server does not count its deliveries: one that causes a panic is rejected at once.
        let Some(mut message) = js.as_delivered(stream, CONSUMER, panics::TRIES, message) else {
            return false;
        };
        message.lease = self.leases.current();
        // The channel has a place for each permit. The channel is closed when the process stops.
        self.planner.try_send((message, permit)).is_ok()
    }
}

impl Sweep {
    pub(super) fn new(
        js: JetStream,
        decoder: Decoder,
        domains: Vec<String>,
        settled: Settled,
        again: Again,
    ) -> Self {
        Self { js, decoder, domains, settled, leftovers: Leftovers::default(), again }
    }

    /// Never returns. May be dropped at any point: each step may be repeated.
    pub(super) async fn run(mut self) {
        loop {
            tokio::time::sleep(if self.leftovers.any() { LOOK_AGAIN } else { LOOK }).await;
            self.js.gate().opened().await;
            if let Err(error) = self.look().await {
                // What is missing is made again, and has no leftovers then.
                if !error.is_not_found() {
                    LeftoversNotHandled { error: &error, retry_in: LOOK }.emit();
                }
            }
        }
    }

    async fn look(&mut self) -> Result<(), NatsError> {
        let stream = self.js.names().events_stream();
        let reader = self.js.consumer_info(&stream, CONSUMER).await?;
        let floor = reader.ack_floor.stream_seq;
        let mut doubtful = Vec::new();
        let (mut from, mut bytes) = (1, 0);
        for _ in 0..MOST_PER_LOOK {
            let message = self.js.get_next(&stream, from, ">").await?;
            let Some(message) = message.filter(|message| message.sequence <= floor) else { break };
            from = message.sequence + 1;
            let Some(at_nanos) = message.stored_at_nanos() else { continue };
            let stored = Stored::new(message.sequence, at_nanos);
            match self.leftovers.found(stored, self.settled.knows(stored)) {
                LeftoverStep::Wait => {}
                LeftoverStep::Remove => self.remove(&stream, message).await,
                LeftoverStep::LookForTraces
                    if doubtful.len() < MOST_TOGETHER && bytes < MOST_BYTES_TOGETHER =>
                {
                    bytes += message.payload.len();
                    doubtful.push(message);
                }
                LeftoverStep::LookForTraces => self.leftovers.defer(stored),
            }
        }
        self.leftovers.end_look();
        if doubtful.is_empty() { Ok(()) } else { self.handle_doubtful(&stream, doubtful).await }
    }

    async fn remove(&self, stream: &str, message: StoredMessage) {
        let sequence = message.sequence;
        if let Some(message) = self.js.as_delivered(stream, CONSUMER, 1, message) {
            LeftoverRemoved { sequence }.emit();
            message.acker.ack().await;
        }
    }

    async fn handle_doubtful(&self, stream: &str, doubtful: Vec<StoredMessage>) -> Result<(), NatsError> {
        // One that causes a panic is not an event.
        let mark = |message: &StoredMessage| panics::catch(|| self.decoder.mark(message)).ok().flatten();
        let marks: HashMap<u64, EventMark> =
            doubtful.iter().filter_map(|message| Some((message.sequence, mark(message)?))).collect();
        let sought = Sought {
            events: marks.values().cloned().collect(),
            sequences: doubtful.iter().map(|message| message.sequence).collect(),
            since: doubtful.iter().filter_map(StoredMessage::stored_at).min(),
        };
        let traces = self.js.traces(&self.domains, &sought).await?;
        for message in doubtful {
            let sequence = message.sequence;
            let known = marks.get(&sequence).is_some_and(|mark| traces.events.contains(mark));
            match decide(known || traces.rejected.contains(&sequence)) {
                LeftoverVerdict::Remove => self.remove(stream, message).await,
                // If too many are on their way, a later look finds it again.
                LeftoverVerdict::FanOut => {
                    if self.again.fan_out(&self.js, stream, message) {
                        LeftoverFannedOut { sequence }.emit();
                    }
                }
            }
        }
        Ok(())
    }
}
