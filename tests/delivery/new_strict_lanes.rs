//! Lanes of strict orders that do not exist yet: only their own subscriptions wait for their consumers.

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use hub_testkit::broker_process::BrokerOptions;
use serde_json::json;

use super::strict::{accepted, assert_in_order, ids_of, publish_in_order, strict};
use crate::support::{
    Hub, Receiver, RequestProxy, TestBroker, TestClient, TestSettings, Treatment, eventually, free_port, ids,
    nats_server, subscription,
};

const STEP: Duration = Duration::from_secs(120);
const OUTBOX: &str = "HUB_OUTBOX_USER_LIFECYCLE";
const NOT_CREATED: &str = "consumer of a strict lane not created, its envelopes wait";

/// A hub whose requests for consumers of strict lanes are treated like this.
async fn hub_with_slow_creation(
    broker: &TestBroker,
    settings: &TestSettings,
    treatment: Treatment,
) -> (RequestProxy, Hub, TestClient) {
    let proxy = RequestProxy::bind(&broker.url()).await.expect("the proxy listens");
    proxy.set(move |subject| {
        let is_creation = subject.contains(".CONSUMER.CREATE.") && subject.contains(".lane-strict-");
        if is_creation { treatment } else { Treatment::Forward }
    });
    let mut hub = Hub::serve(&proxy.url(), settings, &[]);
    hub.ready().await;
    (proxy, hub, TestClient::connect(&broker.url()).await)
}

async fn strict_lanes(client: &TestClient) -> Vec<String> {
    let mut names = client.js.consumer_names(OUTBOX).await.expect("listed");
    names.retain(|name| name.starts_with("lane-strict-"));
    names
}

async fn events_are_committed(broker: &TestBroker) {
    eventually(STEP, "every event is committed", async || match broker.messages("HUB_EVENTS").await {
        0 => Ok(()),
        waiting => Err(waiting),
    })
    .await;
}

fn assert_all_in_order(receiver: &Receiver, count: usize, events: &[String]) {
    for number in 0..count {
        let path = format!("/strict-{number}");
        assert_in_order(&ids_of(accepted(receiver, &path, "subject")), events);
    }
}

async fn subscribe(client: &TestClient, receiver: &Receiver, count: usize) {
    let all = (0..count).map(|number| {
        let id = format!("strict-{number}");
        strict(&id, &receiver.url(&format!("/{id}")), &json!({}))
    });
    let others = [
        subscription("free", &["user.>"], &receiver.url("/free")),
        subscription("roles", &["role.>"], &receiver.url("/roles")),
    ];
    client.subscribe(all.chain(others)).await;
}

#[tokio::test]
async fn other_envelopes_go_on_while_many_strict_lanes_are_created() {
    const LANES: usize = 300;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let slow = Treatment::Delay(Duration::from_secs(2));
    let (proxy, hub, client) = hub_with_slow_creation(&broker, &TestSettings::patient(), slow).await;
    subscribe(&client, &receiver, LANES).await;
    // The first event is for all of them.
    let events = ids("event", 4);
    publish_in_order(&client, &events).await;
    client.publish_all("role.assigned", &ids("role", 50)).await;
    receiver.wait_accepted("/free", events.len(), STEP).await;
    receiver.wait_accepted("/roles", 50, STEP).await;
    let created = strict_lanes(&client).await.len();
    assert!(created < LANES, "they are created slowly");
    let labels = ["domain=\"user-lifecycle\""];
    assert!(hub.metric("hub_strict_lanes_missing", &labels).await > 0.0);
    events_are_committed(&broker).await;

    proxy.set(|_| Treatment::Forward);
    for number in 0..LANES {
        receiver.wait_accepted(&format!("/strict-{number}"), events.len(), STEP).await;
    }
    broker.nothing_pending_within(STEP).await;
    assert_all_in_order(&receiver, LANES, &events);
    assert!(
        (0..LANES).all(|number| receiver.count(&format!("/strict-{number}")) == events.len()),
        "no doubles"
    );
    assert_eq!(strict_lanes(&client).await.len(), LANES);
    eventually(STEP, "no lane is missing", async || {
        let missing = hub.metric("hub_strict_lanes_missing", &labels).await;
        if missing < 0.5 { Ok(()) } else { Err(missing) }
    })
    .await;
    assert!(!hub.log().contains(NOT_CREATED));
}

#[tokio::test]
async fn a_lane_of_a_process_that_ended_before_its_creation_is_found() {
    const LANES: usize = 3;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (proxy, mut hub, client) =
        hub_with_slow_creation(&broker, &TestSettings::quick(), Treatment::Swallow).await;
    subscribe(&client, &receiver, LANES).await;
    let events = ids("event", 20);
    publish_in_order(&client, &events).await;
    receiver.wait_accepted("/free", events.len(), STEP).await;
    events_are_committed(&broker).await;
    hub.kill().await;
    assert_eq!(strict_lanes(&client).await.len(), 0);
    proxy.set(|_| Treatment::Forward);
    hub.start();
    hub.ready().await;
    for number in 0..LANES {
        receiver.wait_accepted(&format!("/strict-{number}"), events.len(), STEP).await;
    }
    broker.nothing_pending_within(STEP).await;
    assert_all_in_order(&receiver, LANES, &events);
}

