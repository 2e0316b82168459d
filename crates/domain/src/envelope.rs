//! Envelopes, each one event for one subscription, and the fan-out that makes them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::event::Event;
use super::hex::Digits;
use super::subscription::{
    Identity, Incarnation, OnDeadLetter, Ordering, RateLimit, SubscriptionRef, subscription_token,
};

mod body;
mod owner;

pub use body::Body;

/// The body of a message in a domain outbox: a JSON object of these fields, read without copying.
#[derive(Debug, Deserialize)]
pub struct Envelope<'a> {
    /// Constant over all attempts and redrives; the `webhook-id` of each delivery.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    #[serde(borrow)]
    pub domain: Cow<'a, str>,
    #[serde(borrow)]
    pub subscription: Cow<'a, str>,
    #[serde(borrow)]
    pub tenant: Cow<'a, str>,
    /// The subscription's incarnation at the fan-out.
    #[serde(default)]
    pub incarnation: Incarnation,
    #[serde(borrow)]
    pub event_id: Cow<'a, str>,
    #[serde(borrow)]
    pub event_key: Cow<'a, str>,
    /// The event's `time`: when it happened, according to its producer.
    #[serde(borrow, default)]
    pub event_time: Option<Cow<'a, str>>,
    /// When the events stream stored the event, in milliseconds since 1970; missing in envelopes of older versions.
    #[serde(default)]
    pub published_at: Option<u64>,
    /// W3C Trace Context of the event, if it has one.
    #[serde(borrow, default)]
    pub traceparent: Option<Cow<'a, str>>,
    /// The event in the CloudEvents JSON format; sent unchanged in structured mode.
    #[serde(borrow)]
    pub event: &'a RawValue,
    /// The metadata for external brokers of an event from a producer outbox
    /// ([`external_metadata`](super::producer_outbox::external_metadata)).
    #[serde(borrow, default)]
    pub external_metadata: Option<&'a RawValue>,
    /// The subscription's delivery at the time of the fan-out, with sealed credentials. Missing if it does not fit into
    /// the message; it is then read from the registry.
    #[serde(borrow, default)]
    pub delivery: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    pub fn read(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// The subscription and its incarnation; `None` if tenant or id is invalid.
    pub fn identity(&self) -> Option<Identity> {
        let subscription = SubscriptionRef::of(&self.tenant, &self.subscription)?;
        Some(Identity { subscription, incarnation: self.incarnation })
    }

    /// The subscription's token in subjects.
    pub fn token(&self) -> Option<Cow<'_, str>> {
        subscription_token(&self.tenant, &self.subscription)
    }

    /// The longest time that the envelope may wait, if its delivery says so.
    pub fn max_age(&self) -> Option<Duration> {
        #[derive(Deserialize)]
        struct Age {
            #[serde(default, with = "crate::duration::optional")]
            max_age: Option<Duration>,
        }
        serde_json::from_str::<Age>(self.delivery?.get()).ok()?.max_age
    }

    /// What a dead letter does to the strict order of the delivery; `None` if it has none.
    pub fn on_dead_letter(&self) -> Option<OnDeadLetter> {
        #[derive(Deserialize)]
        struct Order {
            #[serde(default)]
            ordering: Ordering,
            on_dead_letter: Option<OnDeadLetter>,
        }
        let order: Order = serde_json::from_str(self.delivery?.get()).ok()?;
        (order.ordering == Ordering::Strict).then(|| order.on_dead_letter.unwrap_or_default())
    }

    /// The delivery's limits for the fair share: `max_in_flight` and the rate limit.
    pub fn share(&self) -> Option<(u32, Option<RateLimit>)> {
        #[derive(Deserialize)]
        struct FairShareFields {
            max_in_flight: u32,
            #[serde(default)]
            rate_limit: Option<RateLimit>,
        }
        let share: FairShareFields = serde_json::from_str(self.delivery?.get()).ok()?;
        Some((share.max_in_flight, share.rate_limit))
    }
}

