//! The pause of a domain, as a process that delivers knows it.
//!
//! A paused lane gives out no more envelopes, but those that it gave out before wait in the memory of processes. So each
//! process learns of the pause, and its pool starts nothing until the end: at once by an advisory of the server, or a few
//! seconds later if it missed that. The durable of the shared lane has the truth.

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::lanes::LIST_INTERVAL;
use super::worker::{Running, Worker};
use crate::facts::{DomainPauseNotRead, DomainPaused, DomainResumed};
use crate::nats::{JetStream, NatsError};

/// The end of the pause of a domain; `None` while it is not paused.
pub(super) type PauseEnd = watch::Receiver<Option<Instant>>;

/// Follows the pause of a domain.
pub(super) struct DomainPause {
    js: JetStream,
    domain: String,
    end: watch::Sender<Option<Instant>>,
}

impl DomainPause {
    pub(super) fn new(js: JetStream, domain: String) -> (Self, PauseEnd) {
        let (end, receiver) = watch::channel(None);
        (Self { js, domain, end }, receiver)
    }

    /// Notifies the worker of each change, until `stop`.
    pub(super) async fn follow(self, stop: CancellationToken) -> Result<(), NatsError> {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            failed = self.look_again() => failed,
        }
    }

    /// Ends only if it fails. One look follows the other, so that no old answer replaces a newer one.
    async fn look_again(&self) -> Result<(), NatsError> {
        let outbox = self.js.names().outbox_stream(&self.domain);
        let mut changes = self.js.pause_changes(&outbox).await?;
        let mut looks = interval(LIST_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = changes.next() => {}
                _ = looks.tick() => {}
            }
            match self.js.rest_of_pause(&outbox).await {
                Ok(rest) => {
                    let now = Instant::now();
                    self.note(rest.and_then(|rest| now.checked_add(rest)));
                }
                // What is known applies: a pause ends by itself at its end.
                Err(error) => DomainPauseNotRead { error: &error, domain: &self.domain }.emit(),
            }
        }
    }

    fn note(&self, end: Option<Instant>) {
        let before = self.end.send_replace(end);
        match (before, end) {
            (None, Some(_)) => DomainPaused { domain: &self.domain }.emit(),
            (Some(_), None) => DomainResumed { domain: &self.domain }.emit(),
            _ => {}
        }
    }
}

impl Worker {
    /// Starts no attempt before the pause of the domain ends. The waiting envelopes stay here with heartbeats.
    pub(super) fn take_pause(&self, running: &mut Running) {
        let end = *self.pause_end.borrow();
        running.pool.stop(end.map(|end| end.saturating_duration_since(running.started)));
    }
}
