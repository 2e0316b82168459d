//! `/healthz`, `/readyz` and `/metrics` of every process. They need no token and show no secret.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::exposition::Exposition;
use crate::facts::Metrics;
use crate::health::Readiness;

/// The sources of health and metrics.
#[derive(Clone)]
pub(crate) struct Monitoring {
    pub readiness: Readiness,
    pub metrics: Metrics,
    /// True if the NATS server is connected and answers.
    pub connected: Arc<dyn Fn() -> bool + Send + Sync>,
}

pub(super) fn router(monitoring: Monitoring) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(super::method_not_allowed)
        .with_state(monitoring)
}

async fn ready(State(monitoring): State<Monitoring>) -> (StatusCode, String) {
    let mut missing = monitoring.readiness.missing();
    if !(monitoring.connected)() {
        missing.insert(0, "connection to the NATS server".to_owned());
    }
    let notes: String =
        monitoring.readiness.notes().iter().map(|note| format!("warning: {note}\n")).collect();
    if missing.is_empty() {
        (StatusCode::OK, format!("ready\n{notes}"))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n{notes}", missing.join(", ")))
    }
}

async fn metrics(State(monitoring): State<Monitoring>, headers: HeaderMap) -> impl IntoResponse {
    let accept: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let exposition = Exposition::accepted(&accept.join(","));
    match monitoring.metrics.encode() {
        Ok(text) => {
            (StatusCode::OK, [(header::CONTENT_TYPE, exposition.content_type())], exposition.text(text))
        }
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            format!("metrics: encoding failed: {error}\n"),
        ),
    }
}
