//! The listener of every process: health and metrics. It asks nobody who they are, and tells
//! nothing that is secret.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::health::Readiness;
use crate::metrics::Metrics;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(
        "api.listen: cannot listen on {address}: {source}; choose another address or stop what listens there"
    )]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the health and metrics listener failed: {0}")]
    Serve(std::io::Error),
}

/// What the listener tells from.
#[derive(Clone)]
pub struct Signs {
    pub readiness: Readiness,
    pub metrics: Metrics,
    /// Whether the broker is reachable now.
    pub connected: std::sync::Arc<dyn Fn() -> bool + Send + Sync>,
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

    pub async fn run(self, stop: CancellationToken) -> Result<(), ApiError> {
        let router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self.signs);
        axum::serve(self.listener, router)
            .with_graceful_shutdown(async move { stop.cancelled().await })
            .await
            .map_err(ApiError::Serve)
    }
}

async fn ready(State(signs): State<Signs>) -> (StatusCode, String) {
    let mut missing = signs.readiness.missing();
    if !(signs.connected)() {
        missing.insert(0, "connection to the NATS server".to_owned());
    }
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", ")))
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
