//! Which envelopes of a domain outbox no consumer delivers any more.

use std::collections::HashMap;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::connection::JetStream;
use super::error::NatsError;
use super::subjects::lane_consumer;
use crate::domain::replay_pace::{LaneLook, UsedUp};

/// Consumers that are looked at at once.
const LOOKS_AT_ONCE: usize = 16;

impl JetStream {
    /// The envelopes of a domain that have used up their deliveries.
    pub async fn used_up(&self, domain: &str) -> Result<UsedUp, NatsError> {
        let names = self.names();
        let stream = names.outbox_stream(domain);
        let mut lanes: HashMap<String, LaneLook> = HashMap::new();
        for (subject, count) in self.stream_subjects(&stream, &names.lane_filter(domain, "*")).await? {
            let Some(parsed) = names.parse_outbox(&subject) else { continue };
            let lane = lanes.entry(parsed.lane.to_owned()).or_default();
            lane.envelopes.insert(parsed.subscription.to_owned(), count);
        }
        // What arrives after the envelopes were counted seems active, and what was delivered since seems used up.
        let looks: Vec<LaneLook> = stream::iter(lanes)
            .map(|(lane, look)| self.with_active(&stream, lane, look))
            .buffer_unordered(LOOKS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(UsedUp::of(&looks))
    }

    async fn with_active(&self, stream: &str, lane: String, look: LaneLook) -> Result<LaneLook, NatsError> {
        let active = match self.consumer_info(stream, &lane_consumer(&lane)).await {
            Ok(consumer) => Some(consumer.num_pending.saturating_add(consumer.num_ack_pending)),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        Ok(LaneLook { active, ..look })
    }
}
