//! One round: publishes claimed rows in the order of each stream, and settles them as the broker answers. The steps
//! are those of `tests/outbox/protocol.rs`. Rows that are not settled at the end are released.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Scope;
use super::database::Database;
use super::processor::{Processor, Target, as_logged};
use crate::domain::producer_outbox::AfterFailure;
use crate::facts::{RowAbandoned, RowPublished, RowRefused, RowsAbandoned, RowsPublished, RowsRefused};
use crate::panics::{self, Panicked};
use crate::sinks::{OutgoingMessage, PublishError};
use hub_outbox::{ClaimedRow, FailedAttempt, GivenUp, StoreError};

/// Streams that are published concurrently: to the hub's own server as many as the Event Processor publishes, to others
/// as many as each adapter has channels.
const INTERNAL_STREAMS_AT_ONCE: usize = 256;
const EXTERNAL_STREAMS_AT_ONCE: usize = 64;
/// Most rows of one stream in one call to the broker. Between two calls the round checks whether to stop.
const MOST_PER_PUBLISH: usize = 128;
/// Most rows that one statement settles.
const MOST_PER_STATEMENT: usize = 1_000;

/// The result of rows.
enum Settled {
    /// The broker acknowledged them.
    Published(Vec<i64>),
    Failed(FailedAttempt),
    /// Abandoned. The sender reports that it is written: only then the rows behind it may be published.
    Abandoned(GivenUp, oneshot::Sender<()>),
}

