//! Creates the consumers of strict lanes beside the commits. An outbox keeps the envelopes of a lane without a consumer, in
//! their order, so no event waits for it. If the process ends before, or too many lanes are missing, the sweep creates the
//! consumer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::until;
use crate::domain::backlog::LEASE;
use crate::domain::lane_creation::{CreationFailure, LaneCreation};
use crate::domain::subscription::SubscriptionRef;
use crate::facts::{DomainMetrics, StrictLaneNotCreated, StrictLanesRefused};
use crate::nats::definitions::StreamParameters;
use crate::nats::subjects::subscription_of_lane;
use crate::nats::{JetStream, NatsError};

/// The lanes of a domain that are to exist. Cheap to clone.
#[derive(Clone)]
pub(super) struct MissingLanes(Arc<LaneCreations>);

struct LaneCreations {
    creation: Mutex<LaneCreation>,
    asked: Notify,
    started: Instant,
    metrics: DomainMetrics,
}

impl LaneCreations {
    fn creation(&self) -> MutexGuard<'_, LaneCreation> {
        self.creation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates them.
pub(super) struct LaneMaker {
    js: JetStream,
    parameters: StreamParameters,
    domain: String,
    shared: Arc<LaneCreations>,
}

/// What became of a creation.
enum Made {
    Exists,
    /// The lane has no envelopes any more.
    Unneeded,
    Failed(NatsError),
}

impl MissingLanes {
    pub(super) fn new(
        js: JetStream,
        parameters: StreamParameters,
        domain: &str,
        metrics: DomainMetrics,
    ) -> (Self, LaneMaker) {
        let creation = Mutex::new(LaneCreation::new(LEASE));
        let shared =
            Arc::new(LaneCreations { creation, asked: Notify::new(), started: Instant::now(), metrics });
        let maker = LaneMaker { js, parameters, domain: domain.to_owned(), shared: shared.clone() };
        (Self(shared), maker)
    }

    /// Asks for lanes. A lane is removed only after minutes without envelopes, so one that exists is not looked up again
    /// for a while.
    pub(super) fn ask<'a>(&self, lanes: impl Iterator<Item = &'a str>) {
        let now = self.0.started.elapsed();
        let mut creation = self.0.creation();
        let mut is_new = false;
        for lane in lanes {
            let owner = subscription_of_lane(lane).and_then(SubscriptionRef::from_token);
            is_new |= creation.ask(lane, owner.as_ref().map_or("", SubscriptionRef::tenant), now);
        }
        let refused = creation.take_refused();
        drop(creation);
        if is_new {
            self.0.asked.notify_one();
        }
        if refused > 0 {
            StrictLanesRefused { count: refused }.emit(&self.0.metrics);
        }
    }
}

impl LaneMaker {
    /// Never returns. May be dropped at any point.
    pub(super) async fn run(self) {
        let mut in_progress = FuturesUnordered::new();
        loop {
            let due = {
                let mut creation = self.shared.creation();
                while let Some(lane) = creation.next(self.shared.started.elapsed()) {
                    let may_be_unneeded = creation.fails_for_long(&lane);
                    in_progress.push(self.make(lane, may_be_unneeded));
                }
                self.shared.metrics.strict_lanes_missing(creation.missing());
                creation.due()
            };
            tokio::select! {
                Some((lane, made)) = in_progress.next() => self.note(&lane, made),
                () = self.shared.asked.notified() => {}
                () = until(due.map(|due| self.shared.started + due)) => {}
            }
        }
    }

    async fn make(&self, lane: Box<str>, may_be_unneeded: bool) -> (Box<str>, Made) {
        if may_be_unneeded && self.is_empty(&lane).await {
            return (lane, Made::Unneeded);
        }
        match self.js.ensure_lane(&self.parameters, &self.domain, &lane).await {
            Ok(_) => (lane, Made::Exists),
            Err(error) => (lane, Made::Failed(error)),
        }
    }

    /// Whether the outbox has no envelope of the lane, for example because its subscription was removed.
    async fn is_empty(&self, lane: &str) -> bool {
        let names = self.js.names();
        let (outbox, filter) = (names.outbox_stream(&self.domain), names.lane_filter(&self.domain, lane));
        self.js.stream_subjects(&outbox, &filter).await.is_ok_and(|subjects| subjects.is_empty())
    }

    fn note(&self, lane: &str, made: Made) {
        let now = self.shared.started.elapsed();
        let mut creation = self.shared.creation();
        let error = match made {
            Made::Exists => return creation.created(lane, now),
            Made::Unneeded => return creation.unneeded(lane),
            Made::Failed(error) => error,
        };
        let failure =
            if error.api().is_some() { CreationFailure::Refused } else { CreationFailure::Unanswered };
        let retry_in = creation.failed(lane, failure, now);
        drop(creation);
        if let Some(retry_in) = retry_in {
            StrictLaneNotCreated { remedy: remedy(&error), error: &error, lane, retry_in }
                .emit(&self.shared.metrics);
        }
    }
}

/// What an operator can do.
fn remedy(error: &NatsError) -> &'static str {
    if error.is_too_many_consumers() {
        "raise max_consumers of the NATS account, or remove subscriptions with a strict order"
    } else if error.is_out_of_resources() {
        "free disk space of the NATS server, or raise the limits of its account"
    } else {
        "check the outbox (`nats stream info`)"
    }
}
