//! Registry entries that are not subscriptions: a producer in the hub's account can write them with a reply
//! subject.

use bytes::Bytes;
use serde_json::{Value, json};

use super::STEP;
use crate::support::{
    ApiClient, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, subscription,
};

const BUCKET: &str = "KV_hub-subscriptions";

async fn ready_text(hub: &Hub) -> (u16, String) {
    let answer = ApiClient::with_token(hub, None).get("/readyz").await;
    (answer.status, answer.text)
}

async fn list(hub: &Hub) -> Value {
    hub.cli_json(&["subscription", "list"]).await
}

fn marked<'a>(listed: &'a Value, id: &str) -> &'a Value {
    let all = listed.as_array().expect("a list");
    all.iter().find(|one| one["id"] == id).unwrap_or_else(|| panic!("{id} is not in {listed}"))
}

/// Values that a producer can write over an entry.
fn garbage() -> Vec<Bytes> {
    [
        &br#"{"stream":"HUB_EVENTS","seq":7}"#[..],
        b"",
        b"not JSON",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        br#"{"id":"crm"}"#,
        br#"{"id":"other","events":["user.>"],"delivery":{"url":"http://127.0.0.1:1/"}}"#,
    ]
    .map(Bytes::from_static)
    .to_vec()
}

#[tokio::test]
async fn an_acknowledgement_in_the_place_of_a_subscription_leaves_it_in_force() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let test = TestClient::connect(&broker.url()).await;
    test.subscribe(["crm", "erp"].map(|id| subscription(id, &["user.>"], &receiver.url(&format!("/{id}")))))
        .await;
    let api = ApiClient::with_scopes(&hub, "ops", "read,manage", None).await;

    // The attack itself: one account, one publication.
    let client = broker.client().await;
    for key in ["$KV.hub-subscriptions.crm", "$KV.hub-tokens.victim"] {
        client.publish_with_reply("hub.events.user.created", key, "{}".into()).await.expect("sent");
    }
    client.flush().await.expect("flushed");
    receiver.wait_for("/crm", 2, STEP).await;
    for restarted in [false, true] {
        if restarted {
            assert!(hub.terminate().await.success());
            hub.start();
            hub.ready().await;
        }
        test.publish("user.created", &format!("restarted-{restarted}")).await;
        let count = 3 + usize::from(restarted);
        receiver.wait_for("/crm", count, STEP).await;
        receiver.wait_for("/erp", count, STEP).await;
        let (status, text) = ready_text(&hub).await;
        assert_eq!(status, 200, "{text}");
        assert!(text.contains("unreadable") && text.contains("crm"), "{text}");
        hub.metric_above("hub_registry_unreadable_entries", &["in_force=\"earlier\""], 0.0, STEP).await;
        assert!(hub.log().contains("a registry entry is unreadable"), "it is logged");
        let listed = list(&hub).await;
        assert!(marked(&listed, "crm")["unreadable"].is_string(), "{listed}");
        assert!(marked(&listed, "erp")["unreadable"].is_null(), "{listed}");
        let shown = api.get("/v1/subscriptions").await.expect(200);
        assert_eq!(shown["subscriptions"].as_array().map(Vec::len), Some(2), "{shown}");
        api.get("/v1/subscriptions/crm").await.expect(200);
        // Instead of a token: logged, and not accepted as a token.
        let tokens = hub.cli_json(&["token", "list"]).await.to_string();
        assert!(
            tokens.contains("victim") && tokens.contains("unreadable") && tokens.contains("ops"),
            "{tokens}"
        );
    }
    hub.cli_ok(&["token", "revoke", "victim", "--yes"]).await;
    let tokens = hub.cli_json(&["token", "list"]).await.to_string();
    assert!(!tokens.contains("victim"), "{tokens}");

    // The same subscription again repairs the entry.
    let file = hub.folder().join("crm.json");
    let crm = subscription("crm", &["user.>"], &receiver.url("/crm"));
    std::fs::write(&file, crm.to_string()).expect("written");
    hub.cli_ok(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;
    eventually(STEP, "all entries are readable", async || {
        let text = ready_text(&hub).await.1;
        if text == "ready\n" { Ok(()) } else { Err(text) }
    })
    .await;
    assert!(marked(&list(&hub).await, "crm")["unreadable"].is_null());
}

#[tokio::test]
async fn whatever_is_written_over_an_entry_the_last_readable_one_counts() {
    let broker = TestBroker::start().await;
    let hub = Hub::not_started(&broker.url(), &TestSettings::quick());
    hub.cli_ok(&["provision"]).await;
    let test = TestClient::connect(&broker.url()).await;
    let receiver = Receiver::start().await;
    for garbage in garbage() {
        test.subscribe([subscription("crm", &["user.>"], &receiver.url("/crm"))]).await;
        let sent = test.context.publish("$KV.hub-subscriptions.crm", garbage.clone()).await.expect("sent");
        sent.await.expect("stored");
        let listed = list(&hub).await;
        let crm = marked(&listed, "crm");
        assert_eq!(crm["events"], json!(["user.>"]), "{garbage:?}: {listed}");
        assert!(crm["unreadable"].is_string(), "{garbage:?}: {listed}");
        hub.cli_ok(&["subscription", "show", "crm"]).await;
        hub.cli_ok(&["subscription", "remove", "crm", "--yes"]).await;
        assert_eq!(list(&hub).await, json!([]), "{garbage:?}: removed");
        // After a deletion, such an entry does not restore the subscription.
        let sent = test.context.publish("$KV.hub-subscriptions.crm", garbage.clone()).await.expect("sent");
        sent.await.expect("stored");
        let listed = list(&hub).await;
        assert!(marked(&listed, "crm")["unreadable"].is_string(), "{garbage:?}: {listed}");
        hub.cli_ok(&["subscription", "remove", "crm", "--yes"]).await;
    }
}

