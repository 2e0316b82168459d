//! Requests to the HTTP API.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(in crate::facts) struct RequestLabel {
    pub(in crate::facts) method: String,
    pub(in crate::facts) route: String,
    pub(in crate::facts) status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(in crate::facts) struct RouteLabel {
    pub(in crate::facts) route: String,
}

const REQUEST_SECONDS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

families! {
    ApiFamilies {
        requests: Family<RequestLabel, Counter> =
            "api_requests", "Requests to the API, by method, route and status";
        seconds: Family<RouteLabel, Histogram> [REQUEST_SECONDS] =
            "api_request_seconds", "Duration of a request in seconds, by route";
    }
}
