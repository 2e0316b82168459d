//! An HTTP endpoint for deliveries: its answers can be changed while it runs, and it remembers its requests.

mod behaviour;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hyper::{HeaderMap, Method, Request, Response};
use tokio::sync::watch;

pub use behaviour::{Behaviour, Choice, Guard};

use crate::http_endpoint::{Body, HttpEndpoint};

/// A received request, unchanged.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: Method,
    pub path: String,
    /// Without the question mark.
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// When its body had arrived.
    pub arrived: Instant,
    pub arrived_at: SystemTime,
    /// The status of the answer; `None` until then.
    pub answered: Option<u16>,
    /// The position of the answer among those of the path, from 1; `None` until then.
    pub answer_number: Option<u64>,
}

impl Received {
    /// A header as text; empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The envelope id, the same on each attempt; empty if it is absent.
    pub fn webhook_id(&self) -> &str {
        self.header("webhook-id")
    }

    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// The body is not JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// The envelope id, if the request was answered with a 2xx.
    fn accepted_id(&self) -> Option<&str> {
        let accepted = self.answered.is_some_and(|status| (200..300).contains(&status));
        Some(self.webhook_id()).filter(|id| accepted && !id.is_empty())
    }
}

#[derive(Default)]
struct PathState {
    behaviour: Option<Behaviour>,
    since_set: usize,
    /// The last requests, in order of arrival.
    received: VecDeque<Received>,
    /// Number of all requests.
    arrived: usize,
    /// Number of all answers.
    answers: u64,
    /// For each webhook-id the number of remembered requests that were answered with a 2xx.
    accepted: HashMap<String, usize>,
    open: usize,
    most_open: usize,
}

impl PathState {
    /// Returns the number of the request.
    fn remember(&mut self, request: Received, most: usize) -> usize {
        self.received.push_back(request);
        self.arrived += 1;
        while self.received.len() > most {
            let forgotten = self.received.pop_front();
            let Some(id) = forgotten.as_ref().and_then(Received::accepted_id) else { continue };
            if let Some(times) = self.accepted.get_mut(id) {
                *times -= 1;
                if *times == 0 {
                    self.accepted.remove(id);
                }
            }
        }
        self.arrived
    }

    fn answered(&mut self, number: usize, status: u16) {
        self.answers += 1;
        let forgotten = self.arrived - self.received.len();
        let index = number.checked_sub(forgotten + 1);
        let Some(request) = index.and_then(|index| self.received.get_mut(index)) else { return };
        request.answered = Some(status);
        request.answer_number = Some(self.answers);
        if let Some(id) = request.accepted_id() {
            *self.accepted.entry(id.to_owned()).or_default() += 1;
        }
    }
}

struct ReceiverState {
    /// Requests that are remembered for each path.
    remembered: usize,
    default: Mutex<Behaviour>,
    paths: Mutex<HashMap<String, PathState>>,
    /// Counts changes, to wake waiting tasks.
    changed: watch::Sender<u64>,
}

impl ReceiverState {
    fn paths(&self) -> MutexGuard<'_, HashMap<String, PathState>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn default(&self) -> MutexGuard<'_, Behaviour> {
        self.default.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, path: &str, act: impl FnOnce(&mut PathState) -> T) -> T {
        let result = act(self.paths().entry(path.to_owned()).or_default());
        self.changed.send_modify(|count| *count += 1);
        result
    }
}

/// An HTTP/1.1 server on a free loopback port, until it is dropped. A path that was not set answers 200.
pub struct Receiver {
    endpoint: HttpEndpoint,
    shared: Arc<ReceiverState>,
}

impl Receiver {
    /// As [`bind`](Self::bind), for tests; remembers every request.
    ///
    /// # Panics
    ///
    /// No port is free.
    pub async fn start() -> Self {
        Self::bind(usize::MAX).await.unwrap_or_else(|error| panic!("the receiver cannot listen: {error}"))
    }

