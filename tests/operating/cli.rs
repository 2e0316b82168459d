//! The command line with real servers: its changes, its errors, and its exit codes.

use std::path::PathBuf;
use std::time::Duration;

use hub_testkit::broker_process::BrokerOptions;
use integration_hub::domain::subscription::SubscriptionRef;
use integration_hub::from_settings::connect_options;
use integration_hub::nats::JetStream;
use integration_hub::settings::Settings;
use serde_json::{Value, json};

use crate::support::{
    Hub, Receiver, TestBroker, TestSettings, eventually, free_port, nats_server, print_output, require_tool,
    subscription,
};

const MASTER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const LANES: [&str; 4] = ["USER_LIFECYCLE", "ACCESS_SESSION", "POLICY_CLIENT", "ORGANIZATION"];

async fn connect(url: &str) -> JetStream {
    let settings = Settings::from_toml("test", &format!("nats.url = '{url}'")).expect("valid settings");
    JetStream::connect(&connect_options(&settings, "test")).await.expect("the test's broker answers")
}

/// A provisioned hub with its own server.
async fn provisioned(settings: &TestSettings) -> (TestBroker, Hub) {
    let broker = TestBroker::start().await;
    let hub = Hub::not_started(&broker.url(), settings);
    hub.cli_ok(&["provision"]).await;
    (broker, hub)
}

/// Runs a command that must exit with `code`; returns standard output and standard error.
async fn ends_with(hub: &Hub, code: i32, args: &[&str]) -> (String, String) {
    let output = hub.cli(args).await;
    assert_eq!(output.status.code(), Some(code), "`hub {}`: {}", args.join(" "), print_output(&output));
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (text(output.stdout), text(output.stderr))
}

/// Runs a command that must be refused with `code` and one error; returns standard error.
async fn refused(hub: &Hub, code: i32, args: &[&str]) -> String {
    let (_, stderr) = ends_with(hub, code, args).await;
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    assert!(!stderr.contains("panicked") && !stderr.contains("backtrace"), "{stderr}");
    stderr
}

fn file(hub: &Hub, name: &str, text: &str) -> String {
    let path = hub.folder().join(name);
    std::fs::write(&path, text).expect("the test's file is written");
    path.to_str().expect("temporary folders are UTF-8").to_owned()
}

#[tokio::test]
async fn provisioning_twice_changes_nothing_and_a_change_by_hand_is_drift() {
    let broker = TestBroker::start().await;
    let hub = Hub::not_started(&broker.url(), &TestSettings::default());

    let error = refused(&hub, 1, &["subscription", "list"]).await;
    assert!(error.contains("hub provision"), "{error}");
    let missing = hub.cli(&["provision", "--check"]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stdout).contains("stream HUB_EVENTS: missing"));

    let first = hub.cli_json(&["provision"]).await;
    assert!(first["created"].as_array().expect("a list").contains(&json!("stream HUB_EVENTS")), "{first}");
    let again = hub.cli_json(&["provision"]).await;
    assert_eq!((&again["created"], &again["changed"], &again["kept"]), (&json!([]), &json!([]), &json!([])));
    assert_eq!(again["unchanged"], first["created"].as_array().expect("a list").len());
    hub.cli_ok(&["provision", "--check"]).await;

    let jetstream = broker.jetstream().await;
    let mut stream = jetstream.get_stream("HUB_REJECTED").await.expect("provisioned");
    let mut config = stream.info().await.expect("info").config.clone();
    config.max_bytes = 123_456;
    jetstream.update_stream(config).await.expect("changed by hand");
    let advisories = jetstream.get_stream("HUB_ADVISORIES").await.expect("provisioned");
    advisories.delete_consumer("dlt-router").await.expect("removed by hand");

    let (drift, _) = ends_with(&hub, 1, &["provision", "--check"]).await;
    assert!(drift.contains("stream HUB_REJECTED: max_bytes is 123456"), "{drift}");
    assert!(drift.contains("consumer HUB_ADVISORIES/dlt-router: missing"), "{drift}");
    assert_eq!(drift.lines().count(), 2, "{drift}");
    let (drift, _) = ends_with(&hub, 1, &["provision", "--check", "--output", "json"]).await;
    let drift: Vec<Value> = serde_json::from_str(&drift).expect("JSON");
    let what: Vec<&Value> = drift.iter().map(|one| &one["what"]).collect();
    assert_eq!(what, ["stream HUB_REJECTED", "consumer HUB_ADVISORIES/dlt-router"]);

    let mended = hub.cli_json(&["provision"]).await;
    assert_eq!(mended["created"], json!(["consumer HUB_ADVISORIES/dlt-router"]));
    assert_eq!(mended["changed"][0]["kind"]["field"], "max_bytes", "{mended}");
    hub.cli_ok(&["provision", "--check"]).await;
}

