//! Servers that `hub demo`, `hub serve --dev`, the bench and the tests start for themselves.
//!
//! Every server is a child process ([`owned_process`]): it inherits no secret and ends with its owner.
//! [`broker_process`] finds, downloads and runs nats-server.

pub mod broker_process;
pub mod owned_process;
