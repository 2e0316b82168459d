//! The transactional outbox in the producer's database, to operate: looking into it, and orders on its rows.
//! No NATS server is asked for it.

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

/// Rows that one statement changes, or published events that one looks through: short transactions,
/// whatever is asked for.
const BATCH: usize = 1_000;
/// Largest envelope that is shown, in bytes.
pub const LARGEST_SHOWN: usize = 1024 * 1024;
/// What a discarded row has as its last error.
const DISCARDED: &str = "discarded by an operator";

/// The outbox. Clones share the connections.
#[derive(Debug, Clone)]
pub struct Outbox {
    store: Store,
    retention: Retention,
    cleanup_batch: usize,
    largest_event: u64,
}

/// What setting up found and did.
#[derive(Debug, Clone)]
pub struct MadeReady {
    pub schema: SetUp,
    pub brokers: BrokerSync,
}

/// Some rows, in order of insertion.
#[derive(Debug, Clone)]
pub struct RowPage {
    pub rows: Vec<Row>,
    /// Where more follow.
    pub next: Option<RowCursor>,
}

/// A row and its envelope.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = OutboxMessageDetails)]
pub struct RowDetails {
    #[serde(flatten)]
    pub row: Row,
    /// The envelope as it is sent; null where it is larger than 1 MiB, a string where it is no JSON.
    #[schema(value_type = serde_json::Value)]
    pub payload: Option<Box<RawValue>>,
}

/// What an order on many rows did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    pub rows: u64,
    /// Where to go on; None where all is done.
    pub next: Option<RowCursor>,
}

