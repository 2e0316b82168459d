//! Own lanes: the fan-out writes new envelopes of a stuck subscription straight to its lane, and returns to the shared lane
//! when the lane is caught up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{
    Account, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(60);
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const DOMAIN: &str = "domain=\"policy-client\"";

static FILLS: AtomicUsize = AtomicUsize::new(0);

/// So few permits that the queue of a hanging subscriber is soon full.
fn settings() -> TestSettings {
    TestSettings::patient().with(|settings| {
        settings.delivery.held = Some(128);
        settings.delivery.queue_per_subscription = Some(16);
    })
}

/// The number of envelopes of a subscription by lane.
async fn lanes(client: &TestClient, subscription: &str) -> BTreeMap<String, u64> {
    let filter = format!("hub.outbox.policy-client.*.{subscription}");
    let subjects = client.js.stream_subjects(OUTBOX, &filter).await.expect("the subjects");
    let lane = |subject: &str| subject.split('.').nth(3).expect("a lane").to_owned();
    subjects.into_iter().map(|(subject, count)| (lane(&subject), count)).collect()
}

/// The number of envelopes in a lane that were moved there: the fan-out writes none with such a header.
async fn moved_to(broker: &TestBroker, lane: &str) -> u64 {
    let stream = broker.jetstream().await.get_stream(OUTBOX).await.expect("the outbox");
    let state = stream.cached_info().state.clone();
    let subject = format!("hub.outbox.policy-client.{lane}.");
    let mut moved = 0;
    for sequence in state.first_sequence..=state.last_sequence {
        // A gap has no message.
        let Ok(message) = stream.get_raw_message(sequence).await else { continue };
        let in_lane = message.subject.starts_with(&subject);
        moved += u64::from(in_lane && message.headers.get("Hub-Attempts").is_some());
    }
    moved
}

/// Publishes until new envelopes go straight to the own lane; returns the ids.
async fn publish_until_direct(client: &TestClient, hubs: &[&Hub]) -> Vec<String> {
    let mut all = Vec::new();
    eventually(STEP, "the fan-out writes to the own lane", async || {
        let more = ids(&format!("fill-{}", FILLS.fetch_add(1, Ordering::Relaxed)), 64);
        client.publish_all("policy.updated", &more).await;
        all.extend(more);
        let mut direct = 0.0;
        for hub in hubs {
            direct += hub.metric("hub_envelopes_to_own_lanes_total", &[DOMAIN]).await;
        }
        if direct > 0.0 { Ok(()) } else { Err(lanes(client, "stuck").await) }
    })
    .await;
    all
}

/// The same for `stuck` beside another subscription, which may be moved for a moment, too.
async fn publish_until_stuck_is_direct(client: &TestClient, broker: &TestBroker, hub: &Hub) -> Vec<String> {
    let mut all = Vec::new();
    eventually(STEP, "the fan-out writes to the own lane of stuck", async || {
        all.extend(publish_until_direct(client, &[hub]).await);
        let in_lane = lanes(client, "stuck").await.get("own-stuck").copied().unwrap_or(0);
        let moved = moved_to(broker, "own-stuck").await;
        if in_lane > moved { Ok(()) } else { Err((in_lane, moved)) }
    })
    .await;
    all
}

/// Publishes one event after the other until one of them goes to the shared lane.
async fn publish_until_shared(
    client: &TestClient,
    receiver: &Receiver,
    hub: &Hub,
    before: usize,
) -> Vec<String> {
    let mut all = Vec::new();
    eventually(STEP, "the subscription returns to the shared lane", async || {
        let direct = hub.metric("hub_envelopes_to_own_lanes_total", &[DOMAIN]).await;
        let id = format!("after-{}", all.len());
        client.publish("policy.updated", &id).await;
        all.push(id);
        receiver.wait_accepted("/stuck", before + all.len(), STEP).await;
        let now = hub.metric("hub_envelopes_to_own_lanes_total", &[DOMAIN]).await;
        if now == direct { Ok(()) } else { Err((direct, now)) }
    })
    .await;
    all
}

#[tokio::test]
async fn a_stuck_subscription_costs_the_shared_lane_nothing_and_returns() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &settings(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe(["stuck", "well"].map(|id| patient(id, &["policy.>"], &receiver.url(&format!("/{id}")))))
        .await;
    let (open, gate) = Behaviour::gate();
    receiver.set("/stuck", gate);

    let mut events = publish_until_stuck_is_direct(&client, &broker, &hub).await;
    receiver.wait_accepted("/well", events.len(), STEP).await;
    // From now on nothing of it passes through the shared lane, so nothing is moved.
    let shared = lanes(&client, "stuck").await.get("shared").copied().unwrap_or(0);
    let spilled = moved_to(&broker, "own-stuck").await;
    let direct = ids("direct", 300);
    client.publish_all("policy.updated", &direct).await;
    events.extend(direct);
    receiver.wait_accepted("/well", events.len(), STEP).await;
    let now = lanes(&client, "stuck").await;
    assert!(now.get("shared").copied().unwrap_or(0) <= shared, "{now:?}, {shared} in the shared lane before");
    let moved = moved_to(&broker, "own-stuck").await - spilled;
    assert!(moved <= shared, "{moved} moved, {shared} were in the shared lane");

    // Caught up, it returns, long before its lane is removed.
    open.send_replace(true);
    receiver.wait_accepted("/stuck", events.len(), STEP).await;
    broker.nothing_pending_within(STEP).await;
    let before = events.len();
    events.extend(publish_until_shared(&client, &receiver, &hub, before).await);
    client.consumer(OUTBOX, "lane-own-stuck").await;
    broker.nothing_pending_within(STEP).await;
    let letters = client.dead_letters("policy-client").await;
    let account = Account::of(&events, &[("stuck", "/stuck"), ("well", "/well")], &receiver, &letters);
    account.assert_complete("afterwards");
    assert_eq!((account.delivered, account.doubles, account.dead), (2 * events.len(), 0, 0));
}

