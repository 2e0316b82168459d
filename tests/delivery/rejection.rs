//! Input that is not a valid event, setting or subscription: the error names the problem, and published input
//! is kept unchanged.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use hub_testkit::broker_process::BrokerOptions;
use integration_hub::nats::StoredMessage;
use serde_json::json;

use crate::support::{
    Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, nats_server, print_output, subscription,
};

const STEP: Duration = Duration::from_secs(30);

struct Bad {
    what: &'static str,
    subject: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: Vec<u8>,
    reason: &'static str,
    /// A part of the error text.
    says: &'static str,
}

fn bad(
    what: &'static str,
    subject: &'static str,
    body: impl Into<Vec<u8>>,
    reason: &'static str,
    says: &'static str,
) -> Bad {
    Bad { what, subject, headers: &[], body: body.into(), reason, says }
}

fn bad_publications() -> Vec<Bad> {
    let created = "hub.events.user.created";
    let no_id = Bad {
        headers: &[("ce-specversion", "1.0"), ("ce-source", "/idp"), ("ce-type", "user.created")],
        ..bad("a CloudEvent without id", created, "{}", "malformed", "id")
    };
    let split = Bad {
        headers: &[("content-type", "application/cloudevents+json")],
        ..bad(
            "a content type of two lines",
            created,
            r#"{"specversion":"1.0","id":"1","source":"/idp","type":"user.created","data":"x","datacontenttype":"text/plain\r\nx-admin: 1"}"#,
            "malformed",
            "\"datacontenttype\" contains the control character U+000D",
        )
    };
    vec![
        split,
        bad("malformed JSON", created, r#"{"user_id": "#, "malformed", "not JSON"),
        bad("no domain", "hub.events.invoice.paid", "{}", "no-domain", "invoice.paid"),
        bad("empty body", created, "", "malformed", "empty"),
        bad("not UTF-8", created, [b'"', 0xff, 0xfe, b'"'], "malformed", "UTF-8 at byte 1"),
        bad("2 MB", created, format!("\"{}\"", "x".repeat(2_000_000)), "too-large", "events.max_size"),
        bad("no key", "hub.events.user", "{}", "invalid-key", "user"),
        no_id,
    ]
}

async fn publish(client: &TestClient, id: &str, bad: &Bad) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    headers.insert("X-Origin", "billing");
    bad.headers.iter().for_each(|(name, value)| headers.insert(*name, *value));
    let sent = client.context.publish_with_headers(bad.subject, headers, bad.body.clone().into()).await;
    sent.expect("sent").await.expect("the stream stores it; the hub rejects it");
}

async fn rejected(client: &TestClient, count: u64) -> Vec<StoredMessage> {
    eventually(STEP, "everything that was rejected is kept", async || {
        let kept = client.stream("HUB_REJECTED").await.state.messages;
        if kept == count { Ok(()) } else { Err(kept) }
    })
    .await;
    let mut messages = Vec::new();
    for sequence in 1..=count {
        messages.push(client.js.get("HUB_REJECTED", sequence).await.expect("readable").expect("kept"));
    }
    messages
}

#[tokio::test]
async fn an_invalid_event_is_stored_unchanged_with_its_reason() {
    let options = BrokerOptions { max_payload: Some(8_000_000), ..BrokerOptions::new(nats_server()) };
    let broker = TestBroker::start_with(options).await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("all", &[">"], &receiver.url("/all"))]).await;
    let all = bad_publications();
    for (number, bad) in all.iter().enumerate() {
        publish(&client, &format!("bad-{number}"), bad).await;
    }
    client.publish("user.created", "good").await;
    receiver.wait_accepted("/all", 1, STEP).await;
    let kept = rejected(&client, all.len() as u64).await;
    broker.nothing_pending_within(STEP).await;
    for (number, bad) in all.iter().enumerate() {
        let id = format!("bad-{number}");
        let message = kept
            .iter()
            .find(|message| message.header("Hub-Original-Nats-Msg-Id") == Some(&id))
            .unwrap_or_else(|| panic!("{} is not kept", bad.what));
        assert_eq!(message.subject, format!("hub.rejected.{}", bad.reason), "{}", bad.what);
        assert_eq!(message.header("Hub-Reason"), Some(bad.reason), "{}", bad.what);
        assert_eq!(message.header("Hub-Subject"), Some(bad.subject), "{}", bad.what);
        assert!(message.payload == bad.body, "{}: the original bytes", bad.what);
        assert_eq!(message.header("X-Origin"), Some("billing"), "{}: the original headers", bad.what);
        for (name, value) in bad.headers {
            assert_eq!(message.header(name), Some(*value), "{}: the original headers", bad.what);
        }
        let error = message.header("Hub-Error").unwrap_or_default();
        assert!(error.contains(bad.says), "{}: {error:?} says {:?}", bad.what, bad.says);
        let labels = format!("reason=\"{}\"", bad.reason);
        let expected = all.iter().filter(|other| other.reason == bad.reason).count();
        assert_eq!(hub.metric("hub_events_rejected_total", &[&labels]).await as usize, expected);
    }
    assert_eq!(receiver.count("/all"), 1, "only the good one was delivered");
}

#[tokio::test]
async fn what_does_not_fit_beside_its_reason_is_kept_in_parts() {
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    // The largest message that the server accepts.
    let body: Vec<u8> = (0..1_048_400u32).map(|number| b'a' + (number % 26) as u8).collect();
    let bad = bad("as large as can be", "hub.events.user.created", body, "too-large", "events.max_size");
    publish(&client, "large", &bad).await;
    let kept = rejected(&client, 2).await;
    let parts: Vec<Option<&str>> = kept.iter().map(|message| message.header("Hub-Part")).collect();
    assert_eq!(parts, [Some("1/2"), Some("2/2")]);
    let together: Vec<u8> =
        kept.iter().flat_map(|message: &StoredMessage| Bytes::clone(&message.payload)).collect();
    assert!(together == bad.body, "the parts are the original");
    broker.nothing_pending_within(STEP).await;
}

#[tokio::test]
async fn an_unknown_setting_and_a_bad_subscription_are_refused_by_name() {
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve_file("[delivery]\nmax_delivery = 3");
    let status = hub.ended(STEP).await;
    assert_eq!(status.code(), Some(1));
    let log = hub.log();
    assert!(
        log.contains("delivery.max_delivery") && log.contains("max_deliver"),
        "names it and the one meant: {log}"
    );

    let hub = Hub::not_started(&broker.url(), &TestSettings::default());
    hub.cli_ok(&["provision"]).await;
    let bad = json!([
        subscription("fine", &["user.>"], "https://crm.example/hooks"),
        {"id": "bad", "events": ["user.>"], "delivery": {"url": "https://crm.example/hooks", "timout": "2s"}},
    ]);
    let file = hub.folder().join("subscriptions.json");
    std::fs::write(&file, bad.to_string()).expect("written");
    let refused = hub.cli(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", print_output(&refused));
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("timout") && error.contains("bad"), "{error}");
    assert_eq!(
        hub.cli_json(&["subscription", "list"]).await,
        json!([]),
        "all are checked before any is written"
    );
}
