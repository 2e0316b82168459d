//! Strict order: events arrive in the order of publishing, over retries, crashes, replicas, and dead letters that stop
//! the order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, subscription,
};

const STEP: Duration = Duration::from_secs(90);
const DOMAIN: &str = "user-lifecycle";

/// A subscription to `user.>` with a strict order and further members of `delivery`.
pub(super) fn strict(id: &str, url: &str, more: &Value) -> Value {
    let mut value = subscription(id, &["user.>"], url);
    value["delivery"]["ordering"] = json!("strict");
    for (name, member) in more.as_object().into_iter().flatten() {
        value["delivery"][name] = member.clone();
    }
    value
}

/// The events of the accepted requests in the order of their arrival, with the value of an attribute.
pub(super) fn accepted(receiver: &Receiver, path: &str, attribute: &str) -> Vec<(String, String)> {
    let text = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let mut requests = receiver.received(path);
    requests.retain(|request| request.answered.is_some_and(|status| (200..300).contains(&status)));
    requests.sort_by_key(|request| request.arrived_at);
    requests
        .iter()
        .map(|request| request.json())
        .map(|event| (text(&event, "id"), text(&event, attribute)))
        .collect()
}

/// Asserts that the first arrivals of `events` are in this order. An event may arrive again: a crash can lose an
/// acknowledgement, but only that of the event that was last delivered.
pub(super) fn assert_in_order(arrivals: &[String], events: &[String]) {
    let mut seen = BTreeSet::new();
    let mut last = None;
    let mut first = Vec::new();
    for id in arrivals {
        if seen.insert(id.clone()) {
            first.push(id.clone());
        } else {
            assert_eq!(last, Some(id), "{id} arrives again after a later event");
        }
        last = Some(id);
    }
    let wrong = first.iter().zip(events).position(|(found, wanted)| found != wanted);
    assert_eq!(wrong.map(|at| (&first[at], &events[at])), None, "arrived out of order");
    assert_eq!(first.len(), events.len(), "every event arrives");
}

pub(super) fn ids_of(arrivals: Vec<(String, String)>) -> Vec<String> {
    arrivals.into_iter().map(|(id, _)| id).collect()
}

/// Publishes one after the other, so that their order is known.
pub(super) async fn publish_in_order(client: &TestClient, events: &[String]) {
    for id in events {
        client.publish("user.created", id).await;
    }
}

/// Fails each event's first attempt, and every seventh event's second one as well.
fn flapping() -> Behaviour {
    Behaviour::Choose(Arc::new(|request| {
        let attempt: u32 =
            request.headers["webhook-attempt"].to_str().unwrap_or_default().parse().unwrap_or_default();
        let number: u32 = request.json()["id"]
            .as_str()
            .and_then(|id| id.rsplit('-').next()?.parse().ok())
            .unwrap_or_default();
        let failures = u32::from(number.is_multiple_of(3)) + u32::from(number.is_multiple_of(7));
        Behaviour::status(if attempt <= failures { 503 } else { 200 })
    }))
}

#[tokio::test]
async fn a_failing_attempt_keeps_the_events_behind_it_waiting() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/strict", flapping());
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe([
            strict("strict", &receiver.url("/strict"), &json!({})),
            subscription("free", &["user.>"], &receiver.url("/free")),
        ])
        .await;
    let events = ids("event", 60);
    publish_in_order(&client, &events).await;
    receiver.wait_accepted("/strict", events.len(), STEP).await;
    receiver.wait_accepted("/free", events.len(), STEP).await;
    assert_in_order(&ids_of(accepted(&receiver, "/strict", "subject")), &events);
    assert_eq!(receiver.most_open("/strict"), 1, "one delivery at a time");
    broker.nothing_pending_within(STEP).await;
    assert!(client.dead_letters(DOMAIN).await.is_empty());
}

#[tokio::test]
async fn killed_processes_and_two_replicas_keep_the_order() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/strict", Behaviour::slow(Duration::from_millis(5)));
    let serve = || Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    let mut hubs = [serve(), serve()];
    for hub in &mut hubs {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([strict("strict", &receiver.url("/strict"), &json!({}))]).await;
    let events = ids("event", 1_000);
    let kills = async {
        for (round, accepted) in [200, 600].into_iter().enumerate() {
            receiver.wait_accepted("/strict", accepted, STEP).await;
            let hub = &mut hubs[round % 2];
            hub.kill().await;
            hub.start();
            hub.ready().await;
        }
    };
    tokio::join!(publish_in_order(&client, &events), kills);
    eventually(STEP, "every event arrived", async || {
        let arrived: BTreeSet<String> =
            ids_of(accepted(&receiver, "/strict", "subject")).into_iter().collect();
        if arrived.len() == events.len() { Ok(()) } else { Err(arrived.len()) }
    })
    .await;
    assert_in_order(&ids_of(accepted(&receiver, "/strict", "subject")), &events);
    broker.nothing_pending_within(STEP).await;
}

/// Rejects the attempts of one event while `refused` holds.
fn refusing(event: &'static str, status: u16) -> Behaviour {
    Behaviour::Choose(Arc::new(move |request| {
        Behaviour::status(if request.json()["id"] == event { status } else { 200 })
    }))
}

