//! Several processes, each with every role: they share the work and repeat none of it, also on a cluster that
//! loses a node.

use std::time::Duration;

use futures_util::StreamExt;
use hub_testkit::broker_process::{BrokerCluster, BrokerOptions};

use crate::support::{
    Account, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, nats_server,
    subscription,
};

const STEP: Duration = Duration::from_secs(90);
/// Subscriptions to the many events.
const MANY: [(&str, &str); 3] = [("steady", "/steady"), ("second", "/second"), ("flaky", "/flaky")];
/// Subscription to the few events.
const FAILING: [(&str, &str); 1] = [("failing", "/failing")];
const FEW: usize = 300;
const FAILURES: usize = 700;
/// Attempts before an envelope is dead-lettered.
const MAX_DELIVER: usize = 3;
/// The outbox of the domain whose events are published here.
const OUTBOX: &str = "HUB_OUTBOX_USER_LIFECYCLE";

fn settings() -> TestSettings {
    TestSettings::quick().with_redrives([Duration::from_secs(1); 8])
}

async fn receiver() -> Receiver {
    let receiver = Receiver::start().await;
    receiver.set("/flaky", Behaviour::failing_first(100, 503));
    receiver.set("/failing", Behaviour::failing_first(FAILURES, 503));
    receiver
}

async fn subscribe(client: &TestClient, receiver: &Receiver) {
    client.subscribe(MANY.map(|(id, path)| subscription(id, &["user.>"], &receiver.url(path)))).await;
    client.subscribe(FAILING.map(|(id, path)| subscription(id, &["role.>"], &receiver.url(path)))).await;
}

async fn publish(client: &TestClient, many: &[String], few: &[String]) {
    tokio::join!(client.publish_all("user.created", many), client.publish_all("role.granted", few));
}

/// Asserts that every pair was delivered; returns how many deliveries were repeated.
fn assert_all_delivered(receiver: &Receiver, many: &[String], few: &[String], what: &str) -> usize {
    let mut doubles = 0;
    for (events, subscriptions) in [(many, &MANY[..]), (few, &FAILING[..])] {
        let account = Account::of(events, subscriptions, receiver, &[]);
        account.assert_complete(what);
        assert_eq!(account.delivered, events.len() * subscriptions.len());
        doubles += account.doubles;
    }
    doubles
}

async fn delivered(hub: &Hub) -> f64 {
    hub.metric("hub_deliveries_total", &["outcome=\"delivered\""]).await
}

