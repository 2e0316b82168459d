//! What the roles do rarely, under exactly the permissions of `nats/accounts.conf`: lanes of single subscriptions that are
//! created, paused, emptied and removed, strict orders, circuits, and envelopes that no advisory reports.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};

use super::secured::{Secured, User};
use crate::support::{Behaviour, Hub, Receiver, TestSettings, eventually, subscription};

/// A lane of a removed subscription is removed after half a minute.
const STEP: Duration = Duration::from_secs(90);
const ROLES: [&str; 4] = ["event-processor", "outbox-processor", "dlt-router", "dlt-processor"];
const OUTBOX: &str = "HUB_OUTBOX_ORGANIZATION";

struct Stage {
    server: Secured,
    receiver: Receiver,
    admin: User,
    outbox: stream::Stream,
    producer: User,
    operator: Hub,
    /// One process for each role.
    roles: Vec<Hub>,
}

impl Stage {
    async fn set() -> Self {
        let server = Secured::start().await;
        let settings = TestSettings::quick().with(|settings| {
            settings.circuit.failures = Some(4);
            settings.circuit.failing_for = Some(Duration::ZERO);
            settings.circuit.first_pause = Some(Duration::from_secs(1));
        });
        Hub::not_started(&server.url(), &server.settings("hub", settings.clone()))
            .cli_ok(&["provision"])
            .await;
        let mut roles = Vec::new();
        for role in ROLES {
            let settings = server.settings(role, settings.clone());
            let mut hub = Hub::serve(&server.url(), &settings, &["--role", role]);
            hub.ready().await;
            roles.push(hub);
        }
        let operator = Hub::not_started(&server.url(), &server.settings("operator", settings));
        let (admin, producer) = (server.user("hub").await, server.user("producer").await);
        let outbox = jetstream::new(admin.client.clone()).get_stream(OUTBOX).await.expect("there");
        Self { server, receiver: Receiver::start().await, admin, outbox, producer, operator, roles }
    }

