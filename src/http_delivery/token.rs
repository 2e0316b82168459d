//! OAuth2 client credentials (RFC 6749 section 4.4): a token is fetched once for all waiting deliveries, kept while it is
//! valid, and renewed before it expires.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use url::{Url, form_urlencoded};

use super::begun_answer::BegunAnswer;
use super::clients::ClientKey;
use super::error::{DeliveryError, InvalidRequest};
use super::target::sensitive;
use super::tls::TlsOptions;
use super::token_response::TokenRefusal;
use super::{Inner, body, clients, response, token_response};
use crate::domain::subscription::{ClientAuth, Identity, TokenType};
use crate::domain::words::span;
use crate::facts::{Metrics, TokenRequested, TokenResult};

/// Maximum number of tokens; above it, tokens that no target uses are dropped first.
const MOST_TOKENS: usize = 10_000;
/// Time limit for one request to a token endpoint, independent of the delivery's timeout.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of a token endpoint's answer, in bytes.
const ANSWER_LIMIT: usize = 64 * 1024;
/// Time limit for the body of a token endpoint's answer.
const BODY_TIME: Duration = Duration::from_secs(5);
/// Wait after a failed renewal while the token is still valid.
const RENEW_AGAIN: Duration = Duration::from_secs(5);

/// Digest that identifies a token by subscription, URL, secret, scopes and audience.
type TokenKey = [u8; 32];

/// A token could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    #[error("the token endpoint did not answer within {}", span(FETCH_TIMEOUT))]
    Timeout,
    #[error("token endpoint")]
    Request(#[source] hyper_util::client::legacy::Error),
    /// A credential in a compressed body cannot be found and redacted.
    #[error("the token endpoint answered {status} with a compressed body, which the request does not accept")]
    Compressed { status: u16 },
    #[error(transparent)]
    Refused(#[from] TokenRefusal),
}

/// The OAuth2 part of a target: the request to its token endpoint.
pub(super) struct Oauth2Client {
    key: TokenKey,
    uri: Uri,
    literal: Option<IpAddr>,
    /// `Basic …`, for `client_secret_basic`.
    authorization: Option<SecretString>,
    form: SecretString,
    /// The secrets of the request in the forms they are sent in, to redact them in answers.
    sent_secrets: Vec<SecretString>,
    token_type: TokenType,
    tls: Option<TlsOptions>,
    /// The client that sends the request.
    http: ClientKey,
    slot: OnceLock<Arc<Slot>>,
}

pub(super) struct Token {
    /// `Bearer …`
    pub(super) header: HeaderValue,
    pub(super) secret: SecretString,
    got_at: Instant,
    renew_at: Instant,
    expires_at: Instant,
}

/// All tokens of one process, each in the slot of its key.
#[derive(Default)]
pub(super) struct Tokens {
    slots: Mutex<HashMap<TokenKey, Arc<Slot>>>,
    metrics: OnceLock<Metrics>,
}

#[derive(Default)]
struct Slot {
    current: RwLock<Option<Arc<Token>>>,
    /// Locked by the delivery that fetches. Holds the time and the error of the last failed fetch, for the deliveries that
    /// waited for it.
    fetch: tokio::sync::Mutex<Option<(Instant, DeliveryError)>>,
}

impl Oauth2Client {
    pub(super) fn new(
        subscription: &Identity,
        (url, uri, literal): (&Url, Uri, Option<IpAddr>),
        client_id: &str,
        client_secret: &SecretString,
        (scopes, audience): (&[String], Option<&str>),
        (client_auth, token_type): (ClientAuth, TokenType),
        tls: Option<&TlsOptions>,
    ) -> Self {
        let tls = tls.map(TlsOptions::of_token_endpoint);
        let http = clients::key(subscription.subscription.tenant(), tls.as_ref());
        let subscription = subscription.to_string();
        let secret = client_secret.expose_secret();
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if !scopes.is_empty() {
            form.append_pair("scope", &scopes.join(" "));
        }
        if let Some(audience) = audience {
            form.append_pair("audience", audience);
        }
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let mut sent_secrets = vec![client_secret.clone(), encoded(secret).into()];
        let authorization = match client_auth {
            ClientAuth::ClientSecretBasic => {
                // Section 2.3.1: both are form-encoded before they are joined.
                let pair = STANDARD.encode(format!("{}:{}", encoded(client_id), encoded(secret)));
                sent_secrets.insert(0, pair.clone().into());
                Some(SecretString::from(format!("Basic {pair}")))
            }
            ClientAuth::ClientSecretPost => {
                form.append_pair("client_id", client_id);
                form.append_pair("client_secret", secret);
                None
            }
        };
        let form = SecretString::from(form.finish());
        let mut digest = Sha256::new();
        let parts = [
            subscription.as_str(),
            url.as_str(),
            form.expose_secret(),
            authorization.as_ref().map_or("", |value| value.expose_secret()),
        ];
        for part in parts {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        if let Some(tls) = &tls {
            digest.update(tls.key());
        }
        digest.update([u8::from(token_type == TokenType::Bearer)]);
        Self {
            key: digest.finalize().into(),
            uri,
            literal,
            authorization,
            form,
            sent_secrets,
            token_type,
            tls,
            http,
            slot: OnceLock::new(),
        }
    }
}

impl Oauth2Client {
    /// The current token, valid or not.
    pub(super) fn token(&self) -> Option<Arc<Token>> {
        self.slot.get()?.current()
    }
}

impl Tokens {
    /// Returns a valid token: the current one, or a new one. While one delivery fetches, the others wait for its result,
    /// a token or an error.
    pub(super) async fn get(&self, http: &Inner, client: &Oauth2Client) -> Result<Arc<Token>, DeliveryError> {
        let slot = client.slot.get_or_init(|| self.slot(client.key));
        let asked = Instant::now();
        let mut fetch = match slot.current().filter(|token| asked < token.expires_at) {
            Some(token) if asked < token.renew_at => return Ok(token),
            Some(token) => match slot.fetch.try_lock() {
                Ok(fetch) => fetch,
                // Another delivery renews it; it is valid until then.
                Err(_) => return Ok(token),
            },
            None => slot.fetch.lock().await,
        };
        // Fetched while this delivery waited: used even if it expires soon.
        if let Some(token) = slot.current().filter(|token| token.got_at >= asked) {
            return Ok(token);
        }
        if let Some((at, failure)) = &*fetch
            && *at >= asked
        {
            return Err(failure.clone());
        }

        let fetched = match tokio::time::timeout(FETCH_TIMEOUT, request(http, client)).await {
            Ok(fetched) => fetched,
            Err(_) => Err(TokenError::Timeout.into()),
        };
        self.count(&fetched);
        let before = slot.current().filter(|token| Instant::now() < token.expires_at);
        match (fetched, before) {
            (Ok(token), _) => {
                let token = Arc::new(token);
                slot.set(Some(token.clone()));
                *fetch = None;
                Ok(token)
            }
            (Err(_), Some(good)) => {
                let good = Arc::new(Token {
                    header: good.header.clone(),
                    secret: good.secret.clone(),
                    got_at: good.got_at,
                    renew_at: Instant::now() + RENEW_AGAIN,
                    expires_at: good.expires_at,
                });
                slot.set(Some(good.clone()));
                Ok(good)
            }
            (Err(failure), None) => {
                *fetch = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Counts the requests of tokens from now on. Only the first call has an effect.
    pub(super) fn count_in(&self, metrics: Metrics) {
        let _ = self.metrics.set(metrics);
    }

    fn count(&self, fetched: &Result<Token, DeliveryError>) {
        let result = match fetched {
            Ok(_) => TokenResult::Issued,
            Err(error) if error.is_silent_token_endpoint() => TokenResult::Unreachable,
            Err(_) => TokenResult::Refused,
        };
        if let Some(metrics) = self.metrics.get() {
            TokenRequested { result }.emit(metrics);
        }
    }

    /// Drops `token`, unless it was replaced already.
    pub(super) fn invalidate(&self, client: &Oauth2Client, token: &Arc<Token>) {
        let Some(slot) = client.slot.get() else { return };
        let mut current = slot.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, token)) {
            *current = None;
        }
    }

    fn slot(&self, key: TokenKey) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MOST_TOKENS && !slots.contains_key(&key) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
            // All are in use: drop one from the map; its target keeps it, but no longer shares it.
            if slots.len() >= MOST_TOKENS
                && let Some(any) = slots.keys().next().copied()
            {
                slots.remove(&any);
            }
        }
        slots.entry(key).or_default().clone()
    }
}

impl Slot {
    fn current(&self) -> Option<Arc<Token>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, token: Option<Arc<Token>>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = token;
    }
}