    /// Listens, and remembers the last `remembered` requests of each path.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn bind(remembered: usize) -> io::Result<Self> {
        let shared = Arc::new(ReceiverState {
            remembered,
            default: Mutex::new(Behaviour::ok()),
            paths: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        let of_requests = Arc::clone(&shared);
        let endpoint = HttpEndpoint::bind(move |request| handle(Arc::clone(&of_requests), request)).await?;
        Ok(Self { endpoint, shared })
    }

    pub fn address(&self) -> SocketAddr {
        self.endpoint.address()
    }

    /// `http://127.0.0.1:<port><path>`
    pub fn url(&self, path: &str) -> String {
        self.endpoint.url(path)
    }

    /// Sets the behaviour of a path. Requests in progress continue with the previous one.
    pub fn set(&self, path: &str, behaviour: Behaviour) {
        self.shared.change(path, |state| {
            state.behaviour = Some(behaviour);
            state.since_set = 0;
        });
    }

    /// Sets the behaviour of all paths that were not set.
    pub fn set_default(&self, behaviour: Behaviour) {
        *self.shared.default() = behaviour;
    }

    /// The remembered requests of a path, in order of arrival.
    pub fn received(&self, path: &str) -> Vec<Received> {
        let paths = self.shared.paths();
        paths.get(path).map_or_else(Vec::new, |state| state.received.iter().cloned().collect())
    }

    /// The number of remembered requests of a path.
    pub fn count(&self, path: &str) -> usize {
        self.shared.paths().get(path).map_or(0, |state| state.received.len())
    }

    /// The distinct `webhook-id`s that a path has answered with a 2xx.
    pub fn accepted(&self, path: &str) -> HashSet<String> {
        let paths = self.shared.paths();
        paths.get(path).map_or_else(HashSet::new, |state| state.accepted.keys().cloned().collect())
    }

    /// The `webhook-id`s that a path has answered with a 2xx more than once, each with the number of answers.
    pub fn doubles(&self, path: &str) -> BTreeMap<String, usize> {
        let paths = self.shared.paths();
        let accepted = paths.get(path).into_iter().flat_map(|state| &state.accepted);
        accepted.filter(|(_, times)| **times > 1).map(|(id, times)| (id.clone(), *times)).collect()
    }

    /// The highest number of requests that a path has had in progress at the same time.
    pub fn most_open(&self, path: &str) -> usize {
        self.shared.paths().get(path).map_or(0, |state| state.most_open)
    }

    /// Counts [`most_open`](Self::most_open) from now on.
    pub fn forget_most_open(&self, path: &str) {
        self.shared.change(path, |state| state.most_open = state.open);
    }

    /// Changes with each request and each answer.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Waits until a path has received `count` requests, and returns all of them.
    ///
    /// # Panics
    ///
    /// After `limit`, with the requests so far.
    pub async fn wait_for(&self, path: &str, count: usize, limit: Duration) -> Vec<Received> {
        self.wait(path, limit, &format!("{count} requests"), |state| state.received.len() >= count).await;
        self.received(path)
    }

    /// Waits until a path has answered `count` distinct `webhook-id`s with a 2xx.
    ///
    /// # Panics
    ///
    /// After `limit`, with the requests so far.
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

/// Counts a request as open until it is answered or its connection has ended.
struct Open(Arc<ReceiverState>, String);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.change(&self.1, |state| state.open -= 1);
    }
}

async fn handle(shared: Arc<ReceiverState>, request: Request<Bytes>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let request = Received {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().map(str::to_owned),
        headers: head.headers,
        body,
        arrived: Instant::now(),
        arrived_at: SystemTime::now(),
        answered: None,
        answer_number: None,
    };
    let default = shared.default().clone();
    let (number, behaviour, nth) = shared.change(&request.path, |state| {
        let number = state.remember(request.clone(), shared.remembered);
        state.open += 1;
        state.most_open = state.most_open.max(state.open);
        state.since_set += 1;
        (number, state.behaviour.clone().unwrap_or(default), state.since_set)
    });
    let open = Open(Arc::clone(&shared), request.path.clone());
    let response = behaviour.answer(&request, nth).await;
    shared.change(&request.path, |state| state.answered(number, response.status().as_u16()));
    drop(open);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// Posts with this webhook-id, and returns the status line.
    async fn post(receiver: &Receiver, path: &str, id: &str) -> String {
        let mut stream = TcpStream::connect(receiver.address()).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nwebhook-id: {id}\r\n");
        let request = format!("{head}content-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn only_the_last_requests_are_remembered() {
        let receiver = Receiver::bind(2).await.unwrap();
        for id in ["e1", "e1", "e2"] {
            assert_eq!(post(&receiver, "/a", id).await, "HTTP/1.1 200 OK");
        }
        let received = receiver.received("/a");
        let numbers: Vec<_> =
            received.iter().map(|request| (request.webhook_id(), request.answer_number)).collect();
        assert_eq!(numbers, [("e1", Some(2)), ("e2", Some(3))]);
        assert_eq!((receiver.accepted("/a").len(), receiver.doubles("/a").len()), (2, 0));
    }

    #[tokio::test]
    async fn a_request_that_is_forgotten_before_its_answer_is_not_counted() {
        let receiver = Receiver::bind(1).await.unwrap();
        let (open, gate) = Behaviour::gate();
        receiver.set("/a", gate);
        let late = async {
            receiver.wait_for("/a", 1, Duration::from_secs(5)).await;
            receiver.set("/a", Behaviour::ok());
            assert_eq!(post(&receiver, "/a", "e2").await, "HTTP/1.1 200 OK");
            open.send_replace(true);
        };
        let (first, ()) = tokio::join!(post(&receiver, "/a", "e1"), late);
        assert_eq!(first, "HTTP/1.1 200 OK");
        assert_eq!(receiver.accepted("/a"), HashSet::from(["e2".to_owned()]));
        assert_eq!(receiver.received("/a")[0].answer_number, Some(1));
    }

    #[tokio::test]
    async fn a_behaviour_is_chosen_by_the_request_and_the_default_applies_elsewhere() {
        let receiver = Receiver::bind(10).await.unwrap();
        receiver.set_default(Behaviour::status(404));
        receiver.set(
            "/a",
            Behaviour::Choose(Arc::new(|request: &Received| match request.webhook_id() {
                "e1" => Behaviour::status(503),
                _ => Behaviour::ok(),
            })),
        );
        assert_eq!(post(&receiver, "/a", "e1").await, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(post(&receiver, "/a", "e2").await, "HTTP/1.1 200 OK");
        assert_eq!(post(&receiver, "/b", "e2").await, "HTTP/1.1 404 Not Found");
    }
}
