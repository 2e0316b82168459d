//! Processes with different settings: one waits until its settings are applied, and nothing is lost or rejected
//! meanwhile. Heartbeats follow the consumer.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, http_client, ids, patient,
    print_output, settings::Domain,
};

const STEP: Duration = Duration::from_secs(60);
/// Subjects of the advisories of the default domains.
const SUBJECTS: usize = 8;

fn domain(name: &str, events: &[&str]) -> Domain {
    let events = events.iter().map(|pattern| (*pattern).to_owned()).collect();
    Domain { name: name.to_owned(), events, ..Domain::default() }
}

/// A connection that nobody watches counts as lost after this time at the latest.
const WATCHED: Duration = Duration::from_secs(15);

/// Asserts for a while that `/readyz` names one part only.
async fn only_unready(hub: &Hub, part: &str) {
    let wanted = format!("not ready: {part}");
    unready(hub, &format!("{wanted}\n")).await;
    let since = Instant::now();
    while since.elapsed() < WATCHED {
        let (status, body) = readiness(hub).await;
        assert_eq!((status, body.lines().next()), (503, Some(wanted.as_str())), "{body}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn readyz_names_only_what_is_wrong() {
    let broker = TestBroker::start().await;
    let mut older = Hub::serve(&broker.url(), &settings(false), &[]);
    older.ready().await;
    // It waits from the start on.
    let newer = Hub::serve(&broker.url(), &settings(true), &[]);
    only_unready(&newer, "settings of the hub").await;
    // It has worked before.
    newer.cli_ok(&["provision"]).await;
    only_unready(&older, "settings of the hub").await;

    drop((older, newer));
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &settings(false), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.context.delete_stream("KV_hub-subscriptions").await.expect("deleted");
    only_unready(&hub, "registry of the hub").await;
    hub.kill().await;
    hub.start();
    only_unready(&hub, "registry of the hub").await;
}

/// The default domains, and one more for the newer processes.
fn settings(newer: bool) -> TestSettings {
    TestSettings::patient().with(|settings| {
        if newer {
            settings.domains = vec![domain("billing", &["invoice.>"])];
            settings.delivery.max_deliver = Some(4);
        }
    })
}

async fn readiness(hub: &Hub) -> (u16, String) {
    match http_client().get(hub.health_url("/readyz")).send().await {
        Ok(answer) => (answer.status().as_u16(), answer.text().await.unwrap_or_default()),
        Err(error) => (0, error.to_string()),
    }
}

async fn unready(hub: &Hub, text: &str) {
    eventually(STEP, &format!("the hub is not ready: {text}"), async || {
        let (status, body) = readiness(hub).await;
        if status == 503 && body.contains(text) { Ok(()) } else { Err(format!("{status} {body}")) }
    })
    .await;
}

#[tokio::test]
async fn newer_settings_wait_until_they_are_applied_and_nothing_is_rejected() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut older = Hub::serve(&broker.url(), &settings(false), &[]);
    older.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe([
            patient("users", &["user.>"], &receiver.url("/users")),
            patient("invoices", &["invoice.>"], &receiver.url("/invoices")),
        ])
        .await;
    let mut newer = Hub::serve(&broker.url(), &settings(true), &[]);
    unready(&newer, "domains[billing].events: here invoice.>, recorded not set").await;
    let (status, _) = readiness(&older).await;
    assert_eq!(status, 200, "the older process works on");
    let lane = client.consumer("HUB_OUTBOX_USER_LIFECYCLE", "lane-shared").await;
    assert_eq!(lane.config.max_deliver, 3, "a process that waits changes nothing");
    assert_eq!(client.stream("HUB_ADVISORIES").await.config.subjects.len(), SUBJECTS);
    client.publish_all("user.created", &ids("old", 50)).await;
    receiver.wait_accepted("/users", 50, STEP).await;

    let check = newer.cli(&["provision", "--check"]).await;
    assert_eq!(check.status.code(), Some(1), "{}", print_output(&check));
    let table = String::from_utf8_lossy(&check.stdout).into_owned();
    for part in ["SETTING", "HERE", "RECORDED", "REMEDY", "delivery.max_deliver", "domains[billing].events"] {
        assert!(table.contains(part), "{part} in {table}");
    }

    // Events of the new domain, published in the moment of the change, wait for a process that knows it.
    let users = ids("during", 200);
    let (applied, ()) = tokio::join!(newer.cli_ok(&["provision"]), async {
        client.publish_all("user.created", &users).await;
    });
    assert!(applied.contains("domains[billing].events"), "{applied}");
    client.publish_all("invoice.paid", &ids("invoice", 50)).await;
    newer.ready().await;
    unready(&older, "domains[billing].events").await;
    receiver.wait_accepted("/users", 250, STEP).await;
    receiver.wait_accepted("/invoices", 50, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(client.stream("HUB_REJECTED").await.state.messages, 0);
    assert_eq!(client.stream("HUB_ADVISORIES").await.config.subjects.len(), SUBJECTS + 2);
    let lane = client.consumer("HUB_OUTBOX_USER_LIFECYCLE", "lane-shared").await;
    assert_eq!(lane.config.max_deliver, 4);

    // A restarted older process changes nothing back, although nobody else is at work.
    newer.terminate().await;
    older.terminate().await;
    older.start();
    unready(&older, "apply these with `hub provision`").await;
    assert_eq!(client.stream("HUB_ADVISORIES").await.config.subjects.len(), SUBJECTS + 2);
    older.cli_ok(&["provision"]).await;
    older.ready().await;
    client.publish("user.created", "back").await;
    receiver.wait_accepted("/users", 251, STEP).await;
}

#[tokio::test]
async fn a_single_process_starts_with_changed_settings_without_another_step() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut first = Hub::serve(&broker.url(), &settings(false), &[]);
    first.ready().await;
    first.kill().await;
    let mut second = Hub::serve(&broker.url(), &settings(true), &[]);
    second.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("invoices", &["invoice.>"], &receiver.url("/invoices"))]).await;
    client.publish("invoice.paid", "one").await;
    receiver.wait_accepted("/invoices", 1, STEP).await;
}

