//! Dead letters that cannot be stored delay their own envelopes only.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::support::{
    Account, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(90);
const DOMAIN: &str = "policy-client";
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const DLT: &str = "HUB_OUTBOX_POLICY_CLIENT_DLT";
const BLOCKED: &str = "dead letters cannot be stored";
const UNBLOCKED: &str = "dead letters are stored again";
const BOTH: [(&str, &str); 2] = [("stuck", "/stuck"), ("well", "/well")];

struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    hub: Hub,
    client: TestClient,
}

/// A dead-letter stream with room for a few dozen dead letters.
fn settings() -> TestSettings {
    TestSettings::patient().with(|settings| {
        settings.events.max_size = Some(10_000);
        settings.limits.dlt = Some(60_000);
    })
}

impl Stage {
    async fn new<'a>(
        settings: &TestSettings,
        subscriptions: impl IntoIterator<Item = (&'a str, Value)>,
    ) -> Self {
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let mut hub = Hub::serve(&broker.url(), settings, &[]);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        let all = subscriptions.into_iter().map(|(id, delivery)| {
            let mut one = patient(id, &["policy.>"], &receiver.url(&format!("/{id}")));
            for (name, value) in delivery.as_object().into_iter().flatten() {
                one["delivery"][name] = value.clone();
            }
            one
        });
        client.subscribe(all).await;
        Self { broker, receiver, hub, client }
    }

    /// With one subscription beyond its quota beside a healthy one.
    async fn over_quota(settings: &TestSettings) -> Self {
        Self::new(settings, [("stuck", json!({"max_backlog": 20})), ("well", json!({}))]).await
    }

    async fn publish(&self, prefix: &str, count: usize) -> Vec<String> {
        let events = ids(prefix, count);
        self.client.publish_all("policy.updated", &events).await;
        events
    }

    async fn backlog(&self) -> u64 {
        let look = self.client.js.backlogs(DOMAIN, Some("stuck")).await.expect("the backlog");
        look.backlogs.iter().map(|backlog| backlog.own + backlog.shared).sum()
    }

    async fn letters(&self) -> usize {
        self.client.dead_letters(DOMAIN).await.len()
    }

    fn lines(&self, text: &str) -> usize {
        self.hub.log().lines().filter(|line| line.contains(text)).count()
    }

    async fn events_are_done(&self) {
        eventually(STEP, "no event waits", async || match self.broker.messages("HUB_EVENTS").await {
            0 => Ok(()),
            waiting => Err(waiting),
        })
        .await;
    }

    async fn wait_for_letters(&self, least: usize) {
        eventually(STEP, &format!("{least} dead letters are stored"), async || {
            let letters = self.letters().await;
            if letters >= least { Ok(()) } else { Err(letters) }
        })
        .await;
    }

    /// Sets the limit of the dead-letter stream, as an operator does.
    async fn resize(&self, bytes: i64) {
        let mut config = self.client.stream(DLT).await.config;
        config.max_bytes = bytes;
        self.client.context.update_stream(config).await.expect("the stream is changed");
    }

    /// What an operator sees while dead letters are refused, and when they are stored again.
    async fn is_shown(&self, blocked: bool) {
        eventually(STEP, &format!("blocked is shown as {blocked}"), async || {
            let (ready, text) = self.hub.readiness().await;
            let shown = text.contains("warning: dead letters of policy-client cannot be stored in");
            let others = ["user-lifecycle", "access-session", "organization"];
            let other = others.iter().any(|domain| text.contains(domain));
            let metric = self.hub.metric("hub_dlt_blocked", &["domain=\"policy-client\""]).await;
            let is = (ready, shown, other, metric > 0.5);
            if is == (true, blocked, false, blocked) { Ok(()) } else { Err((is, text)) }
        })
        .await;
    }
}

