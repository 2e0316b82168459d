//! An HTTP endpoint that records its requests. Its behaviour can be changed while it runs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use axum::serve::ListenerExt;
use futures_util::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Returns true if a request may pass, by its headers.
pub type Guard = Arc<dyn Fn(&HeaderMap) -> bool + Send + Sync>;

/// The behaviour of a path.
#[derive(Clone)]
pub enum Behaviour {
    /// Answers with a status, headers and a body.
    Answer { status: u16, headers: Vec<(&'static str, String)>, body: Bytes },
    /// Reads the request and never answers.
    Hang,
    /// Answers as set as soon as the gate is open, also to requests that were received before.
    Gate(watch::Receiver<bool>, Box<Self>),
    /// Waits, then continues as set.
    Slow(Duration, Box<Self>),
    /// Sends the head and half of the body, then closes the connection.
    CloseMidAnswer,
    /// Answers 401 to requests that the guard rejects.
    Require(Guard, Box<Self>),
    /// Has the first behaviour for that many requests (from the time at which it was set), then the second.
    First(usize, Box<Self>, Box<Self>),
}

impl Behaviour {
    /// Answers with this status.
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: Bytes::new() }
    }

    /// Answers 200.
    pub fn ok() -> Self {
        Self::status(200)
    }

    /// Answers with this status and a `Retry-After` in seconds.
    pub fn retry_after(status: u16, seconds: u64) -> Self {
        Self::Answer { status, headers: vec![("retry-after", seconds.to_string())], body: Bytes::new() }
    }

    /// Answers 200 after a while.
    pub fn slow(wait: Duration) -> Self {
        Self::Slow(wait, Box::new(Self::ok()))
    }

    /// Holds every request until `true` is sent, then answers 200.
    pub fn gate() -> (watch::Sender<bool>, Self) {
        let (open, gate) = watch::channel(false);
        (open, Self::Gate(gate, Box::new(Self::ok())))
    }

    /// Answers 200 to requests with this header, otherwise 401.
    pub fn require_header(name: &'static str, value: impl Into<String>) -> Self {
        let value = value.into();
        Self::require(Arc::new(move |headers: &HeaderMap| {
            headers.get(name).is_some_and(|found| found.as_bytes() == value.as_bytes())
        }))
    }

    /// Answers 200 to requests that the guard accepts, otherwise 401.
    pub fn require(guard: Guard) -> Self {
        Self::Require(guard, Box::new(Self::ok()))
    }

    /// Answers with this status that many times, then with 200.
    pub fn failing_first(times: usize, status: u16) -> Self {
        Self::First(times, Box::new(Self::status(status)), Box::new(Self::ok()))
    }
}

/// A received request, unchanged.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: Method,
    pub path: String,
    /// The query, without the question mark.
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The time at which its body was complete.
    pub arrived: Instant,
    pub arrived_at: SystemTime,
    /// The status of the answer; `None` until the answer is sent.
    pub answered: Option<u16>,
}

impl Received {
    /// A header as text; empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The envelope's id, the same on each attempt.
    pub fn webhook_id(&self) -> &str {
        self.header("webhook-id")
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }
}

#[derive(Default)]
struct PathState {
    behaviour: Option<Behaviour>,
    since_set: usize,
    received: Vec<Received>,
    /// Number of 2xx answers for each webhook-id.
    accepted: HashMap<String, usize>,
    open: usize,
    most_open: usize,
}

struct Shared {
    paths: Mutex<HashMap<String, PathState>>,
    /// Counts changes, to wake waiting tasks.
    changed: watch::Sender<u64>,
}

impl Shared {
    fn paths(&self) -> MutexGuard<'_, HashMap<String, PathState>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, path: &str, act: impl FnOnce(&mut PathState) -> T) -> T {
        let result = act(self.paths().entry(path.to_owned()).or_default());
        self.changed.send_modify(|count| *count += 1);
        result
    }
}

