//! The HTTP listener of a process: health and metrics always, the management API where role `api`
//! runs. The API is a face of [`crate::management`]; it knows HTTP and nothing of the broker.

mod access;
mod body;
mod dead_letters;
mod domains;
mod events;
mod journal;
mod listener;
mod openapi;
mod orders;
mod outbox;
mod precondition;
mod problem;
mod query;
mod signs;
mod subscriptions;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State as FromState};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

use access::Access;
use problem::{Kind, Problem};
pub use signs::Signs;

use crate::health::ReadyFlag;
use crate::management::outbox::OutboxDesk;
use crate::management::{Management, OrderDesk, Registry};
use crate::metrics::Metrics;

/// Requests in hand at once; one more is told to come again.
const MOST_REQUESTS: usize = 256;
/// Longest time for one request, its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest body of all but an event.
const BODY_LIMIT: usize = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(
        "api.listen: cannot listen on {address}: {source}; choose another address or stop what listens there"
    )]
    Listen { address: SocketAddr, source: std::io::Error },
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
    requests: Arc<Semaphore>,
    bounds: events::Bounds,
}

pub struct Api {
    listener: TcpListener,
    signs: Signs,
}

impl Api {
    pub async fn bind(address: SocketAddr, signs: Signs) -> Result<Self, ApiError> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| ApiError::Listen { address, source })?;
        Ok(Self { listener, signs })
    }

    /// The address taken; of use with port 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until told to stop. `resources`: of the management API, where this process has it.
    pub async fn run(self, resources: Option<Resources>, stop: CancellationToken) -> Result<(), ApiError> {
        let router = signs::router(self.signs.clone());
        let Some(resources) = resources else {
            listener::serve(self.listener, router, stop).await;
            return Ok(());
        };
        let (registry, ready) = (resources.registry.clone(), resources.ready.clone());
        let loaded = async {
            registry.wait_until_loaded().await;
            ready.set(true);
            std::future::pending::<()>().await;
        };
        let router = router.merge(management(resources, self.signs.metrics));
        tokio::select! {
            () = listener::serve(self.listener, router, stop) => {}
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
        bounds: events::Bounds::new(management.settings()),
        management,
        registry,
        orders,
        outbox,
        metrics,
        requests: Arc::new(Semaphore::new(MOST_REQUESTS)),
    };
    let (router, description) = routes().split_for_parts();
    let description = openapi::document(description);
    router
        .route("/openapi.json", get(move || async move { openapi::answer(&description) }))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(state.clone(), bounded))
        .layer(middleware::from_fn_with_state(state.clone(), journal::record))
        .with_state(state)
}

/// So many requests at once, and each for so long.
async fn bounded(FromState(state): FromState<State>, request: Request, next: Next) -> Response {
    let Ok(_permit) = state.requests.clone().try_acquire_owned() else {
        return Problem::later(1, "the API has as many requests in hand as it takes; try again")
            .into_response();
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            Problem::later(5, format!("not done within {} s", REQUEST_TIMEOUT.as_secs())).into_response()
        }
    }
}

async fn not_found() -> Problem {
    Problem::new(Kind::NotFound, "there is nothing at this path; /openapi.json says what there is")
}

async fn method_not_allowed() -> Problem {
    Problem::new(Kind::MethodNotAllowed, "this path takes other methods; /openapi.json says which")
}
