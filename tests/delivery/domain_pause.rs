//! A paused domain: no process starts an attempt, also not of envelopes that it was given before; nothing is lost or tried
//! in vain, and all goes on after the pause.

use std::time::Duration;

use serde_json::{Value, json};

use super::strict::{accepted, assert_in_order, ids_of, publish_in_order, strict};
use crate::support::{
    Behaviour, FaultProxy, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(90);
const DOMAIN: &str = "user-lifecycle";
const PAUSED: &str = "domain paused, deliveries wait";
const ENDED: &str = "pause of the domain ended, deliveries continue";
/// Attempts of the endpoints here take a fraction of this, so that many would start in it.
const QUIET: Duration = Duration::from_secs(4);
/// One attempt.
const SLOW: Duration = Duration::from_millis(400);

/// Waits until each hub has written this line.
async fn all_log(hubs: &[&Hub], line: &str) {
    for hub in hubs {
        hub.wait_for_log(line, STEP).await;
    }
}

/// A subscription with several attempts in flight.
fn parallel(id: &str, url: &str) -> Value {
    let mut value = patient(id, &["user.>"], url);
    value["delivery"]["max_in_flight"] = json!(4);
    value
}

/// Asserts that no attempt starts for a while, after those in progress have ended.
async fn assert_quiet(receiver: &Receiver, paths: &[&str]) {
    let count = || paths.iter().map(|path| receiver.count(path)).collect::<Vec<_>>();
    // The last answer may be on its way to the process that has learned of the pause.
    let before = eventually(STEP, "the attempts in progress end", async || {
        let seen = count();
        tokio::time::sleep(2 * SLOW).await;
        if seen == count() { Ok(seen) } else { Err(seen) }
    })
    .await;
    tokio::time::sleep(QUIET).await;
    assert_eq!(count(), before, "an attempt started in the pause");
}

/// Asserts that each event was tried once, and that no envelope has used up an attempt while it waited.
fn assert_each_tried_once(receiver: &Receiver, path: &str, count: usize) {
    let requests = receiver.received(path);
    assert_eq!(requests.len(), count, "{path}");
    assert!(receiver.doubles(path).is_empty());
    assert!(requests.iter().all(|request| request.header("webhook-attempt") == "1"), "{path}");
}

#[tokio::test]
async fn a_pause_stops_what_processes_have_in_memory_and_a_resume_continues_it() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    for path in ["/plain", "/strict"] {
        receiver.set(path, Behaviour::slow(SLOW));
    }
    // Its retries are due in the pause.
    receiver.set("/failing", Behaviour::failing_first(40, 503));
    let settings = TestSettings::patient().with(|settings| {
        settings.delivery.max_deliver = Some(30);
        settings.circuit.enabled = Some(false);
    });
    let mut hubs = [(); 2].map(|()| Hub::serve(&broker.url(), &settings, &[]));
    for hub in &mut hubs {
        hub.ready().await;
    }
    let [first, second] = &hubs;
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe([
            parallel("plain", &receiver.url("/plain")),
            parallel("failing", &receiver.url("/failing")),
            strict("strict", &receiver.url("/strict"), &json!({ "timeout": "60s" })),
        ])
        .await;
    let events = ids("event", 60);
    publish_in_order(&client, &events).await;
    receiver.wait_for("/plain", 8, STEP).await;
    receiver.wait_for("/strict", 2, STEP).await;

    first.cli_ok(&["domain", "pause", DOMAIN]).await;
    all_log(&[first, second], PAUSED).await;
    assert_quiet(&receiver, &["/plain", "/failing", "/strict"]).await;
    assert!(receiver.count("/plain") < events.len() && receiver.count("/strict") < events.len());
    let waiting = client.consumer("HUB_OUTBOX_USER_LIFECYCLE", "lane-shared").await.num_ack_pending;
    assert!(waiting > 0, "envelopes wait in the memory of the processes");

    second.cli_ok(&["domain", "resume", DOMAIN]).await;
    all_log(&[first, second], ENDED).await;
    for path in ["/plain", "/failing", "/strict"] {
        receiver.wait_accepted(path, events.len(), STEP).await;
    }
    broker.nothing_pending_within(STEP).await;
    assert_each_tried_once(&receiver, "/plain", events.len());
    assert_each_tried_once(&receiver, "/strict", events.len());
    assert_in_order(&ids_of(accepted(&receiver, "/strict", "subject")), &events);
    assert!(client.dead_letters(DOMAIN).await.is_empty());
}

#[tokio::test]
async fn a_pause_with_an_end_ends_by_itself_in_a_process_with_waiting_envelopes() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/plain", Behaviour::slow(SLOW));
    // The pause is longer than this: heartbeats keep the envelopes from being delivered again.
    let settings = TestSettings::patient().with(|settings| {
        settings.delivery.max_timeout = Some(Duration::from_secs(4));
        settings.delivery.ack_wait = Some(Duration::from_secs(5));
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let mut plain = parallel("plain", &receiver.url("/plain"));
    plain["delivery"]["timeout"] = json!("4s");
    client.subscribe([plain]).await;
    let events = ids("event", 60);
    client.publish_all("user.created", &events).await;
    receiver.wait_for("/plain", 8, STEP).await;
    hub.cli_ok(&["domain", "pause", DOMAIN, "--for", "15s"]).await;
    all_log(&[&hub], PAUSED).await;
    assert_quiet(&receiver, &["/plain"]).await;
    assert!(receiver.count("/plain") < events.len());
    receiver.wait_accepted("/plain", events.len(), STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_each_tried_once(&receiver, "/plain", events.len());
}

#[tokio::test]
async fn a_process_that_missed_the_pause_and_its_end_learns_of_them() {
    let broker = TestBroker::start().await;
    let proxy = FaultProxy::start(&broker.url()).await;
    let receiver = Receiver::start().await;
    receiver.set("/plain", Behaviour::slow(SLOW));
    let mut hub = Hub::serve(&proxy.url("nats"), &TestSettings::patient(), &[]);
    hub.ready().await;
    let operator = Hub::not_started(&broker.url(), &TestSettings::patient());
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([parallel("plain", &receiver.url("/plain"))]).await;
    let events = ids("event", 200);
    client.publish_all("user.created", &events).await;
    receiver.wait_for("/plain", 8, STEP).await;

    let without_connection = async |args: &[&str]| {
        proxy.set_refusing(true);
        proxy.cut();
        operator.cli_ok(args).await;
        proxy.set_refusing(false);
    };
    without_connection(&["domain", "pause", DOMAIN]).await;
    all_log(&[&hub], PAUSED).await;
    assert_quiet(&receiver, &["/plain"]).await;
    assert!(receiver.count("/plain") < events.len());
    without_connection(&["domain", "resume", DOMAIN]).await;
    all_log(&[&hub], ENDED).await;
    receiver.wait_accepted("/plain", events.len(), STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert!(receiver.doubles("/plain").is_empty());
}
