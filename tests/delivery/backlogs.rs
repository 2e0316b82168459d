//! Quotas of backlogs: what a hung subscription cannot take becomes a dead letter, and nobody else notices.

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Account, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(60);
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const BOTH: [(&str, &str); 2] = [("stuck", "/stuck"), ("well", "/well")];

/// A hub with two subscriptions, one of which has these further delivery settings.
struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    hub: Hub,
    client: TestClient,
}

impl Stage {
    async fn new(settings: &TestSettings, stuck: &[(&str, Value)]) -> Self {
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let mut hub = Hub::serve(&broker.url(), settings, &[]);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        let mut both = BOTH.map(|(id, path)| patient(id, &["policy.>"], &receiver.url(path)));
        for (field, value) in stuck {
            both[0]["delivery"][field] = value.clone();
        }
        client.subscribe(both).await;
        Self { broker, receiver, hub, client }
    }

    /// Dead letters of the stuck subscription, each with this reason.
    async fn letters(&self, reason: &str) -> usize {
        let letters = self.client.dead_letters("policy-client").await;
        for entry in &letters {
            let letter = &entry.letter;
            assert_eq!((letter.subscription.as_str(), letter.reason.as_str()), ("stuck", reason));
            assert_eq!(letter.fault.as_str(), "subscriber");
        }
        letters.len()
    }

    async fn wait_for_letters(&self, reason: &str, count: usize) {
        eventually(STEP, "the dead letters are there", async || {
            let letters = self.letters(reason).await;
            if letters == count { Ok(()) } else { Err(letters) }
        })
        .await;
    }

    /// Envelopes of the stuck subscription in the outbox.
    async fn backlog(&self) -> u64 {
        let look = self.client.js.backlogs("policy-client", Some("stuck")).await.expect("the backlog");
        look.backlogs.iter().map(|backlog| backlog.own + backlog.shared).sum()
    }

    /// Replays the dead letters; every event then has reached both, once.
    async fn replayed(&self, events: &[String]) {
        self.broker.nothing_pending_within(STEP).await;
        self.hub.cli_ok(&["dlt", "replay", "--all"]).await;
        for (_, path) in BOTH {
            self.receiver.wait_accepted(path, events.len(), STEP).await;
        }
        self.broker.nothing_pending_within(STEP).await;
        let letters = self.client.dead_letters("policy-client").await;
        let account = Account::of(events, &BOTH, &self.receiver, &letters);
        account.assert_complete("after the replay");
        assert_eq!((account.delivered, account.doubles, account.dead), (2 * events.len(), 0, 0));
    }
}

#[tokio::test]
async fn beyond_its_count_a_backlog_is_dead_lettered_and_a_replay_brings_it_back() {
    let stage = Stage::new(&TestSettings::patient(), &[("max_backlog", 100.into())]).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/stuck", gate);
    let events = ids("event", 400);
    stage.client.publish_all("policy.updated", &events).await;
    stage.receiver.wait_accepted("/well", 400, STEP).await;
    stage.wait_for_letters("over-quota", 300).await;
    assert_eq!(stage.backlog().await, 100);
    stage.hub.wait_for_log("backlog near its limit", STEP).await;
    stage.hub.metric_above("hub_fullest_backlog_percent", &["domain=\"policy-client\""], 99.0, STEP).await;

    open.send_replace(true);
    stage.receiver.wait_accepted("/stuck", 100, STEP).await;
    stage.replayed(&events).await;
}

#[tokio::test]
async fn a_healthy_subscription_may_be_faster_than_its_quota_is_large() {
    let stage = Stage::new(&TestSettings::patient(), &[("max_backlog", 600.into())]).await;
    for round in 0..10 {
        stage.client.publish_all("policy.updated", &ids(&format!("event-{round}"), 300)).await;
        stage.receiver.wait_accepted("/stuck", 300 * (round + 1), STEP).await;
    }
    assert_eq!(stage.letters("over-quota").await, 0);
}

#[tokio::test]
async fn beyond_its_size_a_backlog_is_dead_lettered() {
    let stage = Stage::new(&TestSettings::patient(), &[("max_backlog_bytes", "50KB".into())]).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/stuck", gate);
    let events = ids("event", 300);
    stage.client.publish_all("policy.updated", &events).await;
    stage.receiver.wait_accepted("/well", 300, STEP).await;
    let letters = eventually(STEP, "each envelope is in the outbox or a dead letter", async || {
        let (letters, backlog) = (stage.letters("over-quota").await as u64, stage.backlog().await);
        if letters + backlog == 300 { Ok(letters) } else { Err((letters, backlog)) }
    })
    .await;
    let bytes = eventually(STEP, "only the stuck ones are left", async || {
        let state = stage.client.stream(OUTBOX).await.state;
        if state.messages == 300 - letters { Ok(state.bytes) } else { Err(state.messages) }
    })
    .await;
    // Sizes are estimated: the headers of a batch are not counted.
    assert!((40_000..=55_000).contains(&bytes), "{bytes} bytes, {letters} dead letters");
    open.send_replace(true);
    stage.replayed(&events).await;
}

