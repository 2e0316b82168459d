//! `hub dlt replay --drain`: one command replays a full dead-letter stream, at the pace at which there is room.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{
    Account, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
    print_output,
};

const STEP: Duration = Duration::from_secs(120);
const DOMAIN: &str = "policy-client";
const DLT: &str = "HUB_OUTBOX_POLICY_CLIENT_DLT";
const DRAIN: [&str; 4] = ["dlt", "replay", "--all", "--drain"];

struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    hub: Hub,
    client: TestClient,
}

impl Stage {
    /// A hub with a small dead-letter stream and a small outbox, and subscriptions with small quotas.
    async fn new(quotas: &[(&str, u64)]) -> Self {
        let settings = TestSettings::patient().with(|settings| {
            settings.events.max_size = Some(10_000);
            settings.limits.dlt = Some(400_000);
            settings.limits.outbox = Some(400_000);
        });
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let mut hub = Hub::serve(&broker.url(), &settings, &[]);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        let all = quotas.iter().map(|(id, most)| {
            let mut one = patient(id, &["policy.>"], &receiver.url(&format!("/{id}")));
            one["delivery"]["max_backlog"] = json!(most);
            one
        });
        client.subscribe(all).await;
        Self { broker, receiver, hub, client }
    }

    async fn letters(&self) -> u64 {
        self.broker.messages(DLT).await
    }

    async fn publish(&self, prefix: &str, count: usize) -> Vec<String> {
        let events = ids(prefix, count);
        self.client.publish_all("policy.updated", &events).await;
        events
    }

    async fn wait_for_letters(&self, least: u64) {
        eventually(STEP, "there are dead letters", async || {
            let letters = self.letters().await;
            if letters >= least { Ok(()) } else { Err(letters) }
        })
        .await;
    }

    async fn account(&self, events: &[String], pairs: &[(&str, &str)]) -> Account {
        Account::of(events, pairs, &self.receiver, &self.client.dead_letters(DOMAIN).await)
    }
}

/// As ctrl-c does.
fn interrupt(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, Signal::INT).expect("signalled");
}

fn left(drained: &Value, name: &str) -> u64 {
    drained["left"][name].as_u64().expect("a number")
}

