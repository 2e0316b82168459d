//! The outbox on SQLite 3.38+. There is one writer at a time, and times come from the local clock.

mod operating;

use std::str::FromStr as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePool, SqlitePoolOptions};

use crate::error::StoreError;
use crate::migrations::{self, Migration};
use crate::rows::{
    BrokerSync, ClaimRequest, ClaimedColumns, ClaimedRow, FURTHEST_DUE_DAYS, FailedAttempt, GivenUp, SetUp,
    milliseconds,
};
use crate::unreadable::Text;
use hub_domain::producer_outbox::Status;

const MIGRATIONS: [Migration; 2] = [
    Migration { version: 1, sql: include_str!("sqlite/0001_outbox.sql") },
    Migration { version: 2, sql: include_str!("sqlite/0002_refusals.sql") },
];
/// Takes the write lock at the start: SQLite refuses a transaction that reads first and writes after another's write.
const BEGIN: &str = "BEGIN IMMEDIATE";
/// Maximum number of queries per claim; each one skips the streams that were found blocked.
const ROUNDS: usize = 4;
/// Milliseconds for which a row is skipped if it waits for a row of the other priority.
const OTHER_PRIORITY: i64 = 250;

#[derive(Debug, Clone)]
pub(super) struct Sqlite {
    pool: SqlitePool,
}

/// A row of `claim.sql`: stream, position, and the blocking row's position, priority, status and due time.
type Due = (Text, i64, Option<i64>, Option<String>, Option<String>, Option<i64>);

/// The last and the first millisecond of the years 1 to 9999.
const LAST_TIME: i64 = 253_402_300_799_999;
const FIRST_TIME: i64 = -62_135_596_800_000;

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Rows that are due later are brought forward.
fn furthest_due(now: i64) -> i64 {
    now.saturating_add(FURTHEST_DUE_DAYS * 24 * 60 * 60 * 1000)
}

fn array<T: serde::Serialize>(items: &[T]) -> String {
    serde_json::to_string(items).expect("numbers and texts are always JSON")
}

