//! OAuth2 client credentials (RFC 6749 section 4.4): tokens fetched once however many deliveries
//! wait, kept while they are good, and renewed before they expire.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use url::{Url, form_urlencoded};

use super::Inner;
use super::failure::{Broken, broken};
use super::target::sensitive;
use super::tls::TlsOptions;
use crate::domain::outcome::Failure;
use crate::domain::subscription::ClientAuth;

/// Most tokens kept; beyond, those that no target uses go first.
const MOST_TOKENS: usize = 10_000;
/// One request to a token endpoint, whatever the delivery's own timeout.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a token endpoint's answer.
const ANSWER_LIMIT: usize = 64 * 1024;
/// Where the answer has no `expires_in`.
const ASSUMED_LIFETIME: Duration = Duration::from_secs(300);
/// A renewal that failed while the token is still good is tried again after this.
const RENEW_AGAIN: Duration = Duration::from_secs(5);

/// Identifies a token: another secret, scope or audience is another token.
type Key = [u8; 32];

/// The client half of a target: what is sent to its token endpoint.
pub(super) struct Oauth2Client {
    key: Key,
    url: Url,
    literal: Option<IpAddr>,
    /// `Basic …`, for `client_secret_basic`.
    authorization: Option<SecretString>,
    form: SecretString,
    tls: Option<TlsOptions>,
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
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    current: RwLock<Option<Arc<Token>>>,
    /// Held by the one delivery that fetches; holds what the last fetch failed with, and when, for
    /// those that waited for it.
    fetch: tokio::sync::Mutex<Option<(Instant, Broken)>>,
}

impl Oauth2Client {
    pub(super) fn new(
        subscription: &str,
        (url, literal): (Url, Option<IpAddr>),
        client_id: &str,
        client_secret: &SecretString,
        (scopes, audience): (&[String], Option<&str>),
        client_auth: ClientAuth,
        tls: Option<&TlsOptions>,
    ) -> Self {
        let tls = tls.map(TlsOptions::of_token_endpoint);
        let secret = client_secret.expose_secret();
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if !scopes.is_empty() {
            form.append_pair("scope", &scopes.join(" "));
        }
        if let Some(audience) = audience {
            form.append_pair("audience", audience);
        }
        let authorization = match client_auth {
            ClientAuth::ClientSecretBasic => {
                // Section 2.3.1: both are form-encoded before they are joined.
                let encoded =
                    |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                let pair = STANDARD.encode(format!("{}:{}", encoded(client_id), encoded(secret)));
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
            subscription,
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
        Self { key: digest.finalize().into(), url, literal, authorization, form, tls, slot: OnceLock::new() }
    }
}

impl Tokens {
    /// A token that is good now: the one at hand, or a new one. While one delivery fetches, the
    /// others wait for what it gets, good or bad.
    pub(super) async fn get(&self, http: &Inner, client: &Oauth2Client) -> Result<Arc<Token>, Broken> {
        let slot = client.slot.get_or_init(|| self.slot(client.key));
        let asked = Instant::now();
        let mut fetch = match slot.current().filter(|token| asked < token.expires_at) {
            Some(token) if asked < token.renew_at => return Ok(token),
            Some(token) => match slot.fetch.try_lock() {
                Ok(fetch) => fetch,
                // Being renewed; this one is good until then.
                Err(_) => return Ok(token),
            },
            None => slot.fetch.lock().await,
        };
        // Fetched while this delivery waited: good for it, even if it does not live long.
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
            Err(_) => Err(refused(format!(
                "the token endpoint did not answer within {}",
                humantime::format_duration(FETCH_TIMEOUT)
            ))),
        };
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

    /// Forgets `token`, unless another has taken its place meanwhile.
    pub(super) fn invalidate(&self, client: &Oauth2Client, token: &Arc<Token>) {
        let Some(slot) = client.slot.get() else { return };
        let mut current = slot.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, token)) {
            *current = None;
        }
    }

