//! Subscriptions that name a broker instead of a URL, on real brokers: the same retry, dead letters,
//! replay and isolation as an endpoint has.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream;
use integration_hub::domain::dead_letter::State;
use integration_hub::domain::outbox::RaisedEvent;
use integration_hub::domain::outcome::{Fault, Reason};
use integration_hub::nats::DeadLetterEntry;
use krafka::consumer::AutoOffsetReset;
use lapin::options::BasicGetOptions;
use lapin::types::FieldTable;
use serde_json::{Value, json};
use support::relay::{SOON, external, partner, settings, stored};
use support::{
    ApiClient, Direction, FaultProxy, Hub, KafkaServer, QUICK, RabbitMq, Receiver, RedisServer, TestBroker,
    TestClient, TestDatabase, eventually, free_port, ids, subscription,
};

const DOMAIN: &str = "user-lifecycle";

/// A subscription that wants some event keys in a stream of a broker.
fn to_broker(id: &str, events: &[&str], broker: &str, stream: &str) -> Value {
    json!({"id": id, "events": events, "delivery": {"broker": broker, "stream": stream, "timeout": "2s"}})
}

/// The messages in a Redis stream.
async fn entries(redis: &RedisServer, stream: &str) -> Vec<Value> {
    let mut connection = redis.connect().await;
    let entries: Vec<(String, Vec<(String, String)>)> = redis::cmd("XRANGE")
        .arg(stream)
        .arg("-")
        .arg("+")
        .query_async(&mut connection)
        .await
        .expect("Redis answers");
    let bodies = entries.into_iter().map(|(_, fields)| {
        let [(name, body)] = &fields[..] else { panic!("one field each: {fields:?}") };
        assert_eq!(name, "data");
        serde_json::from_str(body).expect("an envelope is JSON")
    });
    bodies.collect()
}

/// Waits until a Redis stream has so many messages.
async fn arrived(redis: &RedisServer, stream: &str, count: usize) -> Vec<Value> {
    eventually(SOON, &format!("{count} messages are in {stream}"), async || {
        let found = entries(redis, stream).await;
        if found.len() >= count { Ok(found) } else { Err(found.len()) }
    })
    .await
}

fn event_ids(messages: &[Value]) -> BTreeSet<&str> {
    messages.iter().filter_map(|body| body["metadata"]["headers"]["id"].as_str()).collect()
}

