//! Events with an envelope for a strict order wait in their process for earlier ones that another process has. They do not
//! return to the stream meanwhile: each that did would delay the later ones, which would return as well, without end.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::strict::{accepted, assert_in_order, ids_of, publish_in_order, strict};
use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, subscription,
};

const STEP: Duration = Duration::from_secs(90);
const EVENTS: &str = "HUB_EVENTS";
const PROCESSOR: &str = "event-processor";

/// The number of deliveries of events to processes.
pub(super) async fn deliveries(client: &TestClient) -> u64 {
    client.js.consumer_info(EVENTS, PROCESSOR).await.expect("there").delivered.consumer_seq
}

pub(super) async fn subscribe(client: &TestClient, receiver: &Receiver) {
    client
        .subscribe([
            strict("strict", &receiver.url("/strict"), &json!({})),
            subscription("free", &["user.>"], &receiver.url("/free")),
        ])
        .await;
}

pub(super) async fn all_arrive_once(receiver: &Receiver, events: &[String]) {
    for path in ["/strict", "/free"] {
        receiver.wait_accepted(path, events.len(), STEP).await;
        assert_eq!(receiver.count(path), events.len(), "{path}");
    }
    assert_in_order(&ids_of(accepted(receiver, "/strict", "subject")), events);
}

/// Sets the `ack_wait` of the event processor, as an operator may.
async fn set_ack_wait(broker: &TestBroker, client: &TestClient, ack_wait: Duration) {
    let mut config = client.js.consumer_info(EVENTS, PROCESSOR).await.expect("there").config;
    config.insert("ack_wait".to_owned(), json!(ack_wait.as_nanos()));
    let subject = format!("$JS.API.CONSUMER.CREATE.{EVENTS}.{PROCESSOR}");
    let body = json!({"stream_name": EVENTS, "config": config, "action": "update"}).to_string();
    let answer = broker.client().await.request(subject, body.into()).await.expect("answered");
    let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert!(answer["error"].is_null(), "{answer}");
}

/// A process that has taken one event, and does nothing with it.
async fn process_that_is_stuck_with_one_event(
    broker: &TestBroker,
) -> (async_nats::Client, async_nats::Subject) {
    let other = broker.client().await;
    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.{PROCESSOR}");
    let inbox = other.new_inbox();
    let mut received = other.subscribe(inbox.clone()).await.expect("subscribed");
    other.publish_with_reply(next, inbox, "".into()).await.expect("sent");
    let first = tokio::time::timeout(STEP, received.next()).await.expect("in time").expect("a message");
    (other, first.reply.expect("a message of a consumer"))
}

#[tokio::test]
async fn an_event_that_another_process_has_delays_strict_orders_for_seconds_and_nothing_else() {
    /// The server would deliver the event again only then.
    const ACK_WAIT: Duration = Duration::from_secs(600);
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::not_started(&broker.url(), &TestSettings::quick());
    hub.cli_ok(&["provision"]).await;
    let client = TestClient::connect(&broker.url()).await;
    subscribe(&client, &receiver).await;
    set_ack_wait(&broker, &client, ACK_WAIT).await;
    let events = ids("event", 40);
    publish_in_order(&client, &events[..1]).await;
    let (other, answers) = process_that_is_stuck_with_one_event(&broker).await;
    hub.start();
    hub.ready().await;
    publish_in_order(&client, &events[1..]).await;
    receiver.wait_accepted("/free", 39, STEP).await;
    assert_eq!(receiver.count("/strict"), 0, "the first event is not processed yet");
    all_arrive_once(&receiver, &events).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(deliveries(&client).await, 40, "no event was delivered again");
    // The other process goes on, too late: nothing comes of it.
    other.publish(answers, "-NAK".into()).await.expect("sent");
    other.flush().await.expect("sent");
    let last = ids("last", 1);
    publish_in_order(&client, &last).await;
    let all: Vec<String> = events.into_iter().chain(last).collect();
    all_arrive_once(&receiver, &all).await;
}

