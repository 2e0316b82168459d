//! Tests subscriptions with a sample event: who would get it, and how an endpoint answers it.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Management, ManagementError};
use crate::domain::access::Caller;
use crate::domain::attempt::Attempt;
use crate::domain::envelope::envelope_id;
use crate::domain::event::{Event, Publication};
use crate::domain::field_error::FieldError;
use crate::domain::index::{EntryError, IndexEntry, SubscriptionIndex};
use crate::domain::key::{EventKey, KeyPattern};
use crate::domain::outcome::{DeliveryDecision, Failure, decide, disables};
use crate::domain::producer_outbox::ExternalMessage;
use crate::domain::subscription::{
    Auth, BrokerDelivery, Delivery, EndpointDelivery, Identity, Subscription, SubscriptionId,
    SubscriptionRef, shown_url,
};
use crate::facts::SampleConnectionDropped;
use crate::from_settings::{external_broker, http_delivery, open_credential, retry_policy};
use crate::http_delivery::{EnvelopeView, OpenSecret, SecretNotOpened, SentRequest, Target};
use crate::nats::StoredSubscription;
use crate::seal::Sealer;
use crate::sinks::{self, OutgoingMessage};

/// Maximum number of registry reads in progress.
const READS_AT_ONCE: usize = 32;
/// The `source` of a sample event.
const SOURCE: &str = "hub-subscription-test";
/// How long closing a connection may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// A sample event, which is not published.
#[derive(Debug, Clone)]
pub struct Sample {
    pub key: EventKey,
    pub tenant: String,
    pub source: String,
    /// Further attributes for filters.
    pub attributes: Vec<(String, String)>,
}

/// A stored subscription that gets no events.
#[derive(Debug, thiserror::Error)]
#[error("{id}: {source}")]
pub struct UnusableSubscription {
    pub id: SubscriptionId,
    source: EntryError,
}

/// The result of one attempt with a sample, which bypasses the streams: it is not retried, dead-lettered or logged, and
/// disables no subscription.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct SampleAttempt {
    pub subscription: SubscriptionId,
    #[schema(value_type = String)]
    pub event_key: EventKey,
    /// What was sent, without secrets: method, URL, headers, body; or broker, stream, message id, body. Null if nothing
    /// was sent.
    #[schema(value_type = Option<Object>)]
    pub request: Option<Value>,
    pub answer: SampleAnswer,
    /// What would happen to a delivery with this answer.
    pub a_delivery_would: &'static str,
    #[serde(skip)]
    pub accepted: bool,
    /// The subscription does not match this event key; the sample was sent anyway.
    #[serde(skip)]
    pub unwanted: bool,
}

#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct SampleAnswer {
    pub status: Option<u16>,
    pub latency_ms: u64,
    pub error: Option<String>,
    /// `subscriber` or `hub`.
    pub fault: Option<&'static str>,
    /// The first kilobytes of the answer.
    pub body: Option<String>,
}

impl Management {
    /// The subscriptions that would get such an event, by the index and filters of the fan-out; and the unusable stored
    /// subscriptions with their reasons.
    pub async fn matching(
        &self,
        sample: &Sample,
    ) -> Result<(Vec<StoredSubscription>, Vec<UnusableSubscription>), ManagementError> {
        let event = sample.event()?;
        if let Some(registry) = &self.index {
            registry.catch_up(&self.js).await?;
            let names: Vec<SubscriptionRef> = registry
                .read()
                .matching(&event)
                .iter()
                .map(|entry| entry.subscription.reference.clone())
                .collect();
            let found: Vec<Option<StoredSubscription>> = stream::iter(names)
                .map(|name| async move { self.js.subscription(&name).await })
                .buffered(READS_AT_ONCE)
                .try_collect()
                .await?;
            return Ok((found.into_iter().flatten().collect(), Vec::new()));
        }
        let stored = self.js.subscriptions().await?;
        let (mut index, mut unusable) = (SubscriptionIndex::new(), Vec::new());
        for one in &stored {
            match IndexEntry::new(one.subscription.clone(), one.revision) {
                Ok(entry) => drop(index.insert(entry)),
                Err(source) => {
                    unusable.push(UnusableSubscription { id: one.subscription.id.clone(), source });
                }
            }
        }
        let wanting: HashSet<SubscriptionRef> =
            index.matching(&event).iter().map(|entry| entry.subscription.reference.clone()).collect();
        let is_wanting =
            |one: &StoredSubscription| one.subscription.reference().is_ok_and(|name| wanting.contains(&name));
        let matching = stored.into_iter().filter(is_wanting).collect();
        Ok((matching, unusable))
    }

