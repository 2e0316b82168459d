//! Group commit: one task per domain writes the envelopes of the waiting events as one atomic batch, without splitting
//! an event, and then acknowledges the events.
//!
//! The next events gather while a batch is written, so batches grow with the load, and a single event commits at once.
//! If the outbox refuses a group, its halves are written, the smaller events first, down to a single event. Only events
//! that do not fit wait. An event that can never fit as a whole is written in parts ([`parts`]).

mod ordered;
mod parts;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use self::parts::Rest;
use super::backlogs::Backlogs;
use super::early::{EarlyPlace, Later};
use super::in_order::InOrder;
use super::outbox_room::OutboxRoom;
use super::recent::Recent;
use super::rejecter::Rejecter;
use super::settled::Settled;
use super::{ACK_WAIT, until};
use crate::domain::backlog::BacklogLimits;
use crate::domain::commit_group::{AfterRefusal, Load, OutboxCapacity, halves};
use crate::facts::{
    DomainMetrics, EnvelopesCommitted, EnvelopesRepeated, EventRepeated, OutboxBlocked, OutboxLimitsNotRead,
    OutboxUnblocked,
};
use crate::nats::{BatchError, Delivered, EnvelopeMessage, JetStream, NatsError};
use crate::panics::{self, Panicked};
use crate::standstill::{Lease, Leases};

/// Delay before an event is delivered again if its domain is busy or blocked.
pub(super) const BUSY_DELAY: Duration = Duration::from_secs(1);
/// The same if the server cannot be reached: work continues this soon after it has returned.
const UNREACHABLE_DELAY: Duration = Duration::from_millis(250);
pub(super) const MOST_BLOCKED_DELAY: Duration = Duration::from_secs(15);

/// Time at a stop for ordered events that wait for earlier ones.
const LAST_IN_ORDER: Duration = Duration::from_secs(1);
/// Most bytes of a group of several events, and of a part of one event.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// An event with its envelopes.
pub(super) struct Planned {
    pub(super) message: Delivered,
    pub(super) tenant: Box<str>,
    /// An envelope is for a strict order.
    pub(super) ordered: bool,
    pub(super) envelopes: Vec<EnvelopeMessage>,
    /// The limits of subscriptions that have their own, by the positions of their envelopes.
    pub(super) limits: Vec<(usize, BacklogLimits)>,
    /// The envelopes that wait for their turn, while the others are committed.
    pub(super) later: Option<Later>,
    /// Its place among the events that are committed in two steps.
    pub(super) early: Option<EarlyPlace>,
    /// The event's permit, released when the event is settled.
    pub(super) permit: OwnedSemaphorePermit,
    /// The permits for the memory of its envelopes.
    pub(super) room: OwnedSemaphorePermit,
}

impl Planned {
    /// Size of its envelopes in the outbox.
    fn bytes(&self) -> usize {
        self.load().bytes
    }

    fn load(&self) -> Load {
        Load::of(self.envelopes.iter().map(EnvelopeMessage::stored_bytes))
    }

    fn largest(&self) -> usize {
        self.envelopes.iter().map(EnvelopeMessage::stored_bytes).max().unwrap_or(0)
    }
}

