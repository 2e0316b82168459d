//! Outbox Processor: reads a domain's envelopes from their lanes, delivers each over HTTP or to an external broker, and
//! settles it: acknowledged, retried later, or dead-lettered.
//!
//! Each domain has a worker with its own pool. One reader per lane acquires a permit before each message, the fair share
//! chooses the next subscription, and each delivery is a task of its own.

mod announcements;
mod brokers;
mod circuit_records;
mod circuits;
mod delivery;
mod disable;
mod domain_pause;
mod expiry;
mod holds;
mod lane_gauges;
mod lane_removal;
mod lanes;
mod log;
mod lost_lanes;
mod members;
mod remembered;
mod settle;
mod tries;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use brokers::Brokers;

use crate::domain::attempt_record::LogChoice;
use crate::domain::circuit::CircuitPolicy;
use crate::domain::outcome::RetryPolicy;
use crate::domain::subscription::SubscriptionRef;
use crate::facts::Metrics;
use crate::health::{Readiness, ReadyFlag};
use crate::http_delivery::{HttpDelivery, OpenSecret};
use crate::nats::definitions::StreamParameters;
use crate::nats::{JetStream, NatsError, Registry};
use crate::sinks::NamedBroker;
use crate::tasks::{TaskError, Tasks};

/// Source of the subscriptions whose envelopes are delivered.
#[derive(Clone)]
pub enum Subscriptions {
    /// The registry, as it is now.
    Registry(Registry),
    /// The copy in each envelope: subscriptions are resolved by another service.
    InEnvelopes,
}

impl Subscriptions {
    /// Whether the registry has no subscription of this name, as far as this process knows.
    fn lacks(&self, name: &SubscriptionRef) -> bool {
        match self {
            Self::Registry(registry) => registry.read().get(name).is_none(),
            Self::InEnvelopes => false,
        }
    }
}

#[derive(Debug, Clone)]
pub struct OutboxProcessorSettings {
    pub domains: Vec<DomainSettings>,
    pub retry: RetryPolicy,
    pub circuit: CircuitPolicy,
    /// The most envelopes in memory, per domain.
    pub held: usize,
    /// The most bytes of the envelopes in memory, per domain, with those of other lanes.
    pub held_bytes: usize,
    /// Most envelopes of one subscription that wait in memory; further ones move to its own lane.
    pub queue_per_subscription: usize,
    pub ack_wait: Duration,
    /// Longest time that an envelope may wait in the outbox; `None` means no limit.
    pub max_age: Option<Duration>,
    /// Longest time for deliveries to finish after a stop.
    pub grace: Duration,
    /// Waits before the redrives of a dead letter.
    pub schedule: Vec<Duration>,
    /// Which attempts the delivery log stores.
    pub log: LogChoice,
    pub stream_parameters: StreamParameters,
}

#[derive(Debug, Clone)]
pub struct DomainSettings {
    pub name: String,
    /// Deliveries at once.
    pub concurrency: usize,
}

pub struct OutboxProcessor {
    js: JetStream,
    subscriptions: Subscriptions,
    http: HttpDelivery,
    brokers: Brokers,
    opener: Arc<dyn OpenSecret>,
    settings: OutboxProcessorSettings,
    metrics: Metrics,
    /// One per domain of the settings, in their order.
    ready: Vec<ReadyFlag>,
}

impl OutboxProcessor {
    /// `brokers`: those that subscriptions may name; the role closes them at its end.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the process that it is joined to")]
    pub fn new(
        js: JetStream,
        subscriptions: Subscriptions,
        http: HttpDelivery,
        brokers: Vec<NamedBroker>,
        opener: Arc<dyn OpenSecret>,
        settings: OutboxProcessorSettings,
        metrics: Metrics,
        readiness: &Readiness,
    ) -> Self {
        let part = |domain: &DomainSettings| readiness.part(format!("outbox-processor {}", domain.name));
        let ready = settings.domains.iter().map(part).collect();
        let brokers = Brokers::new(brokers);
        Self { js, subscriptions, http, brokers, opener, settings, metrics, ready }
    }