/// Its revisions start from the beginning, and the hub must not mistake them for the known ones.
#[tokio::test]
async fn a_recreated_bucket_is_read_before_events_are_planned() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let test = TestClient::connect(&broker.url()).await;
    for number in 0..5 {
        let old = subscription(&format!("old-{number}"), &["user.>"], &receiver.url("/old"));
        test.subscribe([old]).await;
    }
    for round in 0..3 {
        test.context.delete_stream(BUCKET).await.expect("deleted");
        hub.cli_ok(&["provision", "--create-registry"]).await;
        let path = format!("/new-{round}");
        let file = hub.folder().join("new.json");
        let new = subscription("new", &["user.>"], &receiver.url(&path));
        std::fs::write(&file, new.to_string()).expect("written");
        hub.cli_ok(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;
        assert!(test.publish("user.created", &format!("round-{round}")).await);
        receiver.wait_for(&path, 1, STEP).await;
        broker.nothing_pending_within(STEP).await;
        assert_eq!((receiver.count(&path), receiver.count("/old")), (1, 0));
    }
}

/// An entry of a version in which ids did not belong to tenants: rejected until it is moved, so that no entry is
/// overwritten.
#[tokio::test]
async fn the_entry_of_another_tenant_is_moved_by_provision() {
    let broker = TestBroker::start().await;
    let hub = Hub::not_started(&broker.url(), &TestSettings::quick());
    hub.cli_ok(&["provision"]).await;
    let test = TestClient::connect(&broker.url()).await;
    let moved =
        br#"{"id":"crm","tenant":"globex","events":["user.>"],"delivery":{"url":"http://127.0.0.1:1/"}}"#;
    let sent =
        test.context.publish("$KV.hub-subscriptions.crm", moved.as_slice().into()).await.expect("sent");
    sent.await.expect("stored");
    let shown = hub.cli(&["subscription", "show", "crm"]).await;
    let error = String::from_utf8_lossy(&shown.stderr);
    assert!(!shown.status.success() && error.contains("globex/crm"), "{error}");
    assert!(error.contains("hub provision"), "{error}");
    hub.cli_ok(&["provision"]).await;
    let listed = list(&hub).await;
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    let crm = marked(&listed, "crm");
    assert!(crm["tenant"] == "globex" && crm["unreadable"].is_null(), "{listed}");
}

/// No readable entry is left, so the selected events are unknown, and the events of the tenant wait.
#[tokio::test]
async fn without_a_readable_revision_the_events_of_its_tenant_wait_until_it_is_repaired_or_removed() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let test = TestClient::connect(&broker.url()).await;
    let of_tenant = |id: &str, tenant: &str| {
        let mut one = subscription(id, &["user.>"], &receiver.url(&format!("/{id}")));
        one["tenant"] = json!(tenant);
        one
    };
    test.subscribe([of_tenant("lost", "acme"), of_tenant("kept", "acme"), of_tenant("other", "globex")])
        .await;
    assert!(hub.terminate().await.success());
    let stream = test.context.get_stream(BUCKET).await.expect("there");
    for _ in 0..stream.cached_info().config.max_messages_per_subject {
        let sent = test.context.publish("$KV.hub-subscriptions.acme=lost", "{}".into()).await.expect("sent");
        sent.await.expect("stored");
    }
    hub.start();
    hub.ready().await;
    let client = broker.client().await;
    for tenant in ["acme", "globex"] {
        client.publish(format!("hub.from.{tenant}.user.created"), "{}".into()).await.expect("sent");
    }
    client.flush().await.expect("flushed");
    receiver.wait_for("/other", 1, STEP).await;
    hub.metric_above("hub_registry_unreadable_entries", &["in_force=\"none\""], 0.0, STEP).await;
    let (status, text) = ready_text(&hub).await;
    assert!(status == 200 && text.contains("acme") && text.contains("wait"), "{status} {text}");
    let listed = list(&hub).await;
    assert!(marked(&listed, "lost")["unreadable"].is_string(), "{listed}");
    hub.wait_for_log("events of its tenant wait", STEP).await;
    assert_eq!((receiver.count("/kept"), receiver.count("/lost")), (0, 0));
    assert_eq!(broker.messages("HUB_EVENTS").await, 1, "the event of acme waits");

    // Repaired: both get it.
    let file = hub.folder().join("lost.json");
    std::fs::write(&file, of_tenant("lost", "acme").to_string()).expect("written");
    hub.cli_ok(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;
    receiver.wait_for("/kept", 1, STEP).await;
    receiver.wait_for("/lost", 1, STEP).await;
    broker.nothing_pending_within(STEP).await;
}