    async fn subscribe(&self, id: &str, events: &[&str], more: Value) {
        let mut subscription = subscription(id, events, &self.receiver.url(&format!("/{id}")));
        for (name, member) in more.as_object().into_iter().flatten() {
            subscription["delivery"][name] = member.clone();
        }
        let file = self.operator.folder().join(format!("{id}.json"));
        std::fs::write(&file, subscription.to_string()).expect("written");
        self.operator.cli_ok(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;
    }

    async fn publish(&self, key: &str) {
        let published = self.producer.client.request(format!("hub.events.{key}"), "{}".into()).await;
        published.expect("acknowledged");
    }

    async fn lanes(&self) -> Vec<String> {
        let mut names: Vec<String> = self.outbox.consumer_names().try_collect().await.expect("listed");
        names.sort();
        names
    }

    async fn has_lane(&self, lane: &str, expected: bool) {
        eventually(STEP, &format!("{lane} exists: {expected}"), async || {
            let lanes = self.lanes().await;
            if lanes.contains(&lane.to_owned()) == expected { Ok(()) } else { Err(lanes) }
        })
        .await;
    }

    /// Stores a message in a lane, as a late writer does.
    async fn put(&self, lane: &str, subscription: &str, body: &Value) {
        let subject = format!("hub.outbox.organization.{lane}.{subscription}");
        let stored = self.admin.client.request(subject, body.to_string().into()).await.expect("answered");
        let answer: Value = serde_json::from_slice(&stored.payload).expect("JSON");
        assert_eq!(answer["stream"], OUTBOX, "{answer}");
    }

    /// Waits for one dead letter with this reason.
    async fn dead_letter(&self, reason: &str) {
        eventually(STEP, &format!("a dead letter: {reason}"), async || {
            let letters = self.operator.cli_json(&["dlt", "list"]).await;
            let letters = letters.as_array().cloned().unwrap_or_default();
            let found = letters.iter().filter(|letter| letter["reason"] == reason).count();
            if found == 1 { Ok(()) } else { Err(letters) }
        })
        .await;
    }

    fn log(&self, role: &str) -> String {
        self.roles[ROLES.iter().position(|one| *one == role).expect("a role")].log()
    }

    async fn logs(&self, role: &str, text: &str) {
        eventually(STEP, &format!("{role} logs {text:?}"), async || {
            let log = self.log(role);
            if log.contains(text) { Ok(()) } else { Err(log.lines().last().unwrap_or_default().to_owned()) }
        })
        .await;
    }

    /// The body of an envelope of `crm`.
    async fn envelope(&self) -> Value {
        self.operator.cli_ok(&["domain", "pause", "organization"]).await;
        self.publish("member.invited").await;
        let body = eventually(STEP, "an envelope waits", async || {
            let mut outbox = self.outbox.clone();
            let state = outbox.info().await.expect("read").state.clone();
            if state.messages != 1 {
                return Err(state.messages);
            }
            Ok(outbox.get_raw_message(state.first_sequence).await.expect("read").payload)
        })
        .await;
        serde_json::from_slice(&body).expect("JSON")
    }
}

/// The dlt-router creates the missing consumer of a lane, and empties those that belong to nobody.
async fn lanes_without_consumers(stage: &Stage) {
    stage.subscribe("crm", &["member.>"], json!({})).await;
    let body = stage.envelope().await;
    let of = |id: &str, subscription: &str| {
        let mut envelope = body.clone();
        envelope["id"] = json!(id);
        if subscription != "crm" {
            envelope["subscription"] = json!(subscription);
            envelope["incarnation"] = json!("0123456789abcdef0123456789abcdef");
        }
        envelope
    };
    // The domain is paused: so is the new lane.
    stage.put("own-crm", "crm", &of("late", "crm")).await;
    stage.put("own-nobody", "nobody", &of("of-nobody", "nobody")).await;
    stage.put("x", "nobody", &json!("junk")).await;
    stage.has_lane("lane-own-crm", true).await;
    stage.dead_letter("undecodable").await;
    let created = stage.outbox.consumer_info("lane-own-crm").await.expect("there");
    assert!(created.paused, "{created:?}");
    stage.operator.cli_ok(&["domain", "resume", "organization"]).await;
    stage.receiver.wait_accepted("/crm", 2, STEP).await;
    stage.dead_letter("removed").await;
    stage.logs("dlt-router", "emptied a lane that nobody reads").await;
    let log = stage.log("dlt-router");
    assert!(!log.contains("consumer of a lane not created"), "{log}");
}

/// The event-processor creates the lane, and a dead letter stops it.
async fn strict_order(stage: &Stage) {
    stage.receiver.set("/ordered", Behaviour::status(400));
    stage.subscribe("ordered", &["org.>"], json!({"ordering": "strict"})).await;
    for _ in 0..3 {
        stage.publish("org.renamed").await;
    }
    stage.has_lane("lane-strict-0-ordered", true).await;
    let letter = ["dlt", "list", "--subscription", "ordered"];
    eventually(STEP, "a dead letter stops the order", async || {
        let letters = stage.operator.cli_json(&letter).await;
        if letters.as_array().is_some_and(|all| all.len() == 1) { Ok(()) } else { Err(letters) }
    })
    .await;
    stage.receiver.set("/ordered", Behaviour::ok());
    stage.operator.cli_ok(&["dlt", "replay", "--subscription", "ordered"]).await;
    stage.receiver.wait_accepted("/ordered", 3, STEP).await;
    // An operator ends the next stop by removing the envelope.
    stage.receiver.set("/ordered", Behaviour::status(400));
    stage.publish("org.renamed").await;
    eventually(STEP, "it stops again", async || {
        let letters = stage.operator.cli_json(&letter).await;
        if letters.as_array().is_some_and(|all| all.len() == 1) { Ok(()) } else { Err(letters) }
    })
    .await;
    stage.receiver.set("/ordered", Behaviour::ok());
    stage.operator.cli_ok(&["dlt", "discard", "--subscription", "ordered", "--yes"]).await;
    stage.publish("org.renamed").await;
    stage.receiver.wait_accepted("/ordered", 4, STEP).await;
}

/// The event-processor sets aside what it cannot process, and what exceeds a quota.
async fn set_aside(stage: &Stage) {
    stage.publish("nowhere.known").await;
    let context = jetstream::new(stage.admin.client.clone());
    eventually(STEP, "an event without a domain is rejected", async || {
        let rejected = context.get_stream("HUB_REJECTED").await.expect("there").cached_info().state.messages;
        if rejected == 1 { Ok(()) } else { Err(rejected) }
    })
    .await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/small", gate);
    stage.subscribe("small", &["member.moved"], json!({"max_backlog": 1})).await;
    stage.publish("member.moved").await;
    stage.receiver.wait_for("/small", 1, STEP).await;
    stage.publish("member.moved").await;
    stage.dead_letter("over-quota").await;
    open.send_replace(true);
    stage.receiver.wait_accepted("/small", 1, STEP).await;
}

/// The outbox-processor opens the circuit, probes, opens it again, and closes it; then it removes the lane.
async fn circuit(stage: &Stage) {
    stage.receiver.set("/broken", Behaviour::status(503));
    stage.subscribe("broken", &["invitation.>"], json!({})).await;
    for _ in 0..8 {
        stage.publish("invitation.sent").await;
    }
    stage.logs("outbox-processor", "probe failed, circuit open again").await;
    stage.has_lane("lane-own-broken", true).await;
    stage.receiver.set("/broken", Behaviour::ok());
    stage.receiver.wait_accepted("/broken", 1, STEP).await;
    stage.logs("outbox-processor", "circuit closed").await;
    eventually(STEP, "the outbox is empty", async || {
        let mut outbox = stage.outbox.clone();
        let messages = outbox.info().await.expect("read").state.messages;
        if messages == 0 { Ok(()) } else { Err(messages) }
    })
    .await;
    stage.operator.cli_ok(&["subscription", "remove", "broken", "--yes"]).await;
}

/// The sweep of the dlt-router finds what no advisory reports.
async fn lost_advisories(stage: &Stage) {
    let context = jetstream::new(stage.admin.client.clone());
    let advisories = context.get_stream("HUB_ADVISORIES").await.expect("there").cached_info().config.clone();
    let detached = stream::Config { subjects: vec!["detached.x".to_owned()], ..advisories.clone() };
    context.update_stream(detached).await.expect("detached");
    stage.receiver.set("/failing", Behaviour::status(503));
    stage.subscribe("failing", &["organization.>"], json!({})).await;
    stage.publish("organization.moved").await;
    eventually(STEP, "it is a dead letter", async || {
        let letters = stage.operator.cli_json(&["dlt", "list", "--subscription", "failing"]).await;
        if letters[0]["reason"] == "exhausted" { Ok(()) } else { Err(letters) }
    })
    .await;
    stage.logs("dlt-router", "stranded envelope found").await;
    context.update_stream(advisories).await.expect("attached");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_does_its_rare_work_as_its_own_user() {
    let mut stage = Stage::set().await;
    lanes_without_consumers(&stage).await;
    circuit(&stage).await;
    strict_order(&stage).await;
    set_aside(&stage).await;
    lost_advisories(&stage).await;
    stage.has_lane("lane-own-broken", false).await;
    let refused = stage.server.violations();
    assert_eq!(refused, Vec::<String>::new(), "every operation of the hub is permitted");
    for hub in &mut stage.roles {
        assert!(hub.terminate().await.success(), "{}", hub.log());
    }
}
