//! Operates the producer outbox, the tables in the producer's own database: shows its rows and changes them. Needs no
//! NATS server.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::ManagementError;
use crate::domain::field_error::FieldError;
use crate::settings::Settings;
use hub_outbox::{Batch, Retention};
pub use hub_outbox::{BrokerStatus, BrokerSync, Row, RowCursor, RowSelection, SetUp, Store, StoreError};

/// Rows that one statement changes, or published events that it reads, so that transactions stay short.
const BATCH: usize = 1_000;
/// Size of the largest envelope that is shown, in bytes.
pub const LARGEST_SHOWN: usize = 1024 * 1024;
/// The last error of a discarded row.
const DISCARDED: &str = "discarded by an operator";

/// The producer outbox. Clones share the connections.
#[derive(Debug, Clone)]
pub struct ProducerOutbox {
    store: Store,
    retention: Retention,
    cleanup_batch: usize,
    largest_event: u64,
}

/// The result of the set-up.
#[derive(Debug, Clone)]
pub struct SetUpReport {
    pub schema: SetUp,
    pub brokers: BrokerSync,
}

/// A page of rows, in order of insertion.
#[derive(Debug, Clone)]
pub struct RowPage {
    pub rows: Vec<Row>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<RowCursor>,
}

/// A row and its envelope.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = OutboxMessageDetails)]
pub struct RowDetails {
    #[serde(flatten)]
    pub row: Row,
    /// The envelope as it is sent; null if it is larger than 1 MiB, a string if it is not JSON.
    #[schema(value_type = serde_json::Value)]
    pub payload: Option<Box<RawValue>>,
}

/// The result of an operation on many rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangedRows {
    pub rows: u64,
    /// Where to continue; `None` if everything is done.
    pub next: Option<RowCursor>,
}

/// An operation that runs batch by batch.
#[derive(Debug, Clone, Copy)]
enum RowOperation<'a> {
    Retry(&'a RowSelection),
    Discard(&'a RowSelection),
    Cleanup,
    Reconcile,
}

impl RowOperation<'_> {
    fn verb(self) -> &'static str {
        match self {
            Self::Retry(_) => "retried",
            Self::Discard(_) => "discarded",
            Self::Cleanup => "deleted",
            Self::Reconcile => "written",
        }
    }

    /// The statuses of the rows that it changes.
    fn changes(self) -> &'static str {
        match self {
            Self::Retry(_) => "failed and abandoned",
            Self::Discard(_) => "pending and failed",
            Self::Cleanup => "published and abandoned",
            Self::Reconcile => "missing",
        }
    }
}

/// Where an operation on many rows starts, when it stops, and a callback for its progress.
pub struct BatchRun<F> {
    after: RowCursor,
    until: Option<Instant>,
    changed: F,
}

impl BatchRun<fn(u64)> {
    /// Starts after the cursor `after`. Starts no further batch once the time limit has passed; the first always runs.
    pub fn limited(limit: Duration, after: RowCursor) -> Self {
        Self { after, until: Some(Instant::now() + limit), changed: |_| {} }
    }
}

impl<F: FnMut(u64) + Send> BatchRun<F> {
    /// All rows, without a time limit. `changed` gets the number of rows that each batch changed, and must not block.
    pub fn unlimited(changed: F) -> Self {
        Self { after: RowCursor::default(), until: None, changed }
    }
}

impl ProducerOutbox {
    pub fn new(store: Store, settings: &Settings) -> Self {
        let outbox = &settings.outbox;
        let retention =
            Retention { published: outbox.published_retention, abandoned: outbox.abandoned_retention };
        let largest_event = settings.events.max_size.as_u64();
        Self { store, retention, cleanup_batch: outbox.cleanup_batch, largest_event }
    }

    /// Checks that the database answers and that its schema has the version that this program needs.
    pub async fn check(&self) -> Result<(), ManagementError> {
        Ok(self.store.check().await?)
    }

    /// Closes all connections after the calls in progress.
    pub async fn close(&self) {
        self.store.close().await;
    }

    /// Creates or migrates the schema, and registers `events.max_size` and the external brokers. Removes other brokers if
    /// `prune` is set.
    pub async fn set_up(&self, brokers: &[String], prune: bool) -> Result<SetUpReport, ManagementError> {
        let schema = self.store.setup().await?;
        self.store.limit_events(self.largest_event).await?;
        Ok(SetUpReport { schema, brokers: self.store.sync_brokers(brokers, prune).await? })
    }

    /// The number of rows per target broker and status. Reads every row.
    pub async fn status(&self) -> Result<Vec<BrokerStatus>, ManagementError> {
        Ok(self.store.status().await?)
    }

