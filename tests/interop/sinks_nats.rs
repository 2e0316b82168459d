//! The adapter for an external NATS server, on a real one.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, Stream};
use futures_util::{StreamExt, TryStreamExt};
use hub_testkit::broker_process::BrokerOptions;
use integration_hub::sinks::nats::{Mode, Nats, NatsOptions};
use integration_hub::sinks::{Broker, BrokerTls, PublishError, PublishedGroup};

use crate::support::external_broker::{
    Certificates, SHORT, assert_all, assert_unavailable, group, outgoing, publish_when_back,
};
use crate::support::{Direction, FaultProxy, TestBroker, nats_server};

fn options(url: &str) -> NatsOptions {
    NatsOptions { timeouts: SHORT, ..NatsOptions::new(url) }
}

fn sink(options: NatsOptions) -> Nats {
    Nats::new(options).unwrap_or_else(|error| panic!("{error}"))
}

fn stream_config() -> Config {
    Config {
        name: "PARTNER".to_owned(),
        subjects: vec!["partner.>".to_owned()],
        discard: DiscardPolicy::New,
        ..Config::default()
    }
}

async fn create(broker: &TestBroker, config: Config) -> Stream {
    broker.jetstream().await.create_stream(config).await.expect("a stream")
}

/// The message ids in the stream, in its order.
async fn ids(broker: &TestBroker) -> Vec<String> {
    let mut stream = broker.jetstream().await.get_stream("PARTNER").await.expect("the stream");
    let count = stream.info().await.expect("its state").state.messages;
    let consumer = stream
        .create_consumer(async_nats::jetstream::consumer::pull::OrderedConfig::default())
        .await
        .expect("a consumer");
    let messages = consumer.messages().await.expect("messages").take(usize::try_from(count).expect("few"));
    let id = async |message: async_nats::jetstream::Message| {
        message.headers.as_ref().expect("headers").get("Nats-Msg-Id").expect("an id").to_string()
    };
    messages.and_then(async |message| Ok(id(message).await)).try_collect().await.expect("all are read")
}

fn ids_of(group: &[integration_hub::sinks::OutgoingMessage]) -> Vec<String> {
    group.iter().map(|message| message.id.clone()).collect()
}

#[tokio::test]
async fn each_message_arrives_once_in_the_order_of_its_key() {
    let broker = TestBroker::start().await;
    create(&broker, stream_config()).await;
    let sink = sink(options(&broker.url()));
    sink.check().await.expect("JetStream answers");
    let all = group("partner.a", "a", 0..200);
    let other = group("partner.b", "b", 0..200);
    assert_all(sink.publish(&all[..1]).await, 1);
    let (one, two) = tokio::join!(sink.publish(&all[1..]), sink.publish(&other));
    assert_all(one, 199);
    assert_all(two, 200);
    // The server drops repetitions and stores new messages.
    let repeated = [&all[120..], &group("partner.a", "a", 200..205)].concat();
    assert_all(sink.publish(&repeated).await, 85);
    let stored = ids(&broker).await;
    assert_eq!(stored.len(), 405, "no duplicates");
    let of_key = |key: &str| stored.iter().filter(|id| id.starts_with(key)).cloned().collect::<Vec<_>>();
    assert_eq!(of_key("a"), ids_of(&group("partner.a", "a", 0..205)));
    assert_eq!(of_key("b"), ids_of(&other));
    let stream = broker.jetstream().await.get_stream("PARTNER").await.expect("the stream");
    let first = stream.get_first_raw_message_by_subject("partner.a", 1).await.expect("the first");
    assert_eq!(first.payload, all[0].body);
    let traceparent = first.headers.get("traceparent").map(|value| value.as_str());
    assert_eq!(traceparent, Some(all[0].headers[0].1.as_str()));
}

