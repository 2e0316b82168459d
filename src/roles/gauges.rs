//! Measures the depths of the streams for the metrics, watches their leaders and their room, and counts the unreadable
//! registry entries.

mod leader_watch;
mod room_watch;

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use time::OffsetDateTime;

use crate::facts::{DepthsNotRead, Metrics};
use crate::health::{Readiness, ReadyFlag};
use crate::nats::{JetStream, NatsError, Registry, RegistrySize, UnreadableEntry};
use leader_watch::LeaderWatch;
use room_watch::RoomWatch;

const INTERVAL: Duration = Duration::from_secs(5);
/// Streams that are read at once, so that those without an answer do not delay the others.
const READS: usize = 32;

pub struct Gauges {
    js: JetStream,
    registry: Registry,
    domains: Vec<String>,
    metrics: Metrics,
    readiness: Readiness,
    /// Not ready while JetStream has no leader.
    jetstream: ReadyFlag,
}

impl Gauges {
    pub fn new(
        js: JetStream,
        registry: Registry,
        domains: Vec<String>,
        metrics: Metrics,
        readiness: Readiness,
        jetstream: ReadyFlag,
    ) -> Self {
        Self { js, registry, domains, metrics, readiness, jetstream }
    }

    /// Runs until it is dropped.
    pub async fn run(self) {
        tokio::join!(self.depths(), self.registry.watch_unreadable(|entries| self.unreadable(entries)));
    }

    async fn depths(&self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rooms = RoomWatch::new(self.js.clone(), self.metrics.clone(), self.readiness.clone());
        let mut leaders = LeaderWatch::new(self.readiness.clone(), self.jetstream.clone());
        loop {
            ticks.tick().await;
            match self.read(&mut rooms, &mut leaders).await {
                Ok(()) => self.metrics.depths_read(),
                Err(error) => DepthsNotRead { error: &error }.emit(),
            }
            self.read_registry().await;
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

    async fn read_registry(&self) {
        self.metrics.subscriptions(self.registry.read().iter().map(|entry| entry.subscription.state));
        match self.registry.size(&self.js).await {
            Ok(RegistrySize { bytes, entries, revision_lag }) => {
                self.metrics.registry(bytes, entries, revision_lag);
            }
            // The watch of the agreement reports it.
            Err(error) if error.is_registry_lost() => {}
            Err(error) => DepthsNotRead { error: &error }.emit(),
        }
    }

    /// By the clock of the server; none is 0.
    fn age(&self, since: Option<OffsetDateTime>) -> Duration {
        let age = since.map(|since| self.js.now() - since);
        age.and_then(|age| age.try_into().ok()).unwrap_or_default()
    }

    /// Reads each stream, also if others cannot be read. Returns the first error. What a stream without a leader says is not
    /// its state.
    async fn read(&self, rooms: &mut RoomWatch, leaders: &mut LeaderWatch) -> Result<(), NatsError> {
        let names = self.js.names();
        let of_domain = |domain: &String| [names.outbox_stream(domain), names.dlt_stream(domain)];
        let streams = std::iter::once(names.events_stream()).chain(self.domains.iter().flat_map(of_domain));
        let infos = stream::iter(streams)
            .map(|stream| async move {
                let info = self.js.stream_info(&stream).await;
                (stream, info)
            })
            .buffered(READS)
            .collect::<Vec<_>>()
            .await;
        let mut infos = leaders.look(self.js.is_answering(), infos).into_iter();
        let mut first = Ok(());
        let mut next = || match infos.next() {
            Some(Ok(info)) => Some(info),
            Some(Err(error)) => {
                if first.is_ok() {
                    first = Err(error);
                }
                None
            }
            None => None,
        };
        let events = next();
        if let Some(events) = &events {
            self.metrics.events_depth(events.state.messages);
            self.metrics.events_oldest(self.age(events.state.oldest_at()));
        }
        rooms.look_at_events(events.map(|info| info.fill()).as_ref());
        for domain in &self.domains {
            let (outbox, dlt) = (next(), next());
            if let Some(outbox) = &outbox {
                self.metrics.outbox_depth(domain, outbox.state.messages);
                self.metrics.outbox_oldest(domain, self.age(outbox.state.oldest_at()));
            }
            if let Some(dlt) = &dlt {
                self.metrics.dlt_depth(domain, dlt.state.messages);
            }
            let [outbox, dlt] = [outbox, dlt].map(|info| info.map(|info| info.fill()));
            rooms.look_at_domain(domain, outbox.as_ref(), dlt.as_ref());
        }
        first
    }
}
