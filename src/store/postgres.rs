//! The outbox on PostgreSQL 14+. Times are the database's own: every relay sees the same clock.

mod operating;

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};

use super::error::StoreError;
use super::migrations::{self, Migration};
use super::rows::{BrokerSync, ClaimRequest, ClaimedRow, FailedAttempt, GivenUp, SetUp, milliseconds};

const OLDEST: i64 = 140_000;
const MIGRATIONS: [Migration; 2] = [
    Migration { version: 1, sql: include_str!("postgres/0001_outbox.sql") },
    Migration { version: 2, sql: include_str!("postgres/0002_refusals.sql") },
];
/// Taken by whoever changes the schema.
const SETUP_LOCK: i64 = 0x6875_625f_6f75_7462; // "hub_outb"
/// Notified at the end of each transaction that raised an event.
const CHANNEL: &str = "hub_outbox";
/// How often one claim looks on behind streams that others are working on.
const ROUNDS: usize = 4;

#[derive(Debug, Clone)]
pub(super) struct Postgres {
    pool: PgPool,
}

/// Of a claim: the row's columns, all null for a blocked stream, and how many rows were due, at most the limit.
type Claimed = (
    Option<i64>,
    Option<String>,
    Option<String>,
    String,
    Option<String>,
    Option<bool>,
    Option<String>,
    Option<i32>,
    Option<i64>,
    i64,
);

