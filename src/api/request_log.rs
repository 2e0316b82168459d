//! Counts and logs API requests; the log names the caller.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State as FromState};
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

/// Counts and logs every request.
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
    RequestAnswered {
        method: method.as_str(),
        route: &route,
        path: &path,
        status: response.status().as_u16(),
        caller: name.0.get().map_or("unknown", String::as_str),
        elapsed: begun.elapsed(),
    }
    .emit(&state.metrics);
    response
}
