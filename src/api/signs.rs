//! Health and metrics, of every process. They ask nobody who they are, and tell nothing secret.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::health::Readiness;
use crate::metrics::Metrics;

/// What health and metrics are told from.
#[derive(Clone)]
pub struct Signs {
    pub readiness: Readiness,
    pub metrics: Metrics,
    /// Whether the broker is reachable now.
    pub connected: Arc<dyn Fn() -> bool + Send + Sync>,
}

pub(super) fn router(signs: Signs) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(signs)
}

async fn ready(State(signs): State<Signs>) -> (StatusCode, String) {
    let mut missing = signs.readiness.missing();
    if !(signs.connected)() {
        missing.insert(0, "connection to the NATS server".to_owned());
    }
    let notes: String = signs.readiness.notes().iter().map(|note| format!("warning: {note}\n")).collect();
    if missing.is_empty() {
        (StatusCode::OK, format!("ready\n{notes}"))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n{notes}", missing.join(", ")))
    }
}

async fn metrics(State(signs): State<Signs>) -> impl IntoResponse {
    match signs.metrics.encode() {
        Ok(text) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        ),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            format!("the metrics cannot be written: {error}\n"),
        ),
    }
}