    /// Runs a worker per domain until `stop`; each then finishes what is in flight within the
    /// grace period and hands the rest back.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskError> {
        if let Subscriptions::Registry(registry) = &self.subscriptions {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = registry.wait_until_loaded() => {}
            }
        }
        let stop = stop.child_token();
        let mut tasks = Tasks::new(stop.clone());
        // A hold applies in all domains.
        let (js, longest) = (self.js.clone(), self.settings.retry.max_retry_after);
        let (holding, exchange) =
            holds::Holding::new(js, self.subscriptions.clone(), longest, self.metrics.clone());
        if let Subscriptions::Registry(_) = &self.subscriptions {
            tasks.graceful("the exchange of holds", exchange.run(stop.clone()));
        }
        let stream = self.js.names().outbox_stream(self.settings.domains.first().map_or("", |one| &one.name));
        let expiry = Arc::new(expiry::Expiry::new(self.js.clone(), stream, self.settings.max_age));
        let followed = expiry.clone();
        tasks.droppable("the clock of the server", async move { followed.follow_clock().await });
        // The limits of a subscription apply to all domains and processes together.
        let (members, sharing) = members::MemberExchange::new(self.js.clone(), self.settings.domains.len());
        let joined = members.joined();
        tasks.graceful("the exchange of members", members.run(stop.clone()));
        tokio::select! {
            () = stop.cancelled() => {}
            () = joined.cancelled() => {}
        }
        let domains = self.settings.domains.iter().zip(self.ready).zip(sharing);
        for ((domain, ready), sharing) in domains {
            let metrics = self.metrics.of_domain(&domain.name);
            let log = log::DeliveryLog::new(
                self.js.clone(),
                domain.name.clone(),
                self.settings.log,
                metrics.clone(),
            );
            let settle = settle::Settle::new(
                self.js.clone(),
                domain.name.clone(),
                self.settings.retry.clone(),
                self.settings.schedule.clone(),
                metrics.clone(),
                self.settings.ack_wait,
                log.clone(),
            )
            .within(self.settings.stream_parameters.duplicate_window);
            let delivery = delivery::EnvelopeDelivery::new(
                self.js.clone(),
                self.subscriptions.clone(),
                delivery::Transports { http: self.http.clone(), brokers: self.brokers.clone() },
                self.opener.clone(),
                settle,
                expiry.clone(),
            );
            let answers = delivery.remembered().answers.clone();
            let again = format!("the repeated acknowledgements of {}", domain.name);
            tasks.droppable(again, answers.repeat(self.js.clone()));
            let (breaker, news) = circuits::Breaker::new(
                self.js.clone(),
                domain.name.clone(),
                self.settings.stream_parameters.clone(),
                self.settings.circuit.clone(),
                self.subscriptions.clone(),
                metrics.clone(),
            );
            tasks.graceful(
                format!("the circuit notices of {}", domain.name),
                breaker.clone().follow_others(stop.clone()),
            );
            let (gauges, summaries) =
                lane_gauges::LaneGauges::new(self.js.clone(), &domain.name, metrics.clone());
            let stopped = stop.clone();
            tasks.droppable(format!("the gauges of the lanes of {}", domain.name), async move {
                gauges.run().await;
                stopped.cancelled().await;
            });
            let (pause, pause_end) = domain_pause::DomainPause::new(self.js.clone(), domain.name.clone());
            tasks.graceful(format!("the pause of {}", domain.name), pause.follow(stop.clone()));
            let announcements = announcements::Announcements::new(&self.js, sharing.sharer.clone());
            let (remembered, of_worker) = (delivery.remembered().clone(), announcements.clone());
            let (js, name) = (self.js.clone(), domain.name.clone());
            let announcer = announcements::Announcer::new(js, name, remembered, announcements);
            let worker = worker::Worker {
                js: self.js.clone(),
                subscriptions: self.subscriptions.clone(),
                domain: domain.clone(),
                settings: self.settings.clone(),
                delivery,
                holding: holding.clone(),
                breaker,
                summaries,
                pause_end,
                sharing,
                metrics,
                ready,
                announcements: of_worker,
            };
            // The log ends after the worker, so that it writes its last records.
            let (worker_ended, stop) = (CancellationToken::new(), stop.clone());
            let (ended, stopped) = (worker_ended.clone(), stop.clone());
            tasks.graceful(format!("the delivery log of {}", domain.name), async move {
                log.run(ended).await?;
                // If the worker failed, its failure is the first one.
                stopped.cancelled().await;
                Ok::<(), NatsError>(())
            });
            let (ended, stopped) = (worker_ended.clone(), stop.clone());
            tasks.graceful(
                format!("the announcements of delivered envelopes of {}", domain.name),
                async move {
                    announcer.run(ended).await?;
                    stopped.cancelled().await;
                    Ok::<(), NatsError>(())
                },
            );
            tasks.graceful(format!("the worker of {}", domain.name), async move {
                let _ended = worker_ended.drop_guard();
                worker.run(news, stop).await
            });
        }
        let result = tasks.join().await;
        self.brokers.close().await;
        result
    }
}
