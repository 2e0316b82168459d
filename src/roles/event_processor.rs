//! Event Processor: takes events, finds their domain and subscriptions, and hands one envelope per
//! subscription to the domain's committer. An event is acknowledged after its envelopes are
//! committed, or after it was kept in the rejected stream with its reason.

mod committer;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::domain::category::Categories;
use crate::domain::envelope::FanOut;
use crate::domain::event::{Event, Publication, RejectReason, Rejection};
use crate::domain::index::Entry;
use crate::health::ReadyFlag;
use crate::metrics::{DomainMetrics, Metrics};
use crate::nats::subjects::SHARED_LANE;
use crate::nats::{Delivered, JetStream, NatsError, Outgoing, PullEvent, Puller, Registry};
use committer::{Committer, Planned};

/// The durable of this role.
pub const CONSUMER: &str = "event-processor";
/// Rejected publications stored at once.
const REJECTIONS_IN_FLIGHT: usize = 32;
/// Room that an envelope leaves in the server's max_payload for its headers.
const HEADER_ROOM: usize = 4 * 1024;
/// When the registry cannot be asked, its events come again after this.
const REGISTRY_DOWN_DELAY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct EventProcessorSettings {
    /// The largest event, in bytes.
    pub max_size: usize,
    /// The most events in memory.
    pub held: usize,
    /// The most events that are planned together.
    pub batch: usize,
}

pub struct EventProcessor {
    js: JetStream,
    registry: Registry,
    categories: Arc<Categories>,
    settings: EventProcessorSettings,
    metrics: Metrics,
    ready: ReadyFlag,
}

/// How long a domain's commit may keep the role from the next event. A commit takes milliseconds;
/// one that takes longer than this is stuck, and must not hold the other domains.
const COMMIT_PATIENCE: Duration = Duration::from_secs(1);

/// A domain's way out of this role.
struct Way {
    committer: mpsc::Sender<Planned>,
    metrics: DomainMetrics,
    /// It did not take the last event in time: it is waited for no more until it takes one.
    stuck: bool,
}

impl Way {
    /// Hands an event to the committer. While that is busy the role waits, and with it the events
    /// where they are; where it is stuck, the event is handed back.
    async fn hand_over(&mut self, planned: Planned) {
        let planned = match self.committer.try_send(planned) {
            Ok(()) => {
                self.stuck = false;
                return;
            }
            Err(error) => error.into_inner(),
        };
        if !self.stuck
            && let Ok(Ok(place)) = tokio::time::timeout(COMMIT_PATIENCE, self.committer.reserve()).await
        {
            place.send(planned);
            return;
        }
        self.stuck = true;
        planned.acker.nak(Some(committer::BUSY_DELAY)).await;
    }
}

impl EventProcessor {
    pub fn new(
        js: JetStream,
        registry: Registry,
        categories: Arc<Categories>,
        settings: EventProcessorSettings,
        metrics: Metrics,
        ready: ReadyFlag,
    ) -> Self {
        Self { js, registry, categories, settings, metrics, ready }
    }

