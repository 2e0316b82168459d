//! The load: events of 600 bytes, their subscriptions, and the expected webhook-ids.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::json;
use time::OffsetDateTime;
use url::Url;

use super::error::BenchError;
use super::tally::WebhookId;
use integration_hub::domain::envelope::{FanOut, envelope_id};
use integration_hub::domain::event::{Event, Publication};
use integration_hub::domain::index::IndexEntry;
use integration_hub::domain::subscription::{Incarnation, Subscription};
use integration_hub::nats::subjects::{SHARED_LANE, SubjectNames};
use integration_hub::nats::{EnvelopeMessage, JetStream, MOST_PER_BATCH};

/// Size of a published event in bytes.
pub(crate) const EVENT_BYTES: usize = 600;
/// Belongs to the domain `user-lifecycle` of the default settings.
const KEY: &str = "user.created";
pub(crate) const DOMAIN: &str = "user-lifecycle";
/// Standard Webhooks: 24 bytes, in base64.
const SIGNING_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Concurrent publishes.
pub(crate) const PUBLISHES_IN_FLIGHT: usize = 256;

/// One event to publish.
pub(crate) struct NewEvent {
    subject: String,
    id: String,
    tenant: String,
    body: Bytes,
    /// The event as the hub decodes it.
    pub(crate) event: Event,
}

impl NewEvent {
    pub(crate) fn new(names: &SubjectNames, number: u64, tenant: &str) -> Result<Self, BenchError> {
        Self::of_key(names, KEY, number, tenant)
    }

    pub(crate) fn of_key(
        names: &SubjectNames,
        key: &str,
        number: u64,
        tenant: &str,
    ) -> Result<Self, BenchError> {
        let (id, body) = (format!("bench-{number}"), body(number));
        let event = Publication {
            subject_tail: key,
            tenant_token: None,
            headers: &[("Nats-Msg-Id", &id), ("Hub-Tenant", tenant)],
            body: &body,
            stream: &names.events_stream(),
            sequence: number + 1,
            time: OffsetDateTime::now_utc(),
            max_size: EVENT_BYTES,
        }
        .decode()?;
        Ok(Self { subject: names.event(key), id, tenant: tenant.to_owned(), body, event })
    }

    /// Publishes it, and waits until the stream has acknowledged it.
    pub(crate) async fn publish(&self, js: &JetStream) -> Result<(), BenchError> {
        let headers = [("Nats-Msg-Id", self.id.as_str()), ("Hub-Tenant", &self.tenant)];
        js.publish(&self.subject, self.body.clone(), &headers).await?;
        Ok(())
    }

    /// The webhook-id for a subscription.
    pub(crate) fn webhook_id(&self, subscription: &Subscription) -> WebhookId {
        let id = envelope_id(&self.event, subscription.id.as_str(), subscription.incarnation);
        WebhookId::read(id.as_bytes()).expect("an envelope's id is env_ and 128 bits in hexadecimal")
    }

    /// Size of the body of a delivery: the event in the CloudEvents JSON format.
    pub(crate) fn delivered_bytes(&self) -> usize {
        self.event.to_cloudevent().get().len()
    }
}

/// JSON of exactly [`EVENT_BYTES`].
pub(crate) fn body(number: u64) -> Bytes {
    let mut text = format!(
        r#"{{"user_id":"u{number}","email":"user{number}@example.com","roles":["reader","author"],"active":true,"note":""#
    );
    let end = "\"}";
    while text.len() + end.len() < EVENT_BYTES {
        text.push(char::from(b'a' + (text.len() % 26) as u8));
    }
    text.push_str(end);
    text.into()
}

/// The subscription `sub-<number>`, which selects every user event of its tenant, without credentials.
pub(crate) fn subscription(number: usize, tenant: &str, url: &Url) -> Result<Subscription, BenchError> {
    let value = json!({
        "id": format!("sub-{number}"),
        "tenant": tenant,
        "incarnation": Incarnation::new(number as u128 + 1),
        "events": ["user.*", "role.assigned"],
        "delivery": {"url": url.join(&format!("hooks/{number}")).unwrap_or_else(|_| url.clone())},
    });
    serde_json::from_value(value).map_err(BenchError::Subscription)
}

