//! The lanes of a domain outbox, by kind, as a process that delivers from them sees them at the broker.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::streams::Seconds;
use super::{DomainLabel, DomainMetrics, gauge};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(in crate::facts) struct LaneLabel {
    domain: String,
    lane: &'static str,
}

families! {
    LaneFamilies {
        lanes: Family<LaneLabel, Gauge> = "lanes", "Lanes of single subscriptions, by domain and kind (own, strict)";
        pending: Family<LaneLabel, Gauge> = "lane_pending",
            "Envelopes that are not delivered yet, by domain and kind of their lane (shared, own, strict)";
        oldest: Family<LaneLabel, Seconds> = "lane_oldest_seconds",
            "Age of the oldest envelope that is not delivered yet, in seconds, by domain and kind of its lane; 0 if there \
             is none";
        redelivered: Family<LaneLabel, Gauge> = "lane_redelivered",
            "Envelopes in progress that the broker has delivered more than once, by domain and kind of their lane";
        held_bytes: Family<LaneLabel, Gauge> = "held_bytes",
            "Memory of envelopes in this process, with what its pull requests have reserved, by domain and lane (shared; own: \
             all others)";
        paused: Family<DomainLabel, Gauge> = "domain_paused", "Whether the domain is paused (1 or 0)";
        paused_until: Family<DomainLabel, Seconds> = "domain_paused_until_seconds",
            "Unix time of the end of the pause of the domain; 0 if it is not paused, +Inf if it is paused until resumed";
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneKind {
    Shared,
    Own,
    Strict,
}

impl LaneKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Own => "own",
            Self::Strict => "strict",
        }
    }
}

/// The lanes of one kind together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneTotals {
    pub lanes: u64,
    /// Envelopes that are not delivered yet.
    pub pending: u64,
    /// Those in progress that were delivered more than once.
    pub redelivered: u64,
}

/// Whether a domain is paused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DomainPause {
    No,
    /// Unix time in seconds.
    Until(f64),
    UntilResumed,
}

impl DomainMetrics {
    fn lane(&self, kind: LaneKind) -> LaneLabel {
        LaneLabel { domain: self.domain.to_string(), lane: kind.as_str() }
    }

    pub fn lanes(&self, kind: LaneKind, totals: LaneTotals) {
        let families = &self.all.inner.lanes;
        let label = self.lane(kind);
        families.pending.get_or_create(&label).set(gauge(totals.pending));
        families.redelivered.get_or_create(&label).set(gauge(totals.redelivered));
        if kind != LaneKind::Shared {
            families.lanes.get_or_create(&label).set(gauge(totals.lanes));
        }
    }

    /// Sets the memory of envelopes of the shared lane, or of all others (own).
    pub fn held_bytes(&self, kind: LaneKind, bytes: u64) {
        self.all.inner.lanes.held_bytes.get_or_create(&self.lane(kind)).set(gauge(bytes));
    }

    pub fn lane_oldest(&self, kind: LaneKind, age: Duration) {
        self.all.inner.lanes.oldest.get_or_create(&self.lane(kind)).set(age.as_secs_f64());
    }

    pub fn pause(&self, pause: DomainPause) {
        let families = &self.all.inner.lanes;
        let label = DomainLabel { domain: self.domain.to_string() };
        let (paused, until) = match pause {
            DomainPause::No => (0, 0.0),
            DomainPause::Until(at) => (1, at),
            DomainPause::UntilResumed => (1, f64::INFINITY),
        };
        families.paused.get_or_create(&label).set(paused);
        families.paused_until.get_or_create(&label).set(until);
    }
}
