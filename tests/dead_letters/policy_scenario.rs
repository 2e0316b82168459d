//! An event that one subscriber accepts and another refuses: delivered to the first, dead-lettered in its own
//! domain for the second, and redriven.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::{
    Behaviour, Hub, Received, Receiver, TestBroker, TestClient, TestSettings, TokenEndpoint, eventually, ids,
    subscription,
};

const STEP: Duration = Duration::from_secs(30);
const DLT: &str = "HUB_OUTBOX_POLICY_CLIENT_DLT";
const OTHER_DLTS: [&str; 3] =
    ["HUB_OUTBOX_USER_LIFECYCLE_DLT", "HUB_OUTBOX_ACCESS_SESSION_DLT", "HUB_OUTBOX_ORGANIZATION_DLT"];
/// In base64: 32 bytes.
const MASTER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Writes a file and runs `hub subscription apply -f`, as a platform engineer would.
async fn apply(hub: &Hub, subscriptions: &Value) {
    let file = hub.folder().join("subscriptions.json");
    std::fs::write(&file, subscriptions.to_string()).expect("the file is written");
    hub.cli_ok(&["subscription", "apply", "-f", file.to_str().expect("a path in UTF-8")]).await;
}

/// Waits until `hub dlt list` with these options lists `count` dead letters, and returns them.
async fn dead_letters(hub: &Hub, count: usize, options: &[&str]) -> Vec<Value> {
    let mut args = vec!["dlt", "list", "--domain", "policy-client"];
    args.extend(options);
    eventually(STEP, &format!("`hub {}` shows {count}", args.join(" ")), async || {
        let list = hub.cli_json(&args).await;
        let list = list.as_array().expect("a list").clone();
        if list.len() == count { Ok(list) } else { Err(list) }
    })
    .await
}

/// The tolerance of a receiver in Standard Webhooks, on both sides.
const TOLERANCE: Duration = Duration::from_secs(300);

/// Of requests to a hub that was started at this moment.
fn assert_delivery_headers(requests: &[Received], started: SystemTime) {
    for request in requests {
        let sent: u64 = request.header("webhook-timestamp").parse().expect("webhook-timestamp in seconds");
        let (sent, arrived) = (UNIX_EPOCH + Duration::from_secs(sent), request.arrived_at);
        let is_of_the_test = started <= sent + TOLERANCE && sent <= arrived + TOLERANCE;
        assert!(is_of_the_test, "webhook-timestamp {sent:?} is not from {started:?} to {arrived:?}");
        let parts: Vec<usize> = request.header("traceparent").split('-').map(str::len).collect();
        assert_eq!(parts, [2, 32, 16, 2], "traceparent {:?}", request.header("traceparent"));
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(request.header("user-agent"), format!("integration-hub/{version}"));
        assert!(request.header("content-type").starts_with("application/cloudevents+json"));
    }
}

