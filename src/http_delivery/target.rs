//! The prepared form of a subscription's delivery: parsed and opened once, used by every attempt.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName,
    HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url, form_urlencoded};

use super::clients;
use super::signature::Signer;
use super::tls::TlsOptions;
use super::token::Oauth2Client;
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
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// What the connection itself is made of (RFC 9110 section 7.6.1): not a subscription's to set.
const OF_THE_CONNECTION: [HeaderName; 7] =
    [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, TE, TRAILER, UPGRADE];

/// Opens a sealed credential of a subscription.
pub trait OpenSecret: Send + Sync {
    /// * `subscription`: whose credential it is
    /// * `field`: its path there, such as `delivery.auth.token`
    fn open(&self, subscription: &Identity, field: &str, sealed: &str) -> Result<SecretString, Unopened>;
}

/// The credential does not open: no master key, or another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the credential does not open with the master key of this process")]
pub struct Unopened;

/// Where and how one subscription's envelopes are sent. Holds its credentials in the open; `Debug`
/// shows none. Costs two to three kilobytes.
pub struct Target {
    pub(super) url: Url,
    /// The address, where the URL's host is one.
    pub(super) literal: Option<IpAddr>,
    pub(super) headers: HeaderMap,
    pub(super) content_mode: ContentMode,
    pub(super) timeout: Duration,
    pub(super) signing: Option<Signer>,
    pub(super) oauth2: Option<Oauth2Client>,
    pub(super) tls: Option<TlsOptions>,
    /// Whose connections it uses.
    pub(super) client: clients::Key,
    /// What is sent as a credential, in the form it is sent, and what the other side knows as well (a
    /// signing secret, a client's secret): never to be kept of an answer.
    pub(super) secrets: Vec<SecretString>,
}

impl Target {
    /// Prepares `delivery` of the subscription.
    ///
    /// `Failure::Sealed` where a credential does not open, `Failure::Request` where no request can
    /// be made of the settings (a header, a scheme, a signing secret that is none).
    pub fn prepare(
        subscription: &Identity,
        delivery: &EndpointDelivery,
        opener: &dyn OpenSecret,
    ) -> Result<Self, Failure> {
        let mut delivery = delivery.clone();
        for (field, secret) in delivery.named_secrets_mut() {
            if let Secret::Sealed(sealed) = &*secret {
                let opened = opener.open(subscription, &field, sealed).map_err(|_| Failure::Sealed)?;
                *secret = Secret::Plain(opened);
            }
        }
        let delivery = &delivery;
        let open = |secret: &Secret| match secret {
            Secret::Plain(plain) => Ok(plain.clone()),
            Secret::Sealed(_) => Err(Failure::Sealed),
        };
        let signing = match &delivery.signing {
            Some(signing) => Some(Signer::new(signing).ok_or(Failure::Request)?),
            None => None,
        };
        let tls = match &delivery.tls {
            Some(tls) => {
                let key = tls.key.as_ref().map(open).transpose()?;
                Some(TlsOptions::new(tls, key.as_ref())?)
            }
            None => None,
        };
        let mut target = Self {
            literal: literal(&delivery.url)?,
            url: delivery.url.clone(),
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
            let name = header_name(name)?;
            target.headers.insert(name, sensitive(value.expose_secret())?);
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
                        target.url.query_pairs_mut().append_pair(name, key.expose_secret());
                        // As it stands in the URL, and as others write it.
                        let encoded: String =
                            form_urlencoded::byte_serialize(key.expose_secret().as_bytes()).collect();
                        target.secrets.push(encoded.replace('+', "%20").into());
                        target.secrets.push(encoded.into());
                    }
                    None => {
                        let name = match header {
                            Some(name) => HeaderName::try_from(name).map_err(|_| Failure::Request)?,
                            None => API_KEY,
                        };
                        target.headers.insert(name, sensitive(key.expose_secret())?);
                    }
                }
                target.secrets.push(key);
            }
            Auth::Basic { username, password } => {
                let password = open(password)?;
                let pair = STANDARD.encode(format!("{username}:{}", password.expose_secret()));
                target.headers.insert(AUTHORIZATION, sensitive(&format!("Basic {pair}"))?);
                target.secrets.extend([pair.into(), password]);
            }
            Auth::Bearer { token } => {
                let token = open(token)?;
                let value = sensitive(&format!("Bearer {}", token.expose_secret()))?;
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
                // A place for the token, so that the map does not grow with it.
                target.headers.insert(AUTHORIZATION, HeaderValue::from_static(""));
                let client_secret = open(client_secret)?;
                target.oauth2 = Some(Oauth2Client::new(
                    subscription,
                    (token_url.clone(), literal(token_url)?),
                    client_id,
                    &client_secret,
                    (scopes, audience.as_deref()),
                    (*client_auth, *token_type),
                    target.tls.as_ref(),
                ));
                target.secrets.push(client_secret);
            }
        }
        Ok(target)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither headers nor the query: both may hold a credential.
        f.debug_struct("Target").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

/// The headers of every attempt, with a place for those that differ.
fn headers(delivery: &EndpointDelivery, signed: bool) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::with_capacity(delivery.headers.len() + delivery.secret_headers.len() + 10);
    for (name, value) in &delivery.headers {
        // Stored before such names were refused, and shown no more.
        let value = if is_credential_name(name) {
            sensitive(value)?
        } else {
            HeaderValue::from_str(value).map_err(|_| Failure::Request)?
        };
        headers.insert(header_name(name)?, value);
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

/// A header that is a subscription's to set.
fn header_name(name: &str) -> Result<HeaderName, Failure> {
    let name = HeaderName::try_from(name).map_err(|_| Failure::Request)?;
    if OF_THE_CONNECTION.contains(&name) { Err(Failure::Request) } else { Ok(name) }
}

/// The address in a URL whose host is one, in any of the forms that the URL standard reads
/// (`http://2130706433/`, `http://0x7f.1/`).
fn literal(url: &Url) -> Result<Option<IpAddr>, Failure> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Failure::Request);
    }
    match url.host() {
        Some(Host::Ipv4(address)) => Ok(Some(address.into())),
        Some(Host::Ipv6(address)) => Ok(Some(address.into())),
        Some(Host::Domain(_)) => Ok(None),
        None => Err(Failure::Request),
    }
}

pub(super) fn sensitive(text: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(text).map_err(|_| Failure::Request)?;
    value.set_sensitive(true);
    Ok(value)
}