/// The same with credentials: OAuth2 tokens of `token_url`, and a signature.
pub(crate) fn secured(number: usize, url: &Url, token_url: &Url) -> Result<Subscription, BenchError> {
    let value = json!({
        "id": format!("sub-{number}"),
        "tenant": "default",
        "incarnation": Incarnation::new(number as u128 + 1),
        "events": ["user.*", "role.assigned"],
        "delivery": {
            "url": url.join(&format!("hooks/{number}")).unwrap_or_else(|_| url.clone()),
            "auth": {
                "type": "oauth2", "token_url": token_url, "client_id": format!("bench-{number}"),
                "client_secret": "a secret of the bench", "scopes": ["events"],
            },
            "signing": {"secret": SIGNING_SECRET},
        },
    });
    serde_json::from_value(value).map_err(BenchError::Subscription)
}

/// Writes subscriptions to the registry.
pub(crate) async fn register(
    js: &JetStream,
    subscriptions: &[Subscription],
    progress: impl Fn(u64),
) -> Result<(), BenchError> {
    let writes = stream::iter(subscriptions).map(|subscription| js.put_subscription(subscription, None));
    let mut writes = writes.buffer_unordered(PUBLISHES_IN_FLIGHT);
    while writes.try_next().await?.is_some() {
        progress(1);
    }
    Ok(())
}

/// Writes the envelopes of `events` events for all `subscriptions` to the outbox, in place of the event processor. Returns
/// the expected ids.
pub(crate) async fn preload(
    js: &JetStream,
    events: u64,
    subscriptions: &[Subscription],
    progress: impl Fn(u64),
) -> Result<Vec<WebhookId>, BenchError> {
    let entries: Vec<IndexEntry> = subscriptions
        .iter()
        .map(|subscription| IndexEntry::new(subscription.clone(), 0).map_err(BenchError::Entry))
        .collect::<Result<_, BenchError>>()?;
    let tenant = subscriptions.first().map_or("default", |first| &first.tenant);
    let (mut expected, mut batch) = (Vec::new(), Vec::with_capacity(MOST_PER_BATCH));
    for number in 0..events {
        let new = NewEvent::new(js.names(), number, tenant)?;
        expected.extend(subscriptions.iter().map(|subscription| new.webhook_id(subscription)));
        // As the event processor does, so that the delivery measures its time.
        let published_at = u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).ok();
        let fan_out = FanOut::published(&new.event, DOMAIN, published_at);
        for IndexEntry { subscription, delivery, .. } in &entries {
            let envelope =
                fan_out.envelope(&subscription.reference, subscription.incarnation, Some(delivery));
            batch.push(EnvelopeMessage {
                subject: js.names().outbox(DOMAIN, SHARED_LANE, &subscription.reference.token()),
                message_id: envelope.id,
                payload: envelope.body,
                headers: Vec::new(),
            });
            if batch.len() == MOST_PER_BATCH {
                js.commit(&batch).await?;
                progress(batch.len() as u64);
                batch.clear();
            }
        }
    }
    js.commit(&batch).await?;
    progress(batch.len() as u64);
    Ok(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_600_bytes_and_belongs_to_the_domain() {
        for number in [0, 7, 123_456_789] {
            let new = NewEvent::new(&SubjectNames::new("hub"), number, "acme").unwrap();
            assert_eq!(new.body.len(), EVENT_BYTES);
            assert_eq!((new.event.key.as_str(), &*new.event.tenant), (KEY, "acme"));
            assert!(new.delivered_bytes() > EVENT_BYTES);
            let settings = integration_hub::settings::Settings::defaults();
            let domain = settings
                .domains
                .iter()
                .find(|domain| domain.events.iter().any(|pattern| pattern.matches(&new.event.key)));
            assert_eq!(domain.unwrap().name, DOMAIN);
        }
    }

    #[test]
    fn each_subscription_has_an_id_of_its_own() {
        let url: Url = "http://127.0.0.1:1/".parse().unwrap();
        let subscriptions: Vec<_> = (0..3).map(|n| subscription(n, "acme", &url).unwrap()).collect();
        let events: Vec<_> =
            (0..3).map(|n| NewEvent::new(&SubjectNames::new("hub"), n, "acme").unwrap()).collect();
        let ids: std::collections::HashSet<_> =
            events.iter().flat_map(|event| subscriptions.iter().map(|s| event.webhook_id(s))).collect();
        assert_eq!(ids.len(), 9);
    }
}
