//! Dead letters and envelopes that vanish behind the hub's back: what is gone is done, for every part that reads or deletes
//! it.

use std::time::Duration;

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient, subscription,
};

const STEP: Duration = Duration::from_secs(30);
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const DLT: &str = "HUB_OUTBOX_POLICY_CLIENT_DLT";

struct Stage {
    broker: TestBroker,
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
        receiver.set("/other", Behaviour::status(422));
        let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        client
            .subscribe([
                patient("hooks", &["policy.>"], &receiver.url("/hooks")),
                patient("other", &["client.>"], &receiver.url("/other")),
            ])
            .await;
        client.publish_all("policy.updated", &ids("event", count)).await;
        let stage = Self { broker, receiver, hub, client };
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

    /// Deletes messages as `nats stream rmm` does.
    async fn delete(&self, stream: &str, sequences: impl IntoIterator<Item = u64>) {
        let stream = self.client.context.get_stream(stream).await.expect("the stream is there");
        for sequence in sequences {
            stream.delete_message(sequence).await.expect("deleted");
        }
    }

    /// Requests that are answered as soon as the gate opens; returns after `count` of them have arrived.
    async fn replayed_into_a_gate(&self, count: usize) -> tokio::sync::watch::Sender<bool> {
        let (open, gate) = Behaviour::gate();
        self.receiver.set("/hooks", gate);
        let before = self.receiver.count("/hooks");
        self.hub.cli_ok(&["dlt", "replay", "--all"]).await;
        self.receiver.wait_for("/hooks", before + count, STEP).await;
        open
    }

    fn assert_no_trouble(&self) {
        let log = self.hub.log();
        for trouble in ["not removed", "not dead-lettered", "dead letter not processed", "sweep for stranded"]
        {
            assert!(!log.contains(trouble), "{log}");
        }
    }
}

#[tokio::test]
async fn dead_letters_deleted_before_their_redrive_is_resolved_are_done() {
    for purge in [false, true] {
        let stage = Stage::with_refused(5).await;
        let open = stage.replayed_into_a_gate(5).await;
        if purge {
            let stream = stage.client.context.get_stream(DLT).await.expect("the stream is there");
            stream.purge().await.expect("purged");
        } else {
            stage.delete(DLT, 1..=5).await;
        }
        open.send_replace(true);
        stage.receiver.wait_accepted("/hooks", 5, STEP).await;
        stage.holds(OUTBOX, 0).await;
        assert_eq!(stage.receiver.count("/hooks"), 10, "each was delivered once");
        assert_eq!(stage.client.stream(DLT).await.state.messages, 0);
        stage.assert_no_trouble();
    }
}

/// The endpoint fails for good when the dead letter is gone.
#[tokio::test]
async fn a_permanent_failure_without_its_predecessor_is_one_dead_letter() {
    let stage = Stage::with_refused(3).await;
    let (open, gate) = tokio::sync::watch::channel(false);
    stage.receiver.set("/hooks", Behaviour::Gate(gate, Box::new(Behaviour::status(422))));
    stage.hub.cli_ok(&["dlt", "replay", "--all"]).await;
    stage.receiver.wait_for("/hooks", 6, STEP).await;
    stage.delete(DLT, 1..=3).await;
    open.send_replace(true);
    stage.holds(OUTBOX, 0).await;
    stage.holds(DLT, 3).await;
    assert_eq!(stage.receiver.count("/hooks"), 6);
    stage.assert_no_trouble();
}

