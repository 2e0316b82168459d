//! What the running hub stores in streams and consumers survives provisioning, restarts and pauses of a domain; what an
//! operator changed by hand is corrected.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(60);
/// What a killed process had on its way comes after `ack_wait`.
const REDELIVERED: Duration = Duration::from_secs(135);
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const BROKEN: &str = "lane-own-broken";
const ORDERED: &str = "lane-strict-0-ordered";
const OPENED: &str = "endpoint keeps failing, circuit opened";
const OPEN_AGAIN: &str = "probe failed, circuit open again";

fn settings(max_deliver: u32) -> TestSettings {
    TestSettings::patient().with(|settings| {
        settings.circuit.failures = Some(4);
        settings.circuit.failing_for = Some(Duration::ZERO);
        settings.circuit.first_pause = Some(Duration::from_secs(600));
        settings.circuit.longest_pause = Some(Duration::from_secs(600));
        settings.delivery.max_deliver = Some(max_deliver);
        // The tests count the lines.
        settings.log.repeat_interval = Some(Duration::ZERO);
    })
}

async fn request(broker: &TestBroker, subject: String, body: Value) -> Value {
    let answer = broker.client().await.request(subject, body.to_string().into()).await.expect("answered");
    let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert!(answer["error"].is_null(), "{answer}");
    answer
}

async fn config(broker: &TestBroker, consumer: &str) -> Value {
    request(broker, format!("$JS.API.CONSUMER.INFO.{OUTBOX}.{consumer}"), json!({})).await["config"].clone()
}

/// Changes a consumer as an operator would.
async fn edit(broker: &TestBroker, consumer: &str, change: impl FnOnce(&mut Value)) {
    let mut config = config(broker, consumer).await;
    change(&mut config);
    let filter = config["filter_subject"].as_str().expect("a lane has a filter").to_owned();
    let subject = format!("$JS.API.CONSUMER.CREATE.{OUTBOX}.{consumer}.{filter}");
    request(broker, subject, json!({"stream_name": OUTBOX, "config": config, "action": "update"})).await;
}

