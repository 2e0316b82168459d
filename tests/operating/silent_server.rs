//! A server that is silent, or gone for a while: the hub notices, says so, and continues soon after an answer.

use std::time::Duration;

use hub_testkit::broker_process::{BrokerCluster, BrokerOptions};
use tokio::time::{Instant, sleep};

use crate::support::{
    FaultProxy, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, freeze, ids, nats_server,
    subscription,
};

const STEP: Duration = Duration::from_secs(90);
/// The target is 20 s. The rest is for a busy machine; without pings it was 180 s.
const AFTER_A_FROZEN_NODE: Duration = Duration::from_secs(30);
/// The target is 2 s. The rest is for a busy machine; waits that grow in an outage are longer.
const AFTER_A_RESTART: Duration = Duration::from_secs(4);

async fn unready(hub: &Hub, part: &str) {
    eventually(STEP, &format!("/readyz names {part:?}"), async || match hub.readiness().await {
        (false, text) if text.contains(part) => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test]
async fn with_its_own_node_frozen_the_hub_continues_on_another_one() {
    let options = BrokerOptions { server_name: Some("node".to_owned()), ..BrokerOptions::new(nats_server()) };
    let cluster = BrokerCluster::start(3, &options).await.unwrap_or_else(|error| panic!("{error}"));
    let receiver = Receiver::start().await;
    let settings = TestSettings::quick().with(|settings| settings.nats.replicas = Some(3));
    let [own, others @ ..] = cluster.servers() else { panic!("three nodes") };
    let others: Vec<String> = others.iter().map(|server| server.url()).collect();
    // The other nodes are not in its settings: the server names them.
    let mut hub = Hub::serve(&own.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&others.join(",")).await;
    client.subscribe([subscription("crm", &["user.>"], &receiver.url("/crm"))]).await;
    let before = ids("before", 50);
    client.publish_all("user.created", &before).await;
    receiver.wait_accepted("/crm", before.len(), STEP).await;

    freeze(own).await;
    let frozen = Instant::now();
    // The server of the frozen node may have requested the first of these; they come again after ack_wait.
    let after = ids("after", 200);
    let publishing = async {
        for id in &after {
            client.publish("user.created", id).await;
            sleep(Duration::from_millis(100)).await;
        }
    };
    let resumed = async {
        unready(&hub, "connection to the NATS server").await;
        receiver.wait_accepted("/crm", before.len() + 1, STEP).await;
        frozen.elapsed()
    };
    let ((), resumed) = tokio::join!(publishing, resumed);
    println!("deliveries continued {resumed:?} after the node froze");
    assert!(resumed < AFTER_A_FROZEN_NODE, "{resumed:?}");
    hub.ready().await;
    receiver.wait_accepted("/crm", before.len() + after.len(), STEP).await;
}

#[tokio::test]
async fn readyz_follows_a_silent_server() {
    let broker = TestBroker::start().await;
    let proxy = FaultProxy::start(&broker.url()).await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&proxy.url("nats"), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("crm", &["user.>"], &receiver.url("/crm"))]).await;
    client.publish("user.created", "first").await;
    receiver.wait_accepted("/crm", 1, STEP).await;
    // An idle hub remains ready: the answers to its pull requests are enough.
    let idle = Instant::now();
    while idle.elapsed() < Duration::from_secs(15) {
        let (is_ready, text) = hub.readiness().await;
        assert!(is_ready, "{text}");
        sleep(Duration::from_millis(500)).await;
    }

    // The connections remain open and swallow every byte.
    proxy.freeze();
    for part in ["connection to the NATS server", "event-processor", "outbox-processor", "dlt-router"] {
        unready(&hub, part).await;
    }
    hub.wait_for_log("lost the connection to the NATS server", STEP).await;
    client.publish("user.created", "second").await;
    proxy.thaw();
    hub.ready().await;
    client.publish("user.created", "third").await;
    receiver.wait_accepted("/crm", 3, STEP).await;
}

#[tokio::test]
async fn deliveries_continue_soon_after_the_broker_is_back() {
    let mut broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("crm", &["user.>"], &receiver.url("/crm"))]).await;
    let before = ids("before", 200);
    client.publish_all("user.created", &before).await;
    receiver.wait_for("/crm", 1, STEP).await;

    broker.process().kill().await.expect("killed");
    unready(&hub, "connection to the NATS server").await;
    // Long enough for waits between attempts to have grown.
    sleep(Duration::from_secs(8)).await;
    broker.process().restart().await.expect("restarted");
    let back = Instant::now();
    let client = TestClient::connect(&broker.url()).await;
    client.publish("user.created", "after").await;
    eventually(STEP, "the event after the restart is delivered", async || {
        let received = receiver.received("/crm");
        if received.iter().any(|request| request.json()["id"] == "after") {
            Ok(())
        } else {
            Err(received.len())
        }
    })
    .await;
    let waited = back.elapsed();
    println!("the first delivery was {waited:?} after the return of the broker");
    assert!(waited < AFTER_A_RESTART, "{waited:?}");
    receiver.wait_accepted("/crm", before.len() + 1, STEP).await;
}
