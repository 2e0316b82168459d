//! DLT Router: turns the server's advisories into dead letters; a sweep finds the envelopes whose advisory was missed.
//! Invariant: *exhausted = dead-lettered + resolved*.

mod deliveries;
mod route;
mod sweep;
mod unread_lanes;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::dead_letter_room::retry_after;
use crate::domain::envelope::Envelope;
use crate::facts::{AdvisoryUnreadable, EnvelopeTerminated, Metrics, RoutingFailed};
use crate::health::ReadyFlag;
use crate::nats::definitions::StreamParameters;
use crate::nats::{Advisory, AdvisoryKind, Delivered, JetStream, NatsError, Reader};
use crate::panics::{self, Panicked};
use crate::tasks::{TaskError, Tasks};
use deliveries::Deliveries;
use route::{Cause, ReadEnvelope, Router};

/// The durable of this role.
pub const CONSUMER: &str = "dlt-router";
/// Advisories processed at once.
const IN_FLIGHT: usize = 32;
/// Delay before an advisory that caused a panic is delivered again.
const RETRY_DELAY: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct DltRouterSettings {
    /// Waits before the redrives of a dead letter.
    pub schedule: Vec<Duration>,
    pub sweep_interval: Duration,
    pub stream_parameters: StreamParameters,
    /// Whether the subscriptions are in the registry; otherwise a resolver knows them.
    pub has_registry: bool,
}

pub struct DltRouter {
    router: Arc<Router>,
    settings: DltRouterSettings,
    ready: ReadyFlag,
}

impl DltRouter {
    pub fn new(js: JetStream, settings: DltRouterSettings, metrics: Metrics, ready: ReadyFlag) -> Self {
        Self::reading(js, settings, metrics, ready, |body| Envelope::read(body))
    }

    pub(crate) fn reading(
        js: JetStream,
        settings: DltRouterSettings,
        metrics: Metrics,
        ready: ReadyFlag,
        read: ReadEnvelope,
    ) -> Self {
        let (domains, schedule) = (settings.stream_parameters.domains.clone(), settings.schedule.clone());
        let max_deliver = settings.stream_parameters.max_deliver;
        let deliveries = Deliveries::new(js.clone(), &domains, settings.sweep_interval);
        let router = Router::new(js, domains, schedule, max_deliver, deliveries, metrics, read);
        Self { router: Arc::new(router), settings, ready }
    }

    /// Runs until `stop`; then finishes the advisories in progress.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskError> {
        let stop = stop.child_token();
        let mut tasks = Tasks::new(stop.clone());
        for domain in self.settings.stream_parameters.domains.clone() {
            let (router, name) = (self.router.clone(), format!("the known deliveries of {domain}"));
            tasks.droppable(name, async move { router.deliveries().follow(&domain).await });
        }
        // The sweep does not depend on the consumer of the advisories, which may be missing.
        tasks.droppable("the sweep", sweep::Sweep::new(self.router.clone(), &self.settings).run());
        tasks.graceful("the reader of the advisories", async move { self.advisories(&stop).await });
        tasks.join().await
    }

    async fn advisories(&self, stop: &CancellationToken) -> Result<(), NatsError> {
        let js = self.router.js();
        let stream = js.names().advisories_stream();
        let ready = Some(self.ready.clone());
        let Some(reader) = Reader::bind(js, &stream, CONSUMER, IN_FLIGHT, ready, stop).await? else {
            return Ok(());
        };
        let work = |message: Box<Delivered>| {
            let router = self.router.clone();
            async move {
                if let Err(panicked) = panics::catch_async(handle(&router, &message)).await {
                    set_aside(&router, &message, &panicked).await;
                }
            }
        };
        reader.for_each("the work on an advisory".to_owned(), stop, work).await
    }
}

/// Hands an advisory that caused a panic back. After [`panics::TRIES`] deliveries, dead-letters the envelope unread.
async fn set_aside(router: &Router, message: &Delivered, panicked: &Panicked) {
    let stream = router.js().names().advisories_stream();
    if !panicked.on_input(&stream, message.stream_sequence, message.deliveries) {
        return message.acker.nak(Some(RETRY_DELAY)).await;
    }
    let detail = panicked.to_string();
    let routed = async {
        match Advisory::read(&message.payload) {
            Some(Advisory { stream, stream_sequence, kind: AdvisoryKind::MaxDeliveries, .. }) => {
                router.route(&stream, stream_sequence, Cause::Panicked { detail: &detail }).await.is_ok()
            }
            _ => true,
        }
    };
    match panics::catch_async(routed).await {
        Ok(false) => message.acker.nak(Some(RETRY_DELAY)).await,
        // The sweep finds the envelope of an unreadable advisory.
        Ok(true) | Err(_) => message.acker.ack().await,
    }
}

async fn handle(router: &Router, message: &Delivered) {
    let Some(advisory) = Advisory::read(&message.payload) else {
        AdvisoryUnreadable { subject: &message.subject }.emit();
        message.acker.ack().await;
        return;
    };
    let cause = match advisory.kind {
        AdvisoryKind::MaxDeliveries => Cause::Exhausted { deliveries: advisory.deliveries },
        // The worker wrote the dead letter before it terminated the message.
        AdvisoryKind::Terminated { ref reason } => {
            EnvelopeTerminated {
                stream: &advisory.stream,
                sequence: advisory.stream_sequence,
                reason: reason.as_deref(),
            }
            .emit();
            message.acker.ack().await;
            return;
        }
    };
    match router.route(&advisory.stream, advisory.stream_sequence, cause).await {
        Ok(_) => message.acker.ack().await,
        Err(error) => {
            let retry_in = retry_after(message.deliveries);
            let (stream, sequence) = (&advisory.stream, advisory.stream_sequence);
            if !router.js().letters_are_reported(stream) {
                RoutingFailed { error: &error, stream, sequence, retry_in }.emit();
            }
            message.acker.nak(Some(retry_in)).await;
        }
    }
}
