//! What is asked of the HTTP API.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabel {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

pub(super) struct ApiMetrics {
    requests: Family<RequestLabel, Counter>,
    seconds: Family<RouteLabel, Histogram, fn() -> Histogram>,
}

impl ApiMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let requests = Family::<RequestLabel, Counter>::default();
        let buckets: fn() -> Histogram = || {
            Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0])
        };
        let seconds = Family::new_with_constructor(buckets);
        registry.register(
            "api_requests",
            "Requests to the API, by method, route and status",
            requests.clone(),
        );
        registry.register(
            "api_request_seconds",
            "Duration of a request in seconds, by route",
            seconds.clone(),
        );
        Self { requests, seconds }
    }
}

impl super::Metrics {
    /// A request was answered. `route` is the route's pattern, never the path itself.
    pub fn api_request(&self, method: &str, route: &str, status: u16, elapsed: Duration) {
        let label = RequestLabel { method: method.to_owned(), route: route.to_owned(), status };
        self.inner.api.requests.get_or_create(&label).inc();
        let label = RouteLabel { route: route.to_owned() };
        self.inner.api.seconds.get_or_create(&label).observe(elapsed.as_secs_f64());
    }
}
