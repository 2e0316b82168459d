//! Integration Hub: event distribution on NATS JetStream. See `src/ARCHITECTURE.md`.

pub mod broker_process;
pub mod domain;
pub mod settings;
