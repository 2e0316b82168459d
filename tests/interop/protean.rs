//! PostgreSQL, the relay, Redis, and Protean from PyPI, whose subscriber receives messages like those of its own
//! framework.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hub_outbox::Store;
use integration_hub::domain::producer_outbox::Status;
use serde_json::{Value, json};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::relay::{RELAY, SOON, public, settings, wait_for};
use crate::support::settings::external;
use crate::support::{
    ChildProcess, Direction, FaultProxy, Hub, RedisServer, TestBroker, TestDatabase, eventually, example,
    require_tool, tool,
};

/// The consumer group that Protean creates for the subscriber of the example.
const GROUP: &str = "customers.subscriber.AccountsSubscriber";

/// A Python program with Protean on its path.
struct Python {
    interpreter: PathBuf,
    packages: PathBuf,
}

impl Python {
    /// `None`, with a message, without Protean: `HUB_TEST_PROTEAN` is the folder that `.ci/parts/protean.sh` prints.
    fn with_protean() -> Option<Self> {
        let folder = std::env::var_os("HUB_TEST_PROTEAN").filter(|value| !value.is_empty());
        let packages = require_tool("Protean (its folder in HUB_TEST_PROTEAN)", folder.map(PathBuf::from))?;
        let interpreter = require_tool("python3", tool("python3", "HUB_TEST_NO_OTHER"))?;
        Some(Self { interpreter, packages })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.interpreter);
        command.env("PYTHONPATH", &self.packages).env("PYTHONDONTWRITEBYTECODE", "1").env("NO_COLOR", "1");
        command
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The database of a producer with the producer outbox, the hub's NATS server, and the Redis of a partner.
struct Producer {
    database: TestDatabase,
    store: Store,
    broker: TestBroker,
    redis: RedisServer,
}

impl Producer {
    async fn start() -> Option<Self> {
        let redis = RedisServer::start(&[]).await?;
        let database = TestDatabase::postgres().await?;
        let store = database.outbox(&["partner"]).await;
        Some(Self { store, database, broker: TestBroker::start().await, redis })
    }

    /// A relay that reaches the partner at this address.
    async fn relay(&self, url: &str) -> Hub {
        let settings = settings(&self.database.url())
            .with_brokers([external("partner", "redis", url)])
            .with(|settings| settings.outbox.claim_time = Some(Duration::from_secs(2)));
        let mut hub = Hub::serve(&self.broker.url(), &settings, &RELAY);
        hub.ready().await;
        hub
    }

    /// Runs SQL with `psql`.
    fn raise(&self, events: &[Value]) {
        let TestDatabase::Postgres { server, .. } = &self.database else { unreachable!("it is PostgreSQL") };
        let calls = events.iter().map(|event| format!("SELECT hub_outbox.publish($event${event}$event$);\n"));
        let output = server.psql(&calls.collect::<String>());
        assert!(output.status.success(), "{}", crate::support::print_output(&output));
    }

    async fn redis<T: redis::FromRedisValue>(&self, arguments: &[&str]) -> Option<T> {
        let mut command = redis::cmd(arguments[0]);
        command.arg(&arguments[1..]);
        command.query_async(&mut self.redis.connect().await).await.ok()
    }

    /// The envelopes in a Redis stream.
    async fn sent(&self, stream: &str) -> Vec<Value> {
        let entries: Vec<(String, Vec<String>)> =
            self.redis(&["XRANGE", stream, "-", "+"]).await.expect("a stream");
        let data = entries.iter().map(|(_, fields)| {
            assert_eq!((fields.len(), fields[0].as_str()), (2, "data"));
            serde_json::from_str(&fields[1]).expect("JSON")
        });
        data.collect()
    }

    /// Waits until the Protean example has read and acknowledged everything.
    async fn nothing_pending(&self) {
        self.nothing_pending_for(GROUP).await;
    }