/// One hung subscription, and streams that an hour of events would fill many times. Each event is published once and must be
/// stored at once.
#[tokio::test]
async fn publishers_are_never_refused_because_of_a_hung_subscription() {
    const EVENTS: usize = 4_000;
    let settings = TestSettings::patient().with(|settings| {
        settings.delivery.held = Some(128);
        settings.delivery.queue_per_subscription = Some(16);
        settings.events.max_size = Some(10_000);
        settings.limits.outbox = Some(1_000_000);
        settings.limits.events = Some(300_000);
    });
    let stage = Stage::new(&settings, &[]).await;
    let (_open, gate) = Behaviour::gate();
    stage.receiver.set("/stuck", gate);
    let events = ids("event", EVENTS);
    let mut published = 0;
    for chunk in events.chunks(50) {
        for id in chunk {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", id.as_str());
            let sent =
                stage.client.context.publish_with_headers("hub.events.policy.updated", headers, "{}".into());
            sent.await.expect("sent").await.expect("the publisher is not refused");
        }
        published += chunk.len();
        stage.receiver.wait_accepted("/well", published, STEP).await;
    }
    let letters = stage.letters("over-quota").await as u64;
    assert!(letters > 0 && letters + stage.backlog().await == EVENTS as u64, "{letters} dead letters");
    let bytes = stage.client.stream(OUTBOX).await.state.bytes;
    // A fifth, and what was added between two looks.
    assert!(bytes < 400_000, "{bytes} bytes of 1,000,000 in the outbox");
    assert!(!stage.hub.log().contains("domain outbox full"));
}

#[tokio::test]
async fn an_envelope_that_waits_for_too_long_expires_and_a_replay_delivers_it() {
    let settings = TestSettings::patient().with(|settings| {
        settings.delivery.retry = Some(vec![Duration::from_secs(3)]);
        settings.delivery.max_age = Some(Duration::from_secs(3600));
    });
    let stage = Stage::new(&settings, &[("max_age", "1s".into())]).await;
    stage.receiver.set("/stuck", Behaviour::status(503));
    let events = ids("event", 20);
    stage.client.publish_all("policy.updated", &events).await;
    stage.wait_for_letters("expired", 20).await;
    assert_eq!(stage.receiver.count("/stuck"), 20, "one attempt each");
    for entry in stage.client.dead_letters("policy-client").await {
        assert_eq!((entry.letter.state.as_str(), entry.letter.attempts), ("parked", 1));
        assert!(entry.letter.last_error.is_some_and(|error| error.contains("max_age")));
    }
    // Its age counts from the replay.
    stage.receiver.set("/stuck", Behaviour::ok());
    stage.replayed(&events).await;
}

/// The redrives find the backlog still full, and end with the schedule.
#[tokio::test]
async fn redrives_over_quota_are_postponed_and_end() {
    let settings = TestSettings::patient().with_redrives([Duration::from_secs(1); 2]);
    let stage = Stage::new(&settings, &[("max_backlog", 10.into())]).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/stuck", gate);
    let events = ids("event", 30);
    stage.client.publish_all("policy.updated", &events).await;
    stage.receiver.wait_accepted("/well", 30, STEP).await;
    eventually(STEP, "all redrives are used up", async || {
        let letters = stage.client.dead_letters("policy-client").await;
        let all = letters.len();
        let ended = letters.into_iter().filter(|entry| entry.letter.redrives == 2);
        let parked = ended.filter(|entry| entry.letter.state.as_str() == "parked").count();
        if (parked, all) == (20, 20) { Ok(()) } else { Err((parked, all)) }
    })
    .await;
    assert_eq!((stage.letters("over-quota").await, stage.backlog().await), (20, 10));
    open.send_replace(true);
    stage.replayed(&events).await;
}

#[tokio::test]
async fn while_an_operator_pauses_the_domain_nothing_is_over_quota() {
    let stage = Stage::new(&TestSettings::patient(), &[("max_backlog", 10.into())]).await;
    stage.hub.cli_ok(&["domain", "pause", "policy-client"]).await;
    let events = ids("event", 100);
    stage.client.publish_all("policy.updated", &events).await;
    eventually(STEP, "all envelopes are in the outbox", async || {
        let backlog = stage.backlog().await;
        if backlog == 100 { Ok(()) } else { Err(backlog) }
    })
    .await;
    assert_eq!(stage.letters("over-quota").await, 0);
    stage.hub.cli_ok(&["domain", "resume", "policy-client"]).await;
    stage.receiver.wait_accepted("/stuck", 100, STEP).await;
}
