//! A token endpoint for the client-credentials grant (RFC 6749 section 4.4).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine as _;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::receiver::Guard;

struct Shared {
    client_id: String,
    client_secret: String,
    state: Mutex<Issued>,
}

struct Issued {
    scopes: Vec<String>,
    lifetime: Duration,
    failing: Option<u16>,
    /// The tokens, each with its expiry.
    tokens: HashMap<String, Instant>,
    requests: Vec<HashMap<String, String>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Issued> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An HTTP server on a free port; `POST /token` issues tokens to one client. Accepts the credentials of the client as
/// `client_secret_basic` or `client_secret_post`.
pub struct OAuth2Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl OAuth2Server {
    /// By default, tokens are valid for an hour and may have any scope.
    pub async fn start(client_id: &str, client_secret: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared {
            client_id: client_id.to_owned(),
            client_secret: client_secret.to_owned(),
            state: Mutex::new(Issued {
                scopes: Vec::new(),
                lifetime: Duration::from_secs(3600),
                failing: None,
                tokens: HashMap::new(),
                requests: Vec::new(),
            }),
        });
        let router = Router::new().route("/token", post(token)).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            // Serves until aborted; the loop returns no errors.
            let _ = axum::serve(listener, router).await;
        });
        Self { address, shared, server }
    }

    pub fn token_url(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// Sets the lifetime of tokens that are issued from now on; the client sees whole seconds.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.shared.state().lifetime = lifetime;
    }

    /// Sets the scopes that the client may request.
    pub fn set_scopes(&self, scopes: &[&str]) {
        self.shared.state().scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
    }

    /// Answers each token request with this status from now on; `None` ends it.
    pub fn set_failing(&self, status: Option<u16>) {
        self.shared.state().failing = status;
    }

    /// Makes every token issued so far invalid.
    pub fn revoke_all(&self) {
        self.shared.state().tokens.clear();
    }

    /// Number of token requests, including rejected ones.
    pub fn token_requests(&self) -> usize {
        self.shared.state().requests.len()
    }

    /// The form fields of each token request.
    pub fn requests(&self) -> Vec<HashMap<String, String>> {
        self.shared.state().requests.clone()
    }

    /// Accepts requests with a bearer token of this server that is neither revoked nor expired.
    pub fn guard(&self) -> Guard {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |headers: &HeaderMap| {
            let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
            let token = token.and_then(|value| value.strip_prefix("Bearer "));
            let state = shared.state();
            token.and_then(|token| state.tokens.get(token)).is_some_and(|end| Instant::now() < *end)
        })
    }
}

impl Drop for OAuth2Server {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn token(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let form: HashMap<String, String> = url::form_urlencoded::parse(&body).into_owned().collect();
    let mut state = shared.state();
    state.requests.push(form.clone());
    if let Some(status) = state.failing {
        return StatusCode::from_u16(status).expect("a status from 100 to 999").into_response();
    }
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !content_type.is_some_and(|value| value.starts_with("application/x-www-form-urlencoded")) {
        return refused(StatusCode::BAD_REQUEST, "invalid_request");
    }
    let client = basic(&headers)
        .or_else(|| Some((form.get("client_id")?.clone(), form.get("client_secret")?.clone())));
    if client != Some((shared.client_id.clone(), shared.client_secret.clone())) {
        let mut response = refused(StatusCode::UNAUTHORIZED, "invalid_client");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Basic realm=\"token\""));
        return response;
    }
    if form.get("grant_type").map(String::as_str) != Some("client_credentials") {
        return refused(StatusCode::BAD_REQUEST, "unsupported_grant_type");
    }
    let scope = form.get("scope").map_or("", String::as_str);
    let known = |scope: &str| state.scopes.iter().any(|known| known == scope);
    if !state.scopes.is_empty() && !scope.split_whitespace().all(known) {
        return refused(StatusCode::BAD_REQUEST, "invalid_scope");
    }
    let token = format!("token-{:032x}", rand::random::<u128>());
    let lifetime = state.lifetime;
    state.tokens.insert(token.clone(), Instant::now() + lifetime);
    let answer = json!({
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": lifetime.as_secs(),
        "scope": scope,
    });
    ([(header::CACHE_CONTROL, "no-store")], axum::Json(answer)).into_response()
}

/// RFC 6749 section 2.3.1: both parts are form-encoded before they are joined.
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let value = base64::engine::general_purpose::STANDARD.decode(value).ok()?;
    let (id, secret) = std::str::from_utf8(&value).ok()?.split_once(':')?;
    let decode = |text: &str| {
        let form = format!("v={text}");
        url::form_urlencoded::parse(form.as_bytes()).next().map(|(_, value)| value.into_owned())
    };
    Some((decode(id)?, decode(secret)?))
}

fn refused(status: StatusCode, error: &str) -> Response {
    (status, axum::Json(json!({ "error": error }))).into_response()
}
