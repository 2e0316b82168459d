//! The inbox: the ids of applied events, in the same database and transaction as their effects.

use std::path::Path;
use std::time::Duration;

use sqlx::error::ErrorKind;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use thiserror::Error;

use crate::customers::{self, RegisterCustomer};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS inbox (
        event_id TEXT PRIMARY KEY,
        received_at INTEGER NOT NULL DEFAULT (unixepoch())
    );
    CREATE INDEX IF NOT EXISTS inbox_received_at ON inbox (received_at);
    CREATE TABLE IF NOT EXISTS poison (
        place TEXT PRIMARY KEY,
        reason TEXT NOT NULL,
        body BLOB NOT NULL,
        put_aside_at INTEGER NOT NULL DEFAULT (unixepoch())
    );
";
/// Longest wait of a write for the transaction of another process.
const BUSY: Duration = Duration::from_secs(5);
/// Rows deleted in one transaction, which can delay an event.
const FORGOTTEN_AT_ONCE: i64 = 1_000;

#[derive(Debug, Error)]
pub(crate) enum InboxError {
    /// A constraint of the database rejects this command; a retry cannot succeed.
    #[error("the database rejects the command: {0}")]
    Refused(#[source] sqlx::Error),
    /// The database failed; the event is not the cause.
    #[error("database: {0}")]
    Unavailable(#[source] sqlx::Error),
}

impl From<sqlx::Error> for InboxError {
    fn from(error: sqlx::Error) -> Self {
        let kind = error.as_database_error().map(|error| error.kind());
        match kind {
            Some(
                ErrorKind::UniqueViolation
                | ErrorKind::ForeignKeyViolation
                | ErrorKind::NotNullViolation
                | ErrorKind::CheckViolation,
            ) => Self::Refused(error),
            _ => Self::Unavailable(error),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    Now,
    Before,
}

pub(crate) struct Inbox {
    pool: SqlitePool,
}

impl Inbox {
    pub(crate) async fn open(file: &Path) -> Result<Self, InboxError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .foreign_keys(true)
            .busy_timeout(BUSY)
            .journal_mode(SqliteJournalMode::Wal)
            // On the disk before the event is acknowledged.
            .synchronous(SqliteSynchronous::Full);
        let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(BUSY * 2);
        let pool = pool.connect_with(options).await?;
        for tables in [customers::TABLES, TABLES] {
            sqlx::raw_sql(tables).execute(&pool).await?;
        }
        Ok(Self { pool })
    }

    /// Executes the command if the event id is new. Commits both or neither. Two processes with the same event are
    /// serialised.
    pub(crate) async fn apply(
        &self,
        event_id: &str,
        command: &RegisterCustomer,
    ) -> Result<Applied, InboxError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let noted = sqlx::query("INSERT INTO inbox (event_id) VALUES (?1) ON CONFLICT DO NOTHING")
            .bind(event_id)
            .execute(&mut *transaction)
            .await?;
        if noted.rows_affected() == 0 {
            transaction.rollback().await?;
            return Ok(Applied::Before);
        }
        command.carry_out(&mut transaction).await?;
        transaction.commit().await?;
        Ok(Applied::Now)
    }

    /// Stores an event that can never be applied, with the reason. `place` is its stream and number in the broker, so
    /// that the same entry is stored once.
    pub(crate) async fn put_aside(&self, place: &str, reason: &str, body: &[u8]) -> Result<(), InboxError> {
        sqlx::query("INSERT INTO poison (place, reason, body) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")
            .bind(place)
            .bind(reason)
            .bind(body)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Deletes a bounded number of ids and poison events that are older than this. Returns their number.
    pub(crate) async fn forget(&self, older_than: Duration) -> Result<u64, InboxError> {
        let seconds = i64::try_from(older_than.as_secs()).unwrap_or(i64::MAX);
        let mut forgotten = 0;
        for statement in [
            "DELETE FROM inbox WHERE event_id IN
                (SELECT event_id FROM inbox WHERE received_at < unixepoch() - ?1 LIMIT ?2)",
            "DELETE FROM poison WHERE place IN
                (SELECT place FROM poison WHERE put_aside_at < unixepoch() - ?1 LIMIT ?2)",
        ] {
            let deleted =
                sqlx::query(statement).bind(seconds).bind(FORGOTTEN_AT_ONCE).execute(&self.pool).await?;
            forgotten += deleted.rows_affected();
        }
        Ok(forgotten)
    }
}
