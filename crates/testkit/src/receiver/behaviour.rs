//! The answers of a receiver.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::CONTENT_LENGTH;
use hyper::{HeaderMap, Response, StatusCode};
use tokio::sync::watch;

use super::Received;
use crate::http_endpoint::{Body, response};

/// Decides by its headers whether a request is accepted.
pub type Guard = Arc<dyn Fn(&HeaderMap) -> bool + Send + Sync>;

/// Chooses the behaviour for one request.
pub type Choice = Arc<dyn Fn(&Received) -> Behaviour + Send + Sync>;

/// The behaviour of a path.
#[derive(Clone)]
pub enum Behaviour {
    /// Answers with a status, headers and a body.
    Answer { status: u16, headers: Vec<(&'static str, String)>, body: Bytes },
    /// Reads the request and never answers.
    Hang,
    /// Continues as soon as the gate is open, also for requests that it has read before.
    Gate(watch::Receiver<bool>, Box<Self>),
    /// Waits, then continues.
    Slow(Duration, Box<Self>),
    /// Sends the head and half of the body, then closes the connection.
    CloseMidAnswer,
    /// Answers 401 to requests that the guard rejects; continues with the others.
    Require(Guard, Box<Self>),
    /// Continues with the first behaviour for that many requests since it was set, then with the second.
    First(usize, Box<Self>, Box<Self>),
    /// Continues with the behaviour that the function returns for the request.
    Choose(Choice),
}

impl Behaviour {
    /// Answers with this status.
    pub fn status(status: u16) -> Self {
        Self::text(status, "")
    }

    /// Answers with this status and this text.
    pub fn text(status: u16, text: &'static str) -> Self {
        Self::Answer { status, headers: Vec::new(), body: Bytes::from_static(text.as_bytes()) }
    }

    /// Answers 200.
    pub fn ok() -> Self {
        Self::status(200)
    }

    /// Answers with this status and a `Retry-After` in seconds.
    pub fn retry_after(status: u16, seconds: u64) -> Self {
        Self::Answer { status, headers: vec![("retry-after", seconds.to_string())], body: Bytes::new() }
    }

    /// Answers 200 after a pause.
    pub fn slow(wait: Duration) -> Self {
        Self::Slow(wait, Box::new(Self::ok()))
    }

    /// Answers 200 once `true` is sent, and holds every request until then.
    pub fn gate() -> (watch::Sender<bool>, Self) {
        let (open, gate) = watch::channel(false);
        (open, Self::Gate(gate, Box::new(Self::ok())))
    }

    /// Answers 200 to a request with this header, otherwise 401.
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

    /// Answers the request, the `nth` since the behaviour was set.
    pub(super) async fn answer(mut self, request: &Received, nth: usize) -> Response<Body> {
        loop {
            self = match self {
                Self::Answer { status, headers, body } => {
                    let status = StatusCode::from_u16(status).expect("a status is from 100 to 999");
                    let mut response = response(status, body);
                    for (name, value) in headers {
                        let value = value.parse().expect("a header value is visible ASCII");
                        response.headers_mut().insert(name, value);
                    }
                    return response;
                }
                Self::Hang => std::future::pending().await,
                Self::Gate(mut gate, then) => {
                    if gate.wait_for(|open| *open).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    *then
                }
                Self::Slow(wait, then) => {
                    tokio::time::sleep(wait).await;
                    *then
                }
                Self::CloseMidAnswer => return half_an_answer(),
                Self::Require(guard, then) if guard(&request.headers) => *then,
                Self::Require(..) => Self::status(401),
                Self::First(times, first, _) if nth <= times => *first,
                Self::First(_, _, then) => *then,
                Self::Choose(choice) => choice(request),
            };
        }
    }
}

/// A 500, so that it is not taken for success, with a body that breaks off. The server sends the first half when the
/// body pauses, before the error.
fn half_an_answer() -> Response<Body> {
    let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"half of it")))]);
    let broken = stream::once(async {
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::BrokenPipe))
    });
    let mut response = Response::new(StreamBody::new(first.chain(broken)).boxed_unsync());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response.headers_mut().insert(CONTENT_LENGTH, 20.into());
    response
}
