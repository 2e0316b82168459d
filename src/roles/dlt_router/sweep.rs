//! The sweep: finds envelopes in an outbox that no consumer will deliver.
//!
//! A message that its lane has delivered and that is still there is stranded if one of these is true:
//!
//! - Its final failed attempt is stored, and it had been delivered before the pass before this one, so that an advisory
//!   has had its time. No worker tries it again, so this holds while other messages flow.
//! - It is at or below its lane's ack floor, or nothing of the lane is pending, both times that the sweep looks at it. An
//!   acknowledgement in progress looks the same for a moment.
//!
//! Under traffic the second rule is not enough: the server moves the ack floor only with the acknowledgement of the next
//! message after it. An exhausted message leaves the pending ones without one, so the oldest pins the floor until the lane
//! has nothing pending (`consumer.processAckMsgLocked` of nats-server).
//!
//! What is gone meanwhile is done. An error of one message, lane or domain is logged, and the pass continues; only an
//! unavailable server ends it. A lane that has messages but no consumer gets one.
//!
//! No worker reads a lane that another publisher made up. The sweep reads its messages by their sequences, and
//! dead-letters them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::facts::{
    LaneNotCreated, LaneNotSwept, LaneWithoutConsumer, StrandedEnvelopeFound, StrandedEnvelopeNotRouted,
    SweepFailed,
};
use crate::nats::definitions::StreamParameters;
use crate::nats::subjects::{is_lane, is_strict_lane, lane_consumer, lane_of_consumer};
use crate::nats::{ConsumerInfo, NatsError, StoredMessage};
use crate::panics;

use super::route::{Cause, Routed, Router};

/// Most candidates of one pass in one lane; the next pass continues after them.
const MOST_PER_PASS: usize = 4_000;
/// Candidates that are looked at together.
const TOGETHER: usize = 32;
/// Bytes of candidates above which no further one joins them.
const BYTES_TOGETHER: usize = 8 * 1024 * 1024;

/// What the passes know about the lanes of a domain, by name.
type Lanes = HashMap<String, Lane>;

/// What earlier passes found in a lane.
#[derive(Default)]
struct Lane {
    /// The last sequence that the consumer had delivered at the last pass.
    delivered: u64,
    /// Where the next pass begins; 0 at the beginning of a round over the whole lane.
    from: u64,
    /// Messages that the consumer did not know as pending: of the last round, and of this one.
    suspects: HashSet<u64>,
    new_suspects: HashSet<u64>,
}

impl Lane {
    /// Begins a pass; returns the last sequence that the consumer had delivered at the last pass. A consumer that was made
    /// again since then does not count.
    fn begin(&mut self, consumer: &ConsumerInfo) -> u64 {
        let now = consumer.delivered.stream_seq;
        std::mem::replace(&mut self.delivered, now).min(now)
    }

    fn end_round(&mut self) {
        self.from = 0;
        self.suspects = std::mem::take(&mut self.new_suspects);
    }
}

pub(super) struct Sweep {
    router: Arc<Router>,
    stream_parameters: StreamParameters,
    interval: Duration,
    /// Streams and lanes whose missing consumer is logged; at most those that have messages.
    without_consumer: Mutex<HashSet<(String, String)>>,
}

impl Sweep {
    pub(super) fn new(router: Arc<Router>, stream_parameters: StreamParameters, interval: Duration) -> Self {
        Self { router, stream_parameters, interval, without_consumer: Mutex::default() }
    }

