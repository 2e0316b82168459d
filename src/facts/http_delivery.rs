//! Connections to the endpoints of subscriptions, and to token endpoints.

use super::metrics::{Metrics, TokenResult};

/// More connections were open than allowed.
pub struct IdleConnectionsClosed {
    pub open: usize,
    pub limit: usize,
}

impl IdleConnectionsClosed {
    pub fn emit(self) {
        let Self { open, limit } = self;
        tracing::debug!(open, limit, "too many open connections, closed the idle ones");
    }
}

/// The system has no CA certificates.
pub struct NoCaCertificates;

impl NoCaCertificates {
    pub fn emit(self) {
        tracing::warn!(
            "no CA certificates found, deliveries to https endpoints will fail; install the system's CA \
             certificates, or set SSL_CERT_FILE to a file with them"
        );
    }
}

/// A token was requested.
pub struct TokenRequested {
    pub result: TokenResult,
}

impl TokenRequested {
    pub fn emit(self, metrics: &Metrics) {
        metrics.tokens(self.result).inc();
    }
}