    /// Runs until `stop`; then commits what is planned and leaves the rest in the stream.
    pub async fn run(self, stop: CancellationToken) -> Result<(), NatsError> {
        let stream = self.js.names().events_stream();
        let mut puller = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            puller = Puller::bind(&self.js, &stream, CONSUMER) => puller?,
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = self.registry.wait_until_loaded() => {}
        }
        self.ready.set(true);
        let permits = Arc::new(Semaphore::new(self.settings.held));
        let mut committers = JoinSet::new();
        let mut ways = self.start_committers(&mut committers);
        loop {
            let room = permits.available_permits();
            let event = tokio::select! {
                () = stop.cancelled() => break,
                event = puller.next(room) => event?,
                // Woken when there is room again.
                permit = permits.acquire(), if room == 0 => { drop(permit); continue }
            };
            let mut group = Vec::new();
            let mut next = Some(event);
            while let Some(event) = next {
                match event {
                    PullEvent::Message(message) => {
                        self.ready.set(true);
                        let Ok(permit) = permits.clone().acquire_owned().await else { break };
                        group.push((*message, permit));
                    }
                    PullEvent::Missing => self.ready.set(false),
                    PullEvent::Reset => {}
                }
                next = if group.len() < self.settings.batch { puller.try_next() } else { None };
            }
            if !group.is_empty() {
                self.process(group, &mut ways).await;
            }
        }
        drop(ways);
        while committers.join_next().await.is_some() {}
        Ok(())
    }

    fn start_committers(&self, committers: &mut JoinSet<()>) -> Vec<Way> {
        let domains: Vec<String> = self.categories.names().map(str::to_owned).collect();
        // A domain that cannot commit must not fill the memory that the others need.
        let capacity = (self.settings.held / (2 * domains.len().max(1))).max(16);
        domains
            .into_iter()
            .map(|domain| {
                let (sender, receiver) = mpsc::channel(capacity);
                let metrics = self.metrics.of_domain(&domain);
                let committer = Committer::new(self.js.clone(), domain.clone(), metrics.clone());
                committers.spawn(committer.run(receiver));
                Way { committer: sender, metrics, stuck: false }
            })
            .collect()
    }

    async fn process(&self, group: Vec<(Delivered, OwnedSemaphorePermit)>, ways: &mut [Way]) {
        // Whoever wrote a subscription before he published an event finds it honoured: the index
        // must hold every write that the bucket holds now.
        if let Err(error) = self.catch_up().await {
            tracing::warn!(%error, events = group.len(), "the subscription registry cannot be asked; events wait");
            for (message, _permit) in &group {
                message.acker.nak(Some(REGISTRY_DOWN_DELAY)).await;
            }
            return;
        }
        let mut rejected = Vec::new();
        for (message, permit) in group {
            match self.plan(&message, ways) {
                Ok((_, envelopes)) if envelopes.is_empty() => message.acker.ack().await,
                Ok((way, envelopes)) => {
                    let planned = Planned { acker: message.acker, envelopes, permit };
                    ways[way].hand_over(planned).await;
                }
                Err(rejection) => rejected.push((message, rejection, permit)),
            }
        }
        stream::iter(rejected)
            .for_each_concurrent(REJECTIONS_IN_FLIGHT, |(message, rejection, permit)| async move {
                self.reject(&message, &rejection).await;
                drop(permit);
            })
            .await;
    }

    async fn catch_up(&self) -> Result<(), NatsError> {
        let stream = self.js.names().subscriptions_stream();
        let revision = self.js.stream_info(&stream).await?.state.last_seq;
        match tokio::time::timeout(self.js.request_timeout(), self.registry.wait_for_revision(revision)).await
        {
            Ok(()) => Ok(()),
            Err(_) => {
                Err(NatsError::Timeout { subject: stream, seconds: self.js.request_timeout().as_secs() })
            }
        }
    }

    /// The place of its way and the envelopes of a publication; none if nobody wants it.
    fn plan(&self, message: &Delivered, ways: &[Way]) -> Result<(usize, Vec<Outgoing>), Rejection> {
        let event = self.decode(message)?;
        let Some((place, way, domain)) = self
            .categories
            .index_of(&event.key)
            .and_then(|index| Some((index, ways.get(index)?, self.categories.name(index)?)))
        else {
            return Err(Rejection {
                reason: RejectReason::NoDomain,
                detail: format!(
                    "no domain takes the event key {}; add a pattern for it to a [[domains]] entry of the settings",
                    event.key
                ),
            });
        };
        way.metrics.events.inc();
        let entries: Vec<Arc<Entry>> = self.registry.read().matching(&event);
        if entries.is_empty() {
            way.metrics.unmatched.inc();
            return Ok((place, Vec::new()));
        }
        let limit = self.js.max_payload().saturating_sub(HEADER_ROOM);
        let fan_out = FanOut::new(&event, domain);
        let mut envelopes = Vec::with_capacity(entries.len());
        for entry in entries {
            let envelope = fan_out.envelope(&entry.subscription.id, &entry.delivery);
            if envelope.body.len() > limit {
                return Err(Rejection {
                    reason: RejectReason::TooLarge,
                    detail: format!(
                        "the envelope for subscription {} takes {} bytes, more than the server's max_payload allows ({limit}); \
                         raise max_payload on the server or lower events.max_size",
                        envelope.subscription,
                        envelope.body.len()
                    ),
                });
            }
            envelopes.push(Outgoing {
                subject: self.js.names().outbox(domain, SHARED_LANE, envelope.subscription.as_str()),
                message_id: envelope.id,
                payload: envelope.body,
                headers: Vec::new(),
            });
        }
        Ok((place, envelopes))
    }

    fn decode(&self, message: &Delivered) -> Result<Event, Rejection> {
        let stream = self.js.names().events_stream();
        let headers: Vec<(&str, &str)> = message.header_pairs().collect();
        let time = OffsetDateTime::from_unix_timestamp_nanos(message.stored_at_nanos)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        Publication {
            subject_tail: self.js.names().event_tail(&message.subject).unwrap_or(&message.subject),
            headers: &headers,
            body: &message.payload,
            stream: &stream,
            sequence: message.stream_sequence,
            time,
            max_size: self.settings.max_size,
        }
        .decode()
    }

    async fn reject(&self, message: &Delivered, rejection: &Rejection) {
        let reason = rejection.reason.as_str();
        match self.js.reject(message, reason, &rejection.detail).await {
            Ok(()) => {
                self.metrics.rejected(reason);
                tracing::warn!(
                    subject = message.subject,
                    sequence = message.stream_sequence,
                    reason,
                    detail = rejection.detail,
                    "a publication is rejected and kept"
                );
                message.acker.ack().await;
            }
            Err(error) => {
                tracing::error!(%error, subject = message.subject, "a rejected publication cannot be kept; it waits");
                message.acker.nak(Some(committer::BUSY_DELAY)).await;
            }
        }
    }
}