    fn slot(&self, key: Key) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MOST_TOKENS && !slots.contains_key(&key) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
            // All in use: one of them is only shared no longer, its target keeps it.
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

/// Section 5.1. `expires_in` is a number; some servers write it as a string.
#[derive(Deserialize)]
struct Granted {
    access_token: SecretString,
    #[serde(default)]
    token_type: Option<String>,
    #[serde(default)]
    expires_in: Option<Seconds>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(f64),
    Text(String),
}

/// Section 5.2: one of a few words.
#[derive(Deserialize)]
struct Refused {
    error: String,
}

async fn request(http: &Inner, client: &Oauth2Client) -> Result<Token, Broken> {
    http.check_literal(client.literal)?;
    let mut request = Request::new(Method::POST, client.url.clone());
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    if let Some(authorization) = &client.authorization {
        let value =
            sensitive(authorization.expose_secret()).map_err(|failure| Broken { failure, detail: None })?;
        headers.insert(AUTHORIZATION, value);
    }
    *request.body_mut() = Some(client.form.expose_secret().to_owned().into());
    let asked = Instant::now();
    let sent = http.client_of(client.tls.as_ref())?.execute(request);
    let mut response = sent.await.map_err(of_the_endpoint)?;

    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(of_the_endpoint)? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_LIMIT {
            return Err(refused(format!("the token endpoint answered more than {ANSWER_LIMIT} bytes")));
        }
    }
    if status != StatusCode::OK {
        // Only the error code: the rest of the body may repeat what was sent.
        let code = serde_json::from_slice::<Refused>(&body).ok().map(|refused| refused.error);
        let code =
            code.filter(|code| code.len() <= 64 && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        let code = code.map(|code| format!(": {code}")).unwrap_or_default();
        return Err(refused(format!("the token endpoint answered {}{code}", status.as_u16())));
    }
    let granted: Granted = serde_json::from_slice(&body)
        .map_err(|_| refused("the token endpoint's answer is not JSON with an access_token".to_owned()))?;
    if granted.token_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err(refused("the token endpoint gave a token that is not a bearer token".to_owned()));
    }
    let header = sensitive(&format!("Bearer {}", granted.access_token.expose_secret()))
        .map_err(|_| refused("the token endpoint gave a token that cannot be a header".to_owned()))?;
    let lifetime = lifetime(granted.expires_in);
    Ok(Token {
        header,
        secret: granted.access_token,
        got_at: Instant::now(),
        renew_at: asked + renew_after(lifetime),
        expires_at: asked + lifetime,
    })
}

fn lifetime(expires_in: Option<Seconds>) -> Duration {
    let seconds = match expires_in {
        Some(Seconds::Number(number)) => Some(number),
        Some(Seconds::Text(text)) => text.trim().parse().ok(),
        None => None,
    };
    // More than a day is asked for again daily.
    seconds.map_or(ASSUMED_LIFETIME, |seconds| Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0)))
}

/// 30 seconds before the end, or at four fifths of a short life.
fn renew_after(lifetime: Duration) -> Duration {
    lifetime - (lifetime / 5).min(Duration::from_secs(30))
}

fn refused(detail: String) -> Broken {
    Broken { failure: Failure::Token, detail: Some(detail) }
}

/// A token endpoint that cannot be reached is a token that cannot be had; but an address that may
/// not be reached stays what it is.
fn of_the_endpoint(error: reqwest::Error) -> Broken {
    let broken = broken(error);
    let failure = match broken.failure {
        Failure::AddressRefused => Failure::AddressRefused,
        _ => Failure::Token,
    };
    let detail = broken.detail.map(|detail| format!("token endpoint: {detail}"));
    Broken { failure, detail }
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
    fn expires_in_is_a_number_a_text_or_missing() {
        let read = |json: &str| {
            let granted: Granted = serde_json::from_str(&format!(r#"{{"access_token":"t"{json}}}"#)).unwrap();
            lifetime(granted.expires_in)
        };
        assert_eq!(read(r#","expires_in":3600"#), Duration::from_secs(3600));
        assert_eq!(read(r#","expires_in":"60""#), Duration::from_secs(60));
        assert_eq!(read(r#","expires_in":-1"#), Duration::ZERO);
        assert_eq!(read(r#","expires_in":1e300"#), Duration::from_secs(86_400));
        assert_eq!(read(""), ASSUMED_LIFETIME);
    }

    #[test]
    fn kept_tokens_are_bounded() {
        let tokens = Tokens::default();
        let key = |number: usize| -> Key { Sha256::digest(number.to_be_bytes()).into() };
        let held: Vec<Arc<Slot>> = (0..MOST_TOKENS).map(|number| tokens.slot(key(number))).collect();
        tokens.slot(key(MOST_TOKENS));
        let count = || tokens.slots.lock().unwrap().len();
        assert_eq!(count(), MOST_TOKENS);
        drop(held);
        tokens.slot(key(MOST_TOKENS + 1));
        assert_eq!(count(), 1, "slots that no target uses were kept");
    }
}
