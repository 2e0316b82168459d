//! Reads, applies and acknowledges one event after the other, so that the events of a stream stay in order, except
//! those that are read again.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::broker::{Broker, BrokerError, Delivery, Source};
use crate::event::Event;
use crate::inbox::{Applied, Inbox, InboxError};
use crate::translation::translate;

/// First and longest wait between two tries to reach the broker or the database; doubles with each try.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// Counts of one process.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub applied: u64,
    pub repeated: u64,
    pub not_ours: u64,
    pub put_aside: u64,
}

pub(crate) struct Handling {
    pub source: Source,
    pub inbox: Inbox,
    /// See `--attempts`.
    pub attempts: u32,
    /// See `--remember`.
    pub remember: Duration,
}

impl Handling {
    /// Runs until `stop`. Events that are read but not acknowledged by then are read again by another process.
    pub(crate) async fn run(&self, stop: &CancellationToken) -> Counts {
        let mut counts = Counts::default();
        let mut pause = PAUSES.0;
        while !stop.is_cancelled() {
            let before = counts.total();
            if let Err(error) = self.run_connected(&mut counts, stop).await {
                if counts.total() > before {
                    pause = PAUSES.0;
                }
                wait(&mut pause, &error, stop).await;
            }
        }
        counts
    }

    /// Runs until the connection to the broker is lost, or until `stop`.
    async fn run_connected(&self, counts: &mut Counts, stop: &CancellationToken) -> Result<(), BrokerError> {
        let mut broker = Broker::connect(&self.source).await?;
        info!(host = self.source.url.host_str(), stream = self.source.stream, "subscribed");
        let mut forget_at = Instant::now();
        while !stop.is_cancelled() {
            if Instant::now() >= forget_at {
                if let Err(error) = self.inbox.forget(self.remember).await {
                    warn!("deleting old ids failed, will retry: {error}");
                }
                forget_at = Instant::now() + FORGET_EVERY;
            }
            for delivery in broker.next().await? {
                let mut pause = PAUSES.0;
                loop {
                    if stop.is_cancelled() {
                        return Ok(());
                    }
                    match self.handle(&delivery, counts).await {
                        Ok(()) => break,
                        // The database failed, not the event: retry it before reading others.
                        Err(error) => wait(&mut pause, &error, stop).await,
                    }
                }
                // After the commit. If the process crashes before this, the event comes again and the inbox skips it.
                broker.acknowledge(delivery).await?;
            }
        }
        Ok(())
    }

    /// Returns `Ok` if the event is done for any reason, and an error if the database is unavailable.
    async fn handle(&self, delivery: &Delivery, counts: &mut Counts) -> Result<(), InboxError> {
        if delivery.attempts > u64::from(self.attempts) {
            let reason = format!("read {} times without an acknowledgement", delivery.attempts);
            return self.put_aside(delivery, &reason, counts).await;
        }
        let event = match Event::read(&delivery.body) {
            Ok(event) => event,
            Err(error) => {
                return self.put_aside(delivery, &format!("invalid envelope: {error}"), counts).await;
            }
        };
        let command = match translate(&event) {
            Ok(Some(command)) => command,
            Ok(None) => {
                counts.not_ours += 1;
                return Ok(());
            }
            Err(error) => return self.put_aside(delivery, &error.to_string(), counts).await,
        };
        match self.inbox.apply(&event.metadata.headers.id, &command).await {
            Ok(Applied::Now) => counts.applied += 1,
            Ok(Applied::Before) => counts.repeated += 1,
            Err(error @ InboxError::Refused(_)) => {
                return self.put_aside(delivery, &error.to_string(), counts).await;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn put_aside(
        &self,
        delivery: &Delivery,
        reason: &str,
        counts: &mut Counts,
    ) -> Result<(), InboxError> {
        warn!(place = delivery.place, "put aside: {reason}");
        self.inbox.put_aside(&delivery.place, reason, &delivery.body).await?;
        counts.put_aside += 1;
        Ok(())
    }
}

/// Logs the error and waits, longer with each call; returns at once after `stop`.
async fn wait(pause: &mut Duration, error: &dyn std::error::Error, stop: &CancellationToken) {
    warn!("{error}; trying again in {pause:?}");
    stop.run_until_cancelled(tokio::time::sleep(*pause)).await;
    *pause = PAUSES.1.min(*pause * 2);
}

impl Counts {
    fn total(&self) -> u64 {
        self.applied + self.repeated + self.not_ours + self.put_aside
    }
}