    /// Sends one sample event to the endpoint. `key` defaults to one that the subscription matches.
    pub async fn test_subscription(
        &self,
        subscription: &Subscription,
        key: Option<EventKey>,
    ) -> Result<SampleAttempt, ManagementError> {
        let key = match (key, subscription.events.first()) {
            (Some(key), _) => key,
            (None, Some(pattern)) => sample_key(pattern)?,
            (None, None) => {
                return Err(invalid("event", "is required, because the subscription has no event patterns"));
            }
        };
        let sample = Sample {
            key: key.clone(),
            tenant: subscription.tenant.clone(),
            source: SOURCE.to_owned(),
            attributes: Vec::new(),
        };
        let event = sample.event()?;
        let (request, attempt) = match &subscription.delivery {
            Delivery::Endpoint(endpoint) => self.sample_to_endpoint(subscription, endpoint, &event).await,
            Delivery::Broker(broker) => self.sample_to_broker(subscription, broker, &event).await,
        };
        let statuses = subscription.delivery.clone().into_statuses();
        let policy = retry_policy(&self.settings);
        let decision = decide(&attempt.outcome, 1, &policy, &statuses, 0.5);
        let accepted = decision == DeliveryDecision::Ack;
        let a_delivery_would = match decision {
            DeliveryDecision::Ack => "be done",
            DeliveryDecision::Retry { .. } => "be tried again",
            DeliveryDecision::DeadLetter { .. } if disables(&attempt.outcome, &statuses) => {
                "be dead-lettered, and the subscription disabled"
            }
            DeliveryDecision::DeadLetter { .. } => "be dead-lettered",
        };
        Ok(SampleAttempt {
            subscription: subscription.id.clone(),
            unwanted: !subscription.events.iter().any(|pattern| pattern.matches(&key)),
            event_key: key,
            request,
            answer: SampleAnswer {
                status: attempt.outcome.status(),
                latency_ms: u64::try_from(attempt.latency.as_millis()).unwrap_or(u64::MAX),
                error: (!accepted).then(|| attempt.error_text().to_string()),
                fault: (!accepted).then(|| attempt.outcome.fault().as_str()),
                body: attempt.answer_excerpt.clone().map(|text| text.to_string()),
            },
            a_delivery_would,
            accepted,
        })
    }

    async fn sample_to_endpoint(
        &self,
        subscription: &Subscription,
        endpoint: &EndpointDelivery,
        event: &Event,
    ) -> (Option<Value>, Attempt) {
        let opener = Opener(self.sealer());
        let Ok(name) = subscription.reference() else {
            return (None, Attempt::failed(Failure::Request));
        };
        let identity = Identity { subscription: name, incarnation: subscription.incarnation };
        let target = match Target::prepare(&identity, endpoint, &opener) {
            Ok(target) => target,
            Err(error) => return (None, error.attempt()),
        };
        let envelope = envelope_id(event, subscription.id.as_str(), subscription.incarnation);
        let body = event.to_cloudevent().get().to_owned().into();
        let view = EnvelopeView { id: &envelope, event: body, traceparent: None };
        let http = http_delivery(&self.settings, &self.js);
        let (sent, attempt) = http.attempt_and_capture(&target, &view, 1).await;
        (sent.map(|sent| request(endpoint, sent)), attempt)
    }

    /// Sends a sample over a connection of its own.
    async fn sample_to_broker(
        &self,
        subscription: &Subscription,
        delivery: &BrokerDelivery,
        event: &Event,
    ) -> (Option<Value>, Attempt) {
        let entry = self.settings.external_brokers.iter().find(|entry| entry.name == delivery.broker);
        let Some(entry) = entry else { return (None, Attempt::failed(Failure::UnknownBroker)) };
        let broker = match external_broker(entry) {
            Ok(broker) => broker,
            Err(error) => {
                return (None, Attempt::failed_by(Failure::BrokerUnavailable, &error));
            }
        };
        let message = match ExternalMessage::new(event.to_cloudevent().get(), None) {
            Ok(message) => message,
            Err(error) => return (None, Attempt::failed_by(Failure::Request, &error)),
        };
        let outgoing = OutgoingMessage {
            id: envelope_id(event, subscription.id.as_str(), subscription.incarnation),
            stream: delivery.stream.clone(),
            key: message.key,
            body: message.body.into(),
            headers: message.headers,
        };
        let attempt = sinks::attempt(&*broker, &outgoing, delivery.timeout).await;
        if tokio::time::timeout(CLOSE_LIMIT, broker.close()).await.is_err() {
            SampleConnectionDropped { broker: &delivery.broker }.emit();
        }
        let sent = json!({
            "broker": delivery.broker,
            "stream": delivery.stream,
            "message_id": outgoing.id,
            "body": String::from_utf8_lossy(&outgoing.body),
        });
        (Some(sent), attempt)
    }

