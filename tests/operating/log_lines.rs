//! The log of a running hub: no line is longer than its limit, whatever publishers send, and none is lost; an outage of
//! NATS is logged once.

use std::time::Duration;

use async_nats::HeaderMap;
use serde_json::{Value, json};

use crate::support::{FaultProxy, Hub, TestBroker, TestClient, TestSettings, eventually};

const STEP: Duration = Duration::from_secs(60);
const MAX_LINE_BYTES: usize = 16 * 1024;
const BIG: usize = 800_000;

/// Structured CloudEvents with a huge value in one place each.
fn huge_events() -> Vec<Value> {
    let big = "x\u{1b}[31m\u{202e}\"".repeat(BIG / 20);
    let event = |change: Value| {
        let mut event =
            json!({"specversion": "1.0", "id": "1", "source": "/a", "type": "user.created", "data": {}});
        for (name, value) in change.as_object().expect("an object") {
            event[name] = value.clone();
        }
        event
    };
    ["specversion", "id", "source", "type", "time", "datacontenttype"]
        .into_iter()
        .map(|name| event(json!({ name: &big })))
        .chain([event(json!({ &big: 1 })), json!([&big]), json!(&big)])
        .collect()
}

async fn lines_stay_short(format: &str) {
    let broker = TestBroker::start().await;
    let settings = TestSettings::quick().with(|settings| {
        settings.log.format = Some(format.to_owned());
        settings.log.repeat_interval = Some(Duration::ZERO);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let events = huge_events();
    for event in &events {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/cloudevents+json");
        let sent =
            client.context.publish_with_headers("hub.events.user.created", headers, event.to_string().into());
        sent.await.expect("sent").await.expect("the stream stores it");
    }
    let entry = json!("y".repeat(BIG)).to_string();
    let sent = client.context.publish("$KV.hub-subscriptions.acme=crm", entry.into()).await.expect("sent");
    sent.await.expect("stored");
    hub.wait_for_log("a registry entry is unreadable", STEP).await;
    broker.nothing_pending_within(STEP).await;

    let rejected = hub.metric("hub_events_rejected_total", &[]).await;
    assert!(rejected >= 3.0, "{rejected} of {} are rejected", events.len());
    eventually(STEP, "each rejection has its line", async || {
        let logged = hub.log().matches("event rejected").count();
        if logged as f64 == rejected { Ok(()) } else { Err(logged) }
    })
    .await;
    assert_eq!(hub.metric("hub_log_lines_lost_total", &[]).await, 0.0);
    let log = hub.log();
    assert!(log.contains(" bytes left out)"), "{log}");
    for line in log.lines() {
        assert!(line.len() < MAX_LINE_BYTES, "{} bytes", line.len());
        assert!(!line.contains(['\u{1b}', '\u{202e}']), "{line}");
        if format == "json" {
            serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        }
    }
    assert!(hub.terminate().await.success());
}

#[tokio::test]
async fn text_lines_stay_short_whatever_is_published() {
    lines_stay_short("text").await;
}

#[tokio::test]
async fn json_lines_stay_short_whatever_is_published() {
    lines_stay_short("json").await;
}

#[tokio::test]
async fn an_outage_of_nats_is_logged_once_with_its_cause() {
    const UNREACHABLE: &str = "the NATS server is unreachable";
    let broker = TestBroker::start().await;
    let address = broker.url();
    let proxy = FaultProxy::start(address.strip_prefix("nats://").expect("a NATS URL")).await;
    let mut hub = Hub::serve(&proxy.url("nats"), &TestSettings::quick(), &[]);
    hub.ready().await;
    for outage in 1..=2 {
        let connected = hub.log().matches("connected to the NATS server").count();
        proxy.set_refusing(true);
        proxy.cut();
        eventually(STEP, "the outage is logged", async || match hub.log().matches(UNREACHABLE).count() {
            count if count == outage => Ok(()),
            count => Err(count),
        })
        .await;
        proxy.set_refusing(false);
        eventually(STEP, "the end is logged", async || {
            match hub.log().matches("connected to the NATS server").count() {
                count if count > connected => Ok(()),
                count => Err(count),
            }
        })
        .await;
    }
    let log = hub.log();
    assert_eq!(log.matches(UNREACHABLE).count(), 2, "{log}");
    let line = log.lines().find(|line| line.contains(UNREACHABLE)).expect("it is logged");
    assert!(line.contains(&proxy.address().to_string()) && line.contains("error="), "{line}");
    assert!(!log.contains("async_nats"), "{log}");
}

/// The API and the command line quote what they were given.
#[tokio::test]
async fn errors_that_quote_their_input_are_cut() {
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let big = "x".repeat(100_000);
    let output = hub.cli(&["domain", "pause", &big]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.len() < MAX_LINE_BYTES, "{} bytes", error.len());
    assert!(error.contains(" bytes left out) …") && error.contains("policy-client"), "{error}");
    let output = hub.cli(&["dlt", "list", "--state", &big]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.len() < MAX_LINE_BYTES, "{} bytes", error.len());
    assert!(hub.terminate().await.success());
}