#[tokio::test]
async fn core_nats_passes_on_to_who_listens() {
    let broker =
        TestBroker::start_with(BrokerOptions { jetstream: false, ..BrokerOptions::new(nats_server()) }).await;
    let sink = sink(NatsOptions { mode: Mode::Core, ..options(&broker.url()) });
    sink.check().await.expect("the server answers");
    let listener = broker.client().await;
    let mut messages = listener.subscribe("partner.>").await.expect("subscribed");
    // Receives its own message, so the server has the subscription.
    listener.publish("partner.ready", "".into()).await.expect("published");
    let ready = tokio::time::timeout(Duration::from_secs(5), messages.next()).await.expect("in time");
    assert_eq!(ready.expect("the subscription lives").subject.as_str(), "partner.ready");
    let all = group("partner.a", "a", 0..20);
    assert_all(sink.publish(&all).await, 20);
    for expected in &all {
        let message = tokio::time::timeout(Duration::from_secs(5), messages.next()).await.expect("in time");
        let message = message.expect("the subscription lives");
        assert_eq!(message.payload, expected.body);
        let headers = message.headers.expect("headers");
        assert_eq!(headers.get("Nats-Msg-Id").map(|id| id.as_str()), Some(expected.id.as_str()));
    }
}

#[tokio::test]
async fn a_full_stream_refuses_until_there_is_room() {
    let broker = TestBroker::start().await;
    let mut config = Config { max_messages: 120, ..stream_config() };
    create(&broker, config.clone()).await;
    let sink = sink(options(&broker.url()));
    let all = group("partner.a", "a", 0..200);
    let published = sink.publish(&all).await;
    let PublishedGroup { acknowledged: 120, error: Some(PublishError::NoRoom { reason }) } = published else {
        panic!("{published:?}")
    };
    assert!(reason.contains("10077"), "{reason}");
    config.max_messages = 1000;
    broker.jetstream().await.update_stream(config).await.expect("more room");
    assert_all(sink.publish(&all[120..]).await, 80);
    assert_eq!(ids(&broker).await, ids_of(&all));
}

#[tokio::test]
async fn a_subject_that_no_stream_takes_is_refused() {
    let broker = TestBroker::start().await;
    create(&broker, stream_config()).await;
    let sink = sink(options(&broker.url()));
    let mut all = group("partner.a", "a", 0..150);
    all[100].stream = "elsewhere.a".to_owned();
    let published = sink.publish(&all).await;
    assert_eq!(published.acknowledged, 100);
    assert!(matches!(published.error, Some(PublishError::Refused { .. })), "{:?}", published.error);
    assert_eq!(ids(&broker).await, ids_of(&all[..100]));
}

#[tokio::test]
async fn a_server_without_jetstream_is_unavailable() {
    let broker =
        TestBroker::start_with(BrokerOptions { jetstream: false, ..BrokerOptions::new(nats_server()) }).await;
    let sink = sink(options(&broker.url()));
    assert_unavailable(&sink, &group("partner.a", "a", 0..2)).await;
    assert!(matches!(sink.check().await, Err(PublishError::Unavailable { .. })));
}

