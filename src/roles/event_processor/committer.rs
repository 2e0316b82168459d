//! Group commit: one task per domain writes the envelopes of the waiting events as one atomic batch, without splitting
//! an event, and then acknowledges the events.
//!
//! The next events gather while a batch is written, so batches grow with the load, and a single event commits at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use super::recent::Recent;
use super::rejecter::Rejecter;
use crate::facts::{
    DomainMetrics, EnvelopesCommitted, EnvelopesRepeated, EventRepeated, OutboxBlocked, OutboxUnblocked,
};
use crate::nats::{BatchError, Delivered, EnvelopeMessage, JetStream, MOST_PER_BATCH, NatsError};
use crate::panics::{self, Panicked};

/// Delay before an event is delivered again if its domain is busy or blocked.
pub(super) const BUSY_DELAY: Duration = Duration::from_secs(1);
const MOST_BLOCKED_DELAY: Duration = Duration::from_secs(15);

/// Size in bytes at which a group is committed even if more events wait.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// An event with its envelopes.
pub(super) struct Planned {
    pub(super) message: Delivered,
    pub(super) envelopes: Vec<EnvelopeMessage>,
    /// The event's permit, released when the event is settled.
    pub(super) permit: OwnedSemaphorePermit,
    /// The envelopes' permits.
    pub(super) room: OwnedSemaphorePermit,
}

impl Planned {
    /// Approximate size of its envelopes in the outbox.
    fn bytes(&self) -> usize {
        self.envelopes.iter().map(EnvelopeMessage::stored_bytes).sum()
    }
}

pub(super) struct Committer {
    js: JetStream,
    rejecter: Rejecter,
    metrics: DomainMetrics,
    blocked: Option<Blocked>,
    recent: Recent,
    /// Whether it is blocked, for the planner.
    is_blocked: Arc<AtomicBool>,
    #[cfg(test)]
    before_write: fn(&[EnvelopeMessage]),
}

/// The outbox refuses events of this size at the moment.
struct Blocked {
    delay: Duration,
    until: Instant,
    /// Size of the smallest event that was refused.
    bytes: usize,
}

impl Committer {
    pub(super) fn new(
        js: JetStream,
        rejecter: Rejecter,
        metrics: DomainMetrics,
        is_blocked: Arc<AtomicBool>,
    ) -> Self {
        Self {
            js,
            rejecter,
            metrics,
            blocked: None,
            recent: Recent::default(),
            is_blocked,
            #[cfg(test)]
            before_write: |_| {},
        }
    }

    /// Runs `before_write` before each write.
    #[cfg(test)]
    pub(super) fn before_write(self, before_write: fn(&[EnvelopeMessage])) -> Self {
        Self { before_write, ..self }
    }

    /// Runs until the channel is closed and empty.
    pub(super) async fn run(mut self, mut receiver: mpsc::Receiver<Planned>) {
        let mut first = None;
        loop {
            let planned = match first.take() {
                Some(planned) => planned,
                None => match receiver.recv().await {
                    Some(planned) => planned,
                    None => return,
                },
            };
            let mut bytes = planned.bytes();
            if self.refuses(bytes) {
                self.hand_back(vec![planned]).await;
                continue;
            }
            let mut count = planned.envelopes.len();
            let mut group = vec![planned];
            while bytes < MOST_BYTES
                && let Ok(planned) = receiver.try_recv()
            {
                let more = planned.bytes();
                if self.refuses(more) {
                    self.hand_back(vec![planned]).await;
                    continue;
                }
                if count + planned.envelopes.len() > MOST_PER_BATCH {
                    first = Some(planned);
                    break;
                }
                count += planned.envelopes.len();
                bytes += more;
                group.push(planned);
            }
            self.commit(group, count).await;
        }
    }

    /// Whether the outbox refused an event of that size a short while ago.
    fn refuses(&self, bytes: usize) -> bool {
        self.blocked.as_ref().is_some_and(|blocked| bytes >= blocked.bytes && Instant::now() < blocked.until)
    }

