//! The receiver of the bench: answers every request with 200 and counts it, on one thread with a runtime of its own. At
//! `/token` it issues one token to every client, without a check of credentials.
//!
//! It uses the accept loop of the test kit, but not its receiver: the broker, the hub and this receiver share the
//! processors, so its time for a delivery lowers every figure. A request is one pass of `httparse` over the bytes and one
//! small map entry, and all requests of one read are answered by one write. The receiver of the test kit builds a header
//! map for each request and stores it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hub_testkit::connections::serve_connections;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::error::BenchError;
use super::tally::{Arrival, Tally, WebhookId};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
/// The one access token.
const BEARER: &[u8] = b"Bearer bench-token";
const TOKEN: &str = r#"{"access_token":"bench-token","token_type":"Bearer","expires_in":3600}"#;
/// The answer to invalid requests: without a length, too large, not HTTP.
const REFUSAL: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const READ: usize = 16 * 1024;
/// The largest request in bytes.
const MOST: usize = 1024 * 1024;
/// Connections at the same time; further ones wait.
const MOST_CONNECTIONS: usize = 4_096;
const HEADERS: usize = 64;

/// Runs until it is dropped.
pub(crate) struct CountingReceiver {
    url: Url,
    shared: Arc<SharedTally>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

struct SharedTally {
    tally: Mutex<Tally>,
    /// The number of distinct ids to wait for, and whether they have arrived.
    wanted: watch::Sender<Wanted>,
}

#[derive(Debug, Clone, Copy)]
struct Wanted {
    count: usize,
    arrived: bool,
}

impl SharedTally {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self, arrival: Arrival) {
        let distinct = self.tally().arrived(arrival);
        if let Some(distinct) = distinct
            && self.wanted.borrow().count == distinct
        {
            self.wanted.send_modify(|wanted| wanted.arrived = true);
        }
    }
}

impl CountingReceiver {
    /// Listens on a free port of loopback.
    pub(crate) fn start() -> Result<Self, BenchError> {
        // Bound before the thread starts, so that the address is known and a failure is returned here.
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(BenchError::Receiver)?;
        listener.set_nonblocking(true).map_err(BenchError::Receiver)?;
        let address = listener.local_addr().map_err(BenchError::Receiver)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(BenchError::Receiver)?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener).map_err(BenchError::Receiver)?
        };
        let wanted = watch::Sender::new(Wanted { count: usize::MAX, arrived: false });
        let shared = Arc::new(SharedTally { tally: Mutex::default(), wanted });
        let stop = CancellationToken::new();
        let (connections, stopped) = (shared.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("receiver".to_owned())
            .spawn(move || {
                let serve = |stream| serve(stream, connections.clone());
                let serving = serve_connections(listener, MOST_CONNECTIONS, serve);
                // Ends the connections, too.
                runtime.block_on(stopped.run_until_cancelled(serving));
            })
            .map_err(BenchError::Receiver)?;
        Ok(Self { url: url_of(address), shared, stop, thread: Some(thread) })
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.shared.tally()
    }

    pub(crate) fn token_url(&self) -> Url {
        self.url.join("token").unwrap_or_else(|_| self.url.clone())
    }

    /// Forgets all arrivals.
    pub(crate) fn clear(&self) {
        self.tally().clear();
    }

    /// Waits until `count` distinct ids have arrived, and reports their number at intervals. Returns early if none
    /// arrives for `patience`.
    pub(crate) async fn wait_for(&self, count: usize, patience: Duration, mut progress: impl FnMut(usize)) {
        let mut wanted = self.shared.wanted.subscribe();
        self.shared.wanted.send_replace(Wanted { count, arrived: false });
        // Ids that arrived before the call.
        let (mut before, mut quiet_since) = (self.tally().distinct(), Instant::now());
        while before < count {
            progress(before);
            let all = wanted.wait_for(|wanted| wanted.arrived);
            if tokio::time::timeout(Duration::from_millis(250), all).await.is_ok() {
                break;
            }
            let now = self.tally().distinct();
            if now > before {
                (before, quiet_since) = (now, Instant::now());
            } else if quiet_since.elapsed() >= patience {
                return;
            }
        }
        progress(self.tally().distinct());
    }
}

impl Drop for CountingReceiver {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn url_of(address: SocketAddr) -> Url {
    format!("http://{address}/").parse().expect("an address makes a URL")
}

async fn serve(mut stream: TcpStream, shared: Arc<SharedTally>) {
    let mut held = Vec::with_capacity(READ);
    let mut answers = Vec::new();
    loop {
        match stream.read_buf(&mut held).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let mut used = 0;
        answers.clear();
        let refused = loop {
            match request(&held[used..]) {
                Read::Whole { length, arrival } => {
                    shared.arrived(arrival);
                    used += length;
                    answers.extend_from_slice(ANSWER);
                }
                Read::Token { length } => {
                    shared.tally().issued_token();
                    used += length;
                    answers.extend_from_slice(token_answer().as_bytes());
                }
                Read::Part => break held.len() - used > MOST,
                Read::Refused => break true,
            }
        };
        held.drain(..used);
        if refused {
            answers.extend_from_slice(REFUSAL);
        }
        if stream.write_all(&answers).await.is_err() || refused {
            return;
        }
    }
}

fn token_answer() -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{TOKEN}", TOKEN.len())
}