impl Postgres {
    /// Connects when the first statement needs it, so that a database that is down is found then.
    pub(super) fn new(url: &str, connections: u32, acquire: Duration) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| StoreError::Url { problem: "is not one of PostgreSQL" })?
            .application_name("integration-hub outbox")
            .disable_statement_logging();
        let pool = PgPoolOptions::new()
            // The listener's beside those of the statements.
            .max_connections(connections.saturating_add(1))
            .acquire_timeout(acquire)
            .connect_lazy_with(options);
        Ok(Self { pool })
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    pub(super) async fn check_server(&self) -> Result<(), StoreError> {
        let (number, version): (i64, String) = sqlx::query_as(
            "SELECT current_setting('server_version_num')::bigint, 'PostgreSQL ' || current_setting('server_version')",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|source| match source {
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) => StoreError::Connect { source },
            other => StoreError::of("asking its version", other),
        })?;
        if number < OLDEST {
            return Err(StoreError::TooOld { found: version, needed: "PostgreSQL 14" });
        }
        Ok(())
    }

    pub(super) async fn version(&self) -> Result<i64, sqlx::Error> {
        let there: bool = sqlx::query_scalar("SELECT to_regclass('hub_outbox.migrations') IS NOT NULL")
            .fetch_one(&self.pool)
            .await?;
        if !there {
            return Ok(0);
        }
        sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM hub_outbox.migrations")
            .fetch_one(&self.pool)
            .await
    }

    pub(super) fn newest() -> i64 {
        migrations::newest(&MIGRATIONS)
    }

    /// All in one transaction, one at a time: whoever comes second finds it done.
    pub(super) async fn setup(&self) -> Result<SetUp, sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(SETUP_LOCK).execute(&mut *tx).await?;
        // Asked first: a role that may not create schemas may still be told that all is well.
        let there: bool = sqlx::query_scalar("SELECT to_regclass('hub_outbox.migrations') IS NOT NULL")
            .fetch_one(&mut *tx)
            .await?;
        if !there {
            sqlx::raw_sql(
                "CREATE SCHEMA IF NOT EXISTS hub_outbox;
                 CREATE TABLE hub_outbox.migrations (
                     version bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())",
            )
            .execute(&mut *tx)
            .await?;
        }
        let from: i64 = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM hub_outbox.migrations")
            .fetch_one(&mut *tx)
            .await?;
        for migration in migrations::after(&MIGRATIONS, from) {
            sqlx::raw_sql(migration.sql).execute(&mut *tx).await?;
            sqlx::query("INSERT INTO hub_outbox.migrations (version) VALUES ($1)")
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
        let mut tx = self.pool.begin().await?;
        let added = sqlx::query_scalar(
            "INSERT INTO hub_outbox.brokers (name) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING RETURNING name",
        )
        .bind(configured)
        .fetch_all(&mut *tx)
        .await?;
        let others: Vec<String> =
            sqlx::query_scalar("SELECT name FROM hub_outbox.brokers WHERE name <> ALL ($1) ORDER BY name")
                .bind(configured)
                .fetch_all(&mut *tx)
                .await?;
        if prune {
            sqlx::query("DELETE FROM hub_outbox.brokers WHERE name = ANY ($1)")
                .bind(&others)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(BrokerSync::of(added, others, prune))
    }

    pub(super) async fn limit_events(&self, bytes: i64) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO hub_outbox.limits AS l (name, value) VALUES ('event_bytes', $1)
             ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value WHERE l.value <> EXCLUDED.value",
        )
        .bind(bytes)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(super) async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Vec<ClaimedRow>, sqlx::Error> {
        let (mut rows, mut blocked) = (Vec::new(), request.passed_over.to_vec());
        for _ in 0..ROUNDS {
            let wanted = request.limit.saturating_sub(rows.len());
            let found: Vec<Claimed> = sqlx::query_as(include_str!("postgres/claim.sql"))
                .bind(request.broker)
                .bind(request.lane.as_str())
                .bind(wanted as i64)
                .bind(request.holder)
                .bind(milliseconds(request.claim_time))
                .bind(&blocked)
                .fetch_all(&self.pool)
                .await?;
            let due = found.first().map_or(0, |row| row.9);
            let before = blocked.len();
            for (position, id, key, stream, lane, is_public, payload, attempts, created_at, _) in found {
                match (position, id, key, lane, is_public, payload, attempts, created_at) {
                    (
                        Some(position),
                        Some(id),
                        Some(key),
                        Some(lane),
                        Some(is_public),
                        Some(payload),
                        Some(attempts),
                        Some(created_at),
                    ) => rows.push(ClaimedRow::read((
                        position,
                        id,
                        key,
                        stream,
                        lane,
                        is_public,
                        payload,
                        i64::from(attempts),
                        created_at,
                    ))?),
                    _ => blocked.push(stream),
                }
            }
            if rows.len() >= request.limit || due < wanted as i64 || blocked.len() == before {
                break;
            }
        }
        rows.sort_by_key(|row: &ClaimedRow| row.position);
        Ok(rows)
    }

    pub(super) async fn mark_published(
        &self,
        broker: &str,
        holder: &str,
        positions: &[i64],
    ) -> Result<u64, sqlx::Error> {
        let done = sqlx::query(
            "UPDATE hub_outbox.messages SET status = 'published', due_at = NULL, claimed_by = NULL,
                 settled_at = now(), last_error = NULL
             WHERE broker = $1 AND position = ANY ($3) AND status = 'processing' AND claimed_by = $2",
        )
        .bind(broker)
        .bind(holder)
        .bind(positions)
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
        let done = sqlx::query(
            "UPDATE hub_outbox.messages AS m
             SET status = 'failed', attempts = m.attempts + f.counts::integer, claimed_by = NULL,
                 last_error = f.error, due_at = now() + f.wait * interval '1 millisecond'
             FROM unnest($3::bigint[], $4::text[], $5::bigint[], $6::boolean[]) AS f (position, error, wait, counts)
             WHERE m.broker = $1 AND m.position = f.position AND m.status = 'processing' AND m.claimed_by = $2",
        )
        .bind(broker)
        .bind(holder)
        .bind(failed.iter().map(|row| row.position).collect::<Vec<_>>())
        .bind(failed.iter().map(|row| super::storable(&row.error)).collect::<Vec<_>>())
        .bind(failed.iter().map(|row| milliseconds(row.retry_after)).collect::<Vec<_>>())
        .bind(failed.iter().map(|row| row.counts).collect::<Vec<_>>())
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
        let done = sqlx::query(
            "UPDATE hub_outbox.messages AS m
             SET status = 'abandoned', attempts = m.attempts + 1, claimed_by = NULL, last_error = f.reason,
                 due_at = NULL, settled_at = now()
             FROM unnest($3::bigint[], $4::text[]) AS f (position, reason)
             WHERE m.broker = $1 AND m.position = f.position AND m.status = 'processing' AND m.claimed_by = $2",
        )
        .bind(broker)
        .bind(holder)
        .bind(rows.iter().map(|row| row.position).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| super::storable(&row.reason)).collect::<Vec<_>>())
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
            "UPDATE hub_outbox.messages SET status = 'pending', claimed_by = NULL, due_at = now()
             WHERE broker = $1 AND position = ANY ($3) AND status = 'processing' AND claimed_by = $2",
        )
        .bind(broker)
        .bind(holder)
        .bind(positions)
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
            "UPDATE hub_outbox.messages SET due_at = now() + $4 * interval '1 millisecond'
             WHERE broker = $1 AND position = ANY ($3) AND status = 'processing' AND claimed_by = $2",
        )
        .bind(broker)
        .bind(holder)
        .bind(positions)
        .bind(milliseconds(claim_time))
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    pub(super) async fn next_due(&self, broker: &str) -> Result<Option<i64>, sqlx::Error> {
        sqlx::query_scalar(
            "SELECT ceil(extract(epoch FROM min(d.due_at) - clock_timestamp()) * 1000)::bigint
             FROM unnest(ARRAY['live', 'bulk']) AS l (lane)
             CROSS JOIN LATERAL (
                 SELECT m.due_at FROM hub_outbox.messages AS m
                 WHERE m.broker = $1 AND m.lane = l.lane AND m.due_at IS NOT NULL
                 ORDER BY m.due_at LIMIT 1) AS d",
        )
        .bind(broker)
        .fetch_one(&self.pool)
        .await
    }

    /// A connection of its own that hears of commits.
    pub(super) async fn listen(&self) -> Result<PgListener, sqlx::Error> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen(CHANNEL).await?;
        Ok(listener)
    }
}