/// A new envelope, encoded as JSON.
#[derive(Debug, Clone)]
pub struct EncodedEnvelope {
    pub id: String,
    pub subscription: SubscriptionRef,
    pub body: Body,
}

/// Upper bound, in bytes, of the fields about the subscription except its delivery.
const MOST_OF_ONE: usize = 256;

/// Makes the envelopes of one event. The part that all of them share is encoded once.
pub struct FanOut<'e> {
    event: &'e Event,
    shared: Bytes,
}

impl<'e> FanOut<'e> {
    pub fn new(event: &'e Event, domain: &str) -> Self {
        Self::published(event, domain, None)
    }

    /// `published_at`: when the events stream stored the event, in milliseconds since 1970.
    pub fn published(event: &'e Event, domain: &str, published_at: Option<u64>) -> Self {
        let cloudevent = event.to_cloudevent();
        let mut shared = String::with_capacity(cloudevent.get().len() + 256);
        field(&mut shared, "domain", domain);
        field(&mut shared, "tenant", &event.tenant);
        field(&mut shared, "event_id", &event.id);
        field(&mut shared, "event_key", event.key.as_str());
        field(&mut shared, "event_time", &event.time);
        if let Some(published_at) = published_at {
            shared.push_str(",\"published_at\":");
            shared.push_str(&published_at.to_string());
        }
        if let Some(serde_json::Value::String(traceparent)) = event.extensions.get("traceparent") {
            field(&mut shared, "traceparent", traceparent);
        }
        shared.push_str(",\"event\":");
        shared.push_str(cloudevent.get());
        // In every envelope, because a subscription with a URL may name a broker by the time of the delivery.
        if let Some(metadata) = &event.external_metadata {
            shared.push_str(",\"external_metadata\":");
            shared.push_str(metadata.get());
        }
        Self { event, shared: shared.into() }
    }

    /// Bytes that all envelopes share.
    pub fn shared_size(&self) -> usize {
        self.shared.len()
    }

    /// Upper bound, in bytes, of the size of an envelope without a delivery.
    pub fn largest_bare_size(&self) -> usize {
        self.shared.len() + MOST_OF_ONE
    }

    /// The envelope for one subscription. Deterministic: a repetition gives the same envelope.
    pub fn envelope(
        &self,
        subscription: &SubscriptionRef,
        incarnation: Incarnation,
        delivery: Option<&Arc<RawValue>>,
    ) -> EncodedEnvelope {
        let id = envelope_id(self.event, subscription.id(), incarnation);
        let mut body = String::with_capacity(MOST_OF_ONE);
        body.push_str("{\"id\":\"");
        body.push_str(&id);
        body.push('"');
        // Before the tenant, because `Identity::of_envelope` reads no further than the tenant.
        field(&mut body, "subscription", subscription.id());
        incarnation.with_text(|text| field(&mut body, "incarnation", text));
        body.shrink_to_fit();
        let body = Body::shared(body.into(), self.shared.clone(), delivery.cloned());
        EncodedEnvelope { id, subscription: subscription.clone(), body }
    }
}

fn field(body: &mut String, name: &str, value: &str) {
    body.push_str(",\"");
    body.push_str(name);
    body.push_str("\":");
    // Writing a string into a String cannot fail.
    body.push_str(&serde_json::to_string(value).unwrap_or_else(|_| "\"\"".to_owned()));
}

