//! What every process measures of the streams and of the registry, and the dlt-processor of the dead letters.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use time::OffsetDateTime;

use super::{DomainLabel, Metrics, gauge};
use crate::domain::dead_letter::DeadLetterState;
use crate::domain::letter_tally::LetterTally;
use crate::domain::subscription::SubscriptionState;

pub(super) type Seconds = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(in crate::facts) struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(in crate::facts) struct LettersLabel {
    domain: String,
    state: &'static str,
}

families! {
    StreamFamilies {
        events_oldest: Seconds = "events_oldest_seconds",
            "Age of the oldest event in HUB_EVENTS, in seconds; 0 if there is none";
        outbox_oldest: Family<DomainLabel, Seconds> = "outbox_oldest_seconds",
            "Age of the oldest envelope in the domain outbox, in seconds; 0 if there is none";
        dlt_oldest: Family<DomainLabel, Seconds> = "dlt_oldest_seconds",
            "Time since the failure of the oldest dead letter, in seconds; 0 if there is none; set by the dlt-processor";
        dlt_letters: Family<LettersLabel, Gauge> = "dlt_letters",
            "Dead letters by domain and state (scheduled, replaying, parked); set by the dlt-processor";
        registry_bytes: Gauge = "registry_bytes", "Size of the bucket of the registry in bytes, with its history";
        registry_entries: Gauge = "registry_entries", "Keys in the bucket of the registry, including removed subscriptions";
        registry_revision_lag: Gauge = "registry_revision_lag",
            "Revisions of the registry that this process has not read yet";
        by_state: Family<StateLabel, Gauge> = "subscriptions_by_state",
            "Subscriptions in the index, by state (active, paused, disabled)";
    }
}

impl Metrics {
    /// Sets the age of the oldest event.
    pub fn events_oldest(&self, age: Duration) {
        self.inner.streams.events_oldest.set(age.as_secs_f64());
    }

    /// Sets the age of the oldest envelope of a domain.
    pub fn outbox_oldest(&self, domain: &str, age: Duration) {
        let label = DomainLabel { domain: domain.to_owned() };
        self.inner.streams.outbox_oldest.get_or_create(&label).set(age.as_secs_f64());
    }

    /// Sets how many dead letters a domain has in each state, and how long ago the oldest failed.
    pub fn letters(&self, domain: &str, tally: &LetterTally, now: OffsetDateTime) {
        let streams = &self.inner.streams;
        let label = DomainLabel { domain: domain.to_owned() };
        let age: Option<Duration> = tally.oldest.and_then(|oldest| (now - oldest).try_into().ok());
        streams.dlt_oldest.get_or_create(&label).set(age.unwrap_or_default().as_secs_f64());
        for (state, count) in [
            (DeadLetterState::Scheduled, tally.scheduled),
            (DeadLetterState::Replaying, tally.replaying),
            (DeadLetterState::Parked, tally.parked),
        ] {
            let label = LettersLabel { domain: domain.to_owned(), state: state.as_str() };
            streams.dlt_letters.get_or_create(&label).set(gauge(count));
        }
    }

    /// Sets the size of the registry's bucket, and how many revisions this process has still to read.
    pub fn registry(&self, bytes: u64, entries: u64, revision_lag: u64) {
        let streams = &self.inner.streams;
        streams.registry_bytes.set(gauge(bytes));
        streams.registry_entries.set(gauge(entries));
        streams.registry_revision_lag.set(gauge(revision_lag));
    }

    /// Sets how many subscriptions are in the index, in all and by state.
    pub fn subscriptions(&self, states: impl Iterator<Item = SubscriptionState>) {
        let (mut active, mut paused, mut disabled) = (0, 0, 0);
        for state in states {
            match state {
                SubscriptionState::Active => active += 1,
                SubscriptionState::Paused => paused += 1,
                SubscriptionState::Disabled => disabled += 1,
            }
        }
        self.inner.families.subscriptions.set(gauge(active + paused + disabled));
        for (state, count) in [("active", active), ("paused", paused), ("disabled", disabled)] {
            self.inner.streams.by_state.get_or_create(&StateLabel { state }).set(gauge(count));
        }
    }
}
