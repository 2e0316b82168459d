//! `hub.from.<tenant>.<resource>.<operation>`: the subject binds the tenant.

use async_nats::jetstream::stream;
use async_nats::{Client, HeaderMap};
use serde_json::{Value, json};

use super::STEP;
use crate::support::{
    ApiClient, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, subscription,
};

const STRUCTURED: (&str, &str) = ("Content-Type", "application/cloudevents+json");
const ENVELOPE: (&str, &str) = ("Content-Type", "application/vnd.integration-hub.envelope+json");

async fn publish(client: &Client, subject: &str, headers: &[(&str, &str)], body: &str) {
    let mut map = HeaderMap::new();
    headers.iter().for_each(|(name, value)| map.append(*name, *value));
    client.publish_with_headers(subject.to_owned(), map, body.to_owned().into()).await.expect("sent");
    client.flush().await.expect("flushed");
}

fn structured(id: &str, tenant: Option<&str>) -> String {
    let mut event = json!({"specversion": "1.0", "id": id, "source": "/idp", "type": "user.created"});
    event["tenant"] = json!(tenant);
    event.to_string()
}

fn envelope(id: &str, tenant: Option<&str>) -> String {
    json!({"data": {}, "metadata": {
        "headers": {"id": id, "type": "user.created"}, "extensions": {"tenant": tenant},
    }})
    .to_string()
}

fn of_tenant(tenant: &str, receiver: &Receiver) -> Value {
    let mut one = subscription(&tenant.replace('.', "-"), &["user.>"], &receiver.url(&format!("/{tenant}")));
    one["tenant"] = json!(tenant);
    one
}

/// Subject, headers, body, and the reason for which it is rejected.
type BadPublication<'a> = (&'a str, Vec<(&'a str, &'a str)>, String, &'a str);

#[tokio::test]
async fn every_form_is_bound_to_the_tenant_of_its_subject() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let (client, test) = (broker.client().await, TestClient::connect(&broker.url()).await);
    test.subscribe(["acme", "a.b", "globex", "default"].map(|tenant| of_tenant(tenant, &receiver))).await;

    let binary = |id: &'static str| {
        vec![("ce-specversion", "1.0"), ("ce-id", id), ("ce-source", "/idp"), ("ce-type", "user.created")]
    };
    // Each form, without a tenant or with the same tenant.
    let acme = "hub.from.acme.user.created";
    publish(&client, acme, &[("Nats-Msg-Id", "bare")], "{}").await;
    publish(&client, acme, &[("Nats-Msg-Id", "bare-same"), ("Hub-Tenant", "acme")], "{}").await;
    publish(&client, acme, &binary("binary"), "{}").await;
    publish(&client, acme, &[STRUCTURED], &structured("structured", Some("acme"))).await;
    publish(&client, acme, &[ENVELOPE], &envelope("envelope", None)).await;
    let bound = ["bare", "bare-same", "binary", "structured", "envelope"];
    publish(&client, "hub.from.a=b.user.created", &[("Nats-Msg-Id", "dotted")], "{}").await;
    // The type is the key, not the subject; the tenant of the subject applies.
    publish(&client, "hub.from.acme.whatever", &binary("elsewhere"), "{}").await;

    // Each claim of another tenant, in each form; and invalid tenants.
    let claim = |mut headers: Vec<(&'static str, &'static str)>, header| {
        headers.push((header, "globex"));
        headers
    };
    let bad: Vec<BadPublication<'_>> = vec![
        (acme, vec![("Hub-Tenant", "globex")], "{}".to_owned(), "tenant-mismatch"),
        (acme, vec![("Hub-Tenant", "acme"), ("Hub-Tenant", "globex")], "{}".to_owned(), "tenant-mismatch"),
        (acme, claim(binary("b-1"), "ce-tenant"), "{}".to_owned(), "tenant-mismatch"),
        (acme, claim(binary("b-2"), "Hub-Tenant"), "{}".to_owned(), "tenant-mismatch"),
        (acme, vec![STRUCTURED], structured("s-1", Some("globex")), "tenant-mismatch"),
        (acme, vec![STRUCTURED], structured("s-2", Some("default")), "tenant-mismatch"),
        (acme, vec![ENVELOPE], envelope("o-1", Some("globex")), "tenant-mismatch"),
        ("hub.from.a%b.user.created", vec![], "{}".to_owned(), "malformed"),
        ("hub.from.acme.user", vec![], "{}".to_owned(), "invalid-key"),
    ];
    for (subject, headers, body, _) in &bad {
        publish(&client, subject, headers, body).await;
    }

    receiver.wait_for("/acme", bound.len() + 1, STEP).await;
    receiver.wait_for("/a.b", 1, STEP).await;
    broker.nothing_pending_within(STEP).await;
    let mut delivered: Vec<String> =
        receiver.received("/acme").iter().map(|got| got.json()["id"].as_str().unwrap().to_owned()).collect();
    delivered.sort();
    let mut expected: Vec<&str> = bound.to_vec();
    expected.push("elsewhere");
    expected.sort_unstable();
    assert_eq!(delivered, expected);
    assert!(receiver.received("/acme").iter().all(|got| got.json()["tenant"] == "acme"));
    assert_eq!(receiver.received("/a.b")[0].json()["tenant"], "a.b");
    assert_eq!((receiver.count("/globex"), receiver.count("/default")), (0, 0), "no other tenant got one");

    let mut reasons: Vec<String> = Vec::new();
    for sequence in 1..=bad.len() as u64 {
        let kept = test.js.get("HUB_REJECTED", sequence).await.expect("answers").expect("kept");
        reasons.push(kept.header("Hub-Reason").unwrap_or_default().to_owned());
        assert!(kept.header("Hub-Subject").is_some_and(|subject| subject.starts_with("hub.from.")));
    }
    let mut wanted: Vec<&str> = bad.iter().map(|(.., reason)| *reason).collect();
    reasons.sort();
    wanted.sort_unstable();
    assert_eq!(reasons, wanted);

    // Only acme can trace the events that acme published, also those that name another tenant.
    let story = hub.cli_json(&["event", "trace", "s-1"]).await.to_string();
    assert!(story.contains("rejected") && story.contains("tenant-mismatch"), "{story}");
    let api = ApiClient::with_scopes(&hub, "globex", "read", Some("globex")).await;
    for id in ["s-1", "b-1", "o-1"] {
        let seen = api.get(&format!("/v1/events/{id}")).await;
        assert!(!seen.text.contains("rejected"), "{id}: {}", seen.text);
    }
    let api = ApiClient::with_scopes(&hub, "acme", "read", Some("acme")).await;
    for id in ["s-1", "b-1", "o-1"] {
        let seen = api.get(&format!("/v1/events/{id}")).await;
        assert!(seen.text.contains("tenant-mismatch"), "{id}: {}", seen.text);
    }
}