#[tokio::test]
async fn a_limit_of_consumers_stops_only_the_lanes_beyond_it() {
    const LANES: usize = 8;
    // The shared lane is one of them.
    const MOST: usize = 6;
    let mut options = BrokerOptions::new(nats_server());
    options.extra_config = format!(
        "accounts {{ HUB: {{ jetstream: {{ max_consumers: {MOST} }}, users: [{{ user: hub, password: hub }}] }} }}\n\
         no_auth_user: hub"
    );
    let broker = TestBroker::start_with(options).await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    subscribe(&client, &receiver, LANES).await;
    let mut events = ids("event", 5);
    publish_in_order(&client, &events).await;
    hub.wait_for_log(NOT_CREATED, STEP).await;
    let more = ids("later", 5);
    publish_in_order(&client, &more).await;
    events.extend(more);
    receiver.wait_accepted("/free", events.len(), STEP).await;
    let complete = || {
        let counts = (0..LANES).map(|number| receiver.count(&format!("/strict-{number}")));
        counts.filter(|count| *count == events.len()).count()
    };
    eventually(STEP, "the lanes within the limit are drained", async || match complete() {
        drained if drained == MOST - 1 => Ok(()),
        drained => Err(drained),
    })
    .await;
    events_are_committed(&broker).await;
    let log = hub.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(NOT_CREATED)).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("raise max_consumers of the NATS account"), "{}", lines[0]);

    // Room for the others.
    let stream = client.context.get_stream(OUTBOX).await.expect("the outbox");
    for lane in strict_lanes(&client).await.iter().take(LANES - (MOST - 1)) {
        stream.delete_consumer(lane).await.expect("deleted");
    }
    for number in 0..LANES {
        receiver.wait_accepted(&format!("/strict-{number}"), events.len(), STEP).await;
    }
    broker.nothing_pending_within(STEP).await;
    assert_all_in_order(&receiver, LANES, &events);
}

/// Nobody knows which subscriptions a resolver has. The envelopes themselves show that a lane belongs to a strict order.
#[tokio::test]
async fn with_a_resolver_the_lane_of_a_strict_order_is_found_among_many() {
    const OTHERS: usize = 256;
    let (registry, broker) = (TestBroker::start().await, TestBroker::start().await);
    let receiver = Receiver::start().await;
    let port = free_port();
    let listen = TestSettings::default().with(|settings| {
        settings.subscriptions.listen = Some(format!("127.0.0.1:{port}"));
        settings.subscriptions.listen_anonymous = Some(true);
    });
    let mut answering = Hub::serve(&registry.url(), &listen, &["--role", "subscription-resolver"]);
    answering.ready().await;
    subscribe(&TestClient::connect(&registry.url()).await, &receiver, 1).await;

    let asking = TestSettings::quick().with(|settings| {
        settings.subscriptions.source = Some("grpc".to_owned());
        settings.subscriptions.grpc_url = Some(format!("http://127.0.0.1:{port}"));
    });
    let (proxy, mut hub, client) = hub_with_slow_creation(&broker, &asking, Treatment::Swallow).await;
    let outbox = client.context.get_stream(OUTBOX).await.expect("the outbox");
    for number in 0..OTHERS {
        let config = pull::Config {
            durable_name: Some(format!("lane-own-other-{number}")),
            filter_subject: format!("hub.outbox.user-lifecycle.own-other-{number}.*"),
            ..pull::Config::default()
        };
        outbox.create_consumer(config).await.expect("created");
    }
    // Somebody makes up lanes.
    for (lane, body) in [("strict-0-nobody", "junk"), ("strict-1-strict-0", "{}")] {
        let subject = format!("hub.outbox.user-lifecycle.{lane}.nobody");
        client.context.publish(subject, body.into()).await.expect("sent").await.expect("stored");
    }
    let events = ids("event", 20);
    publish_in_order(&client, &events).await;
    receiver.wait_accepted("/free", events.len(), STEP).await;
    events_are_committed(&broker).await;
    // It ends before it has created the lane.
    hub.kill().await;
    assert!(strict_lanes(&client).await.is_empty());
    proxy.set(|_| Treatment::Forward);
    hub.start();
    hub.ready().await;
    receiver.wait_accepted("/strict-0", events.len(), STEP).await;
    assert_all_in_order(&receiver, 1, &events);
    let lanes = strict_lanes(&client).await;
    assert_eq!((lanes.len(), lanes[0].contains("nobody")), (1, false), "{lanes:?}");
}
