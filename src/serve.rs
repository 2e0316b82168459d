//! The composition root: creates and connects the parts of a process, and runs them until the process is stopped.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::api::{Api, Monitoring, Resources};
use crate::dev::Dev;
use crate::domain::category::Categories;
use crate::facts::{
    DefinitionApplied, DefinitionCreated, DefinitionNotApplied, EventsLargerThanServer,
    LastAcknowledgementsLost, Metrics, ResolverListening, Serving, Stopping, StoreNotClosed,
};
use crate::health::Readiness;
use crate::management::{BulkJobs, Management};
use crate::nats::definitions::StreamParameters;
use crate::nats::{JetStream, Registry};
use crate::roles::dlt_processor::{DltProcessor, DltProcessorSettings};
use crate::roles::dlt_router::{DltRouter, DltRouterSettings};
use crate::roles::event_processor::{EventProcessor, EventProcessorSettings, Resolver};
use crate::roles::gauges::Gauges;
use crate::roles::outbox_processor::{
    DomainSettings, OutboxProcessor, OutboxProcessorSettings, Subscriptions,
};
use crate::roles::outbox_relay::OutboxRelay;
use crate::roles::subscription_resolver::SubscriptionResolver;
use crate::seal::{Sealer, open_settings};
use crate::settings::Settings;
use crate::signals::Signals;
use crate::subscriptions_grpc::ResolverServer;
use crate::tasks::{Task, TaskError, Tasks};
use hub_outbox::Store;

mod agreement;
mod database;
mod error;
mod relaying;
mod resolving;
mod waiting;
mod watching;

use crate::from_settings::{
    MasterKey, backlog_limits, bytes, circuit_policy, connect_options, http_delivery, less_than_events,
    redrive_quota, retry_policy, shared_settings, stream_parameters,
};
use database::Stores;
pub(crate) use error::ServeError;
use relaying::Relaying;
use waiting::{JETSTREAM, Link, Waiting};

/// A role that a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Role {
    /// Finds the subscriptions of each event, and creates their envelopes
    EventProcessor,
    /// Delivers envelopes, and retries them
    OutboxProcessor,
    /// Makes dead letters of the envelopes that were not delivered
    DltRouter,
    /// Redrives dead letters on schedule, and replays and discards them on request
    DltProcessor,
    /// Serves the HTTP API
    Api,
    /// Sends the rows of the producer outbox to their target brokers; on by default if outbox.database_url is set
    OutboxRelay,
    /// Answers other hubs over gRPC which subscriptions an event has; runs only if it is named
    SubscriptionResolver,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use clap::ValueEnum as _;
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("unknown", clap::builder::PossibleValue::get_name))
    }
}

impl Role {
    /// The roles that need no further setting.
    pub(crate) const ALL: [Role; 5] =
        [Role::EventProcessor, Role::OutboxProcessor, Role::DltRouter, Role::DltProcessor, Role::Api];

