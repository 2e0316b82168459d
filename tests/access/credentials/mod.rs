//! Credentials: signatures and events as the public libraries read them, and tokens of a real OAuth2 server.

mod at_rest;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use crate::support::{
    Behaviour, Hub, Received, Receiver, TestBroker, TestClient, TestSettings, TokenEndpoint, eventually,
    free_port, print_output, require_tool, tool,
};

const STEP: Duration = Duration::from_secs(30);
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn with_key() -> TestSettings {
    TestSettings::quick().with_key(KEY)
}

/// The folder with packages that `.ci/parts` fetches, from this variable; `None` skips the test.
fn packages(name: &str, variable: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    require_tool(&format!("{name} (its folder in {variable})"), folder)
}

/// A test's script, with the interpreter and packages it needs.
struct Script {
    command: PathBuf,
    file: PathBuf,
    environment: (&'static str, PathBuf),
}

impl Script {
    fn of(interpreter: &str, file: &str, variable: &'static str, passed_as: &'static str) -> Option<Self> {
        let folder = packages(file, variable)?;
        let command = require_tool(interpreter, tool(interpreter, "HUB_TEST_NO_OTHER"))?;
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/receivers").join(file);
        Some(Self { command, file, environment: (passed_as, folder) })
    }

    fn python() -> Option<Self> {
        Self::of("python3", "verify.py", "HUB_TEST_PYTHON_RECEIVERS", "PYTHONPATH")
    }

    fn node(file: &str) -> Option<Self> {
        Self::of("node", file, "HUB_TEST_NODE_RECEIVERS", "HUB_TEST_NODE_RECEIVERS")
    }

    fn command(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.command);
        command.arg(&self.file).env(self.environment.0, &self.environment.1).kill_on_drop(true);
        command
    }

    /// The script's verdict on a request that the hub sent.
    async fn read(&self, request: &Received, secrets: &[&str]) -> Value {
        let headers: serde_json::Map<String, Value> = request
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), json!(value.to_str().expect("visible ASCII"))))
            .collect();
        let body = std::str::from_utf8(&request.body).expect("UTF-8");
        let input = json!({"headers": headers, "body": body, "secrets": secrets}).to_string();
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the script starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).await.expect("the script reads");
        drop(stdin);
        let output = tokio::time::timeout(STEP, child.wait_with_output()).await;
        let output = output.expect("the script ends").expect("the script runs");
        assert!(output.status.success(), "{}", print_output(&output));
        serde_json::from_slice(&output.stdout).expect("the script prints JSON")
    }
}

/// Applies one subscription or a list, each with the timeout that these settings allow.
async fn apply(hub: &Hub, subscriptions: &Value) {
    let mut subscriptions = subscriptions.clone();
    match &mut subscriptions {
        Value::Array(list) => list.iter_mut().for_each(|one| one["delivery"]["timeout"] = json!("2s")),
        one => one["delivery"]["timeout"] = json!("2s"),
    }
    let file = hub.folder().join("subscriptions.json");
    std::fs::write(&file, subscriptions.to_string()).expect("written");
    hub.cli_ok(&["subscription", "apply", "--file", file.to_str().expect("UTF-8")]).await;
}

async fn serving(broker: &TestBroker, settings: &TestSettings) -> (Hub, TestClient) {
    let mut hub = Hub::serve(&broker.url(), settings, &[]);
    hub.ready().await;
    (hub, TestClient::connect(&broker.url()).await)
}

async fn last(receiver: &Receiver, path: &str, count: usize) -> Received {
    receiver.wait_for(path, count, STEP).await.remove(count - 1)
}

