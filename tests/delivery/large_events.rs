//! Events whose envelopes are large in sum, and limits of the outbox that an operator changes while the hub runs: what
//! fits is delivered once, what fits later waits, what can never fit is set aside, and smaller events pass.

use std::time::Duration;

use hub_testkit::broker_process::BrokerOptions;
use serde_json::json;

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, nats_server, patient,
};

const STEP: Duration = Duration::from_secs(90);
const OUTBOX: &str = "HUB_OUTBOX_USER_LIFECYCLE";

/// The subscriptions `<name>-0`, … of `user.<name>`, each with a path of its own.
fn subscriptions(receiver: &Receiver, name: &str, count: usize) -> Vec<serde_json::Value> {
    let one = |number: usize| {
        let id = format!("{name}-{number}");
        patient(&id, &[&format!("user.{name}")], &receiver.url(&format!("/{id}")))
    };
    (0..count).map(one).collect()
}

async fn publish(client: &TestClient, key: &str, id: &str, bytes: usize) {
    let body =
        json!({"specversion": "1.0", "id": id, "source": "/t", "type": key, "data": "x".repeat(bytes)});
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("content-type", "application/cloudevents+json");
    let subject = format!("hub.events.{key}");
    let sent = client.context.publish_with_headers(subject, headers, body.to_string().into()).await;
    sent.expect("sent").await.expect("stored");
}

/// As `nats stream edit` does.
async fn edit_outbox(client: &TestClient, change: impl FnOnce(&mut async_nats::jetstream::stream::Config)) {
    let mut config = client.stream(OUTBOX).await.config;
    change(&mut config);
    client.context.update_stream(config).await.expect("changed");
}

/// Waits until each path has got each event, and asserts that it got each once.
async fn assert_delivered_once(receiver: &Receiver, name: &str, count: usize, events: usize) {
    for number in 0..count {
        let path = format!("/{name}-{number}");
        receiver.wait_accepted(&path, events, STEP).await;
        assert_eq!(receiver.count(&path), events, "{path} gets each event once");
    }
}

#[tokio::test]
async fn an_event_larger_than_the_outbox_is_delivered_in_parts_and_others_pass() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe(subscriptions(&receiver, "big", 21)).await;
    client.subscribe(subscriptions(&receiver, "small", 1)).await;
    // The first subscription takes nothing for now, so its parts stay in the outbox.
    let (open, gate) = Behaviour::gate();
    receiver.set("/big-0", gate);
    edit_outbox(&client, |config| config.max_bytes = 2_000_000).await;
    // 21 envelopes of 300 KB: three times what the outbox holds. 18 MB of them altogether.
    for number in 0..3 {
        publish(&client, "user.big", &format!("big-{number}"), 300_000).await;
    }
    let small = ids("small", 200);
    client.publish_all("user.small", &small).await;
    receiver.wait_accepted("/small-0", 200, STEP).await;
    open.send_replace(true);
    assert_delivered_once(&receiver, "big", 21, 3).await;
    assert_delivered_once(&receiver, "small", 1, 200).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(client.stream("HUB_REJECTED").await.state.last_sequence, 0);
    let stored = client.stream(OUTBOX).await.state.last_sequence;
    let moved = hub.metric("hub_envelopes_spilled_total", &["domain=\"user-lifecycle\""]).await as u64;
    assert_eq!(stored, 3 * 21 + 200 + moved, "every envelope is stored once");
}

#[tokio::test]
async fn an_outbox_that_holds_few_messages_takes_an_event_with_many_subscriptions() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe(subscriptions(&receiver, "many", 30)).await;
    edit_outbox(&client, |config| config.max_messages = 8).await;
    for id in ids("event", 3) {
        publish(&client, "user.many", &id, 10).await;
    }
    assert_delivered_once(&receiver, "many", 30, 3).await;
    broker.nothing_pending_within(STEP).await;
}

#[tokio::test]
async fn what_can_never_fit_is_set_aside_until_the_limit_is_raised() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe(subscriptions(&receiver, "any", 3)).await;
    let rejected = async |count: u64| {
        eventually(STEP, "the event is rejected", async || {
            let rejected = client.stream("HUB_REJECTED").await.state.messages;
            if rejected == count { Ok(()) } else { Err(rejected) }
        })
        .await;
    };
    edit_outbox(&client, |config| config.max_message_size = 20_000).await;
    publish(&client, "user.any", "too-large-message", 30_000).await;
    rejected(1).await;
    publish(&client, "user.any", "fits", 10_000).await;
    assert_delivered_once(&receiver, "any", 3, 1).await;

    edit_outbox(&client, |config| {
        config.max_message_size = -1;
        config.max_bytes = 50_000;
    })
    .await;
    publish(&client, "user.any", "too-large-outbox", 60_000).await;
    rejected(2).await;
    hub.metric_above("hub_events_rejected_total", &["reason=\"too-large\""], 1.5, STEP).await;
    // The limits apply as they are now, not as they were read.
    edit_outbox(&client, |config| config.max_bytes = 5_000_000).await;
    publish(&client, "user.any", "fits-now", 60_000).await;
    assert_delivered_once(&receiver, "any", 3, 2).await;
    broker.nothing_pending_within(STEP).await;
}

#[tokio::test]
async fn a_server_that_takes_small_batches_only_gets_smaller_ones() {
    let options = BrokerOptions { max_batch_size: Some(16), ..BrokerOptions::new(nats_server()) };
    let broker = TestBroker::start_with(options).await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe(subscriptions(&receiver, "many", 40)).await;
    client.subscribe(subscriptions(&receiver, "one", 1)).await;
    for id in ids("event", 3) {
        publish(&client, "user.many", &id, 10).await;
    }
    let events = ids("one", 200);
    client.publish_all("user.one", &events).await;
    assert_delivered_once(&receiver, "many", 40, 3).await;
    assert_delivered_once(&receiver, "one", 1, 200).await;
    broker.nothing_pending_within(STEP).await;
}

/// The budgets for bytes in memory are smaller than some messages: these pass one at a time.
#[tokio::test]
async fn messages_larger_than_the_memory_for_them_are_delivered() {
    let options = BrokerOptions { max_payload: Some(4_000_000), ..BrokerOptions::new(nats_server()) };
    let broker = TestBroker::start_with(options).await;
    let receiver = Receiver::start().await;
    let settings = TestSettings::patient().with(|settings| {
        settings.events.max_size = Some(3_000_000);
        settings.events.held_bytes = Some(1_048_576);
        settings.delivery.held_bytes = Some(1_048_576);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe(subscriptions(&receiver, "big", 3)).await;
    client.subscribe(subscriptions(&receiver, "small", 1)).await;
    let small = ids("small", 300);
    for (number, small) in small.chunks(50).enumerate() {
        client.publish_all("user.small", small).await;
        let bytes = [2_500_000, 200_000, 900_000, 1_100_000, 40_000, 130_000][number];
        publish(&client, "user.big", &format!("big-{number}"), bytes).await;
    }
    assert_delivered_once(&receiver, "small", 1, 300).await;
    assert_delivered_once(&receiver, "big", 3, 6).await;
    broker.nothing_pending_within(STEP).await;
}