#[tokio::test]
async fn a_server_that_cannot_serve_the_hub_is_refused_with_the_remedy() {
    // Not reachable.
    let hub = Hub::not_started(&format!("nats://127.0.0.1:{}", free_port()), &TestSettings::default());
    for args in [&["provision"][..], &["subscription", "list"], &["dlt", "stats"]] {
        let error = refused(&hub, 3, args).await;
        assert!(error.contains("nats://127.0.0.1:") && error.contains("nats.url"), "{error}");
    }

    let mut options = BrokerOptions::new(nats_server());
    options.jetstream = false;
    let broker = TestBroker::start_with(options).await;
    let error = refused(&Hub::not_started(&broker.url(), &TestSettings::default()), 1, &["provision"]).await;
    assert!(error.contains("JetStream is not enabled") && error.contains("nats-server -js"), "{error}");

    let mut options = BrokerOptions::new(nats_server());
    options.extra_config = "accounts {\n  hub { jetstream { max_file: 100MB }\n    users: [{user: hub, password: pw}] }\n}\nno_auth_user: hub\n".to_owned();
    let broker = TestBroker::start_with(options).await;
    let error = refused(&Hub::not_started(&broker.url(), &TestSettings::default()), 1, &["provision"]).await;
    assert!(error.contains("account's JetStream limits are too small"), "{error}");
    assert!(error.contains("[limits]"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused() {
    let path = std::env::var_os("HUB_TEST_OLD_NATS_SERVER").map(PathBuf::from);
    let Some(old) = require_tool("a nats-server older than 2.12.9 (HUB_TEST_OLD_NATS_SERVER)", path) else {
        return;
    };
    let broker = TestBroker::start_with(BrokerOptions::new(old)).await;
    let hub = Hub::not_started(&broker.url(), &TestSettings::default());
    for args in [&["provision"][..], &["subscription", "list"], &["publish", "user.created", "{}"]] {
        let error = refused(&hub, 1, args).await;
        assert!(error.contains("too old") && error.contains("2.12.9"), "{error}");
    }
}

#[tokio::test]
async fn each_bad_field_of_a_subscription_is_named_and_nothing_is_written() {
    let (_broker, hub) = provisioned(&TestSettings::default().with_key(MASTER_KEY)).await;
    let good = json!({"id": "good", "events": ["user.created"], "delivery": {"url": "https://a.example/"}});
    let with = |pointer: &str, value: Value| {
        let mut bad = json!({
            "id": "bad", "tenant": "acme", "events": ["user.*"], "filter": [{"exact": {"source": "idp"}}],
            "state": "active",
            "delivery": {
                "url": "https://b.example/", "timeout": "5s", "max_in_flight": 4, "headers": {"x-team": "b"},
                "rate_limit": {"per_second": 10, "burst": 5}, "auth": {"type": "bearer", "token": "hush"},
            },
        });
        *bad.pointer_mut(pointer).expect("the pointer leads into the example") = value;
        bad
    };
    let bad = [
        ("id", with("/id", json!("Not An Id"))),
        ("tenant", with("/tenant", json!("a b"))),
        ("events", with("/events", json!([]))),
        ("events[0]", with("/events/0", json!("user.>.x"))),
        ("state", with("/state", json!("sleeping"))),
        ("delivery.url", with("/delivery/url", json!("ftp://b.example/"))),
        ("delivery.url", with("/delivery/url", json!("http://10.1.2.3/"))),
        ("delivery.url", with("/delivery/url", json!("http://[fd00::1]/"))),
        ("delivery.timeout", with("/delivery/timeout", json!("5h"))),
        ("delivery.max_in_flight", with("/delivery/max_in_flight", json!(0))),
        ("delivery.headers.host", with("/delivery/headers", json!({"host": "x"}))),
        ("delivery.rate_limit.burst", with("/delivery/rate_limit/burst", json!(0))),
        ("delivery.auth.type", with("/delivery/auth/type", json!("magic"))),
        ("delivery.auth.token", with("/delivery/auth/token", json!(""))),
        (
            "delivery.auth.token_url",
            with(
                "/delivery/auth",
                json!({"type": "oauth2", "token_url": "http://169.254.169.254/", "client_id": "c", "client_secret": "hush"}),
            ),
        ),
    ];
    for (field, bad) in &bad {
        let path = file(&hub, "list.json", &json!([good, bad]).to_string());
        let error = refused(&hub, 1, &["subscription", "apply", "-f", &path]).await;
        assert!(error.contains("subscription 2"), "{error}");
        assert!(error.contains(&format!("): {field}: ")), "{field}: {error}");
        assert!(!error.contains("hush"), "{error}");
    }
    // Every problem is reported at once.
    let all: Vec<&Value> = bad.iter().map(|(_, bad)| bad).collect();
    let path = file(&hub, "list.json", &json!(all).to_string());
    let error = refused(&hub, 1, &["subscription", "apply", "-f", &path]).await;
    assert!(error.lines().filter(|line| line.starts_with("  subscription")).count() >= bad.len(), "{error}");

    let path = file(&hub, "twice.json", &json!([good, good]).to_string());
    assert!(refused(&hub, 1, &["subscription", "apply", "-f", &path]).await.contains("more than once"));
    let path = file(&hub, "broken.toml", "id = 'x'\nsecret = 'hush' x");
    let error = refused(&hub, 1, &["subscription", "apply", "-f", &path]).await;
    assert!(error.contains("line 2") && !error.contains("hush"), "{error}");
    refused(&hub, 1, &["subscription", "apply", "-f", "/nowhere.json"]).await;

    assert_eq!(hub.cli_json(&["subscription", "list"]).await, json!([]));
}

#[tokio::test]
async fn a_subscription_lives_and_its_secret_is_never_shown() {
    let (broker, hub) = provisioned(&TestSettings::default().with_key(MASTER_KEY)).await;
    let toml = |token: &str| {
        format!(
            "[[subscriptions]]\nid = 'crm'\ntenant = 'acme'\nevents = ['user.*', 'policy.>']\n\
             delivery = {{url = 'http://127.0.0.1:9/', auth = {{type = 'bearer', token = '{token}'}}}}\n\
             [[subscriptions]]\nid = 'audit'\nevents = ['role.created']\ndelivery = {{url = 'https://a.example/'}}\n"
        )
    };
    let actions = async |path: &str| {
        let applied = hub.cli_json(&["subscription", "apply", "-f", path]).await;
        let action = |one: &Value| format!("{} {}", one["id"], one["action"]).replace('"', "");
        applied.as_array().expect("a list").iter().map(action).collect::<Vec<_>>()
    };
    let path = file(&hub, "subs.toml", &toml("hush-1"));
    assert_eq!(actions(&path).await, ["crm created", "audit created"]);
    assert_eq!(actions(&path).await, ["crm unchanged", "audit unchanged"]);
    let path = file(&hub, "subs.toml", &toml("hush-2"));
    assert_eq!(actions(&path).await, ["crm updated", "audit unchanged"]);

    let js = connect(&broker.url()).await;
    let name = || SubscriptionRef::of("acme", "crm").expect("a name");
    let sealed = |js: JetStream| async move {
        let stored = js.subscription(&name()).await.expect("answers").expect("is there");
        serde_json::to_value(&stored.subscription).expect("sealed")["delivery"]["auth"]["token"].clone()
    };
    let before = sealed(js.clone()).await;
    assert!(before["sealed"].as_str().is_some_and(|text| text.starts_with("v2.k1.")), "{before}");

    for args in [&["subscription", "list"][..], &["subscription", "show", "crm"]] {
        let table = hub.cli_ok(args).await;
        let json = hub.cli_json(args).await.to_string();
        for text in [&table, &json] {
            assert!(text.contains("crm") && text.contains("bearer"), "{text}");
            assert!(!text.contains("hush") && !text.contains("v2.k1"), "{text}");
        }
    }
    let raw = js.get("KV_hub-subscriptions", 1).await.expect("answers").expect("is there");
    assert!(!String::from_utf8_lossy(&raw.payload).contains("hush"));

    // The shown subscription can be applied again, and keeps the secret.
    let mut shown = hub.cli_json(&["subscription", "show", "crm"]).await;
    let path = file(&hub, "crm.json", &shown.to_string());
    assert_eq!(actions(&path).await, ["crm unchanged"]);
    shown["events"] = json!(["user.*", "policy.>", "client.*"]);
    let path = file(&hub, "crm.json", &shown.to_string());
    assert_eq!(actions(&path).await, ["crm updated"]);
    // In another tenant it is a different subscription, which has no credential yet.
    let mut other = shown.clone();
    other["tenant"] = json!("other");
    let path = file(&hub, "other.json", &other.to_string());
    let error = refused(&hub, 1, &["subscription", "apply", "-f", &path]).await;
    assert!(error.contains("none is stored"), "{error}");
    assert_eq!(sealed(js.clone()).await, before);
    shown["delivery"]["auth"] = json!({"type": "api_key", "key": "***"});
    let path = file(&hub, "crm.json", &shown.to_string());
    let error = refused(&hub, 1, &["subscription", "apply", "-f", &path]).await;
    assert!(error.contains("delivery.auth.key"), "another kind has no stored key: {error}");

    let ids = async |args: &[&str]| {
        let list = hub.cli_json(&[&["subscription", "list"], args].concat()).await;
        list.as_array().expect("a list").iter().map(|one| one["id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&["--event", "policy.updated.eu"]).await, ["crm"]);
    assert_eq!(ids(&["--event", "role.created"]).await, ["audit"]);
    assert_eq!(ids(&["--tenant", "acme"]).await, ["crm"]);
    hub.cli_ok(&["subscription", "pause", "crm"]).await;
    assert_eq!(ids(&["--state", "paused"]).await, ["crm"]);
    assert_eq!(hub.cli_json(&["subscription", "pause", "crm"]).await["changed"], false);
    hub.cli_ok(&["subscription", "resume", "crm"]).await;
    assert_eq!(ids(&["--state", "active"]).await, ["audit", "crm"]);
    assert_eq!(sealed(js.clone()).await, before);

    refused(&hub, 2, &["subscription", "remove", "crm"]).await;
    hub.cli_ok(&["subscription", "remove", "crm", "--yes"]).await;
    for command in ["show", "pause", "resume"] {
        assert!(refused(&hub, 1, &["subscription", command, "crm"]).await.contains("crm"));
    }
    assert_eq!(ids(&[]).await, ["audit"]);
    // After the deletion there is no secret to keep, but the subscription can be created again.
    let error = refused(&hub, 1, &["subscription", "apply", "-f", &path]).await;
    assert!(error.contains("none is stored"), "{error}");
    let path = file(&hub, "subs.toml", &toml("hush-3"));
    assert_eq!(actions(&path).await, ["crm created", "audit unchanged"]);
}

#[tokio::test]
async fn a_credential_without_a_master_key_is_refused() {
    let (_broker, hub) = provisioned(&TestSettings::default()).await;
    let subscription = json!({"id": "crm", "events": ["user.*"], "delivery": {
        "url": "https://a.example/", "auth": {"type": "bearer", "token": "hush"}}});
    let path = file(&hub, "crm.json", &subscription.to_string());
    let error = refused(&hub, 1, &["subscription", "apply", "-f", &path]).await;
    assert!(error.contains("secrets.master_key") && error.contains("openssl rand -base64 32"), "{error}");
    assert!(error.contains("crm") && !error.contains("hush"), "{error}");
    assert_eq!(hub.cli_json(&["subscription", "list"]).await, json!([]));
}

#[tokio::test]
async fn an_event_is_published_with_its_acknowledgement() {
    let (broker, hub) = provisioned(&TestSettings::default()).await;
    let args =
        ["publish", "user.created", r#"{"a":1}"#, "--id", "e 1", "--tenant", "acme", "--source", "idp"];
    let first = hub.cli_json(&args).await;
    assert_eq!(first, json!({"stream": "HUB_EVENTS", "sequence": 1, "id": "e 1", "duplicate": false}));
    assert_eq!(hub.cli_json(&args).await["duplicate"], true);
    assert_eq!(broker.messages("HUB_EVENTS").await, 1);
    let js = connect(&broker.url()).await;
    let stored = js.get("HUB_EVENTS", 1).await.expect("answers").expect("is there");
    assert_eq!(
        (stored.subject.as_str(), &stored.payload[..]),
        ("hub.events.user.created", &br#"{"a":1}"#[..])
    );
    let headers = ["Nats-Msg-Id", "Hub-Tenant", "Hub-Source"].map(|name| stored.header(name));
    assert_eq!(headers, [Some("e 1"), Some("acme"), Some("idp")]);

    let path = file(&hub, "data.json", "[1, 2]");
    let second = hub.cli_json(&["publish", "user.created", "--file", &path]).await;
    assert_eq!(second["id"], "HUB_EVENTS-2", "an event without an id gets the hub's");

    // No hub runs that would reject it.
    let (stored, warning) = ends_with(&hub, 0, &["publish", "invoice.paid", "{}"]).await;
    assert!(stored.starts_with("stored: HUB_EVENTS sequence 3"), "{stored}");
    assert!(warning.starts_with("warning: ") && warning.contains("invoice.paid"), "{warning}");
    assert!(warning.contains("not processed the event yet"), "{warning}");
    assert!(refused(&hub, 1, &["publish", "user.created", "{a: 1}"]).await.contains("not JSON"));
    refused(&hub, 2, &["publish", "user.created"]).await;
    refused(&hub, 2, &["publish", "user", "{}"]).await;
    refused(&hub, 2, &["publish", "user.created", "{}", "--tenant", "a\r\nb: c"]).await;
    assert_eq!(broker.messages("HUB_EVENTS").await, 3);
}

#[tokio::test]
async fn pausing_a_domain_pauses_its_consumers_and_no_others() {
    let (broker, hub) = provisioned(&TestSettings::default()).await;
    let js = connect(&broker.url()).await;
    let paused = async || {
        let mut paused = Vec::new();
        for lane in LANES {
            let stream = format!("HUB_OUTBOX_{lane}");
            let info = js.consumer_info(&stream, "lane-shared").await.expect("provisioned");
            paused.push(info.pause_remaining.filter(|_| info.paused).map(|nanos| nanos / 1_000_000_000));
        }
        paused
    };
    assert_eq!(paused().await, [None; 4]);
    hub.cli_ok(&["domain", "pause", "policy-client", "--for", "2h"]).await;
    let remaining = paused().await[2].expect("paused");
    assert!((7_000..=7_200).contains(&remaining), "{remaining}");
    hub.cli_ok(&["domain", "pause", "organization"]).await;
    let seen: Vec<bool> = paused().await.iter().map(Option::is_some).collect();
    assert_eq!(seen, [false, false, true, true]);

    let list = hub.cli_json(&["domain", "list"]).await;
    assert_eq!(list[0]["name"], "user-lifecycle");
    assert_eq!((&list[0]["paused"], &list[0]["paused_until"]), (&json!(false), &Value::Null));
    assert!(list[2]["paused_until"].is_string(), "{list}");
    assert_eq!((&list[3]["paused"], &list[3]["paused_until"]), (&json!(true), &Value::Null));
    let table = hub.cli_ok(&["domain", "list"]).await;
    assert!(table.contains("paused until 2") && table.contains("paused until resumed"), "{table}");

    // Provisioning does not resume a domain.
    hub.cli_ok(&["provision"]).await;
    assert!(paused().await[3].is_some());
    hub.cli_ok(&["domain", "resume", "policy-client"]).await;
    hub.cli_ok(&["domain", "resume", "organization"]).await;
    assert_eq!(paused().await, [None; 4]);
    let error = refused(&hub, 1, &["domain", "pause", "billing"]).await;
    assert!(error.contains("billing") && error.contains("policy-client"), "{error}");
    refused(&hub, 2, &["domain", "pause", "organization", "--for", "soon"]).await;
}

#[tokio::test]
async fn the_settings_are_checked_and_shown_without_secrets() {
    let hub = Hub::not_started("nats://127.0.0.1:1", &TestSettings::default().with_key(MASTER_KEY));
    assert!(hub.cli_ok(&["config", "check"]).await.starts_with("ok: "));
    let shown = hub.cli_ok(&["config", "show"]).await;
    assert!(shown.contains("url = \"nats://127.0.0.1:1\"") && !shown.contains("AAECAwQ"), "{shown}");
    assert_eq!(hub.cli_json(&["config", "show"]).await["nats"]["url"], "nats://127.0.0.1:1");
    let shown = hub.cli_ok(&["config", "show", "--set", "nats.prefix=other"]).await;
    assert!(shown.contains("prefix = \"other\"  # flag"), "{shown}");

    let bad = TestSettings::default().with(|settings| {
        settings.delivery.ack_wait = Some(Duration::from_secs(1));
        settings.nats.replicas = Some(2);
    });
    let error = refused(&Hub::not_started("nats://127.0.0.1:1", &bad), 1, &["config", "check"]).await;
    assert!(error.contains("delivery.ack_wait") && error.contains("nats.replicas"), "{error}");
    let error = refused(&hub, 1, &["config", "check", "--set", "nats.urll=x"]).await;
    assert!(error.contains("nats.url?"), "{error}");
    let error = refused(&hub, 1, &["config", "check", "--set", "secrets.master_key=AAAA"]).await;
    assert!(error.contains("secrets.master_key") && !error.contains("AAAA"), "{error}");
    assert!(error.trim_end().ends_with("(flag)"), "{error}");
    refused(&hub, 2, &["config", "check", "--set", "x"]).await;
    refused(&hub, 2, &["serve", "--role", "cook"]).await;
    refused(&hub, 2, &["bake"]).await;
    assert!(hub.cli_ok(&["--help"]).await.contains("Exit codes:"));
}

/// Text from other people is often pasted into a command.
#[tokio::test]
async fn a_usage_error_does_not_act_on_the_terminal() {
    let hub = Hub::not_started("nats://127.0.0.1:1", &TestSettings::default());
    let hostile = "a\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}b";
    for args in [
        &["subscription", "show", hostile][..],
        &["publish", hostile, "{}"],
        &["dlt", "list", "--event-key", hostile],
        &["dlt", "list", "--reason", hostile],
        &["dlt", "list", hostile],
        &[hostile],
    ] {
        let output = hub.cli(args).await;
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(text.contains("2J"), "it names the given value: {text}");
        assert!(!text.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']), "{text:?}");
    }
}

#[tokio::test]
async fn what_can_mean_nothing_is_refused() {
    let (_broker, hub) = provisioned(&TestSettings::default()).await;
    for events in [r#"["*"]"#, r#"["user"]"#, r#"["user.created", "role"]"#] {
        let text =
            format!(r#"{{"id": "crm", "events": {events}, "delivery": {{"url": "https://crm.example/"}}}}"#);
        let path = file(&hub, "crm.json", &text);
        let told = refused(&hub, 1, &["subscription", "apply", "-f", &path]).await;
        assert!(told.contains("events[") && told.contains("matches nothing"), "{told}");
    }
    refused(&hub, 2, &["domain", "pause", "user-lifecycle", "--for", "0s"]).await;
    refused(&hub, 2, &["token", "create", "ci", "--scope", "read", "--expires-in", "0s"]).await;
    for args in [
        &["publish", "user.created", "{}", "--tenant", "a b"][..],
        &["publish", "user.created", &format!("\"{}\"", "x".repeat(950_000))[..]],
    ] {
        // Longer than an argument may be: by a file.
        let told = match args.get(2).filter(|data| data.len() > 100_000) {
            Some(data) => {
                let path = file(&hub, "large.json", data);
                refused(&hub, 1, &["publish", "user.created", "--file", &path]).await
            }
            None => refused(&hub, 1, args).await,
        };
        assert!(told.contains("tenant") || told.contains("events.max_size"), "{told}");
    }
    refused(&hub, 2, &["publish", "user.created", "{}", "--id", " y "]).await;
}

/// Its UTC form has a year that cannot be written.
#[tokio::test]
async fn an_event_of_any_time_is_traced() {
    let (broker, receiver) = (TestBroker::start().await, Receiver::start().await);
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let crm = subscription("crm", &["user.>"], &receiver.url("/crm"));
    let path = file(&hub, "crm.json", &crm.to_string());
    hub.cli_ok(&["subscription", "apply", "-f", &path]).await;
    let client = broker.client().await;
    let event = r#"{"specversion":"1.0","id":"late","source":"/t","type":"user.created","time":"9999-12-31T23:59:59-23:59"}"#;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("content-type", "application/cloudevents+json");
    client.publish_with_headers("hub.events.user.created", headers, event.into()).await.expect("sent");
    client.flush().await.expect("flushed");
    receiver.wait_for("/crm", 1, Duration::from_secs(30)).await;
    eventually(Duration::from_secs(30), "its trace is complete", async || {
        let output = hub.cli(&["event", "trace", "late"]).await;
        let text = print_output(&output);
        if output.status.success() && text.contains("delivered") { Ok(()) } else { Err(text) }
    })
    .await;
}
