//! The outbox on PostgreSQL 14+. Times are the database's own: every relay sees the same clock.

mod operating;

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::error::StoreError;
use crate::migrations::{self, Migration};
use crate::rows::{BrokerSync, ClaimRequest, ClaimedRow, FailedAttempt, GivenUp, SetUp, milliseconds};
use crate::unreadable::Text;

const OLDEST: i64 = 140_000;
const MIGRATIONS: [Migration; 2] = [
    Migration { version: 1, sql: include_str!("postgres/0001_outbox.sql") },
    Migration { version: 2, sql: include_str!("postgres/0002_refusals.sql") },
];
/// Advisory lock of schema changes.
const SETUP_LOCK: i64 = 0x6875_625f_6f75_7462; // "hub_outb"
/// Notified at the end of each transaction that raised an event.
const CHANNEL: &str = "hub_outbox";
/// Maximum number of queries per claim; each one skips the streams that were found blocked.
const ROUNDS: usize = 4;

#[derive(Clone)]
pub(super) struct Postgres {
    pool: PgPool,
    options: PgConnectOptions,
    /// Host and port, for errors.
    address: String,
    /// Behind a pooler in transaction mode: no statement may leave anything in a session.
    is_pooled: bool,
}

/// Without the options, which hold the password.
impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { address, is_pooled, .. } = self;
        f.debug_struct("Postgres")
            .field("address", address)
            .field("is_pooled", is_pooled)
            .finish_non_exhaustive()
    }
}

/// A row of `claim.sql`: the columns, all null for a blocked stream, and the number of due rows, at most the limit.
type Claimed = (
    Option<i64>,
    Option<Text>,
    Option<Text>,
    Text,
    Option<Text>,
    Option<bool>,
    Option<Text>,
    Option<i32>,
    Option<i64>,
    i64,
);

/// Runs one statement. Behind a pooler in transaction mode, it runs in its own transaction, so that all its messages
/// reach one server connection, and as an unnamed statement, because names of several clients would collide.
macro_rules! run {
    ($database:expr, $how:ident, $query:expr) => {
        if $database.is_pooled {
            let mut tx = $database.pool.begin().await?;
            let answer = $query.persistent(false).$how(&mut *tx).await?;
            tx.commit().await?;
            Ok(answer)
        } else {
            $query.$how(&$database.pool).await
        }
    };
}
use run;