#[tokio::test]
async fn what_will_never_be_taken_is_permanent() {
    let broker = TestBroker::start_with(BrokerOptions {
        max_payload: Some(64 * 1024),
        ..BrokerOptions::new(nats_server())
    })
    .await;
    create(&broker, Config { max_message_size: 1024, ..stream_config() }).await;
    for mode in [Mode::JetStream, Mode::Core] {
        let sink = sink(NatsOptions { mode, ..options(&broker.url()) });
        let mut for_server = outgoing("partner.a", "a", 1);
        for_server.body = vec![b'x'; 65 * 1024].into();
        let mut for_stream = outgoing("partner.a", "a", 2);
        for_stream.body = vec![b'x'; 2000].into();
        let mut header = outgoing("partner.a", "a", 3);
        header.headers.push(("x".to_owned(), "two\r\nlines".to_owned()));
        // The server would end the connection, again and again, for a line that is too long.
        let long = format!("partner.{}", "a".repeat(4_096));
        let subjects = ["partner.*", "partner..a", "partner a", "", &long];
        let subjects = subjects.map(|subject| outgoing(subject, "a", 4));
        let mut messages = vec![for_server, header];
        messages.extend(subjects);
        if mode != Mode::Core {
            messages.push(for_stream);
        }
        for message in messages {
            let published = sink.publish(&[outgoing("partner.a", "a", 0), message.clone()]).await;
            assert_eq!(published.acknowledged, 1, "{mode:?} {:?}: {published:?}", message.stream);
            assert!(
                matches!(published.error, Some(PublishError::Permanent { .. })),
                "{mode:?} {published:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_server_that_hangs_or_goes_is_unavailable_and_comes_back() {
    let mut broker = TestBroker::start().await;
    create(&broker, stream_config()).await;
    let proxy = FaultProxy::start(&broker.url()).await;
    let sink = sink(options(&proxy.url("nats")));
    let all = group("partner.a", "a", 0..200);
    assert_all(sink.publish(&all[..1]).await, 1);

    // The last message of a group is stored and its acknowledgement is lost.
    let lost = proxy.cut_before(Direction::ToClient, "\"stream\":");
    assert_unavailable(&sink, &all[1..100]).await;
    lost.fired(SHORT.publish).await;
    proxy.cut();
    publish_when_back(&sink, &all[1..100]).await;

    broker.process().kill().await.expect("killed");
    assert_unavailable(&sink, &all[100..]).await;
    broker.process().restart().await.expect("restarted");
    publish_when_back(&sink, &all[100..]).await;
    assert_eq!(ids(&broker).await, ids_of(&all), "each once, in order");
}

#[tokio::test]
async fn core_nats_does_not_acknowledge_what_a_lost_connection_took_along() {
    let broker = TestBroker::start().await;
    let proxy = FaultProxy::start(&broker.url()).await;
    let sink = sink(NatsOptions { mode: Mode::Core, ..options(&proxy.url("nats")) });
    assert_all(sink.publish(&group("partner.a", "a", 0..1)).await, 1);
    let swallowed = proxy.cut_before(Direction::ToServer, "HPUB partner.a");
    let all = group("partner.a", "a", 1..3);
    let (published, ()) = tokio::join!(sink.publish(&all), async {
        swallowed.fired(SHORT.publish).await;
        proxy.cut();
    });
    assert_eq!(published.acknowledged, 0, "{published:?}");
    assert!(matches!(published.error, Some(PublishError::Unavailable { .. })), "{published:?}");
    publish_when_back(&sink, &all).await;
}

#[tokio::test]
async fn each_login_method_and_its_failure() {
    let nkey = nkeys::KeyPair::new_user();
    let folder = tempfile::tempdir().expect("a folder");
    let seed_file = |name: &str, key: &nkeys::KeyPair| {
        let path = folder.path().join(name);
        std::fs::write(&path, key.seed().expect("a seed")).expect("a file");
        path
    };
    let right = seed_file("right.nk", &nkey);
    let wrong = seed_file("wrong.nk", &nkeys::KeyPair::new_user());
    let user = ("authorization { users = [ { user: hub, password: right-one } ] }", "user and password");
    let token = ("authorization { token: right-one }", "token");
    let key = format!("authorization {{ users = [ {{ nkey: {} }} ] }}", nkey.public_key());
    for (config, setting) in [user, token, (key.as_str(), "nkey_seed_file")] {
        let server = BrokerOptions { extra_config: config.to_owned(), ..BrokerOptions::new(nats_server()) };
        let broker = TestBroker::start_with(server).await;
        let with = |secret: &str, seed: &std::path::Path| {
            let mut options = NatsOptions { mode: Mode::Core, ..options(&broker.url()) };
            match setting {
                "token" => options.token = Some(secret.into()),
                "nkey_seed_file" => options.nkey_seed_file = Some(seed.to_owned()),
                _ => {
                    options.user = Some("hub".to_owned());
                    options.password = Some(secret.into());
                }
            }
            options
        };
        assert_all(sink(with("right-one", &right)).publish(&group("partner.a", "a", 0..2)).await, 2);
        let options = with("wrong-secret", &wrong);
        assert!(!format!("{options:?}").contains("wrong-secret"));
        let error = sink(options).check().await.expect_err("is not let in");
        let text = error.to_string();
        assert!(matches!(error, PublishError::Unavailable { .. }), "{text}");
        assert!(text.contains(&format!("correct {setting}")) && !text.contains("wrong-secret"), "{text}");
    }
}

#[tokio::test]
async fn a_subject_that_is_not_permitted_is_refused_and_others_are_not() {
    let users = r#"authorization { users = [
        { user: admin, password: admin },
        { user: hub, password: hub, permissions: { publish: ["partner.a", "_INBOX.>"], subscribe: "_INBOX.>" } },
    ] }"#;
    let server = BrokerOptions { extra_config: users.to_owned(), ..BrokerOptions::new(nats_server()) };
    let broker = TestBroker::start_with(server).await;
    let admin = async_nats::ConnectOptions::with_user_and_password("admin".into(), "admin".into());
    let admin = async_nats::jetstream::new(admin.connect(broker.url()).await.expect("connects"));
    let mut stream = admin.create_stream(stream_config()).await.expect("a stream");
    for mode in [Mode::JetStream, Mode::Core] {
        let (user, password) = (Some("hub".to_owned()), Some("hub".into()));
        let sink = sink(NatsOptions { mode, user, password, ..options(&broker.url()) });
        sink.check().await.expect("it is let in, though it may not ask JetStream");
        let not_permitted = sink.publish(&group("partner.b", "b", 0..1)).await;
        assert!(
            matches!(not_permitted.error, Some(PublishError::Refused { .. })),
            "{mode:?} {not_permitted:?}"
        );
        assert_all(sink.publish(&[outgoing("partner.a", "a", mode as usize)]).await, 1);
    }
    assert_eq!(stream.info().await.expect("its state").state.messages, 2);
}

#[tokio::test]
async fn tls_with_a_private_ca() {
    let certificates = Certificates::generate();
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}",
        certificates.cert().display().to_string(),
        certificates.key().display().to_string()
    );
    let server = BrokerOptions { extra_config: tls, ..BrokerOptions::new(nats_server()) };
    let broker = TestBroker::start_with(server).await;
    let url = broker.url().replace("nats://", "tls://");
    let with = |ca_file| {
        let tls = BrokerTls { ca_file: Some(ca_file), required: true, ..BrokerTls::default() };
        sink(NatsOptions { mode: Mode::Core, tls, ..options(&url) })
    };
    assert_all(with(certificates.ca()).publish(&group("partner.a", "a", 0..2)).await, 2);
    assert_unavailable(&with(Certificates::generate().ca()), &group("partner.a", "a", 2..3)).await;
    let error = with("/nowhere/ca.pem".into()).check().await.expect_err("no such file").to_string();
    assert!(error.contains("tls_ca_file") && error.contains("/nowhere/ca.pem"), "{error}");
}

