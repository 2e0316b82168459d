//! Answers byte by byte: unusual heads, and bodies that never end.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::MissedTickBehavior;

use super::*;

/// The end of an answer.
#[derive(Debug, Clone, Copy)]
enum Then {
    Close,
    /// A reset, as if the process was killed.
    Reset,
    Stall,
    /// A byte every 100 ms, or less often on a busy machine.
    Drip,
}

/// Answers each request on each connection with the same bytes; ends with the value.
struct Raw {
    url: String,
    connections: Arc<Mutex<usize>>,
    /// Bytes that it has dripped.
    dripped: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Raw {
    async fn start(answer: impl Into<Vec<u8>>, then: Then) -> Self {
        let answer: Arc<[u8]> = answer.into().into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let connections = Arc::new(Mutex::new(0));
        let dripped = Arc::new(AtomicUsize::new(0));
        let (count, drops) = (connections.clone(), dripped.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                *count.lock().unwrap() += 1;
                open.spawn(serve_raw(stream, answer.clone(), then, drops.clone()));
            }
        });
        Self { url, connections, dripped, _task: task }
    }

    fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

async fn serve_raw(mut stream: TcpStream, answer: Arc<[u8]>, then: Then, dripped: Arc<AtomicUsize>) {
    let mut read = Vec::new();
    while !read.ends_with(EVENT.as_bytes()) {
        if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
            return;
        }
    }
    if stream.write_all(&answer).await.is_err() {
        return;
    }
    match then {
        Then::Close => {}
        Then::Reset => stream.set_zero_linger().unwrap(),
        Then::Stall => drop(stream.read_u8().await),
        Then::Drip => {
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while stream.write_all(b"x").await.is_ok() {
                dripped.fetch_add(1, Ordering::Relaxed);
                tick.tick().await;
            }
        }
    }
}