/// What is done batch by batch.
#[derive(Debug, Clone, Copy)]
enum Act<'a> {
    Retry(&'a RowSelection),
    Discard(&'a RowSelection),
    Cleanup,
    Reconcile,
}

impl Act<'_> {
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

/// How far an order on many rows goes, and who is told of it.
pub struct Course<F> {
    after: RowCursor,
    until: Option<Instant>,
    changed: F,
}

impl Course<fn(u64)> {
    /// Begins behind `after`; begins no batch when the time is over, but the first.
    pub fn within(limit: Duration, after: RowCursor) -> Self {
        Self { after, until: Some(Instant::now() + limit), changed: |_| {} }
    }
}

impl<F: FnMut(u64) + Send> Course<F> {
    /// From the first row to the last, however long it takes. `changed` is told of each batch how many rows
    /// it changed, and must not block.
    pub fn all(changed: F) -> Self {
        Self { after: RowCursor::default(), until: None, changed }
    }
}

impl Outbox {
    pub fn new(store: Store, settings: &Settings) -> Self {
        let outbox = &settings.outbox;
        let retention =
            Retention { published: outbox.published_retention, abandoned: outbox.abandoned_retention };
        let largest_event = settings.events.max_size.as_u64();
        Self { store, retention, cleanup_batch: outbox.cleanup_batch, largest_event }
    }

    /// Whether the database answers, and has an outbox of the version that this program needs.
    pub async fn check(&self) -> Result<(), ManagementError> {
        Ok(self.store.check().await?)
    }

    /// Ends all connections, when the calls under way are done.
    pub async fn close(&self) {
        self.store.close().await;
    }

    /// Makes the schema or brings it to this program's version, and tells it `events.max_size` and the external
    /// brokers. One that is not among them stays unless `prune` says otherwise.
    pub async fn set_up(&self, brokers: &[String], prune: bool) -> Result<MadeReady, ManagementError> {
        let schema = self.store.setup().await?;
        self.store.limit_events(self.largest_event).await?;
        Ok(MadeReady { schema, brokers: self.store.sync_brokers(brokers, prune).await? })
    }

    /// How many rows stand where, by target broker. Reads every row.
    pub async fn status(&self) -> Result<Vec<BrokerStatus>, ManagementError> {
        Ok(self.store.status().await?)
    }

    /// The rows of a selection behind the cursor, at most `limit`.
    pub async fn list(
        &self,
        selection: &RowSelection,
        after: &RowCursor,
        limit: usize,
    ) -> Result<RowPage, ManagementError> {
        storable(selection)?;
        // One more than is shown tells whether there is more.
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

    /// Refuses a selection that names ids without a row, on its broker where it names one.
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

    /// Makes the failed and abandoned rows of a selection pending anew, with all their attempts.
    pub async fn retry<F: FnMut(u64) + Send>(
        &self,
        selection: &RowSelection,
        course: Course<F>,
    ) -> Result<Changed, ManagementError> {
        storable(selection)?;
        self.each_batch(Act::Retry(selection), course).await
    }

    /// Abandons the pending and failed rows of a selection, unsent.
    pub async fn discard<F: FnMut(u64) + Send>(
        &self,
        selection: &RowSelection,
        course: Course<F>,
    ) -> Result<Changed, ManagementError> {
        storable(selection)?;
        self.each_batch(Act::Discard(selection), course).await
    }

    /// Deletes the published and abandoned rows that are older than the settings keep them. It always begins
    /// anew: what is deleted is not met again.
    pub async fn cleanup<F: FnMut(u64) + Send>(&self, course: Course<F>) -> Result<Changed, ManagementError> {
        self.each_batch(Act::Cleanup, course).await
    }

    /// Writes the external rows of published events that are missing.
    pub async fn reconcile<F: FnMut(u64) + Send>(
        &self,
        course: Course<F>,
    ) -> Result<Changed, ManagementError> {
        self.each_batch(Act::Reconcile, course).await
    }

    /// Makes one failed or abandoned row pending anew, and gives it as it is then.
    pub async fn retry_one(&self, broker: &str, message_id: &str) -> Result<Row, ManagementError> {
        self.change_one(Act::Retry(&one(broker, message_id)), broker, message_id).await
    }

    /// Abandons one pending or failed row, and gives it as it is then.
    pub async fn discard_one(&self, broker: &str, message_id: &str) -> Result<Row, ManagementError> {
        self.change_one(Act::Discard(&one(broker, message_id)), broker, message_id).await
    }

    async fn change_one(&self, act: Act<'_>, broker: &str, message_id: &str) -> Result<Row, ManagementError> {
        storable(&one(broker, message_id))?;
        let done = self.batch(act, &RowCursor::default(), 1).await?;
        let row = self.row(broker, message_id).await?;
        match done.changed {
            0 => Err(ManagementError::RowStands {
                id: row.message_id,
                status: row.status,
                verb: act.verb(),
                changes: act.changes(),
            }),
            _ => Ok(row),
        }
    }

    /// Goes through the batches; a failure tells how far it came.
    async fn each_batch<F: FnMut(u64) + Send>(
        &self,
        act: Act<'_>,
        mut course: Course<F>,
    ) -> Result<Changed, ManagementError> {
        let mut rows = 0;
        loop {
            let batch = self.batch(act, &course.after, BATCH).await.map_err(|source| match rows {
                0 => ManagementError::Store(source),
                done => ManagementError::OutboxHalfway { verb: act.verb(), done, source },
            })?;
            rows += batch.changed;
            (course.changed)(batch.changed);
            let is_over = course.until.is_some_and(|until| Instant::now() >= until);
            match batch.next {
                Some(next) if !is_over => course.after = next,
                next => return Ok(Changed { rows, next }),
            }
        }
    }

    async fn batch(&self, act: Act<'_>, after: &RowCursor, limit: usize) -> Result<Batch, StoreError> {
        match act {
            Act::Retry(selection) => self.store.retry(selection, after, limit).await,
            Act::Discard(selection) => self.store.discard(selection, DISCARDED, after, limit).await,
            Act::Cleanup => {
                let limit = self.cleanup_batch;
                let changed = self.store.cleanup(self.retention, limit).await?;
                Ok(Batch { changed, next: (changed >= limit as u64).then(RowCursor::default) })
            }
            Act::Reconcile => self.store.reconcile(after, limit).await,
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

/// PostgreSQL refuses a text with a NUL in it, and no row holds one.
fn storable(selection: &RowSelection) -> Result<(), ManagementError> {
    let RowSelection { broker, statuses: _, message_ids, stream, event_type } = selection;
    let texts = [("broker", broker), ("stream", stream), ("event_key", event_type)];
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?)));
    let refused = texts
        .chain(message_ids.iter().map(|id| ("id", id)))
        .filter(|(_, text)| text.contains('\0'))
        .map(|(name, _)| FieldError::new(name, "holds a NUL, which no row does; leave it out"));
    let refused: Vec<FieldError> = refused.collect();
    if refused.is_empty() { Ok(()) } else { Err(ManagementError::Invalid(refused)) }
}

/// What is no JSON, as a string.
fn json(text: String) -> Box<RawValue> {
    RawValue::from_string(text.clone())
        .unwrap_or_else(|_| serde_json::value::to_raw_value(&text).expect("a string is always JSON"))
}

/// The outbox for many who ask at once, beside a relay or without one: so many at a time, and none waits
/// long for its turn or for a database that is away.
#[derive(Debug, Clone)]
pub struct OutboxDesk {
    outbox: Outbox,
    turns: Arc<Semaphore>,
}

/// Somebody's turn, while it lasts.
pub struct Turn<'a> {
    outbox: &'a Outbox,
    _permit: SemaphorePermit<'a>,
}

impl std::ops::Deref for Turn<'_> {
    type Target = Outbox;
    fn deref(&self) -> &Outbox {
        self.outbox
    }
}

impl OutboxDesk {
    /// Who have their turn at once: the connections that it needs.
    pub const TURNS: u32 = 2;
    /// Longest wait for a turn and the first answer of the database; longer than that for its connection, whose error
    /// says more.
    const PATIENCE: Duration = Duration::from_secs(5);

    pub fn new(outbox: Outbox) -> Self {
        Self { outbox, turns: Arc::new(Semaphore::new(Self::TURNS as usize)) }
    }

    /// Waits for a turn, and asks the database whether it has an outbox.
    pub async fn turn(&self) -> Result<Turn<'_>, ManagementError> {
        let deadline = Instant::now() + Self::PATIENCE;
        let permit = tokio::time::timeout_at(deadline, self.turns.acquire()).await;
        let permit =
            permit.map_err(|_| ManagementError::OutboxBusy)?.map_err(|_| ManagementError::Stopping)?;
        let away = StoreError::Timeout { operation: "asking its version", limit: Self::PATIENCE };
        tokio::time::timeout_at(deadline, self.outbox.check()).await.map_err(|_| away)??;
        Ok(Turn { outbox: &self.outbox, _permit: permit })
    }
}
