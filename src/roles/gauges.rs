//! Measures the depths of the streams for the metrics, and counts the unreadable registry entries.

use std::time::Duration;

use crate::facts::{DepthsNotRead, Metrics};
use crate::nats::{JetStream, NatsError, Registry, UnreadableEntry};

const INTERVAL: Duration = Duration::from_secs(5);

pub struct Gauges {
    js: JetStream,
    registry: Registry,
    domains: Vec<String>,
    metrics: Metrics,
}

impl Gauges {
    pub fn new(js: JetStream, registry: Registry, domains: Vec<String>, metrics: Metrics) -> Self {
        Self { js, registry, domains, metrics }
    }

    /// Runs until it is dropped.
    pub async fn run(self) {
        tokio::join!(self.depths(), self.registry.watch_unreadable(|entries| self.unreadable(entries)));
    }

    async fn depths(&self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.read().await {
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

    async fn read(&self) -> Result<(), NatsError> {
        let names = self.js.names();
        self.metrics.subscriptions(self.registry.read().len());
        self.metrics.events_depth(self.js.stream_info(&names.events_stream()).await?.state.messages);
        for domain in &self.domains {
            let outbox = self.js.stream_info(&names.outbox_stream(domain)).await?.state.messages;
            let dlt = self.js.stream_info(&names.dlt_stream(domain)).await?.state.messages;
            self.metrics.depths(domain, outbox, dlt);
        }
        Ok(())
    }
}