/// Waits until everything was delivered and no dead letter is left, on a broker that may lack a node.
async fn all_settled(client: &TestClient, receiver: &Receiver, events: usize) {
    for (_, path) in MANY {
        receiver.wait_accepted(path, events, STEP).await;
    }
    receiver.wait_accepted(FAILING[0].1, FEW, STEP).await;
    eventually(STEP, "nothing is pending and no dead letter is left", async || {
        let mut streams = client.context.streams();
        let mut left = Vec::new();
        while let Some(stream) = streams.next().await {
            let stream = stream.map_err(|error| vec![(error.to_string(), 0)])?;
            let holds_work =
                ["OUTBOX", "EVENTS", "ADVISORIES"].iter().any(|part| stream.config.name.contains(part));
            if holds_work && stream.state.messages > 0 {
                left.push((stream.config.name, stream.state.messages));
            }
        }
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test]
async fn two_replicas_of_every_role_share_the_work_and_double_nothing() {
    let broker = TestBroker::start().await;
    let receiver = receiver().await;
    // Each delivery is counted.
    let settings = TestSettings::patient().with_redrives([Duration::from_secs(1); 8]);
    let mut hubs = [Hub::serve(&broker.url(), &settings, &[]), Hub::serve(&broker.url(), &settings, &[])];
    for hub in &mut hubs {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    subscribe(&client, &receiver).await;
    let (many, few) = (ids("many", 2_000), ids("few", FEW));
    publish(&client, &many, &few).await;
    all_settled(&client, &receiver, 2_000).await;
    assert_eq!(assert_all_delivered(&receiver, &many, &few, "two replicas"), 0);
    let mut shares = Vec::new();
    let (mut envelopes, mut moved, mut redriven) = (0.0, 0.0, 0.0);
    for hub in &hubs {
        shares.push(delivered(hub).await);
        envelopes += hub.metric("hub_envelopes_total", &[]).await;
        moved += hub.metric("hub_envelopes_spilled_total", &[]).await;
        redriven += hub.metric("hub_redriven_total", &[]).await;
    }
    println!("delivered by each: {shares:?}; {redriven} redriven, {moved} moved to an own lane");
    assert!(shares.iter().all(|share| *share > 600.0), "each delivers its part of 6,000: {shares:?}");
    // Of each envelope, at most two failures are not part of three that end in a redrive.
    let least = (FAILURES - FEW * (MAX_DELIVER - 1)) / MAX_DELIVER;
    assert!(
        redriven >= least as f64,
        "{redriven} were dead-lettered and redriven, at least {least} are expected"
    );
    assert_eq!(envelopes as usize, 6_000 + FEW, "each event was fanned out once");
    let written = client.stream(OUTBOX).await.state.last_sequence;
    assert_eq!(written, (envelopes + moved + redriven) as u64, "nothing was written to the outbox twice");
}

#[tokio::test]
async fn a_retry_after_received_by_one_replica_also_holds_in_the_other() {
    const WAIT: Duration = Duration::from_secs(5);
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hubs = [
        Hub::serve(&broker.url(), &TestSettings::quick(), &[]),
        Hub::serve(&broker.url(), &TestSettings::quick(), &[]),
    ];
    for hub in &mut hubs {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    let wanted = ["slow", "other"].map(|id| subscription(id, &["user.>"], &receiver.url(&format!("/{id}"))));
    client.subscribe(wanted).await;
    let refusal = Box::new(Behaviour::retry_after(429, WAIT.as_secs()));
    receiver.set("/slow", Behaviour::First(1, refusal, Box::new(Behaviour::ok())));
    client.publish("user.created", "first").await;
    let refused = receiver.wait_for("/slow", 1, STEP).await[0].arrived_at;
    for hub in &hubs {
        hub.metric_above("hub_subscriptions_held", &[], 0.0, STEP).await;
    }
    // One of the two received the 429, the other its notice.
    let mut answered = 0.0;
    for hub in &hubs {
        let throttled = hub.metric("hub_failures_total", &["kind=\"throttled\""]).await;
        assert!(throttled <= 1.0, "{throttled}");
        answered += throttled;
    }
    assert_eq!(answered, 1.0);

    client.publish_all("user.created", &ids("more", 200)).await;
    receiver.wait_accepted("/other", 201, STEP).await;
    receiver.wait_accepted("/slow", 201, STEP).await;
    let received = receiver.received("/slow");
    let early = received[1..].iter().filter(|request| request.arrived_at < refused + WAIT).count();
    assert_eq!(early, 0, "requests before the moment that the endpoint named");
    assert_eq!(received.len(), 202, "each came once, but for the first");
    for hub in &hubs {
        assert!(hub.metric("hub_deliveries_total", &["outcome=\"delivered\""]).await > 50.0, "both deliver");
    }
    broker.nothing_pending_within(STEP).await;

    // A forged or invalid notice neither exceeds the bound nor stops a hub.
    for notice in ["soon", "{\"wait_ms\":-1}"] {
        client.js.publish_plain("hub.redrive.held.other", notice.into()).await.expect("published");
    }
    client.publish("user.created", "last").await;
    receiver.wait_accepted("/other", 202, STEP).await;
}

#[tokio::test]
async fn a_cluster_that_loses_a_node_in_the_middle_loses_no_pair() {
    let options = BrokerOptions { server_name: Some("node".to_owned()), ..BrokerOptions::new(nats_server()) };
    let mut cluster = BrokerCluster::start(3, &options).await.unwrap_or_else(|error| panic!("{error}"));
    let receiver = receiver().await;
    let settings = settings().with(|settings| settings.nats.replicas = Some(3));
    let url = cluster.url();
    let mut hubs = [Hub::serve(&url, &settings, &[]), Hub::serve(&url, &settings, &[])];
    for hub in &mut hubs {
        hub.ready().await;
    }
    let client = TestClient::connect(&url).await;
    assert_eq!(client.stream(OUTBOX).await.config.num_replicas, 3);
    subscribe(&client, &receiver).await;
    let (many, few) = (ids("many", 1_000), ids("few", FEW));
    let kill_one = async {
        receiver.wait_accepted("/steady", 200, STEP).await;
        cluster.server(0).expect("three nodes").kill().await.expect("the node is killed");
        receiver.accepted("/steady").len()
    };
    let ((), before) = tokio::join!(publish(&client, &many, &few), kill_one);
    assert!(before < 1_000, "there was work left when the node was killed");
    all_settled(&client, &receiver, 1_000).await;
    let doubles = assert_all_delivered(&receiver, &many, &few, "a cluster without one of its nodes");
    println!("{doubles} delivered again");
}
