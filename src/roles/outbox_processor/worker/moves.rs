//! Moves of envelopes to the own lanes of their subscriptions.
//!
//! An outbox keeps the envelopes of a lane without a consumer, so a move does not wait for the creation of the lane: a burst for
//! hundreds of endpoints that do not answer leaves the memory as fast as it can be published. Each lane is created once, a few
//! at a time. If the process ends before, the sweep creates it; if the server refuses it, the sweep moves the envelopes back,
//! and further ones stay in the shared lane for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::{Held, Running, Worker};
use crate::facts::{DomainMetrics, EnvelopeNotSpilled, EnvelopeSpilled, OwnLaneNotCreated};
use crate::nats::definitions::StreamParameters;
use crate::nats::subjects::own_lane;
use crate::nats::{JetStream, NatsError};
use crate::roles::outbox_processor::remembered::Settlement;

/// Delay before an envelope that could not be moved to its own lane is delivered again.
const SPILL_RETRY: Duration = Duration::from_secs(5);
/// How long a lane is assumed to exist after an envelope was moved there. It is removed only after minutes without
/// envelopes.
pub(crate) const LANE_KNOWN_FOR: Duration = Duration::from_secs(30);
/// How long nothing is moved to a lane that the server refused.
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// Creations at the same time.
const CREATIONS: usize = 2;
/// Tries of a creation that the server does not answer, with [`SPILL_RETRY`] between them.
const CREATION_TRIES: usize = 3;

/// The own lanes that envelopes were moved to. Cheap to clone.
#[derive(Clone)]
pub(super) struct SpillLanes {
    lanes: Arc<Mutex<HashMap<String, (State, Instant)>>>,
    creations: Arc<Semaphore>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Creating,
    Exists,
    Refused,
}

impl Default for SpillLanes {
    fn default() -> Self {
        Self { lanes: Arc::default(), creations: Arc::new(Semaphore::new(CREATIONS)) }
    }
}

/// What a creation needs.
struct Maker {
    js: JetStream,
    domain: String,
    parameters: StreamParameters,
    /// Notifies the reader of lanes.
    opened: Arc<Notify>,
    metrics: DomainMetrics,
}

impl SpillLanes {
    fn lanes(&self) -> MutexGuard<'_, HashMap<String, (State, Instant)>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, lane: &str, state: State) {
        let mut lanes = self.lanes();
        lanes.retain(|_, (state, since)| *state == State::Creating || since.elapsed() < 2 * REFUSED_FOR);
        lanes.insert(lane.to_owned(), (state, Instant::now()));
    }

    /// Whether an envelope may be moved to a lane. One that was refused a while ago is asked for first.
    async fn admits(&self, lane: &str, maker: &Maker) -> bool {
        let known = self.lanes().get(lane).copied();
        match known {
            Some((State::Refused, since)) if since.elapsed() < REFUSED_FOR => false,
            Some((State::Refused, _)) => {
                // Nobody moves anything there meanwhile.
                self.create(lane, State::Refused, maker).await;
                self.lanes().get(lane).is_some_and(|(state, _)| *state == State::Exists)
            }
            _ => true,
        }
    }

    /// Creates a lane, unless it exists or somebody does so.
    async fn create_if_missing(&self, lane: &str, maker: &Maker) {
        let is_known = match self.lanes().get(lane) {
            Some((State::Creating | State::Refused, _)) => true,
            Some((State::Exists, since)) => since.elapsed() < LANE_KNOWN_FOR,
            None => false,
        };
        if !is_known {
            self.create(lane, State::Creating, maker).await;
        }
    }

    /// `meanwhile`: how the lane is known until the server has answered.
    async fn create(&self, lane: &str, meanwhile: State, maker: &Maker) {
        self.note(lane, meanwhile);
        let unfinished = Unfinished { lanes: self, lane };
        let Maker { js, domain, parameters, opened, metrics } = maker;
        for tries in 1..=CREATION_TRIES {
            let turn = self.creations.acquire().await;
            let created = js.ensure_lane(parameters, domain, lane).await;
            drop(turn);
            match created {
                Ok(_) => {
                    self.note(lane, State::Exists);
                    opened.notify_one();
                    break;
                }
                Err(error) => {
                    OwnLaneNotCreated { error: &error, lane }.emit(metrics);
                    if error.api().is_some() && !error.is_unavailable() {
                        self.note(lane, State::Refused);
                        break;
                    }
                    if tries < CREATION_TRIES {
                        tokio::time::sleep(SPILL_RETRY).await;
                    }
                }
            }
        }
        drop(unfinished);
    }
}

