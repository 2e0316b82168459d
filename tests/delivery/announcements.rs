//! Envelopes that one process delivered, and whose acknowledgements are lost, come again to another one. It knows of the first delivery,
//! and does not send them again.

use std::time::Duration;

use futures_util::StreamExt as _;

use crate::support::{
    Account, Hub, Receiver, RequestProxy, TestBroker, TestClient, TestSettings, Treatment, eventually, ids,
    subscription,
};

const STEP: Duration = Duration::from_secs(120);
const EVENTS: usize = 60;
const BOTH: [(&str, &str); 2] = [("free", "/free"), ("strict", "/strict")];

/// A broker that gets no acknowledgement of an envelope from the first process.
struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    proxy: RequestProxy,
    client: TestClient,
    settings: TestSettings,
    first: Hub,
}

fn swallow_acknowledgements(subject: &str) -> Treatment {
    if subject.starts_with("$JS.ACK.HUB_OUTBOX_") { Treatment::Swallow } else { Treatment::Forward }
}

impl Stage {
    async fn new() -> Self {
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let proxy = RequestProxy::bind(&broker.url()).await.expect("the proxy listens");
        proxy.set(swallow_acknowledgements);
        let settings = TestSettings::patient().with(|settings| {
            settings.delivery.max_timeout = Some(Duration::from_secs(8));
            settings.delivery.ack_wait = Some(Duration::from_secs(10));
            settings.delivery.max_deliver = Some(20);
        });
        let mut first = Hub::serve(&proxy.url(), &settings, &[]);
        first.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        let mut strict = subscription("strict", &["user.>"], &receiver.url("/strict"));
        strict["delivery"]["ordering"] = "strict".into();
        client.subscribe([subscription("free", &["user.>"], &receiver.url("/free")), strict]).await;
        Self { broker, receiver, proxy, client, settings, first }
    }

    async fn second(&self) -> Hub {
        let mut second = Hub::serve(&self.broker.url(), &self.settings, &[]);
        second.ready().await;
        second
    }

    async fn publish(&self) -> Vec<String> {
        let events = ids("event", EVENTS);
        self.client.publish_all("user.created", &events).await;
        self.receiver.wait_accepted("/free", EVENTS, STEP).await;
        events
    }

    /// Every envelope is acknowledged in the end, and was sent once.
    async fn ends_without_doubles(&self, events: &[String]) {
        self.receiver.wait_accepted("/strict", EVENTS, STEP).await;
        self.broker.nothing_pending_within(STEP).await;
        let account =
            Account::of(events, &BOTH, &self.receiver, &self.client.dead_letters("user-lifecycle").await);
        account.assert_complete("acknowledged by the other process");
        assert_eq!((account.delivered, account.doubles, account.dead), (2 * EVENTS, 0, 0));
    }
}

async fn settled_again(hub: &Hub) -> f64 {
    hub.metric("hub_redeliveries_settled_total", &["domain=\"user-lifecycle\""]).await
}

#[tokio::test]
async fn a_process_that_starts_asks_what_the_others_delivered() {
    let mut stage = Stage::new().await;
    let events = stage.publish().await;
    let second = stage.second().await;
    eventually(STEP, "it has got an envelope of the other", async || match settled_again(&second).await {
        0.0 => Err(0.0),
        _ => Ok(()),
    })
    .await;
    stage.first.kill().await;
    stage.ends_without_doubles(&events).await;
}

#[tokio::test]
async fn a_process_that_stops_announces_what_it_delivered() {
    let mut stage = Stage::new().await;
    let second = stage.second().await;
    let events = stage.publish().await;
    stage.first.terminate().await;
    stage.ends_without_doubles(&events).await;
    assert!(settled_again(&second).await > 0.0, "a part was delivered by the first process");
}

#[tokio::test]
async fn after_a_reconnect_all_announce_what_they_delivered() {
    let mut stage = Stage::new().await;
    let second = stage.second().await;
    let events = stage.publish().await;
    stage.broker.process().kill().await.expect("the broker is killed");
    stage.broker.process().restart().await.expect("the broker starts on the same port");
    // The first process sends its acknowledgements again, in vain.
    eventually(STEP, "the second one has got an envelope of the first", async || {
        match settled_again(&second).await {
            0.0 => Err(0.0),
            _ => Ok(()),
        }
    })
    .await;
    // The rest of the strict order would wait for it again and again.
    stage.proxy.set(|_| Treatment::Forward);
    stage.ends_without_doubles(&events).await;
}