    async fn nothing_pending_for(&self, group: &str) {
        eventually(SOON, "everything is acknowledged", async || {
            let groups: Option<redis::streams::StreamInfoGroupsReply> =
                self.redis(&["XINFO", "GROUPS", "user"]).await;
            let groups = groups.map(|reply| reply.groups).unwrap_or_default();
            let group = groups.into_iter().find(|found| found.name == group);
            match group.map(|group| (group.lag, group.pending)) {
                Some((Some(0), 0)) => Ok(()),
                pending => Err(pending),
            }
        })
        .await;
    }
}

/// The example as in its README, with a separate database.
struct Customers {
    folder: TempDir,
    database: SqlitePool,
}

impl Customers {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = SqliteConnectOptions::new().filename(folder.path().join("customers.db"));
        Self { database: SqlitePool::connect_lazy_with(options), folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("customers.db")
    }

    fn start(&self, python: &Python, redis_url: &str) -> ChildProcess {
        let mut command = python.command();
        command.args(["-m", "customers"]).current_dir(root().join("examples/protean_subscriber"));
        command
            .env("REDIS_URL", redis_url)
            .env("CUSTOMERS_DATABASE", format!("sqlite:///{}", self.file().display()))
            .env("RETRY_DELAY_SECONDS", "0.1")
            .env("RECLAIM_AFTER_SECONDS", "2");
        ChildProcess::start(command, &self.folder.path().join("log"))
    }

    /// Rows of text, sorted, after the example has created the tables.
    async fn rows(&self, query: &'static str) -> Vec<String> {
        let rows = sqlx::query(query).fetch_all(&self.database).await.unwrap_or_default();
        let mut rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        rows.sort();
        rows
    }

    async fn letters(&self) -> Vec<String> {
        self.rows("SELECT customer_id FROM welcome_letter").await
    }