#[tokio::test]
async fn restarts_and_a_second_replica_lose_and_double_nothing_of_a_lane() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut fan_out = [0, 1].map(|_| Hub::serve(&broker.url(), &settings(), &["--role", "event-processor"]));
    let mut deliver = [0, 1].map(|_| Hub::serve(&broker.url(), &settings(), &["--role", "outbox-processor"]));
    for hub in fan_out.iter_mut().chain(&mut deliver) {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe(["stuck", "well"].map(|id| patient(id, &["policy.>"], &receiver.url(&format!("/{id}")))))
        .await;
    let (open, gate) = Behaviour::gate();
    receiver.set("/stuck", gate);
    let mut events = publish_until_direct(&client, &[&fan_out[0], &fan_out[1]]).await;

    // New processes find the lane, and both write to it.
    let more = ids("restarted", 1_000);
    let restarts = async {
        for hub in &mut fan_out {
            assert!(hub.terminate().await.success());
            hub.start();
            hub.ready().await;
        }
        assert!(deliver[0].terminate().await.success());
        deliver[0].start();
        deliver[0].ready().await;
    };
    tokio::join!(client.publish_all("policy.updated", &more), restarts);
    events.extend(more);
    receiver.wait_accepted("/well", events.len(), STEP).await;
    let lane = lanes(&client, "stuck").await;
    assert!(lane.get("own-stuck").is_some_and(|count| *count > 0), "{lane:?}");

    open.send_replace(true);
    receiver.wait_accepted("/stuck", events.len(), STEP).await;
    let last = ids("last", 200);
    client.publish_all("policy.updated", &last).await;
    events.extend(last);
    receiver.wait_accepted("/stuck", events.len(), STEP).await;
    receiver.wait_accepted("/well", events.len(), STEP).await;
    broker.nothing_pending_within(STEP).await;
    let letters = client.dead_letters("policy-client").await;
    let account = Account::of(&events, &[("stuck", "/stuck"), ("well", "/well")], &receiver, &letters);
    account.assert_complete("after the restarts");
    assert_eq!((account.delivered, account.dead), (2 * events.len(), 0));
    // A delivery that hung at the restart is cut, and its endpoint gets it again; none is accepted twice.
    assert_eq!(account.doubles, 0);
}

/// A lane that is removed at the worst moment: an envelope that is written to it afterwards is still delivered, without
/// the sweep.
#[tokio::test]
async fn an_envelope_in_a_lane_that_was_just_removed_is_delivered() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub =
        Hub::serve(&broker.url(), &settings(), &["--role", "event-processor,outbox-processor,dlt-router"]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("stuck", &["policy.>"], &receiver.url("/stuck"))]).await;
    let (open, gate) = Behaviour::gate();
    receiver.set("/stuck", gate);
    let events = publish_until_direct(&client, &[&hub]).await;
    open.send_replace(true);
    receiver.wait_accepted("/stuck", events.len(), STEP).await;
    // The subscription is removed, and its idle lane with it, sooner than others.
    hub.cli_ok(&["subscription", "remove", "stuck", "--yes"]).await;
    hub.wait_for_log("own lane empty, removed", Duration::from_secs(120)).await;
    let envelope = serde_json::json!({
        "id": "env_late", "domain": "policy-client", "subscription": "stuck", "tenant": "default", "event_id": "late",
        "event_key": "policy.updated", "event": {"id": "late"},
    });
    let subject = "hub.outbox.policy-client.own-stuck.stuck";
    client.context.publish(subject, envelope.to_string().into()).await.expect("sent").await.expect("stored");
    // No worker makes a lane without a subscription again: the sweep moves the envelope to the shared lane.
    eventually(Duration::from_secs(120), "the envelope is read", async || {
        let letters = client.dead_letters("policy-client").await;
        let reasons: Vec<&str> = letters.iter().map(|entry| entry.letter.reason.as_str()).collect();
        if reasons == ["removed"] { Ok(()) } else { Err(format!("{reasons:?}")) }
    })
    .await;
    assert_eq!(broker.messages(OUTBOX).await, 0);
}

/// The server reports a new lane to all processes; without that, they would find it seconds later.
#[tokio::test]
async fn a_new_lane_is_announced() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub =
        Hub::serve(&broker.url(), &settings(), &["--role", "event-processor", "--role", "outbox-processor"]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let mut new_lanes = client.js.new_lanes(OUTBOX).await.expect("a subscription");
    client.subscribe([patient("stuck", &["policy.>"], &receiver.url("/stuck"))]).await;
    let (open, gate) = Behaviour::gate();
    receiver.set("/stuck", gate);
    let events = publish_until_direct(&client, &[&hub]).await;
    tokio::time::timeout(STEP, new_lanes.created()).await.expect("an advisory");
    open.send_replace(true);
    receiver.wait_accepted("/stuck", events.len(), STEP).await;
}
