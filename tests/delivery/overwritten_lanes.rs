//! The broker has no conditional update of a consumer. Provisioning, or another process, may write an older copy of the
//! configuration of a lane at the moment at which its circuit opens or closes, or its domain is paused: no lane stays paused
//! that should not be, and an open circuit stays open.

use std::time::Duration;

use integration_hub::domain::subscription::{Identity, Incarnation, SubscriptionRef};
use integration_hub::nats::definitions::{StreamLimits, StreamParameters};
use integration_hub::nats::{Trip, Tripped};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(60);
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const LANE: &str = "lane-own-broken";
const RESTORED: &str = "record of an open circuit was overwritten, wrote it again";

async fn config(client: &TestClient, consumer: &str) -> Value {
    Value::Object(client.js.consumer_info(OUTBOX, consumer).await.expect("there").config)
}

/// Writes a whole configuration, as provisioning does.
async fn overwrite(broker: &TestBroker, config: &Value) {
    let filter = config["filter_subject"].as_str().expect("a lane has a filter");
    let subject = format!("$JS.API.CONSUMER.CREATE.{OUTBOX}.{LANE}.{filter}");
    let body = json!({"stream_name": OUTBOX, "config": config, "action": "update"});
    let answer = broker.client().await.request(subject, body.to_string().into()).await.expect("answered");
    let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert!(answer["error"].is_null(), "{answer}");
}

/// The configuration without the circuit, as it was before the circuit opened.
fn before_the_circuit(config: &Value) -> Value {
    let mut before = config.clone();
    before["max_ack_pending"] = json!(200_000);
    before.as_object_mut().expect("an object").remove("pause_until");
    let metadata = before["metadata"].as_object_mut().expect("an object");
    metadata.retain(|key, _| !key.starts_with("hub.circuit."));
    before
}

fn trip_of(subscription: &Identity) -> Trip<'_> {
    Trip { subscription, error: "503", revision: 1, after_probe: false }
}

fn lines(hubs: &[Hub], text: &str) -> usize {
    hubs.iter().map(|hub| hub.log().matches(text).count()).sum()
}

#[tokio::test]
async fn an_older_copy_neither_ends_a_circuit_nor_leaves_its_lane_paused() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let settings = TestSettings::patient().with(|settings| {
        settings.circuit.failures = Some(4);
        settings.circuit.failing_for = Some(Duration::ZERO);
        settings.circuit.first_pause = Some(Duration::from_secs(600));
        settings.circuit.longest_pause = Some(Duration::from_secs(600));
    });
    let mut hubs = [0, 1].map(|_| Hub::serve(&broker.url(), &settings, &[]));
    for hub in &mut hubs {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    receiver.set("/broken", Behaviour::status(503));
    client.subscribe([patient("broken", &["policy.>"], &receiver.url("/broken"))]).await;
    let events = ids("event", 30);
    for event in &events {
        client.publish("policy.updated", event).await;
    }
    eventually(STEP, "the circuit is open, and all envelopes are in its lane", async || {
        let info = client.js.consumer_info(OUTBOX, LANE).await.map_err(|error| error.to_string())?;
        let waiting = info.num_pending + info.num_ack_pending;
        if info.is_paused_by_circuit() && waiting == 30 { Ok(()) } else { Err(format!("{info:?}")) }
    })
    .await;
    let (open, tried) = (config(&client, LANE).await, receiver.count("/broken"));

    // The copy is from before the circuit opened. The server keeps the pause, and nothing else.
    let before = before_the_circuit(&open);
    for round in 1..=3 {
        overwrite(&broker, &before).await;
        eventually(STEP, "the record of the circuit is there again", async || {
            let now = config(&client, LANE).await;
            if now == open && lines(&hubs, RESTORED) >= round.min(1) { Ok(()) } else { Err(now) }
        })
        .await;
        assert!(client.consumer(OUTBOX, LANE).await.paused);
    }
    let shown = hubs[0].cli_json(&["subscription", "show", "broken", "--circuits"]).await.to_string();
    assert!(shown.contains("open"), "{shown}");
    assert_eq!(receiver.count("/broken"), tried, "an open circuit sends nothing");

    receiver.set("/broken", Behaviour::ok());
    hubs[0].cli_ok(&["subscription", "resume", "broken"]).await;
    receiver.wait_accepted("/broken", events.len(), STEP).await;
    broker.nothing_pending_within(STEP).await;

    // The copy is from before the circuit closed: an envelope is the probe, and closes it again.
    overwrite(&broker, &open).await;
    assert!(!client.consumer(OUTBOX, LANE).await.paused);
    let mut more = 0;
    eventually(STEP, "the circuit is closed", async || {
        more += 1;
        client.publish("policy.updated", &format!("probe-{more}")).await;
        let now = config(&client, LANE).await;
        if now["metadata"]["hub.circuit.since"].is_null() { Ok(()) } else { Err(now) }
    })
    .await;
    receiver.wait_accepted("/broken", events.len() + more, STEP).await;
    broker.nothing_pending_within(STEP).await;
}

fn parameters() -> StreamParameters {
    let (bytes, age) = (1 << 20, Duration::from_secs(3_600));
    StreamParameters {
        prefix: "hub".to_owned(),
        domains: vec!["policy-client".to_owned()],
        replicas: 1,
        max_deliver: 3,
        ack_wait: Duration::from_secs(60),
        duplicate_window: Duration::from_secs(60),
        limits: StreamLimits {
            events: bytes,
            outbox: bytes,
            dlt: bytes,
            attempts: bytes,
            rejected: bytes,
            advisories: bytes,
            attempts_max_age: age,
            rejected_max_age: age,
        },
    }
}

