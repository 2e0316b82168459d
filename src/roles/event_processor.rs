//! Event Processor: reads events, finds their domain and subscriptions, and passes one envelope per subscription to
//! the committer of the domain. An event is acknowledged after its envelopes are committed, or after it is stored in
//! the rejected stream with its reason.

mod backlogs;
mod committer;
mod decoder;
mod early;
mod events_to_plan;
mod in_order;
mod leftovers;
mod missing_lanes;
mod order_notices;
mod outbox_room;
mod planner;
mod recent;
mod rejecter;
mod resolver;
mod settled;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::backlog::BacklogLimits;
use crate::domain::category::Categories;
use crate::facts::Metrics;
use crate::health::ReadyFlag;
use crate::nats::definitions::StreamParameters;
use crate::nats::{Acker, Answers, ByteBudget, Heartbeat, JetStream, NatsError, Read, Reader};
use crate::tasks::{Task, TaskError, Tasks};
use backlogs::{Backlogs, QuotaSettings};
use committer::Committer;
use decoder::{Decode, Decoder};
use events_to_plan::EventsToPlan;
use in_order::{InOrder, Most};
use leftovers::{Again, Sweep};
use missing_lanes::MissingLanes;
use order_notices::OrderNotes;
use outbox_room::OutboxRoom;
use planner::{CommitQueue, Held, Planner};
use rejecter::Rejecter;
pub use resolver::{RemoteResolver, Resolver};
use settled::Settled;

/// The durable of this role.
pub const CONSUMER: &str = "event-processor";
/// `ack_wait` of the definition; heartbeats follow that of the server.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Time at a stop for the events that were requested before, unless they can be committed sooner.
const LAST_EVENTS: Duration = Duration::from_secs(3);
/// One request for events takes at most one of this number of parts of the bytes in memory.
const BYTE_PARTS: u32 = 4;

#[derive(Debug, Clone)]
pub struct EventProcessorSettings {
    /// The largest event, in bytes.
    pub max_size: usize,
    /// The most events in memory.
    pub held: usize,
    /// The most bytes of these.
    pub held_bytes: usize,
    /// The most events that are planned together.
    pub batch: usize,
    /// The most bytes that an outbox holds (`limits.outbox`).
    pub outbox_size: usize,
    /// Limits of the backlog of each subscription.
    pub backlog: BacklogLimits,
    /// Waits before the redrives of a dead letter.
    pub schedule: Vec<Duration>,
    pub stream_parameters: StreamParameters,
}

/// The next message; `None` if no more is requested, and what was requested has come.
async fn next(reader: &mut Reader, stops: bool) -> Result<Option<Read>, TaskError> {
    if stops {
        return Ok(reader.last().await.map(Read::Message));
    }
    reader.next().await.map(Some).map_err(reading)
}

