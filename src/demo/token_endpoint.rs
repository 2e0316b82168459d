//! The token endpoint of the demo: the client credentials grant of RFC 6749, section 4.4.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::net::TcpListener;

use crate::facts::DemoTokenEndpointEnded;
use crate::tasks::Task;

const LIFETIME: Duration = Duration::from_secs(600);
/// Tokens remembered; the oldest is forgotten first.
const MOST_TOKENS: usize = 1_000;

/// Serves `POST /token` on a free port of this machine until it is dropped.
pub struct TokenEndpoint {
    address: SocketAddr,
    tokens: Tokens,
    _server: Task<()>,
}

/// The tokens in force. Cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    issued: Arc<Mutex<Issued>>,
}

#[derive(Default)]
struct Issued {
    /// Each with the end of its life, oldest first.
    tokens: VecDeque<(String, Instant)>,
    count: u64,
}

#[derive(Clone)]
struct Shared {
    /// What the client sends: `Basic`, and its id and secret in base64.
    authorization: String,
    scope: String,
    tokens: Tokens,
}

impl TokenEndpoint {
    /// For one client, whose id and secret hold nothing that would have to be form-encoded, and one
    /// scope.
    pub async fn start(client_id: &str, client_secret: &str, scope: &str) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let tokens = Tokens { issued: Arc::default() };
        let shared = Shared {
            authorization: format!("Basic {}", STANDARD.encode(format!("{client_id}:{client_secret}"))),
            scope: scope.to_owned(),
            tokens: tokens.clone(),
        };
        let router = Router::new().route("/token", post(token)).with_state(shared);
        let server = Task::start("the demo's token endpoint", async move {
            if let Err(error) = axum::serve(listener, router).await {
                DemoTokenEndpointEnded { error: &error }.emit();
            }
        });
        Ok(Self { address, tokens, _server: server })
    }

    pub fn url(&self) -> String {
        format!("http://{}/token", self.address)
    }

    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }
}

impl Tokens {
    /// Whether the request carries a token that was issued here and still lives.
    pub fn accept(&self, headers: &HeaderMap) -> bool {
        let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(token) = token.and_then(|value| value.strip_prefix("Bearer ")) else { return false };
        let issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        issued.tokens.iter().any(|(known, end)| known == token && Instant::now() < *end)
    }

    /// How many were issued.
    pub fn issued(&self) -> u64 {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    fn issue(&self) -> String {
        let token = format!("{:032x}", rand::random::<u128>());
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        if issued.tokens.len() == MOST_TOKENS {
            issued.tokens.pop_front();
        }
        issued.tokens.push_back((token.clone(), Instant::now() + LIFETIME));
        issued.count += 1;
        token
    }
}

async fn token(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if sent != Some(shared.authorization.as_str()) {
        return refused(StatusCode::UNAUTHORIZED, "invalid_client");
    }
    let field = |name: &str| {
        url::form_urlencoded::parse(&body).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    if field("grant_type").as_deref() != Some("client_credentials") {
        return refused(StatusCode::BAD_REQUEST, "unsupported_grant_type");
    }
    if field("scope").as_deref() != Some(shared.scope.as_str()) {
        return refused(StatusCode::BAD_REQUEST, "invalid_scope");
    }
    let granted = json!({
        "access_token": shared.tokens.issue(),
        "token_type": "Bearer",
        "expires_in": LIFETIME.as_secs(),
        "scope": shared.scope,
    });
    ([(header::CACHE_CONTROL, "no-store")], Json(granted)).into_response()
}

/// RFC 6749, section 5.2.
fn refused(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}
