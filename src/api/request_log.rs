//! Counts and logs API requests; the log names the caller.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State as FromState};
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;

use super::State;
use crate::domain::access::Caller;
use crate::facts::RequestAnswered;

/// The caller's name, which an extractor sets for the log.
#[derive(Clone, Default)]
struct CallerName(Arc<OnceLock<String>>);

pub(super) fn note_caller(parts: &Parts, caller: &Caller) {
    if let Some(name) = parts.extensions.get::<CallerName>() {
        // A second extractor of the same request sets the same name.
        let _ = name.0.set(caller.name.clone());
    }
}

/// Counts and logs every request. The log has the route and the path, but never a query or a body, which may hold secrets.
pub(super) async fn record(FromState(state): FromState<State>, mut request: Request, next: Next) -> Response {
    let name = CallerName::default();
    request.extensions_mut().insert(name.clone());
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
    // An unknown method would be a metric label that the caller chooses.
    let label = match method {
        Method::GET | Method::POST | Method::PUT | Method::PATCH | Method::DELETE => method.as_str(),
        _ => "other",
    };
    RequestAnswered { method: label, route: &route, status, elapsed }.emit(&state.metrics);
    let caller = name.0.get().map_or("unknown", String::as_str);
    let changes = !matches!(method, Method::GET | Method::HEAD) && route != "/v1/events";
    // A 503 is temporary, and there are many while the broker is unavailable or a stream is full.
    if status == 503 {
        tracing::warn!(%method, path, status, caller, ms = elapsed.as_millis(), "API request rejected, temporarily unavailable");
    } else if status >= 500 {
        tracing::error!(%method, path, status, caller, ms = elapsed.as_millis(), "API request failed");
    } else if changes && route != "unknown" {
        tracing::info!(%method, path, status, caller, ms = elapsed.as_millis(), "API request");
    } else {
        tracing::debug!(%method, path, status, caller, ms = elapsed.as_millis(), "API request");
    }
    response
}
