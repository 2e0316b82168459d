//! Delivery by HTTP: one attempt at a time, with its credentials and its signature, to addresses
//! that deliveries may reach. The only importer of the HTTP client.
//!
//! What an outcome leads to (retry, dead letter) is not decided here: see `domain::outcome`.

mod answer;
pub mod bare;
mod body;
mod client;
mod clients;
mod failure;
mod grant;
mod guard;
mod meter;
pub mod signature;
mod target;
pub mod tls;
mod token;
mod trace;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use secrecy::ExposeSecret;
use tokio::time::timeout_at;
use url::{Position, Url};

pub use crate::domain::address::AddressPolicy;
pub use crate::domain::attempt::Attempt;
pub use target::{OpenSecret, Target, Unopened};

use crate::domain::event::binary_parts;
use crate::domain::outcome::{Failure, Outcome};
use crate::domain::redact;
use crate::domain::subscription::ContentMode;
use client::Client;
use clients::Clients;
use failure::{Broken, broken};
use target::{ATTRIBUTES_SIGNATURE, SIGNATURE, TRACEPARENT, WEBHOOK_ATTEMPT, WEBHOOK_ID, WEBHOOK_TIMESTAMP};
use tls::TlsOptions;
use token::{Token, Tokens};

/// How deliveries are made, whatever the subscription.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    pub addresses: AddressPolicy,
    /// Name resolution, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Most bytes read of an answer's body.
    pub response_limit: usize,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            addresses: AddressPolicy::default(),
            connect_timeout: Duration::from_secs(5),
            response_limit: 64 * 1024,
        }
    }
}

/// Makes deliveries. A clone shares connections and tokens.
#[derive(Clone)]
pub struct HttpDelivery {
    inner: Arc<Inner>,
}

struct Inner {
    config: HttpConfig,
    tokens: Tokens,
    clients: Clients,
}

/// What of an envelope one attempt needs.
#[derive(Debug, Clone)]
pub struct EnvelopeView<'a> {
    pub id: &'a str,
    /// The event in the CloudEvents JSON format: the body in structured mode, sent as it stands.
    pub event: Bytes,
    /// The event's own `traceparent`, if it has one.
    pub traceparent: Option<&'a str>,
}

/// A request as it went out, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Names and values; a credential shows as `***`.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Sent {
    fn new(headers: &HeaderMap, body: &Bytes) -> Self {
        let shown = |value: &HeaderValue| {
            if value.is_sensitive() {
                "***".to_owned()
            } else {
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            }
        };
        let headers = headers.iter().map(|(name, value)| (name.to_string(), shown(value))).collect();
        Self { headers, body: body.clone() }
    }
}

impl HttpDelivery {
    pub fn new(config: HttpConfig) -> Self {
        Self { inner: Arc::new(Inner { config, tokens: Tokens::default(), clients: Clients::default() }) }
    }

    /// Sends one envelope to its endpoint and reads the answer, within the target's timeout. The outcome is that of
    /// the answer's status and headers: its body may break off or never end.
    ///
    /// `attempt` is what `webhook-attempt` says, from 1. Dropping the future ends the attempt.
    pub async fn attempt(&self, target: &Target, envelope: &EnvelopeView<'_>, attempt: u32) -> Attempt {
        self.attempt_with(target, envelope, attempt, None).await
    }

    /// The same, and what was sent (last): for an operator who tries an endpoint out. None where
    /// no request was made.
    pub async fn attempt_and_tell(
        &self,
        target: &Target,
        envelope: &EnvelopeView<'_>,
        attempt: u32,
    ) -> (Option<Sent>, Attempt) {
        let mut sent = None;
        let attempt = self.attempt_with(target, envelope, attempt, Some(&mut sent)).await;
        (sent, attempt)
    }

    async fn attempt_with(
        &self,
        target: &Target,
        envelope: &EnvelopeView<'_>,
        attempt: u32,
        sent: Option<&mut Option<Sent>>,
    ) -> Attempt {
        let started = Instant::now();
        let deadline = tokio::time::Instant::from_std(started) + target.timeout;
        let exchange = self.inner.exchange(target, envelope, attempt, sent);
        let (outcome, answer_excerpt, detail) = match timeout_at(deadline, exchange).await {
            Ok(Ok((response, token))) => {
                let (limit, secrets) = (self.inner.config.response_limit, &target.secrets);
                let answer = answer::read(response, limit, deadline, secrets, token.as_deref()).await;
                (answer.outcome, answer.excerpt, None)
            }
            // What it says counts, whatever is wrong with the rest.
            Ok(Err(Broken { status: Some(status), .. })) => {
                (Outcome::Answered { status, retry_after: None }, None, None)
            }
            Ok(Err(Broken { failure, detail, .. })) => {
                // What the layer below quotes of an answer, or a token endpoint says.
                let token = target.oauth2.as_ref().and_then(|client| client.token());
                let secrets = target.secrets.iter().chain(token.as_ref().map(|token| &token.secret));
                let secrets: Vec<&str> = secrets.map(|secret| secret.expose_secret()).collect();
                (Outcome::Failed(failure), None, detail.map(|detail| redact::whole(&detail, secrets)))
            }
            Err(_) => {
                let detail = format!("no answer within {}", humantime::format_duration(target.timeout));
                (Outcome::Failed(Failure::Timeout), None, Some(detail))
            }
        };
        Attempt { outcome, latency: started.elapsed(), answer_excerpt, detail }
    }
}