#[tokio::test]
async fn settings_that_are_no_longer_recorded_are_recorded_again() {
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &settings(false), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let mut config = client.stream("HUB_EVENTS").await.config;
    for damage in [None, Some("something else".to_owned())] {
        config.metadata.remove("hub.settings");
        config.metadata.extend(damage.map(|damage| ("hub.settings".to_owned(), damage)));
        client.context.update_stream(&config).await.expect("updated");
        eventually(STEP, "the settings are recorded", async || {
            let metadata = client.stream("HUB_EVENTS").await.config.metadata;
            let recorded = metadata.get("hub.settings").cloned().unwrap_or_default();
            if recorded.contains("\"delivery.max_deliver\":\"3\"") { Ok(()) } else { Err(recorded) }
        })
        .await;
    }
    assert_eq!(readiness(&hub).await.0, 200);
}

/// Changes a consumer as an operator would.
async fn set_ack_wait(broker: &TestBroker, stream: &str, consumer: &str, ack_wait: Duration) {
    let client = broker.client().await;
    let request = async |subject: String, body: Value| -> Value {
        let answer = client.request(subject, body.to_string().into()).await.expect("answered");
        let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        assert!(answer["error"].is_null(), "{answer}");
        answer
    };
    let info = request(format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}"), json!({})).await;
    let mut config = info["config"].clone();
    config["ack_wait"] = json!(u64::try_from(ack_wait.as_nanos()).expect("small"));
    let filter = config["filter_subject"].as_str().expect("a lane has a filter");
    let subject = format!("$JS.API.CONSUMER.CREATE.{stream}.{consumer}.{filter}");
    request(subject, json!({"stream_name": stream, "config": config, "action": "update"})).await;
}

#[tokio::test]
async fn heartbeats_follow_the_ack_wait_of_the_consumer() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    // By its own setting the process would send the first heartbeat after 25 s.
    let mut hub = Hub::serve(&broker.url(), &settings(false), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("slow", &["user.>"], &receiver.url("/slow"))]).await;
    receiver.set("/slow", Behaviour::slow(Duration::from_secs(20)));
    set_ack_wait(&broker, "HUB_OUTBOX_USER_LIFECYCLE", "lane-shared", Duration::from_secs(6)).await;
    client.publish("user.created", "one").await;
    receiver.wait_accepted("/slow", 1, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(receiver.count("/slow"), 1, "the server gave it to nobody a second time");
}
