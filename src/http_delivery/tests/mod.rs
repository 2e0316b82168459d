//! Tests against real servers on free local ports.

mod address_guard;
mod answers;
mod auth;
mod early_answers;
mod endpoint;
mod headers;
mod tls;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use secrecy::SecretString;
use tokio::task::JoinSet;

use super::*;
use crate::domain::subscription::{EndpointDelivery, Identity, Incarnation, SubscriptionRef};
use crate::http_delivery::target::TargetError;

const EVENT: &str = r#"{"specversion":"1.0","id":"e 1","source":"/idp","type":"user.created","tenant":"acme","data":{"user_id": "u1"}}"#;

/// Opens `sealed-x` as `x`.
struct Opener;

impl OpenSecret for Opener {
    fn open(
        &self,
        subscription: &Identity,
        field: &str,
        sealed: &str,
    ) -> Result<SecretString, SecretNotOpened> {
        assert_eq!(*subscription, identity());
        assert!(field.starts_with("delivery."), "{field}");
        sealed.strip_prefix("sealed-").map(SecretString::from).ok_or(SecretNotOpened::NoMasterKey)
    }
}

fn identity() -> Identity {
    let subscription = SubscriptionRef::of("acme", "billing-crm").unwrap();
    Identity { subscription, incarnation: Incarnation::new(1) }
}

fn view() -> EnvelopeView<'static> {
    EnvelopeView { id: "env_1", event: Bytes::from_static(EVENT.as_bytes()), traceparent: None }
}

/// A client that may reach loopback.
fn local() -> HttpDelivery {
    let allow = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    HttpDelivery::new(HttpConfig { addresses: AddressPolicy { allow }, ..HttpConfig::default() })
}

/// `rest` are further members of the delivery, as JSON.
fn prepared(url: &str, rest: &str) -> Result<Target, TargetError> {
    let json = format!(r#"{{"url":"{url}","timeout":"5s"{rest}}}"#);
    let delivery: EndpointDelivery = serde_json::from_str(&json).unwrap();
    Target::prepare(&identity(), &delivery, &Opener)
}

fn target(url: &str, rest: &str) -> Target {
    prepared(url, rest).unwrap()
}

fn answered(status: u16) -> Outcome {
    Outcome::Answered { status, retry_after: None }
}

/// A request that a server received.
#[derive(Debug, Clone)]
struct Got {
    uri: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

type Handler = Arc<dyn Fn(&Got) -> Response + Send + Sync>;

/// An HTTP server that records its requests; it stops when it is dropped.
struct Server {
    address: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
    _task: JoinSet<()>,
}

impl Server {
    async fn start(handler: impl Fn(&Got) -> Response + Send + Sync + 'static) -> Self {
        let got = Arc::new(Mutex::new(Vec::new()));
        let handler: Handler = Arc::new(handler);
        let state = (got.clone(), handler);
        let app = Router::new().fallback(serve).with_state(state);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, got, _task: task }
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }
}

async fn serve(State((kept, handler)): State<(Arc<Mutex<Vec<Got>>>, Handler)>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let got = Got { uri: parts.uri.to_string(), headers: parts.headers, body };
    kept.lock().unwrap().push(got.clone());
    handler(&got)
}

fn ok(_: &Got) -> Response {
    axum::http::StatusCode::NO_CONTENT.into_response()
}