    async fn wait_for_letters(&self, expected: &[&str]) {
        eventually(SOON, &format!("{expected:?} are welcomed"), async || match self.letters().await {
            letters if letters == expected => Ok(()),
            letters => Err(letters),
        })
        .await;
    }
}

/// A published `user.created` of a user with an address.
fn created(id: &str, user: &str) -> Value {
    let mut event = public(id, &format!("user-{user}"));
    event["data"] = json!({"user_id": user, "email": format!("{user}@example.com")});
    event
}

fn keys(object: &Value) -> BTreeSet<&str> {
    object.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_protean_subscriber_receives_the_envelope_that_it_expects() {
    let Some(python) = Python::with_protean() else { return };
    let Some(producer) = Producer::start().await else { return };
    let _relay = producer.relay(&producer.redis.url()).await;
    let data =
        json!({"user_id": "u1", "email": "Ä \"quoted\" \u{1f600} <a@example.com>", "height": "1.50 \\ m"});
    let full = json!({
        "id": "evt 1/ü", "type": "user.created", "stream": "user-u1", "published": true, "data": data,
        "time": "2026-01-31T12:00:00.123456Z", "source": "accounts", "tenant": "acme",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "fqn": "accounts.UserCreated", "kind": "EVENT", "version": 3, "sequence_id": "7.1",
        "correlation_id": "corr-1", "causation_id": "accounts::user:command-9",
        "origin_stream": "accounts::signup-1", "stream_category": "user",
        "expected_version": 6, "asynchronous": false, "priority": "bulk",
        "event_store": {"position": 4, "global_position": 99},
        "extensions": {"partner_tier": "gold", "nested": {"a": [1, null]}},
    });
    let mut bare = public("evt-2", "user-u2");
    bare["type"] = json!("user.deleted");
    let unpublished = crate::support::outbox::event("evt-3", "user-u1");
    producer.raise(&[full, unpublished, bare]);
    wait_for(&producer.store, "partner", Status::Published, 2).await;
    wait_for(&producer.store, "internal", Status::Published, 3).await;

    let folder = tempfile::tempdir().expect("a folder");
    let mut command = python.command();
    command.arg(root().join("tests/receivers/protean_recorder.py")).args(["user", &producer.redis.url()]);
    let mut recorder = ChildProcess::start(command, &folder.path().join("log"));
    let read_messages = eventually(SOON, "Protean has received both", async || {
        let log = recorder.log();
        let lines = log.lines().filter(|line| line.starts_with('{'));
        let read_messages: Vec<Value> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
        if read_messages.len() >= 3 { Ok(read_messages) } else { Err(log) }
    })
    .await;
    assert!(recorder.terminate().await.success(), "{}", recorder.log());

    assert_eq!(read_messages.len(), 3, "an unpublished event never arrives: {read_messages:?}");
    let reference = &read_messages[0]["reference"];
    // Two streams of the producer have no order between them.
    let of = |id: &str| {
        let found =
            read_messages.iter().find(|message| message["payload"]["metadata"]["headers"]["id"] == id);
        found.unwrap_or_else(|| panic!("{id} is missing"))
    };
    let (first, second) = (of("evt 1/ü"), of("evt-2"));

    // Exactly the kept fields, with their values.
    assert_eq!(
        first["payload"],
        json!({
            "data": data,
            "metadata": {
                "headers": {
                    "id": "evt 1/ü", "type": "user.created", "stream": "user-u1",
                    "time": "2026-01-31T12:00:00.123456Z",
                    "traceparent": {
                        "trace_id": "0af7651916cd43dd8448eb211c80319c", "parent_id": "b7ad6b7169203331",
                        "sampled": true,
                    },
                },
                "domain": {
                    "fqn": "accounts.UserCreated", "kind": "EVENT", "version": 3, "sequence_id": "7.1",
                    "correlation_id": "corr-1", "causation_id": "accounts::user:command-9",
                    "origin_stream": "accounts::signup-1", "stream_category": "user",
                },
                "envelope": {"specversion": "1.0"},
                "extensions": {
                    "partner_tier": "gold", "nested": {"a": [1, null]}, "source": "accounts", "tenant": "acme",
                },
            },
        })
    );

    // The same members as in a message of Protean, except two for commands.
    for payload in [&first["payload"], &second["payload"]] {
        let (ours, theirs) = (&payload["metadata"], &reference["metadata"]);
        assert_eq!(keys(payload), keys(reference));
        assert_eq!(keys(ours), keys(theirs));
        assert_eq!(keys(&ours["domain"]), keys(&theirs["domain"]));
        assert_eq!(ours["envelope"], theirs["envelope"]);
        let mut headers = keys(&theirs["headers"]);
        assert!(headers.remove("idempotency_key") && headers.remove("deadline"));
        assert_eq!(keys(&ours["headers"]), headers);
    }

    // Protean reads it without an error.
    let read = &first["message"];
    assert_eq!(read["data"], first["payload"]["data"]);
    for part in ["domain", "envelope", "extensions"] {
        assert_eq!(read["metadata"][part], first["payload"]["metadata"][part], "{part}");
    }
    let mut headers = first["payload"]["metadata"]["headers"].clone();
    headers["time"] = json!("2026-01-31T12:00:00.123456+00:00");
    headers["idempotency_key"] = Value::Null;
    headers["deadline"] = Value::Null;
    assert_eq!(read["metadata"]["headers"], headers);
    // Its event, rebuilt from the message; and its CloudEvent.
    let mut event = data.clone();
    event["class"] = json!("UserCreated");
    assert_eq!(first["event"], event);
    let cloud_event = &first["cloud_event"];
    assert_eq!(
        (&cloud_event["id"], &cloud_event["type"], &cloud_event["subject"], &cloud_event["source"]),
        (&json!("evt 1/ü"), &json!("user.created"), &json!("u1"), &json!("accounts"))
    );
    let trace = json!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!((&cloud_event["traceparent"], &cloud_event["sequence"]), (&trace, &json!("7.1")));

    // The event with only the required fields.
    let headers = &second["payload"]["metadata"]["headers"];
    assert_eq!((&headers["id"], &headers["type"]), (&json!("evt-2"), &json!("user.deleted")));
    let defaults = &second["message"]["metadata"]["domain"];
    assert_eq!((&defaults["kind"], &defaults["version"]), (&json!("EVENT"), &json!(1)));
}

#[tokio::test]
async fn what_a_killed_relay_sends_twice_is_handled_once() {
    let Some(python) = Python::with_protean() else { return };
    let Some(producer) = Producer::start().await else { return };
    let customers = Customers::new();
    let mut service = customers.start(&python, &producer.redis.url());
    // The other example has its own group on the same stream.
    let in_rust = Customers::new();
    let mut command = Command::new(example("subscriber"));
    command.env("SUBSCRIBER_BROKER", producer.redis.url()).arg("--database").arg(in_rust.file());
    let mut rust_service = ChildProcess::start(command, &in_rust.folder.path().join("log"));

    let proxy = FaultProxy::start(&producer.redis.url()).await;
    let mut first = producer.relay(&proxy.url("redis")).await;
    // Redis stores the first entries, but the relay gets no acknowledgement, and cannot mark them.
    let answering = proxy.cut_before(Direction::ToClient, "-0\r\n");
    let users = ["ann", "bob", "cat", "dan", "eve"];
    let events: Vec<Value> = users.iter().map(|user| created(&format!("e-{user}"), user)).collect();
    producer.raise(&events);
    answering.fired(SOON).await;
    first.kill().await;
    let sent_before = producer.sent("user").await;
    assert!(!sent_before.is_empty(), "something was sent before the crash");

    let _second = producer.relay(&producer.redis.url()).await;
    wait_for(&producer.store, "partner", Status::Published, users.len()).await;
    let sent = producer.sent("user").await;
    for once in &sent_before {
        assert!(sent.iter().filter(|one| *one == once).count() > 1, "sent again, and the same: {sent:?}");
    }

    customers.wait_for_letters(&users).await;
    producer.nothing_pending().await;
    assert_eq!(customers.letters().await, users, "handled once");
    let inbox = customers.rows("SELECT event_id FROM received_event").await;
    assert_eq!(inbox, users.map(|user| format!("e-{user}")));
    assert_eq!(producer.redis::<u64>(&["XLEN", "user:dlq"]).await, Some(0));
    assert!(service.terminate().await.success(), "{}", service.log());

    producer.nothing_pending_for("customers").await;
    assert_eq!(in_rust.rows("SELECT customer_id FROM letters").await, users, "here as well");
    assert!(rust_service.terminate().await.success(), "{}", rust_service.log());
}

#[tokio::test]
async fn a_failing_handler_disturbs_neither_the_relay_nor_other_events() {
    let Some(python) = Python::with_protean() else { return };
    let Some(producer) = Producer::start().await else { return };
    let relay = producer.relay(&producer.redis.url()).await;
    let customers = Customers::new();
    let mut service = customers.start(&python, &producer.redis.url());

    let mut nameless = created("e-bad", "bad");
    nameless["data"] = json!({"user_id": "bad"});
    let mut not_ours = created("e-other", "ann");
    not_ours["type"] = json!("user.deleted");
    producer.raise(&[created("e-ann", "ann"), nameless, not_ours, created("e-eve", "eve")]);
    customers.wait_for_letters(&["ann", "eve"]).await;
    producer.nothing_pending().await;

    let dead = producer.sent("user:dlq").await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0]["metadata"]["headers"]["id"], "e-bad");
    assert_eq!(dead[0]["_dlq_metadata"]["retry_count"], 3);
    assert!(service.log().contains("KeyError: 'email'"), "the log says why");
    let rows = wait_for(&producer.store, "partner", Status::Published, 4).await;
    assert!(rows.iter().all(|row| row.attempts == 0), "the relay is not aware of it");
    let partner = ["broker=\"partner\""];
    assert_eq!(relay.metric("hub_relay_published_total", &partner).await, 4.0);
    assert_eq!(relay.metric("hub_relay_failed_total", &partner).await, 0.0);
    assert!(service.terminate().await.success(), "{}", service.log());
}

#[tokio::test]
async fn what_a_crashed_subscriber_had_read_is_taken_over_and_changes_nothing() {
    let Some(python) = Python::with_protean() else { return };
    let Some(producer) = Producer::start().await else { return };
    let _relay = producer.relay(&producer.redis.url()).await;
    producer.raise(&[created("e-ann", "ann"), created("e-bob", "bob")]);
    wait_for(&producer.store, "partner", Status::Published, 2).await;

    let customers = Customers::new();
    let proxy = FaultProxy::start(&producer.redis.url()).await;
    let acknowledging = proxy.cut_before(Direction::ToServer, "XACK");
    let mut first = customers.start(&python, &proxy.url("redis"));
    acknowledging.fired(SOON).await;
    assert_eq!(customers.letters().await, ["ann"], "the effect is committed before it is acknowledged");
    first.kill().await;

    let mut second = customers.start(&python, &producer.redis.url());
    producer.nothing_pending().await;
    assert_eq!(customers.letters().await, ["ann", "bob"]);
    assert!(second.terminate().await.success(), "{}", second.log());
}