#[tokio::test]
async fn a_dead_letter_stops_the_order_until_it_is_replayed() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/strict", refusing("event-3", 400));
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([strict("strict", &receiver.url("/strict"), &json!({}))]).await;
    let events = ids("event", 10);
    publish_in_order(&client, &events).await;
    let letter = eventually(STEP, "the event is a dead letter", async || {
        client.dead_letters(DOMAIN).await.pop().ok_or("none")
    })
    .await;
    assert_eq!(letter.letter.event_id, "event-3");
    receiver.wait_accepted("/strict", 3, STEP).await;
    let tried = receiver.received("/strict").len();

    // The next ones wait, also over a restart, and the dead letter is not tried again by itself.
    hub.terminate().await;
    hub.start();
    hub.ready().await;
    let stream = client.stream("HUB_OUTBOX_USER_LIFECYCLE").await;
    assert_eq!(stream.state.messages, 7, "the one that stops the order stays before those behind it");
    assert_eq!(receiver.received("/strict").len(), tried);

    receiver.set("/strict", Behaviour::ok());
    hub.cli_ok(&["dlt", "replay", "--all"]).await;
    receiver.wait_accepted("/strict", events.len(), STEP).await;
    assert_in_order(&ids_of(accepted(&receiver, "/strict", "subject")), &events);
    broker.nothing_pending_within(STEP).await;
    assert!(client.dead_letters(DOMAIN).await.is_empty(), "it is resolved");
}

#[tokio::test]
async fn a_replay_that_fails_again_leaves_one_dead_letter_and_the_order_stopped() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/strict", refusing("event-0", 400));
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([strict("strict", &receiver.url("/strict"), &json!({}))]).await;
    publish_in_order(&client, &ids("event", 3)).await;
    let first = eventually(STEP, "the event is a dead letter", async || {
        client.dead_letters(DOMAIN).await.pop().ok_or("none")
    })
    .await;
    hub.cli_ok(&["dlt", "replay", "--all"]).await;
    eventually(STEP, "another dead letter has replaced it", async || {
        let letters: Vec<u64> =
            client.dead_letters(DOMAIN).await.iter().map(|entry| entry.sequence).collect();
        if letters.len() == 1 && letters[0] > first.sequence { Ok(()) } else { Err(letters) }
    })
    .await;
    assert!(receiver.accepted("/strict").is_empty(), "nothing passes it");

    // Once it is discarded, the next ones arrive.
    hub.cli_ok(&["dlt", "discard", "--all", "--yes"]).await;
    receiver.wait_accepted("/strict", 2, STEP).await;
    assert_in_order(&ids_of(accepted(&receiver, "/strict", "subject")), &ids("event", 3)[1..]);
    broker.nothing_pending_within(STEP).await;
}

#[tokio::test]
async fn an_order_that_skips_goes_on_after_a_dead_letter() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/strict", refusing("event-3", 503));
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([strict("strict", &receiver.url("/strict"), &json!({"on_dead_letter": "skip"}))]).await;
    let events = ids("event", 10);
    publish_in_order(&client, &events).await;
    receiver.wait_accepted("/strict", 9, STEP).await;
    let rest: Vec<String> = events.iter().filter(|id| *id != "event-3").cloned().collect();
    assert_in_order(&ids_of(accepted(&receiver, "/strict", "subject")), &rest);
    let letters = client.dead_letters(DOMAIN).await;
    assert_eq!(letters.len(), 1);
    let letter = &letters[0].letter;
    assert_eq!((letter.event_id.as_str(), letter.reason.as_str()), ("event-3", "exhausted"));
    assert_eq!(letter.next_redrive_at, None, "a scheduled redrive would come out of order");
    broker.nothing_pending_within(STEP).await;
}

#[tokio::test]
async fn keys_have_an_order_each_and_do_not_wait_for_one_another() {
    const USERS: usize = 8;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    // Every event of one user hangs; the users of other lanes go on.
    let (open, gate) = Behaviour::gate();
    let stuck = gate.clone();
    receiver.set(
        "/strict",
        Behaviour::Choose(Arc::new(move |request| {
            if request.json()["subject"] == "user-0" { stuck.clone() } else { Behaviour::ok() }
        })),
    );
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let more = json!({"ordering_key": "subject", "timeout": "60s"});
    client.subscribe([strict("strict", &receiver.url("/strict"), &more)]).await;
    for number in 0..160 {
        client
            .publish_cloud_event(
                "user.created",
                &format!("event-{number}"),
                &format!("user-{}", number % USERS),
            )
            .await;
    }
    // At least half of the other users are in other lanes than the one that hangs.
    receiver.wait_accepted("/strict", 20 * (USERS / 2), STEP).await;
    open.send_replace(true);
    receiver.wait_accepted("/strict", 160, STEP).await;
    let mut by_user: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (id, user) in accepted(&receiver, "/strict", "subject") {
        by_user.entry(user).or_default().push(id);
    }
    assert_eq!(by_user.len(), USERS);
    for (user, arrivals) in by_user {
        let number: usize = user.trim_start_matches("user-").parse().expect("a number");
        let wanted: Vec<String> = (0..20).map(|round| format!("event-{}", round * USERS + number)).collect();
        assert_in_order(&arrivals, &wanted);
    }
    drop(gate);
    broker.nothing_pending_within(STEP).await;
}
