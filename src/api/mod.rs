//! The HTTP listeners of a process. Every process serves health and metrics on a listener of its own; role `api` serves the
//! management API, and health and metrics too. The API exposes [`crate::management`] over HTTP and does not use the broker
//! directly.

mod access;
mod admission;
mod body;
mod bulk_jobs;
mod connections;
mod dead_letters;
mod domains;
mod events;
mod exposition;
mod json;
mod limits;
mod listener;
mod monitoring;
mod openapi;
mod origin;
mod outbox;
mod precondition;
mod problem;
mod query;
mod query_rules;
mod request_log;
mod subscriptions;
mod unread_requests;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

use access::Access;
use admission::Admission;
use connections::ConnectionLimits;
use limits::{BroadReads, RateLimiter};
pub(crate) use monitoring::Monitoring;
use problem::{Problem, ProblemKind};
use query_rules::QueryRules;

use crate::facts::Metrics;
use crate::health::ReadyFlag;
use crate::management::producer_outbox::ProducerOutboxAdmin;
use crate::management::{BulkJobs, Management, Registry};

/// Connection limit of health and metrics. At the limit, an idle connection is closed, so that a probe is always answered.
const HEALTH_LIMITS: ConnectionLimits = ConnectionLimits { total: 256, per_peer: 0 };

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(
        "{setting}: cannot listen on {address}: {source}; set another address, such as {}={}, or stop the process that uses it",
        variable(.setting), next_to(.address)
    )]
    Listen { setting: &'static str, address: SocketAddr, source: std::io::Error },
}

/// The dependencies of the management API.
#[derive(Clone)]
pub(crate) struct Resources {
    pub management: Management,
    /// The subscription index of this process.
    pub registry: Registry,
    /// Starts bulk jobs; their runner is a task of the same process.
    pub bulk_jobs: BulkJobs,
    /// The producer outbox; `None` if no database is configured.
    pub outbox: Option<ProducerOutboxAdmin>,
    /// Accept requests without a token (`api.anonymous`).
    pub anonymous: bool,
    /// Set when the index is loaded.
    pub ready: ReadyFlag,
}

/// The state of all handlers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct State {
    management: Management,
    registry: Registry,
    bulk_jobs: BulkJobs,
    outbox: Option<ProducerOutboxAdmin>,
    access: Access,
    metrics: Metrics,
    admission: Admission,
    /// Limits the events that each tenant publishes.
    published: RateLimiter,
    /// Limits the expensive reads of each tenant.
    broad_reads: BroadReads,
    event_limits: events::EventLimits,
    query_rules: Arc<QueryRules>,
}

/// `HUB__API__LISTEN` for `api.listen`.
fn variable(setting: &str) -> String {
    format!("HUB__{}", setting.to_uppercase().replace('.', "__"))
}

/// Returns the same address with the next port.
fn next_to(address: &SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port().checked_add(1).unwrap_or(8091))
}

/// One of the two listeners.
pub(crate) struct Api {
    listener: TcpListener,
    monitoring: Monitoring,
}

impl Api {
    /// Listens on `address`, the value of `setting`.
    pub(crate) async fn bind(
        setting: &'static str,
        address: SocketAddr,
        monitoring: Monitoring,
    ) -> Result<Self, ApiError> {
        let listener = TcpListener::bind(address).await.map_err(|source| ApiError::Listen {
            setting,
            address,
            source,
        })?;
        Ok(Self { listener, monitoring })
    }

    /// The local address, which is useful with port 0.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until `stop` is cancelled.
    ///
    /// * `resources`: enable the management API; without them, only health and metrics are served
    pub(crate) async fn run(
        self,
        resources: Option<Resources>,
        stop: CancellationToken,
    ) -> Result<(), ApiError> {
        let router = monitoring::router(self.monitoring.clone());
        let Some(resources) = resources else {
            listener::serve(self.listener, router.fallback(not_found), HEALTH_LIMITS, stop).await;
            return Ok(());
        };
        let (registry, ready) = (resources.registry.clone(), resources.ready.clone());
        let loaded = async {
            registry.wait_until_loaded().await;
            ready.set(true);
            std::future::pending::<()>().await;
        };
        let api = &resources.management.settings().api;
        let limits = ConnectionLimits { total: api.connections, per_peer: api.connections_per_peer };
        let router = router.merge(management(resources, self.monitoring.metrics));
        tokio::select! {
            () = listener::serve(self.listener, router, limits, stop) => {}
            () = loaded => {}
        }
        Ok(())
    }
}

/// Every route with its description.
fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::with_openapi(openapi::base())
        .merge(subscriptions::routes())
        .merge(events::routes())
        .merge(domains::routes())
        .merge(dead_letters::routes())
        .merge(bulk_jobs::routes())
        .merge(outbox::routes())
}

fn management(resources: Resources, metrics: Metrics) -> Router {
    let Resources { management, registry, bulk_jobs, outbox, anonymous, ready: _ } = resources;
    let (router, description) = routes().split_for_parts();
    let state = State {
        access: Access::new(management.clone(), anonymous),
        admission: Admission::new(management.settings(), anonymous),
        event_limits: events::EventLimits::new(management.settings()),
        published: RateLimiter::new(),
        broad_reads: BroadReads::default(),
        management,
        registry,
        bulk_jobs,
        outbox,
        metrics,
        query_rules: Arc::new(QueryRules::of(&description)),
    };
    let description = openapi::document(description);
    router
        .route("/openapi.json", get(move || async move { openapi::answer(&description) }))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        // Admission reads bodies, with its own limits.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(state.clone(), admission::admit))
        .layer(middleware::from_fn_with_state(state.clone(), request_log::record))
        .with_state(state)
}

async fn not_found() -> Problem {
    Problem::header(ProblemKind::NotFound, "path", "is unknown; see /openapi.json of the API for all paths")
}

async fn method_not_allowed() -> Problem {
    Problem::header(
        ProblemKind::MethodNotAllowed,
        "method",
        "is not supported by this path; see the header allow, or /openapi.json of the API",
    )
}
