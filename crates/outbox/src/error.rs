//! Errors of the outbox database.

use std::io;
use std::time::Duration;

use crate::database_url::UnknownParameter;

/// An error of an operation on the outbox database.
///
/// Each variant with a `source` keeps sqlx's error. No text contains the database URL, because the URL contains a
/// password.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "database URL: {problem}; write postgres://user:password@host:port/database or sqlite:///path/to/file"
    )]
    Url { problem: &'static str },
    #[error("database URL: {0}")]
    UrlParameter(#[from] UnknownParameter),
    #[error("the outbox database{} cannot be reached: {}", at(address), advice(source))]
    Connect {
        /// Host and port; `None` on SQLite, and if the pool timed out.
        address: Option<String>,
        source: sqlx::Error,
    },
    /// A statement ran in another client's session: its prepared statement is missing, or exists already.
    #[error(
        "the outbox database is behind a connection pooler in transaction mode, which keeps no session ({}); set outbox.pooler = \"transaction\"",
        text(source)
    )]
    Pooler { source: sqlx::Error },
    #[error("outbox database: no answer within {limit:?} while {operation}")]
    Timeout { operation: &'static str, limit: Duration },
    #[error("outbox database: the outbox is not set up; run `hub outbox setup` with its URL")]
    NotSetUp,
    #[error(
        "outbox database: schema version {found}, but this program needs {known}; run `hub outbox setup` with its URL"
    )]
    Outdated { found: i64, known: i64 },
    #[error(
        "outbox database: schema version {found} is newer than version {known} of this program; use a newer hub"
    )]
    Newer { found: i64, known: i64 },
    #[error("outbox database: {found} is too old; use {needed} or newer")]
    TooOld { found: String, needed: &'static str },
    #[error("outbox database: error while {operation}: {}", text(source))]
    Database { operation: &'static str, source: sqlx::Error },
}

/// SQLSTATEs of PostgreSQL (manual, appendix A) for a missing schema, table or function.
const ABSENT: [&str; 3] = ["3F000", "42P01", "42883"];

/// SQLSTATEs of PostgreSQL for a prepared statement that is missing, or exists already.
const OF_POOLER: [&str; 2] = ["26000", "42P05"];

/// `protocol_violation`: PgBouncer's answer to an unknown startup parameter. A retry does not help.
const REFUSED_STARTUP: &str = "08P01";

/// The error for a connection that was not open in time.
#[cfg(feature = "postgres")]
pub(super) fn no_answer() -> sqlx::Error {
    let limit = crate::store::CONNECT_LIMIT;
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")))
}

fn at(address: &Option<String>) -> String {
    address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default()
}

/// The database's message, without the position in PostgreSQL's source that sqlx appends.
fn text(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// The cause of a failed connection, and its remedy.
fn advice(error: &sqlx::Error) -> String {
    let remedy = match error {
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            "start the database, or correct host and port in outbox.database_url"
        }
        sqlx::Error::Io(_) => "correct the host in outbox.database_url, or the network between",
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => {
            "correct sslmode and sslrootcert in outbox.database_url"
        }
        sqlx::Error::PoolTimedOut => "raise outbox.connections, or see whether the database answers",
        sqlx::Error::Database(error) => match error.code().as_deref() {
            Some("28P01") => "correct user and password in outbox.database_url",
            Some("28000") => {
                "correct the user in outbox.database_url, or its sslmode where the server wants TLS"
            }
            Some("3D000") => "create the database, or correct its name in outbox.database_url",
            Some("53300") => "raise max_connections of the server, or lower outbox.connections",
            Some("57P03") => "the server is starting or stopping; try again",
            Some(REFUSED_STARTUP) => {
                "if this is a connection pooler such as PgBouncer, set outbox.pooler = \"transaction\"; else correct outbox.database_url"
            }
            _ => "correct outbox.database_url",
        },
        _ => "correct outbox.database_url",
    };
    format!("{}; {remedy}", text(error))
}

impl StoreError {
    /// The error of a connection that was opened outside the pool.
    #[cfg(feature = "postgres")]
    pub(super) fn unreachable(address: String, source: sqlx::Error) -> Self {
        Self::Connect { address: Some(address), source }
    }

    /// Classifies an error of sqlx. `operation` is a gerund, such as `claiming`.
    pub(super) fn of(operation: &'static str, source: sqlx::Error) -> Self {
        match source {
            sqlx::Error::PoolTimedOut => Self::Connect { address: None, source },
            sqlx::Error::Database(ref error)
                if error.code().is_some_and(|code| OF_POOLER.contains(&&*code)) =>
            {
                Self::Pooler { source }
            }
            sqlx::Error::Database(ref error) => {
                // SQLite has one code for all errors in a statement; only its message distinguishes them.
                let absent = error.code().is_some_and(|code| ABSENT.contains(&&*code));
                if absent { Self::NotSetUp } else { Self::Database { operation, source } }
            }
            _ => Self::Database { operation, source },
        }
    }

    /// True if the configuration or the schema must be corrected first; the error text names the remedy.
    pub fn is_of_setup(&self) -> bool {
        match self {
            Self::Url { .. }
            | Self::UrlParameter(_)
            | Self::Pooler { .. }
            | Self::NotSetUp
            | Self::Outdated { .. }
            | Self::Newer { .. }
            | Self::TooOld { .. } => true,
            Self::Connect { .. } | Self::Timeout { .. } | Self::Database { .. } => false,
        }
    }

    /// True if a retry may succeed: the database is down, restarting or overloaded, or two transactions conflicted.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Url { .. }
            | Self::UrlParameter(_)
            | Self::TooOld { .. }
            | Self::Newer { .. }
            | Self::Pooler { .. } => false,
            // An operator must run `hub outbox setup`, so waiting silently would hide the error.
            Self::NotSetUp | Self::Outdated { .. } => false,
            Self::Connect { source, .. } | Self::Database { source, .. } => match source {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::BeginFailed
                | sqlx::Error::PoolTimedOut => true,
                sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                    code != REFUSED_STARTUP && {
                        // PostgreSQL: connection, resources, operator intervention, serialization failure,
                        // deadlock, lock not available. SQLite: BUSY, LOCKED and CANTOPEN, in any extended form.
                        ["08", "53", "57"].iter().any(|class| code.len() == 5 && code.starts_with(class))
                            || matches!(&*code, "40001" | "40P01" | "55P03")
                            || (code.len() < 5
                                && code.parse::<i32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 14)))
                    }
                }),
                _ => false,
            },
        }
    }
}
