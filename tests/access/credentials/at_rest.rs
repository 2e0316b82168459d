//! Secrets at rest: replacement of the master key, and no secret in plain text anywhere.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::{KEY, SIGNING, STEP, apply, last, serving, with_key};
use crate::support::{
    ApiClient, Behaviour, Hub, Receiver, TestBroker, TestSettings, TokenEndpoint, eventually, print_output,
};

const NEW_KEY: &str = "IAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// With the new key as `k2`.
fn with_new_key() -> TestSettings {
    let settings = TestSettings::quick().with_key(NEW_KEY);
    settings.with(|settings| settings.secrets.key_id = Some("k2".to_owned()))
}

#[tokio::test]
async fn a_new_master_key_takes_over_while_deliveries_go_on() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/crm", Behaviour::require_header("authorization", "Bearer hush"));
    let (mut hub, client) = serving(&broker, &with_key()).await;
    let subscriptions: Vec<Value> = (0..50)
        .map(|number| {
            json!({"id": format!("crm-{number}"), "events": ["user.>"], "delivery": {"url": receiver.url("/crm"),
                "auth": {"type": "bearer", "token": "hush"}, "signing": {"secret": SIGNING}}})
        })
        .collect();
    apply(&hub, &json!(subscriptions)).await;
    client.publish("user.created", "e1").await;
    receiver.wait_accepted("/crm", 50, STEP).await;

    let previous = Some(vec![format!("k1:{KEY}")]);
    let both = with_new_key().with(|settings| settings.secrets.previous_keys = previous);
    let rotating = Hub::not_started(&broker.url(), &both);
    let unable = Hub::not_started(&broker.url(), &with_new_key());
    let refused = unable.cli(&["secrets", "rotate"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("secrets.previous_keys"), "{said}");

    // The process with only the old key stops first; then both keys are known.
    hub.terminate().await;
    let (hub, _) = serving(&broker, &both).await;
    client.publish("user.created", "e2").await;
    receiver.wait_accepted("/crm", 100, STEP).await;
    let done = rotating.cli_json(&["secrets", "rotate"]).await;
    assert_eq!(done, json!({"key_id": "k2", "resealed": 50, "unchanged": 0, "left": 0, "settings": []}));
    let again = rotating.cli_json(&["secrets", "rotate"]).await;
    assert_eq!(again, json!({"key_id": "k2", "resealed": 0, "unchanged": 50, "left": 0, "settings": []}));
    client.publish("user.created", "e3").await;
    receiver.wait_accepted("/crm", 150, STEP).await;
    drop(hub);

    // The old key is no longer needed.
    let (_hub, _) = serving(&broker, &with_new_key()).await;
    client.publish("user.created", "e4").await;
    receiver.wait_accepted("/crm", 200, STEP).await;
}

/// Everything that goes over the broker, as text: each subject, header and payload.
async fn tap(broker: &TestBroker) -> Arc<Mutex<String>> {
    let seen = Arc::new(Mutex::new(String::new()));
    let client = broker.client().await;
    let mut messages = client.subscribe(">").await.expect("subscribed");
    client.flush().await.expect("the server knows of the subscription");
    let into = seen.clone();
    tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            let payload = String::from_utf8_lossy(&message.payload);
            let line = format!("{} {:?} {payload}\n", message.subject, message.headers);
            into.lock().expect("no panic while held").push_str(&line);
        }
    });
    seen
}

