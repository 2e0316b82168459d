//! The section `[metrics]`.

use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsSettings {
    /// The subscriptions of each domain that have series of their own.
    pub subscriptions: usize,
}