async fn request(http: &Inner, client: &Oauth2Client) -> Result<Token, DeliveryError> {
    http.check_literal(client.literal)?;
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    if let Some(authorization) = &client.authorization {
        let value = sensitive(authorization.expose_secret()).map_err(InvalidRequest::Credential)?;
        headers.insert(AUTHORIZATION, value);
    }
    let request = super::request(client.uri.clone(), headers, client.form.expose_secret().to_owned().into());
    let asked = Instant::now();
    let sent =
        http.client_of(&client.http, client.tls.as_ref())?.send(request, &mut BegunAnswer::default()).await;
    let response = sent.map_err(|error| TokenError::Request(error.error))?;

    let status = response.status();
    if response::is_encoded(response.headers()) {
        return Err(TokenError::Compressed { status: status.as_u16() }.into());
    }
    // A body that breaks off may still hold the complete answer.
    let deadline = tokio::time::Instant::now() + BODY_TIME;
    let body = body::read(response, ANSWER_LIMIT, ANSWER_LIMIT, deadline).await;
    let granted = token_response::read(status.as_u16(), &body, client.token_type)
        .map_err(|refusal| TokenError::from(refusal.redacted(&client.sent_secrets)))?;
    // Cannot fail: every character was checked.
    let header = sensitive(&format!("Bearer {}", granted.token.expose_secret()))
        .map_err(InvalidRequest::Credential)?;
    Ok(Token {
        header,
        secret: granted.token,
        got_at: Instant::now(),
        renew_at: asked + renew_after(granted.lifetime),
        expires_at: asked + granted.lifetime,
    })
}

/// 30 seconds before the token expires, or after four fifths of a short lifetime.
fn renew_after(lifetime: Duration) -> Duration {
    lifetime - (lifetime / 5).min(Duration::from_secs(30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_it_expires() {
        let renewed = |lifetime| renew_after(Duration::from_secs(lifetime)).as_secs();
        assert_eq!([3600, 150, 60, 10, 0].map(renewed), [3570, 120, 48, 8, 0]);
    }

    #[test]
    fn kept_tokens_are_bounded() {
        let tokens = Tokens::default();
        let key = |number: usize| -> TokenKey { Sha256::digest(number.to_be_bytes()).into() };
        let held: Vec<Arc<Slot>> = (0..MOST_TOKENS).map(|number| tokens.slot(key(number))).collect();
        tokens.slot(key(MOST_TOKENS));
        let count = || tokens.slots.lock().unwrap().len();
        assert_eq!(count(), MOST_TOKENS);
        drop(held);
        tokens.slot(key(MOST_TOKENS + 1));
        assert_eq!(count(), 1, "slots that no target uses were kept");
    }
}