#[tokio::test]
async fn a_healthy_subscription_does_not_wait_for_the_excess_of_another() {
    let stage = Stage::over_quota(&settings()).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/stuck", gate);
    let mut events = stage.publish("first", 300).await;
    stage.receiver.wait_accepted("/well", 300, STEP).await;
    stage.events_are_done().await;
    stage.is_shown(true).await;
    stage.hub.wait_for_log(BLOCKED, STEP).await;
    // It continues, without further log lines.
    events.extend(stage.publish("second", 100).await);
    stage.receiver.wait_accepted("/well", 400, STEP).await;
    stage.events_are_done().await;
    assert_eq!((stage.lines(BLOCKED), stage.lines(UNBLOCKED)), (1, 0));
    let (letters, backlog) = (stage.letters().await as u64, stage.backlog().await);
    assert!(letters > 20 && backlog > 100, "{letters} dead letters, {backlog} in the outbox");
    assert_eq!(letters + backlog, 400);
    let labels = ["domain=\"policy-client\""];
    let beyond = stage.hub.metric("hub_envelopes_beyond_quota_total", &labels).await;
    let least = f64::from(u32::try_from(backlog - 20).expect("a number"));
    assert!(beyond >= least, "{beyond}");

    open.send_replace(true);
    stage.receiver.wait_accepted("/stuck", usize::try_from(backlog).expect("a number"), STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    stage.hub.cli_ok(&["dlt", "replay", "--all"]).await;
    stage.receiver.wait_accepted("/stuck", 400, STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    stage.is_shown(false).await;
    stage.hub.wait_for_log(UNBLOCKED, STEP).await;
    assert_eq!((stage.lines(BLOCKED), stage.lines(UNBLOCKED)), (1, 1));
    let account = Account::of(&events, &BOTH, &stage.receiver, &stage.client.dead_letters(DOMAIN).await);
    account.assert_complete("after the replay");
    assert_eq!((account.delivered, account.doubles, account.dead), (800, 0, 0));
}

/// Room in the stream that is made by discarding, by a higher limit, and by deleting the whole stream.
#[tokio::test]
async fn when_there_is_room_again_the_excess_is_dead_lettered_again() {
    let stage = Stage::over_quota(&settings()).await;
    let (_open, gate) = Behaviour::gate();
    stage.receiver.set("/stuck", gate);
    stage.publish("event", 200).await;
    stage.is_shown(true).await;
    stage.events_are_done().await;
    stage.hub.cli_ok(&["dlt", "discard", "--all", "--yes"]).await;
    stage.is_shown(false).await;
    let backlog = stage.backlog().await;
    stage.publish("after-discard", 20).await;
    stage.wait_for_letters(20).await;
    assert_eq!(stage.backlog().await, backlog, "nothing is added beyond the quota");

    stage.publish("again", 200).await;
    stage.is_shown(true).await;
    stage.events_are_done().await;
    stage.resize(10_000_000).await;
    stage.is_shown(false).await;
    let (letters, backlog) = (stage.letters().await, stage.backlog().await);
    stage.publish("after-resize", 50).await;
    stage.wait_for_letters(letters + 50).await;
    assert_eq!(stage.backlog().await, backlog);

    // Without its subjects, nobody takes a dead letter, until the stream is deleted and created again.
    stage.client.detach_stream(DLT).await;
    let accepted = stage.receiver.count("/well");
    stage.publish("detached", 50).await;
    stage.receiver.wait_accepted("/well", accepted + 50, STEP).await;
    stage.events_are_done().await;
    assert_eq!(stage.backlog().await, backlog + 50);
    stage.client.context.delete_stream(DLT).await.expect("deleted");
    stage.hub.wait_for_log("created it again", STEP).await;
    let mut round = 0;
    eventually(STEP, "the excess is dead-lettered", async || {
        round += 1;
        stage.publish(&format!("after-delete-{round}"), 5).await;
        stage.events_are_done().await;
        let letters = stage.letters().await;
        if letters > 0 { Ok(()) } else { Err(letters) }
    })
    .await;
}

#[tokio::test]
async fn if_the_outbox_is_full_too_only_the_events_of_that_subscription_wait() {
    let small = settings().with(|settings| settings.limits.outbox = Some(200_000));
    let stage = Stage::over_quota(&small).await;
    let other = patient("other", &["client.>"], &stage.receiver.url("/other"));
    stage.client.subscribe([other]).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/stuck", gate);
    let events = stage.publish("event", 600).await;
    stage.hub.wait_for_log("dead-letter stream and outbox full", STEP).await;
    // The rest of the outbox is for others.
    for round in 0..3 {
        let others = ids(&format!("other-{round}"), 100);
        stage.client.publish_all("client.created", &others).await;
        stage.receiver.wait_accepted("/other", 100 * (round + 1), STEP).await;
    }
    assert!(stage.broker.messages("HUB_EVENTS").await > 0, "events wait");
    let bytes = stage.client.stream(OUTBOX).await.state.bytes;
    assert!(bytes <= 175_000, "{bytes} bytes of 200,000 in the outbox");

    open.send_replace(true);
    stage.receiver.wait_accepted("/well", 600, STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    stage.hub.cli_ok(&["dlt", "replay", "--all"]).await;
    stage.receiver.wait_accepted("/stuck", 600, STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    stage.hub.wait_for_log("envelopes over quota no longer wait", STEP).await;
    let account = Account::of(&events, &BOTH, &stage.receiver, &stage.client.dead_letters(DOMAIN).await);
    account.assert_complete("after the replay");
    assert_eq!((account.delivered, account.doubles, account.dead), (1_200, 0, 0));
}

/// Each way in which a worker or the router makes a dead letter, with a stream that takes none.
#[tokio::test]
async fn only_the_failed_envelopes_wait_for_their_dead_letters() {
    const EVENTS: usize = 20;
    let order = |policy: &str| json!({"ordering": "strict", "on_dead_letter": policy});
    let failing = [
        ("exhausted", 503, json!({})),
        ("permanent", 400, json!({})),
        ("gone", 410, json!({})),
        ("expired", 503, json!({"max_age": "1s"})),
        ("stops", 400, order("stop")),
        ("skips", 400, order("skip")),
    ];
    let healthy = [("well", json!({})), ("in-order", order("stop"))];
    let settings = settings().with(|settings| {
        settings.delivery.retry = Some(vec![Duration::from_millis(800); 2]);
    });
    let all = failing.iter().map(|(id, _, more)| (*id, more.clone())).chain(healthy);
    let stage = Stage::new(&settings, all).await;
    for (id, status, _) in &failing {
        stage.receiver.set(&format!("/{id}"), Behaviour::status(*status));
    }
    stage.resize(100).await;
    let events = stage.publish("event", EVENTS).await;
    for path in ["/well", "/in-order"] {
        stage.receiver.wait_accepted(path, EVENTS, STEP).await;
    }
    stage.events_are_done().await;
    stage.is_shown(true).await;
    stage.hub.wait_for_log(BLOCKED, STEP).await;
    // Before the report, each envelope may have a line. Repetitions have none.
    stage.receiver.wait_for("/permanent", 2 * EVENTS, STEP).await;
    let lines = stage.lines("dead letter not written") + stage.lines("not dead-lettered");
    assert!(lines <= failing.len() * EVENTS, "{lines} lines");
    assert_eq!((stage.letters().await, stage.lines(BLOCKED)), (0, 1));

    stage.resize(10_000_000).await;
    stage.is_shown(false).await;
    // The lane that stops has one dead letter, and the others wait behind it.
    let dead = ["exhausted", "permanent", "gone", "expired", "skips"];
    stage.wait_for_letters(dead.len() * EVENTS + 1).await;
    let letters = stage.client.dead_letters(DOMAIN).await;
    let paths = dead.map(|id| (id, format!("/{id}")));
    let pairs: Vec<(&str, &str)> = paths.iter().map(|(id, path)| (*id, path.as_str())).collect();
    let account = Account::of(&events, &pairs, &stage.receiver, &letters);
    account.assert_complete("after the limit is raised");
    assert_eq!((account.dead, account.dead_doubles), (dead.len() * EVENTS, 0));
    assert_eq!(letters.len(), dead.len() * EVENTS + 1);
    for path in ["/well", "/in-order"] {
        assert_eq!((stage.receiver.count(path), stage.receiver.doubles(path).len()), (EVENTS, 0));
    }
    stage.hub.wait_for_log(UNBLOCKED, STEP).await;
    assert_eq!((stage.lines(BLOCKED), stage.lines(UNBLOCKED)), (1, 1));
}

/// A stream that lost its leader, say. Whether it has stored a dead letter is unknown.
#[tokio::test]
async fn a_dead_letter_stream_without_an_answer_delays_others_for_a_short_time_only() {
    let stage = Stage::over_quota(&settings()).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/stuck", gate);
    let subjects = stage.client.stream(DLT).await.config.subjects;
    // Somebody takes the dead letters, and does not answer.
    let silent = stage.broker.client().await;
    let mut taken = silent.subscribe(format!("hub.outbox.{DOMAIN}.*.*.DLT")).await.expect("subscribed");
    silent.flush().await.expect("flushed");
    stage.client.detach_stream(DLT).await;
    let mut events = stage.publish("event", 200).await;
    taken.next().await.expect("a dead letter is sent");
    stage.receiver.wait_accepted("/well", 200, STEP).await;
    stage.events_are_done().await;
    stage.is_shown(true).await;
    assert_eq!((stage.backlog().await, stage.letters().await), (200, 0));

    taken.unsubscribe().await.expect("unsubscribed");
    let mut config = stage.client.stream(DLT).await.config;
    config.subjects = subjects;
    stage.client.context.update_stream(config).await.expect("the stream is changed");
    let mut round = 0;
    eventually(STEP, "the excess is dead-lettered", async || {
        round += 1;
        events.extend(stage.publish(&format!("later-{round}"), 5).await);
        stage.events_are_done().await;
        let letters = stage.letters().await;
        if letters > 0 { Ok(()) } else { Err(letters) }
    })
    .await;
    stage.is_shown(false).await;
    open.send_replace(true);
    stage
        .receiver
        .wait_accepted("/stuck", usize::try_from(stage.backlog().await).expect("a number"), STEP)
        .await;
    stage.broker.nothing_pending_within(STEP).await;
    stage.hub.cli_ok(&["dlt", "replay", "--all"]).await;
    stage.receiver.wait_accepted("/stuck", events.len(), STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    let account = Account::of(&events, &BOTH, &stage.receiver, &stage.client.dead_letters(DOMAIN).await);
    account.assert_complete("after the replay");
    assert_eq!((account.delivered, account.doubles, account.dead), (2 * events.len(), 0, 0));
}

/// A postponed redrive is a new dead letter, for which there is no room. It must not take the place of other requests.
#[tokio::test]
async fn a_redrive_that_is_postponed_without_room_gets_a_new_time() {
    let settings = TestSettings::patient()
        .with_redrives([Duration::from_secs(10); 3])
        .with(|settings| settings.log.repeat_interval = Some(Duration::ZERO));
    let stage = Stage::over_quota(&settings).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/stuck", gate);
    let events = stage.publish("event", 50).await;
    stage.wait_for_letters(30).await;
    let bytes = stage.client.stream(DLT).await.state.bytes;
    stage.resize(i64::try_from(bytes - 1).expect("a number")).await;
    stage.is_shown(true).await;
    eventually(STEP, "no request of a redrive waits", async || {
        let pending = stage.client.consumer("HUB_REDRIVE", "dlt-processor").await;
        let waiting = (pending.num_ack_pending as u64, pending.num_pending);
        let postponed = stage.lines("redrive postponed");
        if waiting == (0, 0) && postponed >= 30 { Ok(()) } else { Err((waiting, postponed)) }
    })
    .await;
    assert_eq!((stage.letters().await, stage.backlog().await), (30, 20));

    open.send_replace(true);
    stage.receiver.wait_accepted("/stuck", 20, STEP).await;
    stage.hub.cli_ok(&["dlt", "replay", "--all"]).await;
    stage.receiver.wait_accepted("/stuck", 50, STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    let account = Account::of(&events, &BOTH, &stage.receiver, &stage.client.dead_letters(DOMAIN).await);
    account.assert_complete("after the replay");
    assert_eq!((account.delivered, account.doubles, account.dead), (100, 0, 0));
}
