//! The producer outbox, by target broker: `hub_relay_…`. (`hub_outbox_…` are the domain outboxes.)

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::streams::Seconds;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(in crate::facts) struct BrokerLabel {
    broker: String,
}

const LAG_SECONDS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

labelled_families! {
    BrokerFamilies by BrokerLabel, each BrokerCounters {
        published: Counter = "relay_published",
            "Rows of the producer outbox that their target broker acknowledged, by broker";
        failed: Counter = "relay_failed",
            "Attempts to publish a row that the broker refused and that are retried, by broker";
        abandoned: Counter = "relay_abandoned",
            "Rows that were abandoned, with their reason in the database, by broker";
        open: Gauge = "relay_open_rows",
            "Rows of the producer outbox that are neither published nor abandoned, by broker; of the whole database, the same from each relay";
        oldest_seconds: Seconds = "relay_oldest_seconds",
            "Age of the oldest row that is neither published nor abandoned, by broker; 0 if there is none; the same from each relay";
        lag_seconds: Histogram [LAG_SECONDS] = "relay_lag_seconds",
            "Time from the creation of an event to its acknowledgement by the target broker, by broker";
        broker_up: Gauge = "relay_broker_up",
            "Whether the target broker accepted or answered the last request (1) or not (0), by broker";
    }
}

impl BrokerFamilies {
    pub(super) fn of(&self, broker: &str) -> RelayMetrics {
        let label = BrokerLabel { broker: broker.to_owned() };
        RelayMetrics { broker: broker.into(), counters: self.one(&label) }
    }
}

/// The metrics of one target broker, looked up once.
#[derive(Clone)]
pub struct RelayMetrics {
    pub(in crate::facts) broker: Arc<str>,
    pub(in crate::facts) counters: BrokerCounters,
}

impl RelayMetrics {
    /// Sets how many rows are open, and how old the oldest of them is.
    pub fn backlog(&self, open: u64, oldest: Duration) {
        self.counters.open.set(super::gauge(open));
        self.counters.oldest_seconds.set(oldest.as_secs_f64());
    }

    pub fn broker_up(&self, up: bool) {
        self.counters.broker_up.set(i64::from(up));
    }
}
