//! Why the outbox's database did not do what it was asked.

use std::time::Duration;

/// No text of it holds the database URL, which holds a password.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the database URL {problem}; write postgres://user:password@host:port/database or sqlite:///path/to/file"
    )]
    Url { problem: &'static str },
    #[error("the database cannot be reached: {source}")]
    Connect { source: sqlx::Error },
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
    #[error("the database refused ({operation}): {source}")]
    Database { operation: &'static str, source: sqlx::Error },
}

/// PostgreSQL's SQLSTATEs (its manual, appendix A) for a schema, table or function that is not there.
const ABSENT: [&str; 3] = ["3F000", "42P01", "42883"];

impl StoreError {
    pub(super) fn of(operation: &'static str, source: sqlx::Error) -> Self {
        match source {
            sqlx::Error::PoolTimedOut => Self::Connect { source },
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
            Self::Connect { .. } | Self::Timeout { .. } => true,
            Self::Url { .. } | Self::TooOld { .. } | Self::Newer { .. } => false,
            // Somebody may set it up meanwhile, but this program cannot wait for that unsaid.
            Self::NotSetUp | Self::Outdated { .. } => false,
            Self::Database { source, .. } => match source {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::BeginFailed
                | sqlx::Error::PoolTimedOut => true,
                sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                    // PostgreSQL: connection, resources, operator's stop, serialisation and deadlock,
                    // lock not available. SQLite: busy and locked, whatever their extended part.
                    ["08", "53", "57"].iter().any(|class| code.len() == 5 && code.starts_with(class))
                        || matches!(&*code, "40001" | "40P01" | "55P03")
                        || (code.len() < 5
                            && code.parse::<i32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6)))
                }),
                _ => false,
            },
        }
    }
}
