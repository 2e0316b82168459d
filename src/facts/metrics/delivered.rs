//! The time from the publication of an event to its delivery: a histogram that is observed on the path of each delivery, so
//! it has no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

/// Upper bounds of the buckets in milliseconds. The last bucket has none.
const BOUNDS: [u64; 15] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 15_000, 60_000, 300_000, 1_800_000, 21_600_000,
    86_400_000,
];

/// A longer time (a hundred years) counts as this: it comes from a damaged envelope.
const LONGEST_MILLIS: u64 = 100 * 365 * 86_400_000;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(in crate::facts) struct PathLabel {
    domain: String,
    path: &'static str,
}

families! {
    DeliveredFamilies {
        seconds: Family<PathLabel, Latency> = "delivered_seconds",
            "Time from the storage of an event in HUB_EVENTS to its delivery, in seconds, by domain and path of the \
             envelope (first: its first attempt; retried; redriven: a redrive or replay of its dead letter)";
    }
}

/// How an envelope came to its delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryPath {
    First,
    Retried,
    Redriven,
}

impl DeliveryPath {
    const ALL: [Self; 3] = [Self::First, Self::Retried, Self::Redriven];

    fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Retried => "retried",
            Self::Redriven => "redriven",
        }
    }
}

/// The latencies of a domain by path, looked up once.
#[derive(Clone)]
pub(in crate::facts) struct Latencies([Latency; DeliveryPath::ALL.len()]);

impl Latencies {
    pub(in crate::facts) fn of(&self, path: DeliveryPath) -> &Latency {
        &self.0[path as usize]
    }
}

impl DeliveredFamilies {
    pub(super) fn of(&self, domain: &str) -> Latencies {
        Latencies(DeliveryPath::ALL.map(|path| {
            let label = PathLabel { domain: domain.to_owned(), path: path.as_str() };
            self.seconds.get_or_create(&label).clone()
        }))
    }
}

/// A histogram of times.
#[derive(Debug, Clone, Default)]
pub(in crate::facts) struct Latency(Arc<HistogramCounts>);

#[derive(Debug, Default)]
struct HistogramCounts {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_millis: AtomicU64,
}

impl Latency {
    pub(in crate::facts) fn observe(&self, latency: Duration) {
        let millis = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX).min(LONGEST_MILLIS);
        // Rounded up, so that none is in the bucket of a lower bound.
        let rounded = millis + u64::from(!latency.subsec_nanos().is_multiple_of(1_000_000));
        let bucket = BOUNDS.partition_point(|bound| *bound < rounded);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum_millis.fetch_add(millis, Ordering::Relaxed);
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let bounds = BOUNDS.iter().map(|millis| *millis as f64 / 1_000.0).chain([f64::INFINITY]);
        let counts = self.0.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum_millis.load(Ordering::Relaxed) as f64 / 1_000.0;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Metrics;

    #[test]
    fn each_time_is_in_the_first_bucket_that_holds_it() {
        let metrics = Metrics::new();
        let latencies = metrics.of_domain("orders").latencies;
        for millis in [0, 10, 11, 90_000_000] {
            latencies.of(DeliveryPath::Retried).observe(Duration::from_millis(millis));
        }
        latencies.of(DeliveryPath::Retried).observe(Duration::from_micros(10_001));
        let text = metrics.encode().unwrap();
        for (le, count) in [("0.01", 2), ("0.025", 4), ("86400.0", 4), ("+Inf", 5)] {
            let labels = format!("le=\"{le}\",domain=\"orders\",path=\"retried\"");
            let line = format!("hub_delivered_seconds_bucket{{{labels}}} {count}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        for line in [
            "hub_delivered_seconds_sum{domain=\"orders\",path=\"retried\"} 90000.031",
            "hub_delivered_seconds_count{domain=\"orders\",path=\"retried\"} 5",
            "hub_delivered_seconds_count{domain=\"orders\",path=\"first\"} 0",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
        // No time is too long.
        latencies.of(DeliveryPath::First).observe(Duration::MAX);
    }
}
