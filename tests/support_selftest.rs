//! Tests of the harness and the test kit: a tool that cannot fail proves nothing.

use hub_harness as support;

use std::time::Duration;

use futures_util::FutureExt;
use serde_json::json;
use support::{
    Behaviour, Direction, FaultProxy, Hub, Receiver, TestBroker, TestSettings, TokenEndpoint, complete,
    eventually, free_port, http_client, require_tool, sum_of,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const LIMIT: Duration = Duration::from_secs(10);
/// Time within which loopback would deliver bytes that must not arrive.
const SILENCE: Duration = Duration::from_millis(100);

/// Expects the future to panic, and returns the message.
async fn panic_of(future: impl Future<Output = ()>) -> String {
    let panic = std::panic::AssertUnwindSafe(future).catch_unwind().await.expect_err("it panics");
    panic.downcast_ref::<String>().cloned().expect("with a formatted message")
}

#[tokio::test]
async fn a_receiver_answers_as_set_and_remembers_its_requests() {
    let receiver = Receiver::start().await;
    let http = http_client();
    let post = |path: &str, id: &str| {
        let request = http.post(receiver.url(path)).header("webhook-id", id).body(format!("body of {id}"));
        async move { request.send().await.map(|answer| answer.status().as_u16()) }
    };
    assert_eq!(post("/a", "e1").await.expect("an answer"), 200, "the default");
    receiver.set("/a", Behaviour::status(503));
    assert_eq!(post("/a", "e2").await.expect("an answer"), 503);
    receiver.set("/a", Behaviour::failing_first(1, 500));
    assert_eq!(post("/a", "e2").await.expect("an answer"), 500);
    assert_eq!(post("/a", "e2").await.expect("an answer"), 200);
    assert_eq!(post("/a", "e1").await.expect("an answer"), 200);

    let received = receiver.wait_for("/a", 5, LIMIT).await;
    let answers: Vec<_> = received.iter().map(|request| request.answered).collect();
    assert_eq!(answers, [Some(200), Some(503), Some(500), Some(200), Some(200)]);
    assert_eq!((received[1].webhook_id(), received[1].body.as_ref()), ("e2", &b"body of e2"[..]));
    assert_eq!(receiver.accepted("/a").len(), 2);
    assert_eq!(receiver.doubles("/a").into_iter().collect::<Vec<_>>(), [("e1".to_owned(), 2)]);

    receiver.set("/b", Behaviour::require_header("x-api-key", "k"));
    assert_eq!(post("/b", "e3").await.expect("an answer"), 401);
    let answer = http.post(receiver.url("/b")).header("x-api-key", "k").send().await.expect("an answer");
    assert_eq!(answer.status(), 200);

    receiver.set("/b", Behaviour::retry_after(429, 7));
    let answer = http.post(receiver.url("/b")).send().await.expect("an answer");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["retry-after"]),
        (429, &"7".parse().expect("value"))
    );

    receiver.set("/b", Behaviour::CloseMidAnswer);
    let answer = http.post(receiver.url("/b")).send().await.expect("the head");
    assert!(answer.bytes().await.is_err(), "the body breaks off");

    assert_eq!(receiver.count("/c"), 0, "paths are apart");
    let said = panic_of(async {
        receiver.wait_for("/a", 6, SILENCE).await;
    })
    .await;
    assert!(said.contains("/a had not received 6 requests") && said.contains("5 requests"), "{said}");
}

#[tokio::test]
async fn a_receiver_hangs_and_waits() {
    let receiver = Receiver::start().await;
    receiver.set("/hang", Behaviour::Hang);
    receiver.set("/slow", Behaviour::slow(SILENCE));
    let http = http_client();
    let hang = tokio::spawn(http.post(receiver.url("/hang")).send());
    let request = receiver.wait_for("/hang", 1, LIMIT).await.remove(0);
    assert!(tokio::time::timeout(SILENCE, hang).await.is_err() && request.answered.is_none());

    let both = || http.post(receiver.url("/slow")).send();
    let (one, two) = tokio::join!(both(), both());
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(receiver.most_open("/slow"), 2, "both were open at the same time");
    // A request ends while another one waits for it; the waiting one notices each change.
    let waiting = receiver.wait_for("/late", 1, LIMIT);
    let sending = http.post(receiver.url("/late")).send();
    let (seen, sent) = tokio::join!(waiting, sending);
    assert!(seen.len() == 1 && sent.is_ok());
}

