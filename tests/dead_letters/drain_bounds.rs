//! `hub dlt replay --drain` keeps to its bounds: the bytes of quotas, the end of the command while others publish, strict
//! orders, and servers that fail or are silent meanwhile.

use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use serde_json::{Value, json};

use crate::support::{
    Behaviour, Hub, Receiver, RequestProxy, TestBroker, TestClient, TestSettings, Treatment, eventually, ids,
    patient, print_output,
};

const STEP: Duration = Duration::from_secs(120);
const DOMAIN: &str = "policy-client";
const EVENTS: &str = "HUB_EVENTS";
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const DLT: &str = "HUB_OUTBOX_POLICY_CLIENT_DLT";
const DRAIN: [&str; 6] = ["dlt", "replay", "--all", "--drain", "--output", "json"];

struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    hub: Hub,
    client: TestClient,
}

impl Stage {
    async fn new(settings: &TestSettings) -> Self {
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let mut hub = Hub::serve(&broker.url(), settings, &[]);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        Self { broker, receiver, hub, client }
    }

    /// A subscription with these delivery settings.
    async fn subscribe(&self, id: &str, delivery: &[(&str, Value)]) {
        let mut one = patient(id, &["policy.>"], &self.receiver.url(&format!("/{id}")));
        for (name, value) in delivery {
            one["delivery"][*name] = value.clone();
        }
        self.client.subscribe([one]).await;
    }

    async fn wait_for_letters(&self, count: u64) {
        eventually(STEP, &format!("there are {count} dead letters"), async || {
            let letters = self.broker.messages(DLT).await;
            if letters == count { Ok(()) } else { Err(letters) }
        })
        .await;
    }

    async fn drain(&self, patience: &str) -> (Output, Value) {
        let output = self.hub.cli(&[&DRAIN[..], &["--patience", patience]].concat()).await;
        let drained = drained(&output);
        (output, drained)
    }
}

fn drained(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", print_output(output)))
}

fn left(drained: &Value, name: &str) -> u64 {
    drained["left"][name].as_u64().expect("a number")
}

fn nothing_is_left(drained: &Value) -> bool {
    drained["left"].as_object().expect("counts").values().all(|count| *count == 0)
        && drained["more_left"] == false
}

/// Dead letters of 200 KB in a quota of 1 MB: two of them wait at a time, although the outbox was empty.
#[tokio::test]
async fn large_dead_letters_stay_within_the_bytes_of_their_quota() {
    let stage = Stage::new(&TestSettings::patient()).await;
    stage.subscribe("large", &[("max_backlog_bytes", json!("1MB"))]).await;
    stage.receiver.set("/large", Behaviour::status(422));
    let body = json!({ "text": "x".repeat(200_000) }).to_string();
    for id in ids("event", 12) {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id.as_str());
        let publish = |headers| {
            stage.client.context.publish_with_headers(
                "hub.events.policy.updated",
                headers,
                body.clone().into(),
            )
        };
        publish(headers).await.expect("sent").await.expect("stored");
        // One at a time, so that none is over quota.
        eventually(STEP, "it is refused", async || {
            let letters = stage.client.stream(DLT).await.state.last_sequence;
            let number: u64 = id.rsplit('-').next().and_then(|number| number.parse().ok()).expect("a number");
            if letters > number { Ok(()) } else { Err(letters) }
        })
        .await;
    }
    stage.wait_for_letters(12).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/large", gate);
    let (output, drained) = stage.drain("3s").await;
    assert_eq!(output.status.code(), Some(1), "some are left: {}", print_output(&output));
    assert_eq!((&drained["replayed"], left(&drained, "no_room")), (&json!(2), 10), "{drained}");
    assert_eq!(stage.broker.messages(OUTBOX).await, 2);
    open.send_replace(true);
    let (output, drained) = stage.drain("60s").await;
    assert!(output.status.success() && nothing_is_left(&drained), "{}", print_output(&output));
    stage.receiver.wait_accepted("/large", 12, STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
}

