//! The sweep: finds envelopes in an outbox that no consumer will deliver.
//!
//! A message that its lane has delivered and that is still there is stranded if one of these was true at two passes
//! (`sweep` in the core):
//!
//! - Its final failed attempt is stored. No worker tries it again, so this holds while other messages flow.
//! - It is at or below its lane's ack floor, or nothing of the lane is pending.
//!
//! Under traffic the second rule is not enough: the server moves the ack floor only with the acknowledgement of the next
//! message after it. An exhausted message leaves the pending ones without one, so the oldest pins the floor until the lane
//! has nothing pending (`consumer.processAckMsgLocked` of nats-server).
//!
//! What is gone meanwhile is done. An error of one message, lane or domain is logged, and the pass continues; only an
//! unavailable server ends it. Lanes that nobody reads are the matter of [`super::unread_lanes`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::DltRouterSettings;
use super::route::{Routed, Router};
use super::unread_lanes::UnreadLanes;
use crate::domain::sweep::{Finding, Pass, Snapshot, SweptLane};
use crate::facts::{
    LaneNotSwept, StrandedEnvelopeFound, StrandedEnvelopeNotRouted, StrandedResult, SweepFailed,
};
use crate::nats::subjects::{is_strict_lane, lane_consumer, lane_of_consumer};
use crate::nats::{NatsError, StoredMessage};

/// Most candidates of one pass in one lane; the next pass continues after them.
const MOST_PER_PASS: usize = 4_000;
/// Candidates that are looked at together.
const TOGETHER: usize = 32;
/// Bytes of candidates above which no further one joins them.
const BYTES_TOGETHER: usize = 8 * 1024 * 1024;

/// What the passes know about the lanes of a domain, by name.
type Lanes = HashMap<String, SweptLane>;

pub(super) struct Sweep {
    router: Arc<Router>,
    domains: Vec<String>,
    interval: Duration,
    unread: UnreadLanes,
}

impl Sweep {
    pub(super) fn new(router: Arc<Router>, settings: &DltRouterSettings) -> Self {
        let (domains, interval) = (settings.stream_parameters.domains.clone(), settings.sweep_interval);
        Self { router, domains, interval, unread: UnreadLanes::new(settings) }
    }

