//! A delivery log that cannot store every record: it drops records, reports and counts them, and no delivery
//! waits for it.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::DiscardPolicy;
use futures_util::StreamExt as _;
use tokio::sync::Mutex;

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(90);
const LOG: &str = "HUB_ATTEMPTS";
const LEFT_OUT: &str = "delivery log overloaded, attempts left out";
const NOT_STORED: &str = "delivery log not stored, attempts left out";
const AGAIN: &str = "delivery log complete again";
/// Messages of the log that may wait for their acknowledgement at once, per domain.
const IN_FLIGHT: usize = 32;

struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    hub: Hub,
    client: TestClient,
}

impl Stage {
    async fn set(settings: &TestSettings) -> Self {
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let mut hub = Hub::serve(&broker.url(), settings, &[]);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        client.subscribe([patient("a", &["policy.>"], &receiver.url("/a"))]).await;
        Self { broker, receiver, hub, client }
    }

    /// Publishes events with these ids, and waits until `total` are accepted in all and no envelope is left.
    async fn deliver(&self, ids: &[String], total: usize) {
        self.client.publish_all("policy.updated", ids).await;
        self.receiver.wait_accepted("/a", total, STEP).await;
        self.broker.nothing_pending_within(STEP).await;
    }

    async fn logged(&self) -> f64 {
        self.hub.metric("hub_attempts_logged_total", &[]).await
    }

    async fn left_out(&self) -> f64 {
        self.hub.metric("hub_attempts_unlogged_total", &[r#"domain="policy-client""#]).await
    }
}

/// Ids so long that a few thousand records are more than the log keeps in memory (8 MiB).
fn long_ids(prefix: &str, count: usize) -> Vec<String> {
    let long = "x".repeat(1_500);
    ids(prefix, count).into_iter().map(|id| format!("{id}-{long}")).collect()
}

/// A subscriber to the log's subjects instead of the stream: accepts everything, and answers
/// on request only.
struct SilentLog {
    held: Arc<Mutex<Vec<async_nats::Message>>>,
    client: async_nats::Client,
}

impl SilentLog {
    async fn in_place_of_the_stream(stage: &Stage) -> Self {
        let client = stage.broker.client().await;
        let mut messages = client.subscribe("hub.attempts.>").await.expect("subscribed");
        stage.client.detach_stream(LOG).await;
        client.flush().await.expect("the server knows of the subscription");
        let held = Arc::new(Mutex::new(Vec::new()));
        let holding = held.clone();
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                holding.lock().await.push(message);
            }
        });
        Self { held, client }
    }

    async fn held(&self) -> usize {
        self.held.lock().await.len()
    }

    /// Acknowledges the messages received so far.
    async fn answer(&self) {
        for message in std::mem::take(&mut *self.held.lock().await) {
            let reply = message.reply.expect("the hub waits for an acknowledgement");
            let answer = format!(r#"{{"stream":"{LOG}","seq":1}}"#);
            self.client.publish(reply, answer.into()).await.expect("published");
        }
    }
}

#[tokio::test]
async fn a_log_that_does_not_answer_leaves_records_out_and_no_delivery_waits_for_it() {
    const WELL: usize = 2_000;
    const MANY: usize = 9_000;
    // Longer than the test: the log waits for its first acknowledgements until the end.
    let wait = Some(Duration::from_secs(60));
    let stage =
        Stage::set(&TestSettings::patient().with(|settings| settings.nats.request_timeout = wait)).await;
    stage.deliver(&long_ids("well", WELL), WELL).await;
    eventually(STEP, "all is logged", async || {
        let logged = stage.logged().await;
        if logged >= WELL as f64 { Ok(()) } else { Err(logged) }
    })
    .await;
    assert_eq!(stage.left_out().await, 0.0);

    let log = SilentLog::in_place_of_the_stream(&stage).await;
    stage.deliver(&long_ids("silent", MANY), WELL + MANY).await;
    // Everything is delivered and settled although no record was acknowledged.
    assert_eq!(stage.logged().await, WELL as f64);
    let held = log.held().await;
    assert!((1..=IN_FLIGHT).contains(&held), "{held} messages of the log are on their way");
    let left_out = stage.left_out().await;
    assert!(left_out > 0.0, "the log keeps no more than its bound in memory");
    assert_eq!(stage.hub.log().matches(LEFT_OUT).count(), 1, "logged once, not for each record");

    // The log answers again: the hub writes the records that it kept, and drops no more.
    eventually(STEP, "the collected records are written", async || {
        log.answer().await;
        let logged = stage.logged().await;
        if logged + left_out >= (WELL + MANY) as f64 { Ok(()) } else { Err(logged) }
    })
    .await;
    stage.hub.wait_for_log(AGAIN, STEP).await;
    assert_eq!(stage.logged().await + stage.left_out().await, (WELL + MANY) as f64, "each is counted once");
    stage.deliver(&long_ids("after", 10), WELL + MANY + 10).await;
    eventually(STEP, "later attempts are logged", async || {
        log.answer().await;
        let logged = stage.logged().await;
        if logged + left_out >= (WELL + MANY + 10) as f64 { Ok(()) } else { Err(logged) }
    })
    .await;
    assert_eq!(stage.left_out().await, left_out);
    assert_eq!(stage.receiver.doubles("/a").len(), 0);
}

#[tokio::test]
async fn a_log_that_refuses_leaves_records_out_until_it_takes_them_again() {
    let stage = Stage::set(&TestSettings::patient()).await;
    let limit = async |messages: i64| {
        let mut config = stage.client.stream(LOG).await.config;
        config.discard = DiscardPolicy::New;
        config.max_messages = messages;
        stage.client.context.update_stream(config).await.expect("the stream takes its new limit");
    };
    stage.client.publish("policy.updated", "first").await;
    eventually(STEP, "the first is logged", async || {
        let logged = stage.logged().await;
        if logged >= 1.0 { Ok(()) } else { Err(logged) }
    })
    .await;
    limit(1).await;
    stage.deliver(&ids("refused", 200), 201).await;
    eventually(STEP, "the rest is counted", async || {
        let left_out = stage.left_out().await;
        if left_out >= 200.0 { Ok(()) } else { Err(left_out) }
    })
    .await;
    assert_eq!((stage.logged().await, stage.left_out().await), (1.0, 200.0));
    assert_eq!(stage.hub.log().matches(NOT_STORED).count(), 1, "logged once");
    assert!(!stage.hub.log().contains(LEFT_OUT), "the server is the cause, not the number of attempts");

    limit(-1).await;
    stage.deliver(&ids("taken", 200), 401).await;
    stage.hub.wait_for_log(AGAIN, STEP).await;
    eventually(STEP, "later attempts are logged", async || {
        let logged = stage.logged().await;
        if logged >= 201.0 { Ok(()) } else { Err(logged) }
    })
    .await;
    assert_eq!(stage.left_out().await, 200.0);

    // The record of a final attempt is refused as well; the envelope is dead-lettered anyway.
    limit(1).await;
    stage.receiver.set("/a", Behaviour::status(503));
    stage.client.publish("policy.updated", "failing").await;
    let letter = eventually(STEP, "the dead letter is there", async || {
        let mut letters = stage.client.dead_letters("policy-client").await;
        if letters.len() == 1 { Ok(letters.remove(0).letter) } else { Err(letters.len()) }
    })
    .await;
    assert_eq!((letter.reason.as_str(), letter.event_id.as_str()), ("exhausted", "failing"));
}
