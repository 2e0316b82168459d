//! Sealed secrets in the settings: sealed by the command line, opened at start, and shown in no output.

use std::process::{Output, Stdio};
use std::time::Duration;

use integration_hub::domain::producer_outbox::Status;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::relay::{RELAY, public, raise, wait_for};
use crate::support::settings::{ExternalBroker, external};
use crate::support::{Hub, RedisServer, TestBroker, TestDatabase, TestSettings, print_output};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const NEW_KEY: &str = "IAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const PASSWORD: &str = "correct-horse";
const NOWHERE: &str = "redis://127.0.0.1:6379";
const SETTING: &str = "external_brokers.partner.password";

fn with_key() -> TestSettings {
    TestSettings::default().with_key(KEY)
}

/// With the new key as `k2`.
fn with_new_key() -> TestSettings {
    let settings = TestSettings::default().with_key(NEW_KEY);
    settings.with(|settings| settings.secrets.key_id = Some("k2".to_owned()))
}

/// Settings of a Redis with this URL and password.
fn partner(name: &str, url: &str, password: &str) -> ExternalBroker {
    external(name, "redis", url).with(|broker| broker.password = Some(password.to_owned()))
}

/// Runs `hub secrets seal` with this standard input.
async fn seal(hub: &Hub, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_hub"));
    command.args(["secrets", "seal"]).args(arguments).env("HUB_CONFIG", hub.config()).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the command starts");
    let mut stdin = child.stdin.take().expect("piped");
    // The command does not read its input if it rejects the name of the setting.
    let _ = stdin.write_all(input).await;
    drop(stdin);
    let ended = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
    ended.expect("it ends").expect("waited for")
}

async fn sealed(hub: &Hub, setting: &str, secret: &str) -> String {
    let output = seal(hub, &[setting], format!("{secret}\n").as_bytes()).await;
    assert!(output.status.success(), "{}", print_output(&output));
    let text = String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned();
    assert!(text.starts_with("sealed:v1.") && !text.contains(secret), "{text}");
    text
}

async fn refused(hub: &Hub, arguments: &[&str]) -> String {
    let output = hub.cli(arguments).await;
    assert_eq!(output.status.code(), Some(1), "{}", print_output(&output));
    let said = print_output(&output);
    assert!(!said.contains(PASSWORD), "{said}");
    said
}

/// Redis requires a password. The password and the URL of the database are sealed in the settings.
#[tokio::test]
async fn a_broker_is_reached_with_a_sealed_password_that_is_shown_nowhere() {
    let Some(redis) = RedisServer::start(&["--requirepass", PASSWORD]).await else { return };
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&["partner"]).await;
    let broker = TestBroker::start().await;
    let sealing = Hub::not_started(&broker.url(), &with_key());
    let password = sealed(&sealing, SETTING, PASSWORD).await;
    let url = sealed(&sealing, "outbox.database_url", &database.url()).await;

    let settings = with_key().with_outbox(&url).with_brokers([partner("partner", &redis.url(), &password)]);
    let mut hub = Hub::serve(&broker.url(), &settings, &RELAY);
    hub.ready().await;
    raise(&database, &[public("e1", "user-u1"), public("e2", "user-u1")]).await;
    wait_for(&store, "partner", Status::Published, 2).await;

    let check = hub.cli_ok(&["config", "check"]).await;
    assert!(check.starts_with("ok"), "{check}");
    let shown = hub.cli_ok(&["config", "show"]).await;
    assert!(shown.contains("password = \"***\""), "{shown}");
    // A command that connects only to the database opens only its URL.
    let status = hub.cli_json(&["outbox", "status"]).await;
    assert_eq!(status.as_array().map(Vec::len), Some(2), "{status}");
    let metrics = hub.metrics().await;
    assert!(hub.terminate().await.success());
    for text in [check, shown, status.to_string(), metrics, hub.log()] {
        assert!(!text.contains(PASSWORD) && !text.contains(&database.url()), "{text}");
    }
}

