//! Arguments and results of the store, the same for both databases.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

use crate::unreadable::{Text, UnreadableColumn, time_of};
use hub_domain::producer_outbox::{Priority, Status};

/// The furthest due time of a row, in days: a wait and a claim last one at most, and clocks differ. What is due later was
/// written by a wrong clock or by another program.
pub(crate) const FURTHEST_DUE_DAYS: i64 = 2;

/// A selection of rows to claim.
#[derive(Debug, Clone)]
pub struct ClaimRequest<'a> {
    /// The target broker.
    pub broker: &'a str,
    pub priority: Priority,
    /// Name of the claimer, unique over all relays; only it may settle the rows.
    pub holder: &'a str,
    /// Maximum number of rows.
    pub limit: usize,
    /// Time after which the claim expires and other relays may claim the rows.
    pub claim_time: Duration,
    /// Streams to skip, such as those that another worker holds.
    pub passed_over: &'a [String],
}

/// A claimed row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedRow {
    /// Insertion order; identifies the row together with the broker.
    pub position: i64,
    pub message_id: String,
    /// The event key.
    pub event_type: String,
    pub stream: String,
    pub priority: Priority,
    /// True if the event is published, that is, also sent to external brokers.
    pub is_public: bool,
    /// The envelope to send, as JSON.
    pub payload: String,
    /// Number of failed attempts so far.
    pub attempts: u32,
    pub created_at: OffsetDateTime,
    /// The first value that cannot be read; another one is in its place here. Such a row is to be abandoned.
    pub unreadable: Option<UnreadableColumn>,
}

/// A claimed row whose attempt failed and which is retried.
#[derive(Debug, Clone)]
pub struct FailedAttempt {
    pub position: i64,
    pub error: String,
    /// Wait before the next attempt, by the database's clock.
    pub retry_after: Duration,
    /// True if the attempt counts; false if the broker had no room.
    pub counts: bool,
}

/// A claimed row to abandon.
#[derive(Debug, Clone)]
pub struct GivenUp {
    pub position: i64,
    pub reason: String,
}

/// Counts of the rows of one target broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = OutboxBrokerStatus))]
pub struct BrokerStatus {
    pub broker: String,
    /// True if published events get a row for this broker; always true for `internal`.
    pub configured: bool,
    pub pending: u64,
    pub processing: u64,
    pub failed: u64,
    pub published: u64,
    pub abandoned: u64,
    /// The time at which the oldest open row was raised.
    #[serde(with = "time::serde::rfc3339::option")]
    pub oldest_open_at: Option<OffsetDateTime>,
}

/// A filter on rows. An empty or missing field matches every row.
#[derive(Debug, Clone, Default)]
pub struct RowSelection {
    pub broker: Option<String>,
    pub statuses: Vec<Status>,
    pub message_ids: Vec<String>,
    pub stream: Option<String>,
    pub event_type: Option<String>,
}

/// The start of the next page or batch, after the row with this position and broker. Text form:
/// `<position>:<broker>`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowCursor {
    pub position: i64,
    pub broker: String,
}

/// A text that is not a [`RowCursor`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid cursor {0:?}; use the cursor of the previous answer, such as 120:internal")]
pub struct InvalidRowCursor(String);

impl RowCursor {
    /// The cursor after a row.
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
            // PostgreSQL refuses text that contains NUL.
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

/// Result of one batch of a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Number of rows changed.
    pub changed: u64,
    /// Start of the next batch; `None` after the last one.
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
    /// The time from which it may be claimed; for a claimed row, the end of the claim.
    #[serde(with = "time::serde::rfc3339::option")]
    pub due_at: Option<OffsetDateTime>,
    pub claimed_by: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The time at which it was published or abandoned.
    #[serde(with = "time::serde::rfc3339::option")]
    pub settled_at: Option<OffsetDateTime>,
    pub last_error: Option<String>,
}

/// Retention of settled rows.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    pub published: Duration,
    pub abandoned: Duration,
}

/// Changes of the registered external brokers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BrokerSync {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// Registered but not configured. They were kept, and still get published events.
    pub unconfigured: Vec<String>,
}

/// Schema versions before and after a setup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SetUp {
    /// Schema version before; 0 if there was no schema.
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
    /// `last`: number of rows changed, then position and broker of the last one. A batch of fewer than `full` rows is
    /// the last batch.
    pub(super) fn of(last: Option<(i64, i64, String)>, full: usize) -> Self {
        let Some((changed, position, broker)) = last else { return Self::default() };
        let changed = u64::try_from(changed).unwrap_or_default();
        Self { changed, next: (changed >= full as u64).then_some(RowCursor { position, broker }) }
    }
}

pub(super) type ClaimedColumns = (i64, Text, Text, Text, Text, bool, Text, i64, Option<i64>);
pub(super) type RowColumns =
    (i64, Text, Text, Text, Text, Text, Text, i64, Option<i64>, Option<Text>, i64, Option<i64>, Option<Text>);