#[tokio::test]
async fn a_gets_it_b_is_dead_lettered_after_its_retries_and_redriven_once_it_is_back() {
    let started = SystemTime::now();
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/b", Behaviour::status(503));
    // Long enough to look at the dead letter before its redrive.
    let settings = TestSettings::quick().with_redrives([8, 1].map(Duration::from_secs));
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let mut both = json!([
        subscription("a", &["policy.>"], &receiver.url("/a")),
        subscription("b", &["policy.>"], &receiver.url("/b")),
    ]);
    for subscription in both.as_array_mut().expect("a list") {
        subscription["tenant"] = json!("acme");
    }
    apply(&hub, &both).await;
    hub.cli_ok(&["publish", "policy.updated", r#"{"policy":"p1"}"#, "--id", "e1", "--tenant", "acme"]).await;

    receiver.wait_accepted("/a", 1, STEP).await;
    let letter = dead_letters(&hub, 1, &[]).await.remove(0);
    let fields = json!({
        "domain": letter["domain"], "subscription": letter["subscription"], "tenant": letter["tenant"],
        "event_id": letter["event_id"], "event_key": letter["event_key"], "reason": letter["reason"],
        "fault": letter["fault"], "state": letter["state"], "attempts": letter["attempts"],
        "last_status": letter["last_status"], "last_error": letter["last_error"],
    });
    let expected = json!({
        "domain": "policy-client", "subscription": "b", "tenant": "acme",
        "event_id": "e1", "event_key": "policy.updated", "reason": "exhausted",
        "fault": "subscriber", "state": "scheduled", "attempts": 3,
        "last_status": 503, "last_error": "503 Service Unavailable",
    });
    assert_eq!(fields, expected);
    let time = |field: &str| {
        let text = letter[field].as_str().unwrap_or_else(|| panic!("no {field} in {letter}"));
        let format = &time::format_description::well_known::Rfc3339;
        time::OffsetDateTime::parse(text, format).expect("RFC 3339")
    };
    assert_eq!(time("next_redrive_at") - time("failed_at"), Duration::from_secs(8));

    // In the DLT of its domain with the same fields as headers and the envelope as body, and in no other.
    let stored = client.js.get(DLT, 1).await.expect("readable").expect("the dead letter is stored");
    assert_eq!(stored.subject, "hub.outbox.policy-client.shared.acme=b.DLT");
    for (header, value) in [
        ("Hub-Subscription", "b"),
        ("Hub-Reason", "exhausted"),
        ("Hub-Attempts", "3"),
        ("Hub-Last-Status", "503"),
    ] {
        assert_eq!(stored.header(header), Some(value), "{header}");
    }
    let envelope: Value = serde_json::from_slice(&stored.payload).expect("JSON");
    assert_eq!((&envelope["id"], &envelope["event"]["id"]), (&letter["id"], &json!("e1")));
    for stream in OTHER_DLTS {
        assert_eq!(client.stream(stream).await.state.last_sequence, 0, "{stream}");
    }
    assert_eq!(client.stream(DLT).await.state.messages, 1);

    receiver.set("/b", Behaviour::ok());
    receiver.wait_accepted("/b", 1, STEP).await;
    dead_letters(&hub, 0, &[]).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(client.stream(DLT).await.state.messages, 0, "the depth is zero again");

    let (to_a, to_b) = (receiver.received("/a"), receiver.received("/b"));
    assert_delivery_headers(&to_a, started);
    assert_delivery_headers(&to_b, started);
    let attempts = |requests: &[Received]| {
        requests
            .iter()
            .map(|request| (request.webhook_id().to_owned(), request.header("webhook-attempt").to_owned()))
            .collect::<Vec<_>>()
    };
    let id = letter["id"].as_str().expect("an id");
    let counted = ["1", "2", "3", "4"].map(|attempt| (id.to_owned(), attempt.to_owned()));
    assert_eq!(attempts(&to_b), counted, "three attempts and the redrive, under one id");
    assert_eq!(to_a.len(), 1);
    assert_eq!(to_a[0].header("webhook-attempt"), "1");
    assert_ne!(to_a[0].webhook_id(), id, "each subscription has an envelope of its own");
    let event = to_b[3].json();
    assert_eq!(
        (&event["specversion"], &event["type"], &event["id"], &event["data"]),
        (&json!("1.0"), &json!("policy.updated"), &json!("e1"), &json!({"policy": "p1"}))
    );
}

#[tokio::test]
async fn every_failure_reaches_the_dlt_of_its_own_domain_and_no_event_is_in_two() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/down", Behaviour::status(500));
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("down", &[">"], &receiver.url("/down"))]).await;
    let domains = [
        ("user-lifecycle", "HUB_OUTBOX_USER_LIFECYCLE", "role.granted"),
        ("access-session", "HUB_OUTBOX_ACCESS_SESSION", "token.refreshed"),
        ("policy-client", "HUB_OUTBOX_POLICY_CLIENT", "consent.revoked"),
        ("organization", "HUB_OUTBOX_ORGANIZATION", "member.invited"),
    ];
    for (domain, _, key) in domains {
        client.publish_all(key, &ids(domain, 10)).await;
    }
    receiver.wait_for("/down", 120, STEP).await;
    broker.nothing_pending_within(STEP).await;
    for (domain, outbox, key) in domains {
        assert_eq!(client.stream(outbox).await.state.last_sequence, 10, "{outbox} had its own ten");
        let letters = client.dead_letters(domain).await;
        assert_eq!(letters.len(), 10, "{domain}");
        for entry in letters {
            let letter = entry.letter;
            assert_eq!((letter.domain.as_str(), letter.event_key.as_str()), (domain, key));
            assert!(letter.event_id.starts_with(domain), "{} is an event of {domain}", letter.event_id);
        }
    }
}

