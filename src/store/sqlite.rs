//! The outbox on SQLite 3.38+. One writer at a time, and the clock is this machine's.

mod operating;

use std::str::FromStr as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};

use super::error::StoreError;
use super::migrations::{self, Migration};
use super::rows::{
    BrokerSync, ClaimRequest, ClaimedColumns, ClaimedRow, FailedAttempt, GivenUp, SetUp, milliseconds,
};
use crate::domain::outbox::Status;

const MIGRATIONS: [Migration; 1] = [Migration { version: 1, sql: include_str!("sqlite/0001_outbox.sql") }];
/// Takes the write lock at once: a transaction that reads first and then finds another's write is refused.
const BEGIN: &str = "BEGIN IMMEDIATE";
/// How often one claim looks on behind streams that others are working on.
const ROUNDS: usize = 4;
/// How long a row of one lane that waits behind one of the other is not looked at.
const OTHER_LANE: i64 = 250;

#[derive(Debug, Clone)]
pub(super) struct Sqlite {
    pool: SqlitePool,
}

/// Of a claim: position, stream, and the blocker's position, lane, status and due time.
type Candidate = (i64, String, Option<i64>, Option<String>, Option<String>, Option<i64>);

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn array<T: serde::Serialize>(items: &[T]) -> String {
    serde_json::to_string(items).expect("numbers and texts are always JSON")
}