/// An HTTP server on a free port. A path without a set behaviour answers 200.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared { paths: Mutex::default(), changed: watch::Sender::new(0) });
        let router = Router::new()
            .fallback(handle)
            .layer(DefaultBodyLimit::max(64 * 1024 * 1024))
            .with_state(Arc::clone(&shared));
        // An answer is small and complete, so it must not wait for an acknowledgement of the client.
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        let server = tokio::spawn(async move {
            // Serves until aborted; the loop returns no errors.
            let _ = axum::serve(listener, router).await;
        });
        Self { address, shared, server }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:<port><path>`
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sets the behaviour of a path. Requests that hang or wait keep their behaviour.
    pub fn set(&self, path: &str, behaviour: Behaviour) {
        self.shared.change(path, |state| {
            state.behaviour = Some(behaviour);
            state.since_set = 0;
        });
    }

    /// All requests to a path, in order of arrival.
    pub fn received(&self, path: &str) -> Vec<Received> {
        self.shared.paths().get(path).map_or_else(Vec::new, |state| state.received.clone())
    }

    /// Number of requests to a path.
    pub fn count(&self, path: &str) -> usize {
        self.shared.paths().get(path).map_or(0, |state| state.received.len())
    }

    /// The distinct `webhook-id`s that a path has answered 2xx.
    pub fn accepted(&self, path: &str) -> HashSet<String> {
        let paths = self.shared.paths();
        paths.get(path).map_or_else(HashSet::new, |state| state.accepted.keys().cloned().collect())
    }

    /// The `webhook-id`s that a path has answered 2xx more than once, each with the number of answers.
    pub fn doubles(&self, path: &str) -> BTreeMap<String, usize> {
        let paths = self.shared.paths();
        let accepted = paths.get(path).into_iter().flat_map(|state| &state.accepted);
        accepted.filter(|(_, times)| **times > 1).map(|(id, times)| (id.clone(), *times)).collect()
    }

    /// Maximum number of concurrent requests to a path so far.
    pub fn most_open(&self, path: &str) -> usize {
        self.shared.paths().get(path).map_or(0, |state| state.most_open)
    }

    /// Deletes the recorded requests; the behaviours stay.
    pub fn forget(&self) {
        for state in self.shared.paths().values_mut() {
            state.received.clear();
            state.accepted.clear();
            state.most_open = state.open;
        }
    }

    /// Waits until a path has received that many requests, and returns all of them.
    ///
    /// # Panics
    ///
    /// After `limit`, with what had come.
    pub async fn wait_for(&self, path: &str, count: usize, limit: Duration) -> Vec<Received> {
        self.wait(path, limit, &format!("{count} requests"), |state| state.received.len() >= count).await;
        self.received(path)
    }

    /// Waits until that many distinct `webhook-id`s were answered 2xx on a path.
    ///
    /// # Panics
    ///
    /// After `limit`, with what had come.
    pub async fn wait_accepted(&self, path: &str, count: usize, limit: Duration) {
        let what = format!("{count} distinct accepted webhook-ids");
        self.wait(path, limit, &what, |state| state.accepted.len() >= count).await;
    }

    async fn wait(&self, path: &str, limit: Duration, what: &str, done: impl Fn(&PathState) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let wanted = changed.wait_for(|_| self.shared.paths().get(path).is_some_and(&done));
        if tokio::time::timeout(limit, wanted).await.is_err() {
            let mut statuses = BTreeMap::<Option<u16>, usize>::new();
            for request in self.received(path) {
                *statuses.entry(request.answered).or_default() += 1;
            }
            panic!(
                "{path} had not received {what} after {limit:?}: {} requests, {} distinct accepted, answers {statuses:?}",
                self.count(path),
                self.accepted(path).len()
            );
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Counts a request as open until it is answered or its client disconnects.
struct Open(Arc<Shared>, String);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.change(&self.1, |state| state.open -= 1);
    }
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let path = uri.path().to_owned();
    let (index, mut behaviour, nth) = shared.change(&path, |state| {
        state.received.push(Received {
            method,
            path: path.clone(),
            query: uri.query().map(str::to_owned),
            headers: headers.clone(),
            body,
            arrived: Instant::now(),
            arrived_at: SystemTime::now(),
            answered: None,
        });
        state.open += 1;
        state.most_open = state.most_open.max(state.open);
        state.since_set += 1;
        let behaviour = state.behaviour.clone().unwrap_or_else(Behaviour::ok);
        (state.received.len() - 1, behaviour, state.since_set)
    });
    let open = Open(Arc::clone(&shared), path.clone());
    let response = loop {
        behaviour = match behaviour {
            Behaviour::Answer { status, headers, body } => {
                let mut response = Response::new(Body::from(body));
                *response.status_mut() = StatusCode::from_u16(status).expect("a status from 100 to 999");
                for (name, value) in headers {
                    let value = value.parse().expect("a header value is visible ASCII");
                    response.headers_mut().insert(name, value);
                }
                break response;
            }
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Gate(mut gate, then) => {
                if gate.wait_for(|open| *open).await.is_err() {
                    std::future::pending::<()>().await;
                }
                *then
            }
            Behaviour::Slow(wait, then) => {
                tokio::time::sleep(wait).await;
                *then
            }
            Behaviour::CloseMidAnswer => break half_an_answer(),
            Behaviour::Require(guard, then) if guard(&headers) => *then,
            Behaviour::Require(..) => Behaviour::status(401),
            Behaviour::First(times, first, _) if nth <= times => *first,
            Behaviour::First(_, _, then) => *then,
        };
    };
    let status = response.status();
    shared.change(&path, |state| {
        // The recorded requests may have been deleted meanwhile.
        if let Some(request) = state.received.get_mut(index) {
            request.answered = Some(status.as_u16());
        }
        if let Some(id) = headers.get("webhook-id").and_then(|value| value.to_str().ok())
            && status.is_success()
        {
            *state.accepted.entry(id.to_owned()).or_default() += 1;
        }
    });
    drop(open);
    response
}

/// A 500 whose body breaks off; not a 2xx, which could count as a success. The server sends the first half of the body
/// when the body pauses, before the connection ends.
fn half_an_answer() -> Response<Body> {
    let first = stream::iter([Ok(Bytes::from_static(b"half of it"))]);
    let broken = stream::once(async {
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::BrokenPipe))
    });
    let mut response = Response::new(Body::from_stream(first.chain(broken)));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response.headers_mut().insert(header::CONTENT_LENGTH, 20.into());
    response
}