    /// At most `limit` rows of a selection after the cursor.
    pub async fn list(
        &self,
        selection: &RowSelection,
        after: &RowCursor,
        limit: usize,
    ) -> Result<RowPage, ManagementError> {
        reject_nul(selection)?;
        // One row more shows whether there is another page.
        let mut rows = self.store.list(selection, after, limit.saturating_add(1)).await?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        Ok(RowPage { next: rows.last().filter(|_| more).map(RowCursor::of), rows })
    }

    /// One row with its envelope.
    pub async fn read(&self, broker: &str, message_id: &str) -> Result<RowDetails, ManagementError> {
        let row = self.row(broker, message_id).await?;
        let payload = self.store.payload(broker, message_id).await?;
        let payload = payload.filter(|text| text.len() <= LARGEST_SHOWN).map(json);
        Ok(RowDetails { row, payload })
    }

    async fn row(&self, broker: &str, message_id: &str) -> Result<Row, ManagementError> {
        let mut page = self.list(&one(broker, message_id), &RowCursor::default(), 1).await?;
        page.rows.pop().ok_or_else(|| ManagementError::NoRow { ids: vec![message_id.to_owned()] })
    }

    /// Fails if the selection has ids without a row (on its broker, if it has one).
    pub async fn check_ids(&self, selection: &RowSelection) -> Result<(), ManagementError> {
        if selection.message_ids.is_empty() {
            return Ok(());
        }
        let named = RowSelection {
            message_ids: selection.message_ids.clone(),
            broker: selection.broker.clone(),
            ..RowSelection::default()
        };
        let (mut found, mut after) = (HashSet::new(), Some(RowCursor::default()));
        while let Some(cursor) = after {
            let page = self.list(&named, &cursor, BATCH).await?;
            found.extend(page.rows.into_iter().map(|row| row.message_id));
            after = page.next;
        }
        let missing = selection.message_ids.iter().filter(|id| !found.contains(*id));
        let ids: Vec<String> = missing.cloned().collect();
        if ids.is_empty() { Ok(()) } else { Err(ManagementError::NoRow { ids }) }
    }

    /// Makes the failed and abandoned rows of a selection pending again, with all attempts left.
    pub async fn retry<F: FnMut(u64) + Send>(
        &self,
        selection: &RowSelection,
        course: BatchRun<F>,
    ) -> Result<ChangedRows, ManagementError> {
        reject_nul(selection)?;
        self.each_batch(RowOperation::Retry(selection), course).await
    }

    /// Abandons the pending and failed rows of a selection without sending them.
    pub async fn discard<F: FnMut(u64) + Send>(
        &self,
        selection: &RowSelection,
        course: BatchRun<F>,
    ) -> Result<ChangedRows, ManagementError> {
        reject_nul(selection)?;
        self.each_batch(RowOperation::Discard(selection), course).await
    }

    /// Deletes published and abandoned rows that are older than their retention. Each batch starts at the first row,
    /// because deleted rows are gone.
    pub async fn cleanup<F: FnMut(u64) + Send>(
        &self,
        course: BatchRun<F>,
    ) -> Result<ChangedRows, ManagementError> {
        self.each_batch(RowOperation::Cleanup, course).await
    }

    /// Inserts missing rows of published events for external brokers.
    pub async fn reconcile<F: FnMut(u64) + Send>(
        &self,
        course: BatchRun<F>,
    ) -> Result<ChangedRows, ManagementError> {
        self.each_batch(RowOperation::Reconcile, course).await
    }

    /// Makes one failed or abandoned row pending again, and returns it.
    pub async fn retry_one(&self, broker: &str, message_id: &str) -> Result<Row, ManagementError> {
        self.change_one(RowOperation::Retry(&one(broker, message_id)), broker, message_id).await
    }

    /// Abandons one pending or failed row, and returns it.
    pub async fn discard_one(&self, broker: &str, message_id: &str) -> Result<Row, ManagementError> {
        self.change_one(RowOperation::Discard(&one(broker, message_id)), broker, message_id).await
    }

    async fn change_one(
        &self,
        act: RowOperation<'_>,
        broker: &str,
        message_id: &str,
    ) -> Result<Row, ManagementError> {
        reject_nul(&one(broker, message_id))?;
        let done = self.batch(act, &RowCursor::default(), 1).await?;
        let row = self.row(broker, message_id).await?;
        match done.changed {
            0 => Err(ManagementError::WrongRowStatus {
                id: row.message_id,
                status: row.status,
                verb: act.verb(),
                changes: act.changes(),
            }),
            _ => Ok(row),
        }
    }

