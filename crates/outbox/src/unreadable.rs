//! Rows that other programs wrote, with values that the hub cannot read. Each is abandoned alone, with its reason.

use std::borrow::Cow;

use sqlx::error::BoxDynError;
use time::OffsetDateTime;

/// A value of a row that the hub cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {problem}; correct the value, then run `hub outbox retry`")]
pub struct UnreadableColumn {
    pub column: &'static str,
    pub problem: &'static str,
}

impl UnreadableColumn {
    pub(super) const NOT_UTF8: &'static str = "the text is not valid UTF-8";
    pub(super) const NO_PRIORITY: &'static str = "the priority is unknown";
    /// Of a time outside of what RFC 3339 can express.
    pub(super) const NO_TIME: &'static str = "the time is outside the years 1 to 9999";
    /// A row that never becomes due, and would block its stream.
    pub(super) const NEVER_DUE: Self = Self { column: "due_at", problem: "the time is after the year 9999" };
}

/// An abandoned row whose due time never comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeverDueRow {
    pub position: i64,
    pub broker: String,
    pub message_id: String,
    pub event_type: String,
    pub stream: String,
    pub reason: UnreadableColumn,
}

pub(super) type NeverDueColumns = (i64, Text, Text, Text, Text);

impl NeverDueRow {
    pub(super) fn read((position, broker, message_id, event_type, stream): NeverDueColumns) -> Self {
        Self {
            position,
            broker: broker.lossy(),
            message_id: message_id.lossy(),
            event_type: event_type.lossy(),
            stream: stream.lossy(),
            reason: UnreadableColumn::NEVER_DUE,
        }
    }
}

/// A text column. Its bytes may be invalid UTF-8: SQLite stores any (`CAST(x'ff' AS TEXT)`), and so does PostgreSQL in a
/// database with the encoding `SQL_ASCII`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text(Vec<u8>);

impl Text {
    #[cfg(feature = "sqlite")]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text, if it is valid.
    pub(super) fn valid(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The text, with replacement characters for invalid bytes.
    pub(super) fn lossy(self) -> String {
        String::from_utf8(self.0).unwrap_or_else(|invalid| {
            let text: Cow<'_, str> = String::from_utf8_lossy(invalid.as_bytes());
            text.into_owned()
        })
    }
}

#[cfg(feature = "postgres")]
impl sqlx::Type<sqlx::Postgres> for Text {
    fn type_info() -> sqlx::postgres::PgTypeInfo {
        <str as sqlx::Type<sqlx::Postgres>>::type_info()
    }
    fn compatible(column: &sqlx::postgres::PgTypeInfo) -> bool {
        <str as sqlx::Type<sqlx::Postgres>>::compatible(column)
    }
}

#[cfg(feature = "postgres")]
impl<'r> sqlx::Decode<'r, sqlx::Postgres> for Text {
    fn decode(value: sqlx::postgres::PgValueRef<'r>) -> Result<Self, BoxDynError> {
        // A text is the same in both formats of the protocol.
        Ok(Self(value.as_bytes()?.to_vec()))
    }
}

#[cfg(feature = "sqlite")]
impl sqlx::Type<sqlx::Sqlite> for Text {
    fn type_info() -> sqlx::sqlite::SqliteTypeInfo {
        <str as sqlx::Type<sqlx::Sqlite>>::type_info()
    }
    fn compatible(column: &sqlx::sqlite::SqliteTypeInfo) -> bool {
        <[u8] as sqlx::Type<sqlx::Sqlite>>::compatible(column)
    }
}

#[cfg(feature = "sqlite")]
impl<'r> sqlx::Decode<'r, sqlx::Sqlite> for Text {
    fn decode(value: sqlx::sqlite::SqliteValueRef<'r>) -> Result<Self, BoxDynError> {
        <Vec<u8> as sqlx::Decode<'r, sqlx::Sqlite>>::decode(value).map(Self)
    }
}

/// A time in microseconds since 1970; `None` outside the years 1 to 9999.
pub(super) fn time_of(microseconds: i64) -> Option<OffsetDateTime> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(microseconds) * 1_000).ok()?;
    (at.year() >= 1).then_some(at)
}