    /// The roles of a process with these settings if none is named.
    pub(crate) fn by_default(settings: &Settings) -> BTreeSet<Role> {
        let relay = settings.outbox.database_url.as_ref().map(|_| Role::OutboxRelay);
        Self::ALL.into_iter().chain(relay).collect()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct ServeOptions {
    pub roles: BTreeSet<Role>,
    /// The domains whose outboxes and dead letters this process handles; empty means all.
    pub domains: Vec<String>,
    /// Start and use a private nats-server with persistent data.
    pub dev: bool,
    /// How long the start waits for a server that also starts, or for a cluster to elect its leaders; `None`: without limit.
    pub patience: Option<Duration>,
}

impl ServeOptions {
    /// The names of the roles, separated by commas.
    fn role_names(&self) -> String {
        self.roles.iter().map(Role::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl Default for ServeOptions {
    fn default() -> Self {
        let roles = Role::ALL.into_iter().collect();
        Self { roles, domains: Vec::new(), dev: false, patience: Some(STARTUP_PATIENCE) }
    }
}

/// The default of [`ServeOptions::patience`].
const STARTUP_PATIENCE: Duration = Duration::from_secs(20);

/// A process ends at the latest this long after the grace period of its deliveries.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// Longest wait for the connections to the outbox database to close.
const STORE_CLOSING: Duration = Duration::from_secs(3);

/// A running process: for `hub serve`, the demo, the benchmark, and programs that embed the hub.
pub(crate) struct Hub {
    pub js: JetStream,
    pub readiness: Readiness,
    /// Address of the health and metrics listener.
    pub health: Option<SocketAddr>,
    /// Address of the management API, if this process serves it.
    pub api: Option<SocketAddr>,
    tasks: Tasks,
    /// The database of the producer outbox, if this process uses it.
    store: Option<Store>,
}

impl Hub {
    /// Connects, provisions, and starts the roles. Cancelling `stop` stops them.
    pub(crate) async fn start(
        settings: &Settings,
        options: &ServeOptions,
        stop: &CancellationToken,
    ) -> Result<Self, ServeError> {
        let domains = chosen_domains(settings, options)?;
        let settings = &open_settings(settings, |_| true)?;
        let sealer = Sealer::from_settings(&settings.secrets)?;
        let metrics = Metrics::with_subscriptions(settings.metrics.subscriptions);
        let remote = resolving::remote(settings, &metrics)?;
        let resolver_options = resolving::server_options(settings, options)?;
        let Stores { store, api: outbox } = database::stores(settings, options)?;
        let relaying = relaying::relaying(settings, options, store.as_ref())?;
        let brokers = relaying::brokers(settings)?;
        let stream_parameters = stream_parameters(settings);
        let mut tasks = Tasks::new(stop.clone());
        watching::complete_log(&mut tasks);
        let readiness = Readiness::default();
        let started = readiness.part("start of the roles");
        let jetstream = readiness.cause(JETSTREAM);
        // Health is served before anything waits for a server.
        let link = Link::default();
        watching::observe(&metrics, &link, &readiness, &jetstream);
        let answering = link.clone();
        let monitoring = Monitoring {
            readiness: readiness.clone(),
            metrics: metrics.clone(),
            connected: Arc::new(move || answering.is_answering()),
        };
        let waiting = Waiting::new(&readiness, jetstream.clone(), options.patience);
        let health = Api::bind("health.listen", settings.health.listen, monitoring.clone()).await?;
        let health_address = health.address();
        tasks.graceful("health and metrics", health.run(None, stop.clone()));
        let connection = connect_options(settings, "integration-hub");
        let js = tokio::select! {
            js = waiting.connect(&connection, &link) => js?,
            Some(error) = tasks.failure() => return Err(error.into()),
        };
        if let Some(max_payload) = less_than_events(settings, &js) {
            EventsLargerThanServer { max_size: settings.events.max_size.as_u64(), max_payload }.emit();
        }
        watching::observe_connection(&mut tasks, &js);
        let shared = shared_settings(settings);
        let (done, watch) = tokio::select! {
            entered = agreement::enter(&js, &stream_parameters, shared, &readiness, &waiting) => entered?,
            Some(error) = tasks.failure() => return Err(error.into()),
        };
        tasks.droppable("registry and settings of the hub", watch.run());
        for what in &done.created {
            DefinitionCreated { what }.emit();
        }
        for drift in &done.changed {
            DefinitionApplied { drift }.emit();
        }
        for drift in &done.kept {
            DefinitionNotApplied { drift }.emit();
        }

        let mut api_address = None;
        // Only a process with the relay reads the secret; it does so before any role starts.
        let relaying = match relaying {
            Some(relaying) => Some((relaying, waiting.message_ids(&js, sealer.as_ref()).await?)),
            None => None,
        };
        watching::watch(&mut tasks, &js, &stream_parameters, &metrics, &readiness);

        let (registry, follower) = Registry::new(&js, readiness.clone());
        tasks.droppable("subscription registry", follower.run());
        if options.roles.contains(&Role::Api) {
            let api = Api::bind("api.listen", settings.api.listen, monitoring).await?;
            api_address = api.address();
            let management =
                Management::new(js.clone(), Arc::new(settings.clone()))?.with_index(registry.clone());
            let (bulk_jobs, runner) = BulkJobs::new(management.clone());
            tasks.graceful("bulk jobs", runner.run(stop.clone()));
            let resources = Resources {
                management,
                bulk_jobs,
                registry: registry.clone(),
                outbox,
                anonymous: settings.api.anonymous,
                ready: readiness.part("api"),
            };
            tasks.graceful("api", api.run(Some(resources), stop.clone()));
        }
        let all: Vec<String> = settings.domains.iter().map(|domain| domain.name.clone()).collect();
        let gauges = Gauges::new(
            js.clone(),
            registry.clone(),
            all.clone(),
            metrics.clone(),
            readiness.clone(),
            jetstream,
        );
        tasks.droppable("gauges", gauges.run());
        if options.roles.contains(&Role::EventProcessor) {
            if let Some(remote) = &remote {
                let ready = readiness.part("answer of the subscription resolver");
                tasks.droppable("subscription resolver's readiness", remote.clone().watch(ready));
            }
            let rules = settings.domains.iter().map(|domain| (domain.name.clone(), domain.events.clone()));
            let role = EventProcessor::new(
                js.clone(),
                remote.clone().map_or_else(|| Resolver::Registry(registry.clone()), Resolver::Remote),
                Arc::new(Categories::new(rules.collect())),
                EventProcessorSettings {
                    max_size: bytes(settings.events.max_size),
                    held: settings.events.held,
                    held_bytes: bytes(settings.events.held_bytes),
                    batch: settings.events.batch,
                    outbox_size: bytes(settings.limits.outbox),
                    backlog: backlog_limits(settings),
                    schedule: settings.redrive.schedule.clone(),
                    stream_parameters: stream_parameters.clone(),
                },
                metrics.clone(),
                readiness.part("event-processor"),
            );
            tasks.graceful("event-processor", role.run(stop.clone()));
        }
        if options.roles.contains(&Role::OutboxProcessor) {
            let subscriptions = match &remote {
                None => Subscriptions::Registry(registry.clone()),
                Some(_) => Subscriptions::InEnvelopes,
            };
            let role = OutboxProcessor::new(
                js.clone(),
                subscriptions,
                http_delivery(settings, &js).counting(metrics.clone()),
                brokers,
                Arc::new(MasterKey(sealer)),
                outbox_settings(settings, &domains, stream_parameters.clone()),
                metrics.clone(),
                &readiness,
            );
            tasks.graceful("outbox-processor", role.run(stop.clone()));
        }
        if options.roles.contains(&Role::DltRouter) {
            let router = DltRouterSettings {
                schedule: settings.redrive.schedule.clone(),
                sweep_interval: settings.sweep.interval,
                stream_parameters,
                has_registry: remote.is_none(),
            };
            let role = DltRouter::new(js.clone(), router, metrics.clone(), readiness.part("dlt-router"));
            tasks.graceful("dlt-router", role.run(stop.clone()));
        }
        if options.roles.contains(&Role::DltProcessor) {
            let processor = DltProcessorSettings {
                domains: domains.iter().map(|domain| domain.name.clone()).collect(),
                all_domains: all,
                reconcile_interval: settings.sweep.interval.max(Duration::from_secs(30)),
                quota: redrive_quota(settings),
            };
            let role = DltProcessor::new(js.clone(), processor, metrics.clone(), &readiness);
            tasks.graceful("dlt-processor", role.run(stop.clone()));
        }
        if let Some((Relaying { store, external, settings }, message_ids)) = relaying {
            let role = OutboxRelay::new(
                store,
                js.clone(),
                message_ids,
                external,
                settings,
                metrics.clone(),
                &readiness,
            );
            tasks.graceful("outbox-relay", role.run(stop.clone()));
        }
        if let Some(options) = resolver_options {
            let server = ResolverServer::bind(&options)?;
            ResolverListening { address: server.address() }.emit();
            let ready = readiness.part("subscription-resolver");
            let role = SubscriptionResolver::new(js.clone(), registry, server, metrics.clone(), ready);
            tasks.graceful("subscription-resolver", role.run(stop.clone()));
        }
        started.set(true);
        Ok(Self { js, readiness, health: health_address, api: api_address, tasks, store })
    }

    /// Waits until every task has ended after a stop.
    pub(crate) async fn join(self) -> Result<(), TaskError> {
        let result = self.tasks.join().await;
        if let Some(store) = &self.store
            && tokio::time::timeout(STORE_CLOSING, store.close()).await.is_err()
        {
            StoreNotClosed.emit();
        }
        // Sends the last acknowledgements before the connection closes.
        if let Err(error) = self.js.flush_at_stop().await {
            LastAcknowledgementsLost { error: &error }.emit();
        }
        result
    }
}

/// `hub serve`: runs until SIGTERM, SIGINT or SIGHUP, each of which stops it gracefully. A second signal has no effect:
/// `delivery.grace` bounds the time of a stop.
pub(crate) async fn run(mut settings: Settings, options: ServeOptions) -> Result<(), ServeError> {
    let stop = CancellationToken::new();
    let mut signals = Signals::new().map_err(ServeError::Signals)?;
    let mut dev = None;
    if options.dev {
        dev = Some(tokio::select! {
            started = crate::dev::start(&mut settings) => started?,
            () = signals.next() => return Ok(()),
        });
    }
    let hub = tokio::select! {
        hub = Hub::start(&settings, &options, &stop) => Some(hub),
        () = signals.next() => None,
    };
    let result = match hub {
        Some(Ok(hub)) => {
            Serving {
                nats: &hub.js.server_name(),
                health: hub.health.map(|address| format!("http://{address}/readyz")),
                api: hub.api.map(|address| format!("http://{address}")),
                roles: &options.role_names(),
            }
            .emit();
            if let Some(dev) = &dev {
                crate::queued_writer::stdout().put(dev.invitation(&settings, hub.health, hub.api));
            }
            let signalled = stop.clone();
            let watch = Task::start("the watch of the signals", async move {
                signals.next().await;
                Stopping.emit();
                signalled.cancel();
            });
            let limit = settings.delivery.grace + STOP_MARGIN;
            let result = join(hub, dev.as_mut(), &stop, limit).await;
            drop(watch);
            result
        }
        Some(Err(error)) => Err(error),
        None => Ok(()),
    };
    if let Some(dev) = dev {
        dev.stop().await;
    }
    result
}

/// Waits until the hub ends. If its private server ends first, the hub is stopped. A hub that has not ended at `limit`
/// after its stop is dropped.
async fn join(
    hub: Hub,
    dev: Option<&mut Dev>,
    stop: &CancellationToken,
    limit: Duration,
) -> Result<(), ServeError> {
    let running = hub.tasks.running();
    let dev_ended = async {
        match dev {
            Some(dev) => dev.ended().await,
            None => std::future::pending().await,
        }
    };
    let ended = async {
        let mut joined = std::pin::pin!(hub.join());
        tokio::select! {
            result = &mut joined => Ok(result?),
            ended = dev_ended => {
                stop.cancel();
                joined.await?;
                Err(ended.into())
            }
        }
    };
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(limit).await;
    };
    tokio::select! {
        ended = ended => ended,
        () = overdue => Err(ServeError::NotStopped { limit, running: running.list() }),
    }
}

fn chosen_domains(settings: &Settings, options: &ServeOptions) -> Result<Vec<DomainSettings>, ServeError> {
    let known = |name: &String| settings.domains.iter().any(|domain| domain.name == *name);
    if let Some(name) = options.domains.iter().find(|name| !known(name)) {
        let known: Vec<&str> = settings.domains.iter().map(|domain| domain.name.as_str()).collect();
        return Err(ServeError::UnknownDomain { name: name.clone(), known: known.join(", ") });
    }
    Ok(settings
        .domains
        .iter()
        .filter(|domain| options.domains.is_empty() || options.domains.contains(&domain.name))
        .map(|domain| DomainSettings { name: domain.name.clone(), concurrency: domain.concurrency })
        .collect())
}

fn outbox_settings(
    settings: &Settings,
    domains: &[DomainSettings],
    stream_parameters: StreamParameters,
) -> OutboxProcessorSettings {
    OutboxProcessorSettings {
        domains: domains.to_vec(),
        retry: retry_policy(settings),
        circuit: circuit_policy(settings),
        held: settings.delivery.held,
        held_bytes: bytes(settings.delivery.held_bytes),
        queue_per_subscription: settings.delivery.queue_per_subscription,
        ack_wait: settings.delivery.ack_wait,
        max_age: backlog_limits(settings).age,
        grace: settings.delivery.grace,
        schedule: settings.redrive.schedule.clone(),
        log: settings.delivery.log,
        stream_parameters,
    }
}
