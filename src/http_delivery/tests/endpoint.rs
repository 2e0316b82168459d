//! Answers and failures of endpoints.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::*;

#[tokio::test]
async fn structured_mode_sends_the_event_unchanged() {
    let before = SystemTime::now();
    let server = Server::start(ok).await;
    let attempt = local()
        .attempt(&target(&server.url(), r#","headers":{"x-team":"billing","user-agent":"mine"}"#), &view(), 2)
        .await;
    assert_eq!(attempt.outcome, answered(204));
    assert_eq!(attempt.answer_excerpt, None);
    assert!(attempt.latency > Duration::ZERO);
    let got = server.got().remove(0);
    assert_eq!(got.body, EVENT);
    assert_eq!(uri(&got), "/hook");
    assert_eq!(got.header("content-type"), "application/cloudevents+json; charset=UTF-8");
    assert_eq!(got.header("content-length"), EVENT.len().to_string());
    assert_eq!(got.header("webhook-id"), "env_1");
    assert_eq!(got.header("webhook-attempt"), "2");
    assert_eq!(got.header("user-agent"), concat!("integration-hub/", env!("CARGO_PKG_VERSION")));
    assert_eq!(got.header("x-team"), "billing");
    assert_eq!(got.header("traceparent").len(), 55);
    assert!(!got.headers.contains_key("webhook-signature"));
    let sent: u64 = got.header("webhook-timestamp").parse().unwrap();
    let (sent, after) = (SystemTime::UNIX_EPOCH + Duration::from_secs(sent), SystemTime::now());
    let next = sent + Duration::from_secs(1);
    assert!(before < next && sent <= after, "{sent:?} is not from {before:?} to {after:?}");
    assert!(got.headers.values().all(|value| !value.is_empty()), "{:?}", got.headers);
}

#[tokio::test]
async fn binary_mode_sends_attributes_as_headers() {
    let server = Server::start(ok).await;
    local().attempt(&target(&server.url(), r#","content_mode":"binary""#), &view(), 1).await;
    let got = server.got().remove(0);
    assert_eq!(got.body, r#"{"user_id": "u1"}"#);
    assert_eq!(got.header("content-type"), "application/json");
    assert_eq!((got.header("ce-id"), got.header("ce-type")), ("e%201", "user.created"));
    assert_eq!((got.header("ce-specversion"), got.header("ce-tenant")), ("1.0", "acme"));
}

#[tokio::test]
async fn connections_are_reused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    // Only one connection is accepted: a second attempt on a new one would time out.
    server.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for body in ["one", "", "three"] {
            request_of(&mut stream).await;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let (http, target) = (local(), target(&url, ""));
    for _ in 0..3 {
        assert_eq!(http.attempt(&target, &view(), 1).await.outcome, answered(200));
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Server::start(ok).await;
    let location = elsewhere.url();
    let server = Server::start(move |_| with_headers(307, [("location", &location)], "")).await;
    let attempt = local().attempt(&target(&server.url(), ""), &view(), 1).await;
    assert_eq!(attempt.outcome, answered(307));
    assert!(elsewhere.got().is_empty());
}

#[tokio::test]
async fn a_failed_answer_is_returned_with_its_retry_after_and_excerpt() {
    let server = Server::start(|_| with_headers(503, [("retry-after", "120")], "back at noon")).await;
    let attempt = local().attempt(&target(&server.url(), ""), &view(), 1).await;
    let retry_after = Some(Duration::from_secs(120));
    assert_eq!(attempt.outcome, Outcome::Answered { status: 503, retry_after });
    assert_eq!(attempt.answer_excerpt.as_deref(), Some("back at noon"));

    let server = Server::start(|_| {
        let (now, later) = ("Sun, 06 Nov 1994 08:40:37 GMT", "Sun, 06 Nov 1994 08:50:37 GMT");
        with_headers(429, [("date", now), ("retry-after", later)], "")
    })
    .await;
    let attempt = local().attempt(&target(&server.url(), ""), &view(), 1).await;
    let retry_after = Some(Duration::from_secs(600));
    assert_eq!(attempt.outcome, Outcome::Answered { status: 429, retry_after });
}

/// Reads one request: its head, and the body that `content-length` announces.
async fn request_of(stream: &mut TcpStream) {
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if body.len() >= length.parse().unwrap() {
                return;
            }
        }
        assert!(stream.read_buf(&mut read).await.unwrap() > 0, "closed within a request");
    }
}

/// A server that passes its only connection to `serve`, after the request.
async fn raw<F: Future<Output = ()> + Send + 'static>(
    serve: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut task = JoinSet::new();
    task.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        request_of(&mut stream).await;
        serve(stream).await;
    });
    (url, task)
}

async fn with_timeout(url: &str, timeout: &str) -> Attempt {
    let json = format!(r#"{{"url":"{url}","timeout":"{timeout}"}}"#);
    let target = Target::prepare(&identity(), &serde_json::from_str(&json).unwrap(), &Opener).unwrap();
    local().attempt(&target, &view(), 1).await
}

#[tokio::test]
async fn a_server_that_never_answers_times_out() {
    let never = async |stream: TcpStream| {
        let _open = stream;
        std::future::pending().await
    };
    let ((url, _server), (other_url, _other)) = (raw(never).await, raw(never).await);
    // Each attempt has the timeout of its subscription.
    let attempt = tokio::select! {
        attempt = with_timeout(&url, "200ms") => attempt,
        patient = with_timeout(&other_url, "20s") => panic!("the longer timeout ended first: {patient:?}"),
    };
    assert_eq!(attempt.outcome, Outcome::Failed(Failure::Timeout));
    assert_eq!(attempt.detail.as_deref(), Some("no answer within 200ms"));
}

#[tokio::test]
async fn only_the_start_of_an_endless_answer_is_read() {
    for (status, text) in [(200, "OK"), (500, "Internal Server Error")] {
        let (hung_up, told) = oneshot::channel();
        let (url, _server) = raw(move |mut stream| async move {
            let head = format!("HTTP/1.1 {status} {text}\r\ntransfer-encoding: chunked\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let chunk = format!("1000\r\n{}\r\n", "y".repeat(4096));
            let mut sent = 0;
            while stream.write_all(chunk.as_bytes()).await.is_ok() {
                sent += 4096;
            }
            hung_up.send(sent).unwrap();
        })
        .await;
        let attempt = with_timeout(&url, "10s").await;
        assert_eq!(attempt.outcome, answered(status));
        assert_eq!(attempt.answer_excerpt.map(|text| text.len()), (status == 500).then_some(1024));
        // The socket buffers hold more than the 64 KB that are read.
        let sent: usize = tokio::time::timeout(Duration::from_secs(10), told).await.unwrap().unwrap();
        assert!(sent < 20 << 20, "{sent} bytes were taken");
    }
}

#[tokio::test]
async fn a_connection_closed_before_the_end_of_the_head_is_broken() {
    for answer in
        ["", "HTTP/1.1 20", "HTTP/1.1 200", "HTTP/1.1 503 No\r\ncontent-len", "HTTP/1.1 410 Gone\r\n"]
    {
        let (url, _server) = raw(move |mut stream| async move {
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let attempt = with_timeout(&url, "5s").await;
        assert_eq!(attempt.outcome, Outcome::Failed(Failure::Broken), "{answer:?}: {attempt:?}");
        assert!(!attempt.detail.unwrap().contains("127.0.0.1"));
    }
}

#[tokio::test]
async fn what_is_not_http_is_malformed() {
    let (url, _server) = raw(|mut stream| async move {
        stream.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
    })
    .await;
    assert_eq!(with_timeout(&url, "5s").await.outcome, Outcome::Failed(Failure::Malformed));
}

#[tokio::test]
async fn a_closed_port_an_unknown_name_and_missing_tls() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let attempt = with_timeout(&format!("http://{free}/"), "5s").await;
    assert_eq!(attempt.outcome, Outcome::Failed(Failure::Connect), "{attempt:?}");

    // The resolver refuses a label of 64 characters without a query to a name server.
    let attempt = with_timeout(&format!("http://{}.invalid/", "a".repeat(64)), "5s").await;
    assert_eq!(attempt.outcome, Outcome::Failed(Failure::Dns), "{attempt:?}");

    let server = Server::start(ok).await;
    let attempt = with_timeout(&format!("https://{}/", server.0.address()), "5s").await;
    assert_eq!(attempt.outcome, Outcome::Failed(Failure::Tls), "{attempt:?}");
}

/// Without CA certificates, as in a container, plain http works and https is refused as untrusted: runs the two tests again
/// in that environment.
#[test]
fn without_ca_certificates_plain_http_works() {
    let empty = tempfile::tempdir().unwrap();
    let none = empty.path().join("none.pem");
    std::fs::write(&none, "").unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .env("SSL_CERT_FILE", &none)
        .env("SSL_CERT_DIR", empty.path())
        .args(["structured_mode_sends", "a_closed_port_an_unknown_name_and_missing_tls"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("2 passed"), "{said}");
}
