//! Upkeep of the producer outbox: deletes old rows, writes missing rows of external brokers, brings rows forward that a
//! wrong clock has put off for days, abandons rows that never become due, and measures the backlog.
//! Several relays may do it at the same time.

use std::collections::BTreeSet;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::OutboxRelaySettings;
use crate::facts::{
    BacklogNotRead, FarRowsNotSearched, Metrics, MissingRowsNotSearched, MissingRowsWritten,
    NeverDueRowsNotSearched, Row, RowAbandoned, RowsAbandoned, RowsBroughtForward, RowsDeleted,
    RowsNotDeleted,
};
use hub_outbox::{BrokerStatus, NeverDueRow, RowCursor, Store, StoreError};

const GAUGES: Duration = Duration::from_secs(10);
/// Pause between two batches, for other writers.
const BETWEEN_BATCHES: Duration = Duration::from_millis(20);
/// Published events per batch of the search for missing rows.
const RECONCILED_AT_ONCE: usize = 1_000;
/// Most rows that are brought forward in one pass; a wrong clock leaves many.
const MOST_FAR_AHEAD: usize = 10_000;
/// Most rows that never become due in one pass.
const MOST_NEVER_DUE: usize = 100;

pub(super) struct Upkeep {
    pub(super) store: Store,
    pub(super) settings: OutboxRelaySettings,
    /// The target brokers of this process.
    pub(super) brokers: Vec<String>,
    pub(super) metrics: Metrics,
}

impl Upkeep {
    /// Runs until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            _ = async { tokio::join!(self.cleanup(), self.reconcile(), self.gauges()) } => {}
        }
    }

    async fn cleanup(&self) {
        let mut ticks = spread(self.settings.cleanup_interval);
        loop {
            ticks.tick().await;
            match self.clean_up_once().await {
                Ok(deleted) => RowsDeleted { deleted }.emit(),
                Err(error) => RowsNotDeleted { error: &error }.emit(),
            }
        }
    }

    async fn clean_up_once(&self) -> Result<u64, StoreError> {
        let batch = self.settings.cleanup_batch;
        let mut all = 0;
        loop {
            let deleted = self.store.cleanup(self.settings.retention, batch).await?;
            all += deleted;
            if deleted < batch as u64 {
                return Ok(all);
            }
            tokio::time::sleep(BETWEEN_BATCHES).await;
        }
    }

    async fn reconcile(&self) {
        let mut ticks = spread(self.settings.reconcile_interval);
        loop {
            ticks.tick().await;
            match self.reconcile_once().await {
                Ok(missing) => MissingRowsWritten { missing }.emit(),
                Err(error) => MissingRowsNotSearched { error: &error }.emit(),
            }
        }
    }

    async fn reconcile_once(&self) -> Result<u64, StoreError> {
        let (mut all, mut after) = (0, RowCursor::default());
        loop {
            let batch = self.store.reconcile(&after, RECONCILED_AT_ONCE).await?;
            all += batch.changed;
            match batch.next {
                Some(next) => after = next,
                None => return Ok(all),
            }
            tokio::time::sleep(BETWEEN_BATCHES).await;
        }
    }

    async fn gauges(&self) {
        let mut ticks = tokio::time::interval(GAUGES);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut measured: BTreeSet<String> = self.brokers.iter().cloned().collect();
        loop {
            ticks.tick().await;
            match self.store.bring_forward(MOST_FAR_AHEAD).await {
                Ok(rows) => RowsBroughtForward { rows }.emit(),
                Err(error) => FarRowsNotSearched { error: &error }.emit(),
            }
            // Before the backlog is read, in which these rows would stay.
            if let Err(error) = self.abandon_never_due().await {
                NeverDueRowsNotSearched { error: &error }.emit();
            }
            match self.store.backlog().await {
                Ok(backlog) => self.set_gauges(&backlog, &mut measured),
                Err(error) => BacklogNotRead { error: &error }.emit(),
            }
        }
    }

    /// Abandons the open rows that never become due, so that the rows behind them are sent.
    async fn abandon_never_due(&self) -> Result<(), StoreError> {
        for NeverDueRow { position, broker, message_id, event_type, stream, reason } in
            self.store.abandon_never_due(MOST_NEVER_DUE).await?
        {
            let metrics = self.metrics.of_broker(&broker);
            let row =
                Row { position, id: &message_id, event_type: &event_type, stream: &stream, attempts: 0 };
            RowsAbandoned { written: 1 }.emit(&metrics);
            RowAbandoned { row, reason: &reason }.emit(&metrics);
        }
        Ok(())
    }

    /// Sets the gauges, also of brokers that have rows and are not configured here. `measured`: the brokers of earlier
    /// backlogs, since one without rows is missing from the backlog.
    fn set_gauges(&self, backlog: &[BrokerStatus], measured: &mut BTreeSet<String>) {
        let now = OffsetDateTime::now_utc();
        for row in backlog {
            let open = row.pending + row.processing + row.failed;
            let oldest = row.oldest_open_at.map_or(Duration::ZERO, |oldest| {
                // The database's clock may be ahead of this one.
                Duration::try_from(now - oldest).unwrap_or_default()
            });
            self.metrics.of_broker(&row.broker).backlog(open, oldest);
        }
        for broker in measured.iter().filter(|name| backlog.iter().all(|row| row.broker != **name)) {
            self.metrics.of_broker(broker).backlog(0, Duration::ZERO);
        }
        measured.extend(backlog.iter().map(|row| row.broker.clone()));
    }
}

/// Ticks at this interval, the first at a random point of it, so that relays that start together do not work at the
/// same time.
fn spread(interval: Duration) -> tokio::time::Interval {
    let mut ticks = interval_at(Instant::now() + interval.mul_f64(rand::random()), interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
