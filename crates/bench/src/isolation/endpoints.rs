//! The endpoints that disturb: each has a listener of its own, and a face that can change.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hub_testkit::connections::serve_connections;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use url::Url;

use crate::counting_receiver::{Read, request};
use crate::error::BenchError;

const READ: usize = 16 * 1024;
/// Connections to one endpoint at the same time.
const MOST_CONNECTIONS: usize = 4_096;

/// How an endpoint behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Face {
    /// Reads and never answers.
    Hang,
    /// Resets each connection as soon as a request arrives.
    Reset,
    /// Answers with this status.
    Answer(u16),
    /// Answers 429 with a Retry-After of this many seconds.
    RetryAfter(u64),
    /// Answers 200 after this many seconds.
    Slow(u64),
    /// Sends one byte of its answer per second.
    Trickle,
    /// Answers 200 to this many requests per second, one after the other.
    Limited(f64),
}

/// Runs until it is dropped.
pub(super) struct Endpoints {
    urls: Vec<Url>,
    face: watch::Sender<Face>,
    shared: Arc<SharedEndpoint>,
    // Ends with its tasks, and they with their connections.
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct SharedEndpoint {
    /// Requests that were answered with 200.
    accepted: AtomicU64,
    /// When the endpoint with a limit can take its next request.
    free_at: Mutex<Option<Instant>>,
}

impl Endpoints {
    pub(super) async fn start(count: usize, face: Face) -> Result<Self, BenchError> {
        let (face, shared) = (watch::Sender::new(face), Arc::<SharedEndpoint>::default());
        let (mut urls, mut serving) = (Vec::new(), JoinSet::new());
        for _ in 0..count {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(BenchError::Receiver)?;
            let address = listener.local_addr().map_err(BenchError::Receiver)?;
            urls.push(format!("http://{address}/").parse().expect("an address makes a URL"));
            let (face, shared) = (face.subscribe(), shared.clone());
            serving.spawn(async move {
                let serve = |stream| serve(stream, face.clone(), shared.clone());
                serve_connections(listener, MOST_CONNECTIONS, serve).await;
            });
        }
        Ok(Self { urls, face, shared, _serving: serving })
    }

    pub(super) fn urls(&self) -> &[Url] {
        &self.urls
    }

    /// Sets the face of all of them; requests in progress keep the previous one.
    pub(super) fn set(&self, face: Face) {
        self.face.send_replace(face);
    }

    /// The number of requests that were answered with 200.
    pub(super) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

async fn serve(mut stream: TcpStream, face: watch::Receiver<Face>, shared: Arc<SharedEndpoint>) {
    let mut held = Vec::with_capacity(READ);
    loop {
        match stream.read_buf(&mut held).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        loop {
            let length = match request(&held) {
                Read::Whole { length, .. } | Read::Token { length } => length,
                Read::Part => break,
                Read::Refused => return,
            };
            held.drain(..length);
            let face = *face.borrow();
            if answer(&mut stream, face, &shared).await.is_err() {
                return;
            }
        }
    }
}

/// Answers one request; fails if the connection is not to be used again.
async fn answer(stream: &mut TcpStream, face: Face, shared: &SharedEndpoint) -> std::io::Result<()> {
    match face {
        Face::Hang => ended(stream).await,
        Face::Reset => {
            stream.set_zero_linger()?;
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
        Face::Answer(status) => shared.status(stream, status, "").await,
        Face::RetryAfter(seconds) => shared.status(stream, 429, &format!("retry-after: {seconds}\r\n")).await,
        Face::Slow(seconds) => {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            shared.status(stream, 200, "").await
        }
        Face::Trickle => {
            for byte in
                "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n".bytes().chain(std::iter::repeat(b'x'))
            {
                stream.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(())
        }
        Face::Limited(per_second) => {
            tokio::time::sleep_until(shared.next_free(per_second)).await;
            shared.status(stream, 200, "").await
        }
    }
}

/// Reads until the other side closes the connection.
async fn ended(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut ignored = [0; 1024];
    while stream.read(&mut ignored).await? > 0 {}
    Err(std::io::ErrorKind::ConnectionAborted.into())
}

impl SharedEndpoint {
    async fn status(&self, stream: &mut TcpStream, status: u16, header: &str) -> std::io::Result<()> {
        // Counted first: the window may end while the answer is on its way.
        self.accepted.fetch_add(u64::from(status == 200), Ordering::Relaxed);
        stream.write_all(format!("HTTP/1.1 {status} x\r\n{header}content-length: 0\r\n\r\n").as_bytes()).await
    }

    /// The end of the time that the next request takes.
    fn next_free(&self, per_second: f64) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let next = free_at.unwrap_or(now).max(now) + Duration::from_secs_f64(1.0 / per_second);
        *free_at = Some(next);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(endpoints: &Endpoints) -> std::io::Result<String> {
        let address = endpoints.urls()[0].socket_addrs(|| None)?;
        let mut stream = TcpStream::connect(&address[..]).await?;
        stream.write_all(b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab").await?;
        let mut got = vec![0; 128];
        let length = stream.read(&mut got).await?;
        Ok(String::from_utf8_lossy(&got[..length]).into_owned())
    }

    #[tokio::test]
    async fn each_face_answers_as_it_is_named() {
        let endpoints = Endpoints::start(2, Face::Answer(503)).await.unwrap();
        assert_eq!(endpoints.urls().len(), 2);
        assert!(ask(&endpoints).await.unwrap().starts_with("HTTP/1.1 503 "));
        endpoints.set(Face::RetryAfter(9));
        assert!(ask(&endpoints).await.unwrap().contains("\r\nretry-after: 9\r\n"));
        endpoints.set(Face::Reset);
        assert!(ask(&endpoints).await.map_or(true, |text| text.is_empty()));
        assert_eq!(endpoints.accepted(), 0);
        endpoints.set(Face::Trickle);
        assert_eq!(ask(&endpoints).await.unwrap(), "H");
        endpoints.set(Face::Hang);
        let hanging = tokio::time::timeout(Duration::from_millis(100), ask(&endpoints)).await;
        assert!(hanging.is_err(), "no answer");
    }

    #[tokio::test]
    async fn a_limited_one_takes_its_requests_one_after_the_other() {
        let endpoints = Endpoints::start(1, Face::Limited(20.0)).await.unwrap();
        let answers = futures_util::future::join_all((0..4).map(|_| ask(&endpoints))).await;
        assert!(answers.into_iter().all(|answer| answer.unwrap().starts_with("HTTP/1.1 200 ")));
        assert_eq!(endpoints.accepted(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_to_a_limited_one_ends_a_share_of_a_second_after_the_one_before() {
        let (shared, start) = (SharedEndpoint::default(), Instant::now());
        let ends = |count: usize| -> Vec<_> { (0..count).map(|_| shared.next_free(20.0) - start).collect() };
        assert_eq!(ends(4), [50, 100, 150, 200].map(Duration::from_millis));
        // What it was idle is not made up for.
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(ends(2), [1_050, 1_100].map(Duration::from_millis));
    }
}
