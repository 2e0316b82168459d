//! The sweep: finds envelopes in an outbox that no consumer will deliver.
//!
//! A message is stranded if it is at or below its lane's ack floor, or at or below the lane's delivered sequence while
//! nothing is pending there. An acknowledgement in progress looks the same for a moment, so a candidate counts only if
//! the next pass finds it again. A lane that has messages but no consumer gets one.
//!
//! No worker reads a lane that another publisher made up. The sweep reads its messages by their sequences, and
//! dead-letters them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::facts::{
    LaneNotCreated, LaneWithoutConsumer, StrandedEnvelopeFound, StrandedEnvelopeNotRouted, SweepFailed,
};
use crate::nats::definitions::StreamParameters;
use crate::nats::subjects::{is_lane, lane_consumer, lane_of_consumer};
use crate::nats::{ConsumerInfo, NatsError};
use crate::panics;

use super::route::{Cause, Router};

/// Most candidates of one pass in one lane.
const MOST_PER_PASS: usize = 1_000;

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
        let mut candidates: HashMap<String, HashSet<u64>> = HashMap::new();
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for domain in &self.stream_parameters.domains {
                let known = candidates.remove(domain).unwrap_or_default();
                match self.pass(domain, &known).await {
                    Ok(found) => {
                        candidates.insert(domain.clone(), found);
                    }
                    Err(error) => {
                        SweepFailed { error: &error, domain, retry_in: self.interval }.emit();
                    }
                }
            }
        }
    }

    /// Dead-letters the candidates that an earlier pass found as well; returns the new candidates.
    async fn pass(&self, domain: &str, known: &HashSet<u64>) -> Result<HashSet<u64>, NatsError> {
        let js = self.router.js();
        let stream = js.names().outbox_stream(domain);
        if js.stream_info(&stream).await?.state.messages == 0 {
            return Ok(HashSet::new());
        }
        let mut found = HashSet::new();
        let consumers = js.consumer_names(&stream).await?;
        for lane in consumers.iter().filter_map(|name| lane_of_consumer(name)) {
            let consumer = js.consumer_info(&stream, &lane_consumer(lane)).await?;
            let filter = js.names().lane_filter(domain, lane);
            let mut from = 1;
            for _ in 0..MOST_PER_PASS {
                let Some(message) = js.get_next(&stream, from, &filter).await? else { break };
                if !is_stranded(&consumer, message.sequence) {
                    break;
                }
                from = message.sequence + 1;
                if !known.contains(&message.sequence) {
                    found.insert(message.sequence);
                    continue;
                }
                // Those behind it need not wait.
                if !self.route_stranded(&stream, message.sequence).await {
                    found.insert(message.sequence);
                }
            }
        }
        self.create_missing_consumers(domain, &stream, &consumers).await?;
        Ok(found)
    }

    /// Dead-letters a stranded envelope; if that panics, without reading it.
    async fn dead_letter(&self, stream: &str, sequence: u64) -> Result<bool, NatsError> {
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
            Ok(()) => {
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
                    self.route_stranded(stream, message.sequence).await;
                }
            }
        }
        Ok(())
    }

    /// Dead-letters a stranded envelope; false if that failed, which is logged.
    async fn route_stranded(&self, stream: &str, sequence: u64) -> bool {
        match self.dead_letter(stream, sequence).await {
            Ok(true) => StrandedEnvelopeFound { stream, sequence }.emit(),
            Ok(false) => {}
            Err(error) => {
                let retry_in = self.interval;
                StrandedEnvelopeNotRouted { error: &error, stream, sequence, retry_in }.emit();
                return false;
            }
        }
        true
    }
}

/// See the module documentation.
fn is_stranded(consumer: &ConsumerInfo, sequence: u64) -> bool {
    sequence <= consumer.ack_floor.stream_seq
        || (consumer.num_ack_pending == 0 && sequence <= consumer.delivered.stream_seq)
}