/// The number of signatures in a request, by version.
fn versions(request: &Received) -> Vec<String> {
    let signatures = request.header("webhook-signature").split(' ');
    signatures.map(|one| one.split(',').next().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn a_rotated_secret_signs_beside_the_one_before_and_public_libraries_verify_both() {
    let (python, node) = (Script::python(), Script::node("verify.mjs"));
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (hub, client) = serving(&broker, &with_key()).await;
    let crm = json!({"id": "crm", "events": ["user.>"],
        "delivery": {"url": receiver.url("/crm"), "signing": {"secret": SIGNING}}});
    apply(&hub, &crm).await;

    let check = async |request: &Received, secrets: &[&str], symmetric: &[bool], asymmetric: &[bool]| {
        if let Some(python) = &python {
            let of_python: Vec<&str> =
                secrets.iter().filter(|secret| secret.starts_with("whsec_")).copied().collect();
            assert_eq!(python.read(request, &of_python).await["verified"], json!(symmetric));
        }
        if let Some(node) = &node {
            let expected: Vec<bool> = symmetric.iter().chain(asymmetric).copied().collect();
            assert_eq!(node.read(request, secrets).await["verified"], json!(expected));
        }
    };
    client.publish("user.created", "e1").await;
    let first = last(&receiver, "/crm", 1).await;
    assert_eq!(versions(&first), ["v1"]);
    let another = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    check(&first, &[SIGNING, another], &[true, false], &[]).await;

    let rotated = hub.cli_json(&["subscription", "rotate-secret", "crm", "--overlap", "1h"]).await;
    let second_secret = rotated["secret"].as_str().expect("of the same kind as before").to_owned();
    assert!(rotated["previous_until"].is_string(), "{rotated}");
    client.publish("user.created", "e2").await;
    let second = last(&receiver, "/crm", 2).await;
    assert_eq!(versions(&second), ["v1", "v1"]);
    check(&second, &[&second_secret, SIGNING, another], &[true, true, false], &[]).await;

    let to_public = ["subscription", "rotate-secret", "crm", "--overlap", "1h", "--algorithm", "ed25519"];
    let rotated = hub.cli_json(&to_public).await;
    let public = rotated["public_key"].as_str().expect("the public key").to_owned();
    assert!(!rotated.to_string().contains("whsk_"), "the private key left the hub: {rotated}");
    assert!(rotated["ended_before"].is_string(), "the secret before both ends: {rotated}");
    client.publish("user.created", "e3").await;
    let third = last(&receiver, "/crm", 3).await;
    assert_eq!(versions(&third), ["v1a", "v1"]);
    check(&third, &[&second_secret, SIGNING, &public], &[true, false], &[true]).await;

    // A key of the same kind, without an overlap.
    let rotated = hub.cli_json(&["subscription", "rotate-secret", "crm", "--overlap", "0s"]).await;
    let newest = rotated["public_key"].as_str().expect("ed25519 stays").to_owned();
    assert_eq!(rotated["previous_until"], Value::Null);
    client.publish("user.created", "e4").await;
    let fourth = last(&receiver, "/crm", 4).await;
    assert_eq!(versions(&fourth), ["v1a"]);
    check(&fourth, &[&second_secret, &newest, &public], &[false], &[true, false]).await;

    // A lost new key is replaced while the receiver's key stays valid; it is refused if none would stay valid.
    let refused = hub.cli(&["subscription", "rotate-secret", "crm", "--replace"]).await;
    assert!(!refused.status.success(), "only the new key would sign");
    let lost = hub.cli_json(&["subscription", "rotate-secret", "crm", "--overlap", "1h"]).await;
    let kept = hub.cli_json(&["subscription", "rotate-secret", "crm", "--replace"]).await;
    assert_eq!((&kept["previous_until"], &kept["ended_before"]), (&lost["previous_until"], &Value::Null));
    let [lost, kept] = [lost, kept].map(|key| key["public_key"].as_str().expect("a key").to_owned());
    client.publish("user.created", "e5").await;
    let fifth = last(&receiver, "/crm", 5).await;
    check(&fifth, &[&lost, &kept, &newest], &[], &[false, true, true]).await;
    let ends_both = ["subscription", "rotate-secret", "crm", "--overlap", "0s"];
    assert_eq!(hub.cli_json(&ends_both).await["previous_until"], Value::Null);

    let shown = hub.cli_json(&["subscription", "show", "crm"]).await;
    assert_eq!(shown["delivery"]["signing"], json!({"secret": "***"}));
}

#[tokio::test]
async fn both_content_modes_are_events_to_the_public_sdk() {
    let Some(python) = Script::python() else { return };
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (hub, client) = serving(&broker, &TestSettings::quick()).await;
    let modes = ["structured", "binary"];
    let subscriptions: Vec<Value> = modes
        .map(|mode| {
            json!({"id": mode, "events": ["user.>"],
                "delivery": {"url": receiver.url(&format!("/{mode}")), "content_mode": mode}})
        })
        .to_vec();
    apply(&hub, &json!(subscriptions)).await;
    let id = "e 1/\u{e9}\u{20ac}%";
    client.publish("user.created", id).await;
    for mode in modes {
        let request = last(&receiver, &format!("/{mode}"), 1).await;
        let read = python.read(&request, &[]).await;
        let attributes = &read["attributes"];
        assert_eq!((&attributes["id"], &attributes["type"]), (&json!(id), &json!("user.created")), "{mode}");
        assert_eq!((&attributes["specversion"], &attributes["tenant"]), (&json!("1.0"), &json!("default")));
        assert_eq!(read["data"], json!({ "user_id": id }), "{mode}");
    }
}

#[tokio::test]
async fn tokens_of_a_real_oauth2_server_have_the_audience_and_scope_asked_for() {
    let Some(script) = Script::node("oidc.mjs") else { return };
    let port = free_port();
    let secret = "s3cret/with:odd characters&more+than%enough";
    let mut command = script.command();
    command.args([port.to_string().as_str(), secret]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = command.spawn().expect("node starts");
    let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await.expect("readable") {
            if line == "ready" {
                return;
            }
        }
        panic!("the OAuth2 server ended");
    };
    tokio::time::timeout(STEP, ready).await.expect("the OAuth2 server is ready");

    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (hub, client) = serving(&broker, &with_key()).await;
    let ways = ["client_secret_basic", "client_secret_post"];
    let subscriptions: Vec<Value> = ways
        .map(|way| {
            json!({"id": way, "events": ["user.>"], "delivery": {"url": receiver.url(&format!("/{way}")), "auth": {
                "type": "oauth2", "token_url": format!("http://127.0.0.1:{port}/token"), "client_id": way,
                "client_secret": secret, "scopes": ["events:write"], "audience": "https://crm.example",
                "client_auth": way}}})
        })
        .to_vec();
    apply(&hub, &json!(subscriptions)).await;
    for event in ["e1", "e2"] {
        client.publish("user.created", event).await;
    }
    for way in ways {
        let requests = receiver.wait_for(&format!("/{way}"), 2, STEP).await;
        let tokens: Vec<&str> = requests.iter().map(|request| request.header("authorization")).collect();
        assert_eq!(tokens[0], tokens[1], "{way}: a token is fetched once");
        let token = tokens[0].strip_prefix("Bearer ").expect("a bearer token");
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("a JWT")).expect("base64url");
        let claims: Value = serde_json::from_slice(&claims).expect("JSON");
        assert_eq!(
            (&claims["aud"], &claims["scope"]),
            (&json!("https://crm.example"), &json!("events:write"))
        );
        assert_eq!(claims["client_id"], way);
    }
}

#[tokio::test]
async fn a_token_endpoint_that_fails_is_a_failure_of_its_own_kind_and_the_event_waits() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let tokens = TokenEndpoint::start("hub", "hush").await;
    receiver.set("/crm", Behaviour::require(tokens.guard()));
    tokens.set_failing(Some(500));
    let (hub, client) = serving(&broker, &with_key()).await;
    let of = |id: &str, token_url: String| {
        json!({"id": id, "events": ["user.>"], "delivery": {"url": receiver.url(&format!("/{id}")),
            "auth": {"type": "oauth2", "token_url": token_url, "client_id": "hub", "client_secret": "hush"}}})
    };
    let nonsense = Behaviour::Answer { status: 200, headers: Vec::new(), body: "<html>".into() };
    receiver.set("/nonsense", nonsense);
    // A token that is already expired when issued: each attempt fetches a new one.
    let expired = json!({"access_token": "late", "token_type": "Bearer", "expires_in": -1}).to_string();
    receiver.set("/expired", Behaviour::Answer { status: 200, headers: Vec::new(), body: expired.into() });
    let subscriptions = [
        of("crm", tokens.token_url()),
        of("no-token", receiver.url("/nonsense")),
        of("late-token", receiver.url("/expired")),
    ];
    apply(&hub, &json!(subscriptions)).await;

    client.publish("user.created", "e1").await;
    last(&receiver, "/late-token", 1).await;
    let dead = eventually(STEP, "both are dead letters", async || {
        let dead = client.dead_letters("user-lifecycle").await;
        if dead.len() == 2 { Ok(dead) } else { Err(dead.len()) }
    })
    .await;
    for entry in &dead {
        let said = entry.letter.last_error.as_deref().unwrap_or_default();
        assert!(said.contains("token endpoint"), "{said}");
    }
    assert_eq!((receiver.count("/crm"), receiver.count("/no-token")), (0, 0), "delivered without a token");

    client.publish("user.created", "e2").await;
    last(&receiver, "/late-token", 2).await;
    assert_eq!(receiver.count("/expired"), 2, "an expired token was used again");
    tokens.set_failing(None);
    client.publish("user.created", "e3").await;
    receiver.wait_accepted("/crm", 1, STEP).await;
}