/// An older hub has only `hub.events.>`, with events in it.
#[tokio::test]
async fn the_subject_is_added_to_a_stream_that_holds_events() {
    let broker = TestBroker::start().await;
    let context = broker.jetstream().await;
    let old = stream::Config {
        name: "HUB_EVENTS".to_owned(),
        subjects: vec!["hub.events.>".to_owned(), "custom.>".to_owned()],
        retention: stream::RetentionPolicy::WorkQueue,
        discard: stream::DiscardPolicy::New,
        duplicate_window: std::time::Duration::from_secs(120),
        ..Default::default()
    };
    context.create_stream(old).await.expect("made");
    context.publish("hub.events.user.created", "{}".into()).await.expect("sent").await.expect("stored");

    let hub = Hub::not_started(&broker.url(), &TestSettings::quick());
    let done = hub.cli_json(&["provision", "--create-registry"]).await;
    let changed = done["changed"].to_string();
    assert!(changed.contains("hub.from.*.>") && changed.contains("sources"), "{changed}");
    let kept = done["kept"].to_string();
    assert!(
        kept.contains("subjects") && kept.contains("custom.>"),
        "the operator's own subject stays: {kept}"
    );
    let stream = context.get_stream("HUB_EVENTS").await.expect("there").cached_info().clone();
    assert_eq!(stream.state.messages, 1, "nothing was lost");
    assert_eq!(stream.config.subjects, ["hub.events.>", "custom.>", "hub.from.*.>"]);
    assert!(stream.config.duplicate_window.is_zero());
    let again = hub.cli_json(&["provision"]).await;
    assert_eq!(again["changed"], json!([]), "once is enough");

    let receiver = Receiver::start().await;
    let test = TestClient::connect(&broker.url()).await;
    test.subscribe([of_tenant("default", &receiver), of_tenant("acme", &receiver)]).await;
    let mut serving = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    serving.ready().await;
    publish(&broker.client().await, "hub.from.acme.user.created", &[], "{}").await;
    receiver.wait_for("/acme", 1, STEP).await;
    receiver.wait_for("/default", 1, STEP).await;
    eventually(STEP, "the events are done", async || match broker.messages("HUB_EVENTS").await {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
}
