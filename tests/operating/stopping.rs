//! A stop ends within the grace period, whatever the server does.

use std::time::Duration;

use crate::support::{
    Behaviour, FaultProxy, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, subscription,
};

const STEP: Duration = Duration::from_secs(30);

/// What the server does when the hub is stopped.
#[derive(Debug, Clone, Copy)]
enum Server {
    /// It is silent.
    Frozen,
    /// Its connections end, and it accepts no others.
    Gone,
}

/// Stops a hub with deliveries in flight and envelopes that wait, on their last delivery or not.
async fn stop_without_server(server: Server, max_deliver: u32) {
    let broker = TestBroker::start().await;
    let proxy = FaultProxy::start(&broker.url()).await;
    let receiver = Receiver::start().await;
    receiver.set("/hangs", Behaviour::Hang);
    let settings = TestSettings::quick().with(|settings| {
        settings.delivery.max_deliver = Some(max_deliver);
        settings.delivery.retry = Some(vec![Duration::from_secs(1)]);
        settings.delivery.grace = Some(Duration::from_secs(2));
    });
    let mut hub = Hub::serve(&proxy.url("nats"), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("hangs", &["user.>"], &receiver.url("/hangs"))]).await;
    client.publish_all("user.created", &ids("event", 1_000)).await;
    receiver.wait_for("/hangs", 1, STEP).await;
    eventually(STEP, "envelopes wait in the process", async || {
        let pending = client.consumer("HUB_OUTBOX_USER_LIFECYCLE", "lane-shared").await.num_ack_pending;
        if pending > 100 { Ok(()) } else { Err(pending) }
    })
    .await;
    match server {
        Server::Frozen => proxy.freeze(),
        Server::Gone => {
            proxy.set_refusing(true);
            proxy.cut();
        }
    }
    // Its limit is far below the time that one request after the other would take.
    let status = hub.terminate().await;
    assert_eq!(status.code(), Some(0), "{server:?}, max_deliver {max_deliver}: {status}\n{}", hub.log());
}

#[tokio::test]
async fn a_stop_ends_while_the_server_is_silent() {
    for max_deliver in [1, 5] {
        stop_without_server(Server::Frozen, max_deliver).await;
    }
}

#[tokio::test]
async fn a_stop_ends_while_the_server_is_gone() {
    for max_deliver in [1, 5] {
        stop_without_server(Server::Gone, max_deliver).await;
    }
}
