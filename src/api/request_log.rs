//! Counts and logs API requests; the log names the caller.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State as FromState};
use axum::http::header;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;

use super::State;
use crate::domain::access::Caller;
use crate::facts::RequestAnswered;

/// The caller's name and tenant, which an extractor sets for the log.
#[derive(Clone, Default)]
struct NotedCaller(Arc<OnceLock<(String, Option<String>)>>);

/// The tenant of what a request changed, which a handler adds to its answer for the log.
#[derive(Clone)]
struct ChangedTenant(String);

/// Adds the tenant of what was changed to an answer, for the log.
pub(super) fn of_tenant(tenant: &str, mut answer: Response) -> Response {
    answer.extensions_mut().insert(ChangedTenant(tenant.to_owned()));
    answer
}

pub(super) fn note_caller(parts: &Parts, caller: &Caller) {
    if let Some(noted) = parts.extensions.get::<NotedCaller>() {
        // A second extractor of the same request sets the same.
        let _ = noted.0.set((caller.name.clone(), caller.tenant().map(str::to_owned)));
    }
}

/// Counts and logs every request.
pub(super) async fn record(FromState(state): FromState<State>, mut request: Request, next: Next) -> Response {
    let noted = NotedCaller::default();
    request.extensions_mut().insert(noted.clone());
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let path = request.uri().path().to_owned();
    let begun = Instant::now();
    let response = next.run(request).await;
    let (caller, bound) =
        noted.0.get().map_or(("unknown", None), |(name, tenant)| (name.as_str(), tenant.as_deref()));
    let changed = response.extensions().get::<ChangedTenant>().map(|ChangedTenant(tenant)| tenant.as_str());
    RequestAnswered {
        method: method.as_str(),
        route: &route,
        path: &path,
        status: response.status().as_u16(),
        caller,
        bound,
        tenant: changed.or(bound),
        created: response.headers().get(header::LOCATION).and_then(|path| path.to_str().ok()),
        elapsed: begun.elapsed(),
    }
    .emit(&state.metrics);
    response
}
