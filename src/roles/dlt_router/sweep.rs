//! The sweep: finds envelopes in an outbox that no consumer will deliver.
//!
//! A message is stranded if it is at or below its lane's ack floor, or at or below the lane's delivered sequence while
//! nothing is pending there. An acknowledgement in progress looks the same for a moment, so a candidate counts only if
//! the next pass finds it again. A lane that has messages but no consumer gets one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::facts::{
    LaneNotCreated, LaneWithoutConsumer, StrandedEnvelopeFound, StrandedEnvelopeNotRouted, SweepFailed,
};
use crate::nats::definitions::StreamParameters;
use crate::nats::subjects::{lane_consumer, lane_of_consumer};
use crate::nats::{ConsumerInfo, NatsError};
use crate::panics;

use super::route::{Cause, Router};

/// Most candidates of one pass in one lane.
const MOST_PER_PASS: usize = 1_000;

pub(super) struct Sweep {
    router: Arc<Router>,
    stream_parameters: StreamParameters,
    interval: Duration,
}

impl Sweep {
    pub(super) fn new(router: Arc<Router>, stream_parameters: StreamParameters, interval: Duration) -> Self {
        Self { router, stream_parameters, interval }
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
                match self.dead_letter(&stream, message.sequence).await {
                    Ok(true) => StrandedEnvelopeFound { stream: &stream, sequence: message.sequence }.emit(),
                    Ok(false) => {}
                    // Those behind it need not wait.
                    Err(error) => {
                        StrandedEnvelopeNotRouted {
                            error: &error,
                            stream: &stream,
                            sequence: message.sequence,
                            retry_in: self.interval,
                        }
                        .emit();
                        found.insert(message.sequence);
                    }
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
        let lanes: HashSet<&str> =
            subjects.iter().filter_map(|(subject, _)| Some(js.names().parse_outbox(subject)?.lane)).collect();
        for lane in lanes {
            if !consumers.contains(&lane_consumer(lane)) {
                LaneWithoutConsumer { stream, lane }.emit();
                // The lane's name may be invalid, from another publisher; the other lanes get their consumers.
                if let Err(error) = js.ensure_lane(&self.stream_parameters, domain, lane).await {
                    LaneNotCreated { error: &error, stream, lane }.emit();
                }
            }
        }
        Ok(())
    }
}

/// See the module documentation.
fn is_stranded(consumer: &ConsumerInfo, sequence: u64) -> bool {
    sequence <= consumer.ack_floor.stream_seq
        || (consumer.num_ack_pending == 0 && sequence <= consumer.delivered.stream_seq)
}
