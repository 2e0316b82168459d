//! What is read at each scrape instead of being set: the build, the connection to the NATS server, the readiness of each
//! part, and the age of the gauges that are measured.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Metrics;

/// The commit that the build was made from, if whoever built it set the variable.
const COMMIT: &str = match option_env!("HUB_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The sources of what is read at a scrape.
pub struct Observed {
    /// Whether the NATS server is connected and answers, and JetStream has a leader, as `/readyz` reports it.
    pub is_connected: Box<dyn Fn() -> bool + Send + Sync>,
    /// Connections to the NATS server after the first.
    pub reconnects: Box<dyn Fn() -> u64 + Send + Sync>,
    /// The parts that `/readyz` knows, and whether each is ready.
    pub parts: Box<dyn Fn() -> Vec<(String, bool)> + Send + Sync>,
}

pub(super) struct Live {
    started: Instant,
    /// When all depths were read last, in milliseconds after `started`.
    depths_read_at: AtomicU64,
    observed: OnceLock<Observed>,
}

impl Live {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), depths_read_at: AtomicU64::new(0), observed: OnceLock::new() }
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("started", &self.started).finish_non_exhaustive()
    }
}

impl Metrics {
    /// Adds the sources of what is read at a scrape. Only the first call has an effect.
    pub fn attach(&self, observed: Observed) {
        let _ = self.inner.live.observed.set(observed);
    }

    /// All depths were read just now.
    pub fn depths_read(&self) {
        let live = &self.inner.live;
        let now = u64::try_from(live.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        live.depths_read_at.store(now, Ordering::Relaxed);
    }
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1, with the version of the hub and the commit that it was built from";
        let mut build = encoder.encode_descriptor("build_info", help, None, MetricType::Gauge)?;
        let labels = [("version", env!("CARGO_PKG_VERSION")), ("commit", COMMIT)];
        ConstGauge::new(1i64).encode(build.encode_family(&labels)?)?;

        let read_at = Duration::from_millis(self.depths_read_at.load(Ordering::Relaxed));
        let age = ConstGauge::new(self.started.elapsed().saturating_sub(read_at).as_secs_f64());
        let help = "Time since all depths of streams were read, in seconds; they keep their values meanwhile";
        age.encode(encoder.encode_descriptor("gauges_age_seconds", help, None, MetricType::Gauge)?)?;

        let Some(observed) = self.observed.get() else { return Ok(()) };
        let connected = ConstGauge::new(i64::from((observed.is_connected)()));
        let help = "Whether the NATS server is connected and answers, and JetStream has a leader (1 or 0)";
        connected.encode(encoder.encode_descriptor("nats_connected", help, None, MetricType::Gauge)?)?;
        let reconnects = ConstCounter::new((observed.reconnects)());
        let help = "Connections to the NATS server after the first";
        reconnects.encode(encoder.encode_descriptor(
            "nats_reconnects",
            help,
            None,
            MetricType::Counter,
        )?)?;
        let help = "Whether each part of the process is ready (1 or 0), as /readyz reports it";
        let mut ready = encoder.encode_descriptor("ready", help, None, MetricType::Gauge)?;
        for (part, is_ready) in (observed.parts)() {
            let labels = [("part", part.as_str())];
            ConstGauge::new(i64::from(is_ready)).encode(ready.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_observed_is_read_at_each_scrape() {
        let metrics = Metrics::new();
        let text = metrics.encode().unwrap();
        assert!(text.contains(&format!("hub_build_info{{version=\"{}\",commit=", env!("CARGO_PKG_VERSION"))));
        assert!(text.contains("hub_gauges_age_seconds ") && !text.contains("hub_nats_connected"), "{text}");
        metrics.attach(Observed {
            is_connected: Box::new(|| false),
            reconnects: Box::new(|| 3),
            parts: Box::new(|| vec![("api".to_owned(), true), ("worker of \"a\"".to_owned(), false)]),
        });
        let text = metrics.encode().unwrap();
        for line in [
            "hub_nats_connected 0\n",
            "hub_nats_reconnects_total 3\n",
            "hub_ready{part=\"api\"} 1\n",
            "hub_ready{part=\"worker of \\\"a\\\"\"} 0\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        // One document, also with the metrics that have no prefix.
        assert!(text.contains("\nprocess_resident_memory_bytes ") || !cfg!(target_os = "linux"), "{text}");
        assert_eq!(text.matches("# EOF").count(), 1, "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
