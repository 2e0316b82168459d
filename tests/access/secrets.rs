//! Secrets sent as `***` keep their value only for the same destination, for every way to write a subscription.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use integration_hub::seal::Sealer;
use integration_hub::settings::Settings;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::{
    ApiClient, Behaviour, Hub, Received, Receiver, TestBroker, TestClient, TestSettings, print_output,
    require_tool, tool,
};

const STEP: Duration = Duration::from_secs(30);
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn settings() -> TestSettings {
    TestSettings::quick().with_key(KEY).with(|settings| settings.delivery.max_deliver = Some(1000))
}

async fn serving(broker: &TestBroker) -> Hub {
    let mut hub = Hub::serve(&broker.url(), &settings(), &[]);
    hub.ready().await;
    hub
}

fn crm(url: &str) -> Value {
    json!({
        "id": "crm", "events": ["user.>"],
        "delivery": {
            "url": url, "timeout": "2s", "auth": {"type": "bearer", "token": "open-sesame"}, "signing": {"secret": SIGNING},
            "secret_headers": {"X-Api-Key": "hush-hush"},
        },
    })
}

const ALL: [&str; 3] =
    ["delivery.auth.token", "delivery.signing.secret", "delivery.secret_headers.x-api-key"];

/// The fields that a problem names.
fn fields(problem: &Value) -> Vec<&str> {
    problem["errors"].as_array().expect("errors").iter().filter_map(|error| error["field"].as_str()).collect()
}