pub(super) struct Committer {
    js: JetStream,
    rejecter: Rejecter,
    metrics: DomainMetrics,
    outbox: OutboxRoom,
    blocked: Option<Blocked>,
    /// The event of which a part did not fit yet.
    rest: Option<Rest>,
    recent: Recent,
    settled: Settled,
    backlogs: Backlogs,
    /// The ordered events that wait for earlier ones.
    in_order: InOrder,
    leases: Leases,
    /// As it was at the last look.
    lease: Lease,
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
        in_order: InOrder,
        rejecter: Rejecter,
        backlogs: Backlogs,
        metrics: DomainMetrics,
        outbox: OutboxRoom,
        settled: Settled,
        is_blocked: Arc<AtomicBool>,
    ) -> Self {
        let js = in_order.js().clone();
        let leases = js.leases(&js.names().events_stream(), ACK_WAIT);
        Self {
            js,
            rejecter,
            metrics,
            outbox,
            blocked: None,
            rest: None,
            recent: Recent::default(),
            settled,
            backlogs,
            in_order,
            lease: leases.look(),
            leases,
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

    /// Runs until the channel is closed and empty, and a moment longer for ordered events that wait for those of others.
    pub(super) async fn run(mut self, mut receiver: mpsc::Receiver<Planned>) {
        // Without an answer, the limits of the settings apply until a commit is refused.
        self.read_limits().await;
        let (mut first, mut ends_at) = (None, None);
        loop {
            self.drop_what_is_not_ours();
            self.write_rest_if_due().await;
            self.commit_in_order_if_due().await;
            if ends_at.is_some() && self.in_order.due().is_none() {
                break;
            }
            let planned = match first.take() {
                Some(planned) => planned,
                None => tokio::select! {
                    planned = receiver.recv(), if ends_at.is_none() => match planned {
                        Some(planned) => planned,
                        None => {
                            ends_at = Some(Instant::now() + LAST_IN_ORDER);
                            continue;
                        }
                    },
                    () = until(ends_at) => break,
                    () = parts::wake(&self.rest) => continue,
                    () = until(self.in_order.due()) => continue,
                    () = self.in_order.heard() => {
                        self.in_order.look_now();
                        continue;
                    }
                },
            };
            let planned = self.in_order.split(planned);
            if planned.ordered {
                first = self.take_in_order(planned, &mut receiver).await;
                continue;
            }
            let mut load = planned.load();
            if self.refuses(load.bytes) {
                self.hand_back(vec![planned]).await;
                continue;
            }
            let room = self.outbox.known();
            let mut group = vec![planned];
            while room.is_one_batch(load)
                && let Ok(planned) = receiver.try_recv()
            {
                let planned = self.in_order.split(planned);
                if planned.ordered {
                    self.wait_in_order(planned).await;
                    continue;
                }
                let more = planned.load();
                if self.refuses(more.bytes) {
                    self.hand_back(vec![planned]).await;
                    continue;
                }
                if !room.takes(load, more, MOST_BYTES) {
                    first = Some(planned);
                    break;
                }
                load = load.and(more);
                group.push(planned);
            }
            let group = self.backlogs.admit(group, &self.recent).await.events;
            if room.is_one_batch(load) {
                self.commit(group).await;
            } else {
                for planned in group {
                    self.start_in_parts(planned).await;
                }
            }
            self.backlogs.settled();
            self.in_order.tell().await;
        }
        // Nothing is requested here any more, so another process gets them at once.
        let rest = self.rest.take().map(|rest| rest.planned);
        for planned in rest.into_iter().chain(self.in_order.hand_back()) {
            planned.message.acker.nak(None).await;
        }
    }

    /// After a standstill, drops what waits here since before: other processes have these events.
    fn drop_what_is_not_ours(&mut self) {
        let lease = self.leases.look();
        if std::mem::replace(&mut self.lease, lease) == lease {
            return;
        }
        self.rest.take_if(|rest| !self.leases.holds(rest.planned.message.lease));
        let waiting = self.in_order.hand_back().into_iter();
        let ours: Vec<Planned> = waiting.filter(|planned| self.leases.holds(planned.message.lease)).collect();
        self.wait_again(ours);
    }

    /// Whether the outbox refused an event of that size a short while ago.
    fn refuses(&self, bytes: usize) -> bool {
        self.blocked.as_ref().is_some_and(|blocked| bytes >= blocked.bytes && Instant::now() < blocked.until)
    }

    /// Writes a group as one batch. If that is refused, or panics, its halves, until the events that cause it are found.
    async fn commit(&mut self, group: Vec<Planned>) {
        // The smaller half is on top, so that what fits is written before the outbox is full.
        let mut groups = vec![group];
        while let Some(mut group) = groups.pop() {
            self.leases.look();
            group.retain(|planned| self.leases.holds(planned.message.lease));
            let (refused, mut group): (Vec<_>, Vec<_>) =
                group.into_iter().partition(|planned| self.refuses(planned.bytes()));
            self.hand_back(refused).await;
            if group.is_empty() {
                continue;
            }
            let divides = match self.try_write_group(&mut group).await {
                Ok(Ok(())) => {
                    for planned in group {
                        self.committed(planned).await;
                    }
                    continue;
                }
                Ok(Err(error)) if group.len() > 1 => match error.api() {
                    Some(_) => {
                        if error.is_batch_too_large() {
                            let count: usize = group.iter().map(|planned| planned.envelopes.len()).sum();
                            self.outbox.lower_batch(count / 2);
                        }
                        true
                    }
                    None => {
                        self.block(&error, 0);
                        false
                    }
                },
                Ok(Err(error)) => {
                    if let Some(planned) = group.pop() {
                        self.refused(planned, &error).await;
                    }
                    continue;
                }
                Err(panicked) => {
                    if let [planned] = &group[..] {
                        // It is handed back, and rejected after `panics::TRIES` deliveries.
                        self.rejecter.panicked(&planned.message, &panicked).await;
                        continue;
                    }
                    true
                }
            };
            if divides {
                let (smaller, larger) = halves(group, Planned::bytes);
                groups.push(larger);
                groups.push(smaller);
            } else {
                self.hand_back(group).await;
            }
        }
    }

    /// Writes all envelopes of a group as one batch.
    async fn try_write_group(&mut self, group: &mut [Planned]) -> Result<Result<(), NatsError>, Panicked> {
        let counts: Vec<usize> = group.iter().map(|planned| planned.envelopes.len()).collect();
        let mut envelopes = Vec::with_capacity(counts.iter().sum());
        for planned in group.iter_mut() {
            envelopes.append(&mut planned.envelopes);
        }
        let written = self.try_write(&envelopes).await;
        let mut envelopes = envelopes.into_iter();
        for (planned, count) in group.iter_mut().zip(counts) {
            planned.envelopes.extend(envelopes.by_ref().take(count));
        }
        written
    }

    /// An event was refused when it was written alone.
    async fn refused(&mut self, planned: Planned, error: &NatsError) {
        if error.api().is_none() {
            self.block(error, 0);
            return self.try_later(planned).await;
        }
        if error.is_batch_too_large() {
            self.outbox.lower_batch(planned.envelopes.len() / 2);
            return self.start_in_parts(planned).await;
        }
        let refusal = match self.read_limits().await {
            Some((room, is_empty)) => room.refusal(planned.largest(), planned.load(), is_empty),
            None => AfterRefusal::Waits,
        };
        match refusal {
            // The planner compares with the same limits, and sets aside what can never fit.
            AfterRefusal::TooLarge => planned.message.acker.nak(Some(BUSY_DELAY)).await,
            AfterRefusal::InParts => self.start_in_parts(planned).await,
            AfterRefusal::Waits => {
                self.block(error, planned.bytes());
                self.try_later(planned).await;
            }
        }
    }

    /// Hands an event back, or keeps it in its place in the order if it is committed in part.
    async fn try_later(&mut self, planned: Planned) {
        if planned.is_committed_in_part() {
            self.in_order.keep(planned);
        } else {
            self.hand_back(vec![planned]).await;
        }
    }

    /// The outbox's limits as they are now, and whether it is empty; `None` if the server does not say.
    async fn read_limits(&self) -> Option<(OutboxCapacity, bool)> {
        let read = self.outbox.read().await;
        read.inspect_err(|error| OutboxLimitsNotRead { error, stream: self.outbox.stream() }.emit()).ok()
    }

    /// All envelopes of an event are written, or those that do not wait for its turn.
    async fn committed(&mut self, mut planned: Planned) {
        let bytes = planned.bytes();
        let over = |blocked: &mut Blocked| bytes >= blocked.bytes || Instant::now() >= blocked.until;
        if self.blocked.take_if(over).is_some() {
            OutboxUnblocked.emit(&self.metrics);
        }
        self.is_blocked.store(self.blocked.is_some() || self.rest.is_some(), Ordering::Relaxed);
        EnvelopesCommitted { count: planned.envelopes.len() }.emit(&self.metrics);
        if planned.continues() {
            return self.wait_in_order(planned).await;
        }
        self.settled.ack(&planned.message).await;
        self.in_order.settled(planned.message.stream_sequence);
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
        for batch in new.chunks(self.outbox.known().batch) {
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
            // Only a full outbox is likely to remain so.
            Some(blocked) if error.is_full() => (blocked.delay * 2).clamp(BUSY_DELAY, MOST_BLOCKED_DELAY),
            known => {
                if known.is_none() {
                    OutboxBlocked { error, is_full: error.is_full() }.emit(&self.metrics);
                }
                if error.is_unreachable() { UNREACHABLE_DELAY } else { BUSY_DELAY }
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
