//! A subscription's delivery settings, parsed and with opened secrets, ready for every attempt.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName,
    HeaderValue, InvalidHeaderName, InvalidHeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use hyper::http::uri::InvalidUri;
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Position, Url, form_urlencoded};

use super::clients::{self, ClientKey};
use super::error::text;
use super::signature::Signer;
use super::tls::{TlsError, TlsOptions};
use super::token::Oauth2Client;
use crate::domain::attempt::Attempt;
use crate::domain::outcome::Failure;
use crate::domain::subscription::{
    Auth, ContentMode, EndpointDelivery, Identity, Secret, is_credential_name,
};

pub(super) const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
pub(super) const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
pub(super) const WEBHOOK_ATTEMPT: HeaderName = HeaderName::from_static("webhook-attempt");
pub(super) const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
pub(super) const ATTRIBUTES_SIGNATURE: HeaderName = HeaderName::from_static("webhook-attributes-signature");
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

const AGENT: &str = concat!("integration-hub/", env!("CARGO_PKG_VERSION"));
const STRUCTURED: &str = "application/cloudevents+json; charset=UTF-8";
const TOKEN_URL: &str = "delivery.auth.token_url";
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Headers of the connection (RFC 9110 section 7.6.1), which a subscription cannot set.
const CONNECTION_HEADERS: [HeaderName; 7] =
    [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, TE, TRAILER, UPGRADE];

/// Opens a sealed credential of a subscription.
pub trait OpenSecret: Send + Sync {
    /// * `subscription`: the subscription of the credential
    /// * `field`: the path in the subscription, such as `delivery.auth.token`
    fn open(
        &self,
        subscription: &Identity,
        field: &str,
        sealed: &str,
    ) -> Result<SecretString, SecretNotOpened>;
}

/// Why a credential cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SecretNotOpened {
    #[error("no master key is set; set secrets.master_key to the key that sealed the credential")]
    NoMasterKey,
    /// The master key does not open it.
    #[error(transparent)]
    Sealed(Box<dyn std::error::Error + Send + Sync>),
}