impl Inner {
    /// Sends the envelope, and returns as soon as the head of the answer is there, with the token that was sent.
    async fn exchange(
        &self,
        target: &Target,
        envelope: &EnvelopeView<'_>,
        attempt: u32,
        mut sent: Option<&mut Option<Sent>>,
    ) -> Result<(client::Answer, Option<Arc<Token>>), Broken> {
        let mut tell = |headers: &HeaderMap, body: &Bytes| {
            if let Some(sent) = &mut sent {
                **sent = Some(Sent::new(headers, body));
            }
        };
        self.check_literal(target.literal)?;
        let (mut headers, body) = prepare(target, envelope, attempt)?;
        let Some(client) = &target.oauth2 else {
            tell(&headers, &body);
            return Ok((self.send(target, headers, body).await?, None));
        };

        let token = self.tokens.get(self, client).await?;
        headers.insert(AUTHORIZATION, token.header.clone());
        tell(&headers, &body);
        let response = self.send(target, headers, body).await?;
        if !matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Ok((response, Some(token)));
        }
        // The token was revoked, is too old, or lacks what the client was granted since: once more with a new one.
        self.tokens.invalidate(client, &token);
        answer::discard(response, self.config.response_limit).await;
        let token: Arc<Token> = self.tokens.get(self, client).await?;
        let (mut headers, body) = prepare(target, envelope, attempt)?;
        headers.insert(AUTHORIZATION, token.header.clone());
        tell(&headers, &body);
        Ok((self.send(target, headers, body).await?, Some(token)))
    }

    async fn send(&self, target: &Target, headers: HeaderMap, body: Bytes) -> Result<client::Answer, Broken> {
        let request = request(&target.url, headers, body)?;
        self.client_of(&target.client, target.tls.as_ref())?.send(request).await.map_err(broken)
    }

    /// The client of a tenant, and of a subscription's own TLS. Cheap: a client is a handle.
    fn client_of(&self, key: &clients::Key, tls: Option<&TlsOptions>) -> Result<Client, Broken> {
        self.clients.get(&self.config, key, tls)
    }

    /// The client connects to an address in the URL without asking the resolver, and so the guard.
    fn check_literal(&self, literal: Option<IpAddr>) -> Result<(), Broken> {
        match literal {
            Some(address) if !self.config.addresses.permits(address) => {
                Err(guard::AddressRefused { host: address.to_string() }.into())
            }
            _ => Ok(()),
        }
    }
}

/// Headers and body of one attempt. The target's headers already hold a place for each that is set
/// here, so that the map is copied once and does not grow.
fn prepare(target: &Target, envelope: &EnvelopeView<'_>, attempt: u32) -> Result<(HeaderMap, Bytes), Broken> {
    let unusable = |what: &str| Broken::new(Failure::Request, Some(what.to_owned()));
    let mut headers = target.headers.clone();
    let mut body = envelope.event.clone();
    if target.content_mode == ContentMode::Binary {
        let event = std::str::from_utf8(&envelope.event).map_err(|_| unusable("the event is not UTF-8"))?;
        let parts = binary_parts(event).map_err(|problem| unusable(&problem.to_string()))?;
        let value_of = |text: String, of: &str| {
            HeaderValue::from_maybe_shared(Bytes::from(text))
                .map_err(|_| unusable(&format!("the event's {of} cannot be a header")))
        };
        for (name, value) in parts.headers {
            let value = value_of(value, &name)?;
            let name =
                HeaderName::try_from(name).map_err(|_| unusable("an attribute's name is no header"))?;
            headers.insert(name, value);
        }
        match parts.content_type {
            Some(content_type) => headers.insert(CONTENT_TYPE, value_of(content_type, "datacontenttype")?),
            None => headers.remove(CONTENT_TYPE),
        };
        body = Bytes::from(parts.body);
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let id = HeaderValue::from_str(envelope.id)
        .map_err(|_| unusable("the envelope's id holds characters that no header may"))?;
    headers.insert(TRACEPARENT, trace::parent(envelope.traceparent));
    headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(now));
    headers.insert(WEBHOOK_ATTEMPT, HeaderValue::from(attempt));
    if let Some(signer) = &target.signing {
        headers.insert(SIGNATURE, signer.sign(envelope.id, now, &body));
        if target.content_mode == ContentMode::Binary {
            let signature = signer.sign_attributes(envelope.id, now, &headers);
            headers.insert(ATTRIBUTES_SIGNATURE, signature);
        }
    }
    headers.insert(WEBHOOK_ID, id);
    Ok((headers, body))
}

/// A `POST`. `Failure::Request` where the URL cannot be written in a request.
fn request(url: &Url, headers: HeaderMap, body: Bytes) -> Result<Request<Full<Bytes>>, Broken> {
    let uri = Uri::try_from(&url[..Position::AfterQuery])
        .map_err(|error| Broken::new(Failure::Request, Some(error.to_string())))?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

#[cfg(test)]
mod tests;
