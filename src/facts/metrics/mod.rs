//! The metrics of a process. Their counters and histograms can be changed in [`crate::facts`] only; gauges are set by
//! whoever measures.

#[macro_use]
mod families;
mod api;
mod delivered;
mod enumerated;
mod lanes;
mod live;
mod process;
mod relay;
mod streams;
mod worst;

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub(super) use api::{RequestLabel, RouteLabel};
pub use delivered::DeliveryPath;
pub(super) use enumerated::Redrive;
pub use enumerated::{LetterBy, StrandedResult, TokenResult};
pub use lanes::{DomainPause, LaneKind, LaneTotals};
pub use live::Observed;
pub use relay::RelayMetrics;
pub use worst::SubscriptionBacklog;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct DomainLabel {
    domain: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct StreamLabel {
    stream: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct OutcomeLabel {
    domain: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    pub(super) domain: String,
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct FailureLabel {
    pub(super) domain: String,
    pub(super) fault: &'static str,
    pub(super) kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct TransitionLabel {
    pub(super) domain: String,
    pub(super) to: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct RejectedLabel {
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct KindLabel {
    pub(super) kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct InForceLabel {
    in_force: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ResultLabel {
    pub(super) result: &'static str,
}

const DEFAULT_SUBSCRIPTIONS: usize = 20;

/// The first is that of an event without a subscription.
const FAN_OUT: [f64; 12] = [0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 5_000.0];

const DELIVERY_SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

labelled_families! {
    /// Of each domain; those that a domain's tasks count on the delivery path.
    DomainFamilies by DomainLabel, each DomainCounters {
        events: Counter = "events", "Events taken from HUB_EVENTS, by domain";
        unmatched: Counter = "events_unmatched", "Events that no subscription wanted, by domain";
        fan_out: Histogram [FAN_OUT] =
            "fan_out_envelopes", "Envelopes of an event, by domain; 0 if no subscription wants it";
        envelopes: Counter = "envelopes", "Envelopes committed to an outbox, by domain";
        delivery_seconds: Histogram [DELIVERY_SECONDS] =
            "delivery_seconds", "Duration of a delivery attempt in seconds, by domain";
        spilled: Counter =
            "envelopes_spilled", "Envelopes moved to their subscription's own lane, by domain";
        published_again: Counter = "envelopes_published_again",
            "Envelopes published again because not all of their used-up deliveries were attempts, by domain";
        redeliveries_settled: Counter = "redeliveries_settled",
            "Envelopes delivered by the broker again after they were settled, by domain";
        own_lane_envelopes: Counter = "envelopes_to_own_lanes",
            "Envelopes committed straight to their subscription's own lane, by domain";
        fullest_backlog: Gauge = "fullest_backlog_percent",
            "Fullest backlog of a subscription, in percent of its limit, by domain";
        strict_lanes_missing: Gauge = "strict_lanes_missing",
            "Strict lanes with new envelopes whose consumers are not created yet, by domain";
        strict_lanes_refused: Counter = "strict_lanes_refused",
            "Strict lanes that were left to the sweep because too many had no consumer yet, by domain";
        delivered_removed: Counter = "delivered_envelopes_removed",
            "Delivered envelopes that the broker had kept, removed by the dlt-router, by domain";
        beyond_quota: Counter = "envelopes_beyond_quota",
            "Envelopes over quota that stayed in an outbox because no dead letter could be stored, by domain";
        dlt_blocked: Gauge =
            "dlt_blocked", "Whether this process cannot store dead letters at the moment (1 or 0), by domain";
        attempts_logged: Counter =
            "attempts_logged", "Records of attempts stored in the delivery log, by domain";
        attempts_unlogged: Counter =
            "attempts_unlogged", "Records of attempts left out because the delivery log was full, by domain";
        resolved: Counter = "resolved", "Dead letters removed after their delivery, by domain";
        in_flight: Gauge = "deliveries_in_flight", "Deliveries in progress in this process, by domain";
        circuits: Gauge = "circuits_open", "Circuits that are open or half-open, by domain";
    }
}

families! {
    /// Of the whole process, or with more labels than the domain.
    Families {
        put_aside: Counter = "events_put_aside",
            "Events returned to HUB_EVENTS for a few seconds because their tenant had much work waiting";
        rejected: Family<RejectedLabel, Counter> =
            "events_rejected", "Publications stored in HUB_REJECTED, by reason";
        deliveries: Family<OutcomeLabel, Counter> = "deliveries",
            "Delivery attempts, by domain and outcome (delivered, retried, exhausted, dead-lettered)";
        failures: Family<FailureLabel, Counter> = "failures",
            "Failed delivery attempts, by domain, whose fault it is (subscriber, hub) and kind";
        circuit_transitions: Family<TransitionLabel, Counter> = "circuit_transitions",
            "Changes of circuits by this process, by domain and new state (open, half-open, closed)";
        subscriptions_held: Gauge = "subscriptions_held",
            "Subscriptions that get no deliveries for a while because their endpoint sent Retry-After";
        dead_lettered: Family<ReasonLabel, Counter> =
            "dead_lettered", "Envelopes stored in a DLT, by domain and reason";
        redriven: Family<DomainLabel, Counter> = "redriven", "Dead letters sent back to their outbox, by domain";
        dlt_depth: Family<DomainLabel, Gauge> = "dlt_depth", "Dead letters in the DLT, by domain";
        outbox_depth: Family<DomainLabel, Gauge> =
            "outbox_depth", "Envelopes that are not delivered yet, by domain (lag)";
        events_depth: Gauge = "events_depth", "Events that wait in HUB_EVENTS (lag)";
        stream_used: Family<StreamLabel, Gauge> = "stream_used_percent",
            "How full a stream is that rejects messages when it is full, in percent of its limit";
        stream_full: Family<StreamLabel, Gauge> = "stream_full",
            "Whether a stream that rejects messages when it is full has no room (1 or 0)";
        subscriptions: Gauge = "subscriptions", "Subscriptions in the index";
        unreadable_entries: Family<InForceLabel, Gauge> = "registry_unreadable_entries",
            "Registry entries whose last revision is unreadable, by what is in force instead (earlier, unused, none); \
             none: the events of its tenant wait";
        resolver_answers: Counter = "resolver_answers", "Answers of the subscription resolver that were used";
        resolver_cache_hits: Counter = "resolver_cache_hits",
            "Questions answered from the cache of the subscription resolver's answers";
        resolver_failures: Family<KindLabel, Counter> = "resolver_failures",
            "Questions that the subscription resolver did not answer, by kind \
             (unavailable, deadline, not-admitted, failed, answer); their events wait";
        resolver_served: Family<ResultLabel, Counter> = "resolver_served",
            "Questions of other hubs to this one as subscription resolver, by result \
             (answered, not-admitted, invalid, unavailable)";
    }
}

/// The metrics of a process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    /// Metrics of the process, which have no prefix.
    process: Registry,
    live: Arc<live::Live>,
    worst: Arc<worst::Worst>,
    families: Families,
    streams: streams::StreamFamilies,
    enumerated: enumerated::EnumeratedFamilies,
    delivered: delivered::DeliveredFamilies,
    lanes: lanes::LaneFamilies,
    domains: DomainFamilies,
    relay: relay::BrokerFamilies,
    api: api::ApiFamilies,
}

/// The count of lost log lines exists before any metrics do, so it is read when it is asked for.
#[derive(Debug)]
struct LogLines;

impl Collector for LogLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let lost = ConstCounter::new(crate::queued_writer::lost());
        let help = "Log lines that were dropped because their reader was gone, too slow, or out of space";
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
        Self::with_subscriptions(DEFAULT_SUBSCRIPTIONS)
    }

    /// With series of single subscriptions, at most this many for each domain.
    pub fn with_subscriptions(most: usize) -> Self {
        let mut registry = Registry::with_prefix("hub");
        let families = Families::register(&mut registry);
        let streams = streams::StreamFamilies::register(&mut registry);
        let enumerated = enumerated::EnumeratedFamilies::register(&mut registry);
        let delivered = delivered::DeliveredFamilies::register(&mut registry);
        let lanes = lanes::LaneFamilies::register(&mut registry);
        let domains = DomainFamilies::register(&mut registry);
        let relay = relay::BrokerFamilies::register(&mut registry);
        let api = api::ApiFamilies::register(&mut registry);
        registry.register_collector(Box::new(LogLines));
        let live = Arc::new(live::Live::new());
        registry.register_collector(Box::new(live.clone()));
        let worst = Arc::new(worst::Worst::new(most));
        registry.register_collector(Box::new(worst.clone()));
        let mut process = Registry::default();
        process.register_collector(Box::new(process::Process::new()));
        Self {
            inner: Arc::new(Inner {
                registry,
                process,
                live,
                worst,
                families,
                streams,
                enumerated,
                delivered,
                lanes,
                domains,
                relay,
                api,
            }),
        }
    }

    /// OpenMetrics text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.inner.registry)?;
        encode_registry(&mut text, &self.inner.process)?;
        encode_eof(&mut text)?;
        Ok(text)
    }

    pub(super) fn families(&self) -> &Families {
        &self.inner.families
    }

    pub(super) fn api(&self) -> &api::ApiFamilies {
        &self.inner.api
    }

    /// The metrics of one domain, looked up once: the delivery path counts without a map.
    pub fn of_domain(&self, domain: &str) -> DomainMetrics {
        let label = DomainLabel { domain: domain.to_owned() };
        let outcome = |outcome| {
            let label = OutcomeLabel { domain: domain.to_owned(), outcome };
            self.inner.families.deliveries.get_or_create(&label).clone()
        };
        DomainMetrics {
            domain: domain.into(),
            counters: self.inner.domains.one(&label),
            delivered: outcome("delivered"),
            retried: outcome("retried"),
            exhausted: outcome("exhausted"),
            dead_lettered: outcome("dead-lettered"),
            attempts: self.inner.enumerated.attempts_of(domain),
            latencies: self.inner.delivered.of(domain),
            worst: self.inner.worst.of(domain),
            all: self.clone(),
        }
    }

    pub(super) fn redriven(&self, domain: &str) -> Counter {
        let label = DomainLabel { domain: domain.to_owned() };
        self.inner.families.redriven.get_or_create(&label).clone()
    }

    /// The metrics of one target broker of the producer outbox.
    pub fn of_broker(&self, broker: &str) -> RelayMetrics {
        self.inner.relay.of(broker)
    }

    /// Sets how many messages are in a domain's outbox.
    pub fn outbox_depth(&self, domain: &str, messages: u64) {
        let label = DomainLabel { domain: domain.to_owned() };
        self.inner.families.outbox_depth.get_or_create(&label).set(gauge(messages));
    }

    /// Sets how many messages are in a domain's dead-letter stream.
    pub fn dlt_depth(&self, domain: &str, messages: u64) {
        let label = DomainLabel { domain: domain.to_owned() };
        self.inner.families.dlt_depth.get_or_create(&label).set(gauge(messages));
    }

    /// Sets how full a stream is.
    pub fn stream_fill(&self, stream: &str, percent: u64, is_full: bool) {
        let label = StreamLabel { stream: stream.to_owned() };
        self.inner.families.stream_used.get_or_create(&label).set(gauge(percent));
        self.inner.families.stream_full.get_or_create(&label).set(i64::from(is_full));
    }

    /// Removes how full a stream is, because that is not known.
    pub fn stream_fill_unknown(&self, stream: &str) {
        let label = StreamLabel { stream: stream.to_owned() };
        self.inner.families.stream_used.remove(&label);
        self.inner.families.stream_full.remove(&label);
    }

    pub fn events_depth(&self, depth: u64) {
        self.inner.families.events_depth.set(gauge(depth));
    }

    /// Sets how many subscriptions are held.
    pub fn subscriptions_held(&self, count: usize) {
        self.inner.families.subscriptions_held.set(gauge(count as u64));
    }

    /// Sets how many registry entries are unreadable, by what is in force instead: an earlier revision (`earlier`),
    /// nothing because there never was a subscription (`unused`), or it is unknown (`none`).
    pub fn unreadable_entries(&self, counts: [(&'static str, usize); 3]) {
        for (in_force, count) in counts {
            let label = InForceLabel { in_force };
            self.inner.families.unreadable_entries.get_or_create(&label).set(gauge(count as u64));
        }
    }
}

/// See [`Metrics::of_domain`].
#[derive(Clone)]
pub struct DomainMetrics {
    pub(super) domain: Arc<str>,
    pub(super) counters: DomainCounters,
    pub(super) delivered: Counter,
    pub(super) retried: Counter,
    pub(super) exhausted: Counter,
    pub(super) dead_lettered: Counter,
    pub(super) attempts: Arc<enumerated::Attempts>,
    pub(super) latencies: delivered::Latencies,
    worst: worst::OfDomain,
    pub(super) all: Metrics,
}

impl DomainMetrics {
    /// Sets the percentage of the fullest backlog of a subscription.
    pub fn fullest_backlog(&self, percent: u64) {
        self.counters.fullest_backlog.set(gauge(percent));
    }

    /// Sets how many strict lanes have no consumer yet.
    pub fn strict_lanes_missing(&self, count: usize) {
        self.counters.strict_lanes_missing.set(gauge(count as u64));
    }

    pub fn in_flight(&self, deliveries: usize) {
        self.counters.in_flight.set(gauge(deliveries as u64));
    }

    /// Sets how many circuits are open or half-open.
    pub fn circuits(&self, tripped: usize) {
        self.counters.circuits.set(gauge(tripped as u64));
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