#[tokio::test]
async fn tokens_are_issued_to_the_client_only_and_expire() {
    let server = TokenEndpoint::start("hub", "s e/cret").await;
    server.set_scopes(&["events"]);
    let receiver = Receiver::start().await;
    receiver.set("/", Behaviour::require(server.guard()));
    let http = http_client();
    let ask = |secret: &str, fields: &str| {
        let body = format!("client_id=hub&client_secret={secret}&{fields}");
        let request =
            http.post(server.token_url()).header("content-type", "application/x-www-form-urlencoded");
        async move {
            let answer = request.body(body).send().await.expect("an answer");
            let status = answer.status().as_u16();
            let body = answer.bytes().await.expect("to the end");
            (status, serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default())
        }
    };
    let call = |token: String| {
        let request = http.post(receiver.url("/")).header("authorization", format!("Bearer {token}"));
        async move { request.send().await.expect("an answer").status().as_u16() }
    };
    let grant = "grant_type=client_credentials&scope=events";
    let (status, answer) = ask("s+e%2Fcret", grant).await;
    assert_eq!((status, &answer["expires_in"]), (200, &json!(3600)));
    let token = answer["access_token"].as_str().expect("a token").to_owned();
    assert_eq!(call(token.clone()).await, 200);
    assert_eq!(call("another".to_owned()).await, 401);
    server.revoke_all();
    assert_eq!(call(token).await, 401);

    assert_eq!(ask("wrong", grant).await, (401, json!({"error": "invalid_client"})));
    assert_eq!(
        ask("s+e%2Fcret", "grant_type=password").await,
        (400, json!({"error": "unsupported_grant_type"}))
    );
    let scope = "grant_type=client_credentials&scope=all";
    assert_eq!(ask("s+e%2Fcret", scope).await, (400, json!({"error": "invalid_scope"})));
    server.set_failing(Some(503));
    assert_eq!(ask("s+e%2Fcret", grant).await.0, 503);
    server.set_failing(None);

    server.set_lifetime(Duration::ZERO);
    let basic = http.post(server.token_url()).header("content-type", "application/x-www-form-urlencoded");
    // "hub:s+e%2Fcret"
    let basic = basic.header("authorization", "Basic aHViOnMrZSUyRmNyZXQ=").body(grant);
    let answer = basic.send().await.expect("an answer");
    assert_eq!(answer.status(), 200, "client_secret_basic");
    let body = answer.bytes().await.expect("to the end");
    let token = serde_json::from_slice::<serde_json::Value>(&body).expect("JSON");
    assert_eq!(
        call(token["access_token"].as_str().expect("a token").to_owned()).await,
        401,
        "it is past its life"
    );
    assert_eq!((server.token_requests(), server.issued()), (6, 2));
    let elsewhere = http.post(server.token_url().replace("/token", "/")).send().await.expect("an answer");
    let get = http.get(server.token_url()).send().await.expect("an answer");
    assert_eq!((elsewhere.status().as_u16(), get.status().as_u16()), (404, 405));
}

/// A client and the server end of a connection through a proxy.
async fn pair(proxy: &FaultProxy, server: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(proxy.address()).await.expect("connected");
    let (accepted, _) =
        tokio::time::timeout(LIMIT, server.accept()).await.expect("in time").expect("accepted");
    (client, accepted)
}

async fn read(stream: &mut TcpStream, length: usize) -> String {
    let mut buffer = vec![0; length];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut buffer)).await.expect("in time").expect("read");
    String::from_utf8(buffer).expect("text")
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    tokio::time::timeout(SILENCE, stream.read(&mut [0; 16])).await.is_err()
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(LIMIT, stream.read(&mut [0; 16])).await.expect("in time");
    matches!(read, Ok(0) | Err(_))
}