async fn attempt(http: &HttpDelivery, url: &str, timeout: &str) -> Attempt {
    let json = format!(r#"{{"url":"{url}","timeout":"{timeout}"}}"#);
    let target = Target::prepare(&identity(), &serde_json::from_str(&json).unwrap(), &Opener).unwrap();
    http.attempt(&target, &view(), 1).await
}

const LIMIT: Duration = Duration::from_secs(60);
/// The length of the body that is dripped: 20 times what an attempt waits for.
const DRIPPED: usize = 200;

/// Bodies that break off, stall, drip or are badly framed: their headers, the bytes that arrive, their end, and the excerpt
/// that is kept.
const BODIES: [(&str, &str, Then, &str); 14] = [
    ("content-length: 100", "ten bytes.", Then::Close, "ten bytes."),
    ("content-length: 100", "", Then::Close, ""),
    ("content-length: 100", "ten bytes.", Then::Reset, "ten bytes."),
    ("content-length: 100", "ten bytes.", Then::Stall, "ten bytes."),
    ("content-length: 100", "", Then::Stall, ""),
    ("content-length: 200", "", Then::Drip, "xx"),
    ("content-length: 2", "no, and more than announced", Then::Stall, "no"),
    ("transfer-encoding: chunked", "5\r\nhel", Then::Close, "hel"),
    ("transfer-encoding: chunked", "zz\r\nhello\r\n0\r\n\r\n", Then::Close, ""),
    ("transfer-encoding: chunked", "5\r\nhelloXX5\r\nworld", Then::Stall, "hello"),
    ("transfer-encoding: chunked", "ffffffffffffffffffff\r\nhello", Then::Stall, ""),
    ("transfer-encoding: gzip, identity", "ten bytes.", Then::Stall, "ten bytes."),
    (
        "content-encoding: gzip\r\ncontent-length: 4",
        "\x1f\x0b\x00!",
        Then::Close,
        "(the body is compressed, and not kept)",
    ),
    ("connection: close", "ten bytes.", Then::Stall, "ten bytes."),
];

#[tokio::test]
async fn the_status_counts_even_if_the_body_breaks_off() {
    let http = local();
    let mut attempts = Vec::new();
    for status in [200, 201, 204, 302, 400, 401, 403, 404, 410, 429, 500, 503] {
        for (headers, body, then, excerpt) in BODIES {
            let http = &http;
            attempts.push(async move {
                let head = format!("HTTP/1.1 {status} Some Words\r\nretry-after: 7\r\n{headers}\r\n\r\n");
                let server = Raw::start(head + body, then).await;
                let case = format!("{status} with {headers}, {body:?}, {then:?}");
                let attempt = tokio::time::timeout(LIMIT, attempt(http, &server.url, "1s")).await;
                let attempt = attempt.unwrap_or_else(|_| panic!("{case}: it still waits for the body"));
                let dripped = server.dripped.load(Ordering::Relaxed);
                assert!(dripped < DRIPPED, "{case}: it has waited for the end of the body");
                let success = (200..300).contains(&status);
                let retry_after = (!success).then_some(Duration::from_secs(7));
                assert_eq!(attempt.outcome, Outcome::Answered { status, retry_after }, "{case}: {attempt:?}");
                let kept = attempt.answer_excerpt.unwrap_or_default();
                if success || excerpt.is_empty() {
                    assert_eq!(kept, "", "{case}");
                } else if !matches!(then, Then::Reset) {
                    // A reset may overtake the bytes before it.
                    assert!(kept.starts_with(excerpt), "{case}: {kept:?}");
                }
            });
        }
    }
    join_all(attempts).await;
}

/// A connection with unread bytes is closed, so that they are never the answer to the next request; a connection whose body
/// was read is reused.
#[tokio::test]
async fn unread_bytes_do_not_answer_the_next_request() {
    let smuggled = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    for (headers, body) in [
        ("content-length: 100", smuggled),
        ("content-length: 0", smuggled),
        ("transfer-encoding: chunked", &format!("0\r\n\r\n{smuggled}")),
        ("transfer-encoding: chunked", &format!("zz\r\n{smuggled}")),
    ] {
        let server = Raw::start(format!("HTTP/1.1 503 No\r\n{headers}\r\n\r\n{body}"), Then::Stall).await;
        let http = local();
        for _ in 0..3 {
            let attempt = attempt(&http, &server.url, "300ms").await;
            assert_eq!(attempt.outcome, answered(503), "{headers} {body:?}: {attempt:?}");
        }
        assert_eq!(server.connections(), 3, "{headers} {body:?}");
    }
}

/// With OAuth2, the status of a refusal counts even if its body never ends: the token is replaced within the attempt.
#[tokio::test]
async fn a_refused_token_is_replaced_although_the_refusal_never_ends() {
    for (headers, body, then, _) in BODIES {
        for status in [401, 403] {
            let issuer = Server::start(|_| text(200, r#"{"access_token":"a","expires_in":3600}"#)).await;
            let head = format!("HTTP/1.1 {status} No\r\n{headers}\r\n\r\n");
            let server = Raw::start(head + body, then).await;
            let rest = format!(
                r#","auth":{{"type":"oauth2","token_url":"{}","client_id":"c","client_secret":"s"}}"#,
                issuer.url()
            );
            let attempt = local().attempt(&target(&server.url, &rest), &view(), 1).await;
            assert_eq!(attempt.outcome, answered(status), "{headers} {body:?} {then:?}: {attempt:?}");
            assert_eq!((server.connections(), issuer.got().len()), (2, 2), "{headers} {body:?} {then:?}");
        }
    }
}

#[tokio::test]
async fn unusual_heads_are_read_as_common_clients_read_them() {
    let many: String = (0..200).map(|number| format!("x-{number}: {number}\r\n")).collect();
    let long = format!("x-long: {}\r\n", "y".repeat(60_000));
    let empty = "content-length: 0\r\n";
    let heads: Vec<Vec<u8>> = vec![
        format!("HTTP/1.1 410 Gone\r\n{empty}\r\n").into(),
        format!("HTTP/1.1 410\r\n{empty}\r\n").into(),
        format!("HTTP/1.1 410 \r\n{empty}\r\n").into(),
        format!("HTTP/1.0 410 Gone\r\n{empty}\r\n").into(),
        format!("HTTP/1.1 410 Gone\n{}\n", empty.replace("\r\n", "\n")).into(),
        format!("\r\nHTTP/1.1 410 Gone\r\n{empty}\r\n").into(),
        format!("HTTP/1.1 410 Gone\r\nx-folded: one\r\n two\r\n\tthree\r\n{empty}\r\n").into(),
        format!("HTTP/1.1 410 Gone\r\nx-blank : before the colon\r\n{empty}\r\n").into(),
        "HTTP/1.1 410 Gone\r\nContent-Length : 0\r\n\r\n".into(),
        format!("HTTP/1.1 410 Gone\r\nno colon at all\r\n{empty}\r\n").into(),
        format!("HTTP/1.1 410 Gone\r\n: no name\r\n{empty}\r\n").into(),
        format!("HTTP/1.1 410 Gone\r\nx na@me: blanks within\r\n{empty}\r\n").into(),
        format!("HTTP/1.1 410 Gone\r\nx-control: \x07\x01\r\n{empty}\r\n").into(),
        format!("HTTP/1.1 410 Gone\r\nx-empty:\r\n{empty}\r\n").into(),
        format!("HTTP/1.1 410 Gone\r\n{many}{empty}\r\n").into(),
        format!("HTTP/1.1 410 Gone\r\n{long}{empty}\r\n").into(),
        format!("HTTP/1.1 410 Gone\r\n{empty}{empty}\r\n").into(),
        "HTTP/1.1 410 Gone\r\ncontent-length: 0, 0\r\n\r\n".into(),
        "HTTP/1.1 410 Gone\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        [b"HTTP/1.1 410 G\xf6ne\r\nx-latin: M\xfcller\r\n".as_slice(), empty.as_bytes(), b"\r\n"].concat(),
        format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 410 Gone\r\n{empty}\r\n").into(),
        format!("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 410 Gone\r\n{empty}\r\n").into(),
        b"HTTP/1.1 410 Gone\r\n\r\n".to_vec(),
    ];
    for head in heads {
        let server = Raw::start(head.clone(), Then::Close).await;
        let attempt = attempt(&local(), &server.url, "5s").await;
        let text = String::from_utf8_lossy(&head[..head.len().min(300)]).into_owned();
        assert_eq!(attempt.outcome, answered(410), "{text:?}: {attempt:?}");
    }
}

/// A 2xx or a 410 counts even if its framing is invalid.
#[tokio::test]
async fn the_status_counts_although_the_framing_is_invalid() {
    for status in [200, 204, 410, 400, 503] {
        for rest in [
            "content-length: 5\r\ncontent-length: 6\r\n\r\n",
            "content-length: five\r\n\r\n",
            "content-length: -1\r\n\r\n",
            "content-length: +3\r\n\r\nabc",
            "content-length: 1180591620717411303424\r\n\r\n",
            "x: a\0b\r\n\r\n",
        ] {
            let head = format!("HTTP/1.1 {status} So\r\n{rest}");
            let server = Raw::start(head.clone().into_bytes(), Then::Close).await;
            let attempt = attempt(&local(), &server.url, "5s").await;
            assert_eq!(attempt.outcome, answered(status), "{head:?}: {attempt:?}");
        }
    }
    let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let server = Raw::start(old.as_bytes().to_vec(), Then::Close).await;
    assert_eq!(attempt(&local(), &server.url, "5s").await.outcome, answered(200));
}

/// A receiver that has begun a 2xx has the event, so it does not get it again. Anything else is asked for again.
#[tokio::test]
async fn a_2xx_counts_although_its_head_is_incomplete_or_too_large() {
    let too_many: String = (0..300).map(|number| format!("x-{number}: {number}\r\n")).collect();
    let rests = [
        String::new(),
        "\r\n".to_owned(),
        " So\r\n".to_owned(),
        " So\r\ncontent-len".to_owned(),
        format!(" So\r\n{too_many}\r\n"),
        format!(" So\r\nx: {}\r\n\r\n", "y".repeat(10 << 20)),
    ];
    for status in [200, 202, 204, 299, 302, 404, 410, 500, 503] {
        for (number, rest) in rests.iter().enumerate() {
            for then in [Then::Close, Then::Reset] {
                let server = Raw::start(format!("HTTP/1.1 {status}{rest}"), then).await;
                let outcome = attempt(&local(), &server.url, "20s").await.outcome;
                // The first one may be the beginning of another number.
                let counts = number > 0 && (200..300).contains(&status);
                let what = format!("{status} {:?} {then:?}: {outcome:?}", &rest[..rest.len().min(30)]);
                assert_eq!(outcome == answered(status), counts, "{what}");
                assert!(counts || matches!(outcome, Outcome::Failed(_)), "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_2xx_counts_although_its_head_does_not_end_in_time() {
    for (head, counts) in [
        ("HTTP/1.1 200 OK\r\ncontent-len", true),
        ("HTTP/1.1 204\n", true),
        ("HTTP/1.1 200", false),
        ("HTTP/1.1 100 Continue\r\n", false),
        ("HTTP/1.1 503 No\r\n", false),
        ("HTTP/1.1 410 Gone\r\n", false),
    ] {
        for then in [Then::Stall, Then::Drip] {
            // Headers that come byte by byte.
            let server = Raw::start(head, then).await;
            let outcome = attempt(&local(), &server.url, "700ms").await.outcome;
            let is_2xx = matches!(outcome, Outcome::Answered { status: 200 | 204, .. });
            assert_eq!(is_2xx, counts, "{head:?} {then:?}: {outcome:?}");
        }
    }
}

/// A connection that answers one request, and nothing of the next ones.
#[tokio::test]
async fn a_missing_answer_never_counts_as_the_previous_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = Vec::new();
            while !read.ends_with(EVENT.as_bytes()) {
                if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            open.push(stream);
        }
    });
    let http = local();
    for _ in 0..5 {
        assert_eq!(attempt(&http, &url, "5s").await.outcome, answered(200));
        assert_eq!(attempt(&http, &url, "100ms").await.outcome, Outcome::Failed(Failure::Timeout));
    }
}

/// On a connection that answered another request before.
#[tokio::test]
async fn an_invalid_answer_never_counts_as_the_previous_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let answers = [
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "HTTP/1.1 410 Gone\r\ncontent-length: five\r\n\r\n",
        "\0\0\0\r\n\r\n",
    ];
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = 0;
        let mut answers = answers.into_iter();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections += 1;
            let mut read = Vec::new();
            while stream.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
                if read.ends_with(EVENT.as_bytes()) {
                    read.clear();
                    let Some(answer) = answers.next() else { return connections };
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
            if answers.len() == 0 {
                return connections;
            }
        }
        connections
    });
    let http = local();
    let mut outcomes = Vec::new();
    for _ in 0..4 {
        outcomes.push(attempt(&http, &url, "5s").await.outcome);
    }
    let malformed = Outcome::Failed(Failure::Malformed);
    assert_eq!(outcomes, [answered(200), malformed.clone(), answered(410), malformed]);
    assert_eq!(task.join_next().await.unwrap().unwrap(), 3, "the first two went over one connection");
}

/// On HTTP/1 as well as on HTTP/2: see [`super::tls`].
#[tokio::test]
async fn a_connection_without_an_answer_in_time_takes_no_further_request() {
    let (http, server) = (local(), Raw::start("", Then::Stall).await);
    for connections in 1..4 {
        let outcome = attempt(&http, &server.url, "200ms").await.outcome;
        assert_eq!((outcome, server.connections()), (Outcome::Failed(Failure::Timeout), connections));
    }
}

#[tokio::test]
async fn the_error_names_the_malformed_part_of_a_head() {
    let too_many: String = (0..300).map(|number| format!("x-{number}: {number}\r\n")).collect();
    for (head, said) in [
        ("ICY 200 OK\r\n\r\n".to_owned(), "invalid HTTP version"),
        ("http/1.1 200 OK\r\n\r\n".to_owned(), "invalid HTTP version"),
        ("HTTP/7.0 200 OK\r\n\r\n".to_owned(), "invalid HTTP version"),
        ("HTTP/1.1 2OO OK\r\n\r\n".to_owned(), "invalid HTTP status-code"),
        (format!("HTTP/1.1 500 No\r\n{too_many}\r\n"), "head is too large"),
        (format!("HTTP/1.1 410 Gone\r\nx: {}", "y".repeat(1 << 20)), "head is too large"),
    ] {
        let server = Raw::start(head.clone(), Then::Stall).await;
        let attempt = attempt(&local(), &server.url, "5s").await;
        let head = &head[..head.len().min(80)];
        assert_eq!(attempt.outcome, Outcome::Failed(Failure::Malformed), "{head:?}: {attempt:?}");
        assert!(attempt.error_text().contains(said), "{head:?}: {}", attempt.error_text());
    }
}

/// Sends `start`, then the same piece until the peer closes; returns the number of bytes.
async fn flood(start: &'static str, piece: &str) -> (String, JoinSet<usize>) {
    let pieces = piece.repeat(4096 / piece.len());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut task = JoinSet::new();
    task.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(EVENT.as_bytes()) {
            assert!(stream.read_buf(&mut read).await.unwrap() > 0, "closed within a request");
        }
        let mut taken = 0;
        let mut wrote = stream.write_all(start.as_bytes()).await;
        while wrote.is_ok() {
            taken += pieces.len();
            wrote = stream.write_all(pieces.as_bytes()).await;
        }
        taken
    });
    (url, task)
}

