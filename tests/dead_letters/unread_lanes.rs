//! Lanes that nobody reads: of subscriptions that somebody made up, or that were removed. They get no consumer, and what
//! is in them is delivered or dead-lettered.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, subscription};

const STEP: Duration = Duration::from_secs(60);
const OUTBOX: &str = "HUB_OUTBOX_ORGANIZATION";
const BUCKET: &str = "KV_hub-subscriptions";
/// Also more than one pass looks up.
const MADE_UP: usize = 300;

/// A hub with the subscription `crm`, and the body of one of its envelopes.
async fn hub_with_envelope(broker: &TestBroker, receiver: &Receiver) -> (Hub, TestClient, Value) {
    let settings = TestSettings::quick().with(|settings| settings.log.repeat_interval = Some(Duration::ZERO));
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("crm", &["member.>"], &receiver.url("/crm"))]).await;
    hub.cli_ok(&["domain", "pause", "organization", "--for", "1h"]).await;
    client.publish("member.invited", "first").await;
    let filter = "hub.outbox.organization.*.*";
    let body = eventually(STEP, "the envelope is in the outbox", async || {
        match client.js.get_next(OUTBOX, 1, filter).await.expect("read") {
            Some(message) => Ok(message.payload),
            None => Err("not there"),
        }
    })
    .await;
    hub.cli_ok(&["domain", "resume", "organization"]).await;
    receiver.wait_accepted("/crm", 1, STEP).await;
    broker.nothing_pending_within(STEP).await;
    (hub, client, serde_json::from_slice(&body).expect("JSON"))
}

/// Another envelope, of this subscription.
fn envelope(like: &Value, id: &str, subscription: &str) -> Value {
    let mut envelope = like.clone();
    envelope["id"] = json!(id);
    if envelope["subscription"] != subscription {
        envelope["subscription"] = json!(subscription);
        envelope["incarnation"] = json!("0123456789abcdef0123456789abcdef");
    }
    envelope
}

async fn put(client: &TestClient, lane: &str, subscription: &str, body: &Value) {
    let subject = format!("hub.outbox.organization.{lane}.{subscription}");
    let sent = client.context.publish(subject, body.to_string().into()).await.expect("sent");
    sent.await.expect("stored");
}

async fn consumers(client: &TestClient) -> Vec<String> {
    let mut names = client.js.consumer_names(OUTBOX).await.expect("listed");
    names.sort();
    names
}

#[tokio::test]
async fn a_made_up_lane_gets_no_consumer_and_nothing_in_it_is_lost() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (hub, client, like) = hub_with_envelope(&broker, &receiver).await;
    let nobody = |id: &str| envelope(&like, id, "nobody");
    let mut lanes: Vec<String> = (0..MADE_UP).map(|number| format!("own-nobody-{number}")).collect();
    let strict = ["strict-0-nobody", "strict-15-nobody", "strict-16-nobody", "own-acme=nobody", "own-", "x"];
    lanes.extend(strict.map(str::to_owned));
    for (number, lane) in lanes.iter().enumerate() {
        put(&client, lane, "nobody", &nobody(&format!("of-nobody-{number}"))).await;
        if number.is_multiple_of(50) {
            put(&client, lane, "nobody", &json!("junk")).await;
        }
    }
    // The body names the owner. This one is known, and so is the lane of its own, which no consumer reads yet.
    for (number, lane) in ["own-nobody", "strict-0-nobody", "x", "own-crm"].into_iter().enumerate() {
        put(&client, lane, "crm", &envelope(&like, &format!("of-crm-{number}"), "crm")).await;
    }
    receiver.wait_accepted("/crm", 1 + 4, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(consumers(&client).await, ["lane-own-crm", "lane-shared"]);
    let letters = client.dead_letters("organization").await;
    let count = |reason: &str| letters.iter().filter(|entry| entry.letter.reason.as_str() == reason).count();
    let junk = lanes.len().div_ceil(50);
    assert_eq!(
        (count("removed"), count("undecodable"), letters.len()),
        (lanes.len(), junk, lanes.len() + junk)
    );
    assert_eq!(receiver.count("/crm"), 1 + 4);
    let log = hub.log();
    assert_eq!(log.matches("lane has envelopes but no consumer").count(), 1, "{log}");
    assert!(log.contains("emptied a lane that nobody reads"), "{log}");
}

#[tokio::test]
async fn the_backlog_of_a_removed_subscription_becomes_dead_letters_without_its_lane() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (mut hub, client, like) = hub_with_envelope(&broker, &receiver).await;
    hub.terminate().await;
    for number in 0..20 {
        let lane = ["own-crm", "strict-2-crm"][number % 2];
        put(&client, lane, "crm", &envelope(&like, &format!("waits-{number}"), "crm")).await;
    }
    hub.cli_ok(&["subscription", "remove", "crm", "--yes"]).await;
    hub.start();
    hub.ready().await;
    broker.nothing_pending_within(STEP).await;
    let letters = client.dead_letters("organization").await;
    assert_eq!(letters.len(), 20);
    assert!(letters.iter().all(|entry| entry.letter.reason.as_str() == "removed"), "{letters:?}");
    assert_eq!(consumers(&client).await, ["lane-shared"]);
    assert_eq!(receiver.count("/crm"), 1);
}

#[tokio::test]
async fn while_the_registry_is_lost_the_envelopes_of_such_lanes_wait() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (mut hub, client, like) = hub_with_envelope(&broker, &receiver).await;
    client.context.delete_stream(BUCKET).await.expect("deleted");
    put(&client, "own-crm", "crm", &envelope(&like, "of-crm", "crm")).await;
    put(&client, "own-nobody", "nobody", &envelope(&like, "of-nobody", "nobody")).await;
    eventually(STEP, "the sweep has looked at both", async || {
        let looks = hub.log().matches("consumer of a lane not created").count();
        if looks == 2 { Ok(()) } else { Err(looks) }
    })
    .await;
    assert_eq!(client.stream(OUTBOX).await.state.messages, 2);
    assert!(client.dead_letters("organization").await.is_empty());
    assert_eq!(consumers(&client).await, ["lane-shared"]);

    // An operator decides that nobody is subscribed.
    hub.cli_ok(&["provision", "--create-registry"]).await;
    hub.ready().await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(client.dead_letters("organization").await.len(), 2);
    assert_eq!(consumers(&client).await, ["lane-shared"]);
}