impl Sqlite {
    /// `create`: makes the file where there is none.
    pub(super) fn new(
        url: &str,
        connections: u32,
        acquire: Duration,
        create: bool,
    ) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|_| StoreError::Url { problem: "is not one of SQLite" })?
            .create_if_missing(create)
            // How long a writer waits for another one.
            .busy_timeout(acquire)
            .disable_statement_logging();
        let pool = SqlitePoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(acquire)
            .connect_lazy_with(options);
        Ok(Self { pool })
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    pub(super) async fn check_server(&self) -> Result<(), StoreError> {
        // The version is this program's own; whether the file can be opened is what may fail.
        sqlx::query("SELECT 1").execute(&self.pool).await.map_err(|source| StoreError::Connect { source })?;
        Ok(())
    }

    pub(super) async fn version(&self) -> Result<i64, sqlx::Error> {
        let there: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'hub_outbox_migrations')",
        )
        .fetch_one(&self.pool)
        .await?;
        if !there {
            return Ok(0);
        }
        sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM hub_outbox_migrations")
            .fetch_one(&self.pool)
            .await
    }

    pub(super) fn newest() -> i64 {
        migrations::newest(&MIGRATIONS)
    }

    /// All in one transaction, one at a time: whoever comes second finds it done.
    pub(super) async fn setup(&self) -> Result<SetUp, sqlx::Error> {
        let mut tx = self.pool.begin_with(BEGIN).await?;
        sqlx::query(
            "CREATE TABLE IF NOT EXISTS hub_outbox_migrations (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)",
        )
        .execute(&mut *tx)
        .await?;
        let from: i64 = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM hub_outbox_migrations")
            .fetch_one(&mut *tx)
            .await?;
        for migration in migrations::after(&MIGRATIONS, from) {
            sqlx::raw_sql(migration.sql).execute(&mut *tx).await?;
            sqlx::query("INSERT INTO hub_outbox_migrations (version) VALUES (?1)")
                .bind(migration.version)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(SetUp { from, to: from.max(Self::newest()) })
    }

    pub(super) async fn sync_brokers(
        &self,
        configured: &[String],
        prune: bool,
    ) -> Result<BrokerSync, sqlx::Error> {
        let mut tx = self.pool.begin_with(BEGIN).await?;
        let added = sqlx::query_scalar(
            "INSERT INTO hub_outbox_brokers (name, added_at) SELECT value, ?2 FROM json_each(?1) WHERE true
             ON CONFLICT DO NOTHING RETURNING name",
        )
        .bind(array(configured))
        .bind(now())
        .fetch_all(&mut *tx)
        .await?;
        let others: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM hub_outbox_brokers WHERE name NOT IN (SELECT value FROM json_each(?1)) ORDER BY name",
        )
        .bind(array(configured))
        .fetch_all(&mut *tx)
        .await?;
        if prune {
            sqlx::query("DELETE FROM hub_outbox_brokers WHERE name IN (SELECT value FROM json_each(?1))")
                .bind(array(&others))
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(BrokerSync::of(added, others, prune))
    }

    pub(super) async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Vec<ClaimedRow>, sqlx::Error> {
        let (mut taken, mut blocked) = (Vec::<i64>::new(), Vec::<String>::new());
        let now = now();
        // Looked before the write lock is asked for: an idle relay disturbs no writer.
        let due: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM hub_outbox_messages WHERE broker = ?1 AND lane = ?2 AND due_at <= ?3)",
        )
        .bind(request.broker)
        .bind(request.lane.as_str())
        .bind(now)
        .fetch_one(&self.pool)
        .await?;
        if !due {
            return Ok(Vec::new());
        }
        let mut tx = self.pool.begin_with(BEGIN).await?;
        for _ in 0..ROUNDS {
            let wanted = request.limit.saturating_sub(taken.len());
            let candidates: Vec<Candidate> = sqlx::query_as(include_str!("sqlite/claim.sql"))
                .bind(request.broker)
                .bind(request.lane.as_str())
                .bind(now)
                .bind(wanted as i64)
                .bind(array(&blocked))
                .fetch_all(&mut *tx)
                .await?;
            let (before, full) = (blocked.len(), candidates.len() >= wanted);
            let mut claimed = Vec::new();
            // (position, due)
            let mut deferred: Vec<(i64, i64)> = Vec::new();
            for (position, stream, blocker, lane, status, due) in candidates {
                let Some(blocker) = blocker else {
                    claimed.push(position);
                    continue;
                };
                if blocked.last() != Some(&stream) {
                    blocked.push(stream);
                }
                if position < blocker {
                    claimed.push(position);
                    continue;
                }
                // As on PostgreSQL: what waits behind a row that waits is looked at again with that one.
                let due = due.unwrap_or(now);
                if status.as_deref() != Some(Status::Processing.as_str()) || due <= now {
                    let same_lane = lane.as_deref() == Some(request.lane.as_str());
                    deferred.push((position, if same_lane { due } else { due.max(now + OTHER_LANE) }));
                }
            }
            sqlx::query(
                "UPDATE hub_outbox_messages SET status = 'processing', claimed_by = ?2, due_at = ?3
                 WHERE broker = ?1 AND position IN (SELECT value FROM json_each(?4))",
            )
            .bind(request.broker)
            .bind(request.holder)
            .bind(now.saturating_add(milliseconds(request.claim_time)))
            .bind(array(&claimed))
            .execute(&mut *tx)
            .await?;
            sqlx::query(
                "UPDATE hub_outbox_messages AS m SET due_at = max(m.due_at, d.value ->> 1)
                 FROM json_each(?2) AS d WHERE m.broker = ?1 AND m.position = d.value ->> 0",
            )
            .bind(request.broker)
            .bind(array(&deferred))
            .execute(&mut *tx)
            .await?;
            taken.append(&mut claimed);
            if taken.len() >= request.limit || !full || blocked.len() == before {
                break;
            }
        }
        let rows: Vec<ClaimedColumns> = sqlx::query_as(
            "SELECT position, message_id, event_type, stream, lane, is_public, payload, attempts, created_at * 1000
             FROM hub_outbox_messages WHERE broker = ?1 AND position IN (SELECT value FROM json_each(?2))
             ORDER BY position",
        )
        .bind(request.broker)
        .bind(array(&taken))
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        rows.into_iter().map(ClaimedRow::read).collect()
    }

    pub(super) async fn mark_published(
        &self,
        broker: &str,
        holder: &str,
        positions: &[i64],
    ) -> Result<u64, sqlx::Error> {
        let done = sqlx::query(
            "UPDATE hub_outbox_messages SET status = 'published', due_at = NULL, claimed_by = NULL,
                 settled_at = ?4, last_error = NULL
             WHERE broker = ?1 AND position IN (SELECT value FROM json_each(?3)) AND status = 'processing'
                 AND claimed_by = ?2",
        )
        .bind(broker)
        .bind(holder)
        .bind(array(positions))
        .bind(now())
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    pub(super) async fn fail(
        &self,
        broker: &str,
        holder: &str,
        failed: &[FailedAttempt],
    ) -> Result<u64, sqlx::Error> {
        let rows: Vec<_> = failed
            .iter()
            .map(|row| (row.position, super::storable(&row.error), milliseconds(row.retry_after)))
            .collect();
        let done = sqlx::query(
            "UPDATE hub_outbox_messages AS m
             SET status = 'failed', attempts = m.attempts + 1, claimed_by = NULL, last_error = f.value ->> 1,
                 due_at = ?4 + (f.value ->> 2)
             FROM json_each(?3) AS f
             WHERE m.broker = ?1 AND m.position = f.value ->> 0 AND m.status = 'processing' AND m.claimed_by = ?2",
        )
        .bind(broker)
        .bind(holder)
        .bind(array(&rows))
        .bind(now())
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    pub(super) async fn abandon(
        &self,
        broker: &str,
        holder: &str,
        rows: &[GivenUp],
    ) -> Result<u64, sqlx::Error> {
        let rows: Vec<_> = rows.iter().map(|row| (row.position, super::storable(&row.reason))).collect();
        let done = sqlx::query(
            "UPDATE hub_outbox_messages AS m
             SET status = 'abandoned', attempts = m.attempts + 1, claimed_by = NULL, last_error = f.value ->> 1,
                 due_at = NULL, settled_at = ?4
             FROM json_each(?3) AS f
             WHERE m.broker = ?1 AND m.position = f.value ->> 0 AND m.status = 'processing' AND m.claimed_by = ?2",
        )
        .bind(broker)
        .bind(holder)
        .bind(array(&rows))
        .bind(now())
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    pub(super) async fn release(
        &self,
        broker: &str,
        holder: &str,
        positions: &[i64],
    ) -> Result<u64, sqlx::Error> {
        let done = sqlx::query(
            "UPDATE hub_outbox_messages SET status = 'pending', claimed_by = NULL, due_at = ?4
             WHERE broker = ?1 AND position IN (SELECT value FROM json_each(?3)) AND status = 'processing'
                 AND claimed_by = ?2",
        )
        .bind(broker)
        .bind(holder)
        .bind(array(positions))
        .bind(now())
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    pub(super) async fn extend(
        &self,
        broker: &str,
        holder: &str,
        positions: &[i64],
        claim_time: Duration,
    ) -> Result<u64, sqlx::Error> {
        let done = sqlx::query(
            "UPDATE hub_outbox_messages SET due_at = ?4
             WHERE broker = ?1 AND position IN (SELECT value FROM json_each(?3)) AND status = 'processing'
                 AND claimed_by = ?2",
        )
        .bind(broker)
        .bind(holder)
        .bind(array(positions))
        .bind(now().saturating_add(milliseconds(claim_time)))
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    pub(super) async fn next_due(&self, broker: &str) -> Result<Option<i64>, sqlx::Error> {
        let due: Option<i64> = sqlx::query_scalar(
            "SELECT min(due_at) FROM (
                 SELECT min(due_at) AS due_at FROM hub_outbox_messages
                 WHERE broker = ?1 AND lane = 'live' AND due_at IS NOT NULL
                 UNION ALL
                 SELECT min(due_at) FROM hub_outbox_messages
                 WHERE broker = ?1 AND lane = 'bulk' AND due_at IS NOT NULL)",
        )
        .bind(broker)
        .fetch_one(&self.pool)
        .await?;
        Ok(due.map(|due| (due - now()).max(0)))
    }
}