async fn all_in_lane(client: &TestClient, lane: &str, envelopes: u64) {
    eventually(STEP, "the envelopes are in the lane", async || {
        let info = client.js.consumer_info(OUTBOX, lane).await.map_err(|error| error.to_string())?;
        let shared = client.js.consumer_info(OUTBOX, "lane-shared").await.expect("there");
        let seen = (info.num_pending + info.num_ack_pending, shared.num_pending + shared.num_ack_pending);
        if seen == (envelopes, 0) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

fn sent(hubs: &[Hub], text: &str) -> usize {
    hubs.iter().map(|hub| hub.log().matches(text).count()).sum()
}

#[tokio::test]
async fn an_open_circuit_and_a_strict_lane_survive_provisioning_and_restarts() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    // With 20 attempts, no envelope has used up its own before the circuit opens.
    let mut hubs = [0, 1].map(|_| Hub::serve(&broker.url(), &settings(20), &[]));
    for hub in &mut hubs {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    receiver.set("/broken", Behaviour::status(503));
    let (open, gate) = Behaviour::gate();
    receiver.set("/ordered", gate);
    let mut ordered = patient("ordered", &["policy.>"], &receiver.url("/ordered"));
    ordered["delivery"]["ordering"] = json!("strict");
    client.subscribe([patient("broken", &["policy.>"], &receiver.url("/broken")), ordered]).await;
    let events = ids("event", 60);
    for event in &events {
        client.publish("policy.updated", event).await;
    }
    eventually(STEP, "the circuit is open", async || match sent(&hubs, OPENED) {
        0 => Err(0),
        _ => Ok(()),
    })
    .await;
    all_in_lane(&client, BROKEN, 60).await;
    receiver.wait_for("/ordered", 1, STEP).await;
    let tried = receiver.count("/broken");
    let (circuit, strict) = (config(&broker, BROKEN).await, config(&broker, ORDERED).await);
    assert_eq!((&circuit["max_ack_pending"], &strict["max_ack_pending"]), (&json!(1), &json!(1)));
    assert!(circuit["pause_until"].is_string(), "{circuit}");

    let unchanged = async |when: &str| {
        assert_eq!(config(&broker, BROKEN).await, circuit, "{when}");
        assert_eq!(config(&broker, ORDERED).await, strict, "{when}");
        assert!(client.consumer(OUTBOX, BROKEN).await.paused, "{when}");
        assert_eq!(hubs[0].cli_json(&["provision", "--check"]).await, json!([]), "{when}");
    };
    unchanged("at first").await;
    hubs[0].cli_ok(&["provision"]).await;
    unchanged("provisioned").await;

    // By hand, also what the circuit chose.
    for lane in [BROKEN, ORDERED] {
        edit(&broker, lane, |config| {
            config["description"] = json!("by hand");
            if lane == BROKEN {
                // It is paused; the strict lane would give out its next messages at once.
                config["max_ack_pending"] = json!(500);
            }
            config["ack_wait"] = json!(6_000_000_000_u64);
            config["metadata"]["hub.role"] = json!("mine");
        })
        .await;
    }
    let check = hubs[0].cli(&["provision", "--check"]).await;
    assert_eq!(check.status.code(), Some(1));
    let drifts = String::from_utf8_lossy(&check.stdout).into_owned();
    for part in [BROKEN, ORDERED, "max_ack_pending is 500", "ack_wait", "description", "metadata"] {
        assert!(drifts.contains(part), "{part} in {drifts}");
    }
    hubs[0].cli_ok(&["provision"]).await;
    unchanged("corrected").await;

    // Other settings, and back: all lanes follow, and the circuit stays.
    let other = Hub::not_started(&broker.url(), &settings(21));
    other.cli_ok(&["provision"]).await;
    let mut followed = circuit.clone();
    followed["max_deliver"] = json!(21);
    assert_eq!(config(&broker, BROKEN).await, followed);
    assert_eq!(config(&broker, ORDERED).await, strict, "a strict lane has no limit of deliveries");
    hubs[0].cli_ok(&["provision"]).await;
    unchanged("provisioned with other settings, and back").await;

    let [one, other] = &mut hubs;
    other.kill().await;
    other.start();
    for hub in [one, other] {
        hub.ready().await;
    }
    assert_eq!(config(&broker, BROKEN).await, circuit, "after a restart");
    assert_eq!(config(&broker, ORDERED).await, strict, "after a restart");
    assert_eq!(receiver.count("/broken"), tried, "an open circuit sends nothing");
    // The receiver may still have the request of the killed process.
    assert_eq!(client.consumer(OUTBOX, ORDERED).await.num_ack_pending, 1);

    // A pause of the domain, and provisioning within it.
    hubs[0].cli_ok(&["domain", "pause", "policy-client", "--for", "1h"]).await;
    let paused = config(&broker, "lane-shared").await;
    hubs[1].cli_ok(&["provision"]).await;
    assert_eq!(config(&broker, "lane-shared").await, paused);
    assert_eq!(config(&broker, BROKEN).await["metadata"], circuit["metadata"]);
    assert!(client.consumer(OUTBOX, ORDERED).await.paused);
    hubs[0].cli_ok(&["domain", "resume", "policy-client"]).await;

    // A probe follows, of which the others wait; then the endpoint is well.
    eventually(STEP, "the probe has failed", async || match sent(&hubs, OPEN_AGAIN) {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    all_in_lane(&client, BROKEN, 60).await;
    assert_eq!(receiver.count("/broken"), tried + 1, "one probe");
    hubs[0].cli_ok(&["provision"]).await;
    receiver.set("/broken", Behaviour::ok());
    open.send_replace(true);
    hubs[0].cli_ok(&["subscription", "resume", "broken"]).await;
    receiver.wait_accepted("/broken", 60, STEP).await;
    receiver.wait_accepted("/ordered", 60, REDELIVERED).await;
    broker.nothing_pending_within(STEP).await;
    let closed = config(&broker, BROKEN).await;
    assert!(closed["max_ack_pending"].as_u64() > Some(1_000), "{closed}");
    assert!(!closed["metadata"].to_string().contains("hub.circuit"), "{closed}");
    assert_eq!(hubs[0].cli_json(&["provision", "--check"]).await, json!([]));
}