    /// The tenant of a sample. Fails if the caller may not see that tenant's subscriptions.
    pub fn sample_tenant(&self, caller: &Caller, tenant: Option<String>) -> Result<String, ManagementError> {
        let tenant =
            tenant.or_else(|| caller.tenant().map(str::to_owned)).unwrap_or_else(|| "default".to_owned());
        if caller.reaches(&tenant) {
            Ok(tenant)
        } else {
            Err(invalid("tenant", "differs from the tenant of this token; omit it"))
        }
    }
}

fn invalid(field: &str, problem: impl Into<String>) -> ManagementError {
    ManagementError::Invalid(vec![FieldError::new(field, problem)])
}

/// Opens a subscription's credentials for one attempt.
struct Opener<'a>(Option<&'a Sealer>);

impl OpenSecret for Opener<'_> {
    fn open(
        &self,
        subscription: &Identity,
        field: &str,
        sealed: &str,
    ) -> Result<secrecy::SecretString, SecretNotOpened> {
        open_credential(self.0, subscription, field, sealed)
    }
}

impl Sample {
    fn event(&self) -> Result<Event, ManagementError> {
        let unique = format!("test-{:016x}", rand::random::<u64>());
        let mut headers: Vec<(String, String)> = [
            ("ce-specversion", "1.0"),
            ("ce-id", &unique),
            ("ce-source", &self.source),
            ("ce-type", self.key.as_str()),
            ("ce-tenant", &self.tenant),
            ("content-type", "application/json"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        for (name, value) in &self.attributes {
            let header = format!("ce-{name}");
            // Decoding rejects two headers with one name.
            headers.retain(|(known, _)| *known != header);
            headers.push((header, value.clone()));
        }
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let publication = Publication {
            subject_tail: self.key.as_str(),
            tenant_token: None,
            headers: &headers,
            body: br#"{"test":true}"#,
            stream: "",
            sequence: 0,
            time: OffsetDateTime::now_utc(),
            max_size: usize::MAX,
        };
        publication.decode().map_err(|rejection| {
            let field = match rejection.field.as_deref() {
                None | Some("type") => "event",
                Some(attribute) => attribute.strip_prefix("ce-").unwrap_or(attribute),
            };
            invalid(field, rejection.detail.clone())
        })
    }
}

/// A key that the pattern matches: `user.test` for `user.*`.
fn sample_key(pattern: &KeyPattern) -> Result<EventKey, ManagementError> {
    let tokens: Vec<&str> =
        pattern.tokens().map(|token| if matches!(token, "*" | ">") { "test" } else { token }).collect();
    let mut text = tokens.join(".");
    if tokens.len() < 2 {
        text.push_str(".test");
    }
    text.parse().map_err(|error| invalid("event", format!("{error}; give an event key")))
}

/// The request that was sent, without secrets.
fn request(delivery: &EndpointDelivery, sent: SentRequest) -> Value {
    let mut url = shown_url(&delivery.url);
    if let Auth::ApiKey { query: Some(name), .. } = &delivery.auth {
        url.query_pairs_mut().append_pair(name, "***");
    }
    let headers: serde_json::Map<String, Value> =
        sent.headers.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
    json!({
        "method": "POST",
        "url": url,
        "headers": headers,
        "body": String::from_utf8_lossy(&sent.body),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_key_is_one_that_the_pattern_matches() {
        for text in ["user.created", "user.*", "policy.>", "*.created", ">"] {
            let pattern: KeyPattern = text.parse().unwrap();
            let key = sample_key(&pattern).unwrap();
            assert!(pattern.matches(&key), "{text}: {key}");
        }
    }
}
