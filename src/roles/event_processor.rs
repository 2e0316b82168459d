//! Event Processor: takes events, finds their domain and subscriptions, and hands one envelope per
//! subscription to the domain's committer. An event is acknowledged after its envelopes are
//! committed, or after it was kept in the rejected stream with its reason.

mod backlog;
mod committer;
mod planner;
mod recent;
mod resolver;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::domain::category::Categories;
use crate::facts::Metrics;
use crate::health::ReadyFlag;
use crate::nats::{Acker, HAND_BACK_DELAY, JetStream, NatsError, Read, Reader};
use crate::tasks::{Task, TaskError, Tasks};
use backlog::Backlog;
use committer::Committer;
use planner::{Decode, HELD_ENVELOPES, Held, Planner, Way};
pub use resolver::{RemoteResolver, Resolver};

/// The durable of this role.
pub const CONSUMER: &str = "event-processor";
/// How often the broker is told that what is held is being worked on; well within ack_wait.
const HEARTBEAT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct EventProcessorSettings {
    /// The largest event, in bytes.
    pub max_size: usize,
    /// The most events in memory.
    pub held: usize,
    /// The most events that are planned together.
    pub batch: usize,
    /// The most bytes that an outbox holds (`limits.outbox`).
    pub outbox_size: usize,
}

/// Waits for the planning in progress; forever if there is none.
async fn ended(planning: &mut Option<Task<Backlog>>) -> Result<Backlog, TaskError> {
    match planning {
        Some(planning) => planning.join().await,
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
        Self { js, resolver, categories, settings, metrics, ready, decode }
    }

    /// The same with another decoder.
    #[cfg(test)]
    pub(crate) fn decoding(self, decode: Decode) -> Self {
        Self { decode, ..self }
    }

    /// Runs until `stop`; then commits what is planned and leaves the rest in the stream.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskError> {
        let stream = self.js.names().events_stream();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = self.resolver.wait_until_ready() => {}
        }
        let (held, ready) = (self.settings.held, Some(self.ready.clone()));
        let reader = Reader::bind(&self.js, &stream, CONSUMER, held, ready, &stop).await.map_err(reading)?;
        let Some(mut reader) = reader else { return Ok(()) };
        // They end after this role, when nobody plans any more.
        let planned = CancellationToken::new();
        let mut committers = Tasks::new(planned.clone());
        let planner = Arc::new(Planner {
            ways: self.start_committers(&mut committers),
            js: self.js,
            resolver: self.resolver,
            categories: self.categories,
            decode: self.decode,
            max_size: self.settings.max_size,
            outbox_size: self.settings.outbox_size,
            batch: self.settings.batch,
            metrics: self.metrics,
        });
        let mut waiting: VecDeque<Held> = VecDeque::new();
        // At most one planning at a time, which has the backlog; meanwhile the next events are read and gather.
        let mut backlog = Backlog::default();
        let mut planning: Option<Task<Backlog>> = None;
        let mut in_planning: Vec<Acker> = Vec::new();
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if planning.is_none() && (!waiting.is_empty() || !backlog.is_empty()) {
                let group: Vec<Held> = waiting.drain(..waiting.len().min(self.settings.batch)).collect();
                in_planning.extend(group.iter().map(|(message, _)| message.acker.clone()));
                in_planning.extend(backlog.ackers().cloned());
                let (planner, backlog) = (planner.clone(), std::mem::take(&mut backlog));
                let work = async move { planner.process(backlog, group).await };
                planning = Some(Task::start("the planning of envelopes", work));
            }
            let read = tokio::select! {
                () = stop.cancelled() => break,
                read = reader.next() => read.map_err(reading)?,
                planned = ended(&mut planning) => {
                    backlog = planned?;
                    planning = None;
                    in_planning.clear();
                    continue;
                }
                // Without its committer a domain's events would go back and forth for ever.
                Some(failed) = committers.failure() => return Err(failed),
                // What waits here is being worked on: the broker must not give it to another.
                _ = heartbeat.tick() => {
                    for acker in in_planning.iter().chain(waiting.iter().map(|(message, _)| &message.acker)) {
                        acker.in_progress().await;
                    }
                    continue;
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
        reader.hand_back().await;
        for (message, _permit) in waiting {
            message.acker.nak(Some(HAND_BACK_DELAY)).await;
        }
        if let Some(mut planning) = planning {
            // Where it panicked, its events are delivered again after ack_wait.
            backlog = planning.join().await.unwrap_or_default();
        }
        for acker in backlog.ackers() {
            acker.nak(Some(HAND_BACK_DELAY)).await;
        }
        drop(planner);
        planned.cancel();
        committers.join().await
    }

    fn start_committers(&self, committers: &mut Tasks) -> Vec<Way> {
        let domains: Vec<String> = self.categories.names().map(str::to_owned).collect();
        // A domain that cannot commit must not fill the memory that the others need.
        let capacity = (self.settings.held / (2 * domains.len().max(1))).max(16);
        domains
            .into_iter()
            .map(|domain| {
                let (sender, receiver) = mpsc::channel(capacity);
                let metrics = self.metrics.of_domain(&domain);
                let blocked = Arc::new(AtomicBool::new(false));
                let committer = Committer::new(self.js.clone(), metrics.clone(), blocked.clone());
                committers.infallible(format!("the committer of {domain}"), committer.run(receiver));
                let room = Arc::new(Semaphore::new(HELD_ENVELOPES as usize));
                Way { committer: sender, room, blocked, metrics }
            })
            .collect()
    }
}
