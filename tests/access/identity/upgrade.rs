//! Data in the streams and the registry from versions in which ids did not belong to tenants stays usable.

use async_nats::HeaderMap;
use integration_hub::domain::outcome::Reason;
use integration_hub::domain::subscription::SubscriptionRef;
use serde_json::{Value, json};

use super::STEP;
use crate::support::{Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, print_output};

/// A subscription, an envelope and a dead letter as versions before ids belonged to tenants stored
/// them: under the bare id, without an incarnation.
struct Old<'a> {
    client: &'a TestClient,
    url: String,
}

impl Old<'_> {
    fn subscription(&self, id: &str, tenant: &str, path: &str) -> Value {
        let mut stored = json!({
            "id": id, "tenant": tenant, "events": ["policy.>"], "state": "active",
            "delivery": {"url": format!("{}{path}", self.url), "max_in_flight": 8},
        });
        stored["delivery"]["timeout"] = json!("2s");
        stored
    }

    async fn put(&self, key: &str, value: &Value) -> u64 {
        let subject = format!("$KV.hub-subscriptions.{key}");
        let sent = self.client.context.publish(subject, value.to_string().into()).await.expect("sent");
        sent.await.expect("stored").sequence
    }

    fn envelope(&self, id: &str, tenant: &str, event: &str) -> Value {
        json!({
            "id": format!("env_{event}"), "subscription": id, "domain": "policy-client", "tenant": tenant,
            "event_id": event, "event_key": "policy.updated", "event_time": "2026-01-01T00:00:00Z",
            "event": {"specversion": "1.0", "id": event, "source": "nats", "type": "policy.updated", "data": {}},
            "delivery": self.subscription(id, tenant, "/of-the-fan-out")["delivery"],
        })
    }

    async fn store(&self, subject: &str, headers: &[(&str, &str)], body: &Value) {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        let sent = self.client.context.publish_with_headers(subject.to_owned(), map, body.to_string().into());
        sent.await.expect("sent").await.expect("stored");
    }

    async fn dead_letter(&self, id: &str, tenant: &str, event: &str, due: &str) {
        let headers = [
            ("Nats-Msg-Id", event),
            ("Hub-Id", &format!("env_{event}")),
            ("Hub-Domain", "policy-client"),
            ("Hub-Subscription", id),
            ("Hub-Tenant", tenant),
            ("Hub-Event-Id", event),
            ("Hub-Event-Key", "policy.updated"),
            ("Hub-Reason", "exhausted"),
            ("Hub-Fault", "subscriber"),
            ("Hub-State", "scheduled"),
            ("Hub-Attempts", "3"),
            ("Hub-Redrives", "0"),
            ("Hub-Failed-At", "2026-01-01T00:00:00Z"),
            ("Hub-Next-Redrive-At", due),
        ];
        let subject = format!("hub.outbox.policy-client.shared.{id}.DLT");
        self.store(&subject, &headers, &self.envelope(id, tenant, event)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_an_older_version_stays_usable() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let hub = Hub::not_started(&broker.url(), &TestSettings::quick());
    hub.cli_ok(&["provision"]).await;
    let client = TestClient::connect(&broker.url()).await;
    let old = Old { client: &client, url: receiver.url("") };
    old.put("hooks", &old.subscription("hooks", "acme", "/hooks")).await;
    old.put("crm", &old.subscription("crm", "default", "/crm")).await;
    // A crash between the two steps of a move: the entry under the key of its name counts.
    old.put("dup", &old.subscription("dup", "a.b", "/stale")).await;
    old.put("a=b=dup", &old.subscription("dup", "a.b", "/dup")).await;
    // It was moved, and deleted later.
    let moved = old.subscription("bye", "acme", "/bye");
    old.put("bye", &moved).await;
    let canonical = SubscriptionRef::of("acme", "bye").unwrap();
    old.put("acme=bye", &moved).await;
    client.js.remove_subscription(&canonical, None).await.expect("removed");
    for (tenant, id) in [("acme", "hooks"), ("default", "crm"), ("a.b", "dup"), ("acme", "nobody")] {
        let subject = format!("hub.outbox.policy-client.shared.{id}");
        for number in 0..3 {
            let envelope = old.envelope(id, tenant, &format!("{id}-{number}"));
            old.store(&subject, &[("Nats-Msg-Id", envelope["id"].as_str().unwrap())], &envelope).await;
        }
        old.dead_letter(id, tenant, &format!("{id}-dead"), "2026-01-01T00:00:01Z").await;
    }

    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    for id in ["hooks", "crm", "dup"] {
        receiver.wait_accepted(&format!("/{id}"), 4, STEP).await;
    }
    broker.nothing_pending_within(STEP).await;
    let key = async |key: &str| {
        let stored =
            client.js.get_last("KV_hub-subscriptions", &format!("$KV.hub-subscriptions.{key}")).await;
        let stored = stored.expect("answers").filter(|message| message.header("KV-Operation").is_none());
        stored.map(|message| serde_json::from_slice::<Value>(&message.payload).expect("JSON"))
    };
    for gone in ["hooks", "dup", "bye", "acme=bye"] {
        assert_eq!(key(gone).await, None, "{gone}");
    }
    assert_eq!(key("acme=hooks").await.expect("moved")["tenant"], "acme");
    assert!(key("crm").await.is_some());
    for path in ["/stale", "/bye", "/of-the-fan-out"] {
        assert_eq!(receiver.count(path), 0, "{path}");
    }
    // An envelope without a subscription is dead-lettered for the tenant in its body.
    eventually(STEP, "the envelope without a subscription is parked", async || {
        let found = client.dead_letters("policy-client").await;
        let parked = found.iter().all(|entry| {
            entry.letter.reason == Reason::Removed
                && entry.letter.tenant == "acme"
                && entry.letter.incarnation.is_legacy()
        });
        if parked && found.len() == 4 { Ok(()) } else { Err(found) }
    })
    .await;
    let listed = hub.cli_json(&["dlt", "list", "--subscription", "acme/nobody"]).await;
    assert_eq!(listed.as_array().expect("a list").len(), 4, "under the bare id, too");

    // New events use the new form; a subscription that is created again is a different one.
    let shown = hub.cli_json(&["subscription", "show", "acme/hooks"]).await;
    assert_eq!(shown["incarnation"], "legacy");
    let mut headers = HeaderMap::new();
    headers.insert("Hub-Tenant", "acme");
    let sent = client.context.publish_with_headers("hub.events.policy.updated", headers, "{}".into()).await;
    sent.expect("sent").await.expect("stored");
    receiver.wait_accepted("/hooks", 5, STEP).await;
    hub.cli_ok(&["subscription", "remove", "acme/hooks", "--yes"]).await;
    let file = hub.folder().join("hooks.json");
    std::fs::write(&file, shown.to_string()).expect("written");
    hub.cli_ok(&["subscription", "apply", "-f", file.to_str().unwrap()]).await;
    let again = hub.cli_json(&["subscription", "show", "acme/hooks"]).await;
    assert_eq!(again["incarnation"].as_str().map(str::len), Some(32), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn provisioning_moves_what_an_older_version_stored() {
    let broker = TestBroker::start().await;
    let hub = Hub::not_started(&broker.url(), &TestSettings::default());
    assert_eq!(hub.cli_json(&["provision"]).await["moved"], 0);
    let client = TestClient::connect(&broker.url()).await;
    let old = Old { client: &client, url: "http://127.0.0.1:9".to_owned() };
    for tenant in ["acme", "default"] {
        old.put(&format!("of-{tenant}"), &old.subscription(&format!("of-{tenant}"), tenant, "/")).await;
    }
    // Before the move no other subscription can take the key.
    let file = hub.folder().join("new.json");
    std::fs::write(&file, old.subscription("of-acme", "default", "/").to_string()).expect("written");
    let output = hub.cli(&["subscription", "apply", "-f", file.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(1), "{}", print_output(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("hub provision"), "{}", print_output(&output));
    assert_eq!(hub.cli_json(&["provision"]).await["moved"], 1);
    assert_eq!(hub.cli_json(&["provision"]).await["moved"], 0);
    let listed = hub.cli_json(&["subscription", "list"]).await;
    let names: Vec<String> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| format!("{}/{} {}", one["tenant"], one["id"], one["incarnation"]).replace('"', ""))
        .collect();
    assert_eq!(names, ["acme/of-acme legacy", "default/of-default legacy"]);
    hub.cli_ok(&["subscription", "apply", "-f", file.to_str().unwrap()]).await;
}
