//! The Kafka adapter, on a Kafka-compatible broker.

use integration_hub::sinks::kafka::{Kafka, KafkaOptions, SaslMechanism};
use integration_hub::sinks::{Broker, BrokerTls, OutgoingMessage, PublishError};
use krafka::auth::{AuthConfig, TlsConfig};

use crate::support::external_broker::{
    Certificates, SHORT, assert_all, assert_unavailable, group, outgoing, publish_when_back,
};
use crate::support::kafka::KafkaRecord;
use crate::support::{Direction, KafkaServer};

fn options(url: &str) -> KafkaOptions {
    KafkaOptions { timeouts: SHORT, ..KafkaOptions::new(url) }
}

fn sink(options: KafkaOptions) -> Kafka {
    Kafka::new(options).unwrap_or_else(|error| panic!("{error}"))
}

/// A Kafka client for the test.
fn security(certificates: &Certificates) -> AuthConfig {
    let ca = certificates.ca().to_str().expect("UTF-8").to_owned();
    AuthConfig::ssl(TlsConfig::new().with_ca_cert(ca))
}

async fn read(server: &KafkaServer, topic: &str, count: usize) -> Vec<KafkaRecord> {
    server.read(topic, |seen| seen.len() >= count).await
}

fn ids<'a>(seen: impl IntoIterator<Item = &'a KafkaRecord>) -> Vec<String> {
    seen.into_iter().map(|record| record.id.clone()).collect()
}

fn ids_of(group: &[OutgoingMessage]) -> Vec<String> {
    group.iter().map(|message| message.id.clone()).collect()
}

#[tokio::test]
async fn each_record_arrives_in_the_order_of_its_key() {
    let Some(server) = KafkaServer::start().await else { return };
    server.create_topic("events", 3).await;
    let sink = sink(options(&server.url()));
    sink.check().await.expect("the cluster answers");
    let groups: Vec<_> = (0..8).map(|key| group("events", &format!("key{key}"), 0..20)).collect();
    let published = futures_util::future::join_all(groups.iter().map(|group| sink.publish(group))).await;
    for published in published {
        assert_all(published, 20);
    }
    let seen = read(&server, "events", 160).await;
    assert_eq!(seen.len(), 160);
    for group in &groups {
        let of_key: Vec<&KafkaRecord> = seen.iter().filter(|record| record.key == group[0].key).collect();
        assert!(of_key.iter().all(|record| record.partition == of_key[0].partition), "one partition");
        assert_eq!(ids(of_key.iter().copied()), ids_of(group));
        assert_eq!(of_key[7].body.as_bytes(), &group[7].body[..]);
        assert_eq!(of_key[7].traceparent.as_ref(), Some(&group[7].headers[0].1));
    }
    sink.close().await;
    assert!(matches!(sink.publish(&groups[0]).await.error, Some(PublishError::Unavailable { .. })));
}

#[tokio::test]
async fn refusals_are_classified() {
    let Some(server) = KafkaServer::start().await else { return };
    server.create_topic("events", 1).await;
    let sink = sink(KafkaOptions { largest: 10_000, ..options(&server.url()) });
    let mut large = outgoing("events", "a", 1);
    large.body = vec![b'x'; 10_001].into();
    let misnamed = outgoing("no topic's name!", "a", 2);
    for message in [large, misnamed] {
        let published = sink.publish(&[outgoing("events", "a", 0), message]).await;
        assert_eq!(published.acknowledged, 1);
        assert!(matches!(published.error, Some(PublishError::Permanent { .. })), "{:?}", published.error);
    }
    let published = sink.publish(&[outgoing("events", "a", 0), outgoing("missing", "a", 1)]).await;
    assert_eq!(published.acknowledged, 1);
    let Some(PublishError::Refused { reason }) = published.error else { panic!("{:?}", published.error) };
    assert!(reason.contains("missing"), "{reason}");
    assert_all(sink.publish(&group("events", "a", 3..5)).await, 2);
}

