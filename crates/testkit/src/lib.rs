//! Private servers and endpoints of `hub demo`, `hub serve --dev`, the bench and the tests.
//!
//! Every server is a child process ([`owned_process`]): it inherits no secret and ends with its owner. Everything except
//! nats-server needs a cargo feature.
//!
//! | module | feature | purpose |
//! |---|---|---|
//! | [`broker_process`] | | finds, downloads and runs nats-server, alone or as a cluster |
//! | `postgres` | `postgres` | PostgreSQL |
//! | `redis_server` | `redis` | Redis |
//! | `rabbitmq` | `rabbitmq` | RabbitMQ |
//! | `kafka` | `kafka` | Tansu, a Kafka-compatible broker |
//! | `server_process` | `servers` | any other server with a port |
//! | `receiver` | `receiver` | an HTTP endpoint for deliveries, whose answers can be changed while it runs |
//! | `token_endpoint` | `token-endpoint` | an OAuth2 token endpoint |
//! | `proxy` | `proxy` | a TCP proxy that freezes or cuts its connections |
//! | `request_proxy` | `proxy` | a proxy of a nats-server that delays or swallows single messages by their subjects |
//! | `connections` | `connections` | an accept loop with a limit |
//!
//! To run a nats-server for as long as a value lives:
//!
//! ```no_run
//! use hub_testkit::broker_process::{BrokerOptions, BrokerProcess, find_or_fetch};
//!
//! # async fn start() -> Result<(), Box<dyn std::error::Error>> {
//! let binary = find_or_fetch(None, &|line| eprintln!("{line}"))?;
//! let mut broker = BrokerProcess::start(BrokerOptions::new(binary)).await?;
//! println!("{}", broker.url());
//! broker.stop().await?;
//! # Ok(())
//! # }
//! ```

pub mod broker_process;
#[cfg(feature = "connections")]
pub mod connections;
#[cfg(feature = "receiver")]
mod http_endpoint;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod owned_process;
mod ports;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "proxy")]
pub mod proxy;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
#[cfg(feature = "receiver")]
pub mod receiver;
#[cfg(feature = "redis")]
pub mod redis_server;
#[cfg(feature = "proxy")]
pub mod request_proxy;
#[cfg(feature = "servers")]
mod server_error;
#[cfg(feature = "servers")]
pub mod server_process;
#[cfg(feature = "token-endpoint")]
pub mod token_endpoint;

pub use ports::free_port;
#[cfg(feature = "servers")]
pub use server_error::ServerError;

/// A temporary folder of one server, removed when it is dropped.
#[cfg(feature = "servers")]
fn folder(prefix: &str) -> Result<tempfile::TempDir, ServerError> {
    let folder = tempfile::Builder::new().prefix(prefix).tempdir();
    folder.map_err(|source| ServerError::File { path: std::env::temp_dir(), source })
}
