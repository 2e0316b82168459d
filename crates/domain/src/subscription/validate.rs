//! Validation of the values of a subscription.

use std::time::Duration;

use secrecy::ExposeSecret;

use super::headers::{self, is_header_name, is_header_value, is_reserved};
use super::plain_text::credential_in_query;
use super::{
    Auth, BrokerDelivery, Delivery, EndpointDelivery, InvalidTenant, Ordering, RateLimit, Secret,
    Subscription,
};
use crate::backlog::size;
use crate::event::is_attribute_name;
use crate::field_error::FieldError;
use crate::producer_outbox::is_external_broker;
use crate::words::span;

const MIN_TIMEOUT: Duration = Duration::from_millis(100);
/// Minimum of `delivery.max_age`.
const MIN_AGE: Duration = Duration::from_secs(1);
const MAX_IN_FLIGHT: u32 = 10_000;
/// Limits of the parts that every envelope of the subscription contains.
const MAX_EVENTS: usize = 256;
/// Maximum size of a subscription as JSON without its certificates, in bytes.
const MAX_BYTES: usize = 64 * 1024;
const MAX_FILTERS: usize = 64;
const MAX_URL_BYTES: usize = 2 * 1024;
const MAX_CREDENTIAL_BYTES: usize = 8 * 1024;
const MAX_ATTRIBUTE_NAME: usize = 64;
/// The lowest limit of all kinds of brokers: an AMQP routing key (0-9-1 section 4.2.5.3, a short string).
const MAX_STREAM_BYTES: usize = 255;

/// Limits from the settings.
#[derive(Debug, Clone, Copy)]
pub struct SubscriptionLimits {
    /// `delivery.max_timeout`: the longest timeout of an attempt.
    pub max_timeout: Duration,
}

impl Subscription {
    /// Checks each field. Every error names its field and the remedy.
    pub fn validate(&self, limits: &SubscriptionLimits) -> Result<(), Vec<FieldError>> {
        let mut errors = Vec::new();
        if !super::is_tenant(&self.tenant) {
            errors.push(FieldError::new("tenant", InvalidTenant::new(&self.tenant).to_string()));
        }
        match self.events.len() {
            0 => errors.push(FieldError::new(
                "events",
                "is empty; name at least one event key or pattern, like \"user.*\"",
            )),
            1..=MAX_EVENTS => {}
            many => errors.push(FieldError::new(
                "events",
                format!(
                    "has {many} patterns, the limit is {MAX_EVENTS}; use wildcards, or split the subscription"
                ),
            )),
        }
        errors.extend(self.events.iter().enumerate().filter_map(|(position, pattern)| {
            Some(FieldError::new(format!("events[{position}]"), pattern.never_matches()?))
        }));
        if self.filter.len() > MAX_FILTERS {
            errors
                .push(FieldError::new("filter", format!("has more than {MAX_FILTERS} filters; write fewer")));
        }
        errors.extend(crate::filter::validate_size(&self.filter).err());
        errors.extend(
            self.filter
                .iter()
                .enumerate()
                .filter_map(|(position, filter)| filter.validate(&format!("filter[{position}]")).err()),
        );
        if self.state != super::SubscriptionState::Disabled
            && (self.disabled_reason.is_some() || self.disabled_at.is_some())
        {
            errors.push(FieldError::new(
                if self.disabled_reason.is_some() { "disabled_reason" } else { "disabled_at" },
                format!(
                    "requires the state \"disabled\", but the state is {:?}; remove it",
                    self.state.as_str()
                ),
            ));
        }
        self.delivery.validate(limits, &mut errors);
        self.validate_bytes(&mut errors);
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

/// The size of a value as JSON. A value that cannot be measured counts as larger than any limit.
fn bytes(value: &impl serde::Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |json| json.len())
}

impl Subscription {
    /// The size as JSON, as the registry stores it, in bytes.
    pub fn stored_bytes(&self) -> usize {
        bytes(&self.measurable())
    }

    /// A copy in which a text of the same length replaces each plain secret, because plain secrets are never serialized.
    fn measurable(&self) -> Self {
        let mut measurable = self.clone();
        for secret in measurable.secrets_mut() {
            if let Secret::Plain(text) = secret {
                *secret = Secret::Sealed("x".repeat(text.expose_secret().len()));
            }
        }
        measurable
    }

