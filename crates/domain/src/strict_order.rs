//! The strict order of a subscription: which lane an envelope waits in, and what a dead letter does to the envelopes
//! behind it.
//!
//! A strict lane is read by one delivery at a time, over all processes, so its order is that of its messages. An order
//! by key is spread over [`PARTITIONS`] lanes; all events with the same value of the key are in the same one.

use sha2::{Digest, Sha256};

use super::event::Event;
use super::subscription::{Delivery, OnDeadLetter, Ordering};

/// The number of lanes of an order by key. Changing it would break the order of envelopes that wait.
pub const PARTITIONS: u8 = 16;

/// The order of a subscription with `"ordering": "strict"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrictOrder {
    /// The event attribute whose values are ordered each by itself.
    pub key: Option<Box<str>>,
    pub on_dead_letter: OnDeadLetter,
}

impl StrictOrder {
    /// `None` if the delivery has no strict order.
    pub fn of(delivery: &Delivery) -> Option<Self> {
        (delivery.ordering() == Ordering::Strict).then(|| Self {
            key: delivery.ordering_key().map(Box::from),
            on_dead_letter: delivery.on_dead_letter().unwrap_or_default(),
        })
    }

    /// The lane of an event, below [`PARTITIONS`]. Events without the attribute have the same, empty key.
    pub fn partition(&self, event: &Event) -> u8 {
        let Some(key) = &self.key else { return 0 };
        let value = event.attribute(key).unwrap_or_default();
        Sha256::digest(value.as_bytes())[0] % PARTITIONS
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::EventData;
    use crate::subscription::Subscription;

    fn order(delivery: &serde_json::Value) -> Option<StrictOrder> {
        let mut delivery = delivery.clone();
        delivery["url"] = json!("https://crm.example/hooks");
        let subscription = json!({"id": "crm", "events": ["user.*"], "delivery": delivery});
        StrictOrder::of(&Subscription::from_value(subscription).unwrap().delivery)
    }

    fn event(subject: Option<&str>) -> Event {
        Event {
            id: "1".to_owned(),
            key: "user.created".to_owned().try_into().unwrap(),
            source: "idp".to_owned(),
            time: "2026-01-01T00:00:00Z".to_owned(),
            tenant: "acme".to_owned(),
            subject: subject.map(str::to_owned),
            datacontenttype: None,
            dataschema: None,
            data: EventData::None,
            extensions: std::collections::BTreeMap::new(),
            external_metadata: None,
            identity: "1".to_owned(),
        }
    }

    #[test]
    fn a_delivery_without_an_order_has_none() {
        assert_eq!(order(&json!({})), None);
        assert_eq!(order(&json!({"ordering": "none"})), None);
    }

    #[test]
    fn an_order_stops_at_a_dead_letter_unless_told_otherwise() {
        let strict = order(&json!({"ordering": "strict"})).unwrap();
        assert_eq!((strict.key, strict.on_dead_letter), (None, OnDeadLetter::Stop));
        let skipping = order(&json!({"ordering": "strict", "on_dead_letter": "skip"})).unwrap();
        assert_eq!(skipping.on_dead_letter, OnDeadLetter::Skip);
    }

    #[test]
    fn without_a_key_all_events_share_a_lane() {
        let strict = order(&json!({"ordering": "strict"})).unwrap();
        assert!((0..100).all(|user| strict.partition(&event(Some(&user.to_string()))) == 0));
    }

    #[test]
    fn with_a_key_equal_values_share_a_lane_and_all_lanes_are_used() {
        let strict = order(&json!({"ordering": "strict", "ordering_key": "subject"})).unwrap();
        let mut used = [false; PARTITIONS as usize];
        for user in 0..500 {
            let partition = strict.partition(&event(Some(&user.to_string())));
            assert_eq!(partition, strict.partition(&event(Some(&user.to_string()))));
            used[usize::from(partition)] = true;
        }
        assert_eq!(used, [true; PARTITIONS as usize]);
        assert_eq!(strict.partition(&event(None)), strict.partition(&event(Some(""))));
    }
}
