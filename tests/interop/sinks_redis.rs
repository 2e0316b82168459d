//! The Redis Streams adapter, on a real Redis.

use integration_hub::sinks::redis::{Redis, RedisOptions};
use integration_hub::sinks::{Broker, BrokerTls, PublishError, PublishedGroup};
use redis::aio::MultiplexedConnection;

use crate::support::external_broker::{
    Certificates, SHORT, assert_all, assert_unavailable, group, outgoing, publish_when_back,
};
use crate::support::{FaultProxy, RedisServer};

fn options(url: &str) -> RedisOptions {
    RedisOptions { timeouts: SHORT, ..RedisOptions::new(url) }
}

fn sink(options: RedisOptions) -> Redis {
    Redis::new(options).unwrap_or_else(|error| panic!("{error}"))
}

/// The entries of a stream: each has one field, `data`.
async fn entries(connection: &mut MultiplexedConnection, stream: &str) -> Vec<String> {
    let entries: Vec<(String, Vec<(String, String)>)> =
        redis::cmd("XRANGE").arg(stream).arg("-").arg("+").query_async(connection).await.expect("a stream");
    let data = |fields: Vec<(String, String)>| match fields.as_slice() {
        [(name, value)] if name == "data" => value.clone(),
        other => panic!("not one field \"data\": {other:?}"),
    };
    entries.into_iter().map(|(_, fields)| data(fields)).collect()
}

fn bodies(group: &[integration_hub::sinks::OutgoingMessage]) -> Vec<String> {
    group.iter().map(|message| String::from_utf8(message.body.to_vec()).expect("JSON")).collect()
}

#[tokio::test]
async fn each_message_is_one_entry_in_the_order_of_its_key() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let sink = sink(options(&server.url()));
    sink.check().await.expect("Redis answers");
    let one = group("events", "a", 0..1);
    let many = group("events", "a", 1..600);
    let other = group("others", "b", 0..300);
    assert_all(sink.publish(&one).await, 1);
    let (many_published, other_published) = tokio::join!(sink.publish(&many), sink.publish(&other));
    assert_all(many_published, 599);
    assert_all(other_published, 300);
    let mut connection = server.connect().await;
    assert_eq!(entries(&mut connection, "events").await, [bodies(&one), bodies(&many)].concat());
    assert_eq!(entries(&mut connection, "others").await, bodies(&other));
    sink.close().await;
    assert!(matches!(sink.publish(&one).await.error, Some(PublishError::Unavailable { .. })));
}

#[tokio::test]
async fn a_stream_is_trimmed_to_about_its_length() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let sink = sink(RedisOptions { max_len: Some(100), ..options(&server.url()) });
    let all = group("events", "a", 0..1000);
    assert_all(sink.publish(&all).await, 1000);
    let kept = entries(&mut server.connect().await, "events").await;
    // Whole nodes of 100 entries each are dropped.
    assert!((100..=200).contains(&kept.len()), "{} entries are kept", kept.len());
    assert_eq!(kept, bodies(&all[1000 - kept.len()..]), "the newest");
}

#[tokio::test]
async fn a_full_server_is_unavailable_and_nothing_of_the_group_is_skipped() {
    let Some(server) = RedisServer::start(&["--maxmemory", "3mb", "--maxmemory-policy", "noeviction"]).await
    else {
        return;
    };
    let sink = sink(options(&server.url()));
    let mut large = group("events", "a", 0..200);
    for message in &mut large {
        message.body = vec![b'x'; 64 * 1024].into();
    }
    let published = sink.publish(&large).await;
    let PublishedGroup { acknowledged, error: Some(PublishError::Unavailable { reason }) } = published else {
        panic!("{published:?}")
    };
    assert!(reason.contains("OOM"), "{reason}");
    let mut connection = server.connect().await;
    let length: usize = redis::cmd("XLEN").arg("events").query_async(&mut connection).await.expect("length");
    assert_eq!(length, acknowledged, "only the acknowledged messages");
    let () = redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", "0"])
        .query_async(&mut connection)
        .await
        .expect("more memory");
    assert_all(sink.publish(&large[acknowledged..]).await, 200 - acknowledged);
}

