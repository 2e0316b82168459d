//! One message as one delivery attempt.

use std::time::{Duration, Instant};

use hub_domain::attempt::Attempt;
use hub_domain::outcome::{Failure, Outcome};
use hub_domain::words::span;

use super::{Broker, OutgoingMessage, PublishError, PublishedGroup};

/// Publishes one message and waits at most `timeout` for its acknowledgement. After a timeout the message may have
/// arrived nevertheless.
pub async fn attempt(broker: &dyn Broker, message: &OutgoingMessage, timeout: Duration) -> Attempt {
    let started = Instant::now();
    let publish = broker.publish(std::slice::from_ref(message));
    let (outcome, detail) = match tokio::time::timeout(timeout, publish).await {
        Ok(PublishedGroup { error: Some(error), .. }) => failed(&error),
        Ok(PublishedGroup { acknowledged: 0, error: None }) => {
            (Outcome::Failed(Failure::BrokerUnavailable), Some("the broker did not answer".to_owned()))
        }
        Ok(PublishedGroup { error: None, .. }) => (Outcome::Acknowledged, None),
        Err(_) => {
            let detail = format!("no acknowledgement within {}", span(timeout));
            (Outcome::Failed(Failure::Timeout), Some(detail))
        }
    };
    Attempt { outcome, latency: started.elapsed(), answer_excerpt: None, detail }
}

fn failed(error: &PublishError) -> (Outcome, Option<String>) {
    let failure = match error {
        PublishError::Unavailable { .. } => Failure::BrokerUnavailable,
        // A delivery has its own retries, and its dead letter is redriven: each attempt counts.
        PublishError::NoRoom { .. } | PublishError::Refused { .. } => Failure::BrokerRefused,
        PublishError::Permanent { .. } => Failure::Unpublishable,
    };
    (Outcome::Failed(failure), Some(error.reason().to_string()))
}