    /// Names the largest part of a subscription that is too large.
    fn validate_bytes(&self, errors: &mut Vec<FieldError>) {
        let measurable = self.measurable();
        let tls = match &measurable.delivery {
            Delivery::Endpoint(endpoint) => endpoint.tls.as_ref().map_or(0, bytes),
            Delivery::Broker(_) => 0,
        };
        let total = bytes(&measurable).saturating_sub(tls);
        if total <= MAX_BYTES {
            return;
        }
        let parts = [
            ("events", bytes(&measurable.events)),
            ("filter", bytes(&measurable.filter)),
            ("delivery", bytes(&measurable.delivery).saturating_sub(tls)),
        ];
        let largest =
            parts.into_iter().max_by_key(|(_, bytes)| *bytes).map_or("delivery", |(field, _)| field);
        errors.push(FieldError::new(
            largest,
            format!(
                "is the largest part of a subscription of {} as JSON, the limit is {} without the certificates of \
                 delivery.tls; write less, or split the subscription",
                size::beyond(total as u64, MAX_BYTES as u64),
                size::exact(MAX_BYTES as u64)
            ),
        ));
    }
}

impl Delivery {
    fn validate(&self, limits: &SubscriptionLimits, errors: &mut Vec<FieldError>) {
        let (timeout, max_in_flight) = (self.timeout(), self.max_in_flight());
        if timeout < MIN_TIMEOUT || timeout > limits.max_timeout {
            errors.push(FieldError::new(
                "delivery.timeout",
                format!(
                    "is {}; write {} to {} (setting delivery.max_timeout)",
                    span(timeout),
                    span(MIN_TIMEOUT),
                    span(limits.max_timeout)
                ),
            ));
        }
        if !(1..=MAX_IN_FLIGHT).contains(&max_in_flight) {
            errors.push(FieldError::new(
                "delivery.max_in_flight",
                format!("is {max_in_flight}; write 1 to {MAX_IN_FLIGHT}"),
            ));
        }
        if let Some(RateLimit { per_second, burst }) = self.rate_limit() {
            if !(per_second.is_finite() && per_second > 0.0) {
                errors.push(FieldError::new(
                    "delivery.rate_limit.per_second",
                    format!("is {per_second}; write a number above 0, or remove rate_limit for no limit"),
                ));
            }
            if burst == 0 {
                errors.push(FieldError::new("delivery.rate_limit.burst", "is 0; write 1 or more"));
            }
        }
        let backlog = self.backlog();
        if backlog.messages == Some(0) {
            errors.push(FieldError::new(
                "delivery.max_backlog",
                "is 0; write 1 or more, or remove it for no limit of its own",
            ));
        }
        if backlog.bytes == Some(0) {
            errors.push(FieldError::new(
                "delivery.max_backlog_bytes",
                "is 0; write a size like \"100MB\", or remove it for no limit of its own",
            ));
        }
        if backlog.age.is_some_and(|age| age < MIN_AGE) {
            errors.push(FieldError::new(
                "delivery.max_age",
                format!("is shorter than {}; write a longer one, like \"3d\"", span(MIN_AGE)),
            ));
        }
        self.validate_order(errors);
        match self {
            Self::Endpoint(endpoint) => endpoint.validate(errors),
            Self::Broker(broker) => broker.validate(errors),
        }
    }

    fn validate_order(&self, errors: &mut Vec<FieldError>) {
        if self.ordering() != Ordering::Strict {
            let only_strict = [
                ("delivery.ordering_key", self.ordering_key().is_some()),
                ("delivery.on_dead_letter", self.on_dead_letter().is_some()),
            ];
            errors.extend(only_strict.into_iter().filter(|(_, set)| *set).map(|(field, _)| {
                FieldError::new(
                    field,
                    "requires a strict order; write \"ordering\": \"strict\", or remove it",
                )
            }));
        }
        if let Some(key) = self.ordering_key()
            && !(is_attribute_name(key) && key.len() <= MAX_ATTRIBUTE_NAME)
        {
            errors.push(FieldError::new(
                "delivery.ordering_key",
                format!(
                    "invalid attribute {key:?}; write the name of an event attribute, 1 to {MAX_ATTRIBUTE_NAME} of a-z \
                     and 0-9, like \"subject\""
                ),
            ));
        }
    }
}

impl BrokerDelivery {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        let Self { broker, stream, .. } = self;
        if !is_external_broker(broker) {
            errors.push(FieldError::new(
                "delivery.broker",
                format!("invalid name {broker:?}; write the name of one of the [[external_brokers]]"),
            ));
        }
        let problem = if stream.is_empty() || stream.len() > MAX_STREAM_BYTES {
            format!(
                "must be 1 to {MAX_STREAM_BYTES} bytes long; write the subject, stream, routing key or topic"
            )
        } else if stream.contains(|c: char| c.is_whitespace() || c.is_control()) {
            "contains a space or control character; write only the subject, stream, routing key or topic"
                .to_owned()
        } else if stream.contains(['*', '>', '{', '}']) {
            "must be a name, not a pattern or template; remove *, >, { and }".to_owned()
        } else {
            return;
        };
        errors.push(FieldError::new("delivery.stream", problem));
    }
}

impl EndpointDelivery {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        validate_url("delivery.url", &self.url, errors);
        headers::validate(self, errors);
        self.auth.validate(errors);
        self.statuses.validate(errors);
        if let Some(signing) = &self.signing {
            signing.validate(errors);
        }
        if let Some(tls) = &self.tls {
            tls.validate(&self.url, errors);
        }
    }
}

