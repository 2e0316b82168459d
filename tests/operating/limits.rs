//! `rate_limit` and `max_in_flight` hold for a subscription, over all domains and processes.

use std::time::{Duration, Instant};

use hub_testkit::broker_process::BrokerOptions;
use serde_json::{Value, json};

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, ids, nats_server, subscription,
};

const STEP: Duration = Duration::from_secs(90);
/// An event key of each domain.
const KEYS: [&str; 4] = ["user.created", "session.started", "policy.updated", "organization.created"];
const DIVIDED: &str = "limits of subscriptions divided among processes";

/// Few envelopes in memory, so that a process that joins finds some, and a killed one does not take many with it.
fn settings() -> TestSettings {
    TestSettings::quick().with(|settings| {
        settings.delivery.held = Some(64);
        settings.delivery.queue_per_subscription = Some(64);
        settings.delivery.max_timeout = Some(Duration::from_secs(20));
        settings.delivery.ack_wait = Some(Duration::from_secs(25));
    })
}

/// A subscription to the events of all domains, with these fields in its delivery.
fn limited(id: &str, receiver: &Receiver, limits: Value) -> Value {
    let mut delivery = json!({ "url": receiver.url(&format!("/{id}")), "timeout": "20s" });
    let fields = delivery.as_object_mut().expect("an object");
    fields.extend(limits.as_object().expect("an object").clone());
    json!({ "id": id, "events": ["user.>", "session.>", "policy.>", "organization.>"], "delivery": delivery })
}

/// Publishes events of each domain.
async fn feed(client: &TestClient, name: &str, each: usize) {
    for key in KEYS {
        client.publish_all(key, &ids(&format!("{name}-{key}"), each)).await;
    }
}

/// Requests per second of the next `count` requests, and the most in progress at the same time. The first `settling`
/// requests do not count.
async fn measure(receiver: &Receiver, path: &str, settling: usize, count: usize) -> (f64, usize) {
    let before = receiver.count(path) + settling;
    receiver.wait_for(path, before, STEP).await;
    receiver.forget_most_open(path);
    let arrived: Vec<Instant> =
        receiver.wait_for(path, before + count, STEP).await.iter().map(|request| request.arrived).collect();
    let time = arrived[before + count - 1] - arrived[before - 1];
    (count as f64 / time.as_secs_f64(), receiver.most_open(path))
}

/// Asserts that the limits of 10/s and 4 hold and are used.
async fn assert_limits(receiver: &Receiver, what: &str) {
    let (rate, most) = measure(receiver, "/limited", 20, 80).await;
    println!("{what}: {rate:.2}/s, {most} at once");
    assert!(most <= 4, "{what}: {most} requests at once, the limit is 4");
    assert!(rate <= 10.0 * 1.15, "{what}: {rate:.2}/s, the limit is 10/s");
    assert!(rate >= 10.0 * 0.7, "{what}: {rate:.2}/s, the limit is 10/s");
}

async fn delivered(hub: &Hub) -> f64 {
    hub.metric("hub_deliveries_total", &["outcome=\"delivered\""]).await
}

#[tokio::test]
async fn the_limits_of_a_subscription_hold_over_domains_and_processes() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/limited", Behaviour::slow(Duration::from_millis(250)));
    let mut first = Hub::serve(&broker.url(), &settings(), &[]);
    first.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let limits = json!({ "max_in_flight": 4, "rate_limit": { "per_second": 10, "burst": 1 } });
    client.subscribe([limited("limited", &receiver, limits)]).await;

    feed(&client, "one", 100).await;
    assert_limits(&receiver, "one process").await;

    let mut second = Hub::serve(&broker.url(), &settings(), &[]);
    second.ready().await;
    first.wait_for_log(DIVIDED, STEP).await;
    feed(&client, "two", 100).await;
    let before = [delivered(&first).await, delivered(&second).await];
    assert_limits(&receiver, "two processes").await;
    assert!(delivered(&first).await > before[0] && delivered(&second).await > before[1], "both deliver");

    first.kill().await;
    feed(&client, "killed", 100).await;
    assert_limits(&receiver, "one is killed").await;
    // The other one uses the whole limits as soon as it misses the killed one.
    second.wait_for_log("processes=1", STEP).await;
    assert_limits(&receiver, "one is left").await;

    feed(&client, "joined", 100).await;
    let mut third = Hub::serve(&broker.url(), &settings(), &[]);
    third.ready().await;
    assert_limits(&receiver, "another one joins").await;
    assert!(second.terminate().await.success());
    third.wait_for_log("processes=1", STEP).await;
    feed(&client, "stopped", 60).await;
    assert_limits(&receiver, "one is stopped").await;
}

#[tokio::test]
async fn limits_below_the_number_of_processes_hold_and_nobody_starves() {
    let service = Duration::from_millis(100);
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/single", Behaviour::slow(service));
    let mut hubs = [Hub::serve(&broker.url(), &settings(), &[]), Hub::serve(&broker.url(), &settings(), &[])];
    for hub in &mut hubs {
        hub.ready().await;
    }
    for hub in &hubs {
        hub.wait_for_log(DIVIDED, STEP).await;
    }
    let client = TestClient::connect(&broker.url()).await;
    let second = json!({ "rate_limit": { "per_second": 1, "burst": 1 } });
    client.subscribe([limited("single", &receiver, json!({ "max_in_flight": 1 }))]).await;
    client.subscribe([limited("second", &receiver, second)]).await;
    feed(&client, "event", 100).await;
    let before = [delivered(&hubs[0]).await, delivered(&hubs[1]).await];
    let ((single, most), (second, _)) =
        tokio::join!(measure(&receiver, "/single", 20, 150), measure(&receiver, "/second", 3, 20));
    println!("single: {single:.2}/s, {most} at once; second: {second:.2}/s");
    assert_eq!(most, 1, "requests at once");
    assert!(single >= 5.0, "{single:.2}/s of at most 10/s");
    assert!((0.7..=1.15).contains(&second), "{second:.2}/s, the limit is 1/s");
    for (hub, before) in hubs.iter().zip(before) {
        assert!(delivered(hub).await > before + 5.0, "both deliver");
    }
}

/// A broker with the permissions of an earlier version.
#[tokio::test]
async fn a_process_without_permission_for_notices_applies_the_limits_on_its_own() {
    let permissions = r#"{ publish: { deny: "hub.members.*" }, subscribe: { deny: "hub.members.*" } }"#;
    let user = format!("{{ user: hub, password: secret, permissions: {permissions} }}");
    let extra_config = format!("authorization {{ users: [{user}] }}\nno_auth_user: hub\n");
    let broker =
        TestBroker::start_with(BrokerOptions { extra_config, ..BrokerOptions::new(nats_server()) }).await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &settings(), &[]);
    hub.ready().await;
    hub.wait_for_log("own notices not received", STEP).await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("crm", &["user.>"], &receiver.url("/crm"))]).await;
    client.publish_all("user.created", &ids("event", 20)).await;
    receiver.wait_accepted("/crm", 20, STEP).await;
}
