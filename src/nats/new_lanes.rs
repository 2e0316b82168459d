//! New own lanes of a domain: the server reports each new consumer (an advisory over core NATS, so at most once and
//! not stored).

use async_nats::Subscriber;
use futures_util::StreamExt as _;

use super::connection::JetStream;
use super::error::NatsError;
use super::subjects::{SubjectNames, lane_of_consumer, subscription_of_lane};

/// The own lanes that were created since the subscription, by any process.
pub struct NewLanes(Subscriber);

impl JetStream {
    /// Subscribes to the advisories about new consumers of an outbox; the subscription survives reconnects.
    pub async fn new_lanes(&self, outbox: &str) -> Result<NewLanes, NatsError> {
        let subject = SubjectNames::consumer_created(outbox);
        let messages = self.client().subscribe(subject.clone()).await;
        messages.map(NewLanes).map_err(|error| NatsError::transport(subject, error))
    }
}

impl NewLanes {
    /// Waits until an own lane was created. Never ends if the connection is closed.
    pub async fn created(&mut self) {
        while let Some(message) = self.0.next().await {
            if is_own_lane(&message.subject) {
                return;
            }
        }
        std::future::pending().await
    }
}

fn is_own_lane(subject: &str) -> bool {
    let consumer = subject.rsplit_once('.').map(|(_, consumer)| consumer);
    consumer.and_then(lane_of_consumer).and_then(subscription_of_lane).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_lanes_count() {
        for (consumer, expected) in [
            ("lane-own-crm", true),
            ("lane-strict-3-crm", true),
            ("lane-shared", false),
            ("monitor", false),
            ("", false),
        ] {
            let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.CREATED.HUB_OUTBOX_X.{consumer}");
            assert_eq!(is_own_lane(&subject), expected, "{consumer}");
        }
        assert!(!is_own_lane("lane-own-crm"));
    }
}