#[tokio::test]
async fn tls_with_a_certificate_of_our_own() {
    let certificates = Certificates::generate();
    let path = |path: std::path::PathBuf| path.display().to_string();
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        path(certificates.cert()),
        path(certificates.key()),
        path(certificates.ca())
    );
    let server = BrokerOptions { extra_config: tls, ..BrokerOptions::new(nats_server()) };
    let broker = TestBroker::start_with(server).await;
    let url = broker.url().replace("nats://", "tls://");
    let with = |cert_file, key_file| {
        let tls = BrokerTls { ca_file: Some(certificates.ca()), cert_file, key_file, required: true };
        sink(NatsOptions { mode: Mode::Core, tls, ..options(&url) })
    };
    let own = with(Some(certificates.cert()), Some(certificates.key()));
    assert_all(own.publish(&group("partner.a", "a", 0..2)).await, 2);
    assert_unavailable(&with(None, None), &group("partner.a", "a", 2..3)).await;
}

#[tokio::test]
async fn unusable_files_are_reported_by_their_setting() {
    let folder = tempfile::tempdir().expect("a folder");
    let garbage = folder.path().join("garbage");
    std::fs::write(&garbage, "not-a-seed").expect("a file");
    let missing = folder.path().join("missing");
    let base = || options("nats://127.0.0.1:1");
    for (setting, options) in [
        ("credentials_file", NatsOptions { credentials_file: Some(garbage.clone()), ..base() }),
        ("credentials_file", NatsOptions { credentials_file: Some(missing.clone()), ..base() }),
        ("nkey_seed_file", NatsOptions { nkey_seed_file: Some(missing), ..base() }),
    ] {
        let error = sink(options).check().await.expect_err("cannot be used").to_string();
        assert!(error.contains(setting) && !error.contains("not-a-seed"), "{error}");
    }
}

#[test]
fn unusable_options_are_reported_by_name() {
    let setting = |options: NatsOptions| Nats::new(options).err().map(|error| error.setting);
    assert_eq!(setting(options("http://127.0.0.1:1")), Some("url"));
    assert_eq!(setting(options("nats://hub:secret@127.0.0.1:1")), Some("url"));
    let base = || options("nats://127.0.0.1:1, nats://127.0.0.1:2");
    assert_eq!(setting(base()), None);
    assert_eq!(setting(NatsOptions { user: Some("u".into()), ..base() }), Some("password"));
    assert_eq!(setting(NatsOptions { password: Some("p".into()), ..base() }), Some("user"));
    let two = NatsOptions { token: Some("t".into()), nkey_seed_file: Some("n.nk".into()), ..base() };
    assert_eq!(setting(two), Some("token"));
}
