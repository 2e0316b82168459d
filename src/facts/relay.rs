//! The producer outbox and its target brokers.

use std::time::Duration;

use super::Cause;
use super::limited::{About, limited};
use super::metrics::RelayMetrics;
use crate::domain::producer_outbox::INTERNAL;
use crate::domain::words::rounded;

impl RelayMetrics {
    /// Whose broker it is: `internal` is the hub's own NATS.
    fn scope(&self) -> &'static str {
        if &*self.broker == INTERNAL { "internal" } else { "external" }
    }
}

/// A row, as the log names it.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    pub position: i64,
    pub id: &'a str,
    pub event_type: &'a str,
    pub stream: &'a str,
    pub attempts: u32,
}

/// A relay reads the producer outbox from now on.
pub struct RelayStarted<'a> {
    pub relay: &'a str,
    pub brokers: &'a [String],
}

impl RelayStarted<'_> {
    pub fn emit(self) {
        let Self { relay, brokers } = self;
        tracing::info!(relay, brokers = brokers.join(", "), "relay started");
    }
}

/// An external broker was registered in the database: published events go to it from now on.
pub struct ExternalBrokerRegistered<'a> {
    pub broker: &'a str,
}

impl ExternalBrokerRegistered<'_> {
    pub fn emit(self) {
        tracing::info!(broker = self.broker, "external broker registered in the producer outbox");
    }
}

/// The database has an external broker that this relay's settings do not have.
pub struct ExternalBrokerNotConfigured<'a> {
    pub broker: &'a str,
}

impl ExternalBrokerNotConfigured<'_> {
    pub fn emit(self) {
        tracing::warn!(
            broker = self.broker,
            remedy = "add an [[external_brokers]] entry, or remove it with `hub outbox setup --prune`",
            "external broker of the producer outbox not configured, its rows wait"
        );
    }
}

/// A published event has no external broker to go to.
pub struct NoExternalBroker<'a> {
    pub row: Row<'a>,
}

impl NoExternalBroker<'_> {
    pub fn emit(self) {
        let Row { id, event_type, .. } = self.row;
        tracing::warn!(
            id,
            event_type,
            remedy = "add an [[external_brokers]] entry",
            "public event not sent, no external broker is configured; logged once"
        );
    }
}

/// The target broker acknowledged a row, this long after its event was created.
pub struct RowPublished<'a> {
    pub row: Row<'a>,
    pub lag: Duration,
}

impl RowPublished<'_> {
    pub fn emit(self, metrics: &RelayMetrics) {
        let Self { row: Row { position, id, event_type, stream, attempts }, lag } = self;
        metrics.counters.lag_seconds.observe(lag.as_secs_f64());
        tracing::debug!(
            broker = &*metrics.broker,
            scope = metrics.scope(),
            position,
            id,
            event_type,
            stream,
            attempts,
            lag_ms = lag.as_millis(),
            "row published"
        );
    }
}

/// Published rows were written as such.
pub struct RowsPublished {
    pub written: u64,
}

impl RowsPublished {
    pub fn emit(self, metrics: &RelayMetrics) {
        metrics.counters.published.inc_by(self.written);
    }
}

/// The target broker refused a row.
pub struct RowRefused<'a> {
    pub row: Row<'a>,
    pub error: Cause<'a>,
    pub retry_in: Duration,
}

impl RowRefused<'_> {
    pub fn emit(self, metrics: &RelayMetrics) {
        let Self { row: Row { position, id, event_type, stream, attempts }, error, retry_in } = self;
        tracing::debug!(
            broker = &*metrics.broker,
            scope = metrics.scope(),
            position,
            id,
            event_type,
            stream,
            attempts,
            retry_in = %rounded(retry_in),
            %error,
            "row refused, will retry"
        );
    }
}

/// Refused rows were written as such.
pub struct RowsRefused<'a> {
    pub written: u64,
    pub rows: usize,
    /// Of the first.
    pub position: i64,
    pub error: &'a str,
}

impl RowsRefused<'_> {
    pub fn emit(self, metrics: &RelayMetrics) {
        let Self { written, rows, position, error } = self;
        metrics.counters.failed.inc_by(written);
        limited!(
            WARN "broker refused rows, will retry", About::detail(&metrics.broker);
            broker = &*metrics.broker, scope = metrics.scope(), rows, position, error
        );
    }
}

/// A row was written as abandoned.
pub struct RowAbandoned<'a> {
    pub row: Row<'a>,
    pub reason: Cause<'a>,
}

impl RowAbandoned<'_> {
    pub fn emit(self, metrics: &RelayMetrics) {
        let Self { row: Row { position, id, event_type, stream, .. }, reason } = self;
        limited!(
            WARN "row abandoned", About::detail(&metrics.broker);
            broker = &*metrics.broker, scope = metrics.scope(), position, id, event_type, stream, %reason
        );
    }
}

