//! The delivery log for each value of `delivery.log`, and the trace of an event built from it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, print_output,
    subscription,
};

const STEP: Duration = Duration::from_secs(30);
const DLT: &str = "HUB_OUTBOX_POLICY_CLIENT_DLT";

struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    hub: Hub,
    client: TestClient,
}

impl Stage {
    /// A hub with this `delivery.log` (the default if empty): `a` accepts, `b` answers 503.
    async fn set(log: &str) -> Self {
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let log = Some(log.to_owned()).filter(|log| !log.is_empty());
        let settings = TestSettings::quick().with(|settings| settings.delivery.log = log);
        let mut hub = Hub::serve(&broker.url(), &settings, &[]);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        client
            .subscribe([
                subscription("a", &["policy.>"], &receiver.url("/a")),
                subscription("b", &["policy.>"], &receiver.url("/b")),
            ])
            .await;
        let body = Bytes::from_static(b"closed for today");
        receiver.set("/b", Behaviour::Answer { status: 503, headers: Vec::new(), body });
        Self { broker, receiver, hub, client }
    }

    /// Publishes one event and waits until `a` has accepted it and it is dead-lettered for `b`.
    async fn deliver_and_dead_letter(&self, id: &str) {
        assert!(self.client.publish("policy.updated", id).await);
        self.receiver.wait_accepted("/a", 1, STEP).await;
        eventually(STEP, "the dead letter is there", async || {
            match self.client.dead_letters("policy-client").await.len() {
                1 => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }

    /// Every record of the log, by subscription, in order.
    async fn records(&self) -> BTreeMap<String, Vec<Value>> {
        let mut records = BTreeMap::<String, Vec<Value>>::new();
        let info = self.client.stream("HUB_ATTEMPTS").await;
        for sequence in info.state.first_sequence..=info.state.last_sequence {
            let Some(message) = self.client.js.get("HUB_ATTEMPTS", sequence).await.expect("readable") else {
                continue;
            };
            let tokens: Vec<&str> = message.subject.split('.').collect();
            if let ["hub", "attempts", "policy-client", subscription] = tokens[..] {
                let text = std::str::from_utf8(&message.payload).expect("UTF-8");
                let lines = text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON"));
                records.entry(subscription.to_owned()).or_default().extend(lines);
            }
        }
        records
    }

    /// Waits until the log has `count` records of a subscription.
    async fn records_of(&self, subscription: &str, count: usize) -> Vec<Value> {
        eventually(STEP, "the records are written", async || {
            let records = self.records().await.remove(subscription).unwrap_or_default();
            if records.len() >= count { Ok(records) } else { Err(records) }
        })
        .await
    }

    async fn last_words(&self) -> usize {
        let all = self.client.js.stream_subjects("HUB_ATTEMPTS", "hub.attempts.policy-client.*.*").await;
        all.expect("readable").len()
    }

    async fn trace(&self, id: &str) -> Value {
        self.hub.cli_json(&["event", "trace", id]).await
    }
}

/// `b attempt 1 retried`
fn steps_of(trace: &Value) -> Vec<String> {
    let steps = trace["timeline"].as_array().expect("a timeline").iter();
    steps
        .map(|step| {
            let parts = [&step["subscription"], &step["what"], &step["attempt"], &step["outcome"]];
            let parts = parts.into_iter().filter(|part| !part.is_null());
            parts.map(|part| part.to_string().replace('"', "")).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

fn states(trace: &Value) -> Vec<String> {
    let subscribers = trace["subscribers"].as_array().expect("subscribers").iter();
    subscribers
        .map(|one| format!("{} {} {}", one["subscription"], one["state"], one["attempts"]).replace('"', ""))
        .collect()
}

fn of<'t>(steps: &'t [String], subscription: &str) -> Vec<&'t str> {
    let start = format!("{subscription} ");
    steps.iter().filter_map(|step| step.strip_prefix(&start)).collect()
}

#[tokio::test]
async fn every_attempt_is_logged_and_a_redriven_event_can_be_traced() {
    let stage = Stage::set("").await;
    stage.deliver_and_dead_letter("e \"1\"").await;

    let good = stage.records_of("a", 1).await;
    assert_eq!(good.len(), 1);
    for (field, value) in [
        ("event_id", json!("e \"1\"")),
        ("event_key", json!("policy.updated")),
        ("tenant", json!("default")),
        ("attempt", json!(1)),
        ("outcome", json!("delivered")),
        ("status", json!(200)),
        ("error", Value::Null),
        ("answer", Value::Null),
    ] {
        assert_eq!(good[0][field], value, "{field}");
    }
    let bad = stage.records_of("b", 3).await;
    let outcomes: Vec<_> = bad.iter().map(|one| one["outcome"].as_str().expect("an outcome")).collect();
    assert_eq!(outcomes, ["retried", "retried", "exhausted"]);
    for (field, value) in [
        ("status", json!(503)),
        ("error", json!("status")),
        ("fault", json!("subscriber")),
        ("answer", json!("closed for today")),
    ] {
        assert_eq!(bad[2][field], value, "{field}");
    }
    assert_eq!(stage.last_words().await, 1);
    assert!(stage.hub.metric("hub_attempts_logged_total", &[r#"domain="policy-client""#]).await >= 4.0);
    assert_eq!(stage.hub.metric("hub_attempts_unlogged_total", &[]).await, 0.0);

    let trace = stage.trace("e \"1\"").await;
    assert_eq!(trace["complete"], true);
    let steps = steps_of(&trace);
    assert_eq!(steps[0], "published", "{steps:?}");
    assert_eq!(of(&steps, "a"), ["queued", "attempt 1 delivered"]);
    let failed = ["queued", "attempt 1 retried", "attempt 2 retried", "attempt 3 exhausted"];
    assert_eq!(of(&steps, "b"), [&failed[..], &["dead-lettered"]].concat());
    assert_eq!(states(&trace), ["a delivered 1", "b dead-lettered 3"]);

    // The endpoint works again, and the dead letter is replayed.
    stage.receiver.set("/b", Behaviour::ok());
    stage.hub.cli_ok(&["dlt", "replay", "--all", "--wait"]).await;
    stage.records_of("b", 4).await;
    let trace = stage.trace("e \"1\"").await;
    let steps = steps_of(&trace);
    assert_eq!(of(&steps, "b"), [&failed[..], &["redriven", "attempt 4 delivered"]].concat());
    assert_eq!(states(&trace), ["a delivered 1", "b delivered 4"]);
    let table =
        stage.hub.cli_ok(&["event", "trace", "e \"1\"", "--since", "1h", "--domain", "policy-client"]).await;
    assert!(table.contains("redriven") && table.contains("delivered"), "{table}");

    // The trace ignores earlier records and other domains.
    for narrowed in [["--since", "2099-01-01T00:00:00Z"], ["--domain", "organization"]] {
        let output = stage.hub.cli(&[&["event", "trace", "e \"1\""], &narrowed[..]].concat()).await;
        assert_eq!(output.status.code(), Some(1), "{}", print_output(&output));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("no trace of the event"),
            "{}",
            print_output(&output)
        );
    }
    assert_eq!(stage.client.stream(DLT).await.state.messages, 0);
    stage.broker.nothing_pending_within(STEP).await;
}

#[tokio::test]
async fn failures_alone_are_logged_where_the_settings_say_so() {
    let mut stage = Stage::set("failures").await;
    stage.deliver_and_dead_letter("e1").await;
    assert_eq!(stage.records_of("b", 3).await.len(), 3);
    // A stopping hub writes the collected records.
    assert!(stage.hub.terminate().await.success());
    let records = stage.records().await;
    assert_eq!(records.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(records["b"].len(), 3);
    let trace = stage.trace("e1").await;
    assert_eq!(states(&trace), ["b dead-lettered 3"]);
}

#[tokio::test]
async fn only_final_failures_are_logged_if_the_log_is_off() {
    let mut stage = Stage::set("none").await;
    stage.deliver_and_dead_letter("e1").await;
    assert!(stage.hub.terminate().await.success());
    assert_eq!(stage.records().await.len(), 0);
    assert_eq!(stage.last_words().await, 1);
    let trace = stage.trace("e1").await;
    assert_eq!(of(&steps_of(&trace), "b"), ["attempt 3 exhausted", "dead-lettered"]);
    assert_eq!(states(&trace), ["b dead-lettered 3"]);

    let refused = stage.hub.cli(&["--set", "delivery.log=some", "config", "show"]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", print_output(&refused));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("delivery.log") && text.contains("all, failures, none"), "{text}");
}

#[tokio::test]
async fn a_trace_shows_waiting_queued_and_rejected_events() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &["--role", "dlt-processor"]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("a", &["policy.>"], &receiver.url("/a"))]).await;
    client.publish("policy.updated", "e1").await;
    client.publish("weather.changed", "e2").await;
    assert_eq!(steps_of(&hub.cli_json(&["event", "trace", "e1"]).await), ["waiting"]);
    assert!(hub.terminate().await.success());

    // Fanned out, and not delivered: the envelope is queued in the outbox.
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &["--role", "event-processor"]);
    hub.ready().await;
    let trace = eventually(STEP, "both events are processed", async || {
        match client.stream("HUB_EVENTS").await.state.messages {
            0 => Ok(hub.cli_json(&["event", "trace", "e1"]).await),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(steps_of(&trace), ["published", "a queued"]);
    assert_eq!(states(&trace), ["a waiting 0"]);
    let refused = hub.cli_json(&["event", "trace", "e2"]).await;
    assert_eq!(steps_of(&refused), ["rejected"]);
    assert!(refused["timeline"][0]["detail"].to_string().contains("no-domain"), "{refused}");
}

#[tokio::test]
async fn a_story_is_found_among_a_hundred_thousand_records() {
    const MANY: usize = 100_000;
    let broker = TestBroker::start().await;
    let hub = Hub::not_started(&broker.url(), &TestSettings::quick());
    hub.cli_ok(&["provision"]).await;
    let client = TestClient::connect(&broker.url()).await;
    let events = ids("event", MANY);
    let js = &client.js;
    stream::iter(events.chunks(500).enumerate())
        .map(|(chunk, events)| async move {
            let line = |id: &String| {
                let record = json!({
                    "envelope": format!("env_{id}"), "event_id": id, "event_key": "policy.updated",
                    "queued_at": "2026-01-01T00:00:00Z", "at": "2026-01-01T00:00:01Z",
                    "attempt": 1, "outcome": "delivered", "status": 200, "latency_ms": 3,
                });
                format!("{record}\n")
            };
            let lines: String = events.iter().map(line).collect();
            let subscription = format!("s{}", chunk % 10);
            js.put_attempts("policy-client", &subscription, events.len() as u64, lines.into()).await
        })
        .buffered(32)
        .try_collect::<()>()
        .await
        .expect("the log takes them");
    assert_eq!(js.attempts_logged().await.expect("readable"), MANY as u64);
    let sent = async || broker.varz().await["out_msgs"].as_u64().expect("a count");
    let before = sent().await;
    let trace = hub.cli_json(&["event", "trace", "event-77777"]).await;
    assert_eq!(states(&trace), ["s5 delivered 1"]);
    // Records are read by the message, 500 at a time, and each message once.
    let sent = sent().await - before;
    assert!(sent < 1_000, "the server sent {sent} messages for one trace of {MANY} records");
}
