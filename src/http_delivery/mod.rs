//! Delivery over HTTP: makes one signed and authenticated attempt, to permitted addresses only. The only importer of
//! the HTTP client.
//!
//! `domain::outcome` decides what an outcome leads to (retry, dead letter).

mod address_guard;
mod begun_answer;
mod body;
mod client;
mod clients;
mod error;
mod meter;
mod response;
pub(crate) mod signature;
mod target;
pub(crate) mod tls;
mod token;
mod token_response;
mod trace_context;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use secrecy::ExposeSecret;
use tokio::time::timeout_at;

pub(crate) use crate::domain::address::AddressPolicy;
pub(crate) use crate::domain::attempt::Attempt;
pub(crate) use target::{OpenSecret, SecretNotOpened, Target};

use crate::domain::event::binary_parts;
use crate::domain::outcome::{Failure, Outcome};
use crate::domain::redact;
use crate::domain::subscription::ContentMode;
use crate::domain::words::span;
use crate::facts::Metrics;
use begun_answer::BegunAnswer;
use client::Client;
use clients::ClientKey;
use clients::Clients;
use error::{DeliveryError, InvalidRequest};
use target::{ATTRIBUTES_SIGNATURE, SIGNATURE, TRACEPARENT, WEBHOOK_ATTEMPT, WEBHOOK_ID, WEBHOOK_TIMESTAMP};
use tls::TlsOptions;
use token::{Oauth2Client, Token, Tokens};

/// Delivery settings that apply to all subscriptions.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    pub addresses: AddressPolicy,
    /// Limit for name resolution, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Maximum number of bytes read from an answer's body.
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

/// The clock of what endpoints compare with theirs.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    fn now(&self) -> SystemTime {
        (self.0)()
    }
}

/// That of this machine.
impl Default for Clock {
    fn default() -> Self {
        Self::new(SystemTime::now)
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
    clock: Clock,
}

/// The parts of an envelope that one attempt needs.
#[derive(Debug, Clone)]
pub struct EnvelopeView<'a> {
    pub id: &'a str,
    /// The event in the CloudEvents JSON format. In structured mode it is sent unchanged as the body.
    pub event: Bytes,
    /// The event's `traceparent`, if it has one.
    pub traceparent: Option<&'a str>,
}

/// A request as it was sent, for display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentRequest {
    /// Names and values; a credential is replaced by `***`.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl SentRequest {
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
        Self::with_clock(config, Clock::default())
    }

    pub fn with_clock(config: HttpConfig, clock: Clock) -> Self {
        let (tokens, clients) = (Tokens::default(), Clients::default());
        Self { inner: Arc::new(Inner { config, tokens, clients, clock }) }
    }

    /// Counts the requests of tokens in these metrics.
    pub fn counting(self, metrics: Metrics) -> Self {
        self.inner.tokens.count_in(metrics);
        self
    }

    /// Sends one envelope to its endpoint and reads the answer, within the target's timeout. The answer's status and
    /// headers decide the outcome, even if its body breaks off or never ends.
    ///
    /// `attempt` is the value of `webhook-attempt`, from 1. Dropping the future ends the attempt.
    pub async fn attempt(&self, target: &Target, envelope: &EnvelopeView<'_>, attempt: u32) -> Attempt {
        self.attempt_with(target, envelope, attempt, None).await
    }

    /// Like [`Self::attempt`], and returns the last request that was sent, for an operator who tests an endpoint. `None`
    /// if no request was sent.
    pub async fn attempt_and_capture(
        &self,
        target: &Target,
        envelope: &EnvelopeView<'_>,
        attempt: u32,
    ) -> (Option<SentRequest>, Attempt) {
        let mut sent = None;
        let attempt = self.attempt_with(target, envelope, attempt, Some(&mut sent)).await;
        (sent, attempt)
    }

    async fn attempt_with(
        &self,
        target: &Target,
        envelope: &EnvelopeView<'_>,
        attempt: u32,
        sent: Option<&mut Option<SentRequest>>,
    ) -> Attempt {
        let started = Instant::now();
        let deadline = tokio::time::Instant::from_std(started) + target.timeout;
        let mut begun = BegunAnswer::default();
        let exchange = self.inner.exchange(target, envelope, attempt, sent, &mut begun);
        let (outcome, answer_excerpt, detail) = match timeout_at(deadline, exchange).await {
            Ok(Ok((response, token))) => {
                let (limit, secrets) = (self.inner.config.response_limit, &target.secrets);
                let now = self.inner.clock.now();
                let answer = response::read(response, now, limit, deadline, secrets, token.as_deref()).await;
                match answer.outcome {
                    Outcome::Answered { status: status @ 200..300, .. }
                        if !begun.is_sent() && !Box::pin(begun.sent_until(deadline)).await =>
                    {
                        let detail = format!("it answered {status} before it took the whole request");
                        (Outcome::Failed(Failure::Broken), None, Some(detail))
                    }
                    outcome => (outcome, answer.excerpt, None),
                }
            }
            // The status counts, even if the rest of the head is invalid or missing.
            Ok(Err(DeliveryError { status: Some(status), .. })) => {
                (Outcome::Answered { status, retry_after: None }, None, None)
            }
            Ok(Err(error)) => {
                // The error may quote an answer, which may repeat a credential.
                let token = target.oauth2.as_ref().and_then(|client| client.token());
                let secrets = target.secrets.iter().chain(token.as_ref().map(|token| &token.secret));
                let secrets: Vec<&str> = secrets.map(|secret| secret.expose_secret()).collect();
                (Outcome::Failed(error.failure), None, Some(redact::whole(&error.detail(), secrets)))
            }
            Err(_) => match begun.status() {
                // A receiver that has begun a 2xx has the event.
                Some(status @ 200..300) => (Outcome::Answered { status, retry_after: None }, None, None),
                _ => {
                    let detail = format!("no answer within {}", span(target.timeout));
                    (Outcome::Failed(Failure::Timeout), None, Some(detail))
                }
            },
        };
        Attempt { outcome, latency: started.elapsed(), answer_excerpt, detail }
    }
}

