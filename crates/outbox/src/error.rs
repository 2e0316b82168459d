//! Why the outbox's database did not do what it was asked.

use std::io;
use std::time::Duration;

/// No text of it holds the database URL, which holds a password.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the database URL {problem}; write postgres://user:password@host:port/database or sqlite:///path/to/file"
    )]
    Url { problem: &'static str },
    #[error("the outbox database{} cannot be reached: {}", at(address), advice(source))]
    Connect {
        /// Host and port, where there is a server.
        address: Option<String>,
        source: sqlx::Error,
    },
    /// A statement found the session of another: what was prepared is not there, or is there already.
    #[error(
        "the outbox database is behind a connection pooler in transaction mode, which keeps no session ({}); set outbox.pooler = \"transaction\"",
        text(source)
    )]
    Pooler { source: sqlx::Error },
    #[error("the database did not answer within {limit:?} ({operation})")]
    Timeout { operation: &'static str, limit: Duration },
    #[error("the outbox is not set up in this database; run `hub outbox setup` with its URL")]
    NotSetUp,
    #[error(
        "the outbox in this database has schema version {found}, this program needs {known}; run `hub outbox setup` with its URL"
    )]
    Outdated { found: i64, known: i64 },
    #[error(
        "the outbox in this database has schema version {found}, this program knows {known}; use the program that made it, or a later one"
    )]
    Newer { found: i64, known: i64 },
    #[error("the database is {found}; {needed} or newer is needed")]
    TooOld { found: String, needed: &'static str },
    #[error("the database refused ({operation}): {}", text(source))]
    Database { operation: &'static str, source: sqlx::Error },
}

/// PostgreSQL's SQLSTATEs (its manual, appendix A) for a schema, table or function that is not there.
const ABSENT: [&str; 3] = ["3F000", "42P01", "42883"];

/// PostgreSQL's SQLSTATEs for a prepared statement that is not there, or is there already.
const OF_POOLER: [&str; 2] = ["26000", "42P05"];

/// `protocol_violation`: PgBouncer's word of a startup parameter that it does not know. It stays so.
const REFUSED_STARTUP: &str = "08P01";

/// A connection that did not come in time.
#[cfg(feature = "postgres")]
pub(super) fn no_answer() -> sqlx::Error {
    let limit = crate::store::CONNECT_LIMIT;
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")))
}

fn at(address: &Option<String>) -> String {
    address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default()
}

/// The error's own words, without the line of PostgreSQL's source that sqlx puts behind them.
fn text(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// Why there is no connection, and what to do about it.
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
    /// Of a connection that was asked for by itself.
    #[cfg(feature = "postgres")]
    pub(super) fn unreachable(address: String, source: sqlx::Error) -> Self {
        Self::Connect { address: Some(address), source }
    }

    pub(super) fn of(operation: &'static str, source: sqlx::Error) -> Self {
        match source {
            sqlx::Error::PoolTimedOut => Self::Connect { address: None, source },
            sqlx::Error::Database(ref error)
                if error.code().is_some_and(|code| OF_POOLER.contains(&&*code)) =>
            {
                Self::Pooler { source }
            }
            sqlx::Error::Database(ref error) => {
                // (SQLite has one code for whatever is wrong with a statement, and says it in its text.)
                let absent = error.code().is_some_and(|code| ABSENT.contains(&&*code));
                if absent { Self::NotSetUp } else { Self::Database { operation, source } }
            }
            _ => Self::Database { operation, source },
        }
    }

    /// Whether somebody has to set the database up, or this program is not the one for it; the text says how.
    pub fn is_of_setup(&self) -> bool {
        match self {
            Self::Url { .. }
            | Self::Pooler { .. }
            | Self::NotSetUp
            | Self::Outdated { .. }
            | Self::Newer { .. }
            | Self::TooOld { .. } => true,
            Self::Connect { .. } | Self::Timeout { .. } | Self::Database { .. } => false,
        }
    }

    /// Whether the same may succeed later, without anybody's doing: the database is down, restarting,
    /// overloaded, or two transactions collided.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Url { .. } | Self::TooOld { .. } | Self::Newer { .. } | Self::Pooler { .. } => false,
            // Somebody may set it up meanwhile, but this program cannot wait for that unsaid.
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
                        // PostgreSQL: connection, resources, operator's stop, serialisation and deadlock,
                        // lock not available. SQLite: busy, locked and not to be opened, whatever their extended part.
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
