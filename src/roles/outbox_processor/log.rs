//! The delivery log of one domain: records are gathered in memory and written to the stream in batches, one message per
//! subscription. Deliveries never wait for it.
//!
//! A failed attempt is written soon, and its envelope is handed back for its retry after that: whoever gets the envelope next
//! finds the attempt in the log (`tries.rs`).

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::attempt_record::{AttemptRecord, LogChoice, Settled};
use crate::facts::{
    AcknowledgementsNotFlushed, AttemptsLeftOut, AttemptsLogged, AttemptsNotStored, DeliveryLogRecovered,
    DomainMetrics,
};
use crate::nats::{Acker, JetStream, NatsError};

/// Longest time that a record waits for others.
const FLUSH_INTERVAL: Duration = Duration::from_millis(250);
/// Longest time that the record of a failed attempt waits for others.
const FAILURES_FLUSH_INTERVAL: Duration = Duration::from_millis(25);
/// Longest time that the hand-back of an envelope waits for the record of its attempt to be stored.
const STORED_WITHIN: Duration = Duration::from_secs(1);
/// Most envelopes that wait to be handed back; further ones do not wait.
const MOST_RETRIES: usize = 8_192;
/// Bytes of one subscription at which a message is full: more than the answer in one record, less than the server's
/// max_payload.
const MESSAGE_BYTES: usize = 256 * 1024;
/// Bytes at which records are written before the interval is over.
const FLUSH_BYTES: usize = 2 * 1024 * 1024;
/// Most bytes in memory beside those being written; further records are left out.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// Most messages that wait for their acknowledgement.
const IN_FLIGHT: usize = 32;

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct DeliveryLog {
    inner: Arc<LogState>,
}

struct LogState {
    js: JetStream,
    domain: String,
    choice: LogChoice,
    metrics: DomainMetrics,
    gathered: Mutex<Gathered>,
    /// A first record was added.
    begun: Notify,
    /// [`FLUSH_BYTES`] are reached.
    enough: Notify,
    /// A first envelope waits to be handed back.
    failed: Notify,
}

/// An envelope whose attempt failed.
struct Retry {
    acker: Acker,
    due: Instant,
}

#[derive(Default)]
struct Gathered {
    /// By subscription token.
    lines: HashMap<String, Lines>,
    bytes: usize,
    /// Handed back after the records are stored.
    retries: Vec<Retry>,
    /// Why records have been left out since the last flush that took everything.
    behind: Behind,
}

#[derive(Default)]
struct Behind {
    /// There was no room for them.
    overloaded: bool,
    /// They were not stored.
    not_stored: bool,
}

#[derive(Default)]
struct Lines {
    /// Newline-delimited JSON; each part is one message.
    parts: Vec<(u64, Vec<u8>)>,
}

impl Lines {
    fn last(&mut self) -> &mut (u64, Vec<u8>) {
        if self.parts.last().is_none_or(|(_, lines)| lines.len() >= MESSAGE_BYTES) {
            self.parts.push((0, Vec::new()));
        }
        self.parts.last_mut().expect("one was added if there was none")
    }
}

impl DeliveryLog {
    pub(super) fn new(js: JetStream, domain: String, choice: LogChoice, metrics: DomainMetrics) -> Self {
        let gathered = Mutex::default();
        let (begun, enough, failed) = (Notify::new(), Notify::new(), Notify::new());
        Self { inner: Arc::new(LogState { js, domain, choice, metrics, gathered, begun, enough, failed }) }
    }

    pub(super) fn choice(&self) -> LogChoice {
        self.inner.choice
    }

    pub(super) fn keeps(&self, settled: Settled) -> bool {
        self.inner.choice.keeps(settled)
    }

    /// Adds a record, or counts it as left out if there is no room. Never waits.
    pub(super) fn record(&self, subscription: &str, record: &AttemptRecord<'_>) {
        let inner = &self.inner;
        let mut gathered = inner.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        if gathered.bytes >= MOST_BYTES {
            let is_new = !std::mem::replace(&mut gathered.behind.overloaded, true);
            drop(gathered);
            return AttemptsLeftOut { count: 1, is_new }.emit(&inner.metrics);
        }
        if !gathered.lines.contains_key(subscription) {
            gathered.lines.insert(subscription.to_owned(), Lines::default());
        }
        let Some(lines) = gathered.lines.get_mut(subscription) else { return };
        let (count, lines) = lines.last();
        let before = lines.len();
        if let Err(error) = record.write_line(lines) {
            drop(gathered);
            return inner.not_stored(1, &error);
        }
        *count += 1;
        let added = lines.len() - before;
        let was = gathered.bytes;
        gathered.bytes += added;
        drop(gathered);
        if was == 0 {
            inner.begun.notify_one();
        }
        if was < FLUSH_BYTES && was + added >= FLUSH_BYTES {
            inner.enough.notify_one();
        }
    }