#[tokio::test]
async fn the_failures_of_b_do_not_delay_a() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/b", Behaviour::status(503));
    // Everything that reaches A before B's first retry did not wait for B.
    let waits = vec![Duration::from_secs(10), Duration::from_millis(100)];
    let settings = TestSettings::quick().with(|settings| settings.delivery.retry = Some(waits));
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe([
            subscription("a", &["policy.>"], &receiver.url("/a")),
            subscription("b", &["policy.>"], &receiver.url("/b")),
        ])
        .await;
    let events = ids("event", 300);
    client.publish_all("policy.updated", &events).await;
    receiver.wait_accepted("/a", 300, STEP).await;
    let retried = receiver.received("/b").iter().filter(|one| one.header("webhook-attempt") != "1").count();
    assert_eq!(retried, 0, "A had everything before B's first retry");
    receiver.wait_for("/b", 900, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(client.dead_letters("policy-client").await.len(), 300);
    assert_eq!(receiver.count("/a"), 300);
}

#[tokio::test]
async fn parked_after_the_schedule_then_replayed_and_discarded_by_command() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/b", Behaviour::status(503));
    let settings = TestSettings::quick().with_redrives([Duration::from_millis(500)]);
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    apply(&hub, &subscription("b", &["policy.>"], &receiver.url("/b"))).await;
    for id in ["e1", "e2", "e3", "e4"] {
        hub.cli_ok(&["publish", "policy.updated", "{}", "--id", id]).await;
    }

    // Three attempts, the one redrive of the schedule with three more, and then the dead letter is parked.
    let parked = dead_letters(&hub, 4, &["--state", "parked"]).await;
    for letter in &parked {
        assert_eq!((&letter["attempts"], &letter["next_redrive_at"]), (&json!(6), &Value::Null), "{letter}");
    }
    assert_eq!(receiver.count("/b"), 24);
    let id_of = |event: &str| {
        let letter = parked.iter().find(|letter| letter["event_id"] == event).expect("one for each event");
        letter["id"].as_str().expect("an id").to_owned()
    };

    // While B is down a replay fails again: one entry still, with more attempts.
    let replayed = hub.cli(&["dlt", "replay", &id_of("e1"), "--wait"]).await;
    assert_eq!(replayed.status.code(), Some(1), "not delivered: {}", crate::support::print_output(&replayed));
    let letters = dead_letters(&hub, 4, &["--state", "parked"]).await;
    let again = letters.iter().find(|letter| letter["event_id"] == "e1").expect("still there");
    assert_eq!((&again["id"], &again["attempts"]), (&json!(id_of("e1")), &json!(9)));

    receiver.set("/b", Behaviour::ok());
    hub.cli_ok(&["dlt", "discard", &id_of("e4"), "--yes"]).await;
    let one = hub.cli_json(&["dlt", "replay", &id_of("e1"), "--wait"]).await;
    assert_eq!((&one["ordered"], &one["delivered"]), (&json!(1), &json!(1)), "{one}");
    dead_letters(&hub, 2, &[]).await;
    let rest = hub.cli_json(&["dlt", "replay", "--subscription", "b", "--wait"]).await;
    assert_eq!((&rest["ordered"], &rest["delivered"]), (&json!(2), &json!(2)), "{rest}");
    dead_letters(&hub, 0, &[]).await;
    broker.nothing_pending_within(STEP).await;
    let accepted = receiver.accepted("/b");
    assert_eq!(accepted.len(), 3);
    assert!(!accepted.contains(&id_of("e4")), "a discarded envelope is never delivered");
    assert!(receiver.doubles("/b").is_empty());
    assert_eq!(client.stream(DLT).await.state.messages, 0);
}

