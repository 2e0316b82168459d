//! Pulling by credit: the permit comes before the message.
//!
//! The caller says how many messages it has room for; the puller never has more than that asked
//! of the server (`CONSUMER.MSG.NEXT`, ADR-13), so nothing waits unread in this process. Pulls
//! that a lost connection or a restarted server forgot are noticed by the reconnection or by
//! silence, and asked again.

use std::time::Duration;

use async_nats::{StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::JetStream;
use super::error::NatsError;
use super::message::{Delivered, header};
use crate::health::ReadyFlag;

/// How long a pull waits at the server. Short: it is also the sign of life, and a process that
/// stops waits for its last pull to end.
const EXPIRES: Duration = Duration::from_secs(1);
/// A server that says nothing for so long has forgotten the pulls.
const SILENCE: Duration = Duration::from_secs(5);
/// The delay with which a process that stops gives messages back: they must not come to its own
/// last pulls again.
pub const HAND_BACK_DELAY: Duration = Duration::from_millis(1_500);
/// The most messages of one pull request.
const MOST_PER_PULL: usize = 4096;

/// What a pull brought.
#[derive(Debug)]
pub enum PullEvent {
    Message(Box<Delivered>),
    /// The consumer or its stream is not there (yet, or any more). The puller waits a moment
    /// before it asks again.
    Missing,
    /// The connection was made anew or the server went silent: pulls were asked again.
    Reset,
}

/// A pull consumer's reader. Not `Clone`: one owner, one credit.
pub struct Puller {
    js: JetStream,
    next_subject: String,
    inbox: String,
    subscriber: Subscriber,
    /// Messages asked for and not yet come.
    outstanding: usize,
    generation: watch::Receiver<u64>,
    last_sign_of_life: Instant,
    ask_again_at: Option<Instant>,
    ready: Option<ReadyFlag>,
    bound: bool,
}

impl Puller {
    pub async fn new(js: &JetStream, stream: &str, consumer: &str) -> Result<Self, NatsError> {
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
            next_subject: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            inbox,
            subscriber,
            outstanding: 0,
            generation,
            last_sign_of_life: Instant::now(),
            ask_again_at: None,
            ready: None,
            bound: false,
        })
    }

    /// Whether the server answers this consumer's pulls; told where it changes.
    fn set_bound(&mut self, bound: bool) {
        if self.bound != bound {
            self.bound = bound;
            if let Some(ready) = &self.ready {
                ready.set(bound);
            }
        }
    }

    /// A puller on a durable that is there: waits for it, saying so, if it has to be made first.
    /// From then on `ready` tells whether it still is.
    pub async fn bind(
        js: &JetStream,
        stream: &str,
        consumer: &str,
        ready: Option<ReadyFlag>,
    ) -> Result<Self, NatsError> {
        let mut told = false;
        loop {
            match js.consumer_info(stream, consumer).await {
                Ok(_) => {
                    let mut puller = Self::new(js, stream, consumer).await?;
                    puller.ready = ready;
                    puller.set_bound(true);
                    return Ok(puller);
                }
                Err(error) => {
                    if !told {
                        tracing::warn!(stream, consumer, %error, "waiting for the consumer; `hub provision` makes it");
                        told = true;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// A message that has come already, without waiting and without asking for more.
    pub fn try_next(&mut self) -> Option<PullEvent> {
        loop {
            let message = self.subscriber.next().now_or_never()??;
            self.last_sign_of_life = Instant::now();
            if let Some(event) = self.receive(message) {
                return Some(event);
            }
        }
    }

    /// The next message, given room for `room` more. Cancel-safe. With no room it waits for ever:
    /// call it again when there is some.
    pub async fn next(&mut self, room: usize) -> Result<PullEvent, NatsError> {
        loop {
            let ask = room.saturating_sub(self.outstanding).min(MOST_PER_PULL);
            // Top up in halves, so that a busy consumer is not asked message by message.
            if ask > 0
                && self.ask_again_at.is_none()
                && (self.outstanding == 0 || ask >= (room / 2).max(1) || self.outstanding * 2 <= ask)
            {
                self.ask(ask).await?;
            }
            let silent_at = self.last_sign_of_life + SILENCE;
            let ask_again_at = self.ask_again_at;
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
                    self.last_sign_of_life = Instant::now();
                    if let Some(event) = self.receive(message) {
                        return Ok(event);
                    }
                }
                () = until(ask_again_at) => self.ask_again_at = None,
                () = tokio::time::sleep_until(silent_at), if self.outstanding > 0 => {
                    tracing::warn!(consumer = self.next_subject, "the server went silent; pulling again");
                    self.reset();
                    return Ok(PullEvent::Reset);
                }
            }
        }
    }

    /// Lets the pulls end, which takes [`EXPIRES`] at most, and gives what they still bring back to
    /// the consumer, so that it need not wait for ack_wait. Only then is the inbox given up: a
    /// message that is on its way when its subscription ends is dropped by the client.
    pub async fn hand_back(mut self) {
        let deadline = Instant::now() + 2 * EXPIRES;
        while self.outstanding > 0 {
            let Ok(Some(message)) = tokio::time::timeout_at(deadline, self.subscriber.next()).await else {
                return;
            };
            if let Some(PullEvent::Message(message)) = self.receive(message) {
                message.acker.nak(Some(HAND_BACK_DELAY)).await;
            }
        }
    }

    fn reset(&mut self) {
        self.outstanding = 0;
        self.ask_again_at = None;
        self.last_sign_of_life = Instant::now();
    }

    async fn ask(&mut self, batch: usize) -> Result<(), NatsError> {
        let body = format!(r#"{{"batch":{batch},"expires":{}}}"#, EXPIRES.as_nanos());
        if self.outstanding == 0 {
            self.last_sign_of_life = Instant::now();
        }
        self.js
            .client()
            .publish_with_reply(self.next_subject.clone(), self.inbox.clone(), Bytes::from(body))
            .await
            .map_err(|error| NatsError::transport(self.next_subject.clone(), error))?;
        // Counted after: a future that is dropped while it waits to send has asked for nothing.
        self.outstanding += batch;
        Ok(())
    }

    fn receive(&mut self, message: async_nats::Message) -> Option<PullEvent> {
        let Some(status) = message.status.filter(|status| *status != StatusCode::OK) else {
            self.set_bound(true);
            self.outstanding = self.outstanding.saturating_sub(1);
            return match Delivered::read(self.js.client(), message) {
                Some(delivered) => Some(PullEvent::Message(Box::new(delivered))),
                None => {
                    tracing::warn!(
                        inbox = self.inbox,
                        "a message without an acknowledgement subject is ignored"
                    );
                    None
                }
            };
        };
        match status {
            StatusCode::NO_RESPONDERS => {
                self.outstanding = 0;
                self.set_bound(false);
                self.pause();
                Some(PullEvent::Missing)
            }
            _ => {
                // 404, 408, 409: a pull has ended. What it still had to bring is told in a header;
                // without it (consumer deleted, leadership changed) all pulls are gone.
                let left = header(message.headers.as_ref(), "Nats-Pending-Messages")
                    .and_then(|count| count.parse::<usize>().ok());
                match left {
                    Some(left) => {
                        self.outstanding = self.outstanding.saturating_sub(left);
                        if status == StatusCode::TIMEOUT {
                            self.set_bound(true);
                        } else {
                            self.pause();
                        }
                        None
                    }
                    None => {
                        self.outstanding = 0;
                        self.pause();
                        (status == StatusCode::REQUEST_TERMINATED).then(|| {
                            self.set_bound(false);
                            PullEvent::Missing
                        })
                    }
                }
            }
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

fn closed(subject: &str) -> NatsError {
    NatsError::transport(subject.to_owned(), "the client is closed".to_owned())
}
