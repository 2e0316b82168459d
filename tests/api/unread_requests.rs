//! Every error has a problem document with a field and a remedy, also of requests that no handler sees: those that are not
//! valid HTTP, unknown paths and methods, and special characters in paths.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{ApiClient, Hub, TestBroker, TestSettings};

const LIMIT: Duration = Duration::from_secs(30);

/// Sends bytes and reads the answer up to its end; returns its status, head and body.
async fn exchange(address: &str, request: &[u8]) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.expect("the hub listens");
    let (mut reading, mut writing) = stream.split();
    let mut answer = Vec::new();
    let exchanged = async {
        // The hub may answer and close before it has read everything.
        let writing = async {
            let _ = writing.write_all(request).await;
        };
        let reading = async {
            reading.read_to_end(&mut answer).await.expect("the answer is not cut off");
        };
        tokio::join!(writing, reading);
    };
    tokio::time::timeout(LIMIT, exchanged).await.expect("the hub answers and closes the connection");
    let text = String::from_utf8(answer).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}

/// Asserts a problem document with a field and a remedy; returns the field.
fn field_of(status: u16, head: &str, body: &str, name: &str) -> String {
    assert!(head.contains("content-type: application/problem+json"), "{name}: {head}");
    let problem: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{name}: {error}: {body}"));
    assert_eq!(problem["status"], status, "{name}: {problem}");
    let error = &problem["errors"][0];
    let text = error["problem"].as_str().unwrap_or_default();
    assert!(
        !text.is_empty() && problem["detail"].as_str().is_some_and(|text| text.contains("; ")),
        "{name}: {problem}"
    );
    error["field"].as_str().expect("a field").to_owned()
}

async fn hub(broker: &TestBroker) -> Hub {
    let mut hub = Hub::serve(&broker.url(), &TestSettings::default(), &["--role", "api"]);
    hub.ready().await;
    hub
}