/// Their scheduled redrive comes while they wait for the command, and is postponed. They were never sent.
#[tokio::test]
async fn what_the_schedule_postpones_meanwhile_is_replayed() {
    let schedule = [Duration::from_secs(6), Duration::from_secs(3_600)];
    let stage = Stage::new(&TestSettings::patient().with_redrives(schedule)).await;
    stage.subscribe("slow", &[("max_backlog", json!(4))]).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/slow", gate);
    stage.client.publish_all("policy.updated", &ids("event", 30)).await;
    stage.wait_for_letters(26).await;
    let mut command = stage.hub.cli_command(&[&DRAIN[..], &["--patience", "1h"]].concat());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    eventually(STEP, "each is postponed", async || {
        let letters = stage.client.dead_letters(DOMAIN).await;
        let postponed = letters.iter().filter(|one| one.letter.redrives == 1).count();
        if (letters.len(), postponed) == (26, 26) { Ok(()) } else { Err((letters.len(), postponed)) }
    })
    .await;
    open.send_replace(true);
    let output =
        tokio::time::timeout(STEP, child.wait_with_output()).await.expect("it ends").expect("it ends");
    let drained = drained(&output);
    assert!(output.status.success() && nothing_is_left(&drained), "{}", print_output(&output));
    stage.receiver.wait_accepted("/slow", 30, STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
}

/// A subscription gets bursts of events beyond its quota, and so new dead letters, all the time.
#[tokio::test]
async fn a_drain_ends_while_others_publish_without_pause() {
    let stage = Stage::new(&TestSettings::patient()).await;
    stage.subscribe("busy", &[("max_backlog", json!(100))]).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/busy", gate);
    stage.client.publish_all("policy.updated", &ids("event", 160)).await;
    stage.wait_for_letters(60).await;
    open.send_replace(true);
    let publish = async {
        for round in 0.. {
            stage.client.publish_all("policy.updated", &ids(&format!("round-{round}"), 110)).await;
            eventually(STEP, "the round is delivered or dead", async || {
                let waiting = (stage.broker.messages(EVENTS).await, stage.broker.messages(OUTBOX).await);
                if waiting == (0, 0) { Ok(()) } else { Err(waiting) }
            })
            .await;
        }
    };
    let (output, drained) = tokio::select! {
        ended = stage.drain("60s") => ended,
        () = publish => unreachable!("it publishes without pause"),
    };
    assert!(drained["replayed"].as_u64().is_some_and(|count| count >= 60), "{drained}");
    let new = left(&drained, "new_since");
    assert_eq!(output.status.code(), Some(i32::from(new > 0)), "{}", print_output(&output));
    assert_eq!((left(&drained, "failed_since"), left(&drained, "no_room")), (0, 0), "{drained}");
}

/// The dead letter that stops an order needs no room, because its envelope is in the outbox already. Those over quota of
/// the same subscription do.
#[tokio::test]
async fn only_what_stops_a_strict_order_is_replayed_without_room() {
    let stage = Stage::new(&TestSettings::patient()).await;
    stage.subscribe("strict", &[("ordering", json!("strict")), ("max_backlog", json!(6))]).await;
    stage.receiver.set("/strict", Behaviour::status(422));
    let events = ids("event", 20);
    stage.client.publish("policy.updated", &events[0]).await;
    stage.wait_for_letters(1).await;
    stage.client.publish_all("policy.updated", &events[1..]).await;
    stage.wait_for_letters(15).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/strict", gate);
    let (output, drained) = stage.drain("3s").await;
    assert_eq!(output.status.code(), Some(1), "some are left: {}", print_output(&output));
    assert_eq!((&drained["replayed"], left(&drained, "no_room")), (&json!(1), 14), "{drained}");
    assert_eq!(stage.broker.messages(OUTBOX).await, 6, "nothing was added to what was waiting");
    open.send_replace(true);
    let (output, drained) = stage.drain("60s").await;
    assert!(output.status.success() && nothing_is_left(&drained), "{}", print_output(&output));
    stage.receiver.wait_accepted("/strict", 20, STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
}

/// A hub with refused events, and the settings of commands that reach the broker through a proxy.
async fn refused(count: usize) -> (Stage, RequestProxy, Hub) {
    let settings = TestSettings::patient();
    let stage = Stage::new(&settings).await;
    stage.subscribe("one", &[]).await;
    stage.receiver.set("/one", Behaviour::status(422));
    stage.client.publish_all("policy.updated", &ids("event", count)).await;
    stage.wait_for_letters(count as u64).await;
    stage.receiver.set("/one", Behaviour::ok());
    let proxy = RequestProxy::bind(&stage.broker.url()).await.expect("the proxy listens");
    let commands = Hub::not_started(&proxy.url(), &settings);
    (stage, proxy, commands)
}

/// A read that stalls, a request without an answer and a lost replay request: nothing is skipped, and nothing sent twice.
#[tokio::test]
async fn a_drain_survives_a_server_that_is_silent_for_a_while() {
    let (stage, proxy, commands) = refused(30).await;
    let lost = [
        (format!("$JS.API.CONSUMER.MSG.NEXT.{DLT}."), AtomicUsize::new(0)),
        (format!("$JS.API.STREAM.INFO.{OUTBOX}"), AtomicUsize::new(0)),
        (format!("hub.redrive.due.{DOMAIN}."), AtomicUsize::new(0)),
    ];
    proxy.set(move |subject| {
        let is_first = |(prefix, seen): &(String, AtomicUsize)| {
            subject.starts_with(prefix.as_str()) && seen.fetch_add(1, Ordering::Relaxed) == 0
        };
        if lost.iter().any(is_first) { Treatment::Swallow } else { Treatment::Forward }
    });
    let output = commands.cli(&DRAIN).await;
    let drained = drained(&output);
    assert!(output.status.success() && nothing_is_left(&drained), "{}", print_output(&output));
    assert_eq!(drained["replayed"], 30, "{drained}");
    stage.receiver.wait_accepted("/one", 30, STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    assert_eq!(stage.receiver.count("/one"), 60, "each was refused once, and accepted once");
}

/// The server stops answering for good: the command ends after its patience, and says what it did.
#[tokio::test]
async fn a_drain_that_an_error_ends_prints_its_summary() {
    let (stage, proxy, commands) = refused(10).await;
    let infos = AtomicUsize::new(0);
    proxy.set(move |subject| {
        // The first look succeeds. It asks for the lanes, the state and the backlogs.
        let is_lost =
            subject == format!("$JS.API.STREAM.INFO.{OUTBOX}") && infos.fetch_add(1, Ordering::Relaxed) > 2;
        if is_lost { Treatment::Swallow } else { Treatment::Forward }
    });
    let output = commands.cli(&[&DRAIN[..], &["--patience", "1s"]].concat()).await;
    assert!(!output.status.success(), "{}", print_output(&output));
    assert!(!output.stderr.is_empty(), "it prints the error");
    let drained = drained(&output);
    assert_eq!((&drained["replayed"], &drained["more_left"]), (&json!(10), &json!(false)), "{drained}");
    stage.receiver.wait_accepted("/one", 10, STEP).await;
}