/// One statement to the database.
enum Statement<'a> {
    Published(&'a [i64]),
    Failed(&'a [FailedAttempt]),
    Abandoned(&'a [GivenUp]),
    Released(&'a [i64]),
}

pub(super) struct Round<'a> {
    processor: &'a Processor,
    /// Unique to this claim, so that a late statement of an earlier one settles nothing.
    holder: &'a str,
    /// The rows that are claimed and not settled, each with its stream.
    open: Mutex<HashMap<i64, Arc<str>>>,
    /// When the claim may expire by this process's clock, which was read before the claim.
    held_until: Mutex<Instant>,
    /// Nothing more is published.
    is_halted: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Round<'a> {
    /// `claimed_at`: when the claim was asked for.
    pub(super) fn new(processor: &'a Processor, holder: &'a str, claimed_at: Instant) -> Self {
        Self {
            processor,
            holder,
            open: Mutex::default(),
            held_until: Mutex::new(claimed_at + processor.settings.claim_time),
            is_halted: AtomicBool::new(false),
        }
    }

    /// Publishes the rows. Ends soon after the broker becomes unavailable, after the claim has expired, and within the
    /// grace period of a stop. The error is the database's: rows that are not settled are claimed again after the
    /// claim has expired.
    pub(super) async fn run(self, rows: Vec<ClaimedRow>) -> Result<(), StoreError> {
        *lock(&self.open) = self.processor.in_hand.take(&rows);
        let (results, settled) = mpsc::channel(rows.len().max(1));
        let streams = by_stream(rows);
        let at_once = match self.processor.target.scope {
            Scope::Internal => INTERNAL_STREAMS_AT_ONCE,
            Scope::External => EXTERNAL_STREAMS_AT_ONCE,
        };
        let publishing = async {
            let all = stream::iter(streams)
                .for_each_concurrent(at_once, |rows| self.publish_stream(rows, &results));
            tokio::select! {
                () = all => {}
                () = self.processor.cut.cancelled() => {}
            }
            drop(results);
        };
        let work = async { tokio::join!(publishing, self.settle(settled)).1 };
        let done = tokio::select! {
            done = work => done,
            never = self.keep_claim() => match never {},
        };
        // Also after an error, so that these rows need not wait until the claim expires.
        let rest: Vec<i64> = lock(&self.open).keys().copied().collect();
        let released = if rest.is_empty() { Ok(0) } else { self.write(Statement::Released(&rest)).await };
        self.close(rest.into_iter());
        done.and(released.map(drop))
    }

    fn is_halted(&self) -> bool {
        self.is_halted.load(Ordering::Relaxed)
            || self.processor.stop.is_cancelled()
            || Instant::now() >= *lock(&self.held_until)
    }

    fn halt(&self) {
        self.is_halted.store(true, Ordering::Relaxed);
    }

    /// Publishes the rows of one stream in order. A row is published after the one before it is acknowledged or
    /// abandoned.
    async fn publish_stream(&self, mut rows: Vec<ClaimedRow>, results: &mpsc::Sender<Settled>) {
        // A row that cannot become a message has an error in its place.
        let prepared: Vec<Result<OutgoingMessage, PublishError>> =
            rows.iter_mut().map(|row| outgoing(&self.processor.target, row)).collect();
        let mut unfit = HashMap::new();
        let mut messages = Vec::with_capacity(rows.len());
        for (place, message) in prepared.into_iter().enumerate() {
            messages.push(message.unwrap_or_else(|error| {
                unfit.insert(place, error);
                OutgoingMessage::default()
            }));
        }
        let (mut next, mut most) = (0, MOST_PER_PUBLISH);
        while next < rows.len() && !self.is_halted() {
            let end = (next..rows.len()).take(most).find(|place| unfit.contains_key(place));
            let end = end.unwrap_or(rows.len().min(next + most));
            let asked_at = Instant::now();
            let (acknowledged, error) = match unfit.remove(&next) {
                Some(error) => (0, Some(error)),
                None => {
                    let group = &messages[next..end];
                    match panics::catch_async(self.processor.target.broker.publish(group)).await {
                        Ok(published) => (published.acknowledged.min(group.len()), published.error),
                        // Which one it was shows when each is published alone.
                        Err(_) if group.len() > 1 => {
                            most = 1;
                            continue;
                        }
                        Err(panicked) => (0, Some(refused(&panicked))),
                    }
                }
            };
            if acknowledged > 0 {
                let published = &rows[next..next + acknowledged];
                self.acknowledged(published, asked_at);
                let positions = published.iter().map(|row| row.position).collect();
                if results.send(Settled::Published(positions)).await.is_err() {
                    return;
                }
                next += acknowledged;
            }
            let Some(row) = rows.get(next) else { return };
            let error = match error {
                Some(error) => error,
                None if acknowledged > 0 => continue,
                None => PublishError::unavailable(format!("{}: no answer at all", row.message_id)),
            };
            if !self.carry_out(row, &error, results).await {
                return;
            }
            next += 1;
        }
    }

    fn acknowledged(&self, rows: &[ClaimedRow], asked_at: Instant) {
        self.processor.availability.worked(asked_at);
        let now = OffsetDateTime::now_utc();
        for row in rows {
            // The database's clock may be ahead of this one.
            let lag = Duration::try_from(now - row.created_at).unwrap_or_default();
            RowPublished { row: as_logged(row, row.attempts), lag }.emit(&self.processor.metrics);
        }
    }

    /// Carries out what a failure means for the row that caused it. True if the rows behind it may be published.
    async fn carry_out(
        &self,
        row: &ClaimedRow,
        error: &PublishError,
        results: &mpsc::Sender<Settled>,
    ) -> bool {
        let retry = &self.processor.settings.retry;
        let after = match error {
            PublishError::Unavailable { .. } => {
                self.halt();
                self.processor.availability.lost(error);
                return false;
            }
            PublishError::NoRoom { .. } => AfterFailure::Retry { after: retry.wait_for_room(rand::random()) },
            PublishError::Refused { .. } => retry.after_failure(row.attempts, false, rand::random()),
            PublishError::Permanent { .. } => AfterFailure::Abandon,
        };
        let counts = !matches!(error, PublishError::NoRoom { .. });
        match after {
            AfterFailure::Retry { after } => {
                let row_logged = as_logged(row, row.attempts + u32::from(counts));
                RowRefused { row: row_logged, error, retry_in: after }.emit(&self.processor.metrics);
                let failed = FailedAttempt {
                    position: row.position,
                    error: error.to_string(),
                    retry_after: after,
                    counts,
                };
                // If the receiver is gone, the row is released.
                let _ = results.send(Settled::Failed(failed)).await;
                false
            }
            AfterFailure::Abandon => {
                let (written, is_written) = oneshot::channel();
                let given_up = GivenUp { position: row.position, reason: error.to_string() };
                if results.send(Settled::Abandoned(given_up, written)).await.is_err()
                    || is_written.await.is_err()
                {
                    return false;
                }
                RowAbandoned { row: as_logged(row, row.attempts), reason: error }
                    .emit(&self.processor.metrics);
                true
            }
        }
    }

    /// Writes the results of the rows in batches.
    async fn settle(&self, mut results: mpsc::Receiver<Settled>) -> Result<(), StoreError> {
        let mut chunk = Vec::new();
        while results.recv_many(&mut chunk, MOST_PER_STATEMENT).await > 0 {
            if let Err(error) = self.write_all(&mut chunk).await {
                self.halt();
                return Err(error);
            }
        }
        Ok(())
    }

    async fn write_all(&self, chunk: &mut Vec<Settled>) -> Result<(), StoreError> {
        let (mut published, mut failed) = (Vec::new(), Vec::new());
        let (mut abandoned, mut waiting) = (Vec::new(), Vec::new());
        for settled in chunk.drain(..) {
            match settled {
                Settled::Published(positions) => published.extend(positions),
                Settled::Failed(attempt) => failed.push(attempt),
                Settled::Abandoned(row, written) => {
                    abandoned.push(row);
                    waiting.push(written);
                }
            }
        }
        let metrics = &self.processor.metrics;
        if !published.is_empty() {
            let written = self.write(Statement::Published(&published)).await?;
            RowsPublished { written }.emit(metrics);
            self.close(published.iter().copied());
        }
        if let Some(first) = failed.first() {
            let written = self.write(Statement::Failed(&failed)).await?;
            self.close(failed.iter().map(|row| row.position));
            RowsRefused { written, rows: failed.len(), position: first.position, error: &first.error }
                .emit(metrics);
        }
        if !abandoned.is_empty() {
            let written = self.write(Statement::Abandoned(&abandoned)).await?;
            RowsAbandoned { written }.emit(metrics);
            self.close(abandoned.iter().map(|row| row.position));
            // If fewer are written, one of them is not in this claim any more, and so are those behind it.
            if written == abandoned.len() as u64 {
                for row in waiting {
                    // The receiver may have been dropped by a stop.
                    let _ = row.send(());
                }
            }
        }
        Ok(())
    }

    fn close(&self, positions: impl Iterator<Item = i64>) {
        let mut open = lock(&self.open);
        self.processor.in_hand.settle(positions.filter_map(|position| open.remove(&position)));
    }

    /// Executes one statement, with retries until the claim expires. Returns the number of rows that were still in this
    /// claim.
    async fn write(&self, statement: Statement<'_>) -> Result<u64, StoreError> {
        let Processor { store, target, database, cut, .. } = self.processor;
        let (broker, holder) = (target.name.as_str(), self.holder);
        let mut pauses = Database::pauses();
        loop {
            let written = match statement {
                Statement::Published(rows) => store.mark_published(broker, holder, rows).await,
                Statement::Failed(rows) => store.fail(broker, holder, rows).await,
                Statement::Abandoned(rows) => store.abandon(broker, holder, rows).await,
                Statement::Released(rows) => store.release(broker, holder, rows).await,
            };
            let error = match written {
                Ok(written) => {
                    database.worked();
                    return Ok(written);
                }
                Err(error) => error,
            };
            let is_over = Instant::now() >= *lock(&self.held_until) || cut.is_cancelled();
            if is_over || !error.is_transient() {
                return Err(error);
            }
            database.failed(&error);
            tokio::select! {
                () = tokio::time::sleep(pauses.next(rand::random())) => {}
                () = cut.cancelled() => {}
            }
        }
    }

    /// Renews the claim during the round.
    async fn keep_claim(&self) -> std::convert::Infallible {
        let Processor { store, target, settings, .. } = self.processor;
        let step = settings.claim_time / 3;
        let mut wait = step;
        loop {
            tokio::time::sleep(wait).await;
            let open: Vec<i64> = lock(&self.open).keys().copied().collect();
            let asked_at = Instant::now();
            wait = match store.extend(&target.name, self.holder, &open, settings.claim_time).await {
                // Fewer than were open: the others were settled meanwhile, or are in another claim.
                Ok(extended) => {
                    if extended > 0 {
                        *lock(&self.held_until) = asked_at + settings.claim_time;
                    }
                    step
                }
                Err(error) => {
                    self.processor.database.failed(&error);
                    step / 4
                }
            };
        }
    }
}

/// The message of a row. A row that causes a panic is refused: it is abandoned after its attempts.
fn outgoing(target: &Target, row: &mut ClaimedRow) -> Result<OutgoingMessage, PublishError> {
    panics::catch(|| target.outgoing(row)).unwrap_or_else(|panicked| Err(refused(&panicked)))
}

fn refused(panicked: &Panicked) -> PublishError {
    PublishError::refused(panicked.to_string()).caused_by(panicked.clone())
}

/// The rows of each stream, in order.
fn by_stream(rows: Vec<ClaimedRow>) -> Vec<Vec<ClaimedRow>> {
    let mut streams: Vec<Vec<ClaimedRow>> = Vec::new();
    let mut places = HashMap::<String, usize>::new();
    for row in rows {
        let place = *places.entry(row.stream.clone()).or_insert_with(|| {
            streams.push(Vec::new());
            streams.len() - 1
        });
        streams[place].push(row);
    }
    streams
}