/// The broker gives up; the router removes what was delivered.
#[tokio::test]
async fn an_envelope_whose_acknowledgements_are_all_lost_is_removed() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let proxy = RequestProxy::bind(&broker.url()).await.expect("the proxy listens");
    proxy.set(swallow_acknowledgements);
    let settings = TestSettings::quick().with(|settings| {
        settings.delivery.max_timeout = Some(Duration::from_secs(4));
        settings.delivery.ack_wait = Some(Duration::from_secs(5));
        settings.delivery.max_deliver = Some(2);
    });
    let mut hub = Hub::serve(&proxy.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("free", &["user.>"], &receiver.url("/free"))]).await;
    let events = ids("event", EVENTS);
    client.publish_all("user.created", &events).await;
    receiver.wait_accepted("/free", EVENTS, STEP).await;
    broker.nothing_pending_within(STEP).await;
    hub.wait_for_log("removed a delivered envelope that was still in its outbox", STEP).await;
    let letters = client.dead_letters("user-lifecycle").await;
    let account = Account::of(&events, &BOTH[..1], &receiver, &letters);
    account.assert_complete("removed by the router");
    assert_eq!((account.delivered, account.doubles, account.dead), (EVENTS, 0, 0));
}

/// A notice of one delivered envelope, as a process of a hub sends it.
fn notice(kind: u8, outbox_created: i128, envelope: Option<(u64, i128, u128)>) -> Vec<u8> {
    let nanos = |time: i128| i64::try_from(time).expect("in range").to_be_bytes();
    let mut body = vec![kind];
    body.extend(nanos(outbox_created));
    body.extend(4_711_u64.to_be_bytes());
    if let Some((sequence, at, number)) = envelope {
        body.extend(sequence.to_be_bytes());
        body.extend(nanos(at));
        // The shared lane.
        body.push(0);
        body.extend(number.to_be_bytes());
    }
    body
}

/// Hubs that are joined by leaf nodes hear each other.
#[tokio::test]
async fn what_another_hub_delivered_does_not_count() {
    const OUTBOX: &str = "HUB_OUTBOX_USER_LIFECYCLE";
    const SUBJECT: &str = "hub.settled.user-lifecycle";
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("free", &["user.>"], &receiver.url("/free"))]).await;
    hub.cli_ok(&["domain", "pause", "user-lifecycle", "--for", "1h"]).await;
    let events = ids("event", 3);
    for id in &events {
        client.publish("user.created", id).await;
    }
    let stream = client.context.get_stream(OUTBOX).await.expect("the outbox");
    let mut stored = Vec::new();
    for sequence in 1..=3 {
        let message = eventually(STEP, "the envelope is in the outbox", async || {
            stream.get_raw_message(sequence).await.map_err(|error| error.to_string())
        })
        .await;
        let envelope: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
        let digits = envelope["id"].as_str().and_then(|id| id.strip_prefix("env_")).expect("an id");
        let number = u128::from_str_radix(digits, 16).expect("hexadecimal");
        stored.push((sequence, message.time.unix_timestamp_nanos(), number));
    }
    let created = stream.cached_info().created.unix_timestamp_nanos();
    let nats = client.context.client();
    let mut heard = nats.subscribe(SUBJECT).await.expect("subscribed");
    let notices = [
        // Another outbox; an outbox and a message of it that were there before; and the delivery of a process of this hub.
        notice(b'+', created + 1, Some(stored[0])),
        notice(b'+', created, Some((stored[1].0, stored[1].1 - 1, stored[1].2 + 1))),
        notice(b'+', created, Some(stored[2])),
        notice(b'?', created, None),
    ];
    for body in notices {
        nats.publish(SUBJECT, body.into()).await.expect("sent");
    }
    // It answers the request after it has heard the rest.
    let answered = async {
        while let Some(message) = heard.next().await {
            if message.payload.first() == Some(&b'.') {
                assert_eq!(message.payload[1..9], i64::try_from(created).expect("in range").to_be_bytes());
                return;
            }
        }
    };
    tokio::time::timeout(STEP, answered).await.expect("an answer");
    hub.cli_ok(&["domain", "resume", "user-lifecycle"]).await;
    receiver.wait_accepted("/free", 2, STEP).await;
    broker.nothing_pending_within(STEP).await;
    let arrived = receiver.received("/free");
    let mut arrived: Vec<String> =
        arrived.iter().map(|request| request.json()["id"].as_str().unwrap_or_default().to_owned()).collect();
    arrived.sort();
    assert_eq!(arrived, events[..2]);
    assert!((settled_again(&hub).await - 1.0).abs() < 0.5);
}
