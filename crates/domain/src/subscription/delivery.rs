//! The delivery settings of a subscription: to an HTTP endpoint, or to an external broker.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::{Error, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Auth, EndpointTls, Secret, Signing};
use crate::backlog::BacklogLimits;
use crate::status::Statuses;

/// The delivery settings of a subscription.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum Delivery {
    Endpoint(Box<EndpointDelivery>),
    Broker(BrokerDelivery),
}

/// A `POST` to an endpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct EndpointDelivery {
    #[cfg_attr(feature = "openapi", schema(max_length = 2048, example = "https://crm.example/hooks"))]
    pub url: url::Url,
    #[serde(default)]
    pub content_mode: ContentMode,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Headers whose values are credentials: sealed, and shown as `***`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub secret_headers: BTreeMap<String, Secret>,
    /// Timeout of the whole attempt: connection, request and answer.
    #[serde(default = "default_timeout", with = "crate::duration")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "15s"))]
    pub timeout: Duration,
    #[serde(default = "default_max_in_flight")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 10_000))]
    pub max_in_flight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Most envelopes of the subscription in a domain outbox. Further ones become dead letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backlog: Option<u64>,
    /// Most bytes of these, such as `100MB`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::backlog::size")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "100MB"))]
    pub max_backlog_bytes: Option<u64>,
    /// An envelope that waits for longer becomes a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::duration::optional")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "3d"))]
    pub max_age: Option<Duration>,
    #[serde(default)]
    pub ordering: Ordering,
    /// The event attribute whose values are ordered each by itself; without it, there is one order for all events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9]{1,64}$", example = "subject"))]
    pub ordering_key: Option<String>,
    /// What a strict order does when an envelope is dead-lettered. The default is `stop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_dead_letter: Option<OnDeadLetter>,
    #[serde(default)]
    pub auth: Auth,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<Signing>,
    /// HTTP statuses with another meaning than the default.
    #[serde(default, skip_serializing_if = "Statuses::is_empty")]
    pub statuses: Statuses,
    /// Without it: the roots of the system, and no client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<EndpointTls>,
}

/// A message to an external broker. The settings configure the broker's address and credentials. The body is the event
/// as an external envelope.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", schema(example = json!({"broker": "partner_events", "stream": "orders"})))]
pub struct BrokerDelivery {
    /// The broker's name in the settings (`[[external_brokers]]`).
    #[cfg_attr(
        feature = "openapi",
        schema(pattern = "^[a-z0-9][a-z0-9_-]{0,63}$", example = "partner_events")
    )]
    pub broker: String,
    /// The subject (NATS), stream (Redis), routing key (AMQP) or topic (Kafka).
    #[cfg_attr(
        feature = "openapi",
        schema(min_length = 1, max_length = 255, pattern = r"^[^\s*>{}]+$", example = "orders")
    )]
    pub stream: String,
    /// Timeout of the whole attempt: connection and acknowledgement.
    #[serde(default = "default_timeout", with = "crate::duration")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "15s"))]
    pub timeout: Duration,
    #[serde(default = "default_max_in_flight")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 10_000))]
    pub max_in_flight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Most envelopes of the subscription in a domain outbox. Further ones become dead letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backlog: Option<u64>,
    /// Most bytes of these, such as `100MB`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::backlog::size")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "100MB"))]
    pub max_backlog_bytes: Option<u64>,
    /// An envelope that waits for longer becomes a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::duration::optional")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "3d"))]
    pub max_age: Option<Duration>,
    #[serde(default)]
    pub ordering: Ordering,
    /// The event attribute whose values are ordered each by itself; without it, there is one order for all events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9]{1,64}$", example = "subject"))]
    pub ordering_key: Option<String>,
    /// What a strict order does when an envelope is dead-lettered. The default is `stop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_dead_letter: Option<OnDeadLetter>,
}

fn default_timeout() -> Duration {
    Duration::from_secs(15)
}

fn default_max_in_flight() -> u32 {
    32
}

/// Content mode of the CloudEvents HTTP protocol binding (section 3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ContentMode {
    #[default]
    Structured,
    Binary,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Ordering {
    #[default]
    None,
    /// In the order of publishing, one delivery at a time.
    Strict,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OnDeadLetter {
    /// The order stops until the dead letter is delivered or discarded.
    #[default]
    Stop,
    /// The order continues with the next envelope.
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    pub per_second: f64,
    pub burst: u32,
}

/// True if the JSON of a delivery is for a broker, false if it is for an endpoint.
pub(super) fn names_a_broker(delivery: &Value) -> bool {
    ["broker", "stream"].iter().any(|name| delivery.get(name).is_some())
}

/// The fields that distinguish a broker's delivery from an endpoint's.
#[derive(Deserialize)]
struct BrokerFields {
    broker: Option<IgnoredAny>,
    stream: Option<IgnoredAny>,
}

impl<'de> Deserialize<'de> for Delivery {
    /// Only from JSON. Builds no tree of values, because a process reads 100,000 of them when it starts.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let kind: BrokerFields = serde_json::from_str(json.get()).map_err(D::Error::custom)?;
        let delivery = if kind.broker.is_some() || kind.stream.is_some() {
            serde_json::from_str(json.get()).map(Self::Broker)
        } else {
            serde_json::from_str(json.get()).map(Self::Endpoint)
        };
        delivery.map_err(D::Error::custom)
    }
}

