//! The pause of a domain: the durable of its shared lane stores it (ADR-43). The server reports each change, and the end
//! of a pause (an advisory over core NATS, so at most once and not stored).

use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt as _;

use super::connection::JetStream;
use super::error::NatsError;
use super::subjects::{SHARED_LANE, SubjectNames, lane_consumer};

/// The changes of the pause of a domain since the subscription, whoever makes them.
pub struct PauseChanges(Subscriber);

impl JetStream {
    /// Subscribes to the advisories about the pause of a domain; the subscription survives reconnects.
    pub async fn pause_changes(&self, outbox: &str) -> Result<PauseChanges, NatsError> {
        let subject = SubjectNames::consumer_paused(outbox, &lane_consumer(SHARED_LANE));
        let messages = self.client().subscribe(subject.clone()).await;
        messages.map(PauseChanges).map_err(|error| NatsError::transport(subject, error))
    }

    /// How long the pause of a domain lasts yet; `None` if it is not paused, or has no shared lane.
    pub async fn rest_of_pause(&self, outbox: &str) -> Result<Option<Duration>, NatsError> {
        match self.consumer_info(outbox, &lane_consumer(SHARED_LANE)).await {
            Ok(shared) => Ok(shared.pause_remaining.filter(|_| shared.paused).map(Duration::from_nanos)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl PauseChanges {
    /// Waits for a change. What it is, the durable says. Never ends if the connection is closed.
    pub async fn next(&mut self) {
        if self.0.next().await.is_none() {
            std::future::pending().await
        }
    }
}