/// As many as a process that was killed under load may have had.
#[tokio::test]
async fn many_events_of_a_process_that_was_killed_are_taken_over() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::not_started(&broker.url(), &TestSettings::quick());
    hub.cli_ok(&["provision"]).await;
    let client = TestClient::connect(&broker.url()).await;
    subscribe(&client, &receiver).await;
    set_ack_wait(&broker, &client, Duration::from_secs(600)).await;
    let events = ids("event", 400);
    let mut others = Vec::new();
    // Every second event is with the other process.
    for pair in events[..300].chunks(2) {
        publish_in_order(&client, &pair[..1]).await;
        others.push(process_that_is_stuck_with_one_event(&broker).await);
        publish_in_order(&client, &pair[1..]).await;
        // The hub gets the other one later.
        others.push(process_that_is_stuck_with_one_event(&broker).await);
        let (other, answers) = others.pop().expect("just added");
        other.publish(answers, "-NAK".into()).await.expect("sent");
        other.flush().await.expect("sent");
    }
    hub.start();
    hub.ready().await;
    publish_in_order(&client, &events[300..]).await;
    all_arrive_once(&receiver, &events).await;
    broker.nothing_pending_within(STEP).await;
}

#[tokio::test]
async fn two_processes_hand_no_event_back_for_the_order() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hubs = [0, 1].map(|_| Hub::serve(&broker.url(), &TestSettings::quick(), &[]));
    for hub in &mut hubs {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    subscribe(&client, &receiver).await;
    let events = ids("event", 1_000);
    publish_in_order(&client, &events).await;
    all_arrive_once(&receiver, &events).await;
    broker.nothing_pending_within(STEP).await;
    let planned = async || {
        let mut planned = 0.0;
        for hub in &hubs {
            planned += hub.metric("hub_events_total", &[r#"domain="user-lifecycle""#]).await;
        }
        planned
    };
    eventually(STEP, "each event was counted once", async || match planned().await {
        1_000.0 => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(deliveries(&client).await, 1_000);
}

/// Changes settings of a stream, as an operator may.
pub(super) async fn set_stream(broker: &TestBroker, client: &TestClient, stream: &str, changes: &Value) {
    let mut config = client.js.stream_info(stream).await.expect("there").config;
    config.extend(changes.as_object().expect("fields").clone());
    let body = serde_json::to_vec(&config).expect("JSON");
    let subject = format!("$JS.API.STREAM.UPDATE.{stream}");
    let answer = broker.client().await.request(subject, body.into()).await.expect("answered");
    let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert!(answer["error"].is_null(), "{answer}");
}

#[tokio::test]
async fn what_is_committed_early_is_not_stored_again_while_the_outbox_refuses_the_rest() {
    const WINDOW: Duration = Duration::from_secs(1);
    const OUTBOX: &str = "HUB_OUTBOX_USER_LIFECYCLE";
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe([
            strict("strict", &receiver.url("/strict"), &json!({"timeout": "60s"})),
            subscription("free", &["user.>"], &receiver.url("/free")),
        ])
        .await;
    set_stream(&broker, &client, OUTBOX, &json!({"duplicate_window": WINDOW.as_nanos() as u64})).await;
    let stored = async || client.js.stream_info(OUTBOX).await.expect("there").state.last_seq;
    let before = stored().await;
    let (open, gate) = Behaviour::gate();
    receiver.set("/strict", gate);
    let events = ids("event", 2);
    publish_in_order(&client, &events[..1]).await;
    receiver.wait_accepted("/free", 1, STEP).await;
    let only_strict = async || match broker.messages(OUTBOX).await {
        1 => Ok(()),
        other => Err(other),
    };
    eventually(STEP, "only the strict envelope is left", only_strict).await;
    // The strict lane has no room for a second one.
    let one = json!({"max_msgs_per_subject": 1, "discard_new_per_subject": true});
    set_stream(&broker, &client, OUTBOX, &one).await;
    publish_in_order(&client, &events[1..]).await;
    receiver.wait_accepted("/free", 2, STEP).await;
    // Nothing shows that the outbox has forgotten the ids but the time.
    tokio::time::sleep(3 * WINDOW).await;
    assert_eq!(broker.messages(OUTBOX).await, 1, "the strict envelope of the second event is refused");
    open.send(true).expect("the receiver runs");
    all_arrive_once(&receiver, &events).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(stored().await - before, 4, "each envelope is stored once");
}
