//! A subscriber of the demo: an HTTP endpoint that checks who calls, may be slow, can be switched
//! off and on, and remembers what it answered.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::telling::Unmet;
use super::token_endpoint::Tokens;
use crate::facts::DemoReceiverEnded;
use crate::tasks::Task;

/// Answers remembered; the oldest are forgotten first.
const MOST_REMEMBERED: usize = 1_000;
/// Of an event's data, what is remembered and shown.
const MOST_SHOWN: usize = 100;

/// What it asks for.
pub enum Credentials {
    None,
    /// In the header `x-api-key`.
    ApiKey(String),
    /// A bearer token of the demo's token endpoint.
    OAuth2(Tokens),
}

/// Serves `POST /events` and the switch, `POST /on` and `POST /off`, on a free port of this machine
/// until it is dropped.
pub struct Receiver {
    name: &'static str,
    address: SocketAddr,
    shared: Arc<Shared>,
    _server: Task<()>,
}

struct Shared {
    credentials: Credentials,
    /// It takes this long for each answer.
    pause: Duration,
    log: watch::Sender<ReceiverLog>,
}

/// What a receiver did so far.
pub struct ReceiverLog {
    pub on: bool,
    /// How many deliveries it answered.
    pub count: u64,
    /// The last of them, in the order of the answers.
    pub answers: VecDeque<Answer>,
}

/// One answered delivery.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Counts from 1.
    pub number: u64,
    pub arrived: Instant,
    pub status: u16,
    /// The delivery's headers `webhook-id` and `webhook-attempt`.
    pub webhook_id: String,
    pub attempt: u32,
    /// The CloudEvent's `type`, and its `data` as in the body, shortened.
    pub event_key: String,
    pub data: String,
}

impl Receiver {
    pub async fn start(
        name: &'static str,
        credentials: Credentials,
        pause: Duration,
        on: bool,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let log = watch::Sender::new(ReceiverLog { on, count: 0, answers: VecDeque::new() });
        let shared = Arc::new(Shared { credentials, pause, log });
        let router = Router::new()
            .route("/events", post(receive))
            .route("/{switch}", post(switch))
            .with_state(shared.clone());
        let server = Task::start(format!("the demo's receiver {name}"), async move {
            if let Err(error) = axum::serve(listener, router).await {
                DemoReceiverEnded { receiver: name, error: &error }.emit();
            }
        });
        Ok(Self { name, address, shared, _server: server })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// `http://<address><path>`
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn switch_on(&self) {
        self.shared.log.send_modify(|log| log.on = true);
    }

    pub fn watch(&self) -> watch::Receiver<ReceiverLog> {
        self.shared.log.subscribe()
    }

    /// Waits until the log shows what was expected: `look` gives it, or says what it saw instead.
    pub async fn until<T>(
        &self,
        limit: Duration,
        expected: &str,
        look: impl Fn(&ReceiverLog) -> Result<T, String>,
    ) -> Result<T, Unmet> {
        let mut log = self.watch();
        let waited = tokio::time::timeout(limit, log.wait_for(|log| look(log).is_ok())).await;
        let last = match waited {
            Ok(Ok(log)) => look(&log),
            // The sender lives as long as `self`.
            Ok(Err(_)) | Err(_) => look(&self.shared.log.borrow()),
        };
        last.map_err(|seen| Unmet::new(expected, format!("{seen} (after {limit:?})")))
    }
}

impl ReceiverLog {
    /// The answers with a 2xx, in their order.
    pub fn accepted(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter().filter(|answer| (200..300).contains(&answer.status))
    }

    /// For people: the last answers in short.
    pub fn summary(&self) -> String {
        let last = self.answers.iter().rev().take(5).rev();
        let last: Vec<String> =
            last.map(|answer| format!("{} to {} {}", answer.status, answer.event_key, answer.data)).collect();
        match last.is_empty() {
            true => "it got nothing".to_owned(),
            false => format!("it gave {} answers, the last: {}", self.count, last.join(", ")),
        }
    }
}

async fn switch(State(shared): State<Arc<Shared>>, Path(switch): Path<String>) -> (StatusCode, &'static str) {
    let (on, answer) = match switch.as_str() {
        "on" => (true, "on: it takes events\n"),
        "off" => (false, "off: it answers 503\n"),
        _ => return (StatusCode::NOT_FOUND, "there is /events, /on and /off\n"),
    };
    shared.log.send_modify(|log| log.on = on);
    (StatusCode::OK, answer)
}

async fn receive(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    #[derive(Deserialize)]
    struct CloudEvent<'a> {
        r#type: String,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
    }
    let arrived = Instant::now();
    tokio::time::sleep(shared.pause).await;
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let event = serde_json::from_slice::<CloudEvent>(&body);
    let (event_key, data) = match &event {
        Ok(event) => (event.r#type.clone(), event.data.map(RawValue::get).unwrap_or_default()),
        Err(_) => (String::new(), ""),
    };
    let status = match &shared.credentials {
        Credentials::ApiKey(key) if text("x-api-key") != key => StatusCode::UNAUTHORIZED,
        Credentials::OAuth2(tokens) if !tokens.accept(&headers) => StatusCode::UNAUTHORIZED,
        _ if !shared.log.borrow().on => StatusCode::SERVICE_UNAVAILABLE,
        _ if event.is_err() => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    };
    shared.log.send_modify(|log| {
        log.count += 1;
        if log.answers.len() == MOST_REMEMBERED {
            log.answers.pop_front();
        }
        log.answers.push_back(Answer {
            number: log.count,
            arrived,
            status: status.as_u16(),
            webhook_id: text("webhook-id").to_owned(),
            attempt: text("webhook-attempt").parse().unwrap_or(0),
            event_key,
            data: data.chars().take(MOST_SHOWN).collect(),
        });
    });
    status
}
