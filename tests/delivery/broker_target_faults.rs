//! Subscriptions with a broker that is down, hangs, loses its connection or rejects messages: retries, dead letters,
//! replay and isolation work as with an endpoint.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::stream;
use integration_hub::domain::dead_letter::DeadLetterState;
use integration_hub::domain::outcome::{Fault, Reason};
use integration_hub::nats::DeadLetterEntry;
use krafka::consumer::AutoOffsetReset;
use lapin::options::BasicGetOptions;
use lapin::types::FieldTable;
use serde_json::{Value, json};

use crate::support::broker_target::{arrived, dead_letters, entries, event_ids, to_broker};
use crate::support::relay::{SOON, partner, stored};
use crate::support::settings::{Domain, external};
use crate::support::{
    Direction, FaultProxy, Hub, KafkaServer, RabbitMq, Receiver, RedisServer, TestBroker, TestClient,
    TestSettings, eventually, ids, subscription,
};

/// Redrives soon and often.
fn redriving() -> TestSettings {
    TestSettings::quick().with_redrives([1, 2, 2, 2, 2, 2].map(Duration::from_secs))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_that_is_down_misses_is_dead_lettered_and_replayed() {
    let Some(mut redis) = RedisServer::start(&[]).await else { return };
    let broker = TestBroker::start().await;
    let settings = TestSettings::quick().with_brokers([external("partner_events", "redis", &redis.url())]);
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([to_broker("crm", &["user.>"], "partner_events", "orders")]).await;
    client.publish("user.created", "before").await;
    arrived(&redis, "orders", 1).await;

    redis.kill().await;
    let missed = ids("missed", 20);
    client.publish_all("user.created", &missed).await;
    let letters = dead_letters(&client, "crm", missed.len()).await;
    for DeadLetterEntry { letter, .. } in &letters {
        assert_eq!((letter.reason, letter.fault, letter.attempts), (Reason::Exhausted, Fault::Subscriber, 3));
        assert_eq!((letter.state, letter.last_status), (DeadLetterState::Parked, None));
        let error = letter.last_error.as_deref().unwrap_or_default();
        assert!(error.starts_with("the broker is unavailable: "), "{error}");
    }
    broker.nothing_pending_within(SOON).await;
    let kind = ["kind=\"broker-unavailable\"", "fault=\"subscriber\""];
    assert_eq!(hub.metric("hub_failures_total", &kind).await, 3.0 * missed.len() as f64);

    redis.restart().await;
    hub.cli_ok(&["dlt", "replay", "--subscription", "crm"]).await;
    let messages = arrived(&redis, "orders", 1 + missed.len()).await;
    let expected: BTreeSet<&str> = missed.iter().map(String::as_str).chain(["before"]).collect();
    assert_eq!(event_ids(&messages), expected);
    dead_letters(&client, "crm", 0).await;
    broker.nothing_pending_within(SOON).await;
    assert!(hub.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_broker_delays_no_other() {
    const EVENTS: usize = 500;
    let Some(redis) = RedisServer::start(&[]).await else { return };
    let proxy = FaultProxy::start(&redis.url()).await;
    let (broker, other, receiver) = (TestBroker::start().await, partner().await, Receiver::start().await);
    let brokers =
        [external("hanging", "redis", &proxy.url("redis")), external("other", "nats", &other.url())];
    // The hanging broker could fill this pool by itself; a redrive delivers the missing envelopes.
    let domain =
        Domain { name: "user-lifecycle".to_owned(), events: vec!["user.>".to_owned()], concurrency: Some(8) };
    let settings = redriving().with_brokers(brokers).with(|settings| settings.domains.push(domain));
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let mut hangs = to_broker("hangs", &["user.>"], "hanging", "orders");
    hangs["delivery"]["timeout"] = json!("1s");
    client
        .subscribe([
            hangs,
            to_broker("to-nats", &["user.>"], "other", "user.orders"),
            subscription("to-url", &["user.>"], &receiver.url("/url")),
        ])
        .await;
    // The broker works first, so that an established connection hangs.
    client.publish("user.created", "before").await;
    arrived(&redis, "orders", 1).await;
    proxy.freeze();

    // Takes longer than an attempt and than the broker client's own timeouts.
    let events = ids("beside", EVENTS);
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    for id in &events {
        ticks.tick().await;
        client.publish("user.created", id).await;
    }
    // If the others waited for its timeouts, eight at a time, they would be late by more than a minute, longer than
    // these waits.
    receiver.wait_accepted("/url", 1 + EVENTS, SOON).await;
    stored(&other, "PARTNER", 1 + EVENTS as u64).await;
    let timeouts = hub.metric("hub_failures_total", &["kind=\"timeout\""]).await;
    assert!(timeouts > 3.0, "the broker that hangs was tried meanwhile: {timeouts}");
    assert_eq!(entries(&redis, "orders").await.len(), 1, "it hangs");

    proxy.thaw();
    let expected: BTreeSet<&str> = events.iter().map(String::as_str).chain(["before"]).collect();
    eventually(Duration::from_secs(120), "all envelopes arrive after the hang", async || {
        let messages = entries(&redis, "orders").await;
        let found = event_ids(&messages);
        if found == expected { Ok(()) } else { Err(found.len()) }
    })
    .await;
    broker.nothing_pending_within(SOON).await;
    dead_letters(&client, "hangs", 0).await;
    assert!(hub.terminate().await.success());
}

/// The timeouts of the broker's client, which would detect it, are longer than an attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_fell_silent_is_given_up_though_each_attempt_is_short() {
    let Some(redis) = RedisServer::start(&[]).await else { return };
    let proxy = FaultProxy::start(&redis.url()).await;
    let broker = TestBroker::start().await;
    let settings = redriving().with_brokers([external("partner_events", "redis", &proxy.url("redis"))]);
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let mut short = to_broker("crm", &["user.>"], "partner_events", "orders");
    short["delivery"]["timeout"] = json!("300ms");
    client.subscribe([short]).await;
    client.publish("user.created", "before").await;
    arrived(&redis, "orders", 1).await;

    // From here on this connection is open and silent; a new one would work.
    let silent = proxy.cut_before(Direction::ToServer, "XADD");
    let events = ids("after", 5);
    client.publish_all("user.created", &events).await;
    silent.fired(SOON).await;
    let expected: BTreeSet<&str> = events.iter().map(String::as_str).chain(["before"]).collect();
    eventually(SOON, "all envelopes arrive over another connection", async || {
        let messages = entries(&redis, "orders").await;
        let found = event_ids(&messages);
        if found == expected { Ok(()) } else { Err(found.len()) }
    })
    .await;
    assert!(hub.metric("hub_failures_total", &["kind=\"timeout\""]).await > 0.0);
    broker.nothing_pending_within(SOON).await;
    assert!(hub.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_and_kafka_are_targets_as_well_and_lose_a_silent_connection() {
    let Some(rabbit) = RabbitMq::start("").await else { return };
    let Some(kafka) = KafkaServer::start().await else { return };
    rabbit.declare("orders", FieldTable::default()).await;
    kafka.create_topic("orders", 1).await;
    let rabbit_proxy = FaultProxy::start(&format!("127.0.0.1:{}", rabbit.port())).await;
    let broker = TestBroker::start().await;
    let to_rabbit = external("rabbit", "amqp", &rabbit_proxy.url("amqp")).with(|broker| {
        broker.user = Some("guest".to_owned());
        broker.password = Some("guest".to_owned());
    });
    let settings = redriving().with_brokers([to_rabbit, external("kafka", "kafka", &kafka.url())]);
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let short = |id: &str, name: &str| {
        let mut short = to_broker(id, &["user.>"], name, "orders");
        short["delivery"]["timeout"] = json!("500ms");
        short
    };
    client.subscribe([short("to-rabbit", "rabbit"), short("to-kafka", "kafka")]).await;
    client.publish("user.created", "event-1").await;

    let channel = rabbit.channel().await;
    let from_rabbit = async |event: &str| {
        eventually(SOON, &format!("RabbitMQ has {event}"), async || {
            let got = channel.basic_get("orders".into(), BasicGetOptions { no_ack: true }).await;
            let Some(got) = got.expect("RabbitMQ answers") else { return Err("nothing yet".to_owned()) };
            let id = got.delivery.properties.message_id().as_ref().expect("an id").to_string();
            assert!(id.starts_with("env_"), "{id}");
            let body: Value = serde_json::from_slice(&got.delivery.data).expect("JSON");
            if body["metadata"]["headers"]["id"] == event { Ok(body) } else { Err(body.to_string()) }
        })
        .await
    };
    let consumer = kafka.client().await;
    let consumer = consumer.consumer_without_group().auto_offset_reset(AutoOffsetReset::Earliest);
    let consumer = consumer.build().await.expect("a consumer");
    consumer.assign("orders", vec![0]).await.expect("assigned");
    let from_kafka = async |event: &str| {
        eventually(SOON, &format!("Kafka has {event}"), async || {
            let records = consumer.poll(Duration::from_millis(200)).await.expect("polled");
            let mut bodies = records
                .into_iter()
                .filter_map(|record| serde_json::from_slice::<Value>(&record.value.expect("a value")).ok());
            bodies.find(|body| body["metadata"]["headers"]["id"] == event).ok_or("not yet")
        })
        .await
    };
    assert_eq!(from_rabbit("event-1").await, from_kafka("event-1").await);

    let silent = [&rabbit_proxy, kafka.proxy()].map(|proxy| proxy.cut_before(Direction::ToServer, "event-2"));
    client.publish("user.created", "event-2").await;
    for silent in silent {
        silent.fired(SOON).await;
    }
    assert_eq!(from_rabbit("event-2").await, from_kafka("event-2").await);
    broker.nothing_pending_within(SOON).await;
    assert!(hub.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_be_published_is_dead_lettered_at_once() {
    let (broker, other) = (TestBroker::start().await, TestBroker::start().await);
    let config = stream::Config {
        name: "PARTNER".to_owned(),
        subjects: vec!["user.>".to_owned()],
        max_message_size: 2_000,
        ..stream::Config::default()
    };
    other.jetstream().await.create_stream(config).await.expect("the stream is made");
    let settings = TestSettings::quick().with_brokers([external("other", "nats", &other.url())]);
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe([
            to_broker("fits-not", &["user.>"], "other", "user.orders"),
            to_broker("no-stream", &["user.created"], "other", "nobody.takes.this"),
            to_broker("gone", &["user.created"], "taken_out", "orders"),
        ])
        .await;
    client
        .context
        .publish("hub.events.user.renamed", json!({"name": "x".repeat(4_000)}).to_string().into())
        .await
        .expect("sent")
        .await
        .expect("stored");
    client.publish("user.created", "small").await;

    let letter = dead_letters(&client, "fits-not", 1).await.remove(0).letter;
    assert_eq!((letter.reason, letter.fault, letter.attempts), (Reason::Permanent, Fault::Subscriber, 1));
    assert_eq!(
        (letter.event_key.as_str(), letter.state, letter.last_status),
        ("user.renamed", DeadLetterState::Parked, None)
    );
    let error = letter.last_error.unwrap_or_default();
    assert!(error.starts_with("the broker will never accept the message: "), "{error}");
    assert_eq!(event_ids(&[stored(&other, "PARTNER", 1).await.remove(0).body]), BTreeSet::from(["small"]));

    // Retried, because the stream may be created later.
    let letter = dead_letters(&client, "no-stream", 1).await.remove(0).letter;
    assert_eq!((letter.reason, letter.fault, letter.attempts), (Reason::Exhausted, Fault::Subscriber, 3));
    assert!(letter.last_error.unwrap_or_default().starts_with("the broker rejects the message: "));
    // Removed from the settings: a failure of the hub, retried because the broker may be configured again.
    let letter = dead_letters(&client, "gone", 1).await.remove(0).letter;
    assert_eq!((letter.reason, letter.fault, letter.attempts), (Reason::Exhausted, Fault::Hub, 3));
    let error = letter.last_error.unwrap_or_default();
    assert!(error.contains("\"taken_out\"") && error.contains("other"), "{error}");
    broker.nothing_pending_within(SOON).await;
    assert!(hub.terminate().await.success());
}
