//! Subscriptions: event keys and filters, receiver, credentials and limits.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::key::KeyPattern;
use super::outcome::UnknownName;

mod certificates;
mod delivery;
mod destination;
mod headers;
mod identity;
mod parse;
mod plain_text;
mod signing;
#[cfg(test)]
mod tests;
mod tls;
mod validate;

pub use certificates::{Certificates, PemProblem};
pub use delivery::{
    BrokerDelivery, ContentMode, Delivery, EndpointDelivery, OnDeadLetter, Ordering, RateLimit,
};
pub use headers::is_credential_name;
pub use identity::{
    DEFAULT_TENANT, Identity, Incarnation, InvalidIncarnation, InvalidTenant, SubscriptionRef,
    subscription_token,
};
pub use plain_text::{is_credential_parameter, shown_url};
pub use signing::{PreviousSecret, Signing};
pub use tls::EndpointTls;
use validate::DEFAULT_API_KEY_HEADER;
pub use validate::SubscriptionLimits;

/// `[a-z0-9][a-z0-9_-]{0,63}`: safe as a subject token and as part of a consumer name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9][a-z0-9_-]{0,63}$", example = "billing-crm"))]
pub struct SubscriptionId(String);

impl SubscriptionId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<SubscriptionId> for String {
    fn from(id: SubscriptionId) -> Self {
        id.0
    }
}

/// A text that is not a subscription id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid subscription id {0:?}; use 1 to 64 of a-z, 0-9, '_' and '-', with a letter or digit first")]
pub struct InvalidSubscriptionId(String);

impl TryFrom<String> for SubscriptionId {
    type Error = InvalidSubscriptionId;
    fn try_from(text: String) -> Result<Self, InvalidSubscriptionId> {
        if is_subscription_id(&text) { Ok(Self(text)) } else { Err(InvalidSubscriptionId(text)) }
    }
}

fn is_subscription_id(text: &str) -> bool {
    let start = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    start && rest && text.len() <= 64
}

impl std::fmt::Display for SubscriptionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", schema(example = json!({
    "id": "billing-crm", "events": ["user.created", "role.*"], "delivery": {"url": "https://crm.example/hooks"}
})))]
pub struct Subscription {
    pub id: SubscriptionId,
    #[serde(default = "default_tenant")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_.-]+$"))]
    pub tenant: String,
    /// One life of the subscription. The hub makes it when the subscription is created, and ignores the value of a
    /// request.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(read_only, value_type = String, example = "9f86d081884c7d659a2feaa0c55ad015"))]
    pub incarnation: Incarnation,
    /// Event keys with NATS wildcards: `*` is one word, `>` at the end is one word or more.
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 256, example = json!(["user.created", "role.*"])))]
    pub events: Vec<KeyPattern>,
    /// All filters must match (CloudEvents Subscriptions API 1.0, `filters`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<super::filter::Filter>,
    #[serde(default)]
    pub state: SubscriptionState,
    /// The reason if the hub has disabled the subscription.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(read_only))]
    pub disabled_reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    #[cfg_attr(feature = "openapi", schema(read_only))]
    pub disabled_at: Option<OffsetDateTime>,
    pub delivery: Delivery,
}

/// A tenant's name: 1 to 64 of letters, digits, `_`, `.` and `-`.
pub fn is_tenant(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn default_tenant() -> String {
    DEFAULT_TENANT.to_owned()
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", schema(as = State))]
pub enum SubscriptionState {
    #[default]
    Active,
    /// Paused by an operator.
    Paused,
    /// Disabled by the hub because the endpoint answered 410 (gone), until an operator resumes it.
    Disabled,
}

impl SubscriptionState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Disabled => "disabled",
        }
    }
}

impl std::str::FromStr for SubscriptionState {
    type Err = UnknownName;
    fn from_str(text: &str) -> Result<Self, UnknownName> {
        [Self::Active, Self::Paused, Self::Disabled]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownName::new("state", text, "active, paused, disabled"))
    }
}

