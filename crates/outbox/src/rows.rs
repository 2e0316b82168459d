//! What goes into the store and what comes out, the same for each database.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

use hub_domain::producer_outbox::{Priority, Status};

/// Which rows to claim.
#[derive(Debug, Clone)]
pub struct ClaimRequest<'a> {
    /// The target broker.
    pub broker: &'a str,
    pub priority: Priority,
    /// Names who claims, uniquely over all relays: only it may settle what it claimed.
    pub holder: &'a str,
    /// The most rows.
    pub limit: usize,
    /// After this the claim expires, and others may take the rows.
    pub claim_time: Duration,
    /// Streams to pass over: those that are known to be in other hands cost the claim less so.
    pub passed_over: &'a [String],
}

/// A row in the hands of whoever claimed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedRow {
    /// The order of insertion, and with the broker what names the row.
    pub position: i64,
    pub message_id: String,
    /// The event key.
    pub event_type: String,
    pub stream: String,
    pub priority: Priority,
    /// Whether the event is published, so that external brokers are to have it too.
    pub is_public: bool,
    /// The envelope, as it is to be sent.
    pub payload: String,
    /// Failed attempts so far.
    pub attempts: u32,
    pub created_at: OffsetDateTime,
}

/// A claimed row whose attempt failed, and is to be tried again.
#[derive(Debug, Clone)]
pub struct FailedAttempt {
    pub position: i64,
    pub error: String,
    /// The wait, by the database's clock.
    pub retry_after: Duration,
    /// Whether it counts among the row's attempts: not where the broker had no room.
    pub counts: bool,
}

/// A claimed row that is given up.
#[derive(Debug, Clone)]
pub struct GivenUp {
    pub position: i64,
    pub reason: String,
}

/// How the rows of one target broker stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = OutboxBrokerStatus))]
pub struct BrokerStatus {
    pub broker: String,
    /// Whether events are forked to it; `internal` always is.
    pub configured: bool,
    pub pending: u64,
    pub processing: u64,
    pub failed: u64,
    pub published: u64,
    pub abandoned: u64,
    /// When the oldest row was raised that is neither published nor abandoned.
    #[serde(with = "time::serde::rfc3339::option")]
    pub oldest_open_at: Option<OffsetDateTime>,
}

/// Which rows an operator means; what is not given does not restrict.
#[derive(Debug, Clone, Default)]
pub struct RowSelection {
    pub broker: Option<String>,
    pub statuses: Vec<Status>,
    pub message_ids: Vec<String>,
    pub stream: Option<String>,
    pub event_type: Option<String>,
}

/// Where a list or a change in batches goes on: after the row of this position and broker. Written as
/// `<position>:<broker>`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowCursor {
    pub position: i64,
    pub broker: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no cursor: write it as the answer before gave it, such as 120:internal")]
pub struct InvalidRowCursor(String);

impl RowCursor {
    /// Behind this row.
    pub fn of(row: &Row) -> Self {
        Self { position: row.position, broker: row.broker.clone() }
    }
}

impl FromStr for RowCursor {
    type Err = InvalidRowCursor;
    fn from_str(text: &str) -> Result<Self, InvalidRowCursor> {
        let read = || {
            let (position, broker) = text.split_once(':')?;
            let position = position.parse().ok()?;
            // (PostgreSQL refuses a text with a NUL in it.)
            (!broker.contains('\0')).then(|| Self { position, broker: broker.to_owned() })
        };
        read().ok_or_else(|| InvalidRowCursor(text.to_owned()))
    }
}

impl fmt::Display for RowCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.position, self.broker)
    }
}

/// One batch of a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub changed: u64,
    /// Where the next batch begins; None after the last one.
    pub next: Option<RowCursor>,
}

/// A row as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = OutboxMessage))]
pub struct Row {
    /// The order of insertion, the same for all rows of one event.
    pub position: i64,
    /// The target broker.
    pub broker: String,
    /// The event's id.
    pub message_id: String,
    /// The event key.
    pub event_type: String,
    pub stream: String,
    #[serde(rename = "lane")]
    pub priority: Priority,
    pub status: Status,
    pub attempts: u32,
    /// When it may be claimed; of a claimed row, when the claim expires.
    #[serde(with = "time::serde::rfc3339::option")]
    pub due_at: Option<OffsetDateTime>,
    pub claimed_by: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was published or abandoned.
    #[serde(with = "time::serde::rfc3339::option")]
    pub settled_at: Option<OffsetDateTime>,
    pub last_error: Option<String>,
}

/// How long settled rows are kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    pub published: Duration,
    pub abandoned: Duration,
}

/// What the configured external brokers made of those the database knew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BrokerSync {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// In the database, not configured, and left there: published events are still forked to them.
    pub unconfigured: Vec<String>,
}

