//! Holds: an endpoint asks for a pause with `Retry-After`.

use std::time::Duration;

use crate::support::{Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, ids, subscription};

const STEP: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_changed_subscription_is_tried_before_the_end_of_its_hold() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/held", Behaviour::retry_after(503, 3_600));
    let mut hubs = [0, 1].map(|_| Hub::serve(&broker.url(), &TestSettings::quick(), &[]));
    for hub in &mut hubs {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("held", &["user.>"], &receiver.url("/held"))]).await;
    client.publish("user.created", "first").await;
    for hub in &hubs {
        hub.wait_for_log("endpoint sent Retry-After, subscription held", STEP).await;
    }
    let tried = receiver.count("/held");
    let events = ids("event", 50);
    client.publish_all("user.created", &events).await;

    // A new URL; the old one gets nothing more. The server keeps the envelope that got the answer, as its endpoint asked.
    let file = hubs[0].folder().join("held.json");
    let changed = subscription("held", &["user.>"], &receiver.url("/other")).to_string();
    std::fs::write(&file, changed).expect("the file is written");
    hubs[0].cli_ok(&["subscription", "apply", "-f", &file.to_string_lossy()]).await;
    receiver.wait_accepted("/other", events.len(), STEP).await;
    assert_eq!(receiver.count("/held"), tried);
}
