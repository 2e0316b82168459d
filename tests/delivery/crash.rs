//! Processes killed at the worst moment: afterwards every (event, subscription) pair was delivered at least
//! once or is a dead letter. Repeated deliveries are counted.

use std::time::Duration;

use crate::support::{
    Account, Behaviour, Direction, FaultProxy, Hub, Receiver, TestBroker, TestClient, TestSettings,
    eventually, ids, subscription,
};

const STEP: Duration = Duration::from_secs(30);
/// An event or advisory held by a killed process is redelivered after 30 s.
const RECOVERY: Duration = Duration::from_secs(90);
const POLICY_OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const POLICY_DLT: &str = "HUB_OUTBOX_POLICY_CLIENT_DLT";

/// The publish acknowledgement of a stream, single or of a batch.
fn acknowledgement_of(stream: &str) -> String {
    format!("{{\"stream\":\"{stream}\"")
}

#[tokio::test]
async fn killed_between_commit_and_acknowledgement_no_envelope_is_lost_or_doubled() {
    let broker = TestBroker::start().await;
    let proxy = FaultProxy::start(&broker.url()).await;
    let receiver = Receiver::start().await;
    let mut first = Hub::serve(&proxy.url("nats"), &TestSettings::quick(), &["--role", "event-processor"]);
    first.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let subscriptions = [("a", "/a"), ("b", "/b"), ("c", "/c")];
    client
        .subscribe(subscriptions.map(|(id, path)| subscription(id, &["policy.>"], &receiver.url(path))))
        .await;

    let committed = proxy.cut_before(Direction::ToClient, acknowledgement_of(POLICY_OUTBOX));
    let events = ids("event", 40);
    client.publish_all("policy.updated", &events).await;
    committed.fired(STEP).await;
    first.kill().await;

    let standing = broker.messages(POLICY_OUTBOX).await;
    assert!(standing >= 3, "a batch was committed before the kill: {standing} envelopes");
    assert_eq!(broker.messages("HUB_EVENTS").await, 40, "no event was acknowledged before the kill");

    let mut second = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    second.ready().await;
    broker.nothing_pending_within(RECOVERY).await;
    let account =
        Account::of(&events, &subscriptions, &receiver, &client.dead_letters("policy-client").await);
    account.assert_complete("killed between commit and acknowledgement");
    let outbox = client.stream(POLICY_OUTBOX).await.state;
    assert_eq!(outbox.last_sequence, 120, "every envelope was put into the outbox once");
    assert_eq!((account.delivered, account.dead, account.doubles), (120, 0, 0));
}

#[tokio::test]
async fn killed_in_mid_delivery_every_pair_is_delivered() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/slow", Behaviour::slow(Duration::from_millis(300)));
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let subscriptions = [("fast", "/fast"), ("slow", "/slow")];
    client
        .subscribe(subscriptions.map(|(id, path)| subscription(id, &["user.>"], &receiver.url(path))))
        .await;
    let events = ids("event", 200);
    client.publish_all("user.created", &events).await;
    receiver.wait_for("/slow", 20, STEP).await;
    hub.kill().await;

    let cut_off = receiver.received("/slow").iter().filter(|request| request.answered.is_none()).count();
    assert!(cut_off > 0, "deliveries were in flight when the process was killed");
    assert!(broker.messages("HUB_OUTBOX_USER_LIFECYCLE").await >= cut_off as u64, "they are still pending");

    hub.start();
    hub.ready().await;
    broker.nothing_pending_within(RECOVERY).await;
    let account =
        Account::of(&events, &subscriptions, &receiver, &client.dead_letters("user-lifecycle").await);
    account.assert_complete("killed in mid-delivery");
    assert_eq!(account.delivered, 400);
}

/// `status` makes the endpoint fail until attempts are exhausted (503) or permanently (410).
async fn killed_in_mid_dead_lettering(status: u16) {
    let broker = TestBroker::start().await;
    let proxy = FaultProxy::start(&broker.url()).await;
    let receiver = Receiver::start().await;
    receiver.set("/down", Behaviour::Hang);
    let mut first = Hub::serve(&proxy.url("nats"), &TestSettings::quick(), &[]);
    first.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let subscriptions = [("down", "/down")];
    client.subscribe([subscription("down", &["policy.>"], &receiver.url("/down"))]).await;

    let written = proxy.cut_before(Direction::ToClient, acknowledgement_of(POLICY_DLT));
    let events = ids("event", 25);
    client.publish_all("policy.updated", &events).await;
    // The endpoint fails once all envelopes are in the outbox, where they can be counted.
    eventually(STEP, "each event has its envelope", async || match broker.messages(POLICY_OUTBOX).await {
        25 => Ok(()),
        other => Err(other),
    })
    .await;
    receiver.set("/down", Behaviour::status(status));
    written.fired(STEP).await;
    first.kill().await;
    let (letters, pending) = (broker.messages(POLICY_DLT).await, broker.messages(POLICY_OUTBOX).await);
    assert!(letters > 0, "a dead letter was written before the kill");
    assert!(
        letters + pending > 25,
        "{letters} dead letters, {pending} pending: no envelope had left its outbox for one"
    );

    let mut second = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    second.ready().await;
    broker.nothing_pending_within(RECOVERY).await;
    let letters = client.dead_letters("policy-client").await;
    let account = Account::of(&events, &subscriptions, &receiver, &letters);
    account.assert_complete(&format!("killed in mid-dead-lettering after {status}"));
    assert_eq!((account.dead, account.dead_doubles, letters.len()), (25, 0, 25));
}

#[tokio::test]
async fn killed_while_an_exhausted_envelope_is_dead_lettered_each_is_one_dead_letter() {
    killed_in_mid_dead_lettering(503).await;
}

#[tokio::test]
async fn killed_while_a_permanent_failure_is_dead_lettered_each_is_one_dead_letter() {
    killed_in_mid_dead_lettering(410).await;
}

#[tokio::test]
async fn a_broker_killed_and_restarted_under_load_loses_no_pair() {
    let mut broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/flaky", Behaviour::failing_first(200, 503));
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let subscriptions = [("steady", "/steady"), ("flaky", "/flaky")];
    client
        .subscribe(subscriptions.map(|(id, path)| subscription(id, &["user.>"], &receiver.url(path))))
        .await;

    let events = ids("event", 3_000);
    // Each time during publishing, fan-out and delivery.
    let kills = async {
        for delivered in [300, 800, 1_300, 1_800] {
            receiver.wait_accepted("/steady", delivered, STEP).await;
            broker.process().kill().await.expect("the broker is killed");
            assert!(receiver.accepted("/steady").len() < 3_000, "there was work left");
            broker.process().restart().await.expect("the broker starts on the same port");
        }
    };
    tokio::join!(client.publish_all("user.created", &events), kills);
    broker.nothing_pending_within(RECOVERY).await;
    let account =
        Account::of(&events, &subscriptions, &receiver, &client.dead_letters("user-lifecycle").await);
    account.assert_complete("the broker killed and restarted");
    assert_eq!(account.delivered + account.dead - account.both, 6_000);
    hub.ready().await;
}
