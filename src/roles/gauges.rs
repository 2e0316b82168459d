//! Measures the depths of the streams for the metrics, watches their room, and counts the unreadable registry entries.

mod room_watch;

use std::time::Duration;

use crate::facts::{DepthsNotRead, Metrics};
use crate::health::Readiness;
use crate::nats::{JetStream, NatsError, Registry, UnreadableEntry};
use room_watch::RoomWatch;

const INTERVAL: Duration = Duration::from_secs(5);

pub struct Gauges {
    js: JetStream,
    registry: Registry,
    domains: Vec<String>,
    metrics: Metrics,
    readiness: Readiness,
}

impl Gauges {
    pub fn new(
        js: JetStream,
        registry: Registry,
        domains: Vec<String>,
        metrics: Metrics,
        readiness: Readiness,
    ) -> Self {
        Self { js, registry, domains, metrics, readiness }
    }

    /// Runs until it is dropped.
    pub async fn run(self) {
        tokio::join!(self.depths(), self.registry.watch_unreadable(|entries| self.unreadable(entries)));
    }

    async fn depths(&self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rooms = RoomWatch::new(self.js.clone(), self.metrics.clone(), self.readiness.clone());
        loop {
            ticks.tick().await;
            if let Err(error) = self.read(&mut rooms).await {
                DepthsNotRead { error: &error }.emit();
            }
        }
    }

    /// At each change, as `/readyz` names them.
    fn unreadable(&self, entries: &[UnreadableEntry]) {
        let count = |is: fn(&UnreadableEntry) -> bool| entries.iter().filter(|entry| is(entry)).count();
        self.metrics.unreadable_entries([
            ("earlier", count(|entry| entry.in_force.is_some() && !entry.is_no_subscription())),
            ("unused", count(UnreadableEntry::is_no_subscription)),
            ("none", count(|entry| entry.in_force.is_none())),
        ]);
    }

    async fn read(&self, rooms: &mut RoomWatch) -> Result<(), NatsError> {
        let names = self.js.names();
        self.metrics.subscriptions(self.registry.read().len());
        let events = self.js.stream_info(&names.events_stream()).await?;
        self.metrics.events_depth(events.state.messages);
        rooms.look_at_events(&events.fill());
        for domain in &self.domains {
            let outbox = self.js.stream_info(&names.outbox_stream(domain)).await?;
            let dlt = self.js.stream_info(&names.dlt_stream(domain)).await?;
            self.metrics.depths(domain, outbox.state.messages, dlt.state.messages);
            rooms.look_at_domain(domain, &outbox.fill(), &dlt.fill());
        }
        Ok(())
    }
}