/// What `setup` found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SetUp {
    /// The schema version before; 0 where there was none.
    pub from: i64,
    pub to: i64,
}

impl BrokerSync {
    /// `others`: those in the database that are not configured; removed where `pruned`.
    pub(super) fn of(added: Vec<String>, others: Vec<String>, pruned: bool) -> Self {
        let (removed, unconfigured) = if pruned { (others, Vec::new()) } else { (Vec::new(), others) };
        Self { added, removed, unconfigured }
    }
}

impl Batch {
    /// `last`: the rows changed, and the position and broker of the last row of the batch. A batch that
    /// changed fewer than `full` rows was the last.
    pub(super) fn of(last: Option<(i64, i64, String)>, full: usize) -> Self {
        let Some((changed, position, broker)) = last else { return Self::default() };
        let changed = u64::try_from(changed).unwrap_or_default();
        Self { changed, next: (changed >= full as u64).then_some(RowCursor { position, broker }) }
    }
}

pub(super) type ClaimedColumns = (i64, String, String, String, String, bool, String, i64, i64);
pub(super) type RowColumns = (
    i64,
    String,
    String,
    String,
    String,
    String,
    String,
    i64,
    Option<i64>,
    Option<String>,
    i64,
    Option<i64>,
    Option<String>,
);

impl ClaimedRow {
    /// `created_at` in microseconds since 1970.
    pub(super) fn read(columns: ClaimedColumns) -> Result<Self, sqlx::Error> {
        let (position, message_id, event_type, stream, lane, is_public, payload, attempts, created_at) =
            columns;
        Ok(Self {
            position,
            message_id,
            event_type,
            stream,
            priority: priority_of(&lane)?,
            is_public,
            payload,
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
            created_at: time_of(created_at)?,
        })
    }
}

impl Row {
    /// Times in microseconds since 1970.
    pub(super) fn read(columns: RowColumns) -> Result<Self, sqlx::Error> {
        #[rustfmt::skip]
        let (
            position, broker, message_id, event_type, stream, lane, status, attempts, due_at, claimed_by, created_at,
            settled_at, last_error,
        ) = columns;
        Ok(Self {
            position,
            broker,
            message_id,
            event_type,
            stream,
            priority: priority_of(&lane)?,
            status: status.parse().map_err(|problem: String| sqlx::Error::Decode(problem.into()))?,
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
            due_at: due_at.map(time_of).transpose()?,
            claimed_by,
            created_at: time_of(created_at)?,
            settled_at: settled_at.map(time_of).transpose()?,
            last_error,
        })
    }
}

impl BrokerStatus {
    /// Joins the counts by broker and status (`oldest` in microseconds since 1970) with the brokers that are
    /// configured; in order of names, `internal` first.
    pub(super) fn join(
        configured: Vec<String>,
        counts: Vec<(String, String, i64, Option<i64>)>,
    ) -> Result<Vec<Self>, sqlx::Error> {
        let mut found: Vec<Self> = std::iter::once(hub_domain::producer_outbox::INTERNAL.to_owned())
            .chain(configured)
            .map(|broker| Self { broker, configured: true, ..Self::default() })
            .collect();
        for (broker, status, count, oldest) in counts {
            let at = match found.iter().position(|known| known.broker == broker) {
                Some(at) => at,
                None => {
                    found.push(Self { broker, ..Self::default() });
                    found.len() - 1
                }
            };
            let row = &mut found[at];
            let status: Status =
                status.parse().map_err(|problem: String| sqlx::Error::Decode(problem.into()))?;
            let place = match status {
                Status::Pending => &mut row.pending,
                Status::Processing => &mut row.processing,
                Status::Failed => &mut row.failed,
                Status::Published => &mut row.published,
                Status::Abandoned => &mut row.abandoned,
            };
            *place = u64::try_from(count).unwrap_or_default();
            if let Some(oldest) = oldest.filter(|_| status.is_open()).map(time_of).transpose()? {
                row.oldest_open_at = Some(row.oldest_open_at.map_or(oldest, |known| known.min(oldest)));
            }
        }
        found[1..].sort_by(|a, b| a.broker.cmp(&b.broker));
        Ok(found)
    }
}

fn priority_of(text: &str) -> Result<Priority, sqlx::Error> {
    Priority::ALL
        .into_iter()
        .find(|lane| lane.as_str() == text)
        .ok_or_else(|| sqlx::Error::Decode(format!("{text:?} is no lane").into()))
}

fn time_of(microseconds: i64) -> Result<OffsetDateTime, sqlx::Error> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(microseconds) * 1_000)
        .map_err(|error| sqlx::Error::Decode(error.into()))
}

/// As the databases take it.
pub(super) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2_000)
}
