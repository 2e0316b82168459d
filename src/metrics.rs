//! The facts that the hub counts. One method per fact: it counts, and where a person should
//! know, it logs.

mod api;
mod outbox;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use outbox::OutboxFamilies;
pub use outbox::OutboxMetrics;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DomainLabel {
    domain: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    domain: String,
    outcome: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    domain: String,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FailureLabel {
    domain: String,
    fault: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RejectedLabel {
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InForceLabel {
    in_force: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

type HistogramFamily = Family<DomainLabel, Histogram, fn() -> Histogram>;

/// The metrics of a process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    events: Family<DomainLabel, Counter>,
    unmatched: Family<DomainLabel, Counter>,
    put_aside: Counter,
    rejected: Family<RejectedLabel, Counter>,
    envelopes: Family<DomainLabel, Counter>,
    deliveries: Family<OutcomeLabel, Counter>,
    failures: Family<FailureLabel, Counter>,
    delivery_seconds: HistogramFamily,
    spilled: Family<DomainLabel, Counter>,
    attempts_logged: Family<DomainLabel, Counter>,
    attempts_unlogged: Family<DomainLabel, Counter>,
    dead_lettered: Family<ReasonLabel, Counter>,
    redriven: Family<DomainLabel, Counter>,
    resolved: Family<DomainLabel, Counter>,
    dlt_depth: Family<DomainLabel, Gauge<i64, AtomicI64>>,
    outbox_depth: Family<DomainLabel, Gauge<i64, AtomicI64>>,
    in_flight: Family<DomainLabel, Gauge<i64, AtomicI64>>,
    events_depth: Gauge<i64, AtomicI64>,
    subscriptions: Gauge<i64, AtomicI64>,
    unreadable_entries: Family<InForceLabel, Gauge<i64, AtomicI64>>,
    outbox: OutboxFamilies,
    api: api::ApiMetrics,
    resolver: ResolverMetrics,
    resolver_served: Family<ResultLabel, Counter>,
}

/// The log belongs to the process: its count is there before any metrics are, and is read when it is asked for.
#[derive(Debug)]
struct LogLines;

impl Collector for LogLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let lost = ConstCounter::new(crate::queued_writer::lost());
        let help =
            "Lines of the log that were dropped because their reader was gone, too slow, or out of space";
        lost.encode(encoder.encode_descriptor("log_lines_lost", help, None, lost.metric_type())?)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("hub");
        let events = Family::<DomainLabel, Counter>::default();
        let unmatched = Family::<DomainLabel, Counter>::default();
        let put_aside = Counter::default();
        let rejected = Family::<RejectedLabel, Counter<u64, AtomicU64>>::default();
        let envelopes = Family::<DomainLabel, Counter>::default();
        let deliveries = Family::<OutcomeLabel, Counter>::default();
        let failures = Family::<FailureLabel, Counter>::default();
        let buckets: fn() -> Histogram = || {
            Histogram::new([
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
            ])
        };
        let delivery_seconds: HistogramFamily = Family::new_with_constructor(buckets);
        let spilled = Family::<DomainLabel, Counter>::default();
        let attempts_logged = Family::<DomainLabel, Counter>::default();
        let attempts_unlogged = Family::<DomainLabel, Counter>::default();
        let dead_lettered = Family::<ReasonLabel, Counter>::default();
        let redriven = Family::<DomainLabel, Counter>::default();
        let resolved = Family::<DomainLabel, Counter>::default();
        let dlt_depth = Family::<DomainLabel, Gauge<i64, AtomicI64>>::default();
        let outbox_depth = Family::<DomainLabel, Gauge<i64, AtomicI64>>::default();
        let in_flight = Family::<DomainLabel, Gauge<i64, AtomicI64>>::default();
        let events_depth = Gauge::<i64, AtomicI64>::default();
        let subscriptions = Gauge::<i64, AtomicI64>::default();
        let unreadable_entries = Family::<InForceLabel, Gauge<i64, AtomicI64>>::default();
        registry.register("events", "Events taken from HUB_EVENTS, by domain", events.clone());
        registry.register(
            "events_unmatched",
            "Events that no subscription wanted, by domain",
            unmatched.clone(),
        );
        registry.register(
            "events_put_aside",
            "Events that went back to HUB_EVENTS for a moment, since their tenant had much work waiting",
            put_aside.clone(),
        );
        registry.register(
            "events_rejected",
            "Publications kept in HUB_REJECTED, by reason",
            rejected.clone(),
        );
        registry.register("envelopes", "Envelopes committed to an outbox, by domain", envelopes.clone());
        registry.register(
            "deliveries",
            "Delivery attempts, by domain and outcome (delivered, retried, exhausted, dead-lettered)",
            deliveries.clone(),
        );
        registry.register(
            "failures",
            "Failed delivery attempts, by domain, whose fault it is (subscriber, hub) and kind",
            failures.clone(),
        );
        registry.register(
            "delivery_seconds",
            "Duration of a delivery attempt in seconds, by domain",
            delivery_seconds.clone(),
        );
        registry.register(
            "envelopes_spilled",
            "Envelopes moved to their subscription's own lane, by domain",
            spilled.clone(),
        );
        registry.register(
            "attempts_logged",
            "Records of attempts put into the delivery log, by domain",
            attempts_logged.clone(),
        );
        registry.register(
            "attempts_unlogged",
            "Records of attempts left out of the delivery log, which could not keep up, by domain",
            attempts_unlogged.clone(),
        );
        registry.register(
            "dead_lettered",
            "Envelopes put into a DLT, by domain and reason",
            dead_lettered.clone(),
        );
        registry.register("redriven", "Dead letters sent back to their outbox, by domain", redriven.clone());
        registry.register(
            "resolved",
            "Dead letters dropped after their delivery, by domain",
            resolved.clone(),
        );
        registry.register("dlt_depth", "Dead letters that stand in the DLT, by domain", dlt_depth.clone());
        registry.register("outbox_depth", "Envelopes still owed, by domain (lag)", outbox_depth.clone());
        registry.register(
            "deliveries_in_flight",
            "Deliveries under way in this process, by domain",
            in_flight.clone(),
        );
        registry.register("events_depth", "Events that wait in HUB_EVENTS (lag)", events_depth.clone());
        registry.register("subscriptions", "Subscriptions in the index", subscriptions.clone());
        registry.register_collector(Box::new(LogLines));
        registry.register(
            "registry_unreadable_entries",
            "Registry entries whose last revision is unreadable, by what is in force instead (earlier, none); \
             none: the events of its tenant wait",
            unreadable_entries.clone(),
        );
        let outbox = OutboxFamilies::register(&mut registry);
        let api = api::ApiMetrics::register(&mut registry);
        let resolver = ResolverMetrics::registered(&mut registry);
        let resolver_served = Family::<ResultLabel, Counter>::default();
        registry.register(
            "resolver_served",
            "Questions of other hubs to this one as subscription resolver, by result \
             (answered, not-admitted, invalid, unavailable)",
            resolver_served.clone(),
        );
        Self {
            inner: Arc::new(Inner {
                registry,
                events,
                unmatched,
                put_aside,
                rejected,
                envelopes,
                deliveries,
                failures,
                delivery_seconds,
                spilled,
                attempts_logged,
                attempts_unlogged,
                dead_lettered,
                redriven,
                resolved,
                dlt_depth,
                outbox_depth,
                in_flight,
                events_depth,
                subscriptions,
                unreadable_entries,
                outbox,
                api,
                resolver,
                resolver_served,
            }),
        }
    }

    /// OpenMetrics text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.inner.registry)?;
        Ok(text)
    }

    /// The counters of one domain, looked up once: the delivery path counts without a map.
    pub fn of_domain(&self, domain: &str) -> DomainMetrics {
        let label = DomainLabel { domain: domain.to_owned() };
        let outcome = |outcome: &str| {
            let label = OutcomeLabel { domain: domain.to_owned(), outcome: outcome.to_owned() };
            self.inner.deliveries.get_or_create(&label).clone()
        };
        DomainMetrics {
            events: self.inner.events.get_or_create(&label).clone(),
            unmatched: self.inner.unmatched.get_or_create(&label).clone(),
            envelopes: self.inner.envelopes.get_or_create(&label).clone(),
            delivered: outcome("delivered"),
            retried: outcome("retried"),
            exhausted: outcome("exhausted"),
            dead_lettered: outcome("dead-lettered"),
            delivery_seconds: self.inner.delivery_seconds.get_or_create(&label).clone(),
            spilled: self.inner.spilled.get_or_create(&label).clone(),
            attempts_logged: self.inner.attempts_logged.get_or_create(&label).clone(),
            attempts_unlogged: self.inner.attempts_unlogged.get_or_create(&label).clone(),
            redriven: self.inner.redriven.get_or_create(&label).clone(),
            resolved: self.inner.resolved.get_or_create(&label).clone(),
            in_flight: self.inner.in_flight.get_or_create(&label).clone(),
        }
    }

    /// The metrics of one target broker of the transactional outbox.
    pub fn of_broker(&self, broker: &str) -> OutboxMetrics {
        self.inner.outbox.of(broker)
    }

    pub fn rejected(&self, reason: &str) {
        self.inner.rejected.get_or_create(&RejectedLabel { reason: reason.to_owned() }).inc();
    }

    /// An event went back, since its tenant had much work waiting.
    pub fn event_put_aside(&self) {
        self.inner.put_aside.inc();
    }

    /// A delivery attempt failed.
    pub fn failed(&self, domain: &str, fault: &'static str, kind: &'static str) {
        let label = FailureLabel { domain: domain.to_owned(), fault, kind };
        self.inner.failures.get_or_create(&label).inc();
    }

    pub fn dead_lettered(&self, domain: &str, reason: &str) {
        let label = ReasonLabel { domain: domain.to_owned(), reason: reason.to_owned() };
        self.inner.dead_lettered.get_or_create(&label).inc();
    }

    pub fn depths(&self, domain: &str, outbox: u64, dlt: u64) {
        let label = DomainLabel { domain: domain.to_owned() };
        self.inner.outbox_depth.get_or_create(&label).set(gauge(outbox));
        self.inner.dlt_depth.get_or_create(&label).set(gauge(dlt));
    }

    pub fn events_depth(&self, depth: u64) {
        self.inner.events_depth.set(gauge(depth));
    }

    pub fn subscriptions(&self, count: usize) {
        self.inner.subscriptions.set(gauge(count as u64));
    }

    /// Registry entries that are unreadable, by what is in force instead: an earlier revision, nothing since there never
    /// was a subscription (`unused`), or nobody knows (`none`).
    pub fn unreadable_entries(&self, counts: [(&'static str, usize); 3]) {
        for (in_force, count) in counts {
            let label = InForceLabel { in_force };
            self.inner.unreadable_entries.get_or_create(&label).set(gauge(count as u64));
        }
    }
}

impl Metrics {
    /// Of the resolver that this process asks.
    pub fn resolver(&self) -> ResolverMetrics {
        self.inner.resolver.clone()
    }

    /// Another hub's question was dealt with.
    pub fn resolver_served(&self, result: &'static str) {
        self.inner.resolver_served.get_or_create(&ResultLabel { result }).inc();
    }
}

/// What came of asking a subscription resolver. Cheap to clone.
#[derive(Clone)]
pub struct ResolverMetrics {
    pub answers: Counter,
    pub cache_hits: Counter,
    failures: Family<KindLabel, Counter>,
}

impl ResolverMetrics {
    fn registered(registry: &mut Registry) -> Self {
        let metrics =
            Self { answers: Counter::default(), cache_hits: Counter::default(), failures: Family::default() };
        registry.register(
            "resolver_answers",
            "Answers of the subscription resolver that were used",
            metrics.answers.clone(),
        );
        registry.register(
            "resolver_cache_hits",
            "Questions answered by what the subscription resolver said shortly before",
            metrics.cache_hits.clone(),
        );
        registry.register(
            "resolver_failures",
            "Questions that the subscription resolver left unanswered, by kind \
             (unavailable, deadline, not-admitted, failed, answer); their events wait",
            metrics.failures.clone(),
        );
        metrics
    }

    /// A question has no answer that can be used.
    pub fn failed(&self, kind: &'static str) {
        self.failures.get_or_create(&KindLabel { kind }).inc();
    }
}

/// See [`Metrics::of_domain`].
#[derive(Clone)]
pub struct DomainMetrics {
    pub events: Counter,
    pub unmatched: Counter,
    pub envelopes: Counter,
    pub delivered: Counter,
    pub retried: Counter,
    pub exhausted: Counter,
    pub dead_lettered: Counter,
    delivery_seconds: Histogram,
    pub spilled: Counter,
    pub attempts_logged: Counter,
    pub attempts_unlogged: Counter,
    pub redriven: Counter,
    pub resolved: Counter,
    pub in_flight: Gauge<i64, AtomicI64>,
}

impl DomainMetrics {
    pub fn attempt(&self, latency: Duration) {
        self.delivery_seconds.observe(latency.as_secs_f64());
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
