//! The envelope (OutboxEvent): one event for one subscription.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::subscription::SubscriptionId;

/// The body of a message on an outbox, as JSON. `event` is the CloudEvents JSON form, sent as it
/// stands in structured mode; `delivery` is the subscription's, with sealed credentials.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// Stable over every attempt and redrive; the `webhook-id` of each delivery.
    pub id: String,
    pub domain: String,
    pub subscription: SubscriptionId,
    pub tenant: String,
    pub event_id: String,
    pub event_key: String,
    pub event: Arc<RawValue>,
    pub delivery: Arc<RawValue>,
}
