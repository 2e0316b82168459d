//! A hub with everything that the pages name, for their commands.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::process::Command;

use super::blocks::Block;
use super::programs::Programs;
use super::support::settings::external;
use super::support::{
    ApiClient, Behaviour, Hub, Receiver, TestBroker, TestClient, TestDatabase, TestSettings, eventually,
    free_port, http_client, nats_server, print_output,
};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A hub with everything that the pages name, and the programs of their commands.
pub(crate) struct Stage {
    programs: Programs,
    broker: TestBroker,
    receiver: Receiver,
    pub(crate) hub: Hub,
    client: TestClient,
    database: TestDatabase,
    api: ApiClient,
}

impl Stage {
    pub(crate) async fn set(programs: Programs) -> Self {
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
        Self { programs, broker, receiver, hub, client, database, api }
    }

    /// Prepares the data of the commands: a subscription, a dead letter of each kind, a row.
    pub(crate) async fn prepare(&self) {
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
            .replace("/backup/", &format!("{}/", self.hub.folder().display()))
            // A command for the terminal of the reader.
            .replace("export …", "true");
        if text.contains("env_…") {
            text = text.replace("env_…", &self.letter().await);
        }
        text
    }

    /// Sets what the pages assume.
    fn with_settings<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("HUB_CONFIG", self.hub.config())
            .env("NATS_URL", self.broker.url())
            .env("TOKEN", self.api.token())
            .env("PASSWORD", "a-password")
    }

    /// Runs a block as one script that ends at the first failure.
    async fn run(&self, block: &Block) {
        let script = format!("set -eu\n{}", self.filled(&block.text).await);
        let folder = self.programs.work();
        let mut command = match block.at_a_terminal {
            true => self.programs.script_at_a_terminal(&script, &folder),
            false => self.programs.script(&script, &folder),
        };
        run(&block.at, self.with_settings(&mut command)).await;
    }
}

/// Runs a command to its end, which must be a success.
pub(crate) async fn run(at: &str, command: &mut Command) {
    let output = tokio::time::timeout(LIMIT, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{at}: it still runs\n{command:?}")).expect("it runs");
    assert!(output.status.success(), "{at}:\n{command:?}\n{}", print_output(&output));
}

impl Stage {
    /// Runs a block. It finds the subscription `crm`, two dead letters, and a row of the producer outbox.
    pub(crate) async fn carry_out(&self, block: &Block) {
        if block.until_stopped {
            return self.run_until_stopped(block).await;
        }
        let crm = self.crm_file();
        std::fs::copy(&crm, self.programs.work().join("crm.json")).expect("copied");
        self.hub.cli_ok(&["subscription", "apply", "-f", &crm]).await;
        if block.text.contains("dlt") {
            self.fail_once().await;
            self.fail_once().await;
        }
        if block.text.contains("--until 30d") {
            self.age_one().await;
        }
        if block.text.contains("hub outbox retry") {
            // `ID…` is the first one.
            self.row(if block.text.contains("ID…") { "row-1" } else { "row-2" }).await;
        }
        if block.text.contains("--reason removed") {
            self.remove_with_waiting().await;
        }
        if block.text.contains("--replace") {
            self.hub.cli_ok(&["subscription", "rotate-secret", "crm"]).await;
        }
        if block.text.contains("hub registry import --create-registry") {
            return self.restore_the_registry(block).await;
        }
        if block.text.contains("nats stream rm") {
            return self.remove_everything(block).await;
        }
        self.run(block).await;
    }

    /// Runs a block that restores the registry, after its loss.
    async fn restore_the_registry(&self, block: &Block) {
        let before = self.hub.cli_json(&["subscription", "list"]).await;
        assert!(!before.as_array().expect("a list").is_empty(), "{before}");
        let jetstream = self.broker.jetstream().await;
        jetstream.delete_stream("KV_hub-subscriptions").await.expect("deleted");
        self.run(block).await;
        assert_eq!(self.hub.cli_json(&["subscription", "list"]).await, before, "{}", block.at);
    }

    /// Runs a block that deletes the streams of a hub, on a server of its own.
    async fn remove_everything(&self, block: &Block) {
        let broker = TestBroker::start().await;
        Hub::not_started(&broker.url(), &TestSettings::default().with_key(KEY)).cli_ok(&["provision"]).await;
        assert!(!broker.streams().await.is_empty());
        let mut command = self.programs.script(&format!("set -eu\n{}", block.text), &self.programs.work());
        run(&block.at, command.env("NATS_URL", broker.url())).await;
        assert_eq!(broker.streams().await.len(), 0, "{}", block.at);
    }

    /// Writes the values of the chart's page, and installs the chart as the page says.
    pub(crate) async fn install_the_chart(&self, values: &str, block: &Block) {
        std::fs::write(self.programs.work().join("values.yaml"), values).expect("written");
        let commands: Vec<&str> =
            block.text.lines().filter(|line| line.starts_with("helm upgrade --install")).collect();
        assert_eq!(commands.len(), 1, "{}: {commands:?}", block.at);
        run(&block.at, &mut self.programs.script(commands[0], &self.programs.work())).await;
    }

    /// Starts a block that does not end by itself, waits until it works, and stops it.
    async fn run_until_stopped(&self, block: &Block) {
        let folder = self.programs.work();
        let (port, nats_port) = (free_port(), free_port());
        let script = format!("set -eu\nexec {}", block.text.replace("9000", &port.to_string()));
        let mut command = self.programs.script(&script, &folder);
        self.with_settings(&mut command)
            .env("HUB__HEALTH__LISTEN", format!("127.0.0.1:{port}"))
            .env("HUB__API__LISTEN", "127.0.0.1:0")
            .env("HUB__SUBSCRIPTIONS__LISTEN", "127.0.0.1:0");
        if block.text.contains("--dev") {
            command
                .env_remove("HUB_CONFIG")
                .env("HUB__NATS__URL", format!("nats://127.0.0.1:{nats_port}"))
                .env("HUB_NATS_SERVER", nats_server())
                .env("XDG_DATA_HOME", &folder);
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

    /// Replaces the newest dead letter of `crm` by one that failed years ago.
    async fn age_one(&self) {
        let jetstream = self.broker.jetstream().await;
        let mut stream = jetstream.get_stream("HUB_OUTBOX_POLICY_CLIENT_DLT").await.expect("it exists");
        let newest = stream.info().await.expect("it answers").state.last_sequence;
        let letter = stream.get_raw_message(newest).await.expect("it is there");
        let mut headers = letter.headers;
        headers.insert("Hub-Failed-At", "2020-01-01T00:00:00Z");
        headers.insert("Nats-Msg-Id", "aged");
        let stored = jetstream.publish_with_headers(letter.subject, headers, letter.payload).await;
        stored.expect("it is sent").await.expect("it is stored");
        stream.delete_message(newest).await.expect("it is deleted");
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
