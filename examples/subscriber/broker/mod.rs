//! One interface for both brokers: read a batch, acknowledge each event.

mod jetstream;
mod redis_stream;

use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use url::Url;

/// Longest wait for new events, and therefore for the stop of an idle process.
const WAIT: Duration = Duration::from_secs(1);
/// Longest wait for a connection or an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where to read; see the command-line options.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub url: Url,
    pub stream: String,
    pub group: String,
    pub consumer: String,
    pub reclaim_after: Duration,
    pub batch: usize,
}

#[derive(Debug, Error)]
pub(crate) enum BrokerError {
    #[error("unknown scheme {0}://; use redis, rediss, nats or tls")]
    Scheme(String),
    #[error("Redis: {0}")]
    Redis(#[from] redis::RedisError),
    #[error("NATS: {0}")]
    Nats(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// One event that was read and has to be acknowledged.
pub(crate) struct Delivery {
    /// Its position in the broker: stream and number.
    pub place: String,
    pub body: Bytes,
    /// How often it has been read, including this time.
    pub attempts: u64,
    receipt: Receipt,
}

enum Receipt {
    Redis(String),
    JetStream(Box<async_nats::jetstream::message::Acker>),
}

pub(crate) enum Broker {
    Redis(Box<redis_stream::RedisStream>),
    JetStream(Box<jetstream::JetStream>),
}

impl Source {
    /// Checks the scheme of the URL.
    pub(crate) fn check(&self) -> Result<(), BrokerError> {
        match self.url.scheme() {
            "redis" | "rediss" | "nats" | "tls" => Ok(()),
            other => Err(BrokerError::Scheme(other.to_owned())),
        }
    }
}

impl Broker {
    /// Connects, and creates the group if it does not exist; a new group reads from the beginning of the stream.
    pub(crate) async fn connect(source: &Source) -> Result<Self, BrokerError> {
        source.check()?;
        Ok(match source.url.scheme() {
            "redis" | "rediss" => Self::Redis(Box::new(redis_stream::RedisStream::connect(source).await?)),
            _ => Self::JetStream(Box::new(jetstream::JetStream::connect(source).await?)),
        })
    }

    /// Returns at most one batch, or nothing if no event arrives in time.
    pub(crate) async fn next(&mut self) -> Result<Vec<Delivery>, BrokerError> {
        match self {
            Self::Redis(redis) => redis.next().await,
            Self::JetStream(jetstream) => jetstream.next().await,
        }
    }

    pub(crate) async fn acknowledge(&mut self, delivery: Delivery) -> Result<(), BrokerError> {
        match (self, delivery.receipt) {
            (Self::Redis(redis), Receipt::Redis(id)) => redis.acknowledge(&id).await,
            (_, Receipt::JetStream(acker)) => jetstream::acknowledge(&acker).await,
            (Self::JetStream(_), Receipt::Redis(_)) => unreachable!("a broker gets its own receipts"),
        }
    }
}