#[tokio::test]
async fn a_secret_that_does_not_open_is_named_with_the_remedy() {
    let broker = TestBroker::start().await;
    let sealing = Hub::not_started(&broker.url(), &with_key());
    let password = sealed(&sealing, SETTING, PASSWORD).await;
    let with = |secrets: &TestSettings, name: &str, password: &str| {
        let partner = partner(name, NOWHERE, password);
        let settings = secrets.clone().with_outbox("postgres://127.0.0.1/app").with_brokers([partner]);
        Hub::not_started(&broker.url(), &settings)
    };
    let (changed, other) = (password.replace("sealed:v1.k1.", "sealed:v1.k1.AAAA"), "of-another");
    let cases = [
        (
            TestSettings::default(),
            "partner",
            password.as_str(),
            "no master key is set; set secrets.master_key",
        ),
        (
            with_new_key(),
            "partner",
            &password,
            "is sealed with the key \"k1\", which this process does not have",
        ),
        (TestSettings::default().with_key(NEW_KEY), "partner", &password, "another key of the same"),
        (with_key(), "partner", &changed, "or was changed"),
        (with_key(), other, &password, "for another setting"),
    ];
    for (secrets, name, password, expected) in &cases {
        let hub = with(secrets, name, password);
        for arguments in [&["config", "check"][..], &["serve", "--role", "outbox-relay"]] {
            let said = refused(&hub, arguments).await;
            assert!(said.contains(&format!("external_brokers[{name}].password: ")), "{said}");
            assert!(said.contains(expected), "{arguments:?}, expected {expected:?}: {said}");
        }
        // Commands that need no password of a broker work without a key.
        hub.cli_ok(&["provision"]).await;
    }
}

#[tokio::test]
async fn rotating_lists_settings_sealed_with_an_older_key_and_their_replacements() {
    let broker = TestBroker::start().await;
    let sealing = Hub::not_started(&broker.url(), &with_key());
    let password = sealed(&sealing, SETTING, PASSWORD).await;
    let with = |password: &str| {
        let settings =
            with_new_key().with_brokers([partner("partner", NOWHERE, password)]).with(|settings| {
                settings.secrets.previous_keys = Some(vec![format!("k1:{KEY}")]);
            });
        Hub::not_started(&broker.url(), &settings)
    };
    let hub = with(&password);
    hub.cli_ok(&["provision"]).await;
    let said = refused(&hub, &["secrets", "rotate"]).await;
    assert!(
        said.contains("external_brokers[partner].password: the setting is sealed with the key k1"),
        "{said}"
    );
    let output = hub.cli(&["secrets", "rotate", "--output", "json"]).await;
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told["settings"][0]["setting"], SETTING, "{told}");
    let anew = told["settings"][0]["sealed"].as_str().expect("the replacement");

    let hub = with(anew);
    let told = hub.cli_json(&["secrets", "rotate"]).await;
    assert_eq!(told, json!({"key_id": "k2", "resealed": 0, "unchanged": 0, "left": 0, "settings": []}));
    hub.cli_ok(&["config", "check"]).await;
}

#[tokio::test]
async fn what_cannot_be_sealed_is_refused_and_not_repeated() {
    let broker = TestBroker::start().await;
    let partner = external("partner", "redis", NOWHERE);
    let hub = Hub::not_started(&broker.url(), &with_key().with_brokers([partner.clone()]));
    let long = vec![b'x'; 70_000];
    for (input, expected) in [
        (&b""[..], "it is empty"),
        (b"\n", "it is empty"),
        (b"hush-1\nhush-2\n", "more than one line"),
        (b"sealed:hush", "begins with \"sealed:\""),
        (&long, "is longer than 65536 bytes"),
        (b"hush\xff", "standard input: reading failed"),
    ] {
        let output = seal(&hub, &[SETTING], input).await;
        let said = print_output(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected) && !said.contains("hush") && output.stdout.is_empty(), "{said}");
    }
    let unknown = seal(&hub, &["external_brokers.partner.url"], b"hush").await;
    let said = print_output(&unknown);
    assert!(unknown.status.code() == Some(2) && said.contains("external_brokers.NAME.password"), "{said}");
    // A secret as an argument is rejected, because other users can see arguments.
    assert_eq!(seal(&hub, &[SETTING, "hush"], b"").await.status.code(), Some(2));

    let elsewhere = seal(&hub, &["external_brokers.other.password", "--output", "json"], b"hush\r\n").await;
    let said = print_output(&elsewhere);
    assert!(
        elsewhere.status.success() && said.contains("external broker \"other\": not configured"),
        "{said}"
    );
    let told: Value = serde_json::from_slice(&elsewhere.stdout).expect("JSON");
    assert_eq!(
        (&told["setting"], &told["key_id"]),
        (&json!("external_brokers.other.password"), &json!("k1"))
    );

    let without = Hub::not_started(&broker.url(), &TestSettings::default().with_brokers([partner]));
    let output = seal(&without, &[SETTING], b"hush").await;
    let said = print_output(&output);
    assert!(output.status.code() == Some(1) && said.contains("openssl rand -base64 32"), "{said}");
}