    /// Runs all batches. An error holds the number of rows changed before.
    async fn each_batch<F: FnMut(u64) + Send>(
        &self,
        act: RowOperation<'_>,
        mut course: BatchRun<F>,
    ) -> Result<ChangedRows, ManagementError> {
        let mut rows = 0;
        loop {
            let batch = self.batch(act, &course.after, BATCH).await.map_err(|source| match rows {
                0 => ManagementError::Store(source),
                done => ManagementError::RowsPartlyChanged { verb: act.verb(), done, source },
            })?;
            rows += batch.changed;
            (course.changed)(batch.changed);
            let is_over = course.until.is_some_and(|until| Instant::now() >= until);
            match batch.next {
                Some(next) if !is_over => course.after = next,
                next => return Ok(ChangedRows { rows, next }),
            }
        }
    }

    async fn batch(
        &self,
        act: RowOperation<'_>,
        after: &RowCursor,
        limit: usize,
    ) -> Result<Batch, StoreError> {
        match act {
            RowOperation::Retry(selection) => self.store.retry(selection, after, limit).await,
            RowOperation::Discard(selection) => self.store.discard(selection, DISCARDED, after, limit).await,
            RowOperation::Cleanup => {
                let limit = self.cleanup_batch;
                let changed = self.store.cleanup(self.retention, limit).await?;
                Ok(Batch { changed, next: (changed >= limit as u64).then(RowCursor::default) })
            }
            RowOperation::Reconcile => self.store.reconcile(after, limit).await,
        }
    }
}

fn one(broker: &str, message_id: &str) -> RowSelection {
    RowSelection {
        broker: Some(broker.to_owned()),
        message_ids: vec![message_id.to_owned()],
        ..RowSelection::default()
    }
}

/// Rejects NUL characters: PostgreSQL does not accept them, and no row holds one.
fn reject_nul(selection: &RowSelection) -> Result<(), ManagementError> {
    let RowSelection { broker, statuses: _, message_ids, stream, event_type } = selection;
    let texts = [("broker", broker), ("stream", stream), ("event_key", event_type)];
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?)));
    let refused = texts
        .chain(message_ids.iter().map(|id| ("id", id)))
        .filter(|(_, text)| text.contains('\0'))
        .map(|(name, _)| FieldError::new(name, "contains a NUL character, which no row does; remove it"));
    let refused: Vec<FieldError> = refused.collect();
    if refused.is_empty() { Ok(()) } else { Err(ManagementError::Invalid(refused)) }
}

/// The text as JSON; a string if it is not JSON.
fn json(text: String) -> Box<RawValue> {
    RawValue::from_string(text.clone())
        .unwrap_or_else(|_| serde_json::value::to_raw_value(&text).expect("a string is always JSON"))
}

/// The producer outbox for many concurrent callers. It limits the number of sessions, and the time that a caller waits
/// for a session or for an unavailable database.
#[derive(Debug, Clone)]
pub struct ProducerOutboxAdmin {
    outbox: ProducerOutbox,
    sessions: Arc<Semaphore>,
}

/// A caller's access to the producer outbox.
pub struct AdminSession<'a> {
    outbox: &'a ProducerOutbox,
    _permit: SemaphorePermit<'a>,
}

impl std::ops::Deref for AdminSession<'_> {
    type Target = ProducerOutbox;
    fn deref(&self) -> &ProducerOutbox {
        self.outbox
    }
}

impl ProducerOutboxAdmin {
    /// Maximum number of sessions, which is the number of connections needed.
    pub const SESSIONS: u32 = 2;
    /// Longest wait for a session and the first answer of the database. It is longer than the connection timeout, whose
    /// error says more.
    const PATIENCE: Duration = Duration::from_secs(5);

    pub fn new(outbox: ProducerOutbox) -> Self {
        Self { outbox, sessions: Arc::new(Semaphore::new(Self::SESSIONS as usize)) }
    }

    /// Waits for a session, and checks the database.
    pub async fn session(&self) -> Result<AdminSession<'_>, ManagementError> {
        let deadline = Instant::now() + Self::PATIENCE;
        let permit = tokio::time::timeout_at(deadline, self.sessions.acquire()).await;
        let permit = permit
            .map_err(|_| ManagementError::ProducerOutboxBusy)?
            .map_err(|_| ManagementError::Stopping)?;
        let timeout = StoreError::Timeout { operation: "reading the schema version", limit: Self::PATIENCE };
        tokio::time::timeout_at(deadline, self.outbox.check()).await.map_err(|_| timeout)??;
        Ok(AdminSession { outbox: &self.outbox, _permit: permit })
    }
}