#[tokio::test]
async fn forced_replays_of_dead_letters_that_vanish_meanwhile_end() {
    let stage = Stage::with_refused(20).await;
    stage.receiver.set("/hooks", Behaviour::ok());
    // Each has three envelopes on their way; the first that arrives removes the dead letter. Some vanish in between.
    stage.hub.cli_ok(&["domain", "pause", "policy-client"]).await;
    for _ in 0..3 {
        stage.hub.cli_ok(&["dlt", "replay", "--all", "--force"]).await;
    }
    stage.holds(OUTBOX, 60).await;
    stage.delete(DLT, 1..=7).await;
    stage.hub.cli_ok(&["domain", "resume", "policy-client"]).await;
    stage.holds(OUTBOX, 0).await;
    stage.holds(DLT, 0).await;
    stage.broker.nothing_pending_within(STEP).await;
    stage.assert_no_trouble();
    // Requests for dead letters that do not exist any more.
    for sequence in [1, 7, 20, 21, 1_000] {
        let trigger = integration_hub::nats::RedriveTrigger::OperatorForce;
        stage.client.js.request_redrive("policy-client", sequence, trigger).await.expect("stored");
        stage.client.js.discard_dead_letter("policy-client", sequence).await.expect("gone is done");
        stage.client.js.delete(DLT, sequence).await.expect("gone is done");
        stage.client.js.delete("HUB_NO_SUCH_STREAM", sequence).await.expect("gone is done");
    }
    eventually(STEP, "every request is carried out", async || {
        let info = stage.client.consumer("HUB_REDRIVE", "dlt-processor").await;
        let left = (info.num_pending, info.num_ack_pending);
        if left == (0, 0) { Ok(()) } else { Err(left) }
    })
    .await;
    stage.assert_no_trouble();
}

/// The dead-letter stream is made again, and has a dead letter of another envelope at the sequence of the old one.
#[tokio::test]
async fn a_redrive_leaves_the_dead_letter_of_another_envelope_alone() {
    let stage = Stage::with_refused(1).await;
    let open = stage.replayed_into_a_gate(1).await;
    stage.client.context.delete_stream(DLT).await.expect("deleted");
    stage.hub.cli_ok(&["provision"]).await;
    stage.client.publish_all("client.updated", &ids("other", 1)).await;
    stage.holds(DLT, 1).await;
    open.send_replace(true);
    stage.receiver.wait_accepted("/hooks", 1, STEP).await;
    stage.holds(OUTBOX, 0).await;
    let letters = stage.client.dead_letters("policy-client").await;
    let owners: Vec<_> = letters.iter().map(|entry| entry.letter.subscription.as_str()).collect();
    assert_eq!(owners, ["other"], "it is still there");
}

/// The stream is made again while a redriven envelope waits: the envelope is delivered, not dropped as resolved.
#[tokio::test]
async fn a_redriven_envelope_survives_the_loss_of_the_dead_letter_stream() {
    let stage = Stage::with_refused(3).await;
    stage.receiver.set("/hooks", Behaviour::ok());
    stage.hub.cli_ok(&["domain", "pause", "policy-client"]).await;
    stage.hub.cli_ok(&["dlt", "replay", "--all"]).await;
    stage.holds(OUTBOX, 3).await;
    stage.client.context.delete_stream(DLT).await.expect("deleted");
    stage.hub.cli_ok(&["provision"]).await;
    stage.hub.cli_ok(&["domain", "resume", "policy-client"]).await;
    stage.receiver.wait_accepted("/hooks", 3, STEP).await;
    stage.holds(OUTBOX, 0).await;
}

/// Exhausted envelopes of which some are gone when the router gets their advisories.
#[tokio::test]
async fn envelopes_that_vanish_before_they_are_routed_block_nothing() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/down", Behaviour::status(503));
    let roles = ["--role", "event-processor,outbox-processor"];
    let mut first = Hub::serve(&broker.url(), &TestSettings::quick(), &roles);
    first.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("down", &["policy.>"], &receiver.url("/down"))]).await;
    client.publish_all("policy.updated", &ids("event", 40)).await;
    eventually(STEP, "an advisory for each envelope", async || {
        let advisories = broker.messages("HUB_ADVISORIES").await;
        if advisories == 40 { Ok(()) } else { Err(advisories) }
    })
    .await;
    let stream = client.context.get_stream(OUTBOX).await.expect("the stream is there");
    for sequence in (1..=40).filter(|sequence| sequence % 2 == 0) {
        stream.delete_message(sequence).await.expect("deleted");
    }
    let mut router = Hub::serve(&broker.url(), &TestSettings::quick(), &["--role", "dlt-router"]);
    router.ready().await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(client.dead_letters("policy-client").await.len(), 20);
    assert!(!router.log().contains("not dead-lettered"), "{}", router.log());
}
