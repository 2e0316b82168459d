//! Raising an event in the producer's own transaction.

#[cfg(feature = "postgres")]
use sqlx::postgres::{PgConnection, PgDatabaseError, Postgres};
#[cfg(feature = "sqlite")]
use sqlx::sqlite::{Sqlite, SqliteConnection};
use sqlx::{Executor, Transaction};

use crate::error::StoreError;
use hub_domain::field_error::FieldError;
use hub_domain::producer_outbox::RaisedEvent;

/// Why an event was not raised. On PostgreSQL the transaction is then aborted, unless the error is a field.
#[derive(Debug, thiserror::Error)]
pub enum RaiseError {
    #[error("the event was not raised: {0}")]
    Field(#[from] FieldError),
    #[error("the event was not raised: it cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The database's own check.
    #[error("the event was not raised: {problem}{}", remedy.as_ref().map(|remedy| format!(" ({remedy})")).unwrap_or_default())]
    Refused { problem: String, remedy: Option<String> },
    #[error("the event was not raised: {0}")]
    Store(#[from] StoreError),
}

mod sealed {
    pub trait Sealed {}
}

/// An open transaction, or a connection, of sqlx: PostgreSQL's or SQLite's.
pub trait Producer: sealed::Sealed {
    #[doc(hidden)]
    fn raise(&mut self, event: String) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// Raises an event: writes its rows in the open transaction, one for the internal broker and, if the event
/// is published, one for each external broker. Commit, and they go out; roll back, and there are none.
/// Gives the event's id.
///
/// A connection without a transaction raises the event by itself.
///
/// Errors: a field that is wrong, an id that was raised before, or the database's own; see
/// [`RaiseError`].
pub async fn publish<P: Producer>(transaction: &mut P, event: &RaisedEvent) -> Result<String, RaiseError> {
    event.validate()?;
    let (id, json) = match &event.id {
        Some(id) => (id.clone(), serde_json::to_string(event)?),
        None => {
            let id = fresh_id();
            (id.clone(), serde_json::to_string(&RaisedEvent { id: Some(id), ..event.clone() })?)
        }
    };
    transaction.raise(json).await.map_err(refused)?;
    Ok(id)
}

/// A random UUID (RFC 9562 version 4).
fn fresh_id() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The check of an event raises `invalid_parameter_value`, the constraints what PostgreSQL and SQLite have
/// for these; all else is the database's own trouble.
fn refused(error: sqlx::Error) -> RaiseError {
    if let sqlx::Error::Database(database) = &error {
        #[cfg(feature = "postgres")]
        let remedy = database.try_downcast_ref::<PgDatabaseError>().and_then(|error| error.hint());
        #[cfg(not(feature = "postgres"))]
        let remedy: Option<&str> = None;
        let code = database.code().unwrap_or_default();
        // Class 22: what cannot be a jsonb, say a NUL in a text. 1811: SQLite's RAISE in a trigger.
        let is_event = code.len() == 5 && code.starts_with("22") || code == "23505" || code == "1811";
        if is_event || database.is_unique_violation() {
            return RaiseError::Refused {
                problem: database.message().to_owned(),
                remedy: remedy.map(str::to_owned),
            };
        }
    }
    StoreError::of("raising an event", error).into()
}

#[cfg(feature = "postgres")]
async fn raise_postgres(connection: &mut PgConnection, event: String) -> Result<(), sqlx::Error> {
    // One message of the simple protocol: nothing is prepared, so that a pooler may stand between.
    let statement = format!("SELECT hub_outbox.publish({}::jsonb)", dollar_quoted(&event));
    connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(statement))).await?;
    Ok(())
}

/// A text as a literal of PostgreSQL, whatever is in it and whatever the session's settings: between two tags that it
/// does not hold (the manual, 4.1.2.4).
#[cfg(feature = "postgres")]
fn dollar_quoted(text: &str) -> String {
    let mut tag = "$event$".to_owned();
    for number in 0.. {
        if !text.contains(&tag) {
            break;
        }
        tag = format!("$event{number}$");
    }
    format!("{tag}{text}{tag}")
}

#[cfg(feature = "sqlite")]
async fn raise_sqlite(connection: &mut SqliteConnection, event: String) -> Result<(), sqlx::Error> {
    connection.execute(sqlx::query("INSERT INTO hub_outbox_publish (event) VALUES (?1)").bind(event)).await?;
    Ok(())
}

#[cfg(feature = "postgres")]
impl sealed::Sealed for PgConnection {}
#[cfg(feature = "postgres")]
impl Producer for PgConnection {
    async fn raise(&mut self, event: String) -> Result<(), sqlx::Error> {
        raise_postgres(self, event).await
    }
}

#[cfg(feature = "postgres")]
impl sealed::Sealed for Transaction<'_, Postgres> {}
#[cfg(feature = "postgres")]
impl Producer for Transaction<'_, Postgres> {
    async fn raise(&mut self, event: String) -> Result<(), sqlx::Error> {
        raise_postgres(self, event).await
    }
}

#[cfg(feature = "sqlite")]
impl sealed::Sealed for SqliteConnection {}
#[cfg(feature = "sqlite")]
impl Producer for SqliteConnection {
    async fn raise(&mut self, event: String) -> Result<(), sqlx::Error> {
        raise_sqlite(self, event).await
    }
}

#[cfg(feature = "sqlite")]
impl sealed::Sealed for Transaction<'_, Sqlite> {}
#[cfg(feature = "sqlite")]
impl Producer for Transaction<'_, Sqlite> {
    async fn raise(&mut self, event: String) -> Result<(), sqlx::Error> {
        raise_sqlite(self, event).await
    }
}

#[cfg(all(test, feature = "postgres"))]
mod tests {
    use super::dollar_quoted;

    #[test]
    fn no_text_ends_its_own_literal() {
        for (text, literal) in [
            ("{}", "$event${}$event$"),
            ("'); DROP TABLE x; --", "$event$'); DROP TABLE x; --$event$"),
            ("$event$; SELECT 1", "$event0$$event$; SELECT 1$event0$"),
            ("$event$$event0$", "$event1$$event$$event0$$event1$"),
        ] {
            assert_eq!(dollar_quoted(text), literal);
        }
    }
}
