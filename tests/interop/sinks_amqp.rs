//! The AMQP adapter, on a real RabbitMQ.

use std::time::Duration;

use futures_util::StreamExt;
use integration_hub::sinks::amqp::{Amqp, AmqpOptions};
use integration_hub::sinks::{Broker, BrokerTls, OutgoingMessage, PublishError, PublishedGroup};
use lapin::ExchangeKind;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::support::external_broker::{
    Certificates, SHORT, assert_all, assert_unavailable, group, outgoing, publish_when_back,
};
use crate::support::{Direction, FaultProxy, RabbitMq};

fn options(url: &str) -> AmqpOptions {
    AmqpOptions { timeouts: SHORT, ..AmqpOptions::new(url) }
}

fn sink(options: AmqpOptions) -> Amqp {
    Amqp::new(options).unwrap_or_else(|error| panic!("{error}"))
}

/// Consumes `count` messages of a queue.
async fn take(server: &RabbitMq, queue: &str, count: usize) -> Vec<Delivery> {
    let channel = server.channel().await;
    let consumer = channel
        .basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .expect("a consumer");
    let deliveries = consumer.take(count).then(async |delivery| {
        let delivery = delivery.expect("a delivery");
        delivery.ack(BasicAckOptions::default()).await.expect("acknowledged");
        delivery
    });
    tokio::time::timeout(Duration::from_secs(20), deliveries.collect()).await.expect("all are there")
}

fn ids(deliveries: &[Delivery]) -> Vec<String> {
    let id = |delivery: &Delivery| delivery.properties.message_id().as_ref().expect("an id").to_string();
    deliveries.iter().map(id).collect()
}

fn ids_of(group: &[OutgoingMessage]) -> Vec<String> {
    group.iter().map(|message| message.id.clone()).collect()
}

/// One broker for the tests that do not disturb it, because it starts slowly.
#[tokio::test]
async fn messages_arrive_in_order_and_refusals_are_classified() {
    let Some(server) = RabbitMq::start("max_message_size = 65536\n").await else { return };
    arrives(&server).await;
    an_exchange_routes(&server).await;
    refused(&server).await;
    permanent(&server).await;
    wrong_password(&server).await;
}

async fn arrives(server: &RabbitMq) {
    server.declare("events", FieldTable::default()).await;
    server.declare("others", FieldTable::default()).await;
    let sink = sink(options(&server.url()));
    sink.check().await.expect("RabbitMQ answers");
    let all = group("events", "a", 0..50);
    let others = group("others", "b", 0..50);
    let (one, two) = tokio::join!(sink.publish(&all), sink.publish(&others));
    assert_all(one, 50);
    assert_all(two, 50);
    let deliveries = take(server, "events", 50).await;
    assert_eq!(ids(&deliveries), ids_of(&all));
    let (first, expected) = (&deliveries[0], &all[0]);
    assert_eq!(first.data, expected.body);
    assert_eq!(*first.properties.delivery_mode(), Some(2), "it survives a restart");
    let headers = first.properties.headers().as_ref().expect("headers").inner();
    let (name, value) = &expected.headers[0];
    assert_eq!(headers.get(name.as_str()), Some(&AMQPValue::LongString(value.as_str().into())));
    assert_eq!(ids(&take(server, "others", 50).await), ids_of(&others));
    sink.close().await;
    assert!(matches!(sink.publish(&all).await.error, Some(PublishError::Unavailable { .. })));
}

async fn an_exchange_routes(server: &RabbitMq) {
    let with = || sink(AmqpOptions { exchange: "partner".to_owned(), ..options(&server.url()) });
    let error = with().check().await.expect_err("no such exchange");
    assert!(matches!(error, PublishError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("the setting exchange"), "{error}");
    let channel = server.channel().await;
    let none = FieldTable::default;
    let declared = ExchangeDeclareOptions::default();
    channel
        .exchange_declare("partner".into(), ExchangeKind::Topic, declared, none())
        .await
        .expect("declared");
    let bind = QueueBindOptions::default();
    channel
        .queue_bind("events".into(), "partner".into(), "user.*".into(), bind, none())
        .await
        .expect("bound");
    let sink = with();
    let mut mixed = group("user.created", "a", 0..3);
    mixed[1].stream = "elsewhere".to_owned();
    let published = sink.publish(&mixed).await;
    assert_eq!(published.acknowledged, 1);
    let Some(PublishError::Refused { reason }) = published.error else { panic!("{:?}", published.error) };
    assert!(reason.contains("NO_ROUTE") && reason.contains("elsewhere"), "{reason}");
    assert_all(sink.publish(&mixed[2..]).await, 1);
    assert_eq!(ids(&take(server, "events", 2).await), ["a-0", "a-2"]);
}

async fn refused(server: &RabbitMq) {
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongInt(3));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    server.declare("full", full).await;
    let sink = sink(options(&server.url()));
    let all = group("full", "a", 0..10);
    let PublishedGroup { acknowledged, error: Some(PublishError::NoRoom { .. }) } = sink.publish(&all).await
    else {
        panic!("the queue is full")
    };
    assert!((3..10).contains(&acknowledged), "{acknowledged} were taken");
    assert_eq!(ids(&take(server, "full", acknowledged).await), ids_of(&all[..acknowledged]));
    assert_all(sink.publish(&all[acknowledged..acknowledged + 1]).await, 1);
}