async fn listener() -> (TcpListener, FaultProxy) {
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let proxy = FaultProxy::start(&server.local_addr().expect("bound").to_string()).await;
    (server, proxy)
}

#[tokio::test]
async fn the_proxy_passes_freezes_thaws_cuts_and_refuses() {
    let (server, proxy) = listener().await;
    let (mut client, mut accepted) = pair(&proxy, &server).await;
    proxy.wait_open(1, LIMIT).await;
    client.write_all(b"ask").await.expect("sent");
    assert_eq!(read(&mut accepted, 3).await, "ask");
    accepted.write_all(b"answer").await.expect("sent");
    assert_eq!(read(&mut client, 6).await, "answer");

    proxy.freeze();
    client.write_all(b"one").await.expect("sent");
    accepted.write_all(b"two").await.expect("sent");
    assert!(is_silent(&mut accepted).await && is_silent(&mut client).await);
    proxy.thaw();
    assert_eq!((read(&mut accepted, 3).await, read(&mut client, 3).await), ("one".into(), "two".into()));

    proxy.cut();
    assert!(is_closed(&mut client).await && is_closed(&mut accepted).await);
    proxy.wait_open(0, LIMIT).await;
    let (mut client, mut accepted) = pair(&proxy, &server).await;
    proxy.freeze();
    client.write_all(b"last words").await.expect("sent");
    drop(client);
    assert!(is_closed(&mut accepted).await, "the end of one side is the end of a frozen connection");
    proxy.thaw();

    proxy.set_refusing(true);
    let mut refused = TcpStream::connect(proxy.address()).await.expect("connected");
    assert!(is_closed(&mut refused).await);
}

#[tokio::test]
async fn the_proxy_stops_at_a_pattern_in_both_directions() {
    let (server, proxy) = listener().await;
    let trigger = proxy.cut_after(Direction::ToServer, "COMMIT");
    let (mut client, mut accepted) = pair(&proxy, &server).await;
    // The pattern does not apply in the other direction, and may arrive in two pieces.
    accepted.write_all(b"COMMIT").await.expect("sent");
    assert_eq!(read(&mut client, 6).await, "COMMIT");
    client.write_all(b"begin COM").await.expect("sent");
    assert_eq!(read(&mut accepted, 9).await, "begin COM");
    client.write_all(b"MIT").await.expect("sent");
    assert_eq!(read(&mut accepted, 3).await, "MIT");
    trigger.fired(LIMIT).await;
    accepted.write_all(b"done").await.expect("sent");
    client.write_all(b"more").await.expect("sent");
    assert!(is_silent(&mut client).await && is_silent(&mut accepted).await);

    // Other connections continue, and the rule does not apply again.
    let (mut other, mut other_accepted) = pair(&proxy, &server).await;
    other.write_all(b"COMMIT").await.expect("sent");
    assert_eq!(read(&mut other_accepted, 6).await, "COMMIT");
    other_accepted.write_all(b"done").await.expect("sent");
    assert_eq!(read(&mut other, 4).await, "done");

    let trigger = proxy.cut_before(Direction::ToClient, "ack");
    other_accepted.write_all(b"the ack").await.expect("sent");
    trigger.fired(LIMIT).await;
    assert!(is_silent(&mut other).await);

    let never = proxy.cut_after(Direction::ToServer, "never");
    let said = panic_of(never.fired(SILENCE)).await;
    assert!(said.contains("ToServer \"never\""), "{said}");
}

