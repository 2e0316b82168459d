//! Series of single subscriptions: only of the worst of each domain, so that their number is bounded.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{DomainMetrics, gauge};
use crate::domain::subscription::SubscriptionRef;

/// Most subscriptions of a domain whose failures are counted; the one with the fewest is forgotten for a new one.
const MOST_COUNTED: usize = 1_000;

/// What waits in the lanes of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionBacklog {
    pub name: SubscriptionRef,
    pub pending: u64,
    /// Of its oldest envelope.
    pub age: Duration,
}

/// The worst subscriptions of all domains.
#[derive(Debug)]
pub(super) struct Worst {
    /// Subscriptions of each domain that have series.
    most: usize,
    domains: Mutex<HashMap<Arc<str>, OfDomain>>,
}

/// The worst subscriptions of a domain. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(in crate::facts) struct OfDomain {
    counts: Arc<Mutex<SubscriptionCounts>>,
}

#[derive(Debug, Default)]
struct SubscriptionCounts {
    /// Worst first.
    backlogs: Vec<SubscriptionBacklog>,
    /// Failed attempts by tenant and id.
    failed: HashMap<(String, String), u64>,
}

impl Worst {
    pub(super) fn new(most: usize) -> Self {
        Self { most, domains: Mutex::default() }
    }

    pub(super) fn of(&self, domain: &str) -> OfDomain {
        locked(&self.domains).entry(domain.into()).or_default().clone()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DomainMetrics {
    /// How many subscriptions have series of their own.
    pub fn most_subscriptions(&self) -> usize {
        self.all.inner.worst.most
    }

    /// Sets what waits in the lanes of the worst subscriptions, worst first.
    pub fn worst_backlogs(&self, backlogs: Vec<SubscriptionBacklog>) {
        locked(&self.worst.counts).backlogs = backlogs;
    }

    /// Counts a failed attempt of a subscription.
    pub(in crate::facts) fn failed_attempt(&self, tenant: &str, id: &str) {
        if self.most_subscriptions() == 0 {
            return;
        }
        let SubscriptionCounts { failed, .. } = &mut *locked(&self.worst.counts);
        let name = (tenant.to_owned(), id.to_owned());
        if failed.len() >= MOST_COUNTED && !failed.contains_key(&name) {
            let fewest = failed.iter().min_by_key(|(_, count)| **count).map(|(name, _)| name.clone());
            fewest.map(|fewest| failed.remove(&fewest));
        }
        *failed.entry(name).or_default() += 1;
    }
}

impl SubscriptionCounts {
    /// The subscriptions with the most failed attempts.
    fn failing(&self, most: usize) -> Vec<(&str, &str, u64)> {
        let mut failing: Vec<_> =
            self.failed.iter().map(|((tenant, id), count)| (tenant.as_str(), id.as_str(), *count)).collect();
        failing.sort_unstable_by(|one, other| other.2.cmp(&one.2).then_with(|| one.cmp(other)));
        failing.truncate(most);
        failing
    }
}

impl Collector for Worst {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if self.most == 0 {
            return Ok(());
        }
        // The counts change between the families, but not while one is written.
        let domains: Vec<_> =
            locked(&self.domains).iter().map(|(name, domain)| (name.clone(), domain.clone())).collect();
        let help = "Envelopes in the lanes of a subscription, of the subscriptions with the most";
        let mut family = encoder.encode_descriptor("subscription_pending", help, None, MetricType::Gauge)?;
        for (domain, of_domain) in &domains {
            for one in &locked(&of_domain.counts).backlogs {
                let labels = labels(domain, one.name.tenant(), one.name.id());
                ConstGauge::new(gauge(one.pending)).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Age of the oldest envelope in the lanes of a subscription, in seconds, of the same subscriptions";
        let mut family =
            encoder.encode_descriptor("subscription_oldest_seconds", help, None, MetricType::Gauge)?;
        for (domain, of_domain) in &domains {
            for one in &locked(&of_domain.counts).backlogs {
                let labels = labels(domain, one.name.tenant(), one.name.id());
                ConstGauge::new(one.age.as_secs_f64()).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Failed attempts of a subscription in this process, of the subscriptions with the most";
        let mut family = encoder.encode_descriptor("subscription_failed", help, None, MetricType::Counter)?;
        for (domain, of_domain) in &domains {
            for (tenant, id, count) in locked(&of_domain.counts).failing(self.most) {
                let labels = labels(domain, tenant, id);
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn labels<'a>(domain: &'a str, tenant: &'a str, subscription: &'a str) -> [(&'static str, &'a str); 3] {
    [("domain", domain), ("tenant", tenant), ("subscription", subscription)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Metrics;

    fn series(metrics: &Metrics, name: &str) -> Vec<String> {
        let text = metrics.encode().unwrap();
        let mut found: Vec<String> =
            text.lines().filter_map(|line| line.strip_prefix(name)).map(str::to_owned).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn only_the_worst_have_series() {
        let metrics = Metrics::with_subscriptions(2);
        let orders = metrics.of_domain("orders");
        for (id, count) in [("a", 3), ("b", 1), ("c", 7)] {
            (0..count).for_each(|_| orders.failed_attempt("acme", id));
        }
        metrics.of_domain("bills").failed_attempt("other", "a");
        let label = |domain, tenant, id, value| {
            format!("{{domain=\"{domain}\",tenant=\"{tenant}\",subscription=\"{id}\"}} {value}")
        };
        assert_eq!(
            series(&metrics, "hub_subscription_failed_total"),
            [
                label("bills", "other", "a", "1"),
                label("orders", "acme", "a", "3"),
                label("orders", "acme", "c", "7")
            ]
        );
        let name = SubscriptionRef::of("acme", "crm").unwrap();
        let age = Duration::from_millis(1_500);
        orders.worst_backlogs(vec![SubscriptionBacklog { name, pending: 9, age }]);
        assert_eq!(series(&metrics, "hub_subscription_pending{").len(), 1);
        assert_eq!(
            series(&metrics, "hub_subscription_oldest_seconds"),
            [label("orders", "acme", "crm", "1.5")]
        );
        orders.worst_backlogs(Vec::new());
        assert_eq!(series(&metrics, "hub_subscription_pending{"), [""; 0]);
    }

    #[test]
    fn the_memory_of_failures_is_bounded_and_keeps_those_with_the_most() {
        let metrics = Metrics::with_subscriptions(1);
        let orders = metrics.of_domain("orders");
        (0..5).for_each(|_| orders.failed_attempt("acme", "broken"));
        (0..3 * MOST_COUNTED).for_each(|number| orders.failed_attempt("acme", &format!("s{number}")));
        assert_eq!(locked(&orders.worst.counts).failed.len(), MOST_COUNTED);
        let failing = series(&metrics, "hub_subscription_failed_total");
        assert_eq!(failing, ["{domain=\"orders\",tenant=\"acme\",subscription=\"broken\"} 5"]);
    }

    #[test]
    fn none_has_series_if_none_is_wanted() {
        let metrics = Metrics::with_subscriptions(0);
        metrics.of_domain("orders").failed_attempt("acme", "crm");
        assert!(!metrics.encode().unwrap().contains("hub_subscription_"));
    }
}
