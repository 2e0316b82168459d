//! The loop that reads a durable consumer. It takes a permit before it requests a message.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::agreement::WorkGate;
use super::byte_budget::ByteBudget;
use super::connection::JetStream;
use super::error::NatsError;
use super::heartbeat::ack_wait_of;
use super::message::Delivered;
use super::pull::{HAND_BACK_DELAY, PullEvent, Puller};
use crate::health::ReadyFlag;
use crate::standstill::Leases;
use crate::tasks::Jobs;

/// A message and its permit. Dropping the permit makes room for another message.
pub type Held = (Box<Delivered>, OwnedSemaphorePermit);

/// The result of a read.
#[derive(Debug)]
pub enum Read {
    Message(Held),
    /// The durable or its stream does not exist.
    Missing,
}

/// Reads a durable consumer and limits how many of its messages are in this process at once.
pub struct Reader {
    puller: Puller,
    permits: Arc<Semaphore>,
    /// Messages received before a permit is free. Each requested message has a permit; requests that were considered
    /// lost may still deliver more.
    early: VecDeque<Box<Delivered>>,
    /// Nothing is requested while it is closed.
    gate: WorkGate,
    /// The consumer limits deliveries: a message that is handed back untried loses one of them.
    limited: bool,
}

impl Reader {
    /// Waits (with a warning) until the durable exists; `None` if `stop` comes first. `held` is the maximum number of
    /// messages at once.
    pub async fn bind(
        js: &JetStream,
        stream: &str,
        consumer: &str,
        held: usize,
        ready: Option<ReadyFlag>,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, NatsError> {
        let puller = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            puller = Puller::bind(js, stream, consumer, ready) => puller?,
        };
        let (puller, info) = puller;
        if let Some(ack_wait) = ack_wait_of(&info.config) {
            js.shared().note_ack_wait(stream, ack_wait);
        }
        let limited =
            info.config.get("max_deliver").and_then(serde_json::Value::as_i64).is_some_and(|most| most > 0);
        let (permits, gate) = (Arc::new(Semaphore::new(held)), js.gate());
        Ok(Some(Self { puller, permits, early: VecDeque::new(), gate, limited }))
    }

    /// Bounds the bytes of the messages in this process. One request takes at most one of `parts` equal parts of them, so
    /// that readers without messages leave room for the others.
    #[must_use]
    pub fn within(mut self, bytes: &ByteBudget, parts: u32) -> Self {
        self.puller.limit_bytes(bytes.reader(parts));
        self
    }

    /// Allows `more` messages at once, in addition.
    pub fn widen(&self, more: usize) {
        self.permits.add_permits(more);
    }

    /// Drops the messages that were sent to this process before it stood still.
    #[must_use]
    pub fn leased(mut self, leases: Leases) -> Self {
        self.puller.lease(leases);
        self
    }

    /// Waits for a permit, then for the next message. Cancel-safe.
    pub async fn next(&mut self) -> Result<Read, NatsError> {
        loop {
            if !self.gate.is_open() {
                if let Some(held) = self.while_closed().await? {
                    return Ok(Read::Message(held));
                }
                continue;
            }
            let room = self.permits.available_permits();
            if room == 0 {
                self.puller.rest();
                drop(self.permits.acquire().await);
                continue;
            }
            if let Some(held) = self.early() {
                return Ok(Read::Message(held));
            }
            let event = tokio::select! {
                biased;
                () = self.gate.closed() => continue,
                event = self.puller.next(room) => event?,
            };
            match event {
                PullEvent::Message(message) => self.early.push_back(message),
                PullEvent::Missing => return Ok(Read::Missing),
                PullEvent::Reset => {}
            }
        }
    }

    /// Requests nothing, and hands the messages back that were requested before, or returns them if that would use up one
    /// of their deliveries. Cancel-safe.
    async fn while_closed(&mut self) -> Result<Option<Held>, NatsError> {
        if self.limited {
            if let Some(held) = self.early() {
                return Ok(Some(held));
            }
        } else {
            while let Some(message) = self.early.front() {
                message.acker.nak(Some(HAND_BACK_DELAY)).await;
                self.early.pop_front();
            }
        }
        tokio::select! {
            () = self.gate.opened() => {}
            event = self.puller.next(0) => {
                if let PullEvent::Message(message) = event? {
                    self.early.push_back(message);
                }
            }
        }
        Ok(None)
    }

    /// A message that has already arrived. Neither waits nor requests more.
    pub fn try_next(&mut self) -> Option<Read> {
        loop {
            if !self.gate.is_open() {
                return None;
            }
            if !self.early.is_empty() {
                return self.early().map(Read::Message);
            }
            match self.puller.try_next()? {
                PullEvent::Message(message) => self.early.push_back(message),
                PullEvent::Missing => return Some(Read::Missing),
                PullEvent::Reset => {}
            }
        }
    }

    /// The first of the early messages, if a permit is free.
    fn early(&mut self) -> Option<Held> {
        let message = self.early.pop_front()?;
        match self.permits.clone().try_acquire_owned() {
            Ok(permit) => Some((message, permit)),
            Err(_) => {
                self.early.push_front(message);
                None
            }
        }
    }

    /// Requests nothing further, and waits for the next message that was requested before; `None` when there is none, a
    /// second or two after the first call. Cancel-safe. What is handed back after that does not come here again.
    pub async fn last(&mut self) -> Option<Held> {
        loop {
            if let Some(held) = self.early() {
                return Some(held);
            }
            match self.puller.last().await {
                Some(message) => self.early.push_back(message),
                None => break,
            }
        }
        // Without a permit.
        while let Some(message) = self.early.pop_front() {
            message.acker.nak(None).await;
        }
        None
    }

    /// Runs `work` on each message in a task of its own, called `name`, until `stop`, and on those that were requested
    /// before; then waits for the running tasks. `work` acknowledges its message itself.
    pub async fn for_each<Work>(
        mut self,
        name: String,
        stop: &CancellationToken,
        mut work: impl FnMut(Box<Delivered>) -> Work,
    ) -> Result<(), NatsError>
    where
        Work: Future<Output = ()> + Send + 'static,
    {
        let mut jobs = Jobs::new(name);
        let mut start = |jobs: &mut Jobs, (message, permit): Held| {
            let work = work(message);
            jobs.start(async move {
                work.await;
                drop(permit);
            });
        };
        loop {
            let read = tokio::select! {
                () = stop.cancelled() => break,
                read = self.next() => read?,
            };
            if let Read::Message(held) = read {
                start(&mut jobs, held);
            }
        }
        while let Some(held) = self.last().await {
            start(&mut jobs, held);
        }
        jobs.join().await;
        Ok(())
    }
}