#[tokio::test]
async fn a_client_stays_on_the_proxy_and_a_step_of_jetstream_can_be_caught() {
    let mut broker = TestBroker::start().await;
    let proxy = FaultProxy::start(&broker.url()).await;
    let client = async_nats::connect(proxy.url("nats")).await.expect("connected");
    assert!(client.server_info().connect_urls.is_empty(), "the server reports its own address");
    let jetstream = async_nats::jetstream::new(client);
    let config = async_nats::jetstream::stream::Config {
        name: "HUB_OUTBOX_X".into(),
        subjects: vec!["x".into()],
        ..Default::default()
    };
    jetstream.create_stream(config).await.expect("made");
    broker.assert_nothing_pending().await;

    // The server has stored the message; its acknowledgement is held back.
    let trigger = proxy.cut_before(Direction::ToClient, "\"stream\":\"HUB_OUTBOX_X\"");
    let acknowledgement = jetstream.publish("x", "1".into()).await.expect("sent").into_future();
    trigger.fired(LIMIT).await;
    assert!(tokio::time::timeout(SILENCE, acknowledgement).await.is_err());
    assert_eq!(broker.pending().await, [("HUB_OUTBOX_X".to_owned(), 1)]);
    let said = panic_of(broker.assert_nothing_pending()).await;
    assert!(said.contains("HUB_OUTBOX_X"), "{said}");

    // The client reconnects through the proxy, also to a restarted server.
    proxy.cut();
    broker.process().kill().await.expect("killed");
    broker.process().restart().await.expect("restarted");
    eventually(LIMIT, "the client is back", async || match jetstream.get_stream("HUB_OUTBOX_X").await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    })
    .await;
    assert_eq!(
        broker.messages("HUB_OUTBOX_X").await,
        1,
        "the message without a delivered acknowledgement is stored"
    );
}

#[tokio::test]
async fn what_never_happens_is_named_with_what_was_seen() {
    let said = panic_of(eventually(SILENCE, "the depth is zero", async || Err::<(), _>("depth 3"))).await;
    assert!(said.contains("the depth is zero") && said.contains("depth 3"), "{said}");
    let hang = eventually(SILENCE, "an answer", async || {
        std::future::pending::<()>().await;
        Err::<(), _>("never seen")
    });
    assert!(panic_of(hang).await.contains("no answer"));
}

#[test]
fn ports_and_tools() {
    let port = free_port();
    assert!((15_000..30_000).contains(&port) && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
    let here = std::path::PathBuf::from("/bin/sh");
    assert_eq!(require_tool("sh", Some(here.clone())), Some(here));
}

#[test]
fn settings_are_completed_but_never_overridden() {
    let settings = TestSettings::default().with(|settings| {
        settings.nats.url = Some("nats://mine:1".to_owned());
        settings.delivery.max_deliver = Some(2);
    });
    let (text, [api, health]) = complete(settings, "nats://other:2");
    let table: toml::Table = text.parse().expect("TOML");
    assert_eq!(table["nats"]["url"].as_str(), Some("nats://mine:1"));
    assert_eq!(table["delivery"]["max_deliver"].as_integer(), Some(2));
    assert_eq!(table["delivery"]["allow_networks"][0].as_str(), Some("127.0.0.0/8"));
    assert_eq!(table["api"]["listen"].as_str(), Some(api.as_str()));
    assert_eq!(table["health"]["listen"].as_str(), Some(health.as_str()));
    assert_ne!(api, health);
}

#[test]
fn samples_are_added_up() {
    let text = "# HELP a b\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"1\",y=\"3\"} 4.5\na_total_more 9\nplain 1 1700000000\n";
    assert!((sum_of(text, "a_total", &["x=\"1\""]) - 7.5).abs() < 1e-9);
    assert!((sum_of(text, "a_total", &["x=\"1\"", "y=\"3\""]) - 4.5).abs() < 1e-9);
    assert!((sum_of(text, "plain", &[]) - 1.0).abs() < 1e-9);
    assert!(sum_of(text, "absent", &[]).abs() < 1e-9);
}

#[tokio::test]
async fn a_hub_that_ends_at_once_is_not_waited_for() {
    let mut hub = Hub::serve("nats://127.0.0.1:1", &TestSettings::default(), &["--no-such-flag"]);
    let said = panic_of(hub.ready()).await;
    assert!(said.contains("ended before it was ready"), "{said}");
}
