//! Creates the consumers of strict lanes beside the commits. An outbox keeps the envelopes of a lane without a consumer, in
//! their order, so no event waits for it. If the process ends before, the sweep creates the consumer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::domain::backlog::LEASE;
use crate::domain::lane_creation::{Failure, LaneCreation};
use crate::domain::subscription::SubscriptionRef;
use crate::facts::{DomainMetrics, StrictLaneNotCreated};
use crate::nats::definitions::StreamParameters;
use crate::nats::subjects::subscription_of_lane;
use crate::nats::{JetStream, NatsError};

/// The lanes of a domain that are to exist. Cheap to clone.
#[derive(Clone)]
pub(super) struct MissingLanes(Arc<Shared>);

struct Shared {
    creation: Mutex<LaneCreation>,
    asked: Notify,
    started: Instant,
}

impl Shared {
    fn creation(&self) -> MutexGuard<'_, LaneCreation> {
        self.creation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates them.
pub(super) struct LaneMaker {
    js: JetStream,
    parameters: StreamParameters,
    domain: String,
    shared: Arc<Shared>,
    metrics: DomainMetrics,
}

impl MissingLanes {
    pub(super) fn new(
        js: JetStream,
        parameters: StreamParameters,
        domain: &str,
        metrics: DomainMetrics,
    ) -> (Self, LaneMaker) {
        let creation = Mutex::new(LaneCreation::new(LEASE));
        let shared = Arc::new(Shared { creation, asked: Notify::new(), started: Instant::now() });
        let maker = LaneMaker { js, parameters, domain: domain.to_owned(), shared: shared.clone(), metrics };
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
        drop(creation);
        if is_new {
            self.0.asked.notify_one();
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
                    in_progress.push(self.make(lane));
                }
                self.metrics.strict_lanes_missing(creation.missing());
                creation.due()
            };
            tokio::select! {
                Some((lane, made)) = in_progress.next() => self.note(&lane, made),
                () = self.shared.asked.notified() => {}
                () = until(due.map(|due| self.shared.started + due)) => {}
            }
        }
    }

    async fn make(&self, lane: Box<str>) -> (Box<str>, Result<bool, NatsError>) {
        let made = self.js.ensure_lane(&self.parameters, &self.domain, &lane).await;
        (lane, made)
    }

    fn note(&self, lane: &str, made: Result<bool, NatsError>) {
        let now = self.shared.started.elapsed();
        let mut creation = self.shared.creation();
        let error = match made {
            Ok(_) => return creation.created(lane, now),
            Err(error) => error,
        };
        let failure = if error.api().is_some() { Failure::Refused } else { Failure::Unanswered };
        let retry_in = creation.failed(lane, failure, now);
        drop(creation);
        StrictLaneNotCreated { remedy: remedy(&error), error: &error, lane, retry_in }.emit(&self.metrics);
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

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending::<()>().await,
    }
}