    /// Hands an envelope back for its next attempt, once the record of its failed attempt is stored.
    pub(super) async fn retry(&self, acker: &Acker, after: Duration) {
        let inner = &self.inner;
        if inner.choice.keeps(Settled::Retried) {
            let mut gathered = inner.gathered.lock().unwrap_or_else(PoisonError::into_inner);
            if gathered.retries.len() < MOST_RETRIES {
                gathered.retries.push(Retry { acker: acker.clone(), due: Instant::now() + after });
                let is_first = gathered.retries.len() == 1;
                drop(gathered);
                if is_first {
                    inner.begun.notify_one();
                    inner.failed.notify_one();
                }
                return;
            }
        }
        acker.nak(Some(after)).await;
    }

    /// Writes the gathered records by size or after the interval, until `ended`; then writes the rest.
    pub(super) async fn run(self, ended: CancellationToken) -> Result<(), NatsError> {
        let inner = &self.inner;
        while !ended.is_cancelled() {
            tokio::select! {
                () = ended.cancelled() => break,
                () = inner.begun.notified() => {}
            }
            tokio::select! {
                () = ended.cancelled() => break,
                () = inner.enough.notified() => {}
                () = tokio::time::sleep(FLUSH_INTERVAL) => {}
                () = inner.failed_a_while_ago() => {}
            }
            inner.flush(false).await;
        }
        inner.flush(true).await;
        Ok(())
    }
}

impl LogState {
    async fn failed_a_while_ago(&self) {
        self.failed.notified().await;
        tokio::time::sleep(FAILURES_FLUSH_INTERVAL).await;
    }

    /// Writes the records, and then hands the envelopes back.
    async fn flush(&self, at_stop: bool) {
        let (lines, retries) = {
            let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
            gathered.bytes = 0;
            (std::mem::take(&mut gathered.lines), std::mem::take(&mut gathered.retries))
        };
        let mut writing = std::pin::pin!(self.write(lines, at_stop));
        // A log that cannot be written to delays no retry any longer; the attempt may then be made once more.
        let written = tokio::time::timeout(STORED_WITHIN, &mut writing).await.is_ok();
        let any = !retries.is_empty();
        for Retry { acker, due } in retries {
            let left = due.saturating_duration_since(Instant::now());
            acker.nak((!left.is_zero()).then_some(left)).await;
        }
        if !written {
            writing.await;
        }
        if any
            && at_stop
            && let Err(error) = self.js.flush_at_stop().await
        {
            AcknowledgementsNotFlushed { error: &error }.emit();
        }
    }

    /// At a stop, it does not wait for a server that is gone.
    async fn write(&self, lines: HashMap<String, Lines>, at_stop: bool) {
        if lines.is_empty() {
            return;
        }
        let messages = lines.into_iter().flat_map(|(subscription, lines)| {
            lines.parts.into_iter().map(move |(count, lines)| (subscription.clone(), count, lines))
        });
        let complete = stream::iter(messages)
            .map(|(subscription, count, lines)| async move {
                let put = async {
                    if at_stop {
                        self.js.check_connected()?;
                    }
                    self.js.put_attempts(&self.domain, &subscription, count, lines.into()).await
                };
                match put.await {
                    Ok(()) => {
                        AttemptsLogged { count }.emit(&self.metrics);
                        true
                    }
                    Err(error) => {
                        self.not_stored(count, &error);
                        false
                    }
                }
            })
            .buffer_unordered(IN_FLIGHT)
            .fold(true, |all, one| std::future::ready(all && one))
            .await;
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        if complete && gathered.bytes < MOST_BYTES {
            let Behind { overloaded, not_stored } = std::mem::take(&mut gathered.behind);
            drop(gathered);
            if overloaded || not_stored {
                DeliveryLogRecovered.emit(&self.metrics);
            }
        }
    }

    /// Counts records that are not stored; the log line is written once.
    fn not_stored(&self, count: u64, error: &(dyn Error + 'static)) {
        let is_new = {
            let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
            !std::mem::replace(&mut gathered.behind.not_stored, true)
        };
        AttemptsNotStored { count, error, is_new }.emit(&self.metrics);
    }
}