async fn permanent(server: &RabbitMq) {
    let sink = sink(options(&server.url()));
    let mut large = outgoing("events", "a", 1);
    large.body = vec![b'x'; 70_000].into();
    let mut long = outgoing("events", "a", 2);
    long.id = "i".repeat(256);
    let routed_too_far = outgoing(&"k".repeat(256), "a", 3);
    for message in [large, long, routed_too_far] {
        let published = sink.publish(&[outgoing("events", "a", 0), message]).await;
        assert_eq!(published.acknowledged, 1);
        assert!(matches!(published.error, Some(PublishError::Permanent { .. })), "{:?}", published.error);
    }
    assert_all(sink.publish(&group("events", "a", 4..6)).await, 2);
}

async fn wrong_password(server: &RabbitMq) {
    let options = AmqpOptions {
        user: Some("guest".to_owned()),
        password: Some("wrong-secret".into()),
        ..options(&server.url())
    };
    assert!(!format!("{options:?}").contains("wrong-secret"));
    let error = sink(options).check().await.expect_err("is not let in");
    let text = error.to_string();
    assert!(matches!(error, PublishError::Unavailable { .. }), "{text}");
    assert!(text.contains("correct user and password") && !text.contains("wrong-secret"), "{text}");
}

#[tokio::test]
async fn a_broker_that_hangs_or_goes_is_unavailable_and_comes_back() {
    let Some(mut server) = RabbitMq::start("").await else { return };
    server.declare("events", FieldTable::default()).await;
    let proxy = FaultProxy::start(&format!("127.0.0.1:{}", server.port())).await;
    let sink = sink(options(&proxy.url("amqp")));
    let all = group("events", "a", 0..6);
    assert_all(sink.publish(&all[..1]).await, 1);

    let hang = proxy.cut_before(Direction::ToServer, "\"n\":1}");
    assert_unavailable(&sink, &all[1..3]).await;
    hang.fired(SHORT.publish).await;
    publish_when_back(&sink, &all[1..3]).await;

    let sent = proxy.cut_after(Direction::ToServer, "\"n\":3}");
    let (published, ()) = tokio::join!(sink.publish(&all[3..4]), async {
        sent.fired(SHORT.publish).await;
        proxy.cut();
    });
    assert!(matches!(published.error, Some(PublishError::Unavailable { .. })), "{published:?}");
    publish_when_back(&sink, &all[3..4]).await;

    server.kill().await;
    assert_unavailable(&sink, &all[4..]).await;
    server.restart().await;
    publish_when_back(&sink, &all[4..]).await;

    // The message whose confirm was lost may be there twice: RabbitMQ does not deduplicate.
    let mut arrived = Vec::new();
    while arrived.last() != Some(&all[5].id) {
        arrived.extend(ids(&take(&server, "events", 1).await));
    }
    arrived.dedup();
    assert_eq!(arrived, ids_of(&all), "in order");
}

#[tokio::test]
async fn tls_with_a_private_ca() {
    let certificates = Certificates::generate();
    let Some(server) = RabbitMq::start_tls(&certificates).await else { return };
    server.declare("events", FieldTable::default()).await;
    let with = |ca_file| {
        let tls = BrokerTls { ca_file: Some(ca_file), ..BrokerTls::default() };
        sink(AmqpOptions { tls, ..options(&server.tls_url()) })
    };
    assert_all(with(certificates.ca()).publish(&group("events", "a", 0..2)).await, 2);
    assert_unavailable(&with(Certificates::generate().ca()), &group("events", "a", 2..3)).await;
    let error = with("/nowhere/ca.pem".into()).check().await.expect_err("no such file").to_string();
    assert!(error.contains("tls_ca_file") && error.contains("/nowhere/ca.pem"), "{error}");

    // The server requests a certificate, and rejects one of another CA.
    let with_own = |own: &Certificates| {
        let tls = BrokerTls {
            ca_file: Some(certificates.ca()),
            cert_file: Some(own.cert()),
            key_file: Some(own.key()),
            ..BrokerTls::default()
        };
        sink(AmqpOptions { tls, ..options(&server.tls_url()) })
    };
    assert_all(with_own(&certificates).publish(&group("events", "a", 3..5)).await, 2);
    assert_unavailable(&with_own(&Certificates::generate()), &group("events", "a", 5..6)).await;
}

#[test]
fn unusable_options_are_reported_by_name() {
    let setting = |options: AmqpOptions| Amqp::new(options).err().map(|error| error.setting);
    assert_eq!(setting(options("redis://127.0.0.1")), Some("url"));
    assert_eq!(setting(options("amqp://user:secret@127.0.0.1")), Some("url"));
    assert_eq!(
        setting(AmqpOptions { user: Some("u".into()), ..options("amqp://127.0.0.1") }),
        Some("password")
    );
    let exchange = "e".repeat(256);
    assert_eq!(setting(AmqpOptions { exchange, ..options("amqp://127.0.0.1") }), Some("exchange"));
    let tls = BrokerTls { ca_file: Some("ca.pem".into()), ..BrokerTls::default() };
    assert_eq!(setting(AmqpOptions { tls, ..options("amqp://127.0.0.1") }), Some("url"));
}