/// Waits for the planning in progress; forever if there is none.
async fn ended(planning: &mut Option<Task<EventsToPlan>>) -> Result<EventsToPlan, TaskError> {
    match planning {
        Some(planning) => planning.join().await,
        None => std::future::pending().await,
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn reading(error: NatsError) -> TaskError {
    TaskError::failed("the reader of the events", error)
}

pub struct EventProcessor {
    js: JetStream,
    resolver: Resolver,
    categories: Arc<Categories>,
    settings: EventProcessorSettings,
    metrics: Metrics,
    ready: ReadyFlag,
    decode: Decode,
    #[cfg(test)]
    before_write: fn(&[crate::nats::EnvelopeMessage]),
}

impl EventProcessor {
    pub fn new(
        js: JetStream,
        resolver: Resolver,
        categories: Arc<Categories>,
        settings: EventProcessorSettings,
        metrics: Metrics,
        ready: ReadyFlag,
    ) -> Self {
        let decode: Decode = |publication| publication.decode();
        Self {
            js,
            resolver,
            categories,
            settings,
            metrics,
            ready,
            decode,
            #[cfg(test)]
            before_write: |_| {},
        }
    }

    /// Replaces the decoder.
    #[cfg(test)]
    pub(crate) fn decoding(self, decode: Decode) -> Self {
        Self { decode, ..self }
    }

    /// Runs `before_write` before each write of envelopes.
    #[cfg(test)]
    pub(crate) fn before_write(self, before_write: fn(&[crate::nats::EnvelopeMessage])) -> Self {
        Self { before_write, ..self }
    }

    /// Runs until `stop`; then requests nothing further, and commits the events that were requested before, so that none
    /// waits because this process ends.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskError> {
        let (js, stream) = (self.js.clone(), self.js.names().events_stream());
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = self.resolver.wait_until_ready() => {}
        }
        let (held, ready) = (self.settings.held, Some(self.ready.clone()));
        let reader = Reader::bind(&self.js, &stream, CONSUMER, held, ready, &stop).await.map_err(reading)?;
        let Some(reader) = reader else { return Ok(()) };
        let leases = js.leases(&stream, ACK_WAIT);
        let mut reader =
            reader.within(&ByteBudget::new(self.settings.held_bytes), BYTE_PARTS).leased(leases.clone());
        // The committers end after the planner: each when its channel is closed and empty.
        let planned = CancellationToken::new();
        let mut committers = Tasks::new(planned.clone());
        let rejecter = Rejecter::new(self.js.clone(), self.metrics.clone());
        let decoder = Decoder {
            names: js.names().clone(),
            categories: self.categories.clone(),
            decode: self.decode,
            max_size: self.settings.max_size,
        };
        let settled = Settled::new(Answers::default());
        let domains = self.settings.stream_parameters.domains.clone();
        let (again, mut leftovers) = Again::new(leases.clone());
        let sweep = Sweep::new(js.clone(), decoder.clone(), domains, settled.clone(), again.clone());
        committers.droppable("the sweep for leftover events", sweep.run());
        let planner = Arc::new(Planner {
            queues: self.start_committers(&rejecter, &decoder, &again, &settled, &mut committers),
            settled,
            leases,
            rejecter,
            js: self.js,
            resolver: self.resolver,
            decoder,
            batch: self.settings.batch,
            metrics: self.metrics,
        });
        let mut waiting: VecDeque<Held> = VecDeque::new();
        // At most one planning at a time, which owns the backlog; meanwhile the next events are read.
        let mut backlog = EventsToPlan::default();
        let mut planning: Option<Task<EventsToPlan>> = None;
        let mut in_planning: Vec<Acker> = Vec::new();
        let mut heartbeat = Heartbeat::follow(&js, stream, CONSUMER.to_owned(), ACK_WAIT);
        let (mut ends_at, mut is_read) = (None, false);
        loop {
            if planning.is_none() && (!waiting.is_empty() || !backlog.is_empty()) {
                let group: Vec<Held> = waiting.drain(..waiting.len().min(self.settings.batch)).collect();
                in_planning.extend(group.iter().map(|(message, _)| message.acker.clone()));
                in_planning.extend(backlog.ackers().cloned());
                let (planner, backlog) = (planner.clone(), std::mem::take(&mut backlog));
                let work = async move { planner.process(backlog, group).await };
                planning = Some(Task::start("the planning of envelopes", work));
            }
            if is_read && planning.is_none() {
                break;
            }
            let read = tokio::select! {
                () = stop.cancelled(), if ends_at.is_none() => {
                    ends_at = Some(Instant::now() + LAST_EVENTS);
                    continue;
                }
                () = until(ends_at) => break,
                read = next(&mut reader, ends_at.is_some()), if !is_read => match read? {
                    Some(read) => read,
                    None => {
                        is_read = true;
                        continue;
                    }
                },
                planned = ended(&mut planning) => {
                    backlog = planned?;
                    planning = None;
                    in_planning.clear();
                    continue;
                }
                Some(leftover) = leftovers.recv() => {
                    waiting.push_back(leftover);
                    continue;
                }
                // Without its committer, a domain's events would be handed back forever.
                Some(failed) = committers.failure() => return Err(failed),
                // Keeps the server from delivering the waiting events to another process.
                _ = heartbeat.tick() => {
                    let heartbeats = async {
                        for acker in in_planning.iter().chain(waiting.iter().map(|(message, _)| &message.acker)) {
                            acker.in_progress().await;
                        }
                    };
                    // If the connection stalls, they wait for room in the client's queue.
                    tokio::select! {
                        () = stop.cancelled() => continue,
                        () = heartbeats => continue,
                    }
                }
            };
            let mut next = Some(read);
            while let Some(read) = next {
                if let Read::Message((message, permit)) = read {
                    waiting.push_back((*message, permit));
                }
                next = if waiting.len() < self.settings.batch { reader.try_next() } else { None };
            }
        }
        for (message, _permit) in waiting {
            message.acker.nak(None).await;
        }
        if let Some(mut planning) = planning {
            // Where it panicked, its events are delivered again after ack_wait.
            backlog = planning.join().await.unwrap_or_default();
        }
        for acker in backlog.ackers() {
            acker.nak(None).await;
        }
        drop(planner);
        planned.cancel();
        committers.join().await
    }

    fn start_committers(
        &self,
        rejecter: &Rejecter,
        decoder: &Decoder,
        again: &Again,
        settled: &Settled,
        committers: &mut Tasks,
    ) -> Vec<CommitQueue> {
        let domains: Vec<String> = self.categories.names().map(str::to_owned).collect();
        // A domain that cannot commit must not fill the memory that the others need.
        let room_bytes = u32::try_from(self.settings.held_bytes / 2).unwrap_or(u32::MAX);
        committers
            .droppable("the repeated acknowledgements of events", settled.repeat_answers(self.js.clone()));
        let capacity = (self.settings.held / (2 * domains.len().max(1))).max(16);
        domains
            .into_iter()
            .enumerate()
            .map(|(place, domain)| {
                let (sender, receiver) = mpsc::channel(capacity);
                let metrics = self.metrics.of_domain(&domain);
                let blocked = Arc::new(AtomicBool::new(false));
                let outbox = OutboxRoom::new(self.js.clone(), &domain, self.settings.outbox_size);
                let quotas = QuotaSettings {
                    limits: self.settings.backlog,
                    outbox_size: self.settings.outbox_size as u64,
                    schedule: self.settings.schedule.clone(),
                };
                let (backlogs, watch) =
                    Backlogs::new(self.js.clone(), &domain, quotas, self.metrics.clone(), metrics.clone());
                committers.droppable(format!("the watch of the backlogs of {domain}"), watch.run());
                let parameters = self.settings.stream_parameters.clone();
                let (lanes, maker) = MissingLanes::new(self.js.clone(), parameters, &domain, metrics.clone());
                committers.droppable(format!("the creation of strict lanes of {domain}"), maker.run());
                let (notes, follower) = OrderNotes::new(&self.js, &domain);
                committers.droppable(format!("the notices of ordered events of {domain}"), follower.run());
                let in_order = InOrder::new(
                    self.js.clone(),
                    decoder.clone(),
                    lanes,
                    again.clone(),
                    notes,
                    place,
                    Most {
                        events: capacity,
                        room: room_bytes as usize / 2,
                        age: self.settings.stream_parameters.duplicate_window / 2,
                    },
                );
                let committer = Committer::new(
                    in_order,
                    rejecter.clone(),
                    backlogs,
                    metrics.clone(),
                    outbox.clone(),
                    settled.clone(),
                    blocked.clone(),
                );
                #[cfg(test)]
                let committer = committer.before_write(self.before_write);
                committers.infallible(format!("the committer of {domain}"), committer.run(receiver));
                let room = Arc::new(Semaphore::new(room_bytes as usize));
                CommitQueue { committer: sender, room, most_of_one: room_bytes / 2, blocked, outbox, metrics }
            })
            .collect()
    }
}
