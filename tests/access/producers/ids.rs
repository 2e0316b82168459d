//! Message ids: two tenants, or two event keys, may use the same one; the hub's own ids cannot be guessed.

use async_nats::HeaderMap;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::STEP;
use crate::support::{
    ApiClient, Hub, RawPublisher, Receiver, TestBroker, TestClient, TestSettings, nats_cli, print_output,
    require_tool, subscription,
};

fn of_tenant(tenant: &str, receiver: &Receiver) -> Value {
    let mut one = subscription(tenant, &["user.>"], &receiver.url(&format!("/{tenant}")));
    one["tenant"] = json!(tenant);
    one
}

fn ids_and_keys(receiver: &Receiver, path: &str) -> Vec<String> {
    let mut got: Vec<String> = receiver
        .received(path)
        .iter()
        .map(|request| request.json())
        .map(|event| format!("{} {}", event["id"].as_str().unwrap(), event["type"].as_str().unwrap()))
        .collect();
    got.sort();
    got
}

/// Published without a pause, within the duplicate window.
#[tokio::test]
async fn one_message_id_of_two_tenants_or_for_two_keys_is_two_events() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let test = TestClient::connect(&broker.url()).await;
    test.subscribe(["acme", "globex"].map(|tenant| of_tenant(tenant, &receiver))).await;
    let client = broker.client().await;
    for _ in 0..3 {
        for key in ["user.created", "user.changed"] {
            for tenant in ["acme", "globex"] {
                for bound in [true, false] {
                    let mut headers = HeaderMap::new();
                    headers.insert("Nats-Msg-Id", "x");
                    let subject =
                        if bound { format!("hub.from.{tenant}.{key}") } else { format!("hub.events.{key}") };
                    if !bound {
                        headers.insert("Hub-Tenant", tenant);
                    }
                    client.publish_with_headers(subject, headers, "{}".into()).await.expect("sent");
                }
            }
        }
    }
    client.flush().await.expect("flushed");
    for path in ["/acme", "/globex"] {
        receiver.wait_for(path, 2, STEP).await;
    }
    broker.nothing_pending_within(STEP).await;
    for path in ["/acme", "/globex"] {
        assert_eq!(ids_and_keys(&receiver, path), ["x user.changed", "x user.created"], "each once");
    }
    assert_eq!(broker.messages("HUB_REJECTED").await, 0);

    // The same with the real command line, and in CloudEvents.
    let Some(nats) = require_tool("nats", nats_cli()) else { return };
    let url = broker.url();
    for arguments in [
        "pub hub.events.user.created {} -H Nats-Msg-Id:y -H Hub-Tenant:acme",
        "pub hub.events.user.created {} -H Nats-Msg-Id:y -H Hub-Tenant:globex",
        "pub hub.from.acme.user.changed {} -H Nats-Msg-Id:y",
        "pub hub.from.globex.user.changed {} -H Nats-Msg-Id:y",
        "pub hub.from.globex.user.x {} -H ce-specversion:1.0 -H ce-id:y -H ce-source:nats -H ce-type:user.changed",
    ] {
        let mut command = tokio::process::Command::new(&nats);
        command
            .args(["--server", &url])
            .args(arguments.split(' '))
            .env("HOME", hub.folder())
            .kill_on_drop(true);
        let output =
            tokio::time::timeout(STEP, command.output()).await.expect("nats ends").expect("nats runs");
        assert!(output.status.success(), "{arguments}: {}", print_output(&output));
    }
    for path in ["/acme", "/globex"] {
        receiver.wait_for(path, 4, STEP).await;
    }
    broker.nothing_pending_within(STEP).await;
    for path in ["/acme", "/globex"] {
        let expected = ["x user.changed", "x user.created", "y user.changed", "y user.created"];
        assert_eq!(ids_and_keys(&receiver, path), expected, "{path}");
    }
}

/// White space around a header value (RFC 9110 section 5.5) belongs to the id.
#[tokio::test]
async fn ids_that_differ_in_white_space_are_different_events() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    TestClient::connect(&broker.url()).await.subscribe([of_tenant("acme", &receiver)]).await;
    let ids = ["w", "\u{a0}w", "\u{3000}w", "w\u{2028}", "w\u{2003}"];
    let mut publisher = RawPublisher::connect(&broker.url()).await;
    for id in ids {
        for block in [
            format!("NATS/1.0\r\nNats-Msg-Id: \t{id} \r\nHub-Tenant:acme\r\n\r\n"),
            format!(
                "NATS/1.0\r\nce-specversion: 1.0\r\nce-id: {id}\t\r\nce-source: /ce\r\nce-type: user.created\r\n\
                 ce-tenant: acme\r\n\r\n"
            ),
        ] {
            publisher.publish(b"hub.events.user.created", Some(block.as_bytes()), b"{}").await;
        }
    }
    receiver.wait_accepted("/acme", 2 * ids.len(), STEP).await;
    let received = receiver.received("/acme");
    let got: std::collections::BTreeSet<String> =
        received.iter().map(|request| request.json()["id"].as_str().expect("text").to_owned()).collect();
    assert_eq!(got, ids.iter().map(|id| (*id).to_owned()).collect(), "each as it was written");
}