impl Sqlite {
    /// `create`: create the file if it does not exist.
    pub(super) fn new(
        url: &str,
        connections: u32,
        acquire: Duration,
        create: bool,
    ) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|_| StoreError::Url { problem: "invalid SQLite URL" })?
            .create_if_missing(create)
            // Time for which a writer waits for another writer.
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
        // SQLite is linked into this program, so only opening the file can fail.
        sqlx::query("SELECT 1")
            .execute(&self.pool)
            .await
            .map_err(|source| StoreError::Connect { address: None, source })?;
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

    /// Runs in one transaction under the write lock; a concurrent second setup finds nothing to do.
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

    pub(super) async fn limit_events(&self, bytes: i64) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO hub_outbox_limits (name, value) VALUES ('event_bytes', ?1)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE value <> excluded.value",
        )
        .bind(bytes)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(super) async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Vec<ClaimedRow>, sqlx::Error> {
        let (mut taken, mut blocked) = (Vec::<i64>::new(), request.passed_over.to_vec());
        let now = now();
        // Checked before the write lock is taken, so that an idle relay does not delay writers.
        let due: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM hub_outbox_messages WHERE broker = ?1 AND lane = ?2 AND due_at <= ?3)",
        )
        .bind(request.broker)
        .bind(request.priority.as_str())
        .bind(now)
        .fetch_one(&self.pool)
        .await?;
        if !due {
            return Ok(Vec::new());
        }
        let mut tx = self.pool.begin_with(BEGIN).await?;
        for _ in 0..ROUNDS {
            let wanted = request.limit.saturating_sub(taken.len());
            let due: Vec<Due> = sqlx::query_as(include_str!("sqlite/claim.sql"))
                .bind(request.broker)
                .bind(request.priority.as_str())
                .bind(now)
                .bind(wanted as i64)
                .bind(array(&blocked))
                .fetch_all(&mut *tx)
                .await?;
            let (before, full) = (blocked.len(), due.len() >= wanted);
            let mut claimed = Vec::new();
            // (position, due)
            let mut deferred: Vec<(i64, i64)> = Vec::new();
            for due in due.chunk_by(|a, b| a.0 == b.0) {
                let (stream, _, blocker, priority, status, due_at) = &due[0];
                let free = due.partition_point(|due| blocker.is_none_or(|blocker| due.1 < blocker));
                claimed.extend(due[..free].iter().map(|due| due.1));
                let (Some(priority), Some(status), Some(due_at)) = (priority, status, due_at) else {
                    continue;
                };
                if free == due.len() {
                    continue;
                }
                // As on PostgreSQL: a row with an expired claim precedes rows that have been due for longer. For other
                // rows, the time until which the rows behind them need not be examined.
                let same_priority = priority == request.priority.as_str();
                if same_priority && *due_at <= now {
                    claimed.truncate(claimed.len() - free);
                    claimed.extend(Self::front(&mut tx, request, stream, now, due.len()).await?);
                    continue;
                }
                // A damaged name cannot be passed as an argument; such a stream is examined again.
                blocked.extend(stream.valid().map(str::to_owned));
                let until =
                    if *due_at > now && *due_at <= furthest_due(now) && status != Status::Processing.as_str()
                    {
                        *due_at
                    } else if same_priority {
                        continue;
                    } else {
                        now + OTHER_PRIORITY
                    };
                deferred.extend(due[free..].iter().map(|due| (due.1, until)));
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
                "UPDATE hub_outbox_messages AS m SET due_at = d.value ->> 1
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
            "SELECT position, message_id, event_type, stream, lane, is_public, payload, attempts,
                 CASE WHEN created_at BETWEEN ?3 AND ?4 THEN created_at * 1000 END
             FROM hub_outbox_messages WHERE broker = ?1 AND position IN (SELECT value FROM json_each(?2))
             ORDER BY position",
        )
        .bind(request.broker)
        .bind(array(&taken))
        .bind(FIRST_TIME)
        .bind(LAST_TIME)
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(rows.into_iter().map(ClaimedRow::read).collect())
    }

    /// The claimable rows of a stream from its first open row on, at most `limit`.
    async fn front(
        tx: &mut SqliteConnection,
        request: &ClaimRequest<'_>,
        stream: &Text,
        now: i64,
        limit: usize,
    ) -> Result<Vec<i64>, sqlx::Error> {
        let open: Vec<(i64, bool)> = sqlx::query_as(
            "SELECT position, lane = ?3 AND due_at <= ?4 FROM hub_outbox_messages
             WHERE broker = ?1 AND stream = CAST(?2 AS TEXT) AND due_at IS NOT NULL ORDER BY position LIMIT ?5",
        )
        .bind(request.broker)
        .bind(stream.bytes())
        .bind(request.priority.as_str())
        .bind(now)
        .bind(limit as i64)
        .fetch_all(tx)
        .await?;
        Ok(open.into_iter().take_while(|(_, free)| *free).map(|(position, _)| position).collect())
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
            .map(|row| {
                (
                    row.position,
                    crate::store::storable(&row.error),
                    milliseconds(row.retry_after),
                    u8::from(row.counts),
                )
            })
            .collect();
        let done = sqlx::query(
            "UPDATE hub_outbox_messages AS m
             SET status = 'failed', attempts = min(m.attempts, 2147483646) + (f.value ->> 3), claimed_by = NULL,
                 last_error = f.value ->> 1, due_at = ?4 + (f.value ->> 2)
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
        let rows: Vec<_> =
            rows.iter().map(|row| (row.position, crate::store::storable(&row.reason))).collect();
        let done = sqlx::query(
            "UPDATE hub_outbox_messages AS m
             SET status = 'abandoned', attempts = min(m.attempts, 2147483646) + 1, claimed_by = NULL,
                 last_error = f.value ->> 1, due_at = NULL, settled_at = ?4
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
                 WHERE broker = ?1 AND lane = 'live' AND due_at <= ?2
                 UNION ALL
                 SELECT min(due_at) FROM hub_outbox_messages
                 WHERE broker = ?1 AND lane = 'bulk' AND due_at <= ?2)",
        )
        .bind(broker)
        .bind(LAST_TIME)
        .fetch_one(&self.pool)
        .await?;
        Ok(due.map(|due| due.saturating_sub(now()).max(0)))
    }
}
