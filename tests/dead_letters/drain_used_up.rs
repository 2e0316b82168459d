//! `hub dlt replay --drain` while the dead-letter stream is full, and envelopes that have used up their attempts wait in the
//! outbox for room in it.

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Account, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
    print_output,
};

const STEP: Duration = Duration::from_secs(120);
/// A used-up envelope is looked at again within 30 s, and there are a few rounds of them.
const DRAINED: Duration = Duration::from_secs(400);
const DOMAIN: &str = "policy-client";
const EVENTS: &str = "HUB_EVENTS";
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const DLT: &str = "HUB_OUTBOX_POLICY_CLIENT_DLT";
const FAILING: [&str; 2] = ["one", "other"];
const ALL: [(&str, &str); 3] = [("one", "/one"), ("other", "/other"), ("well", "/well")];

struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    hub: Hub,
    _replica: Hub,
    client: TestClient,
}

impl Stage {
    /// Two processes with a small dead-letter stream and an outbox of this size, two failing subscriptions with small
    /// quotas, and one that is well.
    async fn new(outbox: u64) -> Self {
        let settings = TestSettings::patient().with(|settings| {
            settings.events.max_size = Some(10_000);
            settings.delivery.max_deliver = Some(2);
            settings.circuit.enabled = Some(false);
            settings.limits.dlt = Some(100_000);
            settings.limits.outbox = Some(outbox);
        });
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let mut hub = Hub::serve(&broker.url(), &settings, &[]);
        hub.ready().await;
        let mut replica = Hub::serve(&broker.url(), &settings, &[]);
        replica.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        client
            .subscribe(ALL.map(|(id, path)| {
                let mut one = patient(id, &["policy.>"], &receiver.url(path));
                if FAILING.contains(&id) {
                    one["delivery"]["max_backlog"] = serde_json::json!(16);
                }
                one
            }))
            .await;
        for id in FAILING {
            receiver.set(&format!("/{id}"), Behaviour::status(503));
        }
        Self { broker, receiver, hub, _replica: replica, client }
    }

    /// Waits until nothing in the outbox is delivered any more, and at least this many envelopes are there.
    async fn all_are_used_up(&self, least: u64) {
        eventually(STEP, "all envelopes of the outbox are used up", async || {
            let used_up = self.client.js.used_up(DOMAIN).await.expect("the lanes").total();
            let outbox = self.broker.messages(OUTBOX).await;
            if used_up == outbox && outbox >= least { Ok(()) } else { Err((used_up, outbox)) }
        })
        .await;
    }

    /// Runs the command, which must end in time.
    async fn drain(&self) -> (Option<i32>, Value) {
        let args = ["dlt", "replay", "--all", "--drain", "--output", "json"];
        let output = tokio::time::timeout(DRAINED, self.hub.cli_command(&args).output()).await;
        let output = output.expect("it ends").expect("it runs");
        let drained = serde_json::from_slice(&output.stdout);
        let drained = drained.unwrap_or_else(|error| panic!("{error}: {}", print_output(&output)));
        println!("{drained}");
        (output.status.code(), drained)
    }

    /// Each event was accepted once by each subscription, and no stream has anything left.
    async fn all_is_delivered_once(&self, events: &[String]) {
        assert_eq!(self.all_is_delivered(events).await, 0, "doubles");
    }

    /// Each event was accepted by each subscription, and no stream has anything left. Returns how often one came again.
    async fn all_is_delivered(&self, events: &[String]) -> usize {
        for (_, path) in ALL {
            self.receiver.wait_accepted(path, events.len(), STEP).await;
        }
        self.broker.nothing_pending_within(STEP).await;
        let account = Account::of(events, &ALL, &self.receiver, &self.client.dead_letters(DOMAIN).await);
        account.assert_complete("after the drain");
        assert_eq!((account.delivered, account.dead), (3 * events.len(), 0));
        account.doubles
    }
}

/// The used-up envelopes exceed the quotas of their subscriptions many times. One command brings everything back.
#[tokio::test]
async fn one_command_drains_a_full_stream_and_what_waits_for_its_room() {
    let stage = Stage::new(1_000_000).await;
    let events = ids("event", 150);
    stage.client.publish_all("policy.updated", &events).await;
    stage.receiver.wait_accepted("/well", events.len(), STEP).await;
    stage.all_are_used_up(100).await;
    assert!(stage.broker.messages(DLT).await > 20);
    for id in FAILING {
        stage.receiver.set(&format!("/{id}"), Behaviour::ok());
    }
    let (code, drained) = stage.drain().await;
    assert!(drained["left"].as_object().expect("counts").values().all(|count| *count == 0), "{drained}");
    assert_eq!((code, &drained["used_up"]), (Some(0), &Value::from(0)), "{drained}");
    stage.all_is_delivered_once(&events).await;
}

/// The used-up envelopes fill the outbox up to the part that is kept for others, and events wait in the events stream, also
/// for the healthy subscription.
#[tokio::test]
async fn a_drain_goes_on_in_an_outbox_full_of_used_up_envelopes() {
    let stage = Stage::new(120_000).await;
    let events = ids("event", 250);
    stage.client.publish_all("policy.updated", &events).await;
    stage.all_are_used_up(60).await;
    assert!(stage.broker.messages(EVENTS).await > 0, "events wait");
    assert!(stage.receiver.accepted("/well").len() < events.len());
    for id in FAILING {
        stage.receiver.set(&format!("/{id}"), Behaviour::ok());
    }
    let letters = stage.broker.messages(DLT).await;
    let (_, drained) = stage.drain().await;
    assert!(drained["replayed"].as_u64().is_some_and(|count| count >= letters), "{drained} of {letters}");
    assert_eq!(
        (&drained["left"]["outbox_full"], &drained["left"]["no_room"]),
        (&Value::from(0), &Value::from(0))
    );
    eventually(STEP, "the same command does the rest", async || match stage.drain().await {
        (Some(0), _) => Ok(()),
        (_, drained) => Err(drained),
    })
    .await;
    stage.all_is_delivered_once(&events).await;
}

/// Replays that failed again have no room for their new dead letters, and the old ones stay marked as replaying. When the
/// endpoints are repaired, the next command brings them back, too.
#[tokio::test]
async fn a_drain_to_failing_endpoints_ends_and_the_next_one_does_the_rest() {
    let stage = Stage::new(1_000_000).await;
    let mut events = ids("event", 120);
    stage.client.publish_all("policy.updated", &events).await;
    stage.receiver.wait_accepted("/well", events.len(), STEP).await;
    stage.all_are_used_up(60).await;
    let (code, drained) = stage.drain().await;
    assert_eq!(code, Some(1), "{drained}");
    assert!(drained["used_up"].as_u64().is_some_and(|count| count > 0), "{drained}");
    // Nobody else is affected.
    let more = ids("more", 5);
    stage.client.publish_all("policy.updated", &more).await;
    events.extend(more);
    stage.receiver.wait_accepted("/well", events.len(), STEP).await;
    stage.all_are_used_up(60).await;
    for id in FAILING {
        stage.receiver.set(&format!("/{id}"), Behaviour::ok());
    }
    let (code, drained) = stage.drain().await;
    // Those that it counts as already replaying are on their way.
    assert_eq!(code, Some(0), "{drained}");
    // What is sent once more may meet the dead letter of the replay before.
    let doubles = stage.all_is_delivered(&events).await;
    println!("{doubles} came again");
}
