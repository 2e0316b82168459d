//! The id of a subscription is not its identity: envelopes of a deleted subscription reach no later one with the same
//! name, in its tenant or another; and ids are unique within a tenant.

mod upgrade;

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::HeaderMap;
use integration_hub::domain::dead_letter::DeadLetterState;
use integration_hub::domain::outcome::Reason;
use integration_hub::nats::{DeadLetterEntry, RedriveTrigger};
use serde_json::{Value, json};

use crate::support::{
    ApiClient, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, print_output,
};

const STEP: Duration = Duration::from_secs(60);
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const ALL: &str = "publish,read,manage,operate";

struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    hub: Hub,
    client: TestClient,
    /// Bound to no tenant.
    admin: ApiClient,
}

/// Redrives as in `schedule`; queues so short that waiting envelopes soon move to a lane of their own.
async fn stage(schedule: &[Duration]) -> Stage {
    let broker = TestBroker::start().await;
    let settings = TestSettings::quick().with_redrives(schedule.iter().copied()).with(|settings| {
        settings.delivery.held = Some(64);
        settings.delivery.queue_per_subscription = Some(4);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let admin = ApiClient::with_scopes(&hub, "admin", ALL, None).await;
    Stage { receiver: Receiver::start().await, broker, hub, client, admin }
}

impl Stage {
    /// Creates the subscription `hooks` of a tenant with this path; returns it as the API shows it.
    async fn create(&self, tenant: &str, path: &str) -> Value {
        let body = json!({
            "id": "hooks", "tenant": tenant, "events": ["policy.>"],
            "delivery": {"url": self.receiver.url(path), "timeout": "2s"},
        });
        self.admin.post("/v1/subscriptions", &body).await.expect(201)
    }

    async fn delete(&self, tenant: &str) {
        self.admin.delete(&format!("/v1/subscriptions/hooks?tenant={tenant}"), &[]).await.expect(204);
    }

    async fn publish(&self, tenant: &str, event_ids: &[String]) {
        for id in event_ids {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", id.as_str());
            headers.insert("Hub-Tenant", tenant);
            let sent =
                self.client.context.publish_with_headers("hub.events.policy.updated", headers, "{}".into());
            sent.await.expect("sent").await.expect("stored");
        }
    }

    /// Waits until a tenant's dead letters are these events, all with this reason, and returns them.
    async fn dead_letters(&self, tenant: &str, reason: Reason, wanted: &[String]) -> Vec<DeadLetterEntry> {
        let wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
        eventually(STEP, "the dead letters are there", async || {
            let mut found = self.client.dead_letters("policy-client").await;
            found.retain(|entry| entry.letter.tenant == tenant);
            let matching = found.iter().filter(|entry| entry.letter.reason == reason);
            let events: BTreeSet<&str> = matching.map(|entry| entry.letter.event_id.as_str()).collect();
            if events == wanted && found.len() == wanted.len() {
                return Ok(found.clone());
            }
            Err(found
                .iter()
                .map(|one| format!("{} {}", one.letter.event_id, one.letter.reason))
                .collect::<Vec<_>>())
        })
        .await
    }

    /// The events that a path received, with any answer.
    fn events_at(&self, path: &str) -> BTreeSet<String> {
        let all = self.receiver.received(path);
        all.iter().map(|one| one.json()["id"].as_str().expect("an id").to_owned()).collect()
    }

    async fn refused(&self, args: &[&str]) -> String {
        let output = self.hub.cli(args).await;
        assert_eq!(output.status.code(), Some(1), "`hub {}`: {}", args.join(" "), print_output(&output));
        String::from_utf8(output.stderr).expect("UTF-8")
    }
}

fn set<T: Clone + Ord>(items: &[T]) -> BTreeSet<T> {
    items.iter().cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn envelopes_of_a_removed_subscription_reach_no_other() {
    let stage = stage(&[Duration::from_secs(2); 4]).await;
    let first = stage.create("acme", "/first").await;
    stage.receiver.set("/first", Behaviour::status(503));
    // One is dead-lettered with a scheduled redrive; the others wait in flight, queued, and in its own lane.
    let dead = ids("dead", 5);
    stage.publish("acme", &dead).await;
    stage.dead_letters("acme", Reason::Exhausted, &dead).await;
    stage.receiver.set("/first", Behaviour::Hang);
    let waiting = ids("waiting", 40);
    stage.publish("acme", &waiting).await;
    stage.hub.metric_above("hub_envelopes_spilled_total", &["domain=\"policy-client\""], 0.0, STEP).await;
    stage.client.consumer(OUTBOX, "lane-own-acme=hooks").await;

    stage.delete("acme").await;
    let again = stage.create("acme", "/again").await;
    stage.create("globex", "/globex").await;
    assert_ne!(again["incarnation"], first["incarnation"]);
    let (for_again, for_globex) = (ids("again", 3), ids("globex", 3));
    stage.publish("acme", &for_again).await;
    stage.publish("globex", &for_globex).await;
    stage.receiver.wait_accepted("/again", 3, STEP).await;
    stage.receiver.wait_accepted("/globex", 3, STEP).await;

    // All envelopes of the old subscription are parked for its own tenant, redriven ones included.
    let old: Vec<String> = dead.iter().chain(&waiting).cloned().collect();
    let letters = stage.dead_letters("acme", Reason::Removed, &old).await;
    for DeadLetterEntry { letter, .. } in &letters {
        assert_eq!(
            (letter.subscription.as_str(), letter.state),
            ("hooks", DeadLetterState::Parked),
            "{letter:?}"
        );
        assert_eq!(letter.incarnation.to_string(), first["incarnation"], "{letter:?}");
    }
    stage.broker.nothing_pending_within(STEP).await;
    eventually(STEP, "a drained lane of a removed subscription goes", async || {
        let lanes = stage.client.js.consumer_names(OUTBOX).await.expect("listed");
        // A new subscription has its name, so its lane is deleted only after minutes; it is empty.
        let lane = stage.client.js.consumer_info(OUTBOX, "lane-own-acme=hooks").await;
        match lane {
            Ok(info) if info.num_pending + info.num_ack_pending > 0 => Err(lanes),
            _ => Ok(()),
        }
    })
    .await;

    // No replay sends it to the new subscription: neither one by one, nor with `--force`, nor in bulk.
    let one = letters[0].letter.id.clone();
    for body in [json!({}), json!({"force": true})] {
        let problem = stage.admin.post(&format!("/v1/dead-letters/{one}/replay"), &body).await.expect(409);
        assert!(
            problem["detail"].as_str().is_some_and(|text| text.contains("acme/hooks was removed")),
            "{problem}"
        );
    }
    let error = stage.refused(&["dlt", "replay", &one]).await;
    assert!(error.contains("acme/hooks was removed") && error.contains("discard"), "{error}");
    stage.receiver.set("/again", Behaviour::status(400));
    let live = ids("live", 2);
    stage.publish("acme", &live).await;
    eventually(STEP, "the live ones fail", async || {
        let found = stage.client.dead_letters("policy-client").await;
        let failed = found.iter().filter(|entry| entry.letter.reason == Reason::Permanent).count();
        if failed == live.len() { Ok(()) } else { Err(failed) }
    })
    .await;
    stage.receiver.set("/again", Behaviour::ok());
    let order = stage
        .admin
        .post("/v1/dead-letters/replay", &json!({"tenant": "acme", "subscription": "hooks"}))
        .await;
    let path = order.header("location").to_owned();
    order.expect(202);
    let order = eventually(STEP, "the order ends", async || {
        let order = stage.admin.get(&path).await.expect(200);
        if order["state"] == "done" { Ok(order) } else { Err(order) }
    })
    .await;
    assert_eq!(
        (&order["total"], &order["done"], &order["removed"]),
        (&json!(47), &json!(2), &json!(45)),
        "{order}"
    );
    stage.dead_letters("acme", Reason::Removed, &old).await;
    let replayed = stage.hub.cli_json(&["dlt", "replay", "--subscription", "acme/hooks", "--force"]).await;
    assert_eq!(replayed, json!({"selected": 45, "ordered": 0, "already_replaying": 0, "removed": 45}));

    // A redrive that was ordered anyway parks it again.
    let sequence = letters[0].sequence;
    stage
        .client
        .js
        .request_redrive("policy-client", sequence, RedriveTrigger::OperatorForce)
        .await
        .expect("ordered");
    eventually(STEP, "the redriven one is parked again", async || {
        let found = stage.client.dead_letters("policy-client").await;
        let parked = found.iter().find(|entry| entry.letter.id == one && entry.sequence > sequence).cloned();
        let alone = found.iter().filter(|entry| entry.letter.id == one).count() == 1;
        match parked {
            Some(entry) if alone && entry.letter.reason == Reason::Removed => Ok(()),
            other => Err(other),
        }
    })
    .await;

    let expected: BTreeSet<String> = for_again.iter().chain(&live).cloned().collect();
    assert_eq!(stage.events_at("/again"), expected, "only later events");
    assert_eq!(stage.events_at("/globex"), set(&for_globex));

    // Each tenant sees its own.
    let (acme, other) = (
        ApiClient::with_scopes(&stage.hub, "acme", "read,operate", Some("acme")).await,
        ApiClient::with_scopes(&stage.hub, "globex", "read,operate", Some("globex")).await,
    );
    let list = acme.get("/v1/dead-letters?subscription=hooks&limit=1000").await.expect(200);
    let shown = list["dead_letters"].as_array().expect("a list");
    assert_eq!(shown.len(), 45);
    assert!(shown.iter().all(|one| one["tenant"] == "acme" && one["incarnation"] == first["incarnation"]));
    let list = other.get("/v1/dead-letters?subscription=hooks").await.expect(200);
    assert_eq!(list["dead_letters"], json!([]));
    other.get(&format!("/v1/dead-letters/{one}")).await.expect(404);
    other.send("POST", &format!("/v1/dead-letters/{one}/replay"), &[], None).await.expect(404);
    other.get("/v1/events/dead-0").await.expect(404);
    let trace = acme.get("/v1/events/dead-0").await.expect(200);
    assert_eq!(
        (&trace["subscribers"][0]["tenant"], &trace["subscribers"][0]["state"]),
        (&json!("acme"), &json!("dead-lettered"))
    );
    acme.delete(&format!("/v1/dead-letters/{one}"), &[]).await.expect(204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_and_a_410_are_those_of_one_subscription() {
    let stage = stage(&[]).await;
    stage.create("acme", "/held").await;
    stage.create("globex", "/globex").await;
    stage.receiver.set("/held", Behaviour::retry_after(503, 3_600));
    let (asked, held) = (ids("asked", 1), ids("held", 20));
    stage.publish("acme", &asked).await;
    stage.receiver.wait_for("/held", 1, STEP).await;
    stage.hub.metric_above("hub_subscriptions_held", &[], 0.0, STEP).await;
    stage.publish("acme", &held).await;
    // The other subscription of the same name is not held.
    let others = ids("others", 3);
    stage.publish("globex", &others).await;
    stage.receiver.wait_accepted("/globex", 3, STEP).await;

    // Nor is the one that is created again; held envelopes are released without a delivery.
    stage.delete("acme").await;
    stage.create("acme", "/again").await;
    let new = ids("new", 3);
    stage.publish("acme", &new).await;
    stage.receiver.wait_accepted("/again", 3, STEP).await;
    stage.dead_letters("acme", Reason::Removed, &held).await;
    assert_eq!(stage.events_at("/again"), set(&new));
    assert_eq!(stage.events_at("/held"), set(&asked));

    // A late 410 for a removed subscription disables no other.
    let gone = Behaviour::Slow(Duration::from_secs(1), Box::new(Behaviour::status(410)));
    stage.receiver.set("/again", gone);
    let late = ids("late", 1);
    stage.publish("acme", &late).await;
    stage.receiver.wait_for("/again", 4, STEP).await;
    stage.delete("acme").await;
    stage.create("acme", "/last").await;
    eventually(STEP, "the 410 is settled", async || {
        let found = stage.client.dead_letters("policy-client").await;
        let letter = found.into_iter().find(|entry| entry.letter.event_id == late[0]);
        letter.filter(|entry| entry.letter.reason == Reason::Permanent).ok_or("not yet")
    })
    .await;
    for tenant in ["acme", "globex"] {
        let shown = stage.admin.get(&format!("/v1/subscriptions/hooks?tenant={tenant}")).await.expect(200);
        assert_eq!(shown["state"], "active", "{shown}");
    }
    let last = ids("last", 1);
    stage.publish("acme", &last).await;
    stage.receiver.wait_accepted("/last", 1, STEP).await;
    assert_eq!(stage.events_at("/last"), set(&last));
    // A 410 for the current one disables it, and no other of the same name.
    stage.receiver.set("/last", Behaviour::status(410));
    stage.publish("acme", &ids("really", 1)).await;
    eventually(STEP, "it is disabled", async || {
        let shown = stage.admin.get("/v1/subscriptions/hooks?tenant=acme").await.expect(200);
        if shown["state"] == "disabled" { Ok(()) } else { Err(shown) }
    })
    .await;
    let shown = stage.hub.cli_json(&["subscription", "show", "globex/hooks"]).await;
    assert_eq!(shown["state"], "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tenants_use_one_id_side_by_side() {
    let stage = stage(&[Duration::from_secs(1); 8]).await;
    for tenant in ["acme", "globex", "default"] {
        stage.create(tenant, &format!("/{tenant}")).await;
    }
    stage.receiver.set("/acme", Behaviour::Hang);
    stage.receiver.set("/globex", Behaviour::Hang);
    for tenant in ["acme", "globex"] {
        stage.publish(tenant, &ids(tenant, 40)).await;
    }
    stage.publish("default", &ids("default", 40)).await;
    // Each has a queue and a lane of its own; the third is not slowed.
    stage.receiver.wait_accepted("/default", 40, STEP).await;
    for tenant in ["acme", "globex"] {
        let lane = format!("lane-own-{tenant}=hooks");
        eventually(STEP, "it has its own lane", async || {
            let lanes = stage.client.js.consumer_names(OUTBOX).await.expect("listed");
            if lanes.contains(&lane) { Ok(()) } else { Err(lanes) }
        })
        .await;
    }
    // One endpoint recovers, the other does not.
    stage.receiver.set("/acme", Behaviour::ok());
    stage.receiver.set("/globex", Behaviour::status(400));
    stage.receiver.wait_accepted("/acme", 40, STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    assert_eq!(stage.events_at("/acme"), set(&ids("acme", 40)));
    assert_eq!(stage.events_at("/globex"), set(&ids("globex", 40)));
    assert_eq!(stage.events_at("/default"), set(&ids("default", 40)));
    let found = stage.dead_letters("globex", Reason::Permanent, &ids("globex", 40)).await;
    stage.dead_letters("acme", Reason::Permanent, &[]).await;
    let count = |found: &Value| found.as_array().expect("a list").len();
    let listed =
        async |args: &[&str]| count(&stage.hub.cli_json(&[&["dlt", "list", "--all"], args].concat()).await);
    assert_eq!(listed(&["--subscription", "globex/hooks"]).await, found.len());
    assert_eq!(listed(&["--subscription", "hooks", "--tenant", "globex"]).await, found.len());
    assert_eq!(listed(&["--subscription", "hooks"]).await, found.len());
    assert_eq!(listed(&["--subscription", "acme/hooks"]).await, 0);
    assert_eq!(listed(&["--subscription", "hooks", "--tenant", "default"]).await, 0);
    let stats = stage.admin.get("/v1/dead-letters/stats").await.expect(200);
    let by = &stats["by_subscription"];
    assert_eq!((&by[0]["tenant"], &by[0]["subscription"], count(by)), (&json!("globex"), &json!("hooks"), 1));
    for args in [&["dlt", "list"][..], &["dlt", "stats"]] {
        let table = stage.hub.cli_ok(args).await;
        let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        let named = |names: [&str; 2]| words.iter().any(|row| row.windows(2).any(|pair| pair == names));
        assert!(named(["SUBSCRIPTION", "TENANT"]) && named(["hooks", "globex"]), "{table}");
    }

    // The command line lists both, and requires the tenant if the id is ambiguous.
    for args in [
        &["subscription", "pause", "acme/hooks"][..],
        &["subscription", "pause", "hooks", "--tenant", "acme"],
        &["subscription", "resume", "acme/hooks", "--tenant", "acme"],
    ] {
        stage.hub.cli_ok(args).await;
    }
    for command in ["show", "pause", "resume", "test", "rotate-secret"] {
        let output = stage.hub.cli(&["subscription", command, "hooks"]).await;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{command}: {}", print_output(&output));
        assert!(error.contains("acme, default, globex") && error.contains("--tenant"), "{command}: {error}");
    }
    let output = stage.hub.cli(&["subscription", "show", "acme/hooks", "--tenant", "globex"]).await;
    assert_eq!(output.status.code(), Some(2), "{}", print_output(&output));
    stage.hub.cli_ok(&["subscription", "remove", "hooks", "--tenant", "globex", "--yes"]).await;
    stage.hub.cli_ok(&["subscription", "remove", "default/hooks", "--yes"]).await;
    assert_eq!(stage.hub.cli_json(&["subscription", "show", "hooks"]).await["tenant"], "acme");
    // The lane of the removed subscription is deleted soon.
    eventually(STEP, "the removed one's lane is gone", async || {
        let lanes = stage.client.js.consumer_names(OUTBOX).await.expect("listed");
        if lanes.iter().any(|lane| lane == "lane-own-globex=hooks") { Err(lanes) } else { Ok(()) }
    })
    .await;
}
