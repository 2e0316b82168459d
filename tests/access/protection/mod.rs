//! No caller locks out others: listeners under attack, limits of concurrent requests, and callers of an API without
//! tokens.

mod quotas;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{
    ApiClient, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, http_client,
    subscription,
};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn every_process_has_health_on_a_listener_of_its_own_and_the_api_only_where_it_has_the_role() {
    let broker = TestBroker::start().await;
    let mut whole = Hub::serve(&broker.url(), &TestSettings::default(), &[]);
    whole.ready().await;
    for url in ["/healthz", "/readyz", "/metrics"] {
        for url in [whole.health_url(url), whole.api_url(url)] {
            let answer = http_client().get(&url).send().await.expect("it answers");
            assert_eq!(answer.status(), 200, "{url}");
        }
    }
    // There is no management API.
    let answer = http_client().get(whole.health_url("/v1/domains")).send().await.expect("it answers");
    assert_eq!(answer.status(), 404);

    let mut worker =
        Hub::serve(&broker.url(), &TestSettings::default(), &["--role", "outbox-processor,dlt-router"]);
    worker.ready().await;
    let refused = http_client().get(worker.api_url("/healthz")).send().await;
    assert!(
        refused.is_err_and(|error| error.is_connect()),
        "a process without role api listens on api.listen"
    );
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_setting_and_the_line_to_copy() {
    let broker = TestBroker::start().await;
    let mut first = Hub::serve(&broker.url(), &TestSettings::default(), &[]);
    first.ready().await;
    for (setting, variable, url) in [
        ("health", "HUB__HEALTH__LISTEN", first.health_url("")),
        ("api", "HUB__API__LISTEN", first.api_url("")),
    ] {
        let taken = url.strip_prefix("http://").expect("an http URL").to_owned();
        let port: u16 = taken.rsplit(':').next().expect("a port").parse().expect("a number");
        let listen = Some(taken.clone());
        let settings = TestSettings::default().with(|settings| match setting {
            "health" => settings.health.listen = listen,
            _ => settings.api.listen = listen,
        });
        let mut second = Hub::serve(&broker.url(), &settings, &[]);
        assert_eq!(second.ended(LIMIT).await.code(), Some(1));
        let log = second.log();
        assert!(log.contains(&format!("{setting}.listen: cannot listen on {taken}")), "{log}");
        assert!(log.contains(&format!("{variable}=127.0.0.1:{}", port + 1)), "{log}");
    }
}

/// A connection to the host of `url` from this loopback address, with the beginning of a request.
async fn connect(from: [u8; 4], url: &str, sent: &str) -> TcpStream {
    let host = url.strip_prefix("http://").expect("an http URL");
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((from, 0).into()).expect("an address of loopback");
    let address = host.parse().expect("an address");
    let connected = tokio::time::timeout(LIMIT, socket.connect(address)).await.expect("in time");
    let mut stream = connected.expect("the hub accepts");
    // The hub may already have closed the connection, which other tests check.
    let _ = stream.write_all(sent.as_bytes()).await;
    stream
}

/// Reads until the hub closes the connection.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes)).await;
    // A cut connection may end with a reset.
    let _ = read.expect("the hub closes the connection in time");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends a request from one address, and returns the answer.
async fn ask(from: [u8; 4], url: &str, text: &str) -> (u16, String) {
    let mut stream = connect(from, url, text).await;
    let answer = rest(&mut stream).await;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no status in {answer:?}")), answer)
}

fn get(path: &str, host: &str, token: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_lock_out_no_caller() {
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::default(), &[]);
    hub.ready().await;
    let api = ApiClient::with_scopes(&hub, "reader", "read", None).await;
    let head = "GET /v1/domains HTTP/1.1\r\nhost: x\r\nx-never: ";
    let mut open = Vec::new();
    // From one address, and from eleven; to the API, and to the health listener.
    for number in 0..1_100_u16 {
        open.push(connect([127, 0, 0, 2], &hub.api_url(""), head).await);
        let from = [127, 0, 1, u8::try_from(number % 11).expect("small") + 1];
        open.push(connect(from, &hub.api_url(""), head).await);
        open.push(connect([127, 0, 0, 2], &hub.health_url(""), head).await);
        if number % 100 == 0 {
            api.get("/v1/domains").await.expect(200);
            assert_eq!(
                http_client().get(hub.health_url("/healthz")).send().await.expect("it answers").status(),
                200
            );
        }
    }
    // New callers, from the flooding address and from another, and an earlier connection.
    for from in [[127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 1, 1]] {
        assert_eq!(ask(from, &hub.api_url(""), &get("/v1/domains", "x", api.token())).await.0, 200);
        assert_eq!(ask(from, &hub.health_url(""), &get("/healthz", "x", "")).await.0, 200);
        assert_eq!(ask(from, &hub.health_url(""), &get("/readyz", "x", "")).await.0, 200);
    }
    api.get("/v1/domains").await.expect(200);
    // Each of them ends by itself, without an answer.
    for stream in &mut open {
        assert_eq!(rest(stream).await, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_bodies_lock_out_no_caller_and_time_out() {
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::default(), &[]);
    hub.ready().await;
    let api = ApiClient::with_scopes(&hub, "all", "publish,read,manage,operate", None).await;
    let paths =
        ["/v1/events", "/v1/subscriptions", "/v1/dead-letters/replay", "/v1/domains/user-lifecycle/pause"];
    let mut open = Vec::new();
    for number in 0..260 {
        let path = paths[number % paths.len()];
        let length = if number % 2 == 0 { "content-length: 900000" } else { "transfer-encoding: chunked" };
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n{length}\r\n\r\n",
            api.token()
        );
        let begun = if number % 3 == 0 && number % 2 == 0 { "{\"id\":" } else { "" };
        open.push(connect([127, 0, 0, 2], &hub.api_url(""), &format!("{head}{begun}")).await);
    }
    // The same token and address, and others.
    api.get("/v1/domains").await.expect(200);
    let event = json!({"specversion": "1.0", "id": "1", "source": "/idp", "type": "user.created"});
    let headers = [("content-type", "application/cloudevents+json")];
    api.send("POST", "/v1/events", &headers, Some(event.to_string().into_bytes())).await.expect(202);
    for from in [[127, 0, 0, 2], [127, 0, 0, 3]] {
        assert_eq!(ask(from, &hub.api_url(""), &get("/v1/domains", "x", api.token())).await.0, 200);
    }
    // Each ends with 408, or without an answer if it was closed to make room for the callers above.
    let (mut told, mut cut) = (0, 0);
    for stream in &mut open {
        let answer = rest(stream).await;
        if answer.is_empty() {
            cut += 1;
        } else {
            assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("B of the body in "), "{answer}");
            told += 1;
        }
    }
    assert!(told >= 250 && cut <= 10, "{told} were answered 408, {cut} cut");
    // The body of an unauthenticated request is not read.
    let stranger = "POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer hub_no_one\r\ncontent-length: 900000\r\n\r\n";
    assert_eq!(ask([127, 0, 0, 2], &hub.api_url(""), stranger).await.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_at_once_are_bounded_for_each_token_and_each_address() {
    let broker = TestBroker::start().await;
    let settings = TestSettings::default().with(|settings| {
        settings.api.requests_per_token = Some(1);
        settings.api.requests_per_peer = Some(2);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "api"]);
    hub.ready().await;
    let (receiver, client) = (Receiver::start().await, TestClient::connect(&broker.url()).await);
    receiver.set("/slow", Behaviour::Hang);
    client.subscribe([subscription("slow", &["user.*"], &receiver.url("/slow"))]).await;
    let mut tokens = Vec::new();
    for name in ["a", "b", "c"] {
        tokens.push(ApiClient::with_scopes(&hub, name, "read,manage", None).await.token().to_owned());
    }
    let test = |token: &str| {
        format!(
            "POST /v1/subscriptions/slow/test HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n"
        )
    };
    let ask_from = async |last: u8, token: &str| {
        ask([127, 0, 0, last], &hub.api_url(""), &get("/v1/domains", "x", token)).await
    };
    let _first = connect([127, 0, 0, 2], &hub.api_url(""), &test(&tokens[0])).await;
    receiver.wait_for("/slow", 1, LIMIT).await;
    // The token has its one request: another token from the same address may send one, but not the same token from
    // another address.
    let (status, answer) = ask_from(3, &tokens[0]).await;
    assert!(
        status == 429 && answer.contains("retry-after: 1") && answer.contains("api.requests_per_token"),
        "{answer}"
    );
    assert_eq!(ask_from(2, &tokens[1]).await.0, 200);
    let _second = connect([127, 0, 0, 2], &hub.api_url(""), &test(&tokens[1])).await;
    receiver.wait_for("/slow", 2, LIMIT).await;
    let (status, answer) = ask_from(2, &tokens[2]).await;
    assert!(
        status == 429 && answer.contains("retry-after: 1") && answer.contains("api.requests_per_peer"),
        "{answer}"
    );
    assert_eq!(ask_from(3, &tokens[2]).await.0, 200);
    // A request in progress is not closed to make room.
    assert_eq!(receiver.count("/slow"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_at_once_are_bounded_for_each_tenant_whatever_its_tokens_and_addresses() {
    let broker = TestBroker::start().await;
    let settings = TestSettings::default().with(|settings| settings.api.requests_per_tenant = Some(2));
    let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "api"]);
    hub.ready().await;
    let (receiver, client) = (Receiver::start().await, TestClient::connect(&broker.url()).await);
    receiver.set("/slow", Behaviour::Hang);
    let mut slow = subscription("slow", &["user.*"], &receiver.url("/slow"));
    slow["tenant"] = "acme".into();
    client.subscribe([slow]).await;
    let token = async |name: &str, tenant: &str| {
        let api = ApiClient::with_scopes(&hub, name, "read,manage", Some(tenant)).await;
        api.token().to_owned()
    };
    let tokens = [token("a", "acme").await, token("b", "acme").await, token("c", "acme").await];
    let mut held = Vec::new();
    for (number, last) in [(0, 2), (1, 3)] {
        let test = format!(
            "POST /v1/subscriptions/slow/test HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
            tokens[number]
        );
        held.push(connect([127, 0, 0, last], &hub.api_url(""), &test).await);
        receiver.wait_for("/slow", number + 1, LIMIT).await;
    }
    let ask_with = async |token: &str| {
        ask([127, 0, 0, 4], &hub.api_url(""), &get("/v1/subscriptions", "x", token)).await
    };
    let (status, answer) = ask_with(&tokens[2]).await;
    assert!(status == 429 && answer.contains("api.requests_per_tenant"), "{answer}");
    assert_eq!(ask_with(&token("d", "globex").await).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_connections_of_one_address_are_limited_with_a_429() {
    let broker = TestBroker::start().await;
    let settings = TestSettings::default().with(|settings| settings.api.connections_per_peer = Some(2));
    let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "api"]);
    hub.ready().await;
    let (receiver, client) = (Receiver::start().await, TestClient::connect(&broker.url()).await);
    receiver.set("/slow", Behaviour::Hang);
    client.subscribe([subscription("slow", &["user.*"], &receiver.url("/slow"))]).await;
    let token = ApiClient::with_scopes(&hub, "a", "read,manage", None).await.token().to_owned();
    let test = format!(
        "POST /v1/subscriptions/slow/test HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    let _in_hand = [
        connect([127, 0, 0, 2], &hub.api_url(""), &test).await,
        connect([127, 0, 0, 2], &hub.api_url(""), &test).await,
    ];
    receiver.wait_for("/slow", 2, LIMIT).await;
    let (status, answer) = ask([127, 0, 0, 2], &hub.api_url(""), &get("/v1/domains", "x", &token)).await;
    assert!(status == 429 && answer.contains("api.connections_per_peer"), "{answer}");
    assert_eq!(ask([127, 0, 0, 3], &hub.api_url(""), &get("/v1/domains", "x", &token)).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_unknown_tokens_is_refused_without_a_look_up_and_known_ones_still_work() {
    let broker = TestBroker::start().await;
    let settings = TestSettings::default().with(|settings| settings.api.unknown_tokens_per_peer = Some(1));
    let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "api"]);
    hub.ready().await;
    let api = ApiClient::with_scopes(&hub, "reader", "read", None).await;
    let url = hub.api_url("");
    assert_eq!(ask([127, 0, 0, 2], &url, &get("/v1/domains", "x", api.token())).await.0, 200);
    // Each kind of failed authentication counts, also without a look-up: no token, another name, another secret.
    let kinds = ["", "x", "hub_", "hub_A_x", "hub_no-one_x", "hub_reader_x"].map(str::to_owned);
    let other_secret = format!("hub_reader_{}", "x".repeat(43));
    for (kind, token) in (10..).zip(kinds.into_iter().chain([other_secret])) {
        let mut statuses = Vec::new();
        for _ in 0..60 {
            statuses.push(ask([127, 0, 0, kind], &url, &get("/v1/domains", "x", &token)).await.0);
        }
        assert!(statuses.iter().all(|status| matches!(status, 401 | 429)), "{token}: {statuses:?}");
        assert!(statuses.contains(&401) && statuses.contains(&429), "{token}: {statuses:?}");
        assert_eq!(ask([127, 0, 0, kind], &url, &get("/v1/domains", "x", api.token())).await.0, 200);
    }
    let mut statuses = Vec::new();
    for number in 0..200 {
        let token = format!("hub_guess-{number}_{}", "x".repeat(43));
        statuses.push(ask([127, 0, 0, 2], &url, &get("/v1/domains", "x", &token)).await.0);
    }
    assert!(statuses.iter().all(|status| matches!(status, 401 | 429)), "{statuses:?}");
    assert!(statuses.contains(&401) && statuses.contains(&429), "{statuses:?}");
    // The known one from the same address, and a new one from another.
    assert_eq!(ask([127, 0, 0, 2], &url, &get("/v1/domains", "x", api.token())).await.0, 200);
    let new = ApiClient::with_scopes(&hub, "new", "read", None).await;
    assert_eq!(ask([127, 0, 0, 3], &url, &get("/v1/domains", "x", new.token())).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_cannot_use_an_api_that_asks_for_no_token() {
    let broker = TestBroker::start().await;
    let settings = TestSettings::default().with(|settings| {
        settings.api.anonymous = Some(true);
        settings.api.allowed_hosts = Some(vec!["hub.internal".to_owned()]);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "api"]);
    hub.ready().await;
    let url = hub.api_url("");
    let own = url.strip_prefix("http://").expect("an http URL");
    let pause = |host: &str, more: &str, body: &str| {
        format!(
            "POST /v1/domains/user-lifecycle/pause HTTP/1.1\r\nhost: {host}\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let json = "content-type: application/json\r\n";
    for (host, more, body, expected) in [
        ("evil.example", "", "", 403),
        ("evil.example:8080", json, "{}", 403),
        (own, "origin: http://evil.example\r\n", "", 403),
        (own, "origin: null\r\n", "", 403),
        (own, "origin: http://localhost:1\r\ncontent-type: text/plain\r\n", "{}", 403),
        (own, "sec-fetch-site: cross-site\r\n", "", 403),
        (own, "content-type: text/plain\r\n", "{}", 415),
        (own, "content-type: application/x-www-form-urlencoded\r\n", "for=2h", 415),
    ] {
        let (status, answer) = ask([127, 0, 0, 1], &url, &pause(host, more, body)).await;
        assert_eq!(status, expected, "{host} {more}: {answer}");
    }
    let domains = async || {
        let text = get("/v1/domains", own, "").replace("authorization: Bearer \r\n", "");
        let (status, answer) = ask([127, 0, 0, 1], &url, &text).await;
        assert_eq!(status, 200, "{answer}");
        let body = answer.split("\r\n\r\n").nth(1).expect("a body").to_owned();
        serde_json::from_str::<Value>(&body).expect("JSON")
    };
    assert!(!domains().await.to_string().contains("\"paused\":true"), "a page has paused a domain");
    let port = own.rsplit(':').next().expect("a port");
    for host in [own, "hub.internal", &format!("localhost:{port}")] {
        let (status, answer) = ask([127, 0, 0, 1], &url, &get("/v1/domains", host, "")).await;
        assert_eq!(status, 200, "{host}: {answer}");
    }
    let same = format!("origin: http://{own}\r\n{json}");
    assert_eq!(ask([127, 0, 0, 1], &url, &pause(own, &same, "{}")).await.0, 200);
    eventually(LIMIT, "the domain is paused", async || {
        let domains = domains().await.to_string();
        if domains.contains("\"paused\":true") { Ok(()) } else { Err(domains) }
    })
    .await;
}

/// A body may arrive slowly; the permissions at its end decide.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_revoked_while_its_body_comes_is_refused() {
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::default(), &["--role", "api"]);
    hub.ready().await;
    let api = ApiClient::with_scopes(&hub, "acme", "publish", None).await;
    let event = json!({"specversion": "1.0", "id": "e", "source": "/s", "type": "user.created"}).to_string();
    let address = hub.api_url("").trim_start_matches("http://").trim_end_matches('/').to_owned();
    let mut stream = tokio::net::TcpStream::connect(&address).await.expect("the API listens");
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\ncontent-type: \
         application/cloudevents+json\r\ncontent-length: {}\r\n\r\n",
        api.token(),
        event.len()
    );
    stream.write_all(format!("{head}{}", &event[..10]).as_bytes()).await.expect("sent");
    hub.cli_ok(&["token", "revoke", "acme", "--yes"]).await;
    eventually(LIMIT, "the token is refused", async || {
        let status = api.get("/v1/events/e").await.status;
        if status == 401 { Ok(()) } else { Err(status) }
    })
    .await;
    stream.write_all(&event.as_bytes()[10..]).await.expect("sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("answered");
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 401");
    // Two tokens are rejected, even if one is valid.
    let other = ApiClient::with_scopes(&hub, "other", "read", None).await;
    let mut stream = tokio::net::TcpStream::connect(&address).await.expect("the API listens");
    let (valid, revoked) = (other.token(), api.token());
    let head = format!(
        "GET /v1/subscriptions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {valid}\r\nauthorization: Bearer \
         {revoked}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.read_exact(&mut answer).await.expect("answered");
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 401");
}
