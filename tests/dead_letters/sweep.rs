//! Exhausted envelopes whose advisory never reaches the router: the sweep moves each to the DLT, once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{
    Account, Behaviour, Hub, RawPublisher, Receiver, TestBroker, TestClient, TestSettings, eventually, ids,
    subscription,
};

const STEP: Duration = Duration::from_secs(30);
const OUTBOX: &str = "HUB_OUTBOX_ORGANIZATION";
const DLT: &str = "HUB_OUTBOX_ORGANIZATION_DLT";
const FAILING: [(&str, &str); 2] = [("down-1", "/down-1"), ("down-2", "/down-2")];

async fn failing_receiver() -> Receiver {
    let receiver = Receiver::start().await;
    for (_, path) in FAILING {
        receiver.set(path, Behaviour::status(503));
    }
    receiver
}

async fn subscribe(client: &TestClient, receiver: &Receiver) {
    client.subscribe(FAILING.map(|(id, path)| subscription(id, &["member.>"], &receiver.url(path)))).await;
}

/// Waits until every envelope in the outbox has used up its deliveries.
async fn exhausted(client: &TestClient, envelopes: u64) {
    eventually(STEP, "every envelope is exhausted", async || {
        let lane = client.consumer(OUTBOX, "lane-shared").await;
        let standing = client.stream(OUTBOX).await.state.messages;
        let seen = (lane.num_pending, lane.num_ack_pending, lane.delivered.stream_sequence, standing);
        if seen == (0, 0, envelopes, envelopes) { Ok(()) } else { Err(seen) }
    })
    .await;
}

/// Each pair is one dead letter with the result of its last attempt.
async fn assert_each_dead_once(client: &TestClient, receiver: &Receiver, events: &[String], what: &str) {
    let letters = client.dead_letters("organization").await;
    let account = Account::of(events, &FAILING, receiver, &letters);
    account.assert_complete(what);
    let pairs = events.len() * FAILING.len();
    assert_eq!((account.dead, account.dead_doubles), (pairs, 0));
    assert_eq!(client.stream(DLT).await.state.last_sequence, pairs as u64, "each was put there once");
    for entry in letters {
        let letter = entry.letter;
        assert_eq!(
            (letter.reason.as_str(), letter.attempts, letter.last_status),
            ("exhausted", 3, Some(503)),
            "{letter:?}"
        );
    }
}

#[tokio::test]
async fn without_stored_advisories_each_exhausted_envelope_becomes_one_dead_letter() {
    let broker = TestBroker::start().await;
    let receiver = failing_receiver().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    subscribe(&client, &receiver).await;
    client.detach_stream("HUB_ADVISORIES").await;

    let events = ids("event", 100);
    client.publish_all("member.invited", &events).await;
    receiver.wait_for("/down-1", 300, STEP).await;
    receiver.wait_for("/down-2", 300, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_each_dead_once(&client, &receiver, &events, "without stored advisories").await;
    assert!(hub.log().contains("stranded envelope found"));

    // The stream gets its subjects again.
    hub.cli_ok(&["provision"]).await;
    hub.ready().await;
}

#[tokio::test]
async fn a_router_that_was_down_finds_each_exhausted_envelope_once() {
    let broker = TestBroker::start().await;
    let receiver = failing_receiver().await;
    let roles = ["--role", "event-processor,outbox-processor"];
    let mut first = Hub::serve(&broker.url(), &TestSettings::quick(), &roles);
    first.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    subscribe(&client, &receiver).await;
    let events = ids("event", 100);
    client.publish_all("member.invited", &events).await;
    exhausted(&client, 200).await;
    assert_eq!(client.stream(DLT).await.state.last_sequence, 0, "no router runs");
    assert_eq!(broker.messages("HUB_ADVISORIES").await, 200, "one advisory for each");

    // Half of the advisories are lost, and the sweep handles those; for the others it competes with the advisories.
    let advisories = client.context.get_stream("HUB_ADVISORIES").await.expect("the stream is there");
    let purged = advisories.purge().keep(100).await.expect("purged").purged;
    assert_eq!(purged, 100);
    let mut router = Hub::serve(&broker.url(), &TestSettings::quick(), &["--role", "dlt-router"]);
    router.ready().await;
    broker.nothing_pending_within(STEP).await;
    assert_each_dead_once(&client, &receiver, &events, "the router was down").await;
}

/// The lanes that another publisher can make up: no worker reads them, and no consumer can have the names of some.
#[tokio::test]
async fn messages_in_foreign_lanes_become_dead_letters_and_nothing_else_does() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("crm", &["member.>"], &receiver.url("/crm"))]).await;

    let long = "l".repeat(3_000);
    let lanes: [&[u8]; 12] = [
        b"x",
        b"SHARED",
        b"own-",
        b"own-a=",
        b"own-*",
        b"*",
        b">",
        "größe".as_bytes(),
        "a\u{202e}b".as_bytes(),
        b"\xff\xfe",
        b"\x1b[31m",
        long.as_bytes(),
    ];
    let mut raw = RawPublisher::connect(&broker.url()).await;
    for lane in lanes {
        for body in [&b"junk"[..], b"{}"] {
            raw.publish(&[b"hub.outbox.organization.", lane, b".ok"].concat(), None, body).await;
        }
    }
    let events = ids("event", 20);
    client.publish_all("member.invited", &events).await;
    receiver.wait_for("/crm", 20, STEP).await;
    broker.nothing_pending_within(STEP).await;

    let letters = client.dead_letters("organization").await;
    assert_eq!(letters.len(), 2 * lanes.len());
    assert!(letters.iter().all(|entry| entry.letter.reason.as_str() == "undecodable"), "{letters:?}");
    assert_eq!(receiver.count("/crm"), 20);
    let log = hub.log();
    for repeated in
        ["lane has envelopes but no consumer", "consumer of a lane not created", "not dead-lettered"]
    {
        assert!(!log.contains(repeated), "{log}");
    }
}

