//! The HTTP API.

use std::time::Duration;

use super::metrics::{Metrics, RequestLabel, RouteLabel};

/// A request was answered.
pub struct RequestAnswered<'a> {
    pub method: &'a str,
    /// The route's pattern, never the path itself: a label of few values.
    pub route: &'a str,
    pub status: u16,
    pub elapsed: Duration,
}

impl RequestAnswered<'_> {
    pub fn emit(self, metrics: &Metrics) {
        let Self { method, route, status, elapsed } = self;
        let label = RequestLabel { method: method.to_owned(), route: route.to_owned(), status };
        metrics.api().requests.get_or_create(&label).inc();
        let label = RouteLabel { route: route.to_owned() };
        metrics.api().seconds.get_or_create(&label).observe(elapsed.as_secs_f64());
    }
}
