//! A token endpoint for the client credentials grant (RFC 6749, section 4.4).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::json;

use crate::http_endpoint::{Body, HttpEndpoint, response};
use crate::receiver::Guard;

const PATH: &str = "/token";
/// Lifetime of a token until another one is set.
const LIFETIME: Duration = Duration::from_secs(3600);
/// Tokens and requests that are remembered; the oldest are forgotten first.
const MOST_REMEMBERED: usize = 1_000;

struct TokenIssuer {
    client_id: String,
    client_secret: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    scopes: Vec<String>,
    lifetime: Duration,
    failing: Option<StatusCode>,
    /// Each token with its expiry, oldest first.
    tokens: VecDeque<(String, Instant)>,
    /// The form fields of each request.
    requests: VecDeque<HashMap<String, String>>,
    requested: usize,
    issued: usize,
}

impl TokenIssuer {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Issues tokens to one client at `POST /token`, on a free loopback port, until it is dropped. Accepts the credentials as
/// `client_secret_basic` or `client_secret_post`.
pub struct TokenEndpoint {
    endpoint: HttpEndpoint,
    shared: Arc<TokenIssuer>,
}

impl TokenEndpoint {
    /// As [`bind`](Self::bind), for tests.
    ///
    /// # Panics
    ///
    /// No port is free.
    pub async fn start(client_id: &str, client_secret: &str) -> Self {
        let endpoint = Self::bind(client_id, client_secret).await;
        endpoint.unwrap_or_else(|error| panic!("the token endpoint cannot listen: {error}"))
    }

    /// Listens. Tokens live for an hour and have any scope, until set otherwise.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn bind(client_id: &str, client_secret: &str) -> io::Result<Self> {
        let shared = Arc::new(TokenIssuer {
            client_id: client_id.to_owned(),
            client_secret: client_secret.to_owned(),
            state: Mutex::new(State { lifetime: LIFETIME, ..State::default() }),
        });
        let of_requests = Arc::clone(&shared);
        let endpoint = HttpEndpoint::bind(move |request: Request<Bytes>| {
            let response = handle(&of_requests, &request);
            async move { response }
        })
        .await?;
        Ok(Self { endpoint, shared })
    }

    /// `http://127.0.0.1:<port>/token`
    pub fn token_url(&self) -> String {
        self.endpoint.url(PATH)
    }

    /// Sets the lifetime of tokens that are issued from now on; the client gets it in whole seconds.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.shared.state().lifetime = lifetime;
    }

    /// Sets the allowed scopes; none means any.
    pub fn set_scopes(&self, scopes: &[&str]) {
        self.shared.state().scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
    }

    /// Answers each request with this status, until `None` is set.
    ///
    /// # Panics
    ///
    /// The status is not from 100 to 999.
    pub fn set_failing(&self, status: Option<u16>) {
        let status = status.map(|status| StatusCode::from_u16(status).expect("a status is from 100 to 999"));
        self.shared.state().failing = status;
    }

    /// Revokes every token issued so far.
    pub fn revoke_all(&self) {
        self.shared.state().tokens.clear();
    }

    /// The number of token requests, rejected ones included.
    pub fn token_requests(&self) -> usize {
        self.shared.state().requested
    }

    /// The number of issued tokens.
    pub fn issued(&self) -> usize {
        self.shared.state().issued
    }

    /// The form fields of the last 1,000 token requests.
    pub fn requests(&self) -> Vec<HashMap<String, String>> {
        self.shared.state().requests.iter().cloned().collect()
    }

    /// Accepts requests with a bearer token that was issued here, is not revoked, and has not expired.
    pub fn guard(&self) -> Guard {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |headers: &HeaderMap| {
            let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
            let Some(token) = token.and_then(|value| value.strip_prefix("Bearer ")) else { return false };
            let now = Instant::now();
            shared.state().tokens.iter().any(|(known, expiry)| known == token && now < *expiry)
        })
    }
}

fn push<T>(remembered: &mut VecDeque<T>, value: T) {
    if remembered.len() == MOST_REMEMBERED {
        remembered.pop_front();
    }
    remembered.push_back(value);
}

fn handle(shared: &TokenIssuer, request: &Request<Bytes>) -> Response<Body> {
    if request.uri().path() != PATH {
        return response(StatusCode::NOT_FOUND, "");
    }
    if request.method() != Method::POST {
        return response(StatusCode::METHOD_NOT_ALLOWED, "");
    }
    let headers = request.headers();
    let form: HashMap<String, String> = url::form_urlencoded::parse(request.body()).into_owned().collect();
    let mut state = shared.state();
    state.requested += 1;
    push(&mut state.requests, form.clone());
    if let Some(status) = state.failing {
        return response(status, "");
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !content_type.is_some_and(|value| value.starts_with("application/x-www-form-urlencoded")) {
        return rejected(StatusCode::BAD_REQUEST, "invalid_request");
    }
    let client =
        basic(headers).or_else(|| Some((form.get("client_id")?.clone(), form.get("client_secret")?.clone())));
    if client != Some((shared.client_id.clone(), shared.client_secret.clone())) {
        let mut response = rejected(StatusCode::UNAUTHORIZED, "invalid_client");
        let scheme = HeaderValue::from_static("Basic realm=\"token\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        return response;
    }
    if form.get("grant_type").map(String::as_str) != Some("client_credentials") {
        return rejected(StatusCode::BAD_REQUEST, "unsupported_grant_type");
    }
    let scope = form.get("scope").map_or("", String::as_str);
    let allowed = |scope: &str| state.scopes.iter().any(|allowed| allowed == scope);
    if !state.scopes.is_empty() && !scope.split_whitespace().all(allowed) {
        return rejected(StatusCode::BAD_REQUEST, "invalid_scope");
    }
    let token = format!("token-{:032x}", rand::random::<u128>());
    let lifetime = state.lifetime;
    state.issued += 1;
    push(&mut state.tokens, (token.clone(), Instant::now() + lifetime));
    let granted = json!({
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": lifetime.as_secs(),
        "scope": scope,
    });
    let mut response = answer(StatusCode::OK, &granted);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// RFC 6749, section 2.3.1: both parts are form-encoded before they are joined.
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let value = base64::engine::general_purpose::STANDARD.decode(value).ok()?;
    let (id, secret) = std::str::from_utf8(&value).ok()?.split_once(':')?;
    let decode = |text: &str| {
        let form = format!("v={text}");
        url::form_urlencoded::parse(form.as_bytes()).next().map(|(_, value)| value.into_owned())
    };
    Some((decode(id)?, decode(secret)?))
}

/// RFC 6749, section 5.2.
fn rejected(status: StatusCode, error: &str) -> Response<Body> {
    answer(status, &json!({ "error": error }))
}

fn answer(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let mut response = response(status, value.to_string());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
