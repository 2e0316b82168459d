//! The one loop that reads a durable: the permit comes before the message, and each message has one.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::JetStream;
use super::error::NatsError;
use super::message::Delivered;
use super::pull::{HAND_BACK_DELAY, PullEvent, Puller};
use crate::health::ReadyFlag;

/// A message with its place in memory, which is given back when the permit is dropped.
pub type Held = (Box<Delivered>, OwnedSemaphorePermit);

/// What reading brought.
#[derive(Debug)]
pub enum Read {
    Message(Held),
    /// The durable or its stream is not there (yet, or any more).
    Missing,
}

/// Reads a durable, of which at most so many messages are in this process at once.
pub struct Reader {
    puller: Puller,
    permits: Arc<Semaphore>,
    /// Came and has no place yet. There is one for each message that was asked for; the pulls that a silent server was
    /// thought to have forgotten may bring more.
    early: VecDeque<Box<Delivered>>,
}

impl Reader {
    /// Waits until the durable is there, saying so; `None`: told to stop before. `held`: the most messages at once.
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
        Ok(Some(Self { puller, permits: Arc::new(Semaphore::new(held)), early: VecDeque::new() }))
    }

    /// The next message; waits for a place first. May be dropped while it waits.
    pub async fn next(&mut self) -> Result<Read, NatsError> {
        loop {
            let room = self.permits.available_permits();
            if room == 0 {
                drop(self.permits.acquire().await);
                continue;
            }
            if let Some(held) = self.early() {
                return Ok(Read::Message(held));
            }
            match self.puller.next(room).await? {
                PullEvent::Message(message) => self.early.push_back(message),
                PullEvent::Missing => return Ok(Read::Missing),
                PullEvent::Reset => {}
            }
        }
    }

    /// One that has come already, without waiting and without asking for more.
    pub fn try_next(&mut self) -> Option<Read> {
        loop {
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

    /// The first of those that have come, if there is a place for it.
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

    /// Lets the pulls end and gives back what they still bring.
    pub async fn hand_back(self) {
        for message in self.early {
            message.acker.nak(Some(HAND_BACK_DELAY)).await;
        }
        self.puller.hand_back().await;
    }

    /// Works on each message in a task of its own until `stop`; what is under way then is finished. The work settles
    /// its message itself.
    pub async fn for_each<Work>(
        mut self,
        stop: &CancellationToken,
        mut work: impl FnMut(Box<Delivered>) -> Work,
    ) -> Result<(), NatsError>
    where
        Work: Future<Output = ()> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        loop {
            let read = tokio::select! {
                () = stop.cancelled() => break,
                read = self.next() => read?,
            };
            if let Read::Message((message, permit)) = read {
                let work = work(message);
                tasks.spawn(async move {
                    work.await;
                    drop(permit);
                });
            }
            while tasks.try_join_next().is_some() {}
        }
        self.hand_back().await;
        while tasks.join_next().await.is_some() {}
        Ok(())
    }
}