#[tokio::test]
async fn a_replica_that_takes_no_writes_is_unavailable_until_it_is_promoted() {
    let Some(primary) = RedisServer::start(&[]).await else { return };
    let port = primary.port().to_string();
    let Some(replica) = RedisServer::start(&["--replicaof", "127.0.0.1", &port]).await else { return };
    let sink = sink(options(&replica.url()));
    let all = group("events", "a", 0..3);
    let published = sink.publish(&all).await;
    let Some(PublishError::Unavailable { reason }) = published.error else { panic!("{published:?}") };
    let upper = reason.to_uppercase();
    assert!(["READONLY", "MASTERDOWN", "LOADING"].iter().any(|code| upper.contains(code)), "{reason}");
    let mut connection = replica.connect().await;
    let () =
        redis::cmd("REPLICAOF").arg(&["NO", "ONE"]).query_async(&mut connection).await.expect("promoted");
    publish_when_back(&sink, &all).await;
}

#[tokio::test]
async fn a_wrong_type_is_refused_and_blocks_no_other_stream() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let sink = sink(options(&server.url()));
    let mut connection = server.connect().await;
    let () = redis::cmd("SET").arg(&["taken", "a string"]).query_async(&mut connection).await.expect("set");
    let mut mixed = group("events", "a", 0..2);
    mixed.extend(group("taken", "a", 2..4));
    mixed.extend(group("events", "a", 4..6));
    let published = sink.publish(&mixed).await;
    assert_eq!(published.acknowledged, 2);
    assert!(matches!(published.error, Some(PublishError::Refused { .. })), "{:?}", published.error);
    assert_eq!(entries(&mut connection, "events").await, bodies(&mixed[..2]), "the order is kept");
}

#[tokio::test]
async fn what_is_too_large_for_ever_is_permanent() {
    let Some(server) = RedisServer::start(&["--proto-max-bulk-len", "1mb"]).await else { return };
    let sink = sink(RedisOptions { largest: 1024 * 1024, ..options(&server.url()) });
    let mut group = group("events", "a", 0..3);
    group[1].body = vec![b'x'; 1024 * 1024 + 1].into();
    let published = sink.publish(&group).await;
    assert_eq!(published.acknowledged, 1);
    assert!(matches!(published.error, Some(PublishError::Permanent { .. })), "{:?}", published.error);
    assert_all(sink.publish(&group[2..]).await, 1);
}

#[tokio::test]
async fn a_server_that_hangs_or_goes_is_unavailable_and_comes_back() {
    let Some(mut server) = RedisServer::start(&[]).await else { return };
    let proxy = FaultProxy::start(&format!("127.0.0.1:{}", server.port())).await;
    let sink = sink(options(&proxy.url("redis")));
    let all = group("events", "a", 0..6);
    assert_all(sink.publish(&all[..1]).await, 1);

    let hang = proxy.cut_before(crate::support::Direction::ToServer, "XADD");
    assert_unavailable(&sink, &all[1..3]).await;
    hang.fired(SHORT.publish).await;
    publish_when_back(&sink, &all[1..3]).await;

    // The id of the new entry: 13 digits, a dash, a digit.
    let answer = proxy.cut_before(crate::support::Direction::ToClient, "$15\r\n");
    let (published, ()) = tokio::join!(sink.publish(&all[3..4]), async {
        answer.fired(SHORT.publish).await;
        proxy.cut();
    });
    assert!(matches!(published.error, Some(PublishError::Unavailable { .. })), "{published:?}");
    publish_when_back(&sink, &all[3..4]).await;

    server.kill().await;
    assert_unavailable(&sink, &all[4..]).await;
    server.restart().await;
    publish_when_back(&sink, &all[4..]).await;

    let mut arrived = entries(&mut server.connect().await, "events").await;
    let repeated = arrived.iter().filter(|body| **body == bodies(&all)[3]).count();
    assert_eq!(repeated, 2, "Redis does not de-duplicate: the answer that was lost was a yes");
    arrived.dedup();
    assert_eq!(arrived, bodies(&all), "in order");
}

