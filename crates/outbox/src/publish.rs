//! Raising an event in the producer's own transaction.

#[cfg(feature = "postgres")]
use sqlx::postgres::{PgConnection, PgDatabaseError, Postgres};
#[cfg(feature = "sqlite")]
use sqlx::sqlite::{Sqlite, SqliteConnection};
use sqlx::{Executor, Transaction};

use crate::error::StoreError;
use hub_domain::field_error::FieldError;
use hub_domain::producer_outbox::RaisedEvent;

/// The reason why [`publish`] did not raise an event.
///
/// After [`RaiseError::Refused`] or [`RaiseError::Store`], PostgreSQL aborts the transaction. [`RaiseError::Field`] and
/// [`RaiseError::Json`] are found before the database is used, so the transaction can go on.
#[derive(Debug, thiserror::Error)]
pub enum RaiseError {
    /// A field is invalid.
    #[error("the event was not raised: {0}")]
    Field(#[from] FieldError),
    /// The event cannot be serialized.
    #[error("the event was not raised: it cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The database's check failed, for example because the id was raised before.
    #[error("the event was not raised: {problem}{}", remedy.as_ref().map(|remedy| format!(" ({remedy})")).unwrap_or_default())]
    Refused { problem: String, remedy: Option<String>, source: sqlx::Error },
    /// The database failed.
    #[error("the event was not raised: {0}")]
    Store(#[from] StoreError),
}

mod sealed {
    pub trait Sealed {}
}

/// An open transaction or a connection of sqlx, to PostgreSQL or SQLite. Sealed.
pub trait Producer: sealed::Sealed {
    #[doc(hidden)]
    fn raise(&mut self, event: String) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// Raises an event in an open transaction and returns the event's id.
///
/// Writes one row for the internal broker and, if `event.published` is set, one row for each external broker. The
/// rows are sent if the transaction commits; a rollback removes them. On a connection without a transaction, the
/// event is raised in a transaction of its own. An event without an id gets a random UUID.
///
/// # Errors
///
/// [`RaiseError`]: a field is invalid, the id was raised before, or the database failed.
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

/// Distinguishes an event that the database rejected from a failure of the database.
///
/// The check in SQL raises `invalid_parameter_value`; constraints have codes of their own on PostgreSQL and SQLite.
fn refused(error: sqlx::Error) -> RaiseError {
    if let sqlx::Error::Database(database) = &error {
        #[cfg(feature = "postgres")]
        let remedy = database.try_downcast_ref::<PgDatabaseError>().and_then(|error| error.hint());
        #[cfg(not(feature = "postgres"))]
        let remedy: Option<&str> = None;
        let code = database.code().unwrap_or_default();
        // Class 22: invalid data, such as a NUL in jsonb. 1811: RAISE in a trigger of SQLite.
        let is_event = code.len() == 5 && code.starts_with("22") || code == "23505" || code == "1811";
        if is_event || database.is_unique_violation() {
            let (problem, remedy) = (database.message().to_owned(), remedy.map(str::to_owned));
            return RaiseError::Refused { problem, remedy, source: error };
        }
    }
    StoreError::of("raising an event", error).into()
}

#[cfg(feature = "postgres")]
async fn raise_postgres(connection: &mut PgConnection, event: String) -> Result<(), sqlx::Error> {
    // The simple protocol prepares no statement, so it works behind a pooler in transaction mode.
    let statement = format!("SELECT hub_outbox.publish({}::jsonb)", dollar_quoted(&event));
    connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(statement))).await?;
    Ok(())
}

/// Quotes a text as a PostgreSQL literal with a tag that the text does not contain, so that the session's settings
/// do not matter (manual, 4.1.2.4).
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