/// Lets somebody else create the lane if a creation ends without a result, also if it is cancelled.
struct Unfinished<'a> {
    lanes: &'a SpillLanes,
    lane: &'a str,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let mut lanes = self.lanes.lanes();
        if lanes.get(self.lane).is_some_and(|(state, _)| *state == State::Creating) {
            lanes.remove(self.lane);
        }
    }
}

impl Worker {
    /// Moves an envelope to its subscription's own lane: publishes it there with the number of its attempts, acknowledges it
    /// here, and creates the lane if it is missing.
    pub(in crate::roles::outbox_processor) fn spill(&self, running: &mut Running, mut held: Held) {
        if self.subscriptions.lacks(&held.subscription.subscription) {
            // Anybody may make up a name: it gets no lane. Its envelopes become dead letters, which takes no time.
            return self.keep(running, held);
        }
        running.waits_no_longer(&mut held);
        let token = held.subscription.subscription.token();
        let lane = own_lane(&token);
        let maker = Maker {
            js: self.js.clone(),
            domain: self.domain.name.clone(),
            parameters: self.settings.stream_parameters.clone(),
            opened: running.opened.clone(),
            metrics: self.metrics.clone(),
        };
        let (tries, subject) =
            (self.delivery.tries().clone(), self.js.names().outbox(&self.domain.name, &lane, &token));
        let own_lanes = running.own_lanes.clone();
        let remembered = self.delivery.remembered().clone();
        remembered.remember(&held.message, Settlement::Moving);
        running.spills.start(async move {
            let Held { message, permit, .. } = held;
            let known = tries.look_up(&message).await;
            let moved = async {
                if !own_lanes.admits(&lane, &maker).await {
                    return Ok::<bool, NatsError>(false);
                }
                let outgoing = tries.copy(&message, known.moved(), subject);
                maker.js.publish_each(std::slice::from_ref(&outgoing)).await?;
                Ok(true)
            };
            let moved = moved.await;
            if let Ok(true) = moved {
                EnvelopeSpilled.emit(&maker.metrics);
                tries.forget(&message);
                remembered.remember(&message, Settlement::Moved);
                remembered.answers.ack(&message.acker).await;
                drop((message, permit));
                own_lanes.create_if_missing(&lane, &maker).await;
                return;
            }
            if let Err(error) = moved {
                EnvelopeNotSpilled { error: &error, lane: &lane, retry_in: SPILL_RETRY }.emit(&maker.metrics);
            }
            tries.keep(&message, known.tried());
            remembered.forget(&message);
            message.acker.nak(Some(SPILL_RETRY)).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_creation_that_is_cancelled_is_not_in_progress() {
        let lanes = SpillLanes::default();
        lanes.note("own-crm", State::Creating);
        drop(Unfinished { lanes: &lanes, lane: "own-crm" });
        assert!(lanes.lanes().is_empty());
        for known in [State::Exists, State::Refused] {
            lanes.note("own-crm", known);
            drop(Unfinished { lanes: &lanes, lane: "own-crm" });
            assert_eq!(lanes.lanes().get("own-crm").map(|(state, _)| *state), Some(known));
        }
    }
}
