//! The body of an envelope, in the parts that it is made of.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

/// JSON of an envelope. The envelopes of one event share the event, and those of one subscription its delivery, so that
/// an event with many subscriptions is in memory once. The whole is made when it is published.
#[derive(Debug, Clone)]
pub struct Body(BodyParts);

#[derive(Debug, Clone)]
enum BodyParts {
    Whole(Bytes),
    Shared { own: Bytes, event: Bytes, delivery: Option<Arc<RawValue>> },
}

const BEFORE_DELIVERY: &str = ",\"delivery\":";

impl Body {
    /// `own`: the beginning of the object, which belongs to this envelope alone. `event`: the members that all envelopes
    /// of the event have.
    pub(super) fn shared(own: Bytes, event: Bytes, delivery: Option<Arc<RawValue>>) -> Self {
        Self(BodyParts::Shared { own, event, delivery })
    }

    /// Size of the whole in bytes.
    pub fn size(&self) -> usize {
        match &self.0 {
            BodyParts::Whole(whole) => whole.len(),
            BodyParts::Shared { own, event, delivery } => {
                let delivery = delivery.as_ref().map_or(0, |json| BEFORE_DELIVERY.len() + json.get().len());
                own.len() + event.len() + delivery + 1
            }
        }
    }

    /// Bytes in memory that no other envelope shares.
    pub fn own_size(&self) -> usize {
        match &self.0 {
            BodyParts::Whole(whole) => whole.len(),
            BodyParts::Shared { own, .. } => own.len(),
        }
    }

    /// The whole.
    pub fn to_bytes(&self) -> Bytes {
        match &self.0 {
            BodyParts::Whole(whole) => whole.clone(),
            BodyParts::Shared { own, event, delivery } => {
                let mut whole = Vec::with_capacity(self.size());
                whole.extend_from_slice(own);
                whole.extend_from_slice(event);
                if let Some(delivery) = delivery {
                    whole.extend_from_slice(BEFORE_DELIVERY.as_bytes());
                    whole.extend_from_slice(delivery.get().as_bytes());
                }
                whole.push(b'}');
                whole.into()
            }
        }
    }
}

impl From<Bytes> for Body {
    fn from(whole: Bytes) -> Self {
        Self(BodyParts::Whole(whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_is_as_long_as_its_parts_say() {
        let delivery: Arc<RawValue> = RawValue::from_string("{\"url\":\"u\"}".to_owned()).unwrap().into();
        let (own, event) = (Bytes::from_static(b"{\"id\":\"1\""), Bytes::from_static(b",\"event\":{}"));
        for (delivery, expected) in [
            (None, "{\"id\":\"1\",\"event\":{}}"),
            (Some(delivery), "{\"id\":\"1\",\"event\":{},\"delivery\":{\"url\":\"u\"}}"),
        ] {
            let body = Body::shared(own.clone(), event.clone(), delivery);
            assert_eq!(body.to_bytes(), expected);
            assert_eq!((body.size(), body.own_size()), (expected.len(), own.len()));
        }
        let whole = Body::from(event.clone());
        assert_eq!((whole.to_bytes(), whole.size()), (event.clone(), event.len()));
    }
}
