//! Dead letters that disappear while their envelopes are being redriven: delivered by a process that died
//! before it acknowledged, or discarded. The dead-letter stream is otherwise empty, so the server has no
//! position to report.

use std::time::Duration;

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(30);
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const DLT: &str = "HUB_OUTBOX_POLICY_CLIENT_DLT";

struct Stage {
    _broker: TestBroker,
    receiver: Receiver,
    hub: Hub,
    client: TestClient,
}

impl Stage {
    /// With `count` dead letters of an endpoint that refused them.
    async fn with_refused(count: usize) -> Self {
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        receiver.set("/hooks", Behaviour::status(422));
        let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        client.subscribe([patient("hooks", &["policy.>"], &receiver.url("/hooks"))]).await;
        client.publish_all("policy.updated", &ids("event", count)).await;
        let stage = Self { _broker: broker, receiver, hub, client };
        stage.holds(DLT, count as u64).await;
        stage
    }

    async fn holds(&self, stream: &str, count: u64) {
        eventually(STEP, &format!("{stream} holds {count}"), async || {
            let messages = self.client.stream(stream).await.state.messages;
            if messages == count { Ok(()) } else { Err(messages) }
        })
        .await;
    }

    /// No envelope and no dead letter is left, and none was written besides the first ones.
    async fn assert_settled(&self, first: u64) {
        self.holds(OUTBOX, 0).await;
        let letters = self.client.stream(DLT).await.state;
        assert_eq!((letters.messages, letters.last_sequence), (0, first));
    }
}

#[tokio::test]
async fn what_is_discarded_during_its_attempt_is_delivered_once_and_then_done() {
    let stage = Stage::with_refused(3).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/hooks", gate);
    stage.hub.cli_ok(&["dlt", "replay", "--all"]).await;
    stage.receiver.wait_for("/hooks", 6, STEP).await;
    stage.hub.cli_ok(&["dlt", "discard", "--all", "--yes"]).await;
    open.send_replace(true);
    stage.receiver.wait_accepted("/hooks", 3, STEP).await;
    stage.assert_settled(3).await;
    assert_eq!(stage.receiver.count("/hooks"), 6);
}

#[tokio::test]
async fn an_envelope_discarded_before_its_attempt_is_never_sent() {
    let stage = Stage::with_refused(20).await;
    stage.receiver.set("/hooks", Behaviour::ok());
    stage.hub.cli_ok(&["domain", "pause", "policy-client"]).await;
    stage.hub.cli_ok(&["dlt", "replay", "--all"]).await;
    stage.holds(OUTBOX, 20).await;
    stage.hub.cli_ok(&["dlt", "discard", "--all", "--yes"]).await;
    stage.hub.cli_ok(&["domain", "resume", "policy-client"]).await;
    stage.assert_settled(20).await;
    assert_eq!(stage.receiver.count("/hooks"), 20, "each was sent when it was refused, and never again");
}

/// As if the process had died in between: the dead letter is deleted, and the envelope is not acknowledged.
#[tokio::test]
async fn a_redrive_delivered_by_a_process_that_died_is_not_repeated() {
    let stage = Stage::with_refused(1).await;
    stage.receiver.set("/hooks", Behaviour::ok());
    stage.hub.cli_ok(&["domain", "pause", "policy-client"]).await;
    stage.hub.cli_ok(&["dlt", "replay", "--all"]).await;
    stage.holds(OUTBOX, 1).await;
    stage.client.js.delete_dead_letter("policy-client", 1).await.expect("dropped");
    stage.client.js.delete_dead_letter("policy-client", 1).await.expect("that it is gone is fine");
    stage.hub.cli_ok(&["domain", "resume", "policy-client"]).await;
    stage.assert_settled(1).await;
    assert_eq!(stage.receiver.count("/hooks"), 1);
}

/// The endpoint fails again after the discard: the exhausted envelope is not dead-lettered again.
#[tokio::test]
async fn what_is_discarded_between_two_attempts_does_not_come_back() {
    let stage = Stage::with_refused(1).await;
    stage.receiver.set("/hooks", Behaviour::retry_after(503, 1));
    stage.hub.cli_ok(&["dlt", "replay", "--all"]).await;
    stage.receiver.wait_for("/hooks", 2, STEP).await;
    stage.hub.cli_ok(&["dlt", "discard", "--all", "--yes"]).await;
    stage.assert_settled(1).await;
}

#[tokio::test]
async fn a_waiting_replay_reports_a_discard() {
    let mut stage = Stage::with_refused(2).await;
    let (_closed, gate) = Behaviour::gate();
    stage.receiver.set("/hooks", gate);
    let replay = ["dlt", "replay", "--all", "--wait", "--output", "json"];
    let discard = async {
        stage.receiver.wait_for("/hooks", 4, STEP).await;
        stage.hub.cli_ok(&["dlt", "discard", "--all", "--yes"]).await;
    };
    let (waited, ()) = tokio::join!(stage.hub.cli(&replay), discard);
    assert_eq!(waited.status.code(), Some(1), "not all were delivered");
    let report: serde_json::Value = serde_json::from_slice(&waited.stdout).expect("JSON");
    assert_eq!((&report["delivered"], &report["discarded"]), (&0.into(), &2.into()), "{report}");
    stage.hub.terminate().await;
}

/// Processes that serve different domains share the stream of redrives: each carries out every request.
#[tokio::test]
async fn a_replay_reaches_its_domain_whichever_process_reads_the_request() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/hooks", Behaviour::status(422));
    let domains = ["user-lifecycle", "policy-client"];
    let mut hubs =
        domains.map(|domain| Hub::serve(&broker.url(), &TestSettings::patient(), &["--domain", domain]));
    for hub in &mut hubs {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("hooks", &["user.>", "policy.>"], &receiver.url("/hooks"))]).await;
    let (users, policies) = (ids("user", 40), ids("policy", 40));
    client.publish_all("user.created", &users).await;
    client.publish_all("policy.updated", &policies).await;
    eventually(STEP, "all are dead letters", async || {
        let mut letters = 0;
        for domain in domains {
            letters += client.dead_letters(domain).await.len();
        }
        if letters == 80 { Ok(()) } else { Err(letters) }
    })
    .await;
    receiver.set("/hooks", Behaviour::ok());
    hubs[0].cli_ok(&["dlt", "replay", "--all"]).await;
    receiver.wait_accepted("/hooks", 80, STEP).await;
    broker.nothing_pending_within(STEP).await;
    for domain in domains {
        assert_eq!(client.dead_letters(domain).await.len(), 0, "{domain}");
    }
}
