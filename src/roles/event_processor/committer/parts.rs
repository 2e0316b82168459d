//! An event that no batch, or not even the empty outbox, can hold as a whole is written in parts.
//!
//! A part that does not fit waits here, with the event's progress, while other events are committed. If the process ends
//! meanwhile, the event is delivered again, and the outbox drops the envelopes that it knows by their message ids.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{BUSY_DELAY, Committer, MOST_BYTES, Planned};
use crate::nats::{EnvelopeMessage, NatsError};

/// Interval of the heartbeats for the event whose rest waits; well within ack_wait.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// An event of which a part did not fit.
pub(super) struct Rest {
    pub(super) planned: Planned,
    /// Envelopes that are written.
    done: usize,
    next_try: Instant,
    next_heartbeat: Instant,
}

/// Waits until there is something to do for the rest of an event; forever if there is none.
pub(super) async fn wake(rest: &Option<Rest>) {
    match rest {
        Some(rest) => tokio::time::sleep_until(rest.next_try.min(rest.next_heartbeat)).await,
        None => std::future::pending().await,
    }
}

impl Committer {
    /// Writes an event in parts. While the rest of another one waits, it is handed back.
    pub(super) async fn start_in_parts(&mut self, planned: Planned) {
        if self.rest.is_some() {
            return self.try_later(planned).await;
        }
        let next_heartbeat = Instant::now() + HEARTBEAT;
        self.write_parts(Rest { planned, done: 0, next_try: Instant::now(), next_heartbeat }).await;
    }

    pub(super) async fn write_rest_if_due(&mut self) {
        let now = Instant::now();
        if let Some(rest) = self.rest.as_mut().filter(|rest| rest.next_heartbeat <= now) {
            rest.next_heartbeat = now + HEARTBEAT;
            rest.planned.message.acker.in_progress().await;
        }
        if let Some(rest) = self.rest.take_if(|rest| rest.next_try <= now) {
            self.write_parts(rest).await;
        }
    }

    async fn write_parts(&mut self, mut rest: Rest) {
        let mut most = usize::MAX;
        while rest.done < rest.planned.envelopes.len() {
            self.leases.look();
            if !self.leases.holds(rest.planned.message.lease) {
                return;
            }
            let left = rest.planned.envelopes.get(rest.done..).unwrap_or_default();
            let sizes = left.iter().map(EnvelopeMessage::stored_bytes);
            let count = self.outbox.known().part(sizes, most, MOST_BYTES);
            let part = left.get(..count).unwrap_or(left);
            let size = part.iter().map(EnvelopeMessage::stored_bytes).sum();
            let error = match self.try_write(part).await {
                Ok(Ok(())) => {
                    rest.done += count;
                    continue;
                }
                Ok(Err(error)) => error,
                Err(panicked) => return self.rejecter.panicked(&rest.planned.message, &panicked).await,
            };
            if error.is_batch_too_large() {
                self.outbox.lower_batch(count / 2);
            }
            if error.api().is_some() && count > 1 {
                most = count / 2;
                continue;
            }
            return self.keep_rest(rest, &error, size).await;
        }
        self.committed(rest.planned).await;
    }

    /// Keeps the event until its next envelope, of this size, fits.
    async fn keep_rest(&mut self, mut rest: Rest, error: &NatsError, size: usize) {
        let size = if error.api().is_some() { size } else { 0 };
        if error.api().is_some()
            && let Some((room, _)) = self.read_limits().await
            && rest.planned.largest() > room.largest()
        {
            // It is planned again, which sets aside what can never fit.
            return rest.planned.message.acker.nak(Some(BUSY_DELAY)).await;
        }
        self.block(error, size);
        rest.next_try = Instant::now() + BUSY_DELAY;
        self.rest = Some(rest);
        // The planner waits for no memory that the rest has.
        self.is_blocked.store(true, Ordering::Relaxed);
    }
}