/// An exhausted message that was the oldest pending one pins the ack floor while others are pending, so that the
/// consumer's state does not show it.
#[tokio::test]
async fn under_steady_traffic_each_exhausted_envelope_is_found() {
    let broker = TestBroker::start().await;
    let receiver = failing_receiver().await;
    receiver.set("/steady", Behaviour::slow(Duration::from_millis(300)));
    let roles = ["--role", "event-processor,outbox-processor"];
    // What was pending before an envelope that fails is acknowledged before that envelope is exhausted.
    let settings =
        TestSettings::quick().with(|settings| settings.delivery.retry = Some(vec![Duration::from_secs(1)]));
    let mut first = Hub::serve(&broker.url(), &settings, &roles);
    first.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    subscribe(&client, &receiver).await;
    client.subscribe([subscription("steady", &["organization.>"], &receiver.url("/steady"))]).await;

    let published = AtomicUsize::new(0);
    let traffic = async {
        loop {
            let number = published.load(Ordering::Relaxed);
            client.publish("organization.updated", &format!("steady-{number}")).await;
            published.store(number + 1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let found = async {
        receiver.wait_for("/steady", 20, STEP).await;
        let events = ids("event", 36);
        client.publish_all("member.invited", &events).await;
        eventually(STEP, "an advisory for each envelope", async || {
            let advisories = broker.messages("HUB_ADVISORIES").await;
            if advisories == 72 { Ok(()) } else { Err(advisories) }
        })
        .await;
        let advisories = client.context.get_stream("HUB_ADVISORIES").await.expect("the stream is there");
        advisories.purge().await.expect("purged");
        let settings =
            TestSettings::quick().with(|settings| settings.log.repeat_interval = Some(Duration::ZERO));
        let mut router = Hub::serve(&broker.url(), &settings, &["--role", "dlt-router"]);
        router.ready().await;
        eventually(STEP, "each is found while traffic flows", async || {
            let letters = client.stream(DLT).await.state.messages;
            let pending = client.consumer(OUTBOX, "lane-shared").await.num_ack_pending;
            if letters == 72 && pending > 0 { Ok(()) } else { Err((letters, pending)) }
        })
        .await;
        assert_eq!(router.log().matches("stranded envelope found").count(), 72);
        events
    };
    let events = tokio::select! {
        () = traffic => unreachable!("it does not end"),
        events = found => events,
    };
    assert_each_dead_once(&client, &receiver, &events, "under steady traffic").await;
    // Nothing of the traffic became a dead letter, or was sent twice.
    broker.nothing_pending_within(STEP).await;
    assert_eq!(client.stream(DLT).await.state.last_sequence, 72);
    assert!(receiver.accepted("/steady").len() >= published.load(Ordering::Relaxed));
    assert!(receiver.doubles("/steady").is_empty());
}

/// What waits for its retry is pending, however long it waits.
#[tokio::test]
async fn an_envelope_that_waits_for_its_retry_is_not_stranded() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/down-1", Behaviour::failing_first(10, 503));
    let settings =
        TestSettings::quick().with(|settings| settings.delivery.retry = Some(vec![Duration::from_secs(6)]));
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("down-1", &["member.>"], &receiver.url("/down-1"))]).await;
    client.publish_all("member.invited", &ids("event", 10)).await;
    receiver.wait_accepted("/down-1", 10, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(receiver.count("/down-1"), 20);
    assert_eq!(client.stream(DLT).await.state.last_sequence, 0);
    assert!(!hub.log().contains("stranded envelope found"));
}