impl Auth {
    /// The value of `type` in JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Auth::None => "none",
            Auth::ApiKey { .. } => "api_key",
            Auth::Basic { .. } => "basic",
            Auth::Bearer { .. } => "bearer",
            Auth::Oauth2 { .. } => "oauth2",
        }
    }

    /// The header that this kind of authentication sets, if any.
    pub fn header(&self) -> Option<&str> {
        match self {
            Auth::None => None,
            Auth::ApiKey { query: Some(_), .. } => None,
            Auth::ApiKey { header, .. } => Some(header.as_deref().unwrap_or(DEFAULT_API_KEY_HEADER)),
            Auth::Basic { .. } | Auth::Bearer { .. } | Auth::Oauth2 { .. } => Some("authorization"),
        }
    }

    fn validate(&self, errors: &mut Vec<FieldError>) {
        match self {
            Auth::None => {}
            Auth::ApiKey { header, query, key } => {
                if header.is_some() && query.is_some() {
                    errors.push(FieldError::new(
                        "delivery.auth.query",
                        "conflicts with delivery.auth.header; remove one of them",
                    ));
                }
                if let Some(name) = header {
                    let lower = name.to_ascii_lowercase();
                    if !is_header_name(name) || is_reserved(&lower) {
                        errors.push(FieldError::new(
                            "delivery.auth.header",
                            format!("{name:?} is reserved or not a header name; write a name like x-api-key"),
                        ));
                    }
                }
                if query.as_deref() == Some("") {
                    errors.push(FieldError::new(
                        "delivery.auth.query",
                        "is empty; write the name of the query parameter, like api_key",
                    ));
                }
                validate_secret("delivery.auth.key", key, header_text(query.is_none()), errors);
            }
            Auth::Basic { username, password } => {
                // RFC 7617 section 2: the first colon ends the user-id.
                if username.is_empty() || username.contains(':') || username.contains(char::is_control) {
                    errors.push(FieldError::new(
                        "delivery.auth.username",
                        "is empty, or contains a colon or control character; write only the user name",
                    ));
                }
                validate_secret("delivery.auth.password", password, header_text(false), errors);
            }
            Auth::Bearer { token } => {
                validate_secret("delivery.auth.token", token, header_text(true), errors);
            }
            Auth::Oauth2 { token_url, client_id, client_secret, scopes, .. } => {
                validate_url("delivery.auth.token_url", token_url, errors);
                if client_id.is_empty() {
                    errors.push(FieldError::new(
                        "delivery.auth.client_id",
                        "is empty; write the client id for the token endpoint",
                    ));
                }
                validate_secret("delivery.auth.client_secret", client_secret, header_text(false), errors);
                // RFC 6749 section 3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
                for (position, scope) in scopes.iter().enumerate() {
                    let token = |b: u8| b == 0x21 || (0x23..=0x7E).contains(&b) && b != 0x5C;
                    if scope.is_empty() || !scope.bytes().all(token) {
                        errors.push(FieldError::new(
                            format!("delivery.auth.scopes[{position}]"),
                            format!("invalid scope {scope:?}; write each scope as its own entry"),
                        ));
                    }
                }
            }
        }
    }
}

/// The header of an API key if neither header nor query is set.
pub(super) const DEFAULT_API_KEY_HEADER: &str = "x-api-key";

/// The check of a secret's characters: if the secret is sent verbatim, it must be a valid header value.
fn header_text(verbatim: bool) -> fn(&str) -> bool {
    if verbatim { is_header_value } else { |_| true }
}

/// Checks a plain secret. A sealed one cannot be checked.
pub(super) fn validate_secret(
    field: &str,
    secret: &Secret,
    fits: fn(&str) -> bool,
    errors: &mut Vec<FieldError>,
) {
    let Secret::Plain(text) = secret else { return };
    let text = text.expose_secret();
    if text.is_empty() || text.len() > MAX_CREDENTIAL_BYTES {
        errors.push(FieldError::new(
            field,
            format!("must be 1 to {MAX_CREDENTIAL_BYTES} bytes long; write the credential"),
        ));
    } else if !fits(text) {
        errors.push(FieldError::new(
            field,
            "contains a character that is invalid in HTTP headers (a line break at the end?); use visible ASCII",
        ));
    }
}

fn validate_url(field: &str, url: &url::Url, errors: &mut Vec<FieldError>) {
    let problem = if !matches!(url.scheme(), "http" | "https") {
        format!("unsupported scheme {:?}; write https://… or http://…", url.scheme())
    } else if !url.username().is_empty() || url.password().is_some() {
        "contains a user name or password; move them to delivery.auth with type \"basic\"".to_owned()
    } else if let Some(name) = credential_in_query(url) {
        let remedy = if field == "delivery.url" {
            "move it to delivery.auth, with type \"api_key\" and the name as \"query\""
        } else {
            "remove it, and use delivery.auth.client_secret"
        };
        format!(
            "contains the credential {name:?} in its query, but URLs are stored and shown in plain text; {remedy}"
        )
    } else if url.fragment().is_some() {
        "has a fragment (#…), which is never sent; remove it".to_owned()
    } else if url.as_str().len() > MAX_URL_BYTES {
        format!("is longer than {MAX_URL_BYTES} bytes; shorten it")
    } else {
        // The parser rejects http and https URLs without a host.
        return;
    };
    errors.push(FieldError::new(field, problem));
}
