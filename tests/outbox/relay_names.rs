//! Destinations of the relay: names that a broker's protocol does not accept unchanged, and full queues.

use std::collections::BTreeSet;
use std::time::Duration;

use integration_hub::domain::producer_outbox::Status;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::support::partner::Partner;
use crate::support::relay::{
    RELAY, SOON, assert_in_order, partner, public, raise, rows, settings, stored, wait_for,
};
use crate::support::settings::{ExternalBroker, external};
use crate::support::{
    Hub, KafkaServer, RabbitMq, RedisServer, TestBroker, TestDatabase, TestSettings, eventually,
};

/// A relay to one broker where the first attempt that counts is the last.
fn one_attempt(database: &TestDatabase, broker: ExternalBroker) -> TestSettings {
    settings(&database.url()).with_brokers([broker]).with(|settings| {
        settings.outbox.max_attempts = Some(1);
        settings.outbox.retry = Some(vec![Duration::from_millis(100)]);
    })
}

fn of_category(id: &str, stream: &str, category: &str) -> Value {
    let mut event = public(id, stream);
    event["stream_category"] = json!(category);
    event
}

/// A category as in Protean (`crm::user`), a stream with a space and a wildcard, and one that is too long even
/// with escapes: only that row is abandoned.
#[tokio::test]
async fn what_a_name_forbids_is_escaped_and_what_is_too_long_is_abandoned() {
    let Some(kafka) = KafkaServer::start().await else { return };
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&["kafka", "nats"]).await;
    let (broker, nats) = (TestBroker::start().await, partner().await);
    kafka.create_topic("crm_.3A_.3Auser", 1).await;
    let brokers = [
        external("kafka", "kafka", &kafka.url()),
        external("nats", "nats", &nats.url()).to("user.{category}.{stream}"),
    ];
    let mut hub = Hub::serve(&broker.url(), &settings(&database.url()).with_brokers(brokers), &RELAY);
    hub.ready().await;
    let long = "ü".repeat(100);
    raise(
        &database,
        &[
            of_category("e1", "crm::user-1", "crm::user"),
            of_category("e2", "crm::user-1", &long),
            of_category("e3", "crm::user-1", "crm::user"),
            of_category("e4", "user 1.*", "crm::user"),
        ],
    )
    .await;

    wait_for(&store, "nats", Status::Published, 4).await;
    let kafka_rows = wait_for(&store, "kafka", Status::Published, 3).await;
    assert_eq!((kafka_rows[1].status, kafka_rows[1].attempts), (Status::Abandoned, 1));
    let reason = kafka_rows[1].last_error.clone().unwrap_or_default();
    assert!(reason.contains("destination: the topic is 800 bytes long; Kafka allows 249"), "{reason}");
    let seen = kafka.read("crm_.3A_.3Auser", |seen| seen.len() >= 3).await;
    let of = |key: &str| -> Vec<&str> {
        seen.iter().filter(|record| record.key == key).map(|record| record.id.as_str()).collect()
    };
    assert_eq!((of("crm::user-1"), of("user 1.*")), (vec!["e1", "e3"], vec!["e4"]));
    let subjects: Vec<String> =
        stored(&nats, "PARTNER", 4).await.into_iter().map(|message| message.subject).collect();
    let expected = [
        "user.crm::user.crm::user-1".to_owned(),
        format!("user.{long}.crm::user-1"),
        "user.crm::user.crm::user-1".to_owned(),
        "user.crm::user.user%201.%2A".to_owned(),
    ];
    let sorted = |subjects: &[String]| subjects.iter().cloned().collect::<BTreeSet<_>>();
    // The two streams are independent.
    assert_eq!(sorted(&subjects), sorted(&expected));
    let of_first = subjects.iter().filter(|subject| subject.ends_with("user-1"));
    assert!(of_first.eq(expected[..3].iter()), "{subjects:?}");
}