fn address(url: &str) -> String {
    url.trim_start_matches("http://").trim_end_matches('/').to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_not_valid_http_gets_a_problem_document() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker).await;
    let line = |target: &str| format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes();
    let with = |header: &str| format!("GET /healthz HTTP/1.1\r\nhost: a\r\n{header}\r\n\r\n").into_bytes();
    let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
    let mut cases = vec![
        ("a > in the path", line("/v1/subscriptions/>"), 400, "request"),
        ("a < in the path", line("/v1/subscriptions/<crm>"), 400, "request"),
        ("a control character in the path", line("/v1/subscriptions/a\u{1}b"), 400, "request"),
        ("a space in the path", line("/v1/subscriptions/a b"), 400, "request"),
        ("bytes in the path", b"GET /v1/\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), 400, "request"),
        ("no path", b"GET\r\n\r\n".to_vec(), 400, "request"),
        ("another version", b"GET / HTTP/9.9\r\n\r\n".to_vec(), 400, "request"),
        ("no version", b"GET /\r\n\r\n".to_vec(), 400, "request"),
        ("a method of other bytes", b"G\xffT / HTTP/1.1\r\n\r\n".to_vec(), 400, "request"),
        ("noise", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n".to_vec(), 400, "request"),
        ("a header without a colon", with("nonsense"), 400, "request"),
        ("a NUL in a header", with("x: a\0b"), 400, "request"),
        ("two lengths", with("content-length: 1\r\ncontent-length: 2"), 400, "request"),
        ("a length that is not a number", with("content-length: x"), 400, "request"),
        ("many headers", with(&many), 431, "headers"),
        ("a large header", with(&format!("x: {}", "a".repeat(600_000))), 431, "headers"),
        ("a long path", line(&format!("/v1/subscriptions/{}", "a".repeat(70_000))), 414, "path"),
    ];
    // After a valid request on the same connection.
    let after = [line("/nowhere"), line("/v1/subscriptions/>")].concat();
    cases.push(("the second request", after, 404, "path"));
    for listener in [hub.api_url(""), hub.health_url("")] {
        let address = address(&listener);
        for (name, request, status, field) in &cases {
            let (found, head, body) = exchange(&address, request).await;
            assert_eq!(found, *status, "{name}: {head}\n{body}");
            if *name != "the second request" {
                assert!(head.contains("connection: close"), "{name}: {head}");
                assert_eq!(field_of(found, &head, &body, name), *field, "{name}");
                continue;
            }
            let second = body.find("HTTP/1.1 400").unwrap_or_else(|| panic!("{body}"));
            let (head, body) = body[second..].split_once("\r\n\r\n").expect("a head");
            assert_eq!(field_of(400, &head.to_ascii_lowercase(), body, name), "request");
        }
    }
    // The listeners go on.
    let api = ApiClient::with_scopes(&hub, "all", "read", None).await;
    api.get("/v1/subscriptions").await.expect(200);
}

/// What HTTP allows, and the router or a handler refuses.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_path_or_method_and_any_id_get_a_problem_document() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker).await;
    let api = ApiClient::with_scopes(&hub, "all", "publish,read,manage,operate", None).await;
    let (management, health) = (address(&hub.api_url("")), address(&hub.health_url("")));
    let request = |version: &str, method: &str, path: &str, more: &str| {
        format!(
            "{method} {path} HTTP/{version}\r\nhost: a\r\nauthorization: Bearer {}\r\nconnection: close\r\n{more}\r\n",
            api.token()
        )
    };
    let odd = [
        "%3E",
        "*",
        "%2A",
        "..",
        "...",
        "%2E%2E",
        "a%2Fb",
        "%2F",
        "%00",
        "a%00b",
        "%0D%0A",
        "%7F",
        "%FF",
        "%E2%82%AC",
        "a.b",
        "a;b",
        "a:b",
        "$SYS",
        "%20",
        "%25",
        "~",
        "'",
        "UPPER",
        "\"crm\"",
        "{id}",
    ];
    let mut long = vec!["a".repeat(100), "a".repeat(10_000), "%2e".repeat(10_000)];
    long.extend(odd.iter().map(|one| (*one).to_owned()));
    let mut count = 0;
    for id in &long {
        for (method, path) in [
            ("GET", format!("/v1/subscriptions/{id}")),
            ("DELETE", format!("/v1/subscriptions/{id}")),
            ("POST", format!("/v1/subscriptions/{id}/pause")),
            ("GET", format!("/v1/subscriptions/{id}/circuits")),
            ("GET", format!("/v1/subscriptions/{id}/nowhere")),
            ("GET", format!("/v1/subscriptions/crm/{id}")),
            ("GET", format!("/v1/dead-letters/{id}")),
            ("GET", format!("/v1/domains/{id}")),
            ("GET", format!("/v1/orders/{id}")),
            ("GET", format!("/v1/events/{id}?timeout=1x")),
            ("GET", format!("/v1/outbox/messages/{id}/{id}")),
            ("GET", format!("/{id}")),
            ("BREW", format!("/v1/subscriptions/{id}")),
        ] {
            for version in ["1.1", "1.0"] {
                let name = format!("{method} {} HTTP/{version}", path.get(..60).unwrap_or(&path));
                let (status, head, body) =
                    exchange(&management, request(version, method, &path, "").as_bytes()).await;
                assert!((400..500).contains(&status), "{name}: {head}\n{body}");
                count += 1;
                if status == 409 {
                    // No producer outbox is configured.
                    assert!(head.contains("application/problem+json"), "{name}: {head}");
                    continue;
                }
                let field = field_of(status, &head, &body, &name);
                let expected: &[&str] = match status {
                    404 => &["path"],
                    405 => &["method"],
                    _ => &["id", "name", "broker", "timeout", "path"],
                };
                assert!(expected.contains(&field.as_str()), "{name}: {status} {field}");
            }
        }
    }
    assert!(count > 600, "{count}");
    for (address, method, path, more, status, field) in [
        (&management, "OPTIONS", "*", "", 404, "path"),
        (&management, "GET", "http://a/v1/nowhere", "", 404, "path"),
        (&management, "TRACE", "/v1/domains", "", 405, "method"),
        (&management, "DELETE", "/v1/events", "", 405, "method"),
        (&management, "POST", "/healthz", "", 405, "method"),
        (&management, "GET", "/v1//subscriptions", "", 404, "path"),
        (&management, "GET", "/v1/subscriptions/", "", 404, "path"),
        (
            &management,
            "POST",
            "/v1/subscriptions",
            "content-type: text/plain\r\ncontent-length: 2\r\n",
            415,
            "content-type",
        ),
        (&health, "GET", "/", "", 404, "path"),
        (&health, "GET", "/v1/subscriptions", "", 404, "path"),
        (&health, "PUT", "/readyz", "", 405, "method"),
    ] {
        let mut bytes = request("1.1", method, path, more).into_bytes();
        if more.contains("content-length") {
            bytes.extend(b"{}");
        }
        let (found, head, body) = exchange(address, &bytes).await;
        let name = format!("{method} {path}");
        assert_eq!((found, field_of(found, &head, &body, &name).as_str()), (status, field), "{name}");
        assert!(status != 405 || head.contains("allow: "), "{name}: {head}");
    }
}
