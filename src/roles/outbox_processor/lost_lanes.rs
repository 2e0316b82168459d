//! Own lanes whose consumer disappeared: deleted by an operator, with its stream, or as empty by another process.
//!
//! A lane that still has envelopes, or gets some from a process that does not know it yet, gets its consumer again. The
//! sweep does the same for lanes that nobody read, at its longer interval. It also empties the lanes of subscriptions
//! that are not in the registry, which get no consumer.

use std::collections::HashMap;

use super::Subscriptions;
use super::worker::LANE_KNOWN_FOR;
use crate::domain::subscription::SubscriptionRef;
use crate::facts::PartMadeAgain;
use crate::nats::definitions::StreamParameters;
use crate::nats::subjects::{lane_consumer, subscription_of_lane};
use crate::nats::{JetStream, NatsError};

#[derive(Default)]
pub(super) struct LostLanes {
    /// The number of looks left for each.
    looks: HashMap<String, u32>,
}

impl LostLanes {
    /// Looks at the lane for longer than a process assumes that it exists.
    pub(super) fn add(&mut self, lane: &str) {
        let looks = LANE_KNOWN_FOR.as_secs() / super::lanes::LIST_INTERVAL.as_secs() + 2;
        self.looks.insert(lane.to_owned(), u32::try_from(looks).unwrap_or(u32::MAX));
    }

    /// Makes the consumers of the lanes with envelopes again. The first failure ends the look; the next one repeats it.
    pub(super) async fn restore(
        &mut self,
        js: &JetStream,
        parameters: &StreamParameters,
        domain: &str,
        subscriptions: &Subscriptions,
    ) -> Result<(), NatsError> {
        let stream = js.names().outbox_stream(domain);
        for (lane, left) in &mut self.looks {
            let name = subscription_of_lane(lane).and_then(SubscriptionRef::from_token);
            if name.is_none_or(|name| subscriptions.lacks(&name)) {
                *left -= 1;
                continue;
            }
            let filter = js.names().lane_filter(domain, lane);
            match js.get_next(&stream, 1, &filter).await {
                Ok(Some(_)) => {
                    if js.ensure_lane(parameters, domain, lane).await? {
                        let what = format!("consumer {stream}/{}", lane_consumer(lane));
                        PartMadeAgain { what: &what }.emit();
                    }
                }
                Ok(None) => {}
                Err(error) => return Err(error),
            }
            *left -= 1;
        }
        self.looks.retain(|_, left| *left > 0);
        Ok(())
    }
}
