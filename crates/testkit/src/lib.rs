//! Servers that `hub demo`, `hub serve --dev`, the bench and the tests start for themselves, and endpoints that they
//! deliver to.
//!
//! Every server is a child process ([`owned_process`]): it inherits no secret and ends with its owner.
//!
//! * [`broker_process`] finds, downloads and runs nats-server. It is always there.
//! * `postgres`, `redis_server`: private servers, each behind a cargo feature (`postgres`, `redis`).

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
