//! The settings, statements, subscriptions and values of the pages.

use serde_json::{Value, json};
use tokio::process::Command;

use super::blocks::{blocks, root};
use super::stage::KEY;
use super::support::settings::external;
use super::support::{Hub, TestBroker, TestDatabase, TestSettings, print_output, require_tool, tool};

#[tokio::test]
async fn every_settings_block_is_valid() {
    let hub = Hub::not_started("nats://127.0.0.1:1", &TestSettings::default().with_key(KEY));
    for block in blocks("toml") {
        let file = hub.folder().join("block.toml");
        // Replaces the placeholder by a password that is sealed for its setting.
        let text = match block.text.contains("sealed:v1.k1.…") {
            true => block.text.replace("sealed:v1.k1.…", &sealed(&hub).await),
            false => block.text.clone(),
        };
        std::fs::write(&file, format!("{text}\n[secrets]\nmaster_key = '{KEY}'\n")).expect("written");
        let output = hub.cli(&["config", "check", "--config", file.to_str().expect("UTF-8")]).await;
        assert!(output.status.success(), "{}: {}\n{text}", block.at, print_output(&output));
    }
}

/// A password of the external broker that the pages name, sealed as they say.
async fn sealed(hub: &Hub) -> String {
    let script = "printf '%s' a-password | \"$HUB\" secrets seal external_brokers.partner_events.password";
    let output = Command::new("bash")
        .args(["-c", script])
        .env("HUB", env!("CARGO_BIN_EXE_hub"))
        .env("HUB_CONFIG", hub.config())
        .output()
        .await
        .expect("it runs");
    assert!(output.status.success(), "{}", print_output(&output));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// The database of a producer runs the statements of the pages.
#[tokio::test]
async fn every_sql_block_runs() {
    for block in blocks("sql") {
        let postgres = block.text.contains("hub_outbox.");
        let database = if postgres { TestDatabase::postgres().await } else { TestDatabase::sqlite().await };
        let Some(database) = database else { continue };
        database.outbox(&[]).await;
        database.sql("CREATE TABLE users (id TEXT)").await.expect("created");
        let result = database.sql(&block.text).await;
        assert!(result.is_ok(), "{}: {result:?}", block.at);
    }
}

/// Whole subscriptions are applied; a delivery, an authentication or a filter is applied in one.
#[tokio::test]
async fn every_subscription_is_valid() {
    let broker = TestBroker::start().await;
    let settings = TestSettings::default().with_key(KEY).with_brokers([external(
        "partner_events",
        "nats",
        "nats://127.0.0.1:1",
    )]);
    let hub = Hub::not_started(&broker.url(), &settings);
    hub.cli_ok(&["provision"]).await;
    for block in blocks("json") {
        let text = block
            .text
            .replace("whsec_…", "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
            .replace('…', "a-secret");
        let json: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", block.at));
        let of = |delivery: Value, filter: Value| json!({"id": "one", "events": ["user.>"], "filter": filter, "delivery": delivery});
        let url = "https://crm.example/hooks";
        let json = if json["id"].is_string() {
            json
        } else if json["url"].is_string() || json["broker"].is_string() {
            of(json, json!([]))
        } else if json["type"].is_string() {
            of(json!({"url": url, "auth": json}), json!([]))
        } else {
            of(json!({"url": url}), json!([json]))
        };
        let file = hub.folder().join("one.json");
        std::fs::write(&file, json.to_string()).expect("written");
        let output = hub.cli(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;
        assert!(output.status.success(), "{}: {}", block.at, print_output(&output));
    }
}

/// The chart accepts the values that its page shows.
#[tokio::test]
async fn every_values_block_renders() {
    let Some(helm) = require_tool("helm", tool("helm", "HELM_BIN")) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let mut rendered = 0;
    for block in blocks("yaml") {
        // The values of the chart of NATS.
        if block.text.starts_with("config:\n") {
            continue;
        }
        let file = folder.path().join("values.yaml");
        std::fs::write(&file, &block.text).expect("written");
        let mut command = Command::new(&helm);
        command.args(["template", "hub", "helm", "-f"]).arg(&file).current_dir(root());
        let output = command.output().await.expect("it runs");
        assert!(output.status.success(), "{}: {}", block.at, print_output(&output));
        rendered += 1;
    }
    assert!(rendered >= 2, "{rendered} blocks");
}