/// A direct write to the table can bypass the checks of `publish`: only such rows are abandoned.
#[tokio::test]
async fn a_row_with_an_invalid_event_key_is_abandoned_and_blocks_no_other() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&[]).await;
    let broker = TestBroker::start().await;
    let bad =
        ["user.a b", "", "user..x", "user.>", "user.*", "user", "user.\u{e4}", "user.\t", &"x".repeat(5_000)];
    let mut events: Vec<Value> =
        (0..bad.len()).map(|n| public(&format!("bad-{n}"), &format!("s{n}"))).collect();
    events.extend((0..bad.len()).map(|n| public(&format!("good-{n}"), &format!("s{n}"))));
    raise(&database, &events).await;
    for (number, kind) in bad.iter().enumerate() {
        let update =
            format!("UPDATE hub_outbox.messages SET event_type = '{kind}' WHERE message_id = 'bad-{number}'");
        database.sql(&update).await.expect("the table takes any text");
    }
    let mut hub = Hub::serve(&broker.url(), &settings(&database.url()), &RELAY);
    hub.ready().await;
    wait_for(&store, "internal", Status::Published, bad.len()).await;
    let rows = wait_for(&store, "internal", Status::Abandoned, bad.len()).await;
    for row in rows.iter().filter(|row| row.message_id.starts_with("bad")) {
        let reason = row.last_error.clone().unwrap_or_default();
        assert!(row.status == Status::Abandoned && reason.contains("is not an event key"), "{row:?}");
    }
}

/// RabbitMQ refuses messages to a full queue; their rows wait, in order, and another stream continues.
#[tokio::test]
async fn a_full_queue_makes_its_rows_wait() {
    let Some(rabbitmq) = RabbitMq::start("").await else { return };
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&["partner"]).await;
    let broker = TestBroker::start().await;
    rabbitmq.declare("user.created", FieldTable::default()).await;
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongInt(3));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    rabbitmq.declare("order.created", full).await;
    let external = external("partner", "amqp", &rabbitmq.url());
    let mut hub = Hub::serve(&broker.url(), &one_attempt(&database, external), &RELAY);
    hub.ready().await;
    let orders: Vec<Value> = (0..20)
        .map(|n| {
            let mut event = public(&format!("o{n:05}"), "orders");
            event["type"] = json!("order.created");
            event
        })
        .collect();
    raise(&database, &orders).await;
    eventually(SOON, "row refused", async || {
        let rows = rows(&store, "partner").await;
        let refused = rows.iter().find_map(|row| row.last_error.clone());
        refused.filter(|reason| reason.contains("may be full")).ok_or(rows.len())
    })
    .await;
    raise(&database, &[public("u1", "user-1")]).await;
    eventually(SOON, "the other stream continues", async || {
        let rows = rows(&store, "partner").await;
        let user = rows.into_iter().find(|row| row.message_id == "u1").ok_or("not there")?;
        if user.status == Status::Published { Ok(()) } else { Err("not published") }
    })
    .await;
    let waiting = rows(&store, "partner").await.into_iter().filter(|row| row.status.is_open());
    let attempts: Vec<_> = waiting.map(|row| row.attempts).collect();
    assert!(!attempts.is_empty() && attempts.iter().all(|attempts| *attempts == 0), "{attempts:?}");

    // Consuming messages makes room in the queue.
    let partner = Partner::of_amqp(rabbitmq).await;
    let expected: BTreeSet<String> = (0..20).map(|n| format!("o{n:05}")).collect();
    let arrived = partner.arrived("order", &expected).await;
    assert_eq!(arrived.len(), 20, "each once");
    assert_in_order(arrived.into_iter().map(|message| (message.id, message.stream)));
    wait_for(&store, "partner", Status::Published, 21).await;
}

/// Redis without memory rejects all messages: its rows wait until there is room, and the attempts do not count.
#[tokio::test]
async fn a_redis_without_memory_makes_its_rows_wait() {
    let Some(redis) = RedisServer::start(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]).await
    else {
        return;
    };
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&["partner"]).await;
    let broker = TestBroker::start().await;
    let external = external("partner", "redis", &redis.url());
    let mut hub = Hub::serve(&broker.url(), &one_attempt(&database, external), &RELAY);
    hub.ready().await;
    let events: Vec<Value> = (0..20).map(|n| public(&format!("e{n:05}"), &format!("s{}", n % 4))).collect();
    raise(&database, &events).await;
    wait_for(&store, "internal", Status::Published, 20).await;
    eventually(SOON, "the outage of the broker is logged with its cause", async || {
        let log = hub.log();
        if log.contains("broker unavailable, its rows wait") && log.contains("OOM") {
            Ok(())
        } else {
            Err("not yet")
        }
    })
    .await;
    for row in rows(&store, "partner").await {
        assert!(row.status.is_open() && row.attempts == 0, "{row:?}");
    }
    let mut connection = redis.connect().await;
    let () = redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", "0"])
        .query_async(&mut connection)
        .await
        .expect("more memory");
    let rows = wait_for(&store, "partner", Status::Published, 20).await;
    assert!(rows.iter().all(|row| row.attempts == 0), "{rows:?}");
    assert!(hub.terminate().await.success());
}