#[tokio::test]
async fn a_wrong_password_is_reported_by_its_setting_and_never_shown() {
    let Some(server) = RedisServer::start(&["--requirepass", "right-one"]).await else { return };
    for (user, password) in
        [(None, Some("wrong-secret")), (Some("default"), Some("wrong-secret")), (None, None)]
    {
        let options = RedisOptions {
            user: user.map(str::to_owned),
            password: password.map(Into::into),
            ..options(&server.url())
        };
        assert!(!format!("{options:?}").contains("wrong-secret"), "hidden in the log");
        let error = sink(options).check().await.expect_err("is not let in");
        let text = error.to_string();
        assert!(matches!(error, PublishError::Unavailable { .. }), "{text}");
        assert!(password.is_none() || text.contains("correct user and password"), "{text}");
        assert!(!text.contains("wrong-secret"), "{text}");
    }
    let sink = sink(RedisOptions { password: Some("right-one".into()), ..options(&server.url()) });
    assert_all(sink.publish(&[outgoing("events", "a", 0)]).await, 1);
}

#[tokio::test]
async fn tls_with_a_private_ca() {
    let certificates = Certificates::generate();
    let Some(server) = RedisServer::start_tls(&certificates, &[]).await else { return };
    let tls = BrokerTls { ca_file: Some(certificates.ca()), ..BrokerTls::default() };
    let sink_with = |tls| sink(RedisOptions { tls, ..options(&server.tls_url()) });
    assert_all(sink_with(tls).publish(&[outgoing("events", "a", 0)]).await, 1);

    let other = Certificates::generate();
    let tls = BrokerTls { ca_file: Some(other.ca()), ..BrokerTls::default() };
    assert_unavailable(&sink_with(tls), &[outgoing("events", "a", 1)]).await;
    let tls = BrokerTls { ca_file: Some("/nowhere/ca.pem".into()), ..BrokerTls::default() };
    let error = sink_with(tls).check().await.expect_err("no such file").to_string();
    assert!(error.contains("tls_ca_file") && error.contains("/nowhere/ca.pem"), "{error}");
}

#[tokio::test]
async fn tls_with_a_certificate_of_our_own() {
    let certificates = Certificates::generate();
    let Some(server) = RedisServer::start_tls(&certificates, &["--tls-auth-clients", "yes"]).await else {
        return;
    };
    let with = |cert_file, key_file| {
        let tls = BrokerTls { ca_file: Some(certificates.ca()), cert_file, key_file, ..BrokerTls::default() };
        sink(RedisOptions { tls, ..options(&server.tls_url()) })
    };
    let own = with(Some(certificates.cert()), Some(certificates.key()));
    assert_all(own.publish(&[outgoing("events", "a", 0)]).await, 1);
    assert_unavailable(&with(None, None), &[outgoing("events", "a", 1)]).await;
}

#[test]
fn unusable_options_are_reported_by_name() {
    let setting = |options: RedisOptions| Redis::new(options).err().map(|error| error.setting);
    assert_eq!(setting(options("http://127.0.0.1")), Some("url"));
    assert_eq!(setting(options("redis://user:secret@127.0.0.1")), Some("url"));
    assert_eq!(setting(options("redis://127.0.0.1/one")), Some("url"));
    assert_eq!(
        setting(RedisOptions { user: Some("u".into()), ..options("redis://127.0.0.1") }),
        Some("password")
    );
    assert_eq!(setting(RedisOptions { max_len: Some(0), ..options("redis://127.0.0.1") }), Some("max_len"));
    let tls = BrokerTls { cert_file: Some("c.pem".into()), ..BrokerTls::default() };
    assert_eq!(setting(RedisOptions { tls, ..options("rediss://127.0.0.1") }), Some("tls_cert_file"));
}
