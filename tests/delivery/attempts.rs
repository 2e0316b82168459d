//! Deliveries by the broker without an attempt: the process crashed while the envelopes waited in its memory, or during an
//! attempt. No attempt is used up by them, and the numbers of attempts are those of the receiver.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::HeaderMap;

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, subscription,
};

const STEP: Duration = Duration::from_secs(60);
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const LANE: &str = "lane-shared";

fn settings(max_deliver: u32, retry: Duration) -> TestSettings {
    TestSettings::quick().with(|settings| {
        settings.delivery.max_deliver = Some(max_deliver);
        settings.delivery.retry = Some(vec![retry]);
    })
}

/// Waits until the consumer has handed every envelope to a process.
async fn all_in_memory(client: &TestClient, envelopes: usize) {
    eventually(STEP, "every envelope is in the memory of the process", async || {
        let lane = client.consumer(OUTBOX, LANE).await;
        let seen = (lane.num_pending, lane.num_ack_pending);
        if seen == (0, envelopes) { Ok(()) } else { Err(seen) }
    })
    .await;
}

/// The `webhook-attempt` of each request by event, in the order of arrival.
fn attempts(receiver: &Receiver, path: &str) -> BTreeMap<String, Vec<u32>> {
    let mut attempts = BTreeMap::<String, Vec<u32>>::new();
    for request in receiver.received(path) {
        let event = request.json()["id"].as_str().expect("an event has an id").to_owned();
        attempts.entry(event).or_default().push(request.header("webhook-attempt").parse().expect("a number"));
    }
    attempts
}

#[tokio::test]
async fn envelopes_of_processes_that_crash_are_tried_in_the_end() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (_closed, gate) = Behaviour::gate();
    receiver.set("/hooks", gate);
    let mut hub = Hub::serve(&broker.url(), &settings(2, Duration::from_millis(100)), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("hooks", &["policy.>"], &receiver.url("/hooks"))]).await;
    let events = ids("event", 100);
    client.publish_all("policy.updated", &events).await;
    all_in_memory(&client, events.len()).await;

    // Each process gets the envelopes after ack_wait, and sends one at least.
    let mut sent = 0;
    for round in 1..=5 {
        receiver.wait_for("/hooks", sent + 1, STEP).await;
        hub.kill().await;
        // Before the next one starts: no request of it may hang until its timeout, which would complete the attempt.
        sent = receiver.count("/hooks");
        if round == 5 {
            receiver.set("/hooks", Behaviour::ok());
        }
        hub.start();
        hub.ready().await;
    }
    broker.nothing_pending_within(STEP).await;

    assert!(client.dead_letters("policy-client").await.is_empty(), "none was tried in vain");
    assert_eq!(receiver.accepted("/hooks").len(), events.len());
    assert!(hub.log().contains("envelope published again"), "deliveries were used up");
    for request in receiver.received("/hooks") {
        assert_eq!(request.header("webhook-attempt"), "1", "no attempt before it was completed");
    }
}

#[tokio::test]
async fn attempts_of_a_process_that_crashed_are_counted() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/down", Behaviour::status(503));
    let mut hub = Hub::serve(&broker.url(), &settings(3, Duration::from_secs(6)), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("down", &["policy.>"], &receiver.url("/down"))]).await;
    let events = ids("event", 20);
    client.publish_all("policy.updated", &events).await;
    for tried in [1, 2] {
        eventually(STEP, "each attempt is in the delivery log", async || {
            let logged = client.js.attempts_logged().await.expect("the log can be read");
            if logged >= 20 * tried { Ok(()) } else { Err(logged) }
        })
        .await;
        hub.kill().await;
        hub.start();
        hub.ready().await;
    }
    broker.nothing_pending_within(STEP).await;

    let letters = client.dead_letters("policy-client").await;
    assert_eq!(letters.len(), events.len());
    for entry in letters {
        let letter = entry.letter;
        let seen = (letter.reason.as_str(), letter.attempts, letter.last_status);
        assert_eq!(seen, ("exhausted", 3, Some(503)), "{letter:?}");
    }
    let numbers = attempts(&receiver, "/down");
    assert_eq!(numbers.len(), events.len());
    assert!(numbers.values().all(|numbers| *numbers == [1, 2, 3]), "{numbers:?}");
}

/// With a delivery log and without: the attempts of the process itself are known without it.
#[tokio::test]
async fn attempts_are_counted_without_a_delivery_log() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/down", Behaviour::status(503));
    let settings = settings(3, Duration::from_millis(100)).with(|settings| {
        settings.delivery.log = Some("none".to_owned());
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("down", &["policy.>"], &receiver.url("/down"))]).await;
    let events = ids("event", 20);
    client.publish_all("policy.updated", &events).await;
    receiver.wait_for("/down", 60, STEP).await;
    broker.nothing_pending_within(STEP).await;
    let letters = client.dead_letters("policy-client").await;
    assert_eq!(letters.len(), 20);
    assert!(letters.iter().all(|entry| entry.letter.attempts == 3), "{letters:?}");
    assert!(attempts(&receiver, "/down").values().all(|numbers| *numbers == [1, 2, 3]));
}

/// The process ends again and again before an attempt is completed: the last of these deliveries.
#[tokio::test]
async fn an_envelope_that_ends_the_process_each_time_becomes_a_dead_letter() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (_closed, gate) = Behaviour::gate();
    receiver.set("/hooks", gate);
    let settings = settings(1, Duration::from_millis(100));
    let mut first = Hub::serve(&broker.url(), &settings, &["--role", "event-processor"]);
    first.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("hooks", &["policy.>"], &receiver.url("/hooks"))]).await;
    client.publish_all("policy.updated", &ids("event", 1)).await;
    let stream = client.context.get_stream(OUTBOX).await.expect("the stream is there");
    let envelope = eventually(STEP, "the envelope is stored", async || {
        stream.get_raw_message(1).await.map_err(|error| error.to_string())
    })
    .await;
    stream.delete_message(1).await.expect("deleted");
    let mut headers = HeaderMap::new();
    headers.insert("Hub-Untried", "20");
    let sent = client.context.publish_with_headers(envelope.subject, headers, envelope.payload).await;
    sent.expect("sent").await.expect("stored");

    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    receiver.wait_for("/hooks", 1, STEP).await;
    hub.kill().await;
    hub.start();
    hub.ready().await;
    broker.nothing_pending_within(STEP).await;
    let letters = client.dead_letters("policy-client").await;
    let [entry] = &letters[..] else { panic!("one dead letter: {letters:?}") };
    let letter = &entry.letter;
    assert_eq!((letter.reason.as_str(), letter.fault.as_str(), letter.attempts), ("stranded", "hub", 0));
    assert!(letter.last_error.as_ref().is_some_and(|error| error.contains("no attempt was completed")));
    assert_eq!(receiver.count("/hooks"), 1, "it is not tried again");
}