/// Waits for the dead letters of a subscription.
async fn dead_letters(client: &TestClient, subscription: &str, count: usize) -> Vec<DeadLetterEntry> {
    eventually(SOON, &format!("{count} dead letters of {subscription}"), async || {
        let mut letters = client.dead_letters(DOMAIN).await;
        letters.retain(|entry| entry.letter.subscription == subscription);
        if letters.len() == count { Ok(letters) } else { Err(letters.len()) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_arrives_in_redis_and_nats_in_the_stripped_envelope() {
    let Some(redis) = RedisServer::start(&[]).await else { return };
    let (broker, other, receiver) = (TestBroker::start().await, partner().await, Receiver::start().await);
    let brokers =
        external("partner_events", "redis", &redis.url(), "") + &external("other", "nats", &other.url(), "");
    let mut hub = Hub::serve(&broker.url(), &format!("{QUICK}\n{brokers}"), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe([
            to_broker("to-redis", &["user.>"], "partner_events", "orders"),
            to_broker("to-nats", &["user.>"], "other", "user.orders"),
            subscription("to-url", &["user.>"], &receiver.url("/url")),
        ])
        .await;
    client.publish("user.created", "e1").await;

    let in_redis = arrived(&redis, "orders", 1).await.remove(0);
    let in_nats = stored(&other, "PARTNER", 1).await.remove(0);
    receiver.wait_accepted("/url", 1, SOON).await;
    broker.nothing_owed_within(SOON).await;
    let time = in_redis["metadata"]["headers"]["time"].clone();
    assert!(time.is_string());
    assert_eq!(
        in_redis,
        json!({
            "data": {"user_id": "e1"},
            "metadata": {
                "headers": {"id": "e1", "type": "user.created", "time": time, "stream": null, "traceparent": null},
                "domain": {"fqn": null, "kind": "EVENT", "version": 1, "sequence_id": null,
                           "correlation_id": null, "causation_id": null, "origin_stream": null,
                           "stream_category": null},
                "envelope": {"specversion": "1.0"},
                "extensions": {"source": "nats", "tenant": "default"}
            }
        })
    );
    assert_eq!((in_nats.subject.as_str(), &in_nats.body), ("user.orders", &in_redis));

    // The log, the trace and the metrics are those of any delivery, without a status.
    let trace = eventually(SOON, "the attempts are logged", async || {
        // Nothing at all may be known yet: exit code 1.
        let output = hub.cli(&["event", "trace", "e1", "--output", "json"]).await;
        let trace: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let attempts = trace["timeline"].as_array().into_iter().flatten();
        let attempts: Vec<Value> = attempts.filter(|step| step["what"] == "attempt").cloned().collect();
        if attempts.len() == 3 { Ok(attempts) } else { Err(attempts) }
    })
    .await;
    let of = |id: &str| trace.iter().find(|step| step["subscription"] == id).expect("it was tried");
    assert_eq!((&of("to-nats")["outcome"], &of("to-nats")["status"]), (&json!("delivered"), &Value::Null));
    assert_eq!((&of("to-url")["outcome"], &of("to-url")["status"]), (&json!("delivered"), &json!(200)));
    assert_eq!(of("to-nats")["envelope"], in_nats.id.as_str(), "the message id is the envelope's");
    assert_eq!(hub.metric("hub_failures_total", &[]).await, 0.0);
    assert!(hub.terminate().await.success());
}

/// An event of a producer's outbox: what a subscription sends is what the relay sends.
async fn an_outbox_event_is_sent_as_its_external_row(database: TestDatabase) {
    let Some(redis) = RedisServer::start(&[]).await else { return };
    database.outbox(&["partner_events"]).await;
    let (broker, rest) = (
        TestBroker::start().await,
        external("partner_events", "redis", &redis.url(), "destination = \"rows\""),
    );
    let rest = format!("{QUICK}\n{rest}");
    let mut hub = Hub::serve(&broker.url(), &settings(&database.url(), "", &rest), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([to_broker("all", &["user.>"], "partner_events", "all")]).await;
    let events = [
        json!({"id": "small", "type": "user.created", "stream": "user-u1", "data": [1.5, null], "published": true}),
        json!({
            "id": "full", "type": "user.renamed", "stream": "user-u1", "data": {"name": "ä \"quoted\""},
            "source": "crm", "time": "2026-01-31T12:00:00.123+01:00", "tenant": "default", "published": true,
            "priority": "bulk", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "correlation_id": "c1", "causation_id": "c0", "version": 3, "fqn": "Crm.UserRenamed",
            "kind": "EVENT", "sequence_id": "0.7", "origin_stream": "import-1", "stream_category": "crm::user",
            "expected_version": 6, "asynchronous": false, "event_store": {"position": 9},
            "extensions": {"partner_tier": "gold", "nested": {"list": [1, 2.25, {"deep": true}]}, "empty": ""}
        }),
    ];
    for event in &events {
        let event = RaisedEvent::from_json(&event.to_string()).expect("the event is good");
        database.publish(&[event], true).await.expect("it is raised");
    }

    let by_id = |mut messages: Vec<Value>| {
        messages.sort_by_key(|body| body["metadata"]["headers"]["id"].to_string());
        messages
    };
    let rows = by_id(arrived(&redis, "rows", 2).await);
    let sent = by_id(arrived(&redis, "all", 2).await);
    assert_eq!(event_ids(&rows), BTreeSet::from(["full", "small"]));
    assert_eq!(sent, rows);
    let full = &sent[0]["metadata"];
    assert_eq!(
        (
            &full["domain"]["fqn"],
            &full["extensions"]["nested"]["list"][1],
            &full["extensions"]["partner_tier"]
        ),
        (&json!("Crm.UserRenamed"), &json!(2.25), &json!("gold"))
    );
    for internal in ["expected_version", "asynchronous", "priority", "published"] {
        assert!(full["domain"].get(internal).is_none(), "{internal} stays inside");
    }
    assert!(full.get("event_store").is_none() && full["envelope"].get("checksum").is_none());
    assert!(hub.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_event_of_postgres_is_sent_as_its_external_row() {
    let Some(database) = TestDatabase::postgres().await else { return };
    an_outbox_event_is_sent_as_its_external_row(database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_event_of_sqlite_is_sent_as_its_external_row() {
    let Some(database) = TestDatabase::sqlite().await else { return };
    an_outbox_event_is_sent_as_its_external_row(database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_that_is_down_misses_is_dead_lettered_and_replayed() {
    let Some(mut redis) = RedisServer::start(&[]).await else { return };
    let broker = TestBroker::start().await;
    let brokers = external("partner_events", "redis", &redis.url(), "");
    let mut hub = Hub::serve(&broker.url(), &format!("{QUICK}\n{brokers}"), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([to_broker("crm", &["user.>"], "partner_events", "orders")]).await;
    client.publish("user.created", "before").await;
    arrived(&redis, "orders", 1).await;

    redis.process.kill().await;
    let missed = ids("missed", 20);
    client.publish_all("user.created", &missed).await;
    let letters = dead_letters(&client, "crm", missed.len()).await;
    for DeadLetterEntry { letter, .. } in &letters {
        assert_eq!((letter.reason, letter.fault, letter.attempts), (Reason::Exhausted, Fault::Subscriber, 3));
        assert_eq!((letter.state, letter.last_status), (State::Parked, None));
        let error = letter.last_error.as_deref().unwrap_or_default();
        assert!(error.starts_with("the broker is not available: "), "{error}");
    }
    broker.nothing_owed_within(SOON).await;
    let kind = ["kind=\"broker-unavailable\"", "fault=\"subscriber\""];
    assert_eq!(hub.metric("hub_failures_total", &kind).await, 3.0 * missed.len() as f64);

    redis.process.restart().await;
    hub.cli_ok(&["dlt", "replay", "--subscription", "crm"]).await;
    let messages = arrived(&redis, "orders", 1 + missed.len()).await;
    let expected: BTreeSet<&str> = missed.iter().map(String::as_str).chain(["before"]).collect();
    assert_eq!(event_ids(&messages), expected);
    dead_letters(&client, "crm", 0).await;
    broker.nothing_owed_within(SOON).await;
    assert!(hub.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_slows_nobody_else() {
    const EVENTS: usize = 500;
    let Some(redis) = RedisServer::start(&[]).await else { return };
    let proxy = FaultProxy::start(&redis.url()).await;
    let (broker, other, receiver) = (TestBroker::start().await, partner().await, Receiver::start().await);
    let brokers =
        external("hanging", "redis", &proxy.url("redis"), "") + &external("other", "nats", &other.url(), "");
    // A pool that the one that hangs could fill by itself, and a redrive that brings back what it misses.
    let domain = "[[domains]]\nname = \"user-lifecycle\"\nevents = [\"user.>\"]\nconcurrency = 8\n";
    let quick = QUICK.replace("schedule = []", "schedule = [\"1s\", \"2s\", \"2s\", \"2s\", \"2s\", \"2s\"]");
    let mut hub = Hub::serve(&broker.url(), &format!("{quick}\n{domain}\n{brokers}"), &[]);
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
    // It was well before, so that it is a connection that falls silent.
    client.publish("user.created", "before").await;
    arrived(&redis, "orders", 1).await;
    proxy.freeze();

    // For longer than attempts and the broker's own timeouts last.
    let events = ids("beside", EVENTS);
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    for id in &events {
        ticks.tick().await;
        client.publish("user.created", id).await;
    }
    let published = Instant::now();
    receiver.wait_accepted("/url", 1 + EVENTS, SOON).await;
    stored(&other, "PARTNER", 1 + EVENTS as u64).await;
    let took = published.elapsed();
    let timeouts = hub.metric("hub_failures_total", &["kind=\"timeout\""]).await;
    println!("{EVENTS} events beside a broker that hangs: {took:?} after the last, {timeouts} timeouts");
    assert!(timeouts > 3.0, "it was tried all the while: {timeouts}");
    // Behind its timeouts, eight at a time, they would be some hundred seconds late.
    assert!(took < Duration::from_secs(3), "the others have theirs: {took:?}");
    assert_eq!(entries(&redis, "orders").await.len(), 1, "it hangs");

    proxy.thaw();
    let expected: BTreeSet<&str> = events.iter().map(String::as_str).chain(["before"]).collect();
    eventually(Duration::from_secs(120), "all of it arrives where it hung", async || {
        let messages = entries(&redis, "orders").await;
        let found = event_ids(&messages);
        if found == expected { Ok(()) } else { Err(found.len()) }
    })
    .await;
    broker.nothing_owed_within(SOON).await;
    dead_letters(&client, "hangs", 0).await;
    assert!(hub.terminate().await.success());
}

/// The broker's own timeouts, which would find it out, are longer than an attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_fell_silent_is_given_up_though_each_attempt_is_short() {
    let Some(redis) = RedisServer::start(&[]).await else { return };
    let proxy = FaultProxy::start(&redis.url()).await;
    let broker = TestBroker::start().await;
    let brokers = external("partner_events", "redis", &proxy.url("redis"), "");
    let quick = QUICK.replace("schedule = []", "schedule = [\"1s\", \"2s\", \"2s\", \"2s\", \"2s\", \"2s\"]");
    let mut hub = Hub::serve(&broker.url(), &format!("{quick}\n{brokers}"), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let mut short = to_broker("crm", &["user.>"], "partner_events", "orders");
    short["delivery"]["timeout"] = json!("300ms");
    client.subscribe([short]).await;
    client.publish("user.created", "before").await;
    arrived(&redis, "orders", 1).await;

    // From here on this one connection is open and silent; a new one would be served.
    let silent = proxy.cut_before(Direction::ToServer, "XADD");
    let events = ids("after", 5);
    client.publish_all("user.created", &events).await;
    silent.fired(SOON).await;
    let expected: BTreeSet<&str> = events.iter().map(String::as_str).chain(["before"]).collect();
    eventually(SOON, "all of it arrives over another connection", async || {
        let messages = entries(&redis, "orders").await;
        let found = event_ids(&messages);
        if found == expected { Ok(()) } else { Err(found.len()) }
    })
    .await;
    assert!(hub.metric("hub_failures_total", &["kind=\"timeout\""]).await > 0.0);
    broker.nothing_owed_within(SOON).await;
    assert!(hub.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_and_kafka_are_targets_as_well_and_lose_a_silent_connection() {
    let Some(rabbit) = RabbitMq::start("").await else { return };
    let Some(kafka) = KafkaServer::start().await else { return };
    rabbit.declare("orders", FieldTable::default()).await;
    kafka.create_topic("orders", 1).await;
    let rabbit_proxy = FaultProxy::start(&format!("127.0.0.1:{}", rabbit.process.port())).await;
    let broker = TestBroker::start().await;
    let brokers =
        external("rabbit", "amqp", &rabbit_proxy.url("amqp"), "user = \"guest\"\npassword = \"guest\"")
            + &external("kafka", "kafka", &kafka.url(), "");
    let quick = QUICK.replace("schedule = []", "schedule = [\"1s\", \"2s\", \"2s\", \"2s\", \"2s\", \"2s\"]");
    let mut hub = Hub::serve(&broker.url(), &format!("{quick}\n{brokers}"), &[]);
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

    let silent = [&rabbit_proxy, &kafka.proxy].map(|proxy| proxy.cut_before(Direction::ToServer, "event-2"));
    client.publish("user.created", "event-2").await;
    for silent in silent {
        silent.fired(SOON).await;
    }
    assert_eq!(from_rabbit("event-2").await, from_kafka("event-2").await);
    broker.nothing_owed_within(SOON).await;
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
    let brokers = external("other", "nats", &other.url(), "");
    let mut hub = Hub::serve(&broker.url(), &format!("{QUICK}\n{brokers}"), &[]);
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
        ("user.renamed", State::Parked, None)
    );
    let error = letter.last_error.unwrap_or_default();
    assert!(error.starts_with("the broker can never take the message as it is: "), "{error}");
    assert_eq!(event_ids(&[stored(&other, "PARTNER", 1).await.remove(0).body]), BTreeSet::from(["small"]));

    // Refused for now: there may be a stream tomorrow.
    let letter = dead_letters(&client, "no-stream", 1).await.remove(0).letter;
    assert_eq!((letter.reason, letter.fault, letter.attempts), (Reason::Exhausted, Fault::Subscriber, 3));
    assert!(letter.last_error.unwrap_or_default().starts_with("the broker refuses the message: "));
    // The settings do not know it any more: the hub's own fault, and it may be put back.
    let letter = dead_letters(&client, "gone", 1).await.remove(0).letter;
    assert_eq!((letter.reason, letter.fault, letter.attempts), (Reason::Exhausted, Fault::Hub, 3));
    let error = letter.last_error.unwrap_or_default();
    assert!(error.contains("\"taken_out\"") && error.contains("other"), "{error}");
    broker.nothing_owed_within(SOON).await;
    assert!(hub.terminate().await.success());
}

/// Subscriptions resolved elsewhere: the envelope carries the broker's name, and the hub that delivers has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_resolver_may_name_a_broker() {
    let (registry, broker, other) = (TestBroker::start().await, TestBroker::start().await, partner().await);
    let port = free_port();
    let listen = format!("[subscriptions]\nlisten = \"127.0.0.1:{port}\"\nlisten_anonymous = true\n");
    let mut answering = Hub::serve(&registry.url(), &listen, &["--role", "subscription-resolver"]);
    answering.ready().await;
    let elsewhere = TestClient::connect(&registry.url()).await;
    elsewhere.subscribe([to_broker("to-nats", &["user.>"], "other", "user.orders")]).await;

    let brokers = external("other", "nats", &other.url(), "");
    let source = format!("[subscriptions]\nsource = \"grpc\"\ngrpc_url = \"http://127.0.0.1:{port}\"\n");
    let mut hub = Hub::serve(&broker.url(), &format!("{QUICK}\n{source}\n{brokers}"), &[]);
    hub.ready().await;
    TestClient::connect(&broker.url()).await.publish("user.created", "e1").await;
    let message = stored(&other, "PARTNER", 1).await.remove(0);
    assert_eq!(
        (message.subject.as_str(), event_ids(&[message.body])),
        ("user.orders", BTreeSet::from(["e1"]))
    );
    broker.nothing_owed_within(SOON).await;
    assert!(hub.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_and_the_api_check_show_and_test_it() {
    let Some(redis) = RedisServer::start(&[]).await else { return };
    let broker = TestBroker::start().await;
    let brokers = external("partner_events", "redis", &redis.url(), "");
    let mut hub = Hub::serve(&broker.url(), &format!("{QUICK}\n{brokers}"), &["--role", "api"]);
    hub.ready().await;
    let file = hub.folder().join("crm.json");
    let path = file.to_str().expect("UTF-8").to_owned();
    let write = |document: &Value| std::fs::write(&file, document.to_string()).expect("the file is written");

    write(&to_broker("crm", &["user.*"], "partner", "orders"));
    let refused = hub.cli(&["subscription", "apply", "-f", &path]).await;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{error}");
    assert!(error.contains("delivery.broker: ") && error.contains("partner_events"), "{error}");

    let document = to_broker("crm", &["user.*"], "partner_events", "orders");
    write(&document);
    hub.cli_ok(&["subscription", "apply", "-f", &path]).await;
    let list = hub.cli_ok(&["subscription", "list"]).await;
    assert!(list.contains("broker partner_events: orders"), "{list}");
    let shown = hub.cli_json(&["subscription", "show", "crm"]).await;
    assert_eq!(
        (&shown["delivery"]["broker"], &shown["delivery"]["stream"]),
        (&json!("partner_events"), &json!("orders"))
    );
    // What is shown may be applied again.
    write(&shown);
    assert_eq!(hub.cli_json(&["subscription", "apply", "-f", &path]).await[0]["action"], "unchanged");
    let output = hub.cli(&["subscription", "rotate-secret", "crm"]).await;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("delivery.signing"), "there is nothing to sign");

    let tested = hub.cli_json(&["subscription", "test", "crm"]).await;
    assert_eq!(tested["a_delivery_would"], "be done");
    assert_eq!(
        (&tested["request"]["broker"], &tested["answer"]["status"]),
        (&json!("partner_events"), &Value::Null)
    );
    let sample = arrived(&redis, "orders", 1).await.remove(0);
    assert_eq!(sample["metadata"]["headers"]["type"], "user.test");
    let sent = tested["request"]["body"].as_str().expect("what was sent is shown");
    assert_eq!(serde_json::from_str::<Value>(sent).expect("JSON"), sample);

    let api = ApiClient::with_scopes(&hub, "admin", "read,manage", None).await;
    let unknown = to_broker("api", &["user.*"], "partner", "orders");
    api.post("/v1/subscriptions", &unknown).await.expect_field(400, "delivery.broker");
    let mut both = to_broker("api", &["user.*"], "partner_events", "orders");
    both["delivery"]["url"] = json!("http://127.0.0.1:9/hooks");
    api.post("/v1/subscriptions", &both).await.expect_field(400, "delivery.url");
    both["delivery"] = json!({"broker": "partner_events", "stream": "orders", "headers": {"x-team": "a"}});
    api.post("/v1/subscriptions", &both).await.expect_field(400, "delivery.headers");
    api.post("/v1/subscriptions", &to_broker("api", &["user.*"], "partner_events", "orders"))
        .await
        .expect(201);
    let tested = api.post("/v1/subscriptions/api/test", &json!({})).await.expect(200);
    assert_eq!(tested["request"]["stream"], "orders", "{tested}");

    // A tenant writes nowhere by the operator's credentials but where the operator has let it.
    let acme = ApiClient::with_scopes(&hub, "acme", "read,manage", Some("acme")).await;
    let own = to_broker("own", &["user.*"], "partner_events", "orders");
    acme.post("/v1/subscriptions", &own).await.expect_field(400, "delivery.broker");
    let mut given = to_broker("given", &["user.*"], "partner_events", "orders-of-acme");
    given["tenant"] = json!("acme");
    api.post("/v1/subscriptions", &given).await.expect(201);
    let any = [("if-match", "*")];
    let fewer = json!({"delivery": {"max_in_flight": 4}});
    acme.patch("/v1/subscriptions/given", &any, &fewer).await.expect(200);
    let elsewhere = json!({"delivery": {"stream": "orders"}});
    acme.patch("/v1/subscriptions/given", &any, &elsewhere).await.expect_field(400, "delivery.broker");
    assert!(hub.terminate().await.success());
}
