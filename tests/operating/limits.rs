//! `rate_limit` and `max_in_flight` hold for a subscription, over all domains and processes.

use std::time::Duration;

use hub_testkit::broker_process::BrokerOptions;
use serde_json::{Value, json};

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, http_client, ids, nats_server,
    subscription, ticks_during,
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

/// What happens while a subscription gets requests.
#[derive(Debug)]
struct Meanwhile {
    /// The ends of the period of its limit.
    periods: usize,
    /// The requests of a client that asks the same receiver at a known pace, one after the other.
    paced: usize,
    most_at_once: usize,
}

/// Waits for the next `count` requests after the first `settling` ones. `period` is the shortest one between two requests
/// by the limit; the pace of the client beside it is a request in each `pace`.
async fn next_requests(
    receiver: &Receiver,
    path: &str,
    (settling, count): (usize, usize),
    period: Duration,
    pace: Duration,
) -> Meanwhile {
    receiver.wait_for(path, receiver.count(path) + settling, STEP).await;
    receiver.forget_most_open(path);
    let beside = format!("{path}-beside");
    let paced_before = receiver.count(&beside);
    let (client, url) = (http_client(), receiver.url(&beside));
    let asking = async {
        loop {
            tokio::time::sleep(pace).await;
            client.post(&url).send().await.expect("the receiver answers");
        }
    };
    // Counted when the periods begin.
    let before = receiver.count(path);
    let arrived = async {
        tokio::select! {
            () = asking => unreachable!("it does not end"),
            arrived = receiver.wait_for(path, before + count, STEP) => drop(arrived),
        }
    };
    let ((), periods) = ticks_during(period, arrived).await;
    let paced = receiver.count(&beside) - paced_before;
    Meanwhile { periods, paced, most_at_once: receiver.most_open(path) }
}

/// Asserts that the limits of 10/s and 4 hold and are used.
async fn assert_limits(receiver: &Receiver, what: &str) {
    const COUNT: usize = 80;
    // 15 percent for the division among processes and the burst, and 30 percent that may be unused.
    let (period, pace) = (Duration::from_millis(100), Duration::from_millis(143));
    let meanwhile = next_requests(receiver, "/limited", (20, COUNT), period, pace).await;
    println!("{what}: {COUNT} requests, meanwhile {meanwhile:?}");
    assert!(meanwhile.most_at_once <= 4, "{what}: {meanwhile:?}, the limit is 4");
    assert!(COUNT * 100 <= (meanwhile.periods + 1) * 115, "{what}: {meanwhile:?}, more than 10 in a second");
    assert!(meanwhile.paced <= COUNT, "{what}: {meanwhile:?}, a client that sends 7 in a second was ahead");
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
    // Each is faster than a client that sends half as many as it could, and 0.7 of its limit.
    let (of_single, of_second) = (2 * service, Duration::from_secs(1));
    let (single, second) = tokio::join!(
        next_requests(&receiver, "/single", (20, 150), service, of_single),
        next_requests(&receiver, "/second", (3, 20), of_second, of_second.mul_f64(1.43)),
    );
    println!("single: {single:?}; second: {second:?}");
    assert_eq!(single.most_at_once, 1, "requests at once");
    assert!(single.paced <= 150, "{single:?}, a client that sends 5 in a second was ahead");
    assert!(second.paced <= 20, "{second:?}, a client that sends 0.7 in a second was ahead");
    assert!(20 * 100 <= (second.periods + 1) * 115, "{second:?}, more than one in a second");
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