/// The attack: another URL, the stored credentials, and a test.
#[tokio::test(flavor = "multi_thread")]
async fn another_url_never_gets_a_stored_secret() {
    let broker = TestBroker::start().await;
    let (receiver, evil) = (Receiver::start().await, Receiver::start().await);
    let hub = serving(&broker).await;
    let api = ApiClient::with_scopes(&hub, "portal", "read,manage", None).await;
    api.post("/v1/subscriptions", &crm(&receiver.url("/crm"))).await.expect(201);
    let read = api.get("/v1/subscriptions/crm").await.expect(200);
    assert_eq!(read["delivery"]["secret_headers"], json!({"X-Api-Key": "***"}));

    let any = [("if-match", "*")];
    let elsewhere = json!({"delivery": {"url": evil.url("/steal")}});
    let problem = api.patch("/v1/subscriptions/crm", &any, &elsewhere).await.expect(422);
    assert_eq!(fields(&problem), ALL);
    assert_eq!(problem["type"], "urn:integration-hub:problem:secret-required");
    let mut replaced = read.clone();
    replaced["delivery"]["url"] = json!(evil.url("/steal"));
    let problem = api.put("/v1/subscriptions/crm", &any, &replaced).await.expect(422);
    assert_eq!(fields(&problem), ALL);
    let file = hub.folder().join("crm.json");
    std::fs::write(&file, replaced.to_string()).expect("written");
    let refused = hub.cli(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", print_output(&refused));
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(ALL.iter().all(|field| error.contains(field)) && error.contains("delivery.url"), "{error}");
    // Some of the secrets are not enough.
    let some = json!({"delivery": {"url": evil.url("/steal"), "auth": {"token": "new"}, "signing": {"secret": SIGNING}}});
    let problem = api.patch("/v1/subscriptions/crm", &any, &some).await.expect(422);
    assert_eq!(fields(&problem), [ALL[2]]);

    // A test uses only stored secrets.
    api.post("/v1/subscriptions/crm/test", &elsewhere).await.expect(400);
    let tested = api.send("POST", "/v1/subscriptions/crm/test", &[], None).await.expect(200);
    assert_eq!(tested["answer"]["status"], 200, "{tested}");
    assert!(!tested.to_string().contains("hush") && !tested.to_string().contains("sesame"), "{tested}");
    let got = &receiver.received("/crm")[0];
    assert_eq!((got.header("authorization"), got.header("x-api-key")), ("Bearer open-sesame", "hush-hush"));
    assert_eq!(evil.count("/steal"), 0);

    // Another path of the same server keeps them; for another server, they must be sent again.
    let path = json!({"delivery": {"url": receiver.url("/other")}});
    api.patch("/v1/subscriptions/crm", &any, &path).await.expect(200);
    let all = json!({"delivery": {"url": evil.url("/new"), "auth": {"token": "new"},
        "signing": {"secret": SIGNING}, "secret_headers": {"X-Api-Key": "newer"}}});
    api.patch("/v1/subscriptions/crm", &any, &all).await.expect(200);
    api.send("POST", "/v1/subscriptions/crm/test", &[], None).await.expect(200);
    let got = &evil.received("/new")[0];
    assert_eq!((got.header("authorization"), got.header("x-api-key")), ("Bearer new", "newer"));
    // A new signing secret changes no destination.
    api.send("POST", "/v1/subscriptions/crm/rotate-secret", &[], None).await.expect(200);
    let kept = broker.dump().await + &hub.log();
    assert!(!kept.contains("sesame") && !kept.contains("hush"), "a secret in clear");
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_text_is_taken_from_the_operator_alone() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let hub = serving(&broker).await;
    let admin = ApiClient::with_scopes(&hub, "admin", "read,manage,operate", None).await;
    let manager = ApiClient::with_scopes(&hub, "manager", "read,manage", None).await;
    let tenant = ApiClient::with_scopes(&hub, "tenant", "read,manage,operate", Some("default")).await;
    admin.post("/v1/subscriptions", &crm(&receiver.url("/crm"))).await.expect(201);
    let client = TestClient::connect(&broker.url()).await;
    let last = client.stream("KV_hub-subscriptions").await.state.last_sequence;
    let raw = client.js.get("KV_hub-subscriptions", last).await.expect("readable").expect("there");
    let raw: Value = serde_json::from_slice(&raw.payload).expect("JSON");
    let sealed = raw["delivery"]["auth"]["token"].clone();
    assert!(sealed["sealed"].is_string(), "{raw}");

    let any = [("if-match", "*")];
    let patch = json!({"delivery": {"auth": {"token": sealed}}});
    for caller in [&tenant, &manager] {
        let problem = caller
            .patch("/v1/subscriptions/crm", &any, &patch)
            .await
            .expect_field(400, "delivery.auth.token");
        assert!(!problem.to_string().contains(sealed["sealed"].as_str().unwrap()), "{problem}");
    }
    admin.patch("/v1/subscriptions/crm", &any, &patch).await.expect(200);
    // A sealed text is valid only in its own field, and cannot be moved.
    for (place, value) in [
        ("secret_headers", json!({"X-Api-Key": {"sealed": "v1.k1.AAAA"}})),
        ("secret_headers", json!({"X-Api-Key": {"sealed": ""}})),
    ] {
        admin.patch("/v1/subscriptions/crm", &any, &json!({"delivery": {place: value}})).await.expect(400);
    }
    let moved = json!({"delivery": {"url": "http://127.0.0.1:9/", "auth": {"token": sealed}}});
    admin.patch("/v1/subscriptions/crm", &any, &moved).await.expect_field(422, "delivery.auth.token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_subscription_leaves_no_sealed_secret_behind() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let hub = serving(&broker).await;
    let client = TestClient::connect(&broker.url()).await;
    let api = ApiClient::with_scopes(&hub, "admin", "read,manage", None).await;
    let stream = "KV_hub-subscriptions";
    let mut revisions = Vec::new();
    for by in ["api", "cli"] {
        let created = api.post("/v1/subscriptions", &crm(&receiver.url("/crm"))).await;
        created.expect(201);
        for round in 0..3 {
            let secrets = json!({"delivery": {"auth": {"token": format!("secret {round}")}}});
            api.patch("/v1/subscriptions/crm", &[("if-match", "*")], &secrets).await.expect(200);
        }
        api.send("POST", "/v1/subscriptions/crm/rotate-secret", &[], None).await.expect(200);
        let tag = api.get("/v1/subscriptions/crm").await.header("etag").to_owned();
        assert!(client.stream(stream).await.state.messages >= 5, "the revisions are there until then");
        // A removal with an old revision fails.
        api.delete("/v1/subscriptions/crm", &[("if-match", created.header("etag"))]).await.expect(412);
        if by == "api" {
            api.delete("/v1/subscriptions/crm", &[("if-match", &tag)]).await.expect(204);
        } else {
            hub.cli_ok(&["subscription", "remove", "crm", "--yes"]).await;
        }
        let state = client.stream(stream).await.state;
        assert_eq!(state.messages, 1, "the marker alone");
        let marker = client.js.get(stream, state.last_sequence).await.expect("readable").expect("there");
        assert_eq!((marker.header("KV-Operation"), marker.payload.len()), (Some("PURGE"), 0));
        for sequence in 1..state.last_sequence {
            assert!(
                client.js.get(stream, sequence).await.expect("readable").is_none(),
                "revision {sequence}"
            );
        }
        // The followers are notified, and a recreated entry has later revisions.
        assert_eq!(api.get("/v1/subscriptions").await.expect(200)["subscriptions"], json!([]));
        api.get("/v1/subscriptions/crm").await.expect(404);
        revisions.push(tag);
    }
    assert_ne!(revisions[0], revisions[1]);
    api.post("/v1/subscriptions", &crm(&receiver.url("/crm"))).await.expect(201);
    client.publish("user.created", "e1").await;
    receiver.wait_accepted("/crm", 1, STEP).await;
}

/// Verifies a request with a receiver of the documentation; `None` if its interpreter is not installed.
async fn read(interpreter: &str, file: &str, headers: &Value, secrets: &[&str]) -> Option<Value> {
    let command: PathBuf = require_tool(interpreter, tool(interpreter, "HUB_TEST_NO_OTHER"))?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/receivers").join(file);
    let mut child = tokio::process::Command::new(command)
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the script starts");
    let input = json!({"headers": headers, "secrets": secrets}).to_string();
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).await.expect("the script reads");
    drop(stdin);
    let output = tokio::time::timeout(STEP, child.wait_with_output()).await;
    let output = output.expect("the script ends").expect("the script runs");
    assert!(output.status.success(), "{}", print_output(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("the script prints JSON");
    Some(answer["verified"].clone())
}

fn headers(request: &Received) -> Value {
    let headers = request.headers.iter();
    headers.map(|(name, value)| (name.to_string(), json!(value.to_str().expect("visible ASCII")))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_in_headers_are_signed() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let hub = serving(&broker).await;
    let api = ApiClient::with_scopes(&hub, "admin", "read,manage", None).await;
    let mut subscription = crm(&receiver.url("/crm"));
    subscription["delivery"]["content_mode"] = json!("binary");
    api.post("/v1/subscriptions", &subscription).await.expect(201);
    let rotated =
        api.post("/v1/subscriptions/crm/rotate-secret", &json!({"algorithm": "ed25519"})).await.expect(200);
    let public = rotated["public_key"].as_str().expect("a public key").to_owned();
    let client = TestClient::connect(&broker.url()).await;
    client.publish("user.created", "e 1/é%").await;
    let request = receiver.wait_for("/crm", 1, STEP).await.remove(0);
    let sent = headers(&request);
    let another = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    let check = async |headers: &Value, good: bool| {
        let of_node = read("node", "attributes.mjs", headers, &[SIGNING, &public, another]).await;
        assert!(of_node.is_none_or(|verified| verified == json!([good, good, false])), "{headers}");
        let of_python = read("python3", "attributes.py", headers, &[SIGNING, another]).await;
        assert!(of_python.is_none_or(|verified| verified == json!([good, false])), "{headers}");
    };
    check(&sent, true).await;
    let names: Vec<&String> = sent.as_object().expect("headers").keys().collect();
    let signed: Vec<&&String> =
        names.iter().filter(|name| name.starts_with("ce-") || name.as_str() == "content-type").collect();
    assert!(signed.len() >= 7, "{sent}");
    // Changed, removed and added members; another id, another time, and the signature of another body.
    for name in signed.iter().map(|name| name.as_str()).chain(["webhook-id", "webhook-timestamp"]) {
        let mut changed = sent.clone();
        changed[name] = json!(format!("{}0", changed[name].as_str().expect("a text")));
        check(&changed, false).await;
    }
    for name in &signed {
        let mut changed = sent.clone();
        changed.as_object_mut().expect("headers").remove(name.as_str());
        check(&changed, false).await;
    }
    for (name, value) in [
        ("ce-admin", json!("true")),
        ("webhook-attributes-signature", sent["webhook-signature"].clone()),
        ("webhook-attributes-signature", json!("")),
    ] {
        let mut changed = sent.clone();
        changed[name] = value;
        check(&changed, false).await;
    }
    // In structured mode the body has them all.
    let patch = json!({"delivery": {"content_mode": "structured"}});
    api.patch("/v1/subscriptions/crm", &[("if-match", "*")], &patch).await.expect(200);
    client.publish("user.created", "e2").await;
    let request = receiver.wait_for("/crm", 2, STEP).await.remove(1);
    assert!(request.headers.get("webhook-attributes-signature").is_none());
    assert!(!request.header("webhook-signature").is_empty());
}

/// A credential of a version without incarnations, whose sealed text is bound only to the id.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_in_the_previous_format_work_until_resealed_and_stay_with_their_url() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/crm", Behaviour::status(503));
    let hub = serving(&broker).await;
    let client = TestClient::connect(&broker.url()).await;
    let settings = Settings::from_toml("hub.toml", &settings().to_toml()).expect("valid settings");
    let sealer = Sealer::from_settings(&settings.secrets).expect("a key").expect("a key");
    let before = sealer.seal("crm", &"open-sesame".into());
    let entry = |id: &str, token: &str| {
        json!({"id": id, "tenant": "default", "events": ["user.>"], "state": "active",
            "delivery": {"url": receiver.url(&format!("/{id}")), "timeout": "2s", "auth": {"type": "bearer", "token": {"sealed": token}}}})
    };
    let put = async |entry: Value| {
        let subject = format!("$KV.hub-subscriptions.{}", entry["id"].as_str().expect("an id"));
        let sent = client.context.publish(subject, entry.to_string().into()).await.expect("sent");
        sent.await.expect("stored");
    };
    put(entry("crm", &before)).await;
    // It does not open in another subscription.
    put(entry("thief", &before)).await;
    client.publish("user.created", "e1").await;
    let tried = receiver.wait_for("/crm", 1, STEP).await.remove(0);
    assert_eq!(tried.header("authorization"), "Bearer open-sesame");

    // The waiting envelope is delivered after its credential is sealed again.
    let rotated = hub.cli(&["secrets", "rotate", "--output", "json"]).await;
    let rotated: Value = serde_json::from_slice(&rotated.stdout).expect("JSON");
    assert_eq!((&rotated["resealed"], &rotated["left"]), (&json!(1), &json!(1)), "{rotated}");
    let api = ApiClient::with_scopes(&hub, "admin", "read,manage,operate", None).await;
    let stored = api.get("/v1/subscriptions/crm").await.expect(200);
    assert_eq!(stored["incarnation"], "legacy");
    let raw = client.context.get_key_value("hub-subscriptions").await.expect("the bucket");
    let raw = raw.get("crm").await.expect("readable").expect("there");
    let raw: Value = serde_json::from_slice(&raw).expect("JSON");
    let anew = raw["delivery"]["auth"]["token"]["sealed"].as_str().expect("sealed").to_owned();
    assert!(anew.starts_with("v2.k1."), "{anew}");
    receiver.set("/crm", Behaviour::ok());
    receiver.wait_accepted("/crm", 1, STEP).await;
    assert_eq!(receiver.count("/thief"), 0);

    // A recreated subscription accepts neither form, and no subscription accepts the old form.
    api.delete("/v1/subscriptions/crm", &[]).await.expect(204);
    for sealed in [&before, &anew] {
        let again = json!({"id": "crm", "events": ["user.>"], "delivery": {"url": receiver.url("/crm"), "timeout": "2s",
            "auth": {"type": "bearer", "token": {"sealed": sealed}}}});
        api.post("/v1/subscriptions", &again).await.expect_field(400, "delivery.auth.token");
    }
    api.post("/v1/subscriptions", &crm(&receiver.url("/crm"))).await.expect(201);
    let patch = json!({"delivery": {"auth": {"token": {"sealed": before}}}});
    api.patch("/v1/subscriptions/crm", &[("if-match", "*")], &patch)
        .await
        .expect_field(400, "delivery.auth.token");
    // Written directly to the registry, in another incarnation, it does not open either.
    let revived = api.get("/v1/subscriptions/crm").await.expect(200);
    assert_ne!(revived["incarnation"], "legacy");
    let mut stolen = entry("crm", &anew);
    stolen["incarnation"] = revived["incarnation"].clone();
    stolen["delivery"]["url"] = json!(receiver.url("/stolen"));
    put(stolen).await;
    let tested = api.send("POST", "/v1/subscriptions/crm/test", &[], None).await.expect(200);
    assert_eq!((&tested["request"], &tested["answer"]["fault"]), (&Value::Null, &json!("hub")), "{tested}");
    assert_eq!(receiver.count("/stolen"), 0);
}