/// The socket buffers of both sides hold more bytes than are read.
const MOST_TAKEN: usize = 16 << 20;

#[tokio::test]
async fn an_endless_answer_is_cut_at_the_limit() {
    let failed = Outcome::Failed(Failure::Malformed);
    for (start, piece, expected) in [
        ("", "HTTP/1.1 100 Continue\r\n\r\n", failed.clone()),
        ("", "HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n", failed.clone()),
        ("", "\r\n", failed.clone()),
        ("", "y", failed.clone()),
        ("HTTP/1.1 410 Gone\r\n", "x-a: b\r\n", failed.clone()),
        ("HTTP/1.1 410 Gone\r\n", "x-a: b\r\n c\r\n", failed.clone()),
        ("HTTP/1.1 410 Gone\r\nx-a: ", "y", failed),
        // The receiver has the event.
        ("HTTP/1.1 200 OK\r\n", "x-a: b\r\n", answered(200)),
        ("HTTP/1.1 204 No Content\r\nx-a: ", "y", answered(204)),
        ("HTTP/1.1 410 Gone\r\n\r\n", "y", answered(410)),
        ("HTTP/1.1 410 Gone\r\ntransfer-encoding: chunked\r\n\r\n", "1\r\ny\r\n", answered(410)),
        ("HTTP/1.1 410 Gone\r\ntransfer-encoding: chunked\r\n\r\n1;x=", "y", answered(410)),
        ("HTTP/1.1 410 Gone\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ", "y", answered(410)),
        ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "y", answered(200)),
    ] {
        let (url, mut server) = flood(start, piece).await;
        let attempt = attempt(&local(), &url, "60s").await;
        assert_eq!(attempt.outcome, expected, "{start:?} {piece:?}: {attempt:?}");
        let taken = tokio::time::timeout(Duration::from_secs(30), server.join_next()).await;
        let taken = taken.unwrap_or_else(|_| panic!("{start:?} {piece:?}: the connection stays open"));
        let taken = taken.unwrap().unwrap();
        assert!(taken < MOST_TAKEN, "{start:?} {piece:?}: {taken} bytes were taken");
    }
}