impl Inner {
    /// Sends the envelope, and returns the answer as soon as its head is complete, with the token that was sent.
    async fn exchange(
        &self,
        target: &Target,
        envelope: &EnvelopeView<'_>,
        attempt: u32,
        sent: Option<&mut Option<SentRequest>>,
        begun: &mut BegunAnswer,
    ) -> Result<(client::HttpResponse, Option<Arc<Token>>), DeliveryError> {
        self.check_literal(target.literal)?;
        if let Some(client) = &target.oauth2 {
            return Box::pin(self.exchange_with_token(target, client, envelope, attempt, sent, begun)).await;
        }
        let (headers, body) = prepare(target, envelope, attempt, self.clock.now())?;
        if let Some(sent) = sent {
            *sent = Some(SentRequest::new(&headers, &body));
        }
        Ok((self.send(target, headers, body, begun).await?, None))
    }

    async fn exchange_with_token(
        &self,
        target: &Target,
        client: &Oauth2Client,
        envelope: &EnvelopeView<'_>,
        attempt: u32,
        mut sent: Option<&mut Option<SentRequest>>,
        begun: &mut BegunAnswer,
    ) -> Result<(client::HttpResponse, Option<Arc<Token>>), DeliveryError> {
        let prepared = || prepare(target, envelope, attempt, self.clock.now());
        let mut send = async |(mut headers, body): (HeaderMap, Bytes), token: &Token| {
            headers.insert(AUTHORIZATION, token.header.clone());
            if let Some(sent) = &mut sent {
                **sent = Some(SentRequest::new(&headers, &body));
            }
            self.send(target, headers, body, begun).await
        };
        let request = prepared()?;
        let token = self.tokens.get(self, client).await?;
        let response = send(request, &token).await?;
        if !matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Ok((response, Some(token)));
        }
        // The token was revoked, has expired, or lacks a scope that was granted later: retry once with a new one.
        self.tokens.invalidate(client, &token);
        response::discard(response, self.config.response_limit).await;
        let token: Arc<Token> = self.tokens.get(self, client).await?;
        Ok((send(prepared()?, &token).await?, Some(token)))
    }

    async fn send(
        &self,
        target: &Target,
        headers: HeaderMap,
        body: Bytes,
        begun: &mut BegunAnswer,
    ) -> Result<client::HttpResponse, DeliveryError> {
        let request = request(target.uri.clone(), headers, body);
        Ok(self.client_of(&target.client, target.tls.as_ref())?.send(request, begun).await?)
    }

    /// Returns the client for a tenant and a subscription's TLS options. Cheap: a client is a handle.
    fn client_of(&self, key: &ClientKey, tls: Option<&TlsOptions>) -> Result<Client, DeliveryError> {
        Ok(self.clients.get(&self.config, key, tls)?)
    }

    /// Checks an address in the URL. The client does not resolve it, so the resolver's guard does not see it.
    fn check_literal(&self, literal: Option<IpAddr>) -> Result<(), DeliveryError> {
        match literal {
            Some(address) if !self.config.addresses.permits(address) => {
                Err(address_guard::AddressRefused { host: address.to_string() }.into())
            }
            _ => Ok(()),
        }
    }
}

/// Builds the headers and the body of one attempt. The target's headers already have an entry for each header that is set
/// here, so that the map is copied once and does not grow.
fn prepare(
    target: &Target,
    envelope: &EnvelopeView<'_>,
    attempt: u32,
    now: SystemTime,
) -> Result<(HeaderMap, Bytes), InvalidRequest> {
    let mut headers = target.headers.clone();
    let mut body = envelope.event.clone();
    if target.content_mode == ContentMode::Binary {
        let parts = binary_parts(std::str::from_utf8(&envelope.event)?)?;
        let value_of = |text: String, attribute: &str| {
            HeaderValue::from_maybe_shared(Bytes::from(text))
                .map_err(|source| InvalidRequest::HeaderValue { attribute: attribute.to_owned(), source })
        };
        for (name, value) in parts.headers {
            let value = value_of(value, &name)?;
            let header = HeaderName::try_from(name.as_str())
                .map_err(|source| InvalidRequest::HeaderName { attribute: name, source })?;
            headers.insert(header, value);
        }
        match parts.content_type {
            Some(content_type) => headers.insert(CONTENT_TYPE, value_of(content_type, "datacontenttype")?),
            None => headers.remove(CONTENT_TYPE),
        };
        body = Bytes::from(parts.body);
    }
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let id = HeaderValue::from_str(envelope.id).map_err(InvalidRequest::EnvelopeId)?;
    headers.insert(TRACEPARENT, trace_context::parent(envelope.traceparent));
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

/// Builds a `POST` request.
fn request(uri: Uri, headers: HeaderMap, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}

#[cfg(test)]
mod tests;
