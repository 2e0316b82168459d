//! What is asked of the API: counted, and changes are logged with who made them.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State as FromState};
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;

use super::State;
use crate::domain::access::Caller;

/// Where an extractor leaves the name of the caller for the log.
#[derive(Clone, Default)]
struct Who(Arc<OnceLock<String>>);

pub(super) fn note_caller(parts: &Parts, caller: &Caller) {
    if let Some(who) = parts.extensions.get::<Who>() {
        // A second extractor of the same request names the same caller.
        let _ = who.0.set(caller.name.clone());
    }
}

/// Around every request. The log has the route and the path, never a query or a body: these may hold
/// what is secret.
pub(super) async fn record(FromState(state): FromState<State>, mut request: Request, next: Next) -> Response {
    let who = Who::default();
    request.extensions_mut().insert(who.clone());
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let path = request.uri().path().to_owned();
    let begun = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    let elapsed = begun.elapsed();
    // A method that is none of the usual would be a label of a stranger's choice.
    let label = match method {
        Method::GET | Method::POST | Method::PUT | Method::PATCH | Method::DELETE => method.as_str(),
        _ => "other",
    };
    state.metrics.api_request(label, &route, status, elapsed);
    let caller = who.0.get().map_or("nobody", String::as_str);
    let changes = !matches!(method, Method::GET | Method::HEAD) && route != "/v1/events";
    // A 503 passes, and comes in numbers while the broker is away or a stream is full.
    if status == 503 {
        tracing::warn!(%method, path, status, caller, ms = elapsed.as_millis(), "asked of the API, not now");
    } else if status >= 500 {
        tracing::error!(%method, path, status, caller, ms = elapsed.as_millis(), "asked of the API, not done");
    } else if changes && route != "unknown" {
        tracing::info!(%method, path, status, caller, ms = elapsed.as_millis(), "asked of the API");
    } else {
        tracing::debug!(%method, path, status, caller, ms = elapsed.as_millis(), "asked of the API");
    }
    response
}
