//! Logs once per outage why the client cannot reach the server. The client reports every failed attempt.

use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::ClientError;

use crate::facts::NatsUnreachable;

#[derive(Debug)]
pub(super) struct Outage {
    /// The configured servers.
    servers: String,
    is_logged: AtomicBool,
}

impl Outage {
    pub(super) fn new(servers: &str) -> Self {
        Self { servers: servers.to_owned(), is_logged: AtomicBool::new(false) }
    }

    pub(super) fn attempt_failed(&self, error: &ClientError) {
        if !self.is_logged.swap(true, Ordering::Relaxed) {
            NatsUnreachable { servers: &self.servers, error }.emit();
        }
    }

    /// [`NatsConnected`](crate::facts::NatsConnected) logs the end.
    pub(super) fn ended(&self) {
        self.is_logged.store(false, Ordering::Relaxed);
    }
}
