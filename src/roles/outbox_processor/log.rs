//! The delivery log of one domain: records are gathered in memory and written to the stream in batches, one message per
//! subscription. Deliveries never wait for it.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::domain::attempt_record::{AttemptRecord, LogChoice, Settled};
use crate::facts::{AttemptsLeftOut, AttemptsLogged, AttemptsNotStored, DeliveryLogRecovered, DomainMetrics};
use crate::nats::{JetStream, NatsError};

/// Longest time that a record waits for others.
const FLUSH_INTERVAL: Duration = Duration::from_millis(250);
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
    inner: Arc<Inner>,
}

struct Inner {
    js: JetStream,
    domain: String,
    choice: LogChoice,
    metrics: DomainMetrics,
    gathered: Mutex<Gathered>,
    /// A first record was added.
    begun: Notify,
    /// [`FLUSH_BYTES`] are reached.
    enough: Notify,
}

#[derive(Default)]
struct Gathered {
    /// By subscription token.
    lines: HashMap<String, Lines>,
    bytes: usize,
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
        let (begun, enough) = (Notify::new(), Notify::new());
        Self { inner: Arc::new(Inner { js, domain, choice, metrics, gathered, begun, enough }) }
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
            }
            inner.flush(false).await;
        }
        inner.flush(true).await;
        Ok(())
    }
}

impl Inner {
    /// At a stop, it does not wait for a server that is gone.
    async fn flush(&self, at_stop: bool) {
        let lines = {
            let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
            gathered.bytes = 0;
            std::mem::take(&mut gathered.lines)
        };
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