#[tokio::test]
async fn no_plain_secret_is_anywhere_after_a_full_run() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let tokens = TokenEndpoint::start("hub", "hush-oauth2").await;
    let settings = with_key().with(|settings| settings.log.level = Some("trace".to_owned()));
    let (hub, client) = serving(&broker, &settings).await;
    let on_the_broker = tap(&broker).await;

    // Each endpoint accepts one event, refuses the next, and echoes the credential.
    let echo =
        |text: &str| Behaviour::Answer { status: 500, headers: Vec::new(), body: text.to_owned().into() };
    let pair = base64::engine::general_purpose::STANDARD.encode("me:hush-basic");
    let endpoints = [
        ("header", json!({"type": "api_key", "key": "hush-header"}), "x-api-key: hush-header".to_owned()),
        (
            "query",
            json!({"type": "api_key", "query": "k", "key": "hush query"}),
            "?k=hush+query hush query".to_owned(),
        ),
        (
            "basic",
            json!({"type": "basic", "username": "me", "password": "hush-basic"}),
            format!("Basic {pair}"),
        ),
        ("bearer", json!({"type": "bearer", "token": "hush-bearer"}), "Bearer hush-bearer".to_owned()),
        (
            "oauth2",
            json!({"type": "oauth2", "token_url": tokens.token_url(), "client_id": "hub", "client_secret": "hush-oauth2"}),
            "no".to_owned(),
        ),
    ];
    let mut subscriptions = Vec::new();
    for (id, auth, said) in &endpoints {
        let path = format!("/{id}");
        receiver.set(&path, Behaviour::First(1, Box::new(Behaviour::ok()), Box::new(echo(said))));
        subscriptions.push(json!({"id": id, "events": ["user.>"],
            "delivery": {"url": receiver.url(&path), "auth": auth, "signing": {"secret": SIGNING}}}));
    }
    apply(&hub, &json!(subscriptions)).await;
    client.publish("user.created", "e1").await;
    for (id, ..) in &endpoints {
        last(&receiver, &format!("/{id}"), 1).await;
    }
    let rotated = hub.cli_json(&["subscription", "rotate-secret", "bearer"]).await;
    let new_signing = rotated["secret"].as_str().expect("a secret").to_owned();
    client.publish("user.created", "e2").await;
    eventually(STEP, "all are dead letters", async || {
        let dead = client.dead_letters("user-lifecycle").await.len();
        if dead == endpoints.len() { Ok(()) } else { Err(dead) }
    })
    .await;

    let bad = hub.folder().join("bad.json");
    let refused = json!({"id": "BAD", "events": [], "delivery": {"url": "ftp://x", "auth": {"type": "bearer", "token": "hush-bearer"},
        "signing": {"secret": "whsec_hush-basic"}, "tls": {"key": "hush-header"}}});
    std::fs::write(&bad, refused.to_string()).expect("written");
    let mut said = String::new();
    for args in [
        &["subscription", "apply", "--file", bad.to_str().expect("UTF-8")][..],
        &["subscription", "list"],
        &["subscription", "list", "--output", "json"],
        &["subscription", "show", "query"],
        &["subscription", "show", "bearer", "--output", "json"],
        &["dlt", "list", "--domain", "user-lifecycle", "--output", "json"],
        &["dlt", "list", "--domain", "user-lifecycle"],
        &["secrets", "rotate"],
        &["config", "show"],
        &["domain", "list"],
    ] {
        let output = hub.cli(args).await;
        said.push_str(&print_output(&output));
    }
    assert!(said.contains("user-lifecycle") && said.contains("***"), "{said}");
    said.push_str(&hub.metrics().await);
    let api = ApiClient::with_scopes(&hub, "all", "read,manage,operate,publish", None).await;
    for path in [
        "/v1/subscriptions",
        "/v1/subscriptions/query",
        "/v1/subscriptions/oauth2",
        "/v1/matches?event=user.created",
        "/openapi.json",
    ] {
        let answer = api.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        said.push_str(&answer.text);
    }
    for (id, ..) in &endpoints {
        let answer = api.send("POST", &format!("/v1/subscriptions/{id}/test"), &[], None).await;
        said.push_str(&answer.expect(200).to_string());
    }
    said.push_str(&api.post("/v1/subscriptions", &refused).await.expect(400).to_string());
    let wrong =
        json!({"delivery": {"auth": {"type": "bearer", "token": "hush-bearer", "key": "hush-header"}}});
    let answer = api.patch("/v1/subscriptions/bearer", &[("if-match", "*")], &wrong).await;
    said.push_str(&answer.expect(400).to_string());
    let api_token = api.token_secret().to_owned();
    let stored = broker.dump().await;
    let issued: Vec<String> = receiver
        .received("/oauth2")
        .iter()
        .map(|request| request.header("authorization").to_owned())
        .collect();
    let issued: Vec<&str> = issued.iter().filter_map(|value| value.strip_prefix("Bearer ")).collect();
    assert!(!issued.is_empty(), "no token was issued");
    let places = [
        ("a message on the broker", on_the_broker.lock().expect("no panic while held").clone()),
        ("a stream", stored),
        ("the log", hub.log()),
        ("an answer of the command line or a metric", said),
    ];
    assert!(
        places[0].1.contains("env_") && places[1].1.contains("sealed"),
        "the run left no trace to search"
    );
    let encoded = |secret: &str| secret.trim_start_matches("whsec_").to_owned();
    let mut secrets: Vec<String> = [
        "hush-header",
        "hush query",
        "hush+query",
        "hush%20query",
        "hush-basic",
        "hush-bearer",
        "hush-oauth2",
        KEY,
        &pair,
    ]
    .map(str::to_owned)
    .to_vec();
    secrets.extend([encoded(SIGNING), encoded(&new_signing), api_token]);
    secrets.extend(issued.iter().map(|token| (*token).to_owned()));
    for (place, text) in &places {
        assert!(!text.is_empty(), "{place} is empty");
        for secret in &secrets {
            if let Some(at) = text.find(secret.as_str()) {
                let start =
                    (0..=at.saturating_sub(200)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                panic!("{place} holds the secret {secret:?}: {}", &text[start..at + secret.len()]);
            }
        }
    }
}