impl ClaimedRow {
    /// `created_at` in microseconds since 1970; `None` if it cannot be expressed as such.
    pub(super) fn read(columns: ClaimedColumns) -> Self {
        let (position, message_id, event_type, stream, priority, is_public, payload, attempts, created_at) =
            columns;
        let texts = [
            ("message_id", &message_id),
            ("event_type", &event_type),
            ("stream", &stream),
            ("payload", &payload),
        ];
        let damaged = texts.into_iter().find(|(_, text)| text.valid().is_none());
        let damaged =
            damaged.map(|(column, _)| UnreadableColumn { column, problem: UnreadableColumn::NOT_UTF8 });
        let priority = priority.valid().and_then(priority_of);
        let created_at = created_at.and_then(time_of);
        let unreadable = damaged
            .or(match priority {
                Some(_) => None,
                None => Some(UnreadableColumn { column: "lane", problem: UnreadableColumn::NO_PRIORITY }),
            })
            .or(match created_at {
                Some(_) => None,
                None => Some(UnreadableColumn { column: "created_at", problem: UnreadableColumn::NO_TIME }),
            });
        Self {
            position,
            message_id: message_id.lossy(),
            event_type: event_type.lossy(),
            stream: stream.lossy(),
            priority: priority.unwrap_or(Priority::Live),
            is_public,
            payload: payload.lossy(),
            attempts: attempts_of(attempts),
            created_at: created_at.unwrap_or(OffsetDateTime::UNIX_EPOCH),
            unreadable,
        }
    }
}

impl Row {
    /// Times in microseconds since 1970. Every stored row can be listed: a time outside the years 1 to 9999 is shown as
    /// the nearest one inside.
    pub(super) fn read(columns: RowColumns) -> Result<Self, sqlx::Error> {
        #[rustfmt::skip]
        let (
            position, broker, message_id, event_type, stream, priority, status, attempts, due_at, claimed_by,
            created_at, settled_at, last_error,
        ) = columns;
        Ok(Self {
            position,
            broker: broker.lossy(),
            message_id: message_id.lossy(),
            event_type: event_type.lossy(),
            stream: stream.lossy(),
            priority: priority_of(&priority.lossy()).unwrap_or(Priority::Live),
            status: status_of(&status.lossy())?,
            attempts: attempts_of(attempts),
            due_at: due_at.map(nearest_time),
            claimed_by: claimed_by.map(Text::lossy),
            created_at: nearest_time(created_at),
            settled_at: settled_at.map(nearest_time),
            last_error: last_error.map(Text::lossy),
        })
    }
}

impl BrokerStatus {
    /// Joins counts by broker and status (`oldest` in microseconds since 1970) with the configured brokers; `internal`
    /// first, then by name.
    pub(super) fn join(
        configured: Vec<String>,
        counts: Vec<(Text, Text, i64, Option<i64>)>,
    ) -> Result<Vec<Self>, sqlx::Error> {
        let mut found: Vec<Self> = std::iter::once(hub_domain::producer_outbox::INTERNAL.to_owned())
            .chain(configured)
            .map(|broker| Self { broker, configured: true, ..Self::default() })
            .collect();
        for (broker, status, count, oldest) in counts {
            let (broker, status) = (broker.lossy(), status.lossy());
            let at = match found.iter().position(|known| known.broker == broker) {
                Some(at) => at,
                None => {
                    found.push(Self { broker, ..Self::default() });
                    found.len() - 1
                }
            };
            let row = &mut found[at];
            let status = status_of(&status)?;
            let place = match status {
                Status::Pending => &mut row.pending,
                Status::Processing => &mut row.processing,
                Status::Failed => &mut row.failed,
                Status::Published => &mut row.published,
                Status::Abandoned => &mut row.abandoned,
            };
            *place = u64::try_from(count).unwrap_or_default();
            if let Some(oldest) = oldest.filter(|_| status.is_open()).map(nearest_time) {
                row.oldest_open_at = Some(row.oldest_open_at.map_or(oldest, |known| known.min(oldest)));
            }
        }
        found[1..].sort_by(|a, b| a.broker.cmp(&b.broker));
        Ok(found)
    }
}

fn status_of(text: &str) -> Result<Status, sqlx::Error> {
    Status::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// Parses the column `lane`, which stores the priority.
fn priority_of(text: &str) -> Option<Priority> {
    Priority::ALL.into_iter().find(|priority| priority.as_str() == text)
}

/// A negative number of attempts counts as none.
fn attempts_of(stored: i64) -> u32 {
    u32::try_from(stored.max(0)).unwrap_or(u32::MAX)
}

fn nearest_time(microseconds: i64) -> OffsetDateTime {
    const FIRST: i64 = -62_135_596_800_000_000;
    const LAST: i64 = 253_402_300_799_999_999;
    time_of(microseconds.clamp(FIRST, LAST)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// A duration in milliseconds, as both databases store it.
pub(super) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2_000)
}
