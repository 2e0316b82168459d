//! One subscriber that accepts and never answers: nobody else in its domain notices, memory stays
//! bounded, and nothing of its own is lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::{
    Account, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, subscription,
};

const STEP: Duration = Duration::from_secs(30);
const PER_SECOND: usize = 100;
const WARM_UP: usize = 10 * PER_SECOND;
const MINUTE: usize = 60 * PER_SECOND;
/// So few that the hanging subscriber's share is soon full and the rest moves to a lane of its own.
const HELD: usize = 256;
const QUEUE: usize = 32;

/// Publishes at a steady rate and gives when each event was published.
async fn publish_steadily(client: &TestClient, events: &[String]) -> BTreeMap<String, Instant> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / PER_SECOND as u32);
    let mut published = BTreeMap::new();
    for id in events {
        ticks.tick().await;
        published.insert(id.clone(), Instant::now());
        client.publish("policy.updated", id).await;
    }
    published
}

struct Latency {
    p50: Duration,
    p99: Duration,
    most: Duration,
}

/// From the publication to the arrival at `path`, of the events in `published`.
fn latency(receiver: &Receiver, path: &str, published: &BTreeMap<String, Instant>) -> Latency {
    let mut waits: Vec<Duration> = receiver
        .received(path)
        .iter()
        .filter_map(|request| {
            let sent = published.get(request.json()["id"].as_str()?)?;
            Some(request.arrived.duration_since(*sent))
        })
        .collect();
    waits.sort();
    let at = |part: f64| waits[((waits.len() - 1) as f64 * part) as usize];
    Latency { p50: at(0.5), p99: at(0.99), most: at(1.0) }
}

#[tokio::test]
async fn a_subscriber_that_never_answers_does_not_slow_its_neighbour() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let settings = TestSettings::quick().with_redrives([Duration::from_secs(5); 10]).with(|settings| {
        settings.delivery.max_timeout = Some(Duration::from_secs(5));
        settings.delivery.ack_wait = Some(Duration::from_secs(6));
        settings.delivery.held = Some(HELD);
        settings.delivery.queue_per_subscription = Some(QUEUE);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let mut neighbour = subscription("b", &["policy.>"], &receiver.url("/b"));
    neighbour["delivery"]["timeout"] = "5s".into();
    client.subscribe([subscription("a", &["policy.>"], &receiver.url("/a")), neighbour]).await;

    // Both are well at first, to know what A's latency is on this machine, at this fan-out.
    let before = ids("before", WARM_UP);
    let warm_up = publish_steadily(&client, &before).await;
    receiver.wait_accepted("/a", WARM_UP, STEP).await;
    receiver.wait_accepted("/b", WARM_UP, STEP).await;
    let well = latency(&receiver, "/a", &warm_up);

    receiver.set("/b", Behaviour::Hang);
    let events = ids("beside", MINUTE);
    let began = Instant::now();
    let published = publish_steadily(&client, &events).await;
    let took = began.elapsed();
    let in_time = receiver.accepted("/a").len() - WARM_UP;
    receiver.wait_accepted("/a", WARM_UP + MINUTE, STEP).await;
    let beside = latency(&receiver, "/a", &published);
    println!(
        "beside one that is well p50 {:?} p99 {:?} most {:?}; beside one that hangs p50 {:?} p99 {:?} most {:?}; {in_time} of {MINUTE} within {took:?}",
        well.p50, well.p99, well.most, beside.p50, beside.p99, beside.most
    );
    assert!(took < Duration::from_secs(75), "the publisher itself kept its rate: {took:?}");
    assert!(in_time * 100 >= MINUTE * 99, "A keeps its rate: {in_time} of {MINUTE} within {took:?}");
    // What a neighbour that hangs costs, where it costs anything, is its timeout: 5 s. The bounds lie far
    // below that, and leave room for the noise of a busy machine with two cores.
    let bound = well.p50 * 3 + Duration::from_millis(100);
    assert!(beside.p50 < bound, "p50 {:?}, beside one that is well {:?}", beside.p50, well.p50);
    let bound = (well.p99 * 3).clamp(Duration::from_secs(1), Duration::from_millis(2_500));
    assert!(beside.p99 < bound, "p99 {:?}, beside one that is well {:?}", beside.p99, well.p99);

    // B has what it was owed in a lane of its own, or as dead letters; none is lost.
    let lane = client.consumer("HUB_OUTBOX_POLICY_CLIENT", "lane-own-b").await;
    let shared = client.consumer("HUB_OUTBOX_POLICY_CLIENT", "lane-shared").await;
    let owed = broker.messages("HUB_OUTBOX_POLICY_CLIENT").await;
    let letters = broker.messages("HUB_OUTBOX_POLICY_CLIENT_DLT").await;
    let spilled = hub.metric("hub_envelopes_spilled_total", &["domain=\"policy-client\""]).await;
    println!(
        "B: {owed} owed, {letters} dead letters, {spilled} spilled, {} pending in its lane, {} in the shared one",
        lane.num_pending, shared.num_ack_pending
    );
    assert!(owed + letters >= MINUTE as u64, "{owed} owed and {letters} dead letters of {MINUTE}");
    assert!(spilled as usize >= MINUTE - 2 * HELD, "B's moved to its own lane: {spilled}");
    assert!(shared.num_ack_pending + usize::try_from(shared.num_pending).unwrap_or(usize::MAX) <= HELD);
    // In this process: what the shared lane holds and 64 of B's own lane.
    assert!(lane.num_ack_pending <= 64 + 64, "{} of B's own lane are out", lane.num_ack_pending);
    assert!(receiver.most_open("/b") <= 32, "B has no more than its share of the pool");

    // B comes to itself: all of it arrives.
    receiver.set("/b", Behaviour::ok());
    receiver.wait_accepted("/b", WARM_UP + MINUTE, Duration::from_secs(90)).await;
    broker.nothing_owed_within(STEP).await;
    eventually(STEP, "no dead letter is left", async || {
        let letters = client.dead_letters("policy-client").await;
        if letters.is_empty() { Ok(()) } else { Err(letters.len()) }
    })
    .await;
    let all: Vec<String> = before.into_iter().chain(events).collect();
    let account = Account::of(&all, &[("a", "/a"), ("b", "/b")], &receiver, &[]);
    account.assert_complete("afterwards");
    assert_eq!((account.delivered, account.doubles), (2 * (WARM_UP + MINUTE), 0));
}