#[tokio::test]
async fn a_broker_that_hangs_or_goes_is_unavailable_and_comes_back() {
    let Some(mut server) = KafkaServer::start().await else { return };
    server.create_topic("events", 1).await;
    let sink = sink(options(&server.url()));
    let all = group("events", "a", 0..6);
    assert_all(sink.publish(&all[..1]).await, 1);

    let hang = server.proxy().cut_before(Direction::ToServer, "\"n\":1}");
    assert_unavailable(&sink, &all[1..3]).await;
    hang.fired(SHORT.publish).await;
    publish_when_back(&sink, &all[1..3]).await;
    let mut arrived = ids(&read(&server, "events", 3).await);
    arrived.dedup();
    assert_eq!(arrived, ids_of(&all[..3]), "in order");

    // It keeps its topics in memory: only messages after the restart are there.
    server.kill().await;
    assert_unavailable(&sink, &all[4..]).await;
    server.restart().await;
    server.create_topic("events", 1).await;
    publish_when_back(&sink, &all[4..]).await;
    let mut arrived = ids(&read(&server, "events", 2).await);
    arrived.dedup();
    assert_eq!(arrived, ids_of(&all[4..]), "in order");
}

#[tokio::test]
async fn tls_with_a_private_ca() {
    let certificates = Certificates::generate();
    let Some(server) = KafkaServer::start_tls(&certificates).await else { return };
    let with = |ca_file| {
        let tls = BrokerTls { ca_file: Some(ca_file), ..BrokerTls::default() };
        sink(KafkaOptions { tls, ..options(&server.url()) })
    };
    let trusting = with(certificates.ca());
    trusting.check().await.expect("the certificate is trusted");
    server.create_topic_with(security(&certificates), "events", 1).await;
    assert_all(trusting.publish(&group("events", "a", 0..2)).await, 2);
    assert_unavailable(&with(Certificates::generate().ca()), &group("events", "a", 2..3)).await;
    let error = with("/nowhere/ca.pem".into()).check().await.expect_err("no such file").to_string();
    assert!(error.contains("tls_ca_file") && error.contains("/nowhere/ca.pem"), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_reported_by_its_setting_and_never_shown() {
    let Some(server) = KafkaServer::start_authenticating().await else { return };
    for mechanism in [SaslMechanism::ScramSha256, SaslMechanism::ScramSha512] {
        let options = KafkaOptions {
            user: Some("hub".to_owned()),
            password: Some("wrong-secret".into()),
            mechanism,
            ..KafkaOptions::new(server.url())
        };
        let error = sink(options).check().await.expect_err("is not let in");
        let text = error.to_string();
        assert!(matches!(error, PublishError::Unavailable { .. }), "{text}");
        assert!(text.contains("correct user and password") && !text.contains("wrong-secret"), "{text}");
    }
}

#[test]
fn unusable_options_are_reported_by_name() {
    let setting = |options: KafkaOptions| Kafka::new(options).err().map(|error| error.setting);
    for url in ["kafka://127.0.0.1:9092", "127.0.0.1", "user:secret@127.0.0.1:9092", "127.0.0.1:9092,"] {
        assert_eq!(setting(options(url)), Some("url"), "{url}");
    }
    let base = || options("127.0.0.1:9092, localhost:9093");
    assert_eq!(setting(base()), None);
    assert_eq!(setting(KafkaOptions { password: Some("p".into()), ..base() }), Some("user"));
    let login = || KafkaOptions { user: Some("u".into()), password: Some("wrong-secret".into()), ..base() };
    assert!(!format!("{:?}", login()).contains("wrong-secret"));
    assert_eq!(setting(login()), None);
    assert_eq!(setting(KafkaOptions { mechanism: SaslMechanism::Plain, ..login() }), Some("mechanism"));
}