    /// Never returns. May be dropped at any point: each step of a pass may be repeated.
    pub(super) async fn run(self) {
        let mut domains: HashMap<String, Lanes> = HashMap::new();
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.router.js().gate().opened().await;
            for domain in &self.stream_parameters.domains {
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
        for name in names {
            let lane = lanes.entry(name.to_owned()).or_default();
            match self.pass_of_lane(domain, &stream, name, lane).await {
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
        self.create_missing_consumers(domain, &stream, &consumers).await
    }

    async fn pass_of_lane(
        &self,
        domain: &str,
        stream: &str,
        name: &str,
        lane: &mut Lane,
    ) -> Result<(), NatsError> {
        let js = self.router.js();
        let consumer = js.consumer_info(stream, &lane_consumer(name)).await?;
        let old = lane.begin(&consumer);
        // The last attempt does not end a strict lane's envelope: it may stay to stop the order.
        let old = if is_strict_lane(name) { 0 } else { old };
        let last = last_unknown_to(&consumer).max(old);
        let filter = js.names().lane_filter(domain, name);
        let mut left = MOST_PER_PASS;
        while left > 0 {
            let mut candidates = Vec::new();
            let (mut bytes, mut at_end) = (0, false);
            while !at_end && candidates.len() < TOGETHER && bytes < BYTES_TOGETHER && left > 0 {
                let message = js.get_next(stream, lane.from.max(1), &filter).await?;
                let Some(message) = message.filter(|message| message.sequence <= last) else {
                    at_end = true;
                    continue;
                };
                left -= 1;
                lane.from = message.sequence + 1;
                bytes += message.payload.len();
                candidates.push(message);
            }
            // The messages were there after the consumer's state was read.
            let known = &lane.suspects;
            let found: Vec<_> = stream::iter(candidates)
                .map(|message| self.look_at(domain, stream, &consumer, old, known, message))
                .buffer_unordered(TOGETHER)
                .try_collect()
                .await?;
            lane.new_suspects.extend(found.into_iter().flatten());
            if at_end {
                lane.end_round();
                break;
            }
        }
        Ok(())
    }

    /// Dead-letters a candidate that is stranded. Returns its sequence if the next look decides.
    async fn look_at(
        &self,
        domain: &str,
        stream: &str,
        consumer: &ConsumerInfo,
        old: u64,
        known: &HashSet<u64>,
        message: StoredMessage,
    ) -> Result<Option<u64>, NatsError> {
        let sequence = message.sequence;
        let is_unknown = sequence <= last_unknown_to(consumer);
        let stranded = if is_unknown && known.contains(&sequence) {
            Ok(true)
        } else if sequence <= old {
            self.router.is_finished(domain, &message).await
        } else {
            Ok(false)
        };
        let is_left = match stranded {
            Ok(true) => self.route_stranded(stream, sequence).await?,
            Ok(false) => true,
            Err(error) => self.not_routed(stream, sequence, error)?,
        };
        Ok((is_left && is_unknown).then_some(sequence))
    }

    /// Dead-letters a stranded envelope; if that panics, without reading it.
    async fn dead_letter(&self, stream: &str, sequence: u64) -> Result<Routed, NatsError> {
        let cause = Cause::Stranded { deliveries: self.stream_parameters.max_deliver };
        match panics::catch_async(self.router.route(stream, sequence, cause)).await {
            Ok(routed) => routed,
            Err(panicked) => {
                panicked.on_input(stream, sequence, panics::TRIES);
                let detail = panicked.to_string();
                self.router.route(stream, sequence, Cause::Panicked { detail: &detail }).await
            }
        }
    }

    async fn create_missing_consumers(
        &self,
        domain: &str,
        stream: &str,
        consumers: &[String],
    ) -> Result<(), NatsError> {
        let js = self.router.js();
        let filter = js.names().lane_filter(domain, "*");
        let subjects = js.stream_subjects(stream, &filter).await?;
        let (lanes, foreign): (HashSet<&str>, HashSet<&str>) = subjects
            .iter()
            .filter_map(|(subject, _)| Some(js.names().parse_outbox(subject)?.lane))
            .partition(|lane| is_lane(lane));
        // A lane whose messages are gone is forgotten.
        self.without_consumer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(of, lane)| of != stream || lanes.contains(lane.as_str()));
        for lane in lanes {
            if !consumers.contains(&lane_consumer(lane)) {
                self.create_consumer(domain, stream, lane).await;
            }
        }
        self.empty_foreign_lanes(domain, stream, &foreign).await
    }

    /// Logs a failure once until a consumer is created.
    async fn create_consumer(&self, domain: &str, stream: &str, lane: &str) {
        let key = (stream.to_owned(), lane.to_owned());
        let logged = || self.without_consumer.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = logged().insert(key.clone());
        if is_new {
            LaneWithoutConsumer { stream, lane }.emit();
        }
        match self.router.js().ensure_lane(&self.stream_parameters, domain, lane).await {
            Ok(_) => {
                logged().remove(&key);
            }
            // The other lanes get their consumers.
            Err(error) if is_new => LaneNotCreated { error: &error, stream, lane }.emit(),
            Err(_) => {}
        }
    }

    /// Dead-letters the messages of lanes that no worker reads; at most [`MOST_PER_PASS`] are looked at.
    async fn empty_foreign_lanes(
        &self,
        domain: &str,
        stream: &str,
        lanes: &HashSet<&str>,
    ) -> Result<(), NatsError> {
        let js = self.router.js();
        // A filter cannot select a lane whose name is a wildcard, or is not ASCII. For these all lanes are looked through.
        let (plain, other): (Vec<&str>, Vec<&str>) = lanes.iter().copied().partition(|lane| {
            lane.bytes().all(|byte| byte.is_ascii_graphic()) && !matches!(*lane, "*" | ">")
        });
        let mut filters: Vec<String> =
            plain.iter().map(|lane| js.names().lane_filter(domain, lane)).collect();
        if !other.is_empty() {
            filters.push(js.names().lane_filter(domain, "*"));
        }
        let mut left = MOST_PER_PASS;
        for filter in filters {
            let mut from = 1;
            while left > 0
                && let Some(message) = js.get_next(stream, from, &filter).await?
            {
                left -= 1;
                from = message.sequence + 1;
                if js.names().parse_outbox(&message.subject).is_none_or(|subject| !is_lane(subject.lane)) {
                    self.route_stranded(stream, message.sequence).await?;
                }
            }
        }
        Ok(())
    }

    /// Dead-letters a stranded envelope; true if it is still there because that failed, which is logged.
    async fn route_stranded(&self, stream: &str, sequence: u64) -> Result<bool, NatsError> {
        match self.dead_letter(stream, sequence).await {
            Ok(Routed::DeadLettered | Routed::PublishedAgain) => {
                StrandedEnvelopeFound { stream, sequence }.emit();
                Ok(false)
            }
            Ok(Routed::Gone) => Ok(false),
            Err(error) => self.not_routed(stream, sequence, error),
        }
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

/// The sequence up to which the consumer has no message pending and will deliver none again.
fn last_unknown_to(consumer: &ConsumerInfo) -> u64 {
    if consumer.num_ack_pending == 0 { consumer.delivered.stream_seq } else { consumer.ack_floor.stream_seq }
}