/// Outbox and dead letters were full, and events still wait, which make further dead letters while they are replayed.
#[tokio::test]
async fn one_command_drains_a_full_stream() {
    let stage = Stage::new(&[("stuck", 60), ("well", 10_000)]).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/stuck", gate);
    let mut events = stage.publish("first", 1_500).await;
    stage.hub.wait_for_log("dead letters cannot be stored", STEP).await;
    open.send_replace(true);
    let drain = stage.hub.cli_json(&DRAIN);
    let publish = async {
        let mut events = Vec::new();
        for round in 0..5 {
            events.extend(stage.publish(&format!("during-{round}"), 40).await);
        }
        events
    };
    let (drained, during) = tokio::join!(drain, publish);
    events.extend(during);
    assert!(!drained["left"].as_object().expect("counts").values().any(|count| *count != 0), "{drained}");
    assert!(drained["replayed"].as_u64().is_some_and(|count| count > 100), "{drained}");
    stage.receiver.wait_accepted("/stuck", events.len(), STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    let account = stage.account(&events, &[("stuck", "/stuck"), ("well", "/well")]).await;
    account.assert_complete("after one command");
    assert_eq!((account.delivered, account.doubles, account.dead), (2 * events.len(), 0, 0));
}

/// Replays neither exceed the quota of a subscription, nor do those of one without room delay another.
#[tokio::test]
async fn a_subscription_without_room_delays_no_other() {
    let stage = Stage::new(&[("stuck", 20), ("slow", 40)]).await;
    let (open_stuck, stuck) = Behaviour::gate();
    let (open_slow, slow) = Behaviour::gate();
    stage.receiver.set("/stuck", stuck);
    stage.receiver.set("/slow", slow);
    let events = stage.publish("event", 140).await;
    stage.wait_for_letters(100 + 120).await;
    open_slow.send_replace(true);
    stage.receiver.wait_accepted("/slow", 40, STEP).await;
    let output = stage.hub.cli(&[&DRAIN[..], &["--patience", "5s", "--output", "json"]].concat()).await;
    assert_eq!(output.status.code(), Some(1), "some are left: {}", print_output(&output));
    let drained: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((drained["replayed"].as_u64(), left(&drained, "no_room")), (Some(100), 120), "{drained}");
    stage.receiver.wait_accepted("/slow", 140, STEP).await;
    let look = stage.client.js.backlogs(DOMAIN, Some("stuck")).await.expect("the backlog");
    let backlog: u64 = look.backlogs.iter().map(|backlog| backlog.own + backlog.shared).sum();
    assert_eq!(backlog, 20, "nothing was added to what was waiting");
    let text = stage.hub.cli(&["dlt", "replay", "--all", "--drain", "--patience", "1s"]).await;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.lines().any(|line| line.starts_with("  120 without room")),
        "a line for each reason: {text}"
    );
    assert!(text.contains("120 without room") && text.contains("run the same command again"), "{text}");

    open_stuck.send_replace(true);
    let drained = stage.hub.cli_json(&DRAIN).await;
    assert_eq!((drained["replayed"].as_u64(), left(&drained, "no_room")), (Some(120), 0), "{drained}");
    stage.receiver.wait_accepted("/stuck", 140, STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    let account = stage.account(&events, &[("stuck", "/stuck"), ("slow", "/slow")]).await;
    account.assert_complete("after the second command");
    assert_eq!((account.delivered, account.doubles, account.dead), (280, 0, 0));
}

/// A dead letter that fails again is left, so that the command ends; and so are those that cannot be delivered.
#[tokio::test]
async fn what_fails_again_or_cannot_be_replayed_is_left_with_its_reason() {
    let stage = Stage::new(&[("failing", 10_000), ("removed", 10_000)]).await;
    for path in ["/failing", "/removed"] {
        stage.receiver.set(path, Behaviour::status(400));
    }
    stage.publish("event", 50).await;
    stage.wait_for_letters(100).await;
    stage.hub.cli_ok(&["subscription", "remove", "removed", "--yes"]).await;
    let drained = stage.hub.cli_json(&DRAIN).await;
    assert_eq!((drained["replayed"].as_u64(), left(&drained, "removed")), (Some(50), 50), "{drained}");
    assert!(left(&drained, "failed_since") <= 50, "{drained}");
    stage.receiver.wait_for("/failing", 100, STEP).await;
    eventually(STEP, "each has failed again", async || {
        let requests = stage.receiver.count("/failing");
        let letters = stage.letters().await;
        if (requests, letters) == (100, 100) { Ok(()) } else { Err((requests, letters)) }
    })
    .await;
}

/// A command that is interrupted says what is left, and the next one does the rest.
#[tokio::test]
async fn an_interrupted_command_is_continued_by_the_next() {
    let stage = Stage::new(&[("slow", 40)]).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/slow", gate);
    let events = stage.publish("event", 300).await;
    stage.wait_for_letters(260).await;
    let args = [&DRAIN[..], &["--patience", "1h", "--output", "json"]].concat();
    let mut command = stage.hub.cli_command(&args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("it starts");
    let pid = child.id().expect("it runs");
    // The half of the quota that is free goes first.
    open.send_replace(true);
    stage.receiver.wait_accepted("/slow", 60, STEP).await;
    interrupt(pid);
    let output =
        tokio::time::timeout(STEP, child.wait_with_output()).await.expect("it ends").expect("it ends");
    let drained: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let (replayed, interrupted) =
        (drained["replayed"].as_u64().expect("a number"), left(&drained, "interrupted"));
    assert_eq!(replayed + interrupted, 260, "{drained}");
    assert_eq!(output.status.code(), Some(if interrupted > 0 { 1 } else { 0 }), "{drained}");
    if interrupted > 0 {
        stage.hub.cli_json(&DRAIN).await;
    }
    stage.receiver.wait_accepted("/slow", 300, STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    let account = stage.account(&events, &[("slow", "/slow")]).await;
    account.assert_complete("after both commands");
    assert_eq!((account.delivered, account.doubles, account.dead), (300, 0, 0));
}
