//! `[outbox]`: the database of the producer outbox, and the relay.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::unset_if_empty;
use super::validate::Findings;
use crate::domain::duration;
use crate::domain::producer_outbox::RelayRetryPolicy;

/// Kind of connection pooler between the hub and the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Pooler {
    /// No pooler, or one in session mode.
    None,
    /// A pooler in transaction mode.
    Transaction,
}

impl TryFrom<String> for Pooler {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "none" => Ok(Self::None),
            "transaction" => Ok(Self::Transaction),
            _ => Err(format!(
                "is {text:?}; must be \"none\" (no pooler, or one in session mode) or \"transaction\""
            )),
        }
    }
}

/// `defaults.toml` describes each field.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProducerOutboxSettings {
    #[serde(deserialize_with = "unset_if_empty")]
    pub database_url: Option<SecretString>,
    pub pooler: Pooler,
    pub connections: u32,
    #[serde(with = "duration")]
    pub timeout: Duration,
    pub batch: usize,
    #[serde(with = "duration")]
    pub claim_time: Duration,
    pub max_attempts: u32,
    #[serde(with = "duration::list")]
    pub retry: Vec<Duration>,
    #[serde(with = "duration")]
    pub poll_min: Duration,
    #[serde(with = "duration")]
    pub poll_max: Duration,
    #[serde(with = "duration")]
    pub published_retention: Duration,
    #[serde(with = "duration")]
    pub abandoned_retention: Duration,
    #[serde(with = "duration")]
    pub cleanup_interval: Duration,
    pub cleanup_batch: usize,
    #[serde(with = "duration")]
    pub reconcile_interval: Duration,
}

impl ProducerOutboxSettings {
    /// Number of attempts of a row, and the waits between them.
    pub fn retry_policy(&self) -> RelayRetryPolicy {
        RelayRetryPolicy { max_attempts: self.max_attempts, waits: self.retry.clone() }
    }
}

impl Findings<'_> {
    pub(super) fn outbox(&mut self) {
        let outbox = &self.settings.outbox;
        // Sealed text has another scheme; it is checked when it is opened.
        let url = outbox.database_url.as_ref().map(|url| hub_outbox::check_parameters(url.expose_secret()));
        if let Some(Err(error)) = url {
            self.require(false, "outbox.database_url", error.to_string());
        }
        self.within("outbox.connections", outbox.connections as usize, 1, 1_000);
        self.within("outbox.batch", outbox.batch, 1, 10_000);
        self.within("outbox.max_attempts", outbox.max_attempts as usize, 1, 1_000);
        self.require(!outbox.retry.is_empty(), "outbox.retry", "needs at least one wait, such as [\"5s\"]");
        self.require(
            outbox.claim_time >= Duration::from_secs(1),
            "outbox.claim_time",
            "must be at least 1s; otherwise rows that are in flight are sent again",
        );
        // Rows that become due later are brought forward (`hub_outbox::Store::bring_forward`).
        let longest = Duration::from_secs(24 * 60 * 60);
        self.require(outbox.claim_time <= longest, "outbox.claim_time", "must be at most 1d");
        self.require(
            outbox.retry.iter().all(|wait| *wait <= longest),
            "outbox.retry",
            "each wait must be at most 1d",
        );
        for (key, value) in [
            ("outbox.timeout", outbox.timeout),
            ("outbox.poll_min", outbox.poll_min),
            ("outbox.published_retention", outbox.published_retention),
            ("outbox.abandoned_retention", outbox.abandoned_retention),
            ("outbox.cleanup_interval", outbox.cleanup_interval),
            ("outbox.reconcile_interval", outbox.reconcile_interval),
        ] {
            self.positive(key, value);
        }
        self.require(
            outbox.poll_max >= outbox.poll_min,
            "outbox.poll_max",
            "must be at least outbox.poll_min",
        );
        self.within("outbox.cleanup_batch", outbox.cleanup_batch, 1, 100_000);
    }
}
