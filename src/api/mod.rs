//! The HTTP listeners of a process: health and metrics always, on a listener of their own; the management API
//! where role `api` runs, which answers health and metrics too. The API is a face of [`crate::management`]; it
//! knows HTTP and nothing of the broker.

mod access;
mod admission;
mod body;
mod connections;
mod dead_letters;
mod domains;
mod events;
mod journal;
mod json;
mod listener;
mod openapi;
mod orders;
mod origin;
mod outbox;
mod precondition;
mod problem;
mod query;
mod shares;
mod signs;
mod subscriptions;

use std::net::SocketAddr;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

use access::Access;
use admission::Admission;
use connections::Caps;
use problem::{Kind, Problem};
use shares::{Rates, Turns};
pub use signs::Signs;

use crate::health::ReadyFlag;
use crate::management::outbox::OutboxDesk;
use crate::management::{Management, OrderDesk, Registry};
use crate::metrics::Metrics;

/// Connections to health and metrics. A prober's is answered whatever the others do: the ones that wait go.
const HEALTH_CAPS: Caps = Caps { total: 256, per_peer: 0 };

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(
        "{setting}: cannot listen on {address}: {source}; set another address, such as {}={}, or stop what listens there",
        variable(.setting), next_to(.address)
    )]
    Listen { setting: &'static str, address: SocketAddr, source: std::io::Error },
}

/// What the management API works with.
#[derive(Clone)]
pub struct Resources {
    pub management: Management,
    /// The index that this process follows.
    pub registry: Registry,
    /// Where bulk orders are placed; its runner is a task of the same process.
    pub orders: OrderDesk,
    /// None where the settings name no database.
    pub outbox: Option<OutboxDesk>,
    /// Ask nobody who they are (`api.anonymous`).
    pub anonymous: bool,
    /// Set when the index was read once.
    pub ready: ReadyFlag,
}

/// What every handler has. Cheap to clone.
#[derive(Clone)]
pub(crate) struct State {
    management: Management,
    registry: Registry,
    orders: OrderDesk,
    outbox: Option<OutboxDesk>,
    access: Access,
    metrics: Metrics,
    admission: Admission,
    /// Events that tenants have published.
    published: Rates,
    /// Of reads that may touch much.
    turns: Turns,
    bounds: events::Bounds,
}

/// `HUB__API__LISTEN` for `api.listen`.
fn variable(setting: &str) -> String {
    format!("HUB__{}", setting.to_uppercase().replace('.', "__"))
}

/// The same address with the next port.
fn next_to(address: &SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port().checked_add(1).unwrap_or(8091))
}

/// One of the two listeners.
pub struct Api {
    listener: TcpListener,
    signs: Signs,
}

impl Api {
    /// Takes the address that `setting` names.
    pub async fn bind(setting: &'static str, address: SocketAddr, signs: Signs) -> Result<Self, ApiError> {
        let listener = TcpListener::bind(address).await.map_err(|source| ApiError::Listen {
            setting,
            address,
            source,
        })?;
        Ok(Self { listener, signs })
    }

    /// The address taken; of use with port 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until told to stop. `resources`: of the management API; without them, health and metrics alone.
    pub async fn run(self, resources: Option<Resources>, stop: CancellationToken) -> Result<(), ApiError> {
        let router = signs::router(self.signs.clone());
        let Some(resources) = resources else {
            listener::serve(self.listener, router, HEALTH_CAPS, stop).await;
            return Ok(());
        };
        let (registry, ready) = (resources.registry.clone(), resources.ready.clone());
        let loaded = async {
            registry.wait_until_loaded().await;
            ready.set(true);
            std::future::pending::<()>().await;
        };
        let api = &resources.management.settings().api;
        let caps = Caps { total: api.connections, per_peer: api.connections_per_peer };
        let router = router.merge(management(resources, self.signs.metrics));
        tokio::select! {
            () = listener::serve(self.listener, router, caps, stop) => {}
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
        .merge(orders::routes())
        .merge(outbox::routes())
}

fn management(resources: Resources, metrics: Metrics) -> Router {
    let Resources { management, registry, orders, outbox, anonymous, ready: _ } = resources;
    let state = State {
        access: Access::new(management.clone(), anonymous),
        admission: Admission::new(management.settings(), anonymous),
        bounds: events::Bounds::new(management.settings()),
        published: Rates::new(),
        turns: Turns::default(),
        management,
        registry,
        orders,
        outbox,
        metrics,
    };
    let (router, description) = routes().split_for_parts();
    let description = openapi::document(description);
    router
        .route("/openapi.json", get(move || async move { openapi::answer(&description) }))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        // Bodies are read, within their bounds, where requests are admitted.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(state.clone(), admission::admit))
        .layer(middleware::from_fn_with_state(state.clone(), journal::record))
        .with_state(state)
}

async fn not_found() -> Problem {
    Problem::new(Kind::NotFound, "there is nothing at this path; /openapi.json says what there is")
}

async fn method_not_allowed() -> Problem {
    Problem::new(Kind::MethodNotAllowed, "this path takes other methods; /openapi.json says which")
}
