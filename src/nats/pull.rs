//! Pulls messages of a consumer within a limit that the caller sets.
//!
//! The caller passes the number of messages it has room for. The puller never requests more than that
//! (`CONSUMER.MSG.NEXT`, ADR-13), so no message waits unread in this process. If a lost connection or a restarted
//! server drops pull requests, the puller sends them again, after the reconnection or after a time without any
//! message.

use std::time::Duration;

use async_nats::{StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::byte_budget::{ReaderBytes, Request};
use super::connection::JetStream;
use super::error::NatsError;
use super::message::{Delivered, header};
use super::stream_api::ConsumerInfo;
use crate::facts::{ConsumerMissing, PullUnanswered, UnacknowledgeableMessageIgnored};
use crate::health::ReadyFlag;
use crate::standstill::{Lease, Leases};

/// How long a pull request waits at the server. It is short because its end also shows that the server lives, and
/// because a stopping process waits for its last request: the server has no way to cancel one that loses no message.
const EXPIRES: Duration = Duration::from_secs(1);
/// If the server sends nothing for this long, the pull requests are considered lost.
const SILENCE: Duration = Duration::from_secs(5);
/// Redelivery delay of messages that a process returns while its pull requests are open, so that these do not get them again.
pub(super) const HAND_BACK_DELAY: Duration = Duration::from_millis(1_500);
/// Room for the subject and the acknowledgement subject of a message, which the server counts as well.
const SUBJECTS: usize = 8 * 1024;
/// Maximum number of messages per pull request.
const MOST_PER_PULL: usize = 4096;

/// The result of a pull.
#[derive(Debug)]
pub(super) enum PullEvent {
    Message(Box<Delivered>),
    /// The consumer or its stream does not exist. The puller waits 250 ms before its next request.
    Missing,
    /// The client reconnected or the server was silent; the pull requests are sent again.
    Reset,
}

/// Reads a pull consumer. Not `Clone`, because one owner counts the requested messages.
pub(super) struct Puller {
    js: JetStream,
    stream: String,
    consumer: String,
    next_subject: String,
    inbox: String,
    subscriber: Subscriber,
    /// Messages requested and not received yet.
    outstanding: usize,
    generation: watch::Receiver<u64>,
    last_sign_of_life: Instant,
    ask_again_at: Option<Instant>,
    ready: Option<ReadyFlag>,
    /// The server has answered for this consumer, and has not reported that it is missing.
    bound: bool,
    bytes: Option<ReaderBytes>,
    /// The caller has no room, so that nothing is requested.
    resting: bool,
    /// Until then, requests that were considered lost may still be open.
    uncertain_until: Instant,
    /// When the last messages are not waited for any longer.
    ends_at: Option<Instant>,
    leases: Option<Leases>,
    /// Of the messages that come to the inbox.
    lease: Lease,
}

impl Puller {
    pub(super) async fn new(js: &JetStream, stream: &str, consumer: &str) -> Result<Self, NatsError> {
        let inbox = js.client().new_inbox();
        let subscriber = js
            .client()
            .subscribe(inbox.clone())
            .await
            .map_err(|error| NatsError::transport(inbox.clone(), error))?;
        let mut generation = js.generation();
        generation.mark_unchanged();
        Ok(Self {
            js: js.clone(),
            stream: stream.to_owned(),
            consumer: consumer.to_owned(),
            next_subject: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            inbox,
            subscriber,
            outstanding: 0,
            generation,
            last_sign_of_life: Instant::now(),
            ask_again_at: None,
            ready: None,
            bound: false,
            bytes: None,
            resting: false,
            uncertain_until: Instant::now(),
            ends_at: None,
            leases: None,
            lease: Lease::default(),
        })
    }

    /// Requests no more bytes than this has.
    pub(super) fn limit_bytes(&mut self, bytes: ReaderBytes) {
        self.bytes = Some(bytes);
    }

    /// Drops the messages that were sent to this process before it stood still.
    pub(super) fn lease(&mut self, leases: Leases) {
        self.lease = leases.look();
        self.leases = Some(leases);
    }

    fn has_stood_still(&self) -> bool {
        self.leases.as_ref().is_some_and(|leases| leases.look() != self.lease)
    }

    /// Takes a new inbox: what is on its way to the one before is dropped, also what the connection has not read yet.
    async fn renew(&mut self) -> Result<(), NatsError> {
        let inbox = self.js.client().new_inbox();
        let subscribed = self.js.client().subscribe(inbox.clone()).await;
        self.subscriber = subscribed.map_err(|error| NatsError::transport(inbox.clone(), error))?;
        self.inbox = inbox;
        self.reset();
        if let Some(leases) = &self.leases {
            self.lease = leases.current();
        }
        Ok(())
    }

    /// The server has answered for this consumer.
    fn answered(&mut self) {
        self.bound = true;
        if let Some(ready) = &self.ready {
            ready.answered();
        }
    }

    /// The consumer or its stream does not exist, or has no leader.
    fn gone(&mut self) {
        self.bound = false;
        if let Some(ready) = &self.ready {
            ready.set(false);
        }
        self.js.missing().notify_one();
    }

    /// The caller has no room. Nothing is requested then, so only the connection shows whether the server answers.
    pub(super) fn rest(&mut self) {
        self.resting = true;
        if let Some(ready) = self.ready.as_ref().filter(|_| self.bound) {
            ready.set(true);
        }
    }

    /// Opens a puller on a durable, and waits (with a warning) until the durable exists. `ready` then shows whether it
    /// still exists.
    pub(super) async fn bind(
        js: &JetStream,
        stream: &str,
        consumer: &str,
        ready: Option<ReadyFlag>,
    ) -> Result<(Self, ConsumerInfo), NatsError> {
        let mut warned = false;
        loop {
            match js.consumer_info(stream, consumer).await {
                Ok(info) => {
                    let mut puller = Self::new(js, stream, consumer).await?;
                    puller.ready = ready;
                    puller.answered();
                    return Ok((puller, info));
                }
                Err(error) => {
                    if !warned {
                        ConsumerMissing { stream, consumer, error: &error }.emit();
                        warned = true;
                    }
                    if error.is_not_found() {
                        js.missing().notify_one();
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// A message that has already arrived. Neither waits nor requests more.
    pub(super) fn try_next(&mut self) -> Option<PullEvent> {
        loop {
            let message = self.subscriber.next().now_or_never()??;
            self.last_sign_of_life = Instant::now();
            if let Some(event) = self.receive(message) {
                return Some(event);
            }
        }
    }

    /// Waits for the next message; `room` is the number of messages the caller can hold. Cancel-safe. With `room` 0 it
    /// waits forever: call it again with more.
    pub(super) async fn next(&mut self, room: usize) -> Result<PullEvent, NatsError> {
        loop {
            if self.has_stood_still() {
                self.renew().await?;
                return Ok(PullEvent::Reset);
            }
            let ask = room.saturating_sub(self.outstanding).min(MOST_PER_PULL);
            // Request at least half of the room at a time, so that a busy consumer does not get a request per message.
            let mut starved = false;
            if ask > 0
                && self.ask_again_at.is_none()
                && (self.outstanding == 0 || ask >= (room / 2).max(1) || self.outstanding * 2 <= ask)
            {
                let request = match &mut self.bytes {
                    Some(bytes) => bytes.request(ask, self.outstanding),
                    None => Some(Request { batch: ask, max_bytes: None }),
                };
                match request {
                    // The client's queue is full if the connection stalls.
                    Some(request) => match tokio::time::timeout(SILENCE, self.ask(request)).await {
                        Ok(asked) => asked?,
                        Err(_) => {
                            self.reset();
                            return Ok(PullEvent::Reset);
                        }
                    },
                    None => starved = true,
                }
            }
            let silent_at = self.last_sign_of_life + SILENCE;
            let ask_again_at = self.ask_again_at;
            // The rest of the open requests may suffice, so more is waited for only without one.
            let starved = self.bytes.as_mut().filter(|_| starved && self.outstanding == 0);
            tokio::select! {
                biased;
                changed = self.generation.changed() => {
                    if changed.is_ok() {
                        self.reset();
                        return Ok(PullEvent::Reset);
                    }
                    return Err(closed(&self.next_subject));
                }
                message = self.subscriber.next() => {
                    let Some(message) = message else { return Err(closed(&self.next_subject)) };
                    if self.has_stood_still() {
                        continue;
                    }
                    self.last_sign_of_life = Instant::now();
                    if let Some(event) = self.receive(message) {
                        return Ok(event);
                    }
                }
                () = until(ask_again_at) => self.ask_again_at = None,
                () = freed(starved) => {}
                () = tokio::time::sleep_until(silent_at), if self.outstanding > 0 => {
                    PullUnanswered { consumer: &self.next_subject }.emit();
                    self.reset();
                    return Ok(self.probe().await);
                }
            }
        }
    }

    /// The next message of the requests that are still open, without a further one; `None` when they have ended, at most
    /// twice [`EXPIRES`] after the first call. Cancel-safe. The inbox is kept until then, because the client drops messages
    /// that arrive after their subscription ends, and these would wait for ack_wait.
    pub(super) async fn last(&mut self) -> Option<Box<Delivered>> {
        let ends_at = *self.ends_at.get_or_insert_with(|| Instant::now() + 2 * EXPIRES);
        loop {
            let until = if self.outstanding > 0 { ends_at } else { self.uncertain_until.min(ends_at) };
            let message = tokio::time::timeout_at(until, self.subscriber.next()).await.ok()??;
            if let Some(PullEvent::Message(message)) = self.receive(message) {
                return Some(message);
            }
        }
    }

    /// Asks the server for the consumer, whose pull requests remain unanswered.
    async fn probe(&mut self) -> PullEvent {
        match self.js.consumer_info(&self.stream, &self.consumer).await {
            Ok(_) => self.answered(),
            Err(error) if error.is_not_found() => {
                self.gone();
                self.pause();
                return PullEvent::Missing;
            }
            Err(_) => {}
        }
        PullEvent::Reset
    }

    fn reset(&mut self) {
        self.outstanding = 0;
        // A server that was not gone has them until they expire, and so the next one is counted as ended too early.
        self.uncertain_until = Instant::now() + 2 * EXPIRES;
        if let Some(bytes) = &mut self.bytes {
            bytes.end();
        }
        self.ask_again_at = None;
        self.last_sign_of_life = Instant::now();
    }

    async fn ask(&mut self, Request { batch, max_bytes }: Request) -> Result<(), NatsError> {
        let max_bytes = max_bytes.map_or(String::new(), |bytes| format!(r#","max_bytes":{bytes}"#));
        let body = format!(r#"{{"batch":{batch},"expires":{}{max_bytes}}}"#, EXPIRES.as_nanos());
        if self.outstanding == 0 {
            self.last_sign_of_life = Instant::now();
        }
        if std::mem::take(&mut self.resting) && self.bound {
            self.answered();
        }
        self.js
            .client()
            .publish_with_reply(self.next_subject.clone(), self.inbox.clone(), Bytes::from(body))
            .await
            .map_err(|error| NatsError::transport(self.next_subject.clone(), error))?;
        // Counted after sending: a future that is dropped before has requested nothing.
        self.outstanding += batch;
        Ok(())
    }

    fn receive(&mut self, message: async_nats::Message) -> Option<PullEvent> {
        let Some(status) = message.status.filter(|status| *status != StatusCode::OK) else {
            self.answered();
            self.outstanding = self.outstanding.saturating_sub(1);
            let size = message.length;
            let bytes = self.bytes.as_mut().and_then(|bytes| bytes.take(size, self.outstanding));
            return match Delivered::read(self.js.client(), message) {
                Some(delivered) => {
                    let delivered = Delivered { _bytes: bytes, lease: self.lease, ..delivered };
                    Some(PullEvent::Message(Box::new(delivered)))
                }
                None => {
                    UnacknowledgeableMessageIgnored { inbox: &self.inbox }.emit();
                    None
                }
            };
        };
        match status {
            StatusCode::NO_RESPONDERS => {
                self.outstanding = 0;
                self.ended(0, None);
                self.gone();
                self.pause();
                Some(PullEvent::Missing)
            }
            _ => {
                // 404, 408, 409: a pull request has ended. A header holds the number of messages it did not deliver;
                // without that header (consumer deleted, leadership changed) all requests are gone.
                let number = |name: &str| header(message.headers.as_ref(), name)?.parse::<usize>().ok();
                let bytes_left = number("Nats-Pending-Bytes").unwrap_or(0);
                match number("Nats-Pending-Messages") {
                    Some(left) => {
                        self.outstanding = self.outstanding.saturating_sub(left);
                        // With bytes left, the next message is larger than those.
                        let is_large = status == StatusCode::REQUEST_TERMINATED && left > 0 && bytes_left > 0;
                        let largest = self.js.max_payload() + SUBJECTS;
                        self.ended(bytes_left, is_large.then_some(largest));
                        if status == StatusCode::TIMEOUT {
                            self.answered();
                        } else if left > 0 && !(is_large && self.bytes.is_some()) {
                            // A request that brought all its messages has ended as well ("Batch Completed").
                            self.pause();
                        }
                        None
                    }
                    None => {
                        self.outstanding = 0;
                        self.ended(0, None);
                        self.pause();
                        (status == StatusCode::REQUEST_TERMINATED).then(|| {
                            self.gone();
                            PullEvent::Missing
                        })
                    }
                }
            }
        }
    }

    fn ended(&mut self, bytes_left: usize, refused: Option<usize>) {
        if let Some(bytes) = &mut self.bytes {
            bytes.ended(self.outstanding, bytes_left, refused);
        }
    }

    fn pause(&mut self) {
        self.ask_again_at = Some(Instant::now() + Duration::from_millis(250));
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits until a request can have bytes; forever if none waits for them.
async fn freed(starved: Option<&mut ReaderBytes>) {
    match starved {
        Some(bytes) => bytes.freed().await,
        None => std::future::pending().await,
    }
}

fn closed(subject: &str) -> NatsError {
    NatsError::Closed { subject: subject.to_owned() }
}
