//! A server that is silent, or gone for a while: the hub notices, says so, and continues soon after an answer.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Event;
use hub_testkit::broker_process::{BrokerCluster, BrokerOptions};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::support::{
    FaultProxy, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, freeze, ids, nats_server,
    subscription,
};

const STEP: Duration = Duration::from_secs(90);
/// Of a connection beside that of the hub. It notices after three to four of these that its server is silent; the
/// client's default is a minute.
const SLOW_PINGS: Duration = Duration::from_secs(10);
/// The waits of that connection between its attempts to return: none, these, and then long ones.
const SHORT_WAIT: Duration = Duration::from_secs(4);
const SHORT_WAITS: usize = 2;
const LONG_WAIT: Duration = Duration::from_secs(20);

/// A connection of a client that is slow to notice and to return.
struct SlowConnection {
    _client: async_nats::Client,
    connected: watch::Receiver<bool>,
    /// Attempts to connect since the last loss.
    attempts: watch::Receiver<usize>,
}

impl SlowConnection {
    async fn open(url: &str) -> Self {
        let (is_connected, mut connected) = watch::channel(false);
        let (attempted, attempts) = watch::channel(0);
        let (attempted, waiting) = (Arc::new(attempted), attempts.clone());
        let lost = attempted.clone();
        let options = async_nats::ConnectOptions::new()
            .ping_interval(SLOW_PINGS)
            .reconnect_delay_callback(move |_| {
                attempted.send_modify(|attempts| *attempts += 1);
                match *waiting.borrow() {
                    ..=1 => Duration::ZERO,
                    attempts if attempts <= 1 + SHORT_WAITS => SHORT_WAIT,
                    _ => LONG_WAIT,
                }
            })
            .event_callback(move |event| {
                match event {
                    Event::Connected => {
                        is_connected.send_replace(true);
                    }
                    Event::Disconnected => {
                        is_connected.send_replace(false);
                        lost.send_replace(0);
                    }
                    _ => {}
                }
                std::future::ready(())
            });
        let client = options.connect(url).await.expect("the server answers");
        connected.wait_for(|connected| *connected).await.expect("the client is there");
        Self { _client: client, connected, attempts }
    }

    fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Waits until it has failed several times, and will not try again for [`LONG_WAIT`].
    async fn long_wait_begins(&mut self) {
        let begun = self.attempts.wait_for(|attempts| *attempts > 1 + SHORT_WAITS);
        tokio::time::timeout(STEP, begun).await.expect("in time").expect("the client is there");
    }
}

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

    let slow = SlowConnection::open(&own.url()).await;
    freeze(own).await;
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
        assert!(slow.is_connected(), "a connection with slow pings has noticed before the hub");
    };
    tokio::join!(publishing, resumed);
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

    let mut slow = SlowConnection::open(&broker.url()).await;
    broker.process().kill().await.expect("killed");
    unready(&hub, "connection to the NATS server").await;
    slow.long_wait_begins().await;
    broker.process().restart().await.expect("restarted");
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
    assert!(!slow.is_connected(), "a connection whose waits have grown is back before the hub");
    receiver.wait_accepted("/crm", before.len() + 1, STEP).await;
}