    async fn commit(&mut self, mut group: Vec<Planned>, count: usize) {
        let counts: Vec<usize> = group.iter().map(|planned| planned.envelopes.len()).collect();
        let mut envelopes = Vec::with_capacity(count);
        for planned in &mut group {
            envelopes.append(&mut planned.envelopes);
        }
        let written = self.try_write(&envelopes).await;
        let mut envelopes = envelopes.into_iter();
        for (planned, count) in group.iter_mut().zip(counts) {
            planned.envelopes.extend(envelopes.by_ref().take(count));
        }
        match written {
            Ok(Ok(())) => {
                for planned in group {
                    self.committed(planned).await;
                }
            }
            // Only the events that do not fit wait.
            Ok(Err(error)) if error.api().is_some() && group.len() > 1 => self.commit_each(group).await,
            Err(panicked) => {
                if let [planned] = &group[..] {
                    return self.rejecter.panicked(&planned.message, &panicked).await;
                }
                // Finds the event that causes the panic; the others are committed.
                self.commit_each(group).await;
            }
            Ok(Err(error)) => {
                let bytes = if error.api().is_some() { group.iter().map(Planned::bytes).sum() } else { 0 };
                self.block(&error, bytes);
                self.hand_back(group).await;
            }
        }
    }

    /// Commits each event alone, the smallest first, until one does not fit. An event whose write panics is handed
    /// back, and is rejected after [`panics::TRIES`] deliveries.
    async fn commit_each(&mut self, mut group: Vec<Planned>) {
        group.sort_by_cached_key(Planned::bytes);
        let mut group = group.into_iter();
        while let Some(planned) = group.next() {
            match self.try_write(&planned.envelopes).await {
                Ok(Ok(())) => self.committed(planned).await,
                Ok(Err(error)) => {
                    self.block(&error, planned.bytes());
                    self.hand_back(std::iter::once(planned).chain(group).collect()).await;
                    return;
                }
                Err(panicked) => self.rejecter.panicked(&planned.message, &panicked).await,
            }
        }
    }

    async fn committed(&mut self, planned: Planned) {
        let bytes = planned.bytes();
        let over = |blocked: &mut Blocked| bytes >= blocked.bytes || Instant::now() >= blocked.until;
        if self.blocked.take_if(over).is_some() {
            self.is_blocked.store(false, Ordering::Relaxed);
            OutboxUnblocked.emit(&self.metrics);
        }
        EnvelopesCommitted { count: planned.envelopes.len() }.emit(&self.metrics);
        planned.message.acker.ack().await;
        drop((planned.permit, planned.room));
    }

    /// Writes the envelopes, or returns the panic of the write. The server forgets a batch that was not completed.
    async fn try_write(&mut self, envelopes: &[EnvelopeMessage]) -> Result<Result<(), NatsError>, Panicked> {
        let written = panics::catch_async(self.write(envelopes)).await;
        if written.is_err() {
            // It may be half changed. Without it, repeated envelopes cost a refused batch, and are not stored twice.
            self.recent = Recent::default();
        }
        written
    }

    /// Writes one batch, or several if an event has more envelopes than a batch may have. Envelopes that the stream may
    /// have already are published one by one: the stream drops duplicates.
    async fn write(&mut self, envelopes: &[EnvelopeMessage]) -> Result<(), NatsError> {
        #[cfg(test)]
        (self.before_write)(envelopes);
        let split = self.recent.split(envelopes);
        let (new, known) =
            split.as_ref().map_or((envelopes, &[][..]), |(new, known)| (new.as_slice(), known.as_slice()));
        for batch in new.chunks(MOST_PER_BATCH) {
            match self.js.commit(batch).await {
                Ok(()) => {}
                Err(BatchError::Duplicate) => {
                    let added = self.js.publish_each(batch).await?;
                    EventRepeated { envelopes: batch.len(), added }.emit(&self.metrics);
                }
                Err(BatchError::Nats(error)) => return Err(error),
            }
            self.recent.committed(batch);
        }
        if !known.is_empty() {
            // The stream drops those that it has.
            let added = self.js.publish_each(known).await?;
            EnvelopesRepeated { envelopes: known.len(), added }.emit(&self.metrics);
        }
        Ok(())
    }

    /// `bytes`: size of the event that was refused; 0 if no event can be committed.
    fn block(&mut self, error: &NatsError, bytes: usize) {
        let delay = match &self.blocked {
            // The first refusal of a smaller event.
            Some(blocked) if bytes < blocked.bytes => blocked.delay,
            Some(blocked) => (blocked.delay * 2).min(MOST_BLOCKED_DELAY),
            None => {
                OutboxBlocked { error, is_full: error.is_full() }.emit(&self.metrics);
                BUSY_DELAY
            }
        };
        self.is_blocked.store(true, Ordering::Relaxed);
        self.blocked = Some(Blocked { delay, until: Instant::now() + delay, bytes });
    }

    async fn hand_back(&self, group: Vec<Planned>) {
        let delay = self.blocked.as_ref().map_or(BUSY_DELAY, |blocked| {
            blocked.until.saturating_duration_since(Instant::now()).max(Duration::from_millis(100))
        });
        for planned in group {
            planned.message.acker.nak(Some(delay)).await;
        }
    }
}