/// The result of [`request`].
pub(crate) enum Read {
    Whole {
        length: usize,
        arrival: Arrival,
    },
    /// A token request.
    Token {
        length: usize,
    },
    Part,
    Refused,
}

/// Reads one HTTP/1.1 request with a `content-length` from the start of the bytes.
pub(crate) fn request(bytes: &[u8]) -> Read {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Read::Part,
        Err(_) => return Read::Refused,
    };
    let (mut body, mut id, mut token, mut signed) = (None, None, false, false);
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            body = std::str::from_utf8(header.value).ok().and_then(|text| text.trim().parse::<usize>().ok());
        } else if header.name.eq_ignore_ascii_case("webhook-id") {
            id = WebhookId::read(header.value);
        } else if header.name.eq_ignore_ascii_case("authorization") {
            token = header.value == BEARER;
        } else if header.name.eq_ignore_ascii_case("webhook-signature") {
            signed = header.value.starts_with(b"v1,");
        }
    }
    let length = match body {
        Some(body) if body <= MOST && bytes.len() >= head + body => head + body,
        Some(body) if body <= MOST => return Read::Part,
        _ => return Read::Refused,
    };
    let path = request.path.unwrap_or_default();
    if path == "/token" {
        return Read::Token { length };
    }
    let number = path.rsplit('/').next().and_then(|last| last.parse().ok());
    let arrival =
        Arrival { id, path: number.unwrap_or(0), with_credentials: token && signed, at: Instant::now() };
    Read::Whole { length, arrival }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn exchange(receiver: &CountingReceiver, parts: &[&str], answer: usize) -> String {
        let address = receiver.url().socket_addrs(|| None).unwrap();
        let mut stream = TcpStream::connect(&address[..]).await.unwrap();
        for part in parts {
            stream.write_all(part.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut got = vec![0; answer];
        stream.read_exact(&mut got).await.unwrap();
        String::from_utf8(got).unwrap()
    }

    #[tokio::test]
    async fn requests_are_counted_in_one_piece_or_in_several() {
        let receiver = CountingReceiver::start().unwrap();
        let post = |n| {
            format!("POST / HTTP/1.1\r\nWebhook-Id: {}\r\ncontent-length: 3\r\n\r\nabc", WebhookId::text(n))
        };
        let both = post(1) + &post(2);
        let (start, end) = both.split_at(80);
        let got = exchange(&receiver, &[start, end, &post(2)], 3 * ANSWER.len()).await;
        assert_eq!(got.as_bytes(), ANSWER.repeat(3));
        receiver.wait_for(2, Duration::from_secs(5), |_| {}).await;
        let ids: Vec<_> = (1..=3).filter_map(|n| WebhookId::read(WebhookId::text(n).as_bytes())).collect();
        let account = receiver.tally().account(&ids);
        assert_eq!((account.missing, account.doubles, account.unexpected), (1, 1, 0));
    }

    #[tokio::test]
    async fn token_requests_are_answered_and_counted_apart_from_deliveries() {
        let receiver = CountingReceiver::start().unwrap();
        let ask = "POST /token HTTP/1.1\r\ncontent-length: 3\r\n\r\na=b";
        let got = exchange(&receiver, &[ask], token_answer().len()).await;
        assert_eq!(got, token_answer());
        let id = WebhookId::text(1);
        let with = |more: &str| {
            format!("POST /hooks/12 HTTP/1.1\r\nwebhook-id: {id}\r\n{more}content-length: 0\r\n\r\n")
        };
        let signature = "webhook-signature: v1,c2lnbmVk\r\n";
        let requests = [
            with(""),
            with(signature),
            with("authorization: Bearer bench-token\r\n"),
            with(&format!("{signature}authorization: Bearer bench-token\r\n")),
        ];
        exchange(&receiver, &[&requests.concat()], 4 * ANSWER.len()).await;
        receiver.wait_for(1, Duration::from_secs(5), |_| {}).await;
        let tally = receiver.tally();
        assert_eq!((tally.tokens(), tally.with_credentials(), tally.distinct()), (1, 1, 1));
        assert_eq!(tally.first_path(WebhookId::read(id.as_bytes()).unwrap()), Some(12));
    }

    #[tokio::test]
    async fn a_request_without_a_length_is_rejected() {
        let receiver = CountingReceiver::start().unwrap();
        for text in ["POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", "\u{1}\r\n\r\n"] {
            let got = exchange(&receiver, &[text], REFUSAL.len()).await;
            assert_eq!(got.as_bytes(), REFUSAL, "{text:?}");
        }
        assert_eq!(receiver.tally().distinct(), 0);
    }
}
