//! A bare HTTP client. Its figures are the upper limit that deliveries are compared with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Client;
use reqwest::header::CONTENT_TYPE;
use tokio::task::JoinSet;
use url::Url;

const WEBHOOK_ID: &str = "webhook-id";
/// Time limit of one request, from connecting to the last byte of the answer.
const LIMIT: Duration = Duration::from_secs(15);

/// A request of the bare client that was not answered with 2xx.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BareError {
    #[error("cannot make the HTTP client: {0}")]
    Client(#[source] reqwest::Error),
    #[error("a bare request failed: {0}")]
    Request(#[source] reqwest::Error),
    #[error("a bare request got status {0}")]
    Status(u16),
    #[error("a task of the bare loop ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// `reqwest` with its defaults. A clone shares the connections.
#[derive(Debug, Clone)]
pub(crate) struct BareClient {
    client: Client,
}

impl BareClient {
    pub(crate) fn new() -> Result<Self, BareError> {
        // Fails only if a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().no_proxy().tcp_nodelay(true).timeout(LIMIT).build();
        Ok(Self { client: client.map_err(BareError::Client)? })
    }

    /// Posts `body` with the id, and reads the answer.
    pub(crate) async fn post(&self, url: &Url, id: &str, body: Bytes) -> Result<(), BareError> {
        let request = self
            .client
            .post(url.clone())
            .header(CONTENT_TYPE, "application/cloudevents+json")
            .header(WEBHOOK_ID, id)
            .body(body);
        let answer = request.send().await.map_err(BareError::Request)?;
        if !answer.status().is_success() {
            return Err(BareError::Status(answer.status().as_u16()));
        }
        answer.bytes().await.map(drop).map_err(BareError::Request)
    }

    /// Posts `requests` times with `in_flight` requests at once, each with its own id (`id_of` its number). Returns the time
    /// it took.
    pub(crate) async fn drive(
        &self,
        url: &Url,
        body: &Bytes,
        in_flight: usize,
        requests: u64,
        id_of: fn(u64) -> String,
    ) -> Result<Duration, BareError> {
        let next = Arc::new(AtomicU64::new(0));
        let started = Instant::now();
        let mut loops = JoinSet::new();
        for _ in 0..in_flight {
            let (client, url, body, next) = (self.clone(), url.clone(), body.clone(), next.clone());
            loops.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= requests {
                        return Ok::<(), BareError>(());
                    }
                    client.post(&url, &id_of(number), body.clone()).await?;
                }
            });
        }
        while let Some(ended) = loops.join_next().await {
            ended??;
        }
        Ok(started.elapsed())
    }

    /// Status and body of a `GET`.
    pub(crate) async fn get(&self, url: &str) -> Result<(u16, String), BareError> {
        let answer = self.client.get(url).send().await.map_err(BareError::Request)?;
        let status = answer.status().as_u16();
        Ok((status, answer.text().await.map_err(BareError::Request)?))
    }
}
