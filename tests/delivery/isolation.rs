//! One subscriber that accepts connections and never answers: no other subscriber in its domain waits for it,
//! memory stays bounded, and none of its envelopes is lost.

use std::time::Duration;

use crate::support::{
    Account, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(30);
const BEFORE: usize = 1_000;
const BESIDE: usize = 6_000;
/// Published at once. Each is waited for before the next.
const CHUNK: usize = 100;
/// So few that the queue of the hanging subscriber is soon full and the rest moves to its own lane.
const HELD: usize = 256;
const QUEUE: usize = 32;

/// Publishes in chunks, and waits after each until A has accepted `already` and everything published so far.
async fn publish_in_step(client: &TestClient, receiver: &Receiver, events: &[String], already: usize) {
    let mut published = already;
    for chunk in events.chunks(CHUNK) {
        client.publish_all("policy.updated", chunk).await;
        published += chunk.len();
        receiver.wait_accepted("/a", published, STEP).await;
    }
}

/// No attempt of B ends while it hangs: an attempt may take longer than each wait for A. So A would fail to get a
/// chunk if it waited for B anywhere.
#[tokio::test]
async fn a_subscriber_that_never_answers_does_not_hold_up_its_neighbour() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let settings = TestSettings::patient().with(|settings| {
        settings.delivery.held = Some(HELD);
        settings.delivery.queue_per_subscription = Some(QUEUE);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let both = ["a", "b"].map(|id| patient(id, &["policy.>"], &receiver.url(&format!("/{id}"))));
    client.subscribe(both).await;

    // Both accept at first.
    let before = ids("before", BEFORE);
    publish_in_step(&client, &receiver, &before, 0).await;
    receiver.wait_accepted("/b", BEFORE, STEP).await;

    let (open, gate) = Behaviour::gate();
    receiver.set("/b", gate);
    let events = ids("beside", BESIDE);
    publish_in_step(&client, &receiver, &events, BEFORE).await;
    assert_eq!(receiver.accepted("/b").len(), BEFORE, "B hangs");

    // The envelopes that B has not accepted are in its own lane, except those of the shared lane.
    let lane = eventually(STEP, "the rest is in B's own lane", async || {
        let lane = client.consumer("HUB_OUTBOX_POLICY_CLIENT", "lane-own-b").await;
        let waiting = usize::try_from(lane.num_pending).unwrap_or(usize::MAX) + lane.num_ack_pending;
        if waiting >= BESIDE - HELD { Ok(lane) } else { Err(waiting) }
    })
    .await;
    let shared = client.consumer("HUB_OUTBOX_POLICY_CLIENT", "lane-shared").await;
    let pending = broker.messages("HUB_OUTBOX_POLICY_CLIENT").await;
    assert!(pending >= BESIDE as u64, "{pending} envelopes of {BESIDE} are in the outbox");
    assert!(shared.num_ack_pending + usize::try_from(shared.num_pending).unwrap_or(usize::MAX) <= HELD);
    // In this process: the permits of the shared lane, and 64 of B's own lane.
    assert!(lane.num_ack_pending <= 64 + 64, "{} of B's own lane are in memory", lane.num_ack_pending);
    assert!(receiver.most_open("/b") <= 32, "B has no more than its share of the pool");

    // B answers again: everything arrives.
    open.send_replace(true);
    receiver.wait_accepted("/b", BEFORE + BESIDE, Duration::from_secs(90)).await;
    broker.nothing_pending_within(STEP).await;
    let all: Vec<String> = before.into_iter().chain(events).collect();
    let letters = client.dead_letters("policy-client").await;
    let account = Account::of(&all, &[("a", "/a"), ("b", "/b")], &receiver, &letters);
    account.assert_complete("afterwards");
    assert_eq!((account.delivered, account.doubles, account.dead), (2 * (BEFORE + BESIDE), 0, 0));
}