/// The credentials of a delivery.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Auth {
    #[default]
    None,
    /// A key in a header (default `x-api-key`) or in a query parameter.
    ApiKey {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        header: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        query: Option<String>,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = Password))]
        key: Secret,
    },
    Basic {
        username: String,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = Password))]
        password: Secret,
    },
    Bearer {
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = Password))]
        token: Secret,
    },
    /// Client credentials grant, RFC 6749 section 4.4.
    Oauth2 {
        token_url: url::Url,
        client_id: String,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = Password))]
        client_secret: Secret,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        scopes: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        audience: Option<String>,
        /// Client authentication (RFC 6749 section 2.3.1): in the Authorization header, or in the form.
        #[serde(default)]
        client_auth: ClientAuth,
        /// The accepted `token_type` of the answer of the token endpoint. The token is always sent as a bearer token.
        #[serde(default, skip_serializing_if = "TokenType::is_any")]
        token_type: TokenType,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    #[default]
    ClientSecretBasic,
    ClientSecretPost,
}

/// An accepted token type (RFC 6749 section 7.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TokenType {
    /// Any type, or none.
    #[default]
    Any,
    /// `Bearer` (case-insensitive), or none.
    Bearer,
}

impl TokenType {
    fn is_any(&self) -> bool {
        *self == Self::Any
    }
}

/// A credential. It is received as a plain string, sealed before it is stored, and opened only to make a request.
/// `Debug` never shows it.
#[derive(Debug, Clone)]
pub enum Secret {
    Plain(SecretString),
    /// `v2.<key id>.<base64url nonce and ciphertext>`
    Sealed(String),
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::{Error, SerializeMap};
        match self {
            // Secrets are sealed before they are written.
            Secret::Plain(_) => Err(S::Error::custom("a secret must be sealed before it is written")),
            Secret::Sealed(text) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("sealed", text)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a secret: a string, or {\"sealed\": \"…\"} as the hub stores it")]
        enum SecretText {
            Plain(String),
            Sealed { sealed: String },
        }
        Ok(match SecretText::deserialize(deserializer)? {
            SecretText::Plain(text) => Secret::Plain(SecretString::from(text)),
            // The empty text is reserved: in memory it marks a secret that keeps its stored value.
            SecretText::Sealed { sealed } if sealed.is_empty() => {
                return Err(serde::de::Error::custom(
                    "the sealed text is empty; write the secret as a string",
                ));
            }
            SecretText::Sealed { sealed } => Secret::Sealed(sealed),
        })
    }
}

impl Subscription {
    /// Tenant and id. Fails only for a tenant that `validate` rejects.
    pub fn reference(&self) -> Result<SubscriptionRef, InvalidTenant> {
        SubscriptionRef::new(&self.tenant, &self.id)
    }

    /// Sets the state on request of an operator, and clears the reason for which it was disabled.
    pub fn set_state(&mut self, state: SubscriptionState) {
        self.state = state;
        self.disabled_reason = None;
        self.disabled_at = None;
    }

    /// Disables the subscription on behalf of the hub.
    pub fn disable(&mut self, reason: String, now: OffsetDateTime) {
        self.state = SubscriptionState::Disabled;
        self.disabled_reason = Some(reason);
        self.disabled_at = Some(now);
    }

    /// All secrets, for sealing.
    pub fn secrets_mut(&mut self) -> Vec<&mut Secret> {
        self.delivery.secrets_mut()
    }

    /// The subscription as JSON for lists and logs, with each secret as `"***"`.
    pub fn hidden_json(&self) -> serde_json::Value {
        let mut shown = self.clone();
        for secret in shown.secrets_mut() {
            *secret = Secret::Sealed(String::new());
        }
        // Older versions accepted credentials in these fields.
        if let Some(endpoint) = shown.delivery.endpoint_mut() {
            endpoint.url = shown_url(&endpoint.url);
            if let Auth::Oauth2 { token_url, .. } = &mut endpoint.auth {
                *token_url = shown_url(token_url);
            }
            for (name, value) in &mut endpoint.headers {
                if is_credential_name(name) || plain_text::is_credential_value(value) {
                    "***".clone_into(value);
                }
            }
        }
        let mut json = serde_json::to_value(&shown).expect("its keys are strings and its secrets are sealed");
        let members = json.get_mut("delivery").and_then(serde_json::Value::as_object_mut);
        // Values of `headers` are plain text: one with the name `sealed` only looks like a secret.
        members
            .into_iter()
            .flatten()
            .filter(|(name, _)| *name != "headers")
            .for_each(|(_, value)| hide(value));
        json
    }
}

/// Replaces sealed secrets by `"***"`.
fn hide(json: &mut serde_json::Value) {
    if let serde_json::Value::Object(members) = json {
        if members.len() == 1 && members.get("sealed").is_some_and(serde_json::Value::is_string) {
            *json = serde_json::Value::from("***");
            return;
        }
        members.values_mut().for_each(hide);
    }
}
