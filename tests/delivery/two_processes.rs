//! One of two processes ends, or stood still: the other goes on with what it had, at once or after `ack_wait`, and
//! nothing is processed twice.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::strict::publish_in_order;
use super::strict_waiting::{all_arrive_once, deliveries, set_stream, subscribe};
use crate::support::{Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids};

const STEP: Duration = Duration::from_secs(90);
const OUTBOX: &str = "HUB_OUTBOX_USER_LIFECYCLE";

#[tokio::test]
async fn a_process_that_stops_hands_nothing_back_that_it_can_work_on() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hubs = [0, 1].map(|_| Hub::serve(&broker.url(), &TestSettings::patient(), &[]));
    for hub in &mut hubs {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    subscribe(&client, &receiver).await;
    let mut events = ids("before", 1);
    publish_in_order(&client, &events).await;
    all_arrive_once(&receiver, &events).await;
    let [first, second] = &mut hubs;
    for (stops, name) in [(first, "first"), (second, "second")] {
        let mut stopping = std::pin::pin!(stops.terminate());
        // Its requests are open for a while, so that some of these come to it.
        for number in 0.. {
            let event = format!("{name}-{number}");
            publish_in_order(&client, std::slice::from_ref(&event)).await;
            events.push(event);
            tokio::select! {
                status = &mut stopping => {
                    assert!(status.success(), "{status}");
                    break;
                }
                () = receiver.wait_accepted("/free", events.len(), STEP) => {}
            }
        }
        if name == "second" {
            break;
        }
        all_arrive_once(&receiver, &events).await;
        broker.nothing_pending_within(STEP).await;
        assert_eq!(deliveries(&client).await, events.len() as u64, "no event was delivered again");
        let shared = client.js.consumer_info(OUTBOX, "lane-shared").await.expect("there");
        assert_eq!(shared.delivered.consumer_seq, events.len() as u64, "no envelope was delivered again");
    }
    // Nobody was there for the last one, at most.
    let mut third = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    third.ready().await;
    all_arrive_once(&receiver, &events).await;
    broker.nothing_pending_within(STEP).await;
}

/// If only one did, the lane would wait for the other's next listing when that one ends.
#[tokio::test]
async fn a_lane_without_envelopes_is_read_by_all_processes() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hubs = vec![Hub::serve(&broker.url(), &TestSettings::patient(), &[])];
    hubs[0].ready().await;
    let client = TestClient::connect(&broker.url()).await;
    subscribe(&client, &receiver).await;
    let events = ids("event", 1);
    publish_in_order(&client, &events).await;
    all_arrive_once(&receiver, &events).await;
    broker.nothing_pending_within(STEP).await;
    hubs.push(Hub::serve(&broker.url(), &TestSettings::patient(), &[]));
    hubs[1].ready().await;
    eventually(STEP, "both processes wait for envelopes of the lane", async || {
        match client.js.consumer_info(OUTBOX, "lane-strict-0-strict").await.expect("there").num_waiting {
            2 => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

#[tokio::test]
async fn a_process_that_stood_still_leaves_what_it_had_to_others() {
    /// Longer than until the others take over what the process had begun, and shorter than the standstill.
    const WINDOW: Duration = Duration::from_secs(10);
    /// Longer than two thirds of the `ack_wait` of the events.
    const STANDSTILL: Duration = Duration::from_secs(35);
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let settings = TestSettings::quick().with(|settings| {
        settings.delivery.max_timeout = Some(Duration::from_secs(10));
        settings.delivery.ack_wait = Some(Duration::from_secs(12));
        settings.delivery.max_deliver = Some(20);
    });
    let mut hubs = [0, 1].map(|_| Hub::serve(&broker.url(), &settings, &[]));
    for hub in &mut hubs {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    // The process that starts would set it back.
    set_stream(&broker, &client, OUTBOX, &json!({"duplicate_window": WINDOW.as_nanos() as u64})).await;
    subscribe(&client, &receiver).await;
    let mut events = ids("before", 10);
    publish_in_order(&client, &events).await;
    all_arrive_once(&receiver, &events).await;
    // A delivery that is not acknowledged yet would be repeated.
    broker.nothing_pending_within(STEP).await;

    let [still, other] = &mut hubs;
    let since = Instant::now();
    still.freeze();
    let meanwhile = ids("meanwhile", 60);
    publish_in_order(&client, &meanwhile).await;
    events.extend(meanwhile);
    // Some were sent to the process that stood still.
    other.wait_for_log("event that another process has delays events in strict order", STEP).await;
    all_arrive_once(&receiver, &events).await;
    // Nothing shows that the outbox has forgotten the ids, and that nobody has said for long that the events are worked on,
    // but the time.
    tokio::time::sleep_until(since + STANDSTILL).await;
    still.thaw();
    still.wait_for_log("the process stood still, messages read before are left to others", STEP).await;
    let after = ids("after", 10);
    publish_in_order(&client, &after).await;
    events.extend(after);
    all_arrive_once(&receiver, &events).await;
    // It has worked on all that it had when it has ended.
    assert!(still.terminate().await.success());
    broker.nothing_pending_within(STEP).await;
    all_arrive_once(&receiver, &events).await;
    let stored = client.js.stream_info(OUTBOX).await.expect("there").state.last_seq;
    assert_eq!(stored, 2 * events.len() as u64, "each envelope is stored once");
}
