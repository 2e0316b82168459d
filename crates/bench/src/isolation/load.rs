//! The load: healthy and disturbing events at a fixed pace, whatever the hub does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::scenario::Disturbance;
use crate::error::BenchError;
use crate::load::{NewEvent, PUBLISHES_IN_FLIGHT};
use crate::tally::WebhookId;
use integration_hub::domain::subscription::{Incarnation, Subscription};
use integration_hub::nats::JetStream;

/// Healthy subscriptions, in groups that each have an event key of their own.
const HEALTHY: usize = 50;
const GROUPS: usize = 5;
/// Interval of the healthy events, in turn for each group: 50 events per second, 500 deliveries.
const EVERY: Duration = Duration::from_millis(20);

/// A healthy delivery to expect.
pub(super) type Sent = (WebhookId, Instant);

/// Publishes until it is stopped.
pub(super) struct LoadPublisher {
    js: JetStream,
    groups: Vec<(String, Vec<Subscription>)>,
    /// Keys of the disturbing subscriptions.
    disturbing: Vec<String>,
    per_second: f64,
    /// The disturbing events are published, too.
    disturbs: AtomicBool,
    /// The number of the next event.
    next: AtomicU64,
    refused: AtomicU64,
}

impl LoadPublisher {
    /// Writes the subscriptions of both kinds.
    pub(super) async fn new(
        js: JetStream,
        healthy: &Url,
        urls: &[Url],
        disturbance: &Disturbance,
    ) -> Result<Arc<Self>, BenchError> {
        let mut groups: Vec<(String, Vec<Subscription>)> =
            (0..GROUPS).map(|group| (format!("user.healthy{group}"), Vec::new())).collect();
        for number in 0..HEALTHY {
            let (key, all) = &mut groups[number % GROUPS];
            let url = healthy.join(&format!("hooks/{number}")).unwrap_or_else(|_| healthy.clone());
            all.push(subscription("healthy", number, key, &url, &Value::Null)?);
        }
        let disturbing: Vec<String> =
            (0..urls.len()).map(|number| format!("role.disturbing{number}")).collect();
        let mut all: Vec<Subscription> = groups.iter().flat_map(|(_, all)| all.clone()).collect();
        for (number, (url, key)) in urls.iter().zip(&disturbing).enumerate() {
            all.push(subscription("disturbing", number, key, url, &disturbance.delivery)?);
        }
        crate::load::register(&js, &all, |_| {}).await?;
        Ok(Arc::new(Self {
            js,
            groups,
            disturbing,
            per_second: disturbance.per_second,
            disturbs: AtomicBool::new(disturbance.warm),
            next: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    /// Publishes the disturbing events from now on.
    pub(super) fn disturb(&self) {
        self.disturbs.store(true, Ordering::Relaxed);
    }

    /// Events that were not acknowledged.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Publishes until `stop`, without waiting for earlier events. Returns the healthy deliveries of the acknowledged events.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<Vec<Sent>, BenchError> {
        let mut ticks = tokio::time::interval(EVERY);
        // An open loop: what was late is made up for.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (mut calls, mut due, mut turn) = (JoinSet::new(), 0.0, 0);
        for number in 0.. {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let load = self.clone();
            calls.spawn(async move { load.healthy(number % GROUPS).await });
            if self.disturbs.load(Ordering::Relaxed) {
                due += self.per_second * EVERY.as_secs_f64();
            }
            while due >= 1.0 {
                due -= 1.0;
                let (load, endpoint) = (self.clone(), turn % self.disturbing.len());
                turn += 1;
                calls.spawn(async move { load.disturbing(endpoint).await.map(|()| Vec::new()) });
            }
        }
        let mut sent = Vec::new();
        while let Some(call) = calls.join_next().await {
            sent.extend(call??);
        }
        Ok(sent)
    }

    async fn healthy(&self, group: usize) -> Result<Vec<Sent>, BenchError> {
        let (key, subscriptions) = &self.groups[group];
        let (event, started) = (self.event(key)?, Instant::now());
        if self.publish(&event).await {
            Ok(subscriptions.iter().map(|one| (event.webhook_id(one), started)).collect())
        } else {
            Ok(Vec::new())
        }
    }

    async fn disturbing(&self, endpoint: usize) -> Result<(), BenchError> {
        let event = self.event(&self.disturbing[endpoint])?;
        self.publish(&event).await;
        Ok(())
    }

    fn event(&self, key: &str) -> Result<NewEvent, BenchError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        NewEvent::of_key(self.js.names(), key, number, "default")
    }

    /// Returns true if the stream has acknowledged it.
    async fn publish(&self, event: &NewEvent) -> bool {
        let published = event.publish(&self.js).await;
        if let Err(error) = &published {
            tracing::info!(%error, "an event was not accepted");
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        published.is_ok()
    }

    /// Publishes events for the disturbing endpoints in turn, as fast as they are acknowledged.
    pub(super) async fn fill(&self, count: u64) -> Result<(), BenchError> {
        let endpoints = self.disturbing.len();
        let events = futures_util::stream::iter(0..count as usize).map(|at| self.disturbing(at % endpoints));
        let mut events = events.buffer_unordered(PUBLISHES_IN_FLIGHT);
        while let Some(published) = events.next().await {
            published?;
        }
        Ok(())
    }
}

fn subscription(
    kind: &str,
    number: usize,
    key: &str,
    url: &Url,
    delivery: &Value,
) -> Result<Subscription, BenchError> {
    let mut value = serde_json::json!({
        "id": format!("{kind}-{number}"),
        "tenant": "default",
        "incarnation": Incarnation::new(number as u128 + 1),
        "events": [key],
        "delivery": {"url": url},
    });
    for (name, field) in delivery.as_object().into_iter().flatten() {
        value["delivery"][name] = field.clone();
    }
    serde_json::from_value(value).map_err(BenchError::Subscription)
}
