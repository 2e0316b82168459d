//! Commands, settings and subscriptions.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::Command;

use super::blocks::{Block, blocks};
use super::support::settings::external;
use super::support::{
    ApiClient, Behaviour, Hub, Receiver, TestBroker, TestClient, TestDatabase, TestSettings, eventually,
    free_port, http_client, nats_cli, nats_server, print_output, require_tool,
};

const LIMIT: Duration = Duration::from_secs(60);
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A hub with everything that the pages name, and a folder in which their commands run.
struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    hub: Hub,
    client: TestClient,
    database: TestDatabase,
    api: ApiClient,
}

impl Stage {
    async fn set() -> Self {
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let database = TestDatabase::sqlite().await.expect("SQLite is built in");
        database.outbox(&["partner_events"]).await;
        let settings = TestSettings::patient()
            .with_key(KEY)
            .with_outbox(&database.url())
            .with_brokers([external("partner_events", "nats", "nats://127.0.0.1:1")]);
        let mut hub = Hub::serve(&broker.url(), &settings, &[]);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        let api = ApiClient::with_scopes(&hub, "docs", "read,manage,operate,publish", None).await;
        Self { broker, receiver, hub, client, database, api }
    }

    /// Prepares the data of the commands: a subscription, a dead letter of each kind, a row.
    async fn prepare(&self) {
        let write = async |id: &str, events: &[&str]| {
            let url = self.receiver.url(&format!("/{id}"));
            let one = json!({"id": id, "events": events,
                "delivery": {"url": url, "timeout": "2s", "signing": {"secret": "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}}});
            let file = self.hub.folder().join(format!("{id}.json"));
            std::fs::write(&file, one.to_string()).expect("written");
            self.hub.cli_ok(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;
        };
        write("crm", &["user.>", "policy.>"]).await;
        self.receiver.set("/crm", Behaviour::status(400));
        self.receiver.set("/removed", Behaviour::status(400));
        write("removed", &["login.>"]).await;
        self.client.publish("user.created", "42").await;
        self.client.publish("nobody.knows", "rejected").await;
        eventually(LIMIT, "there are a dead letter and a rejected event", async || {
            let letters = self.client.dead_letters("user-lifecycle").await.len();
            let rejected = self.broker.messages("HUB_REJECTED").await;
            if letters == 1 && rejected == 1 { Ok(()) } else { Err((letters, rejected)) }
        })
        .await;
        self.receiver.set("/crm", Behaviour::ok());
    }

    async fn letter(&self) -> String {
        let letters = self.hub.cli_json(&["dlt", "list", "--subscription", "crm"]).await;
        letters[0]["id"].as_str().expect("a dead letter").to_owned()
    }

    /// The block with values for its placeholders.
    async fn filled(&self, text: &str) -> String {
        let mut text = text
            .replace("http://127.0.0.1:9000/hooks", &self.receiver.url("/crm"))
            .replace("http://127.0.0.1:8080", &self.hub.api_url(""))
            .replace("http://127.0.0.1:8090", &self.hub.health_url(""))
            .replace("postgres://app:secret@127.0.0.1/app", &self.database.url())
            .replace("trace ID", "trace 42")
            .replace("ID…", "row-1")
            // A command for the terminal of the reader.
            .replace("export …", "true");
        if text.contains("env_…") {
            text = text.replace("env_…", &self.letter().await);
        }
        text
    }

    /// A shell that runs the script in the folder, with the tools and settings that the pages assume.
    fn script(&self, script: &str, nats: &Path, folder: &Path) -> Command {
        let hub = Path::new(env!("CARGO_BIN_EXE_hub")).parent().expect("in a folder").to_owned();
        let mut path = vec![hub, nats.parent().expect("in a folder").to_owned()];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let mut command = Command::new("bash");
        command
            .args(["-c", script])
            .current_dir(folder)
            .env("PATH", std::env::join_paths(path).expect("a path"))
            .env("HUB_CONFIG", self.hub.config())
            .env("NATS_URL", self.broker.url())
            .env("TOKEN", self.api.token())
            .env("PASSWORD", "a-password")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a block as one script that ends at the first failure.
    async fn run(&self, block: &Block, nats: &Path, folder: &Path) {
        let script = format!("set -eu\n{}", self.filled(&block.text).await);
        let output = tokio::time::timeout(LIMIT, self.script(&script, nats, folder).output()).await;
        let output =
            output.unwrap_or_else(|_| panic!("{}: it still runs\n{script}", block.at)).expect("it runs");
        assert!(output.status.success(), "{}:\n{script}\n{}", block.at, print_output(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_block_runs() {
    let Some(nats) = require_tool("nats", nats_cli()) else { return };
    let stage = Stage::set().await;
    stage.prepare().await;
    let folder = tempfile::tempdir().expect("a folder");
    let crm = stage.hub.folder().join("crm.json");
    for block in blocks("sh") {
        if let Some(reason) = &block.not_run {
            assert!(reason.len() > 5, "{}: say why it is not run", block.at);
            continue;
        }
        if block.until_stopped {
            stage.run_until_stopped(&block, &nats, folder.path()).await;
            continue;
        }
        // Each block finds the subscription, two dead letters, and a row of the producer outbox.
        std::fs::copy(&crm, folder.path().join("crm.json")).expect("copied");
        stage.hub.cli_ok(&["subscription", "apply", "-f", &stage.crm_file()]).await;
        if block.text.contains("dlt") {
            stage.fail_once().await;
            stage.fail_once().await;
        }
        if block.text.contains("hub outbox retry") {
            stage.row("row-1").await;
        }
        if block.text.contains("--reason removed") {
            stage.remove_with_waiting().await;
        }
        if block.text.contains("--replace") {
            stage.hub.cli_ok(&["subscription", "rotate-secret", "crm"]).await;
        }
        stage.run(&block, &nats, folder.path()).await;
    }
    every_metric_is_documented(&stage.hub.metrics().await);
}

fn every_metric_is_documented(metrics: &str) {
    let pages = [include_str!("../../docs/operating.md"), include_str!("../../docs/producer-outbox.md")];
    let names: Vec<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 10, "{metrics}");
    for name in names {
        assert!(pages.iter().any(|page| page.contains(name)), "docs/operating.md does not describe {name}");
    }
}

impl Stage {
    /// Starts a block that does not end by itself, waits until it works, and stops it.
    async fn run_until_stopped(&self, block: &Block, nats: &Path, folder: &Path) {
        let (port, nats_port) = (free_port(), free_port());
        let script = format!("set -eu\nexec {}", block.text.replace("9000", &port.to_string()));
        let mut command = self.script(&script, nats, folder);
        command
            .env("HUB__HEALTH__LISTEN", format!("127.0.0.1:{port}"))
            .env("HUB__API__LISTEN", "127.0.0.1:0")
            .env("HUB__SUBSCRIPTIONS__LISTEN", "127.0.0.1:0");
        if block.text.contains("--dev") {
            command
                .env_remove("HUB_CONFIG")
                .env("HUB__NATS__URL", format!("nats://127.0.0.1:{nats_port}"))
                .env("HUB_NATS_SERVER", nats_server())
                .env("XDG_DATA_HOME", folder);
        }
        let mut child = command.spawn().expect("it starts");
        let is_hub = block.text.contains("hub serve");
        let url = format!("http://127.0.0.1:{port}/readyz");
        eventually(LIMIT, "it works", async || {
            let ended = child.try_wait().expect("waited for");
            assert!(ended.is_none(), "{}: it ended with {ended:?}\n{script}", block.at);
            let answer = http_client().get(&url).send().await.map_err(|error| error.to_string())?;
            let works = !is_hub || answer.status().is_success();
            if works { Ok(()) } else { Err(answer.status().to_string()) }
        })
        .await;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("it runs");
        kill_process(pid, Signal::TERM).expect("signalled");
        let status = tokio::time::timeout(LIMIT, child.wait()).await.expect("it stops").expect("waited for");
        assert!(status.success() || !is_hub, "{}: {status}\n{script}", block.at);
    }

    /// Leaves one dead letter of `crm`, whose endpoint answers again.
    async fn fail_once(&self) {
        self.receiver.set("/crm", Behaviour::status(400));
        let before = self.client.dead_letters("policy-client").await.len();
        let id = format!("failing-{before}-{}", self.receiver.count("/crm"));
        self.client.publish("policy.updated", &id).await;
        eventually(LIMIT, "it is a dead letter", async || {
            let now = self.client.dead_letters("policy-client").await.len();
            if now > before { Ok(()) } else { Err(now) }
        })
        .await;
        self.receiver.set("/crm", Behaviour::ok());
    }

    fn crm_file(&self) -> String {
        self.hub.folder().join("crm.json").to_str().expect("UTF-8").to_owned()
    }

    /// An abandoned row for a broker that cannot be reached.
    async fn row(&self, id: &str) {
        let event =
            json!({"id": id, "type": "user.created", "stream": "user-u1", "data": {}, "published": true});
        self.database.raise(&event).await.expect("raised");
        self.hub.cli_ok(&["outbox", "discard", id, "--broker", "partner_events", "--yes"]).await;
    }

    /// A dead letter with the reason `removed`.
    async fn remove_with_waiting(&self) {
        self.receiver.set("/removed", Behaviour::status(503));
        self.client.publish("login.failed", "waits").await;
        self.receiver.wait_for("/removed", 1, LIMIT).await;
        self.hub.cli_ok(&["subscription", "remove", "removed", "--yes"]).await;
        eventually(LIMIT, "it is parked as removed", async || {
            let listed = self.hub.cli_json(&["dlt", "list", "--reason", "removed"]).await;
            if listed.as_array().is_some_and(|all| !all.is_empty()) { Ok(()) } else { Err(listed) }
        })
        .await;
    }
}

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