/// The message id that the API used to derive: anyone who knows the event can derive it.
fn guess(tenant: &str, source: &str, key: &str, id: &str) -> Vec<String> {
    let identities =
        [format!("{}:{source}:{id}", source.len()), format!("{}:{source}:{key}:{id}", source.len())];
    let hashed = identities.map(|identity| {
        let mut hash = Sha256::new();
        for part in [tenant, &identity] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        hash.finalize()[..16].iter().fold("evt_".to_owned(), |text, byte| format!("{text}{byte:02x}"))
    });
    hashed.into_iter().chain([id.to_owned()]).collect()
}

fn event(id: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/idp", "type": "user.created", "tenant": "acme"})
}

async fn post(api: &ApiClient, id: &str) -> Value {
    let content = [("content-type", "application/cloudevents+json")];
    let answer = api.send("POST", "/v1/events", &content, Some(event(id).to_string().into_bytes())).await;
    answer.expect(202)["events"][0].clone()
}

#[tokio::test]
async fn a_guessed_id_suppresses_nothing_and_every_replica_knows_what_was_published() {
    let mut broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut one = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    let mut other = Hub::serve(&broker.url(), &TestSettings::quick(), &["--role", "api"]);
    one.ready().await;
    other.ready().await;
    let test = TestClient::connect(&broker.url()).await;
    test.subscribe([of_tenant("acme", &receiver)]).await;
    let api = ApiClient::with_scopes(&one, "publisher", "publish", None).await;
    let replica = ApiClient::with_token(&other, Some(api.token()));

    // Another tenant's producer has already published with every id that it can derive.
    let client = broker.client().await;
    for id in guess("acme", "/idp", "user.created", "e-1") {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id.as_str());
        client
            .publish_with_headers("hub.from.globex.user.created", headers, "{}".into())
            .await
            .expect("sent");
    }
    client.flush().await.expect("flushed");
    let first = post(&api, "e-1").await;
    assert_eq!(first["duplicate"], false, "{first}");
    receiver.wait_for("/acme", 1, STEP).await;
    let again = post(&replica, "e-1").await;
    assert_eq!((&again["duplicate"], &again["sequence"]), (&json!(true), &first["sequence"]));
    broker.nothing_pending_within(STEP).await;
    assert_eq!(receiver.count("/acme"), 1);

    // After a restart the secret is the same, and repetitions are still recognised.
    for hub in [&mut one, &mut other] {
        assert!(hub.terminate().await.success());
    }
    broker.process().kill().await.expect("killed");
    broker.process().restart().await.expect("restarted");
    other.start();
    other.ready().await;
    let replica = ApiClient::with_token(&other, Some(api.token()));
    assert_eq!(post(&replica, "e-1").await["duplicate"], true);
    assert_eq!(post(&replica, "e-2").await["duplicate"], false);

    // Writing another secret does not replace it.
    let context = broker.jetstream().await;
    let sent = context.publish("$KV.hub-keys.message-ids", "AAAA".into()).await.expect("sent").await;
    assert!(sent.is_err(), "the first value stays: {sent:?}");
}

/// A value was written under the secret's key before the hub created it.
#[tokio::test]
async fn a_secret_that_is_none_is_replaced() {
    let broker = TestBroker::start().await;
    let hub = Hub::not_started(&broker.url(), &TestSettings::quick());
    hub.cli_ok(&["provision"]).await;
    let context = broker.jetstream().await;
    let ack = r#"{"stream":"HUB_EVENTS","seq":1}"#;
    context.publish("$KV.hub-keys.message-ids", ack.into()).await.expect("sent").await.expect("stored");
    let publish = ["publish", "user.created", "{}", "--id", "1"];
    assert_eq!(hub.cli_json(&publish).await["duplicate"], false);
    assert_eq!(hub.cli_json(&publish).await["duplicate"], true);
    assert_eq!(broker.messages("KV_hub-keys").await, 1);
}