/// Abandoned rows were written as such.
pub struct RowsAbandoned {
    pub written: u64,
}

impl RowsAbandoned {
    pub fn emit(self, metrics: &RelayMetrics) {
        metrics.counters.abandoned.inc_by(self.written);
    }
}

/// The target broker accepts messages.
pub struct BrokerAvailable {
    /// The log has an outage that this ends.
    pub ends_outage: bool,
}

impl BrokerAvailable {
    pub fn emit(self, metrics: &RelayMetrics) {
        metrics.broker_up(true);
        if self.ends_outage {
            tracing::info!(
                broker = &*metrics.broker,
                scope = metrics.scope(),
                "broker accepts messages again"
            );
        }
    }
}

/// The target broker accepts no messages, whichever it is sent.
pub struct BrokerUnavailable<'a> {
    pub error: Cause<'a>,
    /// The log does not have this outage yet.
    pub is_new: bool,
}

impl BrokerUnavailable<'_> {
    pub fn emit(self, metrics: &RelayMetrics) {
        let Self { error, is_new } = self;
        metrics.broker_up(false);
        if is_new {
            tracing::warn!(
                broker = &*metrics.broker,
                scope = metrics.scope(),
                %error,
                "broker unavailable, its rows wait"
            );
        }
    }
}

/// The database answers after an outage.
pub struct DatabaseRecovered;

impl DatabaseRecovered {
    pub fn emit(self) {
        tracing::info!("producer outbox database answers again");
    }
}

/// A statement of the relay failed, and the one before did not.
pub struct DatabaseFailed<'a> {
    pub error: Cause<'a>,
}

impl DatabaseFailed<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::warn!(%error, "producer outbox database failed, will retry");
    }
}

/// Notifications of new rows are not available; the relay polls.
pub struct NotificationsLost<'a> {
    pub error: Cause<'a>,
}

impl NotificationsLost<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "notifications of new rows not available, polling");
    }
}

/// Rows that were kept long enough were deleted.
pub struct RowsDeleted {
    pub deleted: u64,
}

impl RowsDeleted {
    pub fn emit(self) {
        if self.deleted > 0 {
            tracing::info!(deleted = self.deleted, "old rows of the producer outbox deleted");
        }
    }
}

/// Rows that were due in more than two days are due now.
pub struct RowsBroughtForward {
    pub rows: u64,
}

impl RowsBroughtForward {
    pub fn emit(self) {
        if self.rows > 0 {
            tracing::warn!(
                rows = self.rows,
                remedy = "check the clocks of the database and of each relay",
                "rows of the producer outbox were due in more than two days, and are due now"
            );
        }
    }
}

/// The search for rows that are due in days failed.
pub struct FarRowsNotSearched<'a> {
    pub error: Cause<'a>,
}

impl FarRowsNotSearched<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "search for rows that are due in days failed, will retry");
    }
}

/// The search for rows that never become due failed.
pub struct NeverDueRowsNotSearched<'a> {
    pub error: Cause<'a>,
}

impl NeverDueRowsNotSearched<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "search for rows that never become due failed, will retry");
    }
}

/// Old rows could not be deleted.
pub struct RowsNotDeleted<'a> {
    pub error: Cause<'a>,
}

impl RowsNotDeleted<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::warn!(%error, "old rows of the producer outbox not deleted, will retry");
    }
}

/// Rows of external brokers were missing and were written.
pub struct MissingRowsWritten {
    pub missing: u64,
}

impl MissingRowsWritten {
    pub fn emit(self) {
        if self.missing > 0 {
            tracing::warn!(
                scope = "external",
                missing = self.missing,
                "missing rows of the producer outbox written"
            );
        }
    }
}

/// The search for missing rows failed.
pub struct MissingRowsNotSearched<'a> {
    pub error: Cause<'a>,
}

impl MissingRowsNotSearched<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::warn!(%error, "search for missing rows failed, will retry");
    }
}

/// The backlog could not be read for the metrics.
pub struct BacklogNotRead<'a> {
    pub error: Cause<'a>,
}

impl BacklogNotRead<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "backlog of the producer outbox not read, will retry");
    }
}

/// The relay stopped without an answer of the database: claimed rows are published again when their claims expire.
pub struct ClaimsNotReleased;

impl ClaimsNotReleased {
    pub fn emit(self) {
        tracing::warn!(
            "producer outbox database does not answer, claimed rows wait until their claims expire"
        );
    }
}

/// Connections of the relay did not close in time, and were dropped.
pub struct RelayConnectionsDropped;

impl RelayConnectionsDropped {
    pub fn emit(self) {
        tracing::debug!("connections of the relay not closed in time, dropped");
    }
}