/// The stored delivery settings are unusable.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{field}")]
    Sealed { field: String, source: SecretNotOpened },
    #[error("{0}: the URL must have the scheme http or https, and a host")]
    Url(&'static str),
    #[error("{field}: the URL is not valid in a request")]
    Uri { field: &'static str, source: InvalidUri },
    #[error("delivery.signing: the secret is not a valid whsec_ or whsk_ secret")]
    Signing,
    #[error("delivery.headers: {name:?} is not a valid header name")]
    HeaderName { name: String, source: InvalidHeaderName },
    #[error("delivery.headers: {name:?} belongs to the connection and cannot be set")]
    ConnectionHeader { name: String },
    /// Without the value, which may be a credential.
    #[error("{field}: the value is not valid in a header")]
    HeaderValue { field: String, source: InvalidHeaderValue },
    #[error("delivery.tls")]
    Tls(#[from] TlsError),
}

impl TargetError {
    /// The attempt that fails because of it, with the field and the problem.
    pub fn attempt(&self) -> Attempt {
        match self {
            Self::Sealed { .. } => Attempt::failed(Failure::Sealed),
            Self::Url(_)
            | Self::Uri { .. }
            | Self::Signing
            | Self::HeaderName { .. }
            | Self::ConnectionHeader { .. }
            | Self::HeaderValue { .. }
            | Self::Tls(_) => Attempt::failed_because(Failure::Request, text(self)),
        }
    }
}

/// Where and how the envelopes of one subscription are sent. Holds opened credentials; `Debug` shows none. Takes two to
/// three kilobytes.
pub struct Target {
    /// The URL, with the query parameter of an API key.
    pub(super) uri: Uri,
    /// The address, if the URL's host is one.
    pub(super) literal: Option<IpAddr>,
    pub(super) headers: HeaderMap,
    pub(super) content_mode: ContentMode,
    pub(super) timeout: Duration,
    pub(super) signing: Option<Signer>,
    pub(super) oauth2: Option<Oauth2Client>,
    pub(super) tls: Option<TlsOptions>,
    /// The client that sends the requests.
    pub(super) client: ClientKey,
    /// Credentials in the form they are sent, and shared secrets (of signing, of an OAuth2 client), to redact them in
    /// answers.
    pub(super) secrets: Vec<SecretString>,
}

impl Target {
    /// Prepares the `delivery` settings of a subscription.
    pub fn prepare(
        subscription: &Identity,
        delivery: &EndpointDelivery,
        opener: &dyn OpenSecret,
    ) -> Result<Self, TargetError> {
        let mut delivery = delivery.clone();
        for (field, secret) in delivery.named_secrets_mut() {
            if let Secret::Sealed(sealed) = &*secret {
                let opened = opener
                    .open(subscription, &field, sealed)
                    .map_err(|source| TargetError::Sealed { field: field.to_string(), source })?;
                *secret = Secret::Plain(opened);
            }
        }
        let delivery = &delivery;
        let open = |secret: &Secret| match secret {
            Secret::Plain(plain) => Ok(plain.clone()),
            // Not reached: all secrets were opened above.
            Secret::Sealed(_) => {
                let source = SecretNotOpened::NoMasterKey;
                Err(TargetError::Sealed { field: "delivery".to_owned(), source })
            }
        };
        let signing = match &delivery.signing {
            Some(signing) => Some(Signer::new(signing).ok_or(TargetError::Signing)?),
            None => None,
        };
        let tls = match &delivery.tls {
            Some(tls) => {
                let key = tls.key.as_ref().map(open).transpose()?;
                Some(TlsOptions::new(tls, key.as_ref())?)
            }
            None => None,
        };
        let mut url = delivery.url.clone();
        let mut target = Self {
            literal: literal("delivery.url", &delivery.url)?,
            uri: Uri::default(),
            headers: headers(delivery, signing.is_some())?,
            content_mode: delivery.content_mode,
            timeout: delivery.timeout,
            signing,
            oauth2: None,
            client: clients::key(subscription.subscription.tenant(), tls.as_ref()),
            tls,
            secrets: Vec::new(),
        };
        for (name, secret) in &delivery.secret_headers {
            let value = open(secret)?;
            let field = || format!("delivery.secret_headers.{name}");
            target.headers.insert(header_name(name)?, credential(field, value.expose_secret())?);
            target.secrets.push(value);
        }
        if let Some(signing) = &delivery.signing {
            let previous = signing.previous.as_ref().map(|previous| &previous.secret);
            for secret in [Some(&signing.secret), previous].into_iter().flatten() {
                target.secrets.push(open(secret)?);
            }
        }
        let in_clear = delivery.headers.iter().filter(|(name, _)| is_credential_name(name));
        target.secrets.extend(in_clear.map(|(_, value)| SecretString::from(value.as_str())));
        match &delivery.auth {
            Auth::None => {}
            Auth::ApiKey { header, query, key } => {
                let key = open(key)?;
                match query {
                    Some(name) => {
                        url.query_pairs_mut().append_pair(name, key.expose_secret());
                        // Both forms of a space, `+` and `%20`.
                        let encoded: String =
                            form_urlencoded::byte_serialize(key.expose_secret().as_bytes()).collect();
                        target.secrets.push(encoded.replace('+', "%20").into());
                        target.secrets.push(encoded.into());
                    }
                    None => {
                        let name = match header {
                            Some(name) => HeaderName::try_from(name).map_err(|source| {
                                TargetError::HeaderName { name: name.to_string(), source }
                            })?,
                            None => API_KEY,
                        };
                        let field = || "delivery.auth.key".to_owned();
                        target.headers.insert(name, credential(field, key.expose_secret())?);
                    }
                }
                target.secrets.push(key);
            }
            Auth::Basic { username, password } => {
                let password = open(password)?;
                let pair = STANDARD.encode(format!("{username}:{}", password.expose_secret()));
                let field = || "delivery.auth.password".to_owned();
                target.headers.insert(AUTHORIZATION, credential(field, &format!("Basic {pair}"))?);
                target.secrets.extend([pair.into(), password]);
            }
            Auth::Bearer { token } => {
                let token = open(token)?;
                let field = || "delivery.auth.token".to_owned();
                let value = credential(field, &format!("Bearer {}", token.expose_secret()))?;
                target.headers.insert(AUTHORIZATION, value);
                target.secrets.push(token);
            }
            Auth::Oauth2 {
                token_url,
                client_id,
                client_secret,
                scopes,
                audience,
                client_auth,
                token_type,
            } => {
                // An entry for the token, so that the map does not grow later.
                target.headers.insert(AUTHORIZATION, HeaderValue::from_static(""));
                let client_secret = open(client_secret)?;
                target.oauth2 = Some(Oauth2Client::new(
                    subscription,
                    (token_url, uri(TOKEN_URL, token_url)?, literal(TOKEN_URL, token_url)?),
                    client_id,
                    &client_secret,
                    (scopes, audience.as_deref()),
                    (*client_auth, *token_type),
                    target.tls.as_ref(),
                ));
                target.secrets.push(client_secret);
            }
        }
        target.uri = uri("delivery.url", &url)?;
        Ok(target)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the headers or the query, which may hold a credential.
        f.debug_struct("Target").field("host", &self.uri.host()).finish_non_exhaustive()
    }
}

/// The headers of every attempt, with empty entries for the headers that each attempt sets.
fn headers(delivery: &EndpointDelivery, signed: bool) -> Result<HeaderMap, TargetError> {
    let mut headers = HeaderMap::with_capacity(delivery.headers.len() + delivery.secret_headers.len() + 10);
    for (name, value) in &delivery.headers {
        // Older versions accepted credentials here: they are hidden too.
        let parsed = if is_credential_name(name) { sensitive(value) } else { HeaderValue::from_str(value) };
        let parsed = parsed.map_err(|source| TargetError::HeaderValue {
            field: format!("delivery.headers.{name}"),
            source,
        })?;
        headers.insert(header_name(name)?, parsed);
    }
    let place = HeaderValue::from_static("");
    headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(STRUCTURED));
    for name in [WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_ATTEMPT, TRACEPARENT] {
        headers.insert(name, place.clone());
    }
    headers.remove(SIGNATURE);
    if signed {
        headers.insert(SIGNATURE, place);
    }
    headers.remove(ATTRIBUTES_SIGNATURE);
    Ok(headers)
}

/// Parses the name of a header that a subscription may set.
fn header_name(name: &str) -> Result<HeaderName, TargetError> {
    let header = HeaderName::try_from(name)
        .map_err(|source| TargetError::HeaderName { name: name.to_owned(), source })?;
    if CONNECTION_HEADERS.contains(&header) {
        return Err(TargetError::ConnectionHeader { name: name.to_owned() });
    }
    Ok(header)
}

/// The address in a URL whose host is one, in any form that the URL standard allows (`http://2130706433/`,
/// `http://0x7f.1/`).
fn literal(field: &'static str, url: &Url) -> Result<Option<IpAddr>, TargetError> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(TargetError::Url(field));
    }
    match url.host() {
        Some(Host::Ipv4(address)) => Ok(Some(address.into())),
        Some(Host::Ipv6(address)) => Ok(Some(address.into())),
        Some(Host::Domain(_)) => Ok(None),
        None => Err(TargetError::Url(field)),
    }
}

/// The URL as it is sent, without a fragment.
fn uri(field: &'static str, url: &Url) -> Result<Uri, TargetError> {
    Uri::try_from(&url[..Position::AfterQuery]).map_err(|source| TargetError::Uri { field, source })
}

/// A header value that `Debug` and [`SentRequest`](super::SentRequest) hide.
pub(super) fn sensitive(text: &str) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(text)?;
    value.set_sensitive(true);
    Ok(value)
}

fn credential(field: impl FnOnce() -> String, text: &str) -> Result<HeaderValue, TargetError> {
    sensitive(text).map_err(|source| TargetError::HeaderValue { field: field(), source })
}