#[tokio::test]
async fn each_kind_of_credential_opens_the_endpoint_that_asks_for_it() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let tokens = TokenEndpoint::start("hub", "client-hush").await;
    receiver.set("/none", Behaviour::ok());
    receiver.set("/api-key", Behaviour::require_header("x-partner-key", "key-hush"));
    receiver.set("/basic", Behaviour::require_header("authorization", "Basic aHViOnBhc3MtaHVzaA=="));
    receiver.set("/bearer", Behaviour::require_header("authorization", "Bearer token-hush"));
    receiver.set("/oauth2", Behaviour::require(tokens.guard()));
    receiver.set("/wrong", Behaviour::require_header("authorization", "Bearer another-hush"));
    let settings = TestSettings::quick().with_key(MASTER_KEY);
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let with = |id: &str, auth: Value| {
        let mut subscription = subscription(id, &["policy.>"], &receiver.url(&format!("/{id}")));
        subscription["delivery"]["auth"] = auth;
        subscription
    };
    let oauth2 = json!({
        "type": "oauth2", "token_url": tokens.token_url(), "client_id": "hub",
        "client_secret": "client-hush", "scopes": ["events.write"],
    });
    let all = json!([
        with("none", json!({"type": "none"})),
        with("api-key", json!({"type": "api_key", "header": "x-partner-key", "key": "key-hush"})),
        with("api-key-query", json!({"type": "api_key", "query": "key", "key": "query-hush"})),
        with("basic", json!({"type": "basic", "username": "hub", "password": "pass-hush"})),
        with("bearer", json!({"type": "bearer", "token": "token-hush"})),
        with("oauth2", oauth2),
        with("wrong", json!({"type": "bearer", "token": "wrong-hush"})),
    ]);
    apply(&hub, &all).await;
    hub.cli_ok(&["publish", "policy.updated", "{}", "--id", "e1"]).await;
    for path in ["/none", "/api-key", "/api-key-query", "/basic", "/bearer", "/oauth2"] {
        receiver.wait_accepted(path, 1, STEP).await;
        assert_eq!(receiver.count(path), 1, "{path} at the first attempt");
    }
    assert_eq!(receiver.received("/api-key-query")[0].query.as_deref(), Some("key=query-hush"));
    assert_eq!(receiver.received("/none")[0].header("authorization"), "");
    assert_eq!(tokens.token_requests(), 1);
    assert_eq!(tokens.requests()[0].get("scope").map(String::as_str), Some("events.write"));
    let letters = dead_letters(&hub, 1, &[]).await;
    assert_eq!((&letters[0]["subscription"], &letters[0]["last_status"]), (&json!("wrong"), &json!(401)));

    // No credential is readable anywhere: not in the registry, not in the envelope, not in the log.
    let envelope = client.js.get(DLT, 1).await.expect("readable").expect("the dead letter is stored");
    let mut places = vec![("log", hub.log()), ("list", hub.cli_ok(&["subscription", "list"]).await)];
    places.push(("envelope", String::from_utf8_lossy(&envelope.payload).into_owned()));
    let registry = client.stream("KV_hub-subscriptions").await.state;
    assert_eq!(registry.messages, 7);
    for sequence in registry.first_sequence..=registry.last_sequence {
        let stored = client.js.get("KV_hub-subscriptions", sequence).await.expect("readable");
        places.push(("registry", String::from_utf8_lossy(&stored.expect("there").payload).into_owned()));
    }
    for (place, text) in places {
        assert!(!text.contains("hush"), "a credential is in the {place}: {text}");
    }
}