    /// Never returns. May be dropped at any point: each step of a pass may be repeated.
    pub(super) async fn run(self) {
        let mut domains: HashMap<String, Lanes> = HashMap::new();
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.router.js().gate().opened().await;
            for domain in &self.domains {
                let lanes = domains.entry(domain.clone()).or_default();
                if let Err(error) = self.pass(domain, lanes).await {
                    SweepFailed { error: &error, domain, retry_in: self.interval }.emit();
                }
            }
        }
    }

    /// Dead-letters what is stranded in the lanes of a domain.
    async fn pass(&self, domain: &str, lanes: &mut Lanes) -> Result<(), NatsError> {
        let js = self.router.js();
        let stream = js.names().outbox_stream(domain);
        if js.stream_info(&stream).await?.state.messages == 0 {
            lanes.clear();
            return Ok(());
        }
        let consumers = js.consumer_names(&stream).await?;
        let names: HashSet<&str> = consumers.iter().filter_map(|name| lane_of_consumer(name)).collect();
        lanes.retain(|lane, _| names.contains(lane.as_str()));
        let attempts = js.last_attempt().await?;
        for name in names {
            let lane = lanes.entry(name.to_owned()).or_default();
            match self.pass_of_lane(domain, &stream, name, lane, attempts).await {
                Ok(()) => {}
                // The consumer was removed meanwhile.
                Err(error) if error.is_not_found() => {}
                Err(error) if error.is_unreachable() => return Err(error),
                Err(error) => {
                    let retry_in = self.interval;
                    LaneNotSwept { error: &error, stream: &stream, lane: name, retry_in }.emit();
                }
            }
        }
        self.unread.pass(&self.router, domain, &stream, &consumers).await
    }

    async fn pass_of_lane(
        &self,
        domain: &str,
        stream: &str,
        name: &str,
        lane: &mut SweptLane,
        attempts: u64,
    ) -> Result<(), NatsError> {
        let js = self.router.js();
        let consumer = js.consumer_info(stream, &lane_consumer(name)).await?;
        let now = Snapshot {
            delivered: consumer.delivered.stream_seq,
            ack_floor: consumer.ack_floor.stream_seq,
            pending: consumer.num_ack_pending,
            attempts,
        };
        // The last attempt does not end a strict lane's envelope: it may stay to stop the order.
        let pass = lane.begin(now, is_strict_lane(name));
        let filter = js.names().lane_filter(domain, name);
        let mut left = MOST_PER_PASS;
        while left > 0 {
            let mut candidates = Vec::new();
            let (mut bytes, mut at_end) = (0, false);
            while !at_end && candidates.len() < TOGETHER && bytes < BYTES_TOGETHER && left > 0 {
                let message = js.get_next(stream, lane.from(), &filter).await?;
                let Some(message) = message.filter(|message| pass.reaches(message.sequence)) else {
                    at_end = true;
                    continue;
                };
                left -= 1;
                lane.found(message.sequence);
                bytes += message.payload.len();
                candidates.push((lane.finding(pass, message.sequence), message));
            }
            // The messages were there after the consumer's state was read.
            let remaining: Vec<_> = stream::iter(candidates)
                .map(|(finding, message)| self.look_at(domain, stream, pass, finding, message))
                .buffer_unordered(TOGETHER)
                .try_collect()
                .await?;
            remaining.into_iter().flatten().for_each(|sequence| lane.remains(pass, sequence));
            if at_end {
                lane.end_round();
                break;
            }
        }
        Ok(())
    }

    /// Dead-letters a candidate that is stranded. Returns its sequence if it remains.
    async fn look_at(
        &self,
        domain: &str,
        stream: &str,
        pass: Pass,
        finding: Finding,
        message: StoredMessage,
    ) -> Result<Option<u64>, NatsError> {
        let sequence = message.sequence;
        let stranded = match finding {
            Finding::Stranded => Ok(true),
            Finding::AskForFinalAttempt => {
                let finished = self.router.finished_at(domain, &message).await;
                finished.map(|attempt| attempt.is_some_and(|attempt| pass.is_old(attempt)))
            }
            Finding::Waits => Ok(false),
        };
        let remains = match stranded {
            Ok(true) => self.route_stranded(domain, stream, sequence).await?,
            Ok(false) => true,
            Err(error) => self.not_routed(stream, sequence, error)?,
        };
        Ok(remains.then_some(sequence))
    }

    /// Dead-letters a stranded envelope; true if it is still there because that failed, which is logged.
    async fn route_stranded(&self, domain: &str, stream: &str, sequence: u64) -> Result<bool, NatsError> {
        let found = |result| {
            StrandedEnvelopeFound { domain, stream, sequence, result }.emit(self.router.metrics());
        };
        match self.router.dead_letter_stranded(stream, sequence).await {
            Ok(Routed::DeadLettered) => found(StrandedResult::DeadLettered),
            Ok(Routed::PublishedAgain) => found(StrandedResult::PublishedAgain),
            Ok(Routed::Gone) => {}
            Err(error) => return self.not_routed(stream, sequence, error),
        }
        Ok(false)
    }

    /// An error of one message is logged; that of an unavailable server ends the pass.
    fn not_routed(&self, stream: &str, sequence: u64, error: NatsError) -> Result<bool, NatsError> {
        if error.is_unreachable() {
            return Err(error);
        }
        let retry_in = self.interval;
        if !self.router.js().letters_are_reported(stream) {
            StrandedEnvelopeNotRouted { error: &error, stream, sequence, retry_in }.emit();
        }
        Ok(true)
    }
}