/// The id of an envelope: `env_` and 32 hexadecimal digits, the first 128 bits of SHA-256 over tenant, source, identity,
/// subscription and incarnation, each prefixed with its length so that the encoding is unambiguous.
///
/// An event that is published again gets the same ids, so the domain outbox drops its envelopes. A `legacy`
/// incarnation is left out of the hash, as in versions without incarnations.
pub fn envelope_id(event: &Event, subscription: &str, incarnation: Incarnation) -> String {
    let mut hash = Sha256::new();
    let mut part = |part: &str| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    };
    [event.tenant.as_str(), &event.source, &event.identity, subscription].into_iter().for_each(&mut part);
    if !incarnation.is_legacy() {
        incarnation.with_text(&mut part);
    }
    let digest: [u8; 32] = hash.finalize().into();
    let (first, _) = digest.split_first_chunk().expect("a digest has 32 bytes");
    ["env_", Digits::of(*first).as_str()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventData;

    fn event(id: &str, source: &str) -> Event {
        Event {
            id: id.to_owned(),
            key: "user.created".to_owned().try_into().unwrap(),
            source: source.to_owned(),
            time: "2026-01-01T00:00:00Z".to_owned(),
            tenant: "acme".to_owned(),
            subject: None,
            datacontenttype: Some("application/json".to_owned()),
            dataschema: None,
            data: EventData::Json(RawValue::from_string("{\"user_id\":\"u1\"}".to_owned()).unwrap()),
            extensions: [("traceparent".to_owned(), "00-aa-bb-01".into())].into_iter().collect(),
            external_metadata: None,
            identity: id.to_owned(),
        }
    }

    fn subscription(id: &str) -> SubscriptionRef {
        SubscriptionRef::of("acme", id).unwrap()
    }

    fn delivery(json: &str) -> Arc<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap().into()
    }

    const FIRST: Incarnation = Incarnation::LEGACY;

    #[test]
    fn an_envelope_reads_back_with_the_event_as_it_was() {
        let delivery = delivery(r#"{"url":"https://a.example/"}"#);
        let event = event("e \"1\"", "idp");
        let made =
            FanOut::new(&event, "user-lifecycle").envelope(&subscription("crm"), FIRST, Some(&delivery));
        let body = made.body.to_bytes();
        let read = Envelope::read(&body).unwrap();
        assert_eq!(read.id, made.id);
        assert_eq!((&*read.domain, &*read.subscription, &*read.tenant), ("user-lifecycle", "crm", "acme"));
        assert_eq!((&*read.event_id, &*read.event_key), ("e \"1\"", "user.created"));
        assert_eq!(read.traceparent.as_deref(), Some("00-aa-bb-01"));
        assert_eq!(read.event.get(), event.to_cloudevent().get());
        assert_eq!(read.delivery.map(RawValue::get), Some(delivery.get()));
    }

    #[test]
    fn one_without_its_delivery_is_the_same_envelope_and_no_larger_than_is_said() {
        let delivery = delivery(r#"{"url":"https://a.example/"}"#);
        let event = event("e1", "idp");
        let fan_out = FanOut::new(&event, "user-lifecycle");
        let id = subscription(&"x".repeat(64));
        let (whole, bare) =
            (fan_out.envelope(&id, FIRST, Some(&delivery)), fan_out.envelope(&id, FIRST, None));
        assert_eq!(whole.id, bare.id);
        let body = bare.body.to_bytes();
        let read = Envelope::read(&body).unwrap();
        assert!(read.delivery.is_none() && read.share().is_none());
        assert_eq!(read.event.get(), event.to_cloudevent().get());
        assert!(bare.body.size() <= fan_out.largest_bare_size());
    }

    #[test]
    fn the_time_of_the_publication_goes_along() {
        let event = event("e1", "idp");
        for published_at in [None, Some(0), Some(1_800_000_000_123), Some(u64::MAX)] {
            let fan_out = FanOut::published(&event, "d", published_at);
            let made = fan_out.envelope(&subscription("crm"), FIRST, None);
            let body = made.body.to_bytes();
            let read = Envelope::read(&body).unwrap();
            assert_eq!(read.published_at, published_at);
            assert_eq!(read.event.get(), event.to_cloudevent().get());
            assert_eq!(read.id, FanOut::new(&event, "d").envelope(&subscription("crm"), FIRST, None).id);
        }
    }

    #[test]
    fn what_an_outbox_said_of_the_event_goes_along() {
        let delivery = delivery(r#"{"url":"https://a.example/"}"#);
        let mut event = event("e1", "outbox");
        let made = FanOut::new(&event, "d").envelope(&subscription("crm"), FIRST, Some(&delivery));
        assert!(Envelope::read(&made.body.to_bytes()).unwrap().external_metadata.is_none());
        let metadata = RawValue::from_string(r#"{"headers":{"id":"e1"}}"#.to_owned()).unwrap();
        event.external_metadata = Some(metadata.clone());
        let made = FanOut::new(&event, "d").envelope(&subscription("crm"), FIRST, Some(&delivery));
        let body = made.body.to_bytes();
        let read = Envelope::read(&body).unwrap();
        assert_eq!(read.external_metadata.map(RawValue::get), Some(metadata.get()));
        assert_eq!(read.delivery.map(RawValue::get), Some(delivery.get()));
    }

    #[test]
    fn the_share_is_that_of_the_delivery() {
        let share = |delivery: &str| {
            let delivery = self::delivery(delivery);
            let made =
                FanOut::new(&event("1", "idp"), "d").envelope(&subscription("crm"), FIRST, Some(&delivery));
            Envelope::read(&made.body.to_bytes()).unwrap().share()
        };
        let limit = RateLimit { per_second: 2.5, burst: 7 };
        let json = r#"{"url":"u","max_in_flight":9,"rate_limit":{"per_second":2.5,"burst":7}}"#;
        assert_eq!(share(json), Some((9, Some(limit))));
        assert_eq!(share(r#"{"max_in_flight":9}"#), Some((9, None)));
        assert_eq!(share(r#"{"url":"u"}"#), None);
    }

    #[test]
    fn the_id_is_stable_and_no_part_runs_into_another() {
        let id = |event_id, source, sub| envelope_id(&event(event_id, source), sub, FIRST);
        assert_eq!(id("1", "a", "s"), id("1", "a", "s"));
        assert_ne!(id("1", "ab", "s"), id("b1", "a", "s"));
        assert_ne!(id("1", "a", "s1"), id("1s", "a", "1"));
        assert_ne!(id("1", "a", "s"), id("1", "a", "t"));
        // The same id as in versions without incarnations.
        assert_eq!(id("1", "a", "s"), "env_80ae0971e6c5ecc780ec41b9a2e59d7f");
    }

    #[test]
    fn each_incarnation_has_an_id_of_its_own() {
        let id = |incarnation| envelope_id(&event("1", "a"), "s", incarnation);
        let (one, other) = (Incarnation::new(1), Incarnation::new(2));
        assert_eq!(id(one), id(one));
        assert!(id(FIRST) != id(one) && id(one) != id(other));
    }

    #[test]
    fn whose_it_is_reads_from_its_beginning_and_from_all_of_it() {
        let delivery = delivery(r#"{"url":"u"}"#);
        for incarnation in [FIRST, Incarnation::new(7)] {
            let identity = Identity { subscription: subscription("crm"), incarnation };
            let made = FanOut::new(&event("1", "idp"), "d").envelope(
                &subscription("crm"),
                incarnation,
                Some(&delivery),
            );
            let body = made.body.to_bytes();
            assert_eq!(Envelope::read(&body).unwrap().identity(), Some(identity.clone()));
            assert_eq!(Envelope::read(&body).unwrap().token().as_deref(), Some("acme=crm"));
            assert_eq!(Identity::of_envelope(&body), Some(identity.clone()));
            // The rest is not read.
            let cut = &body[..body.windows(10).position(|at| at == b"\"event_id\"").unwrap()];
            assert_eq!(Identity::of_envelope(cut), Some(identity));
        }
        // An envelope of a version without incarnations.
        let old = br#"{"id":"env_1","subscription":"crm","domain":"d","tenant":"acme","event_id":"1"}"#;
        let identity = Identity { subscription: subscription("crm"), incarnation: FIRST };
        assert_eq!(Identity::of_envelope(old), Some(identity));
        for body in [
            "",
            "{}",
            "[1]",
            r#"{"subscription":"crm"}"#,
            r#"{"subscription":"crm","tenant":"a/b"}"#,
            r#"{"subscription":7,"tenant":"acme"}"#,
            r#"{"subscription":"crm","incarnation":"x","tenant":"acme"}"#,
        ] {
            assert_eq!(Identity::of_envelope(body.as_bytes()), None, "{body}");
        }
    }
}
