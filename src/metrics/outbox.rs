//! What the relay counts, by target broker: `hub_relay_…`. (`hub_outbox_…` are the outbox streams of the domains.)

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BrokerLabel {
    broker: String,
}

type Seconds = Gauge<f64, AtomicU64>;

/// The families, registered once per process.
#[derive(Clone)]
pub(super) struct OutboxFamilies {
    published: Family<BrokerLabel, Counter>,
    failed: Family<BrokerLabel, Counter>,
    abandoned: Family<BrokerLabel, Counter>,
    open: Family<BrokerLabel, Gauge<i64, AtomicI64>>,
    oldest_seconds: Family<BrokerLabel, Seconds>,
    lag_seconds: Family<BrokerLabel, Histogram, fn() -> Histogram>,
    broker_up: Family<BrokerLabel, Gauge<i64, AtomicI64>>,
}

impl OutboxFamilies {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let buckets: fn() -> Histogram = || {
            Histogram::new([
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
            ])
        };
        let families = Self {
            published: Family::default(),
            failed: Family::default(),
            abandoned: Family::default(),
            open: Family::default(),
            oldest_seconds: Family::default(),
            lag_seconds: Family::new_with_constructor(buckets),
            broker_up: Family::default(),
        };
        registry.register(
            "relay_published",
            "Rows of the transactional outbox that their target broker has, by broker",
            families.published.clone(),
        );
        registry.register(
            "relay_failed",
            "Attempts to publish a row that the broker refused and that are repeated, by broker",
            families.failed.clone(),
        );
        registry.register(
            "relay_abandoned",
            "Rows that were given up, with their reason in the database, by broker",
            families.abandoned.clone(),
        );
        registry.register(
            "relay_open_rows",
            "Rows of the transactional outbox that are neither published nor abandoned, by broker; of the whole database, the same from each relay",
            families.open.clone(),
        );
        registry.register(
            "relay_oldest_seconds",
            "Age of the oldest row that is neither published nor abandoned, by broker; 0 where there is none; the same from each relay",
            families.oldest_seconds.clone(),
        );
        registry.register(
            "relay_lag_seconds",
            "Time from raising an event to its acknowledgement by the target broker, by broker",
            families.lag_seconds.clone(),
        );
        registry.register(
            "relay_broker_up",
            "Whether the target broker took or answered the last that was asked of it (1) or not (0), by broker",
            families.broker_up.clone(),
        );
        families
    }

    pub(super) fn of(&self, broker: &str) -> OutboxMetrics {
        let label = BrokerLabel { broker: broker.to_owned() };
        OutboxMetrics {
            published: self.published.get_or_create(&label).clone(),
            failed: self.failed.get_or_create(&label).clone(),
            abandoned: self.abandoned.get_or_create(&label).clone(),
            open: self.open.get_or_create(&label).clone(),
            oldest_seconds: self.oldest_seconds.get_or_create(&label).clone(),
            lag_seconds: self.lag_seconds.get_or_create(&label).clone(),
            broker_up: self.broker_up.get_or_create(&label).clone(),
        }
    }
}

/// Of one target broker, looked up once.
#[derive(Clone)]
pub struct OutboxMetrics {
    /// Rows.
    pub published: Counter,
    /// Attempts.
    pub failed: Counter,
    /// Rows.
    pub abandoned: Counter,
    open: Gauge<i64, AtomicI64>,
    oldest_seconds: Seconds,
    lag_seconds: Histogram,
    broker_up: Gauge<i64, AtomicI64>,
}

impl OutboxMetrics {
    /// How many rows are open, and how old the oldest of them is.
    pub fn backlog(&self, open: u64, oldest: Duration) {
        self.open.set(super::gauge(open));
        self.oldest_seconds.set(oldest.as_secs_f64());
    }

    /// A row was acknowledged so long after its event was raised.
    pub fn lag(&self, lag: Duration) {
        self.lag_seconds.observe(lag.as_secs_f64());
    }

    pub fn broker_up(&self, up: bool) {
        self.broker_up.set(i64::from(up));
    }
}
