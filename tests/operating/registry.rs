//! The registry is never created again silently: a hub without its registry is not ready, events and envelopes wait, and a
//! backup restores it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::jetstream::stream;
use serde_json::{Value, json};

use crate::support::{
    Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, http_client, ids, print_output,
};

const STEP: Duration = Duration::from_secs(60);
const BUCKET: &str = "KV_hub-subscriptions";
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// Waits until `/readyz` answers 503 with `text`.
async fn unready(hub: &Hub, text: &str) {
    eventually(STEP, &format!("the hub is not ready: {text}"), async || {
        let answer = http_client().get(hub.health_url("/readyz")).send().await.map_err(|e| e.to_string())?;
        let status = answer.status();
        let body = answer.text().await.unwrap_or_default();
        if status == 503 && body.contains(text) { Ok(()) } else { Err(format!("{status} {body}")) }
    })
    .await;
}

fn write(hub: &Hub, name: &str, value: &Value) -> PathBuf {
    let path = hub.folder().join(name);
    std::fs::write(&path, value.to_string()).expect("written");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A hub with two subscriptions; one envelope of the paused domain waits in its outbox.
async fn hub_with_waiting_envelope(broker: &TestBroker, receiver: &Receiver) -> (Hub, TestClient) {
    let settings = TestSettings::patient().with_key(KEY);
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let subscriptions = json!([
        {"id": "users", "tenant": "default", "events": ["user.>"], "delivery": {
            "url": receiver.url("/users"), "timeout": "60s",
            "auth": {"type": "bearer", "token": "plain-secret"},
        }},
        {"id": "policies", "tenant": "default", "events": ["policy.>"],
         "delivery": {"url": receiver.url("/policies"), "timeout": "60s"}},
    ]);
    let file = write(&hub, "subscriptions.json", &subscriptions);
    hub.cli_ok(&["subscription", "apply", "--file", text(&file)]).await;
    hub.cli_ok(&["domain", "pause", "policy-client", "--for", "1h"]).await;
    client.publish("policy.updated", "waits").await;
    client.publish("user.created", "before").await;
    receiver.wait_accepted("/users", 1, STEP).await;
    eventually(STEP, "the envelope is in its outbox", async || {
        let waiting = client.stream("HUB_OUTBOX_POLICY_CLIENT").await.state.messages;
        if waiting == 1 { Ok(()) } else { Err(waiting) }
    })
    .await;
    (hub, client)
}

async fn events_wait(client: &TestClient, count: u64) {
    eventually(STEP, "the events wait", async || {
        let waiting = client.stream("HUB_EVENTS").await.state.messages;
        if waiting == count { Ok(()) } else { Err(waiting) }
    })
    .await;
}

#[tokio::test]
async fn a_deleted_registry_stops_the_hub_and_a_backup_restores_it() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (mut hub, client) = hub_with_waiting_envelope(&broker, &receiver).await;
    let backup = hub.folder().join("backup.json");
    let printed = hub.cli_ok(&["registry", "export", "--file", text(&backup)]).await;
    assert!(printed.contains("2 subscriptions exported"), "{printed}");
    let stored = std::fs::read_to_string(&backup).expect("readable");
    assert!(!stored.contains("plain-secret"), "secrets stay sealed: {stored}");
    assert!(stored.contains("incarnation"), "{stored}");

    // While it runs.
    client.context.delete_stream(BUCKET).await.expect("deleted");
    unready(&hub, "the subscription registry is missing").await;
    client.publish_all("user.created", &ids("lost", 20)).await;
    hub.cli_ok(&["domain", "resume", "policy-client"]).await;
    events_wait(&client, 20).await;
    let exported = hub.cli(&["registry", "export"]).await;
    assert_eq!(exported.status.code(), Some(1), "{}", print_output(&exported));

    // After a restart.
    hub.terminate().await;
    hub.start();
    unready(&hub, "the subscription registry is missing").await;
    let streams: Vec<String> = broker.streams().await.into_iter().map(|info| info.config.name).collect();
    assert!(!streams.contains(&BUCKET.to_owned()), "nobody creates it: {streams:?}");
    for arguments in
        [&["provision"][..], &["provision", "--check"], &["registry", "import", "--file", text(&backup)]]
    {
        let output = hub.cli(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", print_output(&output));
        let all = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(all.contains("the subscription registry is missing"), "{arguments:?}: {all}");
    }
    assert_eq!(client.stream("HUB_EVENTS").await.state.messages, 20);

    let restored = hub.cli_json(&["registry", "import", "--create-registry", "--file", text(&backup)]).await;
    let actions: Vec<&str> =
        restored.as_array().expect("a list").iter().filter_map(|one| one["action"].as_str()).collect();
    assert_eq!(actions, ["created", "created"], "{restored}");
    hub.ready().await;
    // Pausing survives the registry; the envelope from before still belongs to its subscription.
    receiver.wait_accepted("/policies", 1, STEP).await;
    receiver.wait_accepted("/users", 21, STEP).await;
    broker.nothing_pending_within(STEP).await;
    for domain in ["user-lifecycle", "policy-client"] {
        assert!(client.dead_letters(domain).await.is_empty(), "{domain}");
    }
}

#[tokio::test]
async fn a_registry_created_again_by_hand_counts_only_when_it_is_accepted() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (hub, client) = hub_with_waiting_envelope(&broker, &receiver).await;
    // With the configuration of the original, which has its metadata.
    let config = client.stream(BUCKET).await.config;
    client.context.delete_stream(BUCKET).await.expect("deleted");
    client.context.create_stream(config).await.expect("created");
    unready(&hub, "was deleted and created again").await;
    client.publish_all("user.created", &ids("wait", 10)).await;
    events_wait(&client, 10).await;
    hub.cli_ok(&["domain", "resume", "policy-client"]).await;
    // Known subscriptions are delivered to; the loss removes none.
    receiver.wait_accepted("/policies", 1, STEP).await;

    client.context.delete_stream(BUCKET).await.expect("deleted");
    let plain = stream::Config {
        name: BUCKET.to_owned(),
        subjects: vec!["$KV.hub-subscriptions.>".to_owned()],
        ..stream::Config::default()
    };
    client.context.create_stream(plain).await.expect("created");
    let refused = hub.cli(&["provision"]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", print_output(&refused));
    events_wait(&client, 10).await;
    hub.cli_ok(&["provision", "--create-registry"]).await;
    eventually(STEP, "the hub is ready again", async || {
        let answer = http_client().get(hub.health_url("/readyz")).send().await.map_err(|e| e.to_string())?;
        if answer.status() == 200 { Ok(()) } else { Err(answer.text().await.unwrap_or_default()) }
    })
    .await;
    // The operator accepted an empty registry: no subscription wants the events.
    events_wait(&client, 0).await;
    assert_eq!(receiver.count("/users"), 1);
}

const EVENTS: &str = "HUB_EVENTS";

async fn delete_both(client: &TestClient) {
    for stream in [EVENTS, BUCKET] {
        client.context.delete_stream(stream).await.expect("deleted");
    }
}

/// A process starts before one at work has made the events stream again: envelopes wait, so the hub is not new.
#[tokio::test]
async fn a_process_that_starts_after_both_records_were_deleted_creates_no_registry() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (hub, client) = hub_with_waiting_envelope(&broker, &receiver).await;
    hub.freeze();
    delete_both(&client).await;
    let mut second = Hub::serve(&broker.url(), &TestSettings::patient().with_key(KEY), &[]);
    unready(&second, "the subscription registry is missing").await;
    for arguments in [&["provision"][..], &["provision", "--check"]] {
        let output = second.cli(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", print_output(&output));
        let all = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(all.contains("the subscription registry is missing"), "{arguments:?}: {all}");
    }
    let streams: Vec<String> = broker.streams().await.into_iter().map(|info| info.config.name).collect();
    for name in [EVENTS, BUCKET] {
        assert!(!streams.contains(&name.to_owned()), "nobody creates it: {streams:?}");
    }

    hub.thaw();
    eventually(STEP, "the events stream is made again", async || {
        client.context.get_stream(EVENTS).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    unready(&hub, "the subscription registry is missing").await;
    unready(&second, "the subscription registry is missing").await;
    assert_eq!(client.stream("HUB_OUTBOX_POLICY_CLIENT").await.state.messages, 1, "the envelope waits");
    assert!(client.dead_letters("policy-client").await.is_empty());

    second.cli_ok(&["provision", "--create-registry"]).await;
    second.ready().await;
    eventually(STEP, "the first one follows the accepted registry", async || {
        let (ready, text) = hub.readiness().await;
        if ready { Ok(()) } else { Err(text) }
    })
    .await;
}

/// Such as that of a process that took itself for the first one.
#[tokio::test]
async fn a_registry_that_was_recorded_but_not_accepted_is_not_followed() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (hub, client) = hub_with_waiting_envelope(&broker, &receiver).await;
    let [mut events, mut bucket] = [client.stream(EVENTS).await.config, client.stream(BUCKET).await.config];
    hub.freeze();
    delete_both(&client).await;
    client.context.create_stream(bucket.clone()).await.expect("created");
    let created = client.js.stream_info(BUCKET).await.expect("there").created;
    for config in [&mut bucket, &mut events] {
        config.metadata.insert("hub.registry".to_owned(), created.clone());
    }
    client.context.update_stream(&bucket).await.expect("updated");
    client.context.create_stream(events).await.expect("created");
    hub.thaw();
    unready(&hub, "was deleted and created again").await;
    client.publish_all("user.created", &ids("wait", 5)).await;
    hub.cli_ok(&["domain", "resume", "policy-client"]).await;
    // Known subscriptions are delivered to; an empty registry that nobody accepted removes none.
    receiver.wait_accepted("/policies", 1, STEP).await;
    events_wait(&client, 5).await;
    for domain in ["user-lifecycle", "policy-client"] {
        assert!(client.dead_letters(domain).await.is_empty(), "{domain}");
    }
    let recorded = client.stream(EVENTS).await.config.metadata;
    assert_eq!(recorded.get("hub.registry"), Some(&created), "nobody records another one");

    hub.cli_ok(&["provision", "--create-registry"]).await;
    eventually(STEP, "the hub is ready again", async || {
        let (ready, text) = hub.readiness().await;
        if ready { Ok(()) } else { Err(text) }
    })
    .await;
    events_wait(&client, 0).await;
    assert_eq!(receiver.count("/users"), 1);
}

#[tokio::test]
async fn an_import_refuses_what_differs_and_says_what_it_did() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (hub, client) = hub_with_waiting_envelope(&broker, &receiver).await;
    let backup = hub.cli_ok(&["registry", "export"]).await;
    let value: Value = serde_json::from_str(&backup).expect("JSON");
    let file = write(&hub, "backup.json", &value);
    let import = ["registry", "import", "--file", text(&file)];
    let table = hub.cli_ok(&import).await;
    assert_eq!(table.matches("unchanged").count(), 2, "{table}");

    let changed = json!([{"id": "policies", "events": ["policy.>", "client.>"],
        "delivery": {"url": receiver.url("/policies"), "timeout": "60s"}}]);
    let other = write(&hub, "other.json", &changed);
    hub.cli_ok(&["subscription", "apply", "--file", text(&other)]).await;
    hub.cli_ok(&["subscription", "remove", "users", "--yes"]).await;
    let refused = hub.cli(&import).await;
    assert_eq!(refused.status.code(), Some(1), "{}", print_output(&refused));
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(stderr.contains("policies: differs from the file") && stderr.contains("--overwrite"), "{stderr}");
    let listed = hub.cli_json(&["subscription", "list"]).await;
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "nothing was written: {listed}");

    let overwrite = [&import[..], &["--overwrite"]].concat();
    let done = hub.cli_json(&overwrite).await;
    let mut actions: Vec<(&str, &str)> = done
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| Some((one["id"].as_str()?, one["action"].as_str()?)))
        .collect();
    actions.sort_unstable();
    assert_eq!(actions, [("policies", "replaced"), ("users", "created")]);
    client.publish("user.created", "after").await;
    receiver.wait_accepted("/users", 2, STEP).await;

    // A broken file changes nothing.
    let mut broken = value.clone();
    broken["subscriptions"][0]["tenant"] = json!("no tenant");
    broken["subscriptions"][1] = json!(7);
    let broken = write(&hub, "broken.json", &broken);
    let refused = hub.cli(&["registry", "import", "--overwrite", "--file", text(&broken)]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", print_output(&refused));
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(stderr.contains("subscriptions[0]") && stderr.contains("subscriptions[1]"), "{stderr}");
}

#[tokio::test]
async fn other_buckets_are_created_again_with_an_error_that_says_what_is_lost() {
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    for bucket in ["KV_hub-tokens", "KV_hub-keys", "KV_hub-orders"] {
        client.context.delete_stream(bucket).await.expect("deleted");
        eventually(STEP, "the bucket exists", async || {
            client.context.get_stream(bucket).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
    eventually(STEP, "each loss is logged", async || {
        let logged = hub.log().matches("a bucket was missing and is created again, empty").count();
        if logged == 3 { Ok(()) } else { Err(logged) }
    })
    .await;
    hub.ready().await;
}
