//! Integration Hub: event distribution on NATS JetStream. See `src/ARCHITECTURE.md`.

pub mod domain;
pub mod http_delivery;
pub mod seal;
pub mod settings;