impl Delivery {
    /// The endpoint, if the delivery is to an endpoint.
    pub fn endpoint(&self) -> Option<&EndpointDelivery> {
        match self {
            Self::Endpoint(endpoint) => Some(endpoint),
            Self::Broker(_) => None,
        }
    }

    pub fn endpoint_mut(&mut self) -> Option<&mut EndpointDelivery> {
        match self {
            Self::Endpoint(endpoint) => Some(endpoint),
            Self::Broker(_) => None,
        }
    }

    /// The broker, if the delivery is to a broker.
    pub fn broker(&self) -> Option<&BrokerDelivery> {
        match self {
            Self::Endpoint(_) => None,
            Self::Broker(broker) => Some(broker),
        }
    }

    /// The timeout of one attempt.
    pub fn timeout(&self) -> Duration {
        match self {
            Self::Endpoint(endpoint) => endpoint.timeout,
            Self::Broker(broker) => broker.timeout,
        }
    }

    pub fn max_in_flight(&self) -> u32 {
        match self {
            Self::Endpoint(endpoint) => endpoint.max_in_flight,
            Self::Broker(broker) => broker.max_in_flight,
        }
    }

    pub fn rate_limit(&self) -> Option<RateLimit> {
        match self {
            Self::Endpoint(endpoint) => endpoint.rate_limit,
            Self::Broker(broker) => broker.rate_limit,
        }
    }

    /// The limits of the backlog.
    pub fn backlog(&self) -> BacklogLimits {
        let (messages, bytes, age) = match self {
            Self::Endpoint(endpoint) => (endpoint.max_backlog, endpoint.max_backlog_bytes, endpoint.max_age),
            Self::Broker(broker) => (broker.max_backlog, broker.max_backlog_bytes, broker.max_age),
        };
        BacklogLimits { messages, bytes, age }
    }

    pub fn ordering(&self) -> Ordering {
        match self {
            Self::Endpoint(endpoint) => endpoint.ordering,
            Self::Broker(broker) => broker.ordering,
        }
    }

    pub fn ordering_key(&self) -> Option<&str> {
        match self {
            Self::Endpoint(endpoint) => endpoint.ordering_key.as_deref(),
            Self::Broker(broker) => broker.ordering_key.as_deref(),
        }
    }

    pub fn on_dead_letter(&self) -> Option<OnDeadLetter> {
        match self {
            Self::Endpoint(endpoint) => endpoint.on_dead_letter,
            Self::Broker(broker) => broker.on_dead_letter,
        }
    }

    /// HTTP statuses with another meaning than the default; none for a broker.
    pub fn into_statuses(self) -> Statuses {
        match self {
            Self::Endpoint(endpoint) => endpoint.statuses,
            Self::Broker(_) => Statuses::default(),
        }
    }

    /// All secrets, for sealing.
    pub fn secrets_mut(&mut self) -> Vec<&mut Secret> {
        self.named_secrets_mut().into_iter().map(|(_, secret)| secret).collect()
    }

    /// All secrets with the paths of their fields. The credentials of a broker are in the settings.
    pub fn named_secrets_mut(&mut self) -> Vec<(Cow<'static, str>, &mut Secret)> {
        self.endpoint_mut().map(EndpointDelivery::named_secrets_mut).unwrap_or_default()
    }
}

impl EndpointDelivery {
    /// All secrets with the paths of their fields.
    pub fn named_secrets_mut(&mut self) -> Vec<(Cow<'static, str>, &mut Secret)> {
        let auth = match &mut self.auth {
            Auth::None => None,
            Auth::ApiKey { key, .. } => Some(("delivery.auth.key", key)),
            Auth::Basic { password, .. } => Some(("delivery.auth.password", password)),
            Auth::Bearer { token } => Some(("delivery.auth.token", token)),
            Auth::Oauth2 { client_secret, .. } => Some(("delivery.auth.client_secret", client_secret)),
        };
        let mut secrets: Vec<(Cow<'static, str>, &mut Secret)> =
            auth.into_iter().map(|(path, secret)| (path.into(), secret)).collect();
        if let Some(signing) = &mut self.signing {
            secrets.push(("delivery.signing.secret".into(), &mut signing.secret));
            if let Some(previous) = &mut signing.previous {
                secrets.push(("delivery.signing.previous.secret".into(), &mut previous.secret));
            }
        }
        if let Some(key) = self.tls.as_mut().and_then(|tls| tls.key.as_mut()) {
            secrets.push(("delivery.tls.key".into(), key));
        }
        // Header names are case-insensitive.
        secrets.extend(self.secret_headers.iter_mut().map(|(name, secret)| {
            (format!("delivery.secret_headers.{}", name.to_ascii_lowercase()).into(), secret)
        }));
        secrets
    }
}
