//! The server has no room for the consumer of an own lane. Envelopes that were moved there come back, and nothing is lost.

use std::time::Duration;

use hub_testkit::broker_process::BrokerOptions;

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, ids, nats_server, patient, subscription,
};

const STEP: Duration = Duration::from_secs(90);
const OUTBOX: &str = "HUB_OUTBOX_USER_LIFECYCLE";
const STUCK: [&str; 3] = ["/stuck-0", "/stuck-1", "/stuck-2"];

#[tokio::test]
async fn envelopes_in_an_own_lane_that_is_refused_come_back() {
    let mut options = BrokerOptions::new(nats_server());
    // The shared lane is one of them, so that one own lane exists.
    options.extra_config =
        "accounts { HUB: { jetstream: { max_consumers: 2 }, users: [{ user: hub, password: hub }] } }\n\
         no_auth_user: hub"
            .to_owned();
    let broker = TestBroker::start_with(options).await;
    let receiver = Receiver::start().await;
    let settings = TestSettings::patient().with(|settings| {
        settings.delivery.held = Some(128);
        settings.delivery.queue_per_subscription = Some(16);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let mut gates = Vec::new();
    for path in STUCK {
        let (open, gate) = Behaviour::gate();
        receiver.set(path, gate);
        gates.push(open);
    }
    let stuck = STUCK.map(|path| patient(&path[1..], &["user.>"], &receiver.url(path)));
    client
        .subscribe(stuck.into_iter().chain([subscription("well", &["user.>"], &receiver.url("/well"))]))
        .await;

    let mut events = ids("event", 200);
    client.publish_all("user.created", &events).await;
    hub.wait_for_log("own lane of a subscription not created", STEP).await;
    receiver.wait_accepted("/well", events.len(), STEP).await;
    hub.wait_for_log("emptied a lane that nobody reads", STEP).await;
    let more = ids("later", 100);
    client.publish_all("user.created", &more).await;
    events.extend(more);
    receiver.wait_accepted("/well", events.len(), STEP).await;
    let own = client.js.consumer_names(OUTBOX).await.expect("listed");
    assert_eq!(own.len(), 2, "{own:?}");

    for gate in gates {
        gate.send(true).expect("the receiver runs");
    }
    for path in STUCK.into_iter().chain(["/well"]) {
        receiver.wait_accepted(path, events.len(), STEP).await;
    }
    broker.nothing_pending_within(STEP).await;
    assert_eq!(client.dead_letters("user-lifecycle").await.len(), 0);
}