impl Postgres {
    /// Opens no connection; the first statement connects.
    pub(super) fn new(
        url: &str,
        connections: u32,
        acquire: Duration,
        is_pooled: bool,
    ) -> Result<Self, StoreError> {
        let mut options = PgConnectOptions::from_str(url)
            .map_err(|_| StoreError::Url { problem: "invalid PostgreSQL URL" })?
            .application_name("integration-hub outbox")
            .disable_statement_logging();
        if is_pooled {
            // PgBouncer refuses extra_float_digits by default.
            options = options.extra_float_digits(None).statement_cache_capacity(0);
        }
        let address = format!("{}:{}", options.get_host(), options.get_port());
        let pool = PgPoolOptions::new()
            // One more for the listener.
            .max_connections(connections.saturating_add(1))
            .acquire_timeout(acquire)
            .connect_lazy_with(options.clone());
        Ok(Self { pool, options, address, is_pooled })
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// Uses its own connection, because the pool retries and hides the cause.
    pub(super) async fn check_server(&self) -> Result<(), StoreError> {
        let reaching =
            tokio::time::timeout(crate::store::CONNECT_LIMIT, PgConnection::connect_with(&self.options));
        let reached = reaching.await.unwrap_or_else(|_| Err(crate::error::no_answer()));
        let mut connection =
            reached.map_err(|source| StoreError::unreachable(self.address.clone(), source))?;
        let asked = sqlx::query_as(
            "SELECT current_setting('server_version_num')::bigint, 'PostgreSQL ' || current_setting('server_version')",
        );
        let answer = if self.is_pooled {
            let mut tx =
                connection.begin().await.map_err(|error| StoreError::of("asking its version", error))?;
            let answer = asked.persistent(false).fetch_one(&mut *tx).await;
            tx.rollback().await.map_err(|error| StoreError::of("asking its version", error))?;
            answer
        } else {
            asked.fetch_one(&mut connection).await
        };
        let (number, version): (i64, String) =
            answer.map_err(|error| StoreError::of("asking its version", error))?;
        // The query has succeeded; an error while closing does not matter.
        let _ = connection.close().await;
        if number < OLDEST {
            return Err(StoreError::TooOld { found: version, needed: "PostgreSQL 14" });
        }
        Ok(())
    }

    /// Pings on its own connection until that fails, and returns the cause. The pool would retry and hide it.
    pub(super) async fn watch(&self) -> StoreError {
        let unreachable = |source| StoreError::unreachable(self.address.clone(), source);
        loop {
            let reaching =
                tokio::time::timeout(crate::store::CONNECT_LIMIT, PgConnection::connect_with(&self.options));
            let mut connection = match reaching.await.unwrap_or_else(|_| Err(crate::error::no_answer())) {
                Ok(connection) => connection,
                Err(source) => return unreachable(source),
            };
            loop {
                tokio::time::sleep(crate::store::WATCH_EVERY).await;
                match tokio::time::timeout(crate::store::WATCH_LIMIT, connection.ping()).await {
                    Ok(Ok(())) => {}
                    Err(_) => return unreachable(crate::error::no_answer()),
                    // Only the connection may be lost, not the database.
                    Ok(Err(_)) => match self.check_server().await {
                        Ok(()) => break,
                        Err(cause) => return cause,
                    },
                }
            }
        }
    }

    pub(super) async fn version(&self) -> Result<i64, sqlx::Error> {
        let there: bool = run!(
            self,
            fetch_one,
            sqlx::query_scalar("SELECT to_regclass('hub_outbox.migrations') IS NOT NULL")
        )?;
        if !there {
            return Ok(0);
        }
        run!(
            self,
            fetch_one,
            sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM hub_outbox.migrations")
        )
    }

    pub(super) fn newest() -> i64 {
        migrations::newest(&MIGRATIONS)
    }

    /// Runs in one transaction under a lock; a concurrent second setup finds nothing to do.
    pub(super) async fn setup(&self) -> Result<SetUp, sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(SETUP_LOCK)
            .persistent(!self.is_pooled)
            .execute(&mut *tx)
            .await?;
        // Checked first, so that a role without the right to create schemas can run a setup that changes nothing.
        let there: bool = sqlx::query_scalar("SELECT to_regclass('hub_outbox.migrations') IS NOT NULL")
            .persistent(!self.is_pooled)
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
            .persistent(!self.is_pooled)
            .fetch_one(&mut *tx)
            .await?;
        for migration in migrations::after(&MIGRATIONS, from) {
            sqlx::raw_sql(migration.sql).execute(&mut *tx).await?;
            sqlx::query("INSERT INTO hub_outbox.migrations (version) VALUES ($1)")
                .bind(migration.version)
                .persistent(!self.is_pooled)
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
        .persistent(!self.is_pooled)
        .fetch_all(&mut *tx)
        .await?;
        let others: Vec<String> =
            sqlx::query_scalar("SELECT name FROM hub_outbox.brokers WHERE name <> ALL ($1) ORDER BY name")
                .bind(configured)
                .persistent(!self.is_pooled)
                .fetch_all(&mut *tx)
                .await?;
        if prune {
            sqlx::query("DELETE FROM hub_outbox.brokers WHERE name = ANY ($1)")
                .bind(&others)
                .persistent(!self.is_pooled)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(BrokerSync::of(added, others, prune))
    }

    pub(super) async fn limit_events(&self, bytes: i64) -> Result<(), sqlx::Error> {
        run!(
            self,
            execute,
            sqlx::query(
                "INSERT INTO hub_outbox.limits AS l (name, value) VALUES ('event_bytes', $1)
             ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value WHERE l.value <> EXCLUDED.value",
            )
            .bind(bytes)
        )?;
        Ok(())
    }

    pub(super) async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Vec<ClaimedRow>, sqlx::Error> {
        let (mut rows, mut blocked) = (Vec::new(), request.passed_over.to_vec());
        for _ in 0..ROUNDS {
            let wanted = request.limit.saturating_sub(rows.len());
            let found: Vec<Claimed> = run!(
                self,
                fetch_all,
                sqlx::query_as(include_str!("postgres/claim.sql"))
                    .bind(request.broker)
                    .bind(request.priority.as_str())
                    .bind(wanted as i64)
                    .bind(request.holder)
                    .bind(milliseconds(request.claim_time))
                    .bind(&blocked)
            )?;
            let due = found.first().map_or(0, |row| row.9);
            let before = blocked.len();
            for (position, id, key, stream, priority, is_public, payload, attempts, created_at, _) in found {
                match (position, id, key, priority, is_public, payload, attempts) {
                    (
                        Some(position),
                        Some(id),
                        Some(key),
                        Some(priority),
                        Some(is_public),
                        Some(payload),
                        Some(attempts),
                    ) => rows.push(ClaimedRow::read((
                        position,
                        id,
                        key,
                        stream,
                        priority,
                        is_public,
                        payload,
                        i64::from(attempts),
                        created_at,
                    ))),
                    // A damaged name cannot be passed as an argument; such a stream is examined again.
                    _ => blocked.extend(stream.valid().map(str::to_owned)),
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
        let done = run!(
            self,
            execute,
            sqlx::query(
                "UPDATE hub_outbox.messages SET status = 'published', due_at = NULL, claimed_by = NULL,
                 settled_at = now(), last_error = NULL
             WHERE broker = $1 AND position = ANY ($3) AND status = 'processing' AND claimed_by = $2",
            )
            .bind(broker)
            .bind(holder)
            .bind(positions)
        )?;
        Ok(done.rows_affected())
    }

    pub(super) async fn fail(
        &self,
        broker: &str,
        holder: &str,
        failed: &[FailedAttempt],
    ) -> Result<u64, sqlx::Error> {
        let done = run!(self, execute, sqlx::query(
            "UPDATE hub_outbox.messages AS m
             SET status = 'failed', attempts = least(m.attempts, 2147483646) + f.counts::integer, claimed_by = NULL,
                 last_error = f.error, due_at = now() + f.wait * interval '1 millisecond'
             FROM unnest($3::bigint[], $4::text[], $5::bigint[], $6::boolean[]) AS f (position, error, wait, counts)
             WHERE m.broker = $1 AND m.position = f.position AND m.status = 'processing' AND m.claimed_by = $2",
        )
        .bind(broker)
        .bind(holder)
        .bind(failed.iter().map(|row| row.position).collect::<Vec<_>>())
        .bind(failed.iter().map(|row| crate::store::storable(&row.error)).collect::<Vec<_>>())
        .bind(failed.iter().map(|row| milliseconds(row.retry_after)).collect::<Vec<_>>())
        .bind(failed.iter().map(|row| row.counts).collect::<Vec<_>>()))?;
        Ok(done.rows_affected())
    }

    pub(super) async fn abandon(
        &self,
        broker: &str,
        holder: &str,
        rows: &[GivenUp],
    ) -> Result<u64, sqlx::Error> {
        let done = run!(self, execute, sqlx::query(
            "UPDATE hub_outbox.messages AS m
             SET status = 'abandoned', attempts = least(m.attempts, 2147483646) + 1, claimed_by = NULL,
                 last_error = f.reason,
                 due_at = NULL, settled_at = now()
             FROM unnest($3::bigint[], $4::text[]) AS f (position, reason)
             WHERE m.broker = $1 AND m.position = f.position AND m.status = 'processing' AND m.claimed_by = $2",
        )
        .bind(broker)
        .bind(holder)
        .bind(rows.iter().map(|row| row.position).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| crate::store::storable(&row.reason)).collect::<Vec<_>>()))?;
        Ok(done.rows_affected())
    }

    pub(super) async fn release(
        &self,
        broker: &str,
        holder: &str,
        positions: &[i64],
    ) -> Result<u64, sqlx::Error> {
        let done = run!(
            self,
            execute,
            sqlx::query(
                "UPDATE hub_outbox.messages SET status = 'pending', claimed_by = NULL, due_at = now()
             WHERE broker = $1 AND position = ANY ($3) AND status = 'processing' AND claimed_by = $2",
            )
            .bind(broker)
            .bind(holder)
            .bind(positions)
        )?;
        Ok(done.rows_affected())
    }

    pub(super) async fn extend(
        &self,
        broker: &str,
        holder: &str,
        positions: &[i64],
        claim_time: Duration,
    ) -> Result<u64, sqlx::Error> {
        let done = run!(
            self,
            execute,
            sqlx::query(
                "UPDATE hub_outbox.messages SET due_at = now() + $4 * interval '1 millisecond'
             WHERE broker = $1 AND position = ANY ($3) AND status = 'processing' AND claimed_by = $2",
            )
            .bind(broker)
            .bind(holder)
            .bind(positions)
            .bind(milliseconds(claim_time))
        )?;
        Ok(done.rows_affected())
    }

    pub(super) async fn next_due(&self, broker: &str) -> Result<Option<i64>, sqlx::Error> {
        run!(
            self,
            fetch_one,
            sqlx::query_scalar(
                "SELECT ceil(extract(epoch FROM CASE WHEN min(d.due_at) < now() THEN now() ELSE min(d.due_at) END
                 - clock_timestamp()) * 1000)::bigint
             FROM unnest(ARRAY['live', 'bulk']) AS l (lane)
             CROSS JOIN LATERAL (
                 SELECT m.due_at FROM hub_outbox.messages AS m
                 WHERE m.broker = $1 AND m.lane = l.lane AND m.due_at <= timestamptz '9999-12-31 23:59:59.999999+00'
                 ORDER BY m.due_at LIMIT 1) AS d",
            )
            .bind(broker)
        )
    }

    /// A connection that listens for commits; `None` behind a pooler, which forwards no notifications.
    pub(super) async fn listen(&self) -> Result<Option<PgListener>, sqlx::Error> {
        if self.is_pooled {
            return Ok(None);
        }
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen(CHANNEL).await?;
        Ok(Some(listener))
    }
}