/// Pauses or resumes a domain as the commands do: the shared lane first, then the lanes that are there.
async fn set_pause(client: &TestClient, until: Option<&str>) {
    client.js.pause_consumer(OUTBOX, "lane-shared", until).await.expect("the shared lane");
    for lane in client.js.consumer_names(OUTBOX).await.expect("listed") {
        client.js.pause_consumer(OUTBOX, &lane, until).await.expect("a lane");
    }
}

#[tokio::test]
async fn a_lane_that_is_created_while_its_domain_is_paused_or_resumed_follows_the_domain() {
    let broker = TestBroker::start().await;
    Hub::not_started(&broker.url(), &TestSettings::patient()).cli_ok(&["provision"]).await;
    let client = TestClient::connect(&broker.url()).await;
    let parameters = parameters();
    for round in 0..160 {
        let until = (round % 2 == 0).then_some("2126-12-22T09:00:00Z");
        let lane = format!("own-crm-{round}");
        let creating = client.js.ensure_lane(&parameters, "policy-client", &lane);
        let pausing = async {
            // So that the change falls into each step of the creation.
            for _ in 0..round / 2 % 5 {
                client.js.consumer_info(OUTBOX, "lane-shared").await.expect("there");
            }
            set_pause(&client, until).await;
        };
        let (created, ()) = tokio::join!(creating, pausing);
        assert!(created.expect("created"));
        let consumer = format!("lane-{lane}");
        let paused = client.consumer(OUTBOX, &consumer).await.paused;
        assert_eq!(paused, until.is_some(), "round {round}");
        client.js.delete_consumer(OUTBOX, &consumer).await.expect("deleted");
    }
}

#[tokio::test]
async fn a_circuit_that_opens_while_its_lane_is_created_stays_open() {
    let broker = TestBroker::start().await;
    Hub::not_started(&broker.url(), &TestSettings::patient()).cli_ok(&["provision"]).await;
    let client = TestClient::connect(&broker.url()).await;
    let parameters = parameters();
    for round in 0..160_u64 {
        let until = (round % 2 == 0).then_some("2126-12-22T09:00:00Z");
        let (id, lane) = (format!("crm-{round}"), format!("own-crm-{round}"));
        let consumer = format!("lane-{lane}");
        let subscription = Identity {
            subscription: SubscriptionRef::of("default", &id).expect("valid"),
            incarnation: Incarnation::new(round.into()),
        };
        let creating = client.js.ensure_lane(&parameters, "policy-client", &lane);
        let pausing = async {
            // So that the change falls into each step of the creation.
            for _ in 0..round / 2 % 5 {
                client.js.consumer_info(OUTBOX, "lane-shared").await.expect("there");
            }
            client.js.pause_consumer(OUTBOX, "lane-shared", until).await.expect("the shared lane");
        };
        let opening = async {
            loop {
                let trip = trip_of(&subscription);
                match client.js.trip_circuit(OUTBOX, &consumer, trip, |_| Duration::from_secs(600)).await {
                    Ok(tripped) => break tripped.record().clone(),
                    Err(error) => assert!(error.is_not_found(), "{error}"),
                }
            }
        };
        let (created, (), record) = tokio::join!(creating, pausing, opening);
        assert!(created.expect("created"));
        let info = client.js.consumer_info(OUTBOX, &consumer).await.expect("there");
        assert_eq!(info.circuit(), Some(record.clone()), "round {round}");
        let paused_until = info.config.get("pause_until").and_then(Value::as_str).expect("paused");
        let paused_until = OffsetDateTime::parse(paused_until, &Rfc3339).expect("a time");
        assert!(info.paused && paused_until >= record.probe_at, "round {round}: {paused_until}");
        client.js.delete_consumer(OUTBOX, &consumer).await.expect("deleted");
    }
}

/// A process writes the record of a circuit, then pauses its lane. Another one that wants to open it between the two, or
/// after a kill between the two, has sent no probe.
#[tokio::test]
async fn a_circuit_that_another_process_is_opening_is_not_opened_again() {
    const PAUSE: Duration = Duration::from_secs(600);
    let broker = TestBroker::start().await;
    Hub::not_started(&broker.url(), &TestSettings::patient()).cli_ok(&["provision"]).await;
    let client = TestClient::connect(&broker.url()).await;
    client.js.ensure_lane(&parameters(), "policy-client", "own-broken").await.expect("created");
    let subscription = Identity {
        subscription: SubscriptionRef::of("default", "broken").expect("valid"),
        incarnation: Incarnation::new(7),
    };
    let opened =
        client.js.trip_circuit(OUTBOX, LANE, trip_of(&subscription), |_| PAUSE).await.expect("opened");
    assert!(matches!(opened, Tripped::Opened(_)), "{opened:?}");
    client.js.pause_consumer(OUTBOX, LANE, None).await.expect("resumed");

    let other =
        client.js.trip_circuit(OUTBOX, LANE, trip_of(&subscription), |_| PAUSE * 2).await.expect("answered");
    assert_eq!(other, Tripped::Already(opened.record().clone()));
    let info = client.js.consumer_info(OUTBOX, LANE).await.expect("there");
    assert!(info.is_paused_by_circuit(), "{:?}", info.config);
    assert_eq!(info.circuit().as_ref(), Some(opened.record()));

    client.js.pause_consumer(OUTBOX, LANE, None).await.expect("resumed");
    let probed = Trip { after_probe: true, ..trip_of(&subscription) };
    let again = client
        .js
        .trip_circuit(OUTBOX, LANE, probed, |last| last.expect("a pause") * 2)
        .await
        .expect("answered");
    assert!(matches!(&again, Tripped::Again(record) if record.pause == PAUSE * 2), "{again:?}");
}
