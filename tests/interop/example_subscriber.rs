//! `examples/subscriber` on real brokers: each message of the hub is applied once, despite repetitions,
//! crashes, and messages that can never be applied.

use std::path::PathBuf;

use async_nats::jetstream::consumer::PullConsumer;
use serde_json::{Value, json};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::relay::{RELAY, SOON, partner, public, raise, settings};
use crate::support::settings::external;
use crate::support::{
    ChildProcess, Direction, FaultProxy, Hub, RedisServer, TestBroker, TestDatabase, eventually, example,
};

const GROUP: &str = "customers";

/// The broker that the subscriber reads.
enum Partner {
    Redis(Box<RedisServer>),
    Nats(Box<TestBroker>),
}

impl Partner {
    fn url(&self) -> String {
        match self {
            Self::Redis(redis) => redis.url(),
            Self::Nats(nats) => nats.url(),
        }
    }

    fn scheme(&self) -> &'static str {
        match self {
            Self::Redis(_) => "redis",
            Self::Nats(_) => "nats",
        }
    }

    fn stream(&self) -> &'static str {
        match self {
            Self::Redis(_) => "user",
            Self::Nats(_) => "PARTNER",
        }
    }

    /// The first bytes of an acknowledgement.
    fn acknowledgement(&self) -> &'static str {
        match self {
            Self::Redis(_) => "XACK",
            Self::Nats(_) => "$JS.ACK",
        }
    }

    /// Adds a message, which may be invalid as an envelope.
    async fn add(&self, body: &str) {
        match self {
            Self::Redis(redis) => {
                let mut connection = redis.connect().await;
                let mut add = redis::cmd("XADD");
                add.arg(&["user", "*", "data", body]);
                add.query_async::<()>(&mut connection).await.expect("added");
            }
            Self::Nats(nats) => {
                let context = nats.jetstream().await;
                let sent = context.publish("user.created", body.to_owned().into()).await.expect("published");
                sent.await.expect("stored");
            }
        }
    }

    /// The messages that the group has not received, and those not acknowledged; `None` without a group.
    async fn pending(&self) -> Option<(u64, u64)> {
        match self {
            Self::Redis(redis) => {
                let mut connection = redis.connect().await;
                let groups: redis::streams::StreamInfoGroupsReply =
                    redis::cmd("XINFO").arg(&["GROUPS", "user"]).query_async(&mut connection).await.ok()?;
                let group = groups.groups.into_iter().find(|group| group.name == GROUP)?;
                Some((group.lag? as u64, group.pending as u64))
            }
            Self::Nats(nats) => {
                let stream = nats.jetstream().await.get_stream("PARTNER").await.expect("the stream is there");
                let mut consumer: PullConsumer = stream.get_consumer(GROUP).await.ok()?;
                let info = consumer.info().await.expect("the consumer is there");
                Some((info.num_pending, info.num_ack_pending as u64))
            }
        }
    }

    async fn kill(&mut self) {
        match self {
            Self::Redis(redis) => redis.kill().await,
            Self::Nats(nats) => nats.process().kill().await.expect("the server is killed"),
        }
    }

    async fn restart(&mut self) {
        match self {
            Self::Redis(redis) => {
                redis.restart().await;
                eventually(SOON, "Redis has loaded its file", async || {
                    redis::cmd("PING").query_async::<()>(&mut redis.connect().await).await
                })
                .await;
            }
            Self::Nats(nats) => {
                nats.process().restart().await.expect("the server starts on the same port");
            }
        }
    }

    async fn nothing_pending(&self) {
        eventually(SOON, "everything is acknowledged", async || match self.pending().await {
            Some((0, 0)) => Ok(()),
            pending => Err(pending),
        })
        .await;
    }
}

/// The subscriber's folder: its database and its output.
struct Service {
    folder: TempDir,
    database: SqlitePool,
}

impl Service {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = SqliteConnectOptions::new().filename(folder.path().join("customers.db"));
        Self { database: SqlitePool::connect_lazy_with(options), folder }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn start(&self, partner: &Partner, url: &str, more: &[&str]) -> ChildProcess {
        let mut command = Command::new(example("subscriber"));
        command.env("SUBSCRIBER_BROKER", url).args(["--stream", partner.stream(), "--group", GROUP]);
        command.arg("--database").arg(self.folder.path().join("customers.db"));
        command.args(["--reclaim-after", "1s"]).args(more);
        ChildProcess::start(command, &self.log())
    }

    /// Rows of text, after the subscriber has created the tables.
    async fn rows(&self, query: &'static str) -> Vec<Vec<String>> {
        let rows = sqlx::query(query).fetch_all(&self.database).await.unwrap_or_default();
        let texts = |row: &sqlx::sqlite::SqliteRow| (0..row.len()).map(|column| row.get(column)).collect();
        rows.iter().map(texts).collect()
    }

    async fn customers(&self) -> Vec<Vec<String>> {
        self.rows("SELECT customer_id, name, email FROM customers ORDER BY customer_id").await
    }

    /// The users, in the order in which they were written.
    async fn letters(&self) -> Vec<String> {
        self.rows("SELECT customer_id FROM letters ORDER BY letter_id").await.concat()
    }

    /// Reasons and bodies.
    async fn poison(&self) -> Vec<Vec<String>> {
        self.rows("SELECT reason, CAST(body AS TEXT) FROM poison ORDER BY put_aside_at, place").await
    }
}

/// An external envelope like those of the hub.
fn envelope(id: &str, kind: &str, data: Value) -> String {
    json!({
        "data": data,
        "metadata": {
            "headers": {"id": id, "type": kind, "time": "2026-01-31T12:00:00Z", "stream": "user-u1"},
            "domain": {"kind": "EVENT", "version": 1},
            "envelope": {"specversion": "1.0"},
            "extensions": {},
        },
    })
    .to_string()
}

fn created(id: &str, user: &str) -> String {
    envelope(id, "user.created", json!({"user_id": user, "email": format!("{user}@example.com")}))
}

async fn redis() -> Option<Partner> {
    Some(Partner::Redis(Box::new(RedisServer::start(&[]).await?)))
}

async fn nats() -> Option<Partner> {
    Some(Partner::Nats(Box::new(partner().await)))
}

/// Runs each of these on both brokers.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_redis {
            $(#[tokio::test]
            async fn $name() {
                let Some(partner) = super::redis().await else { return };
                super::$name(partner).await;
            })*
        }
        mod on_nats {
            $(#[tokio::test]
            async fn $name() {
                let Some(partner) = super::nats().await else { return };
                super::$name(partner).await;
            })*
        }
    };
}

on_both!(
    what_the_relay_sends_becomes_customers,
    what_comes_twice_is_applied_once,
    a_crash_between_effect_and_acknowledgement_changes_nothing,
    what_can_never_be_applied_is_set_aside_and_blocks_no_other,
    an_unavailable_broker_is_waited_for,
);

async fn what_the_relay_sends_becomes_customers(partner: Partner) {
    let database = TestDatabase::sqlite().await.expect("SQLite is built in");
    database.outbox(&["partner"]).await;
    let broker = TestBroker::start().await;
    let external = external("partner", partner.scheme(), &partner.url());
    let mut hub = Hub::serve(&broker.url(), &settings(&database.url()).with_brokers([external]), &RELAY);
    hub.ready().await;
    let service = Service::new();
    let mut subscriber = service.start(&partner, &partner.url(), &[]);

    let mut ann = public("e1", "user-ann");
    ann["data"] = json!({"user_id": "ann", "email": "ann@example.com", "display_name": "Ann"});
    let mut unknown = public("e2", "user-ann");
    unknown["type"] = json!("user.renamed");
    let mut secret = crate::support::outbox::event("e3", "user-bob");
    secret["data"] = json!({"user_id": "bob", "email": "bob@example.com"});
    let mut eve = public("e4", "user-eve");
    eve["data"] = json!({"user_id": "eve", "email": "eve@example.com"});
    raise(&database, &[ann, unknown, secret, eve]).await;

    eventually(SOON, "both are customers", async || match service.letters().await {
        letters if letters.len() == 2 => Ok(()),
        letters => Err(letters),
    })
    .await;
    partner.nothing_pending().await;
    let [ann, eve] = [["ann", "Ann", "ann@example.com"], ["eve", "eve@example.com", "eve@example.com"]];
    assert_eq!(service.customers().await, [ann, eve], "the event that is not published never left");
    assert!(service.poison().await.is_empty());
    assert!(subscriber.terminate().await.success());
    let counts = "applied: 2, repeated: 0, not_ours: 1, put_aside: 0";
    assert!(subscriber.log().contains(counts), "{}", subscriber.log());
}

async fn what_comes_twice_is_applied_once(partner: Partner) {
    let service = Service::new();
    for (id, user) in [("e1", "ann"), ("e2", "bob"), ("e1", "ann"), ("e1", "ann")] {
        partner.add(&created(id, user)).await;
    }
    let mut first = service.start(&partner, &partner.url(), &["--batch", "2"]);
    partner.nothing_pending().await;
    assert_eq!(service.letters().await, ["ann", "bob"]);
    assert!(first.terminate().await.success());

    // In a later process, because the inbox is on disk.
    partner.add(&created("e2", "bob")).await;
    partner.add(&created("e3", "ann")).await;
    let mut second = service.start(&partner, &partner.url(), &["--consumer", "customers-2"]);
    partner.nothing_pending().await;
    assert_eq!(service.letters().await, ["ann", "bob", "ann"], "another event is another event");
    assert!(second.terminate().await.success());
    for counts in ["applied: 2, repeated: 2,", "applied: 1, repeated: 1,"] {
        assert!(second.log().contains(counts), "{counts}: {}", second.log());
    }
}

async fn a_crash_between_effect_and_acknowledgement_changes_nothing(partner: Partner) {
    let service = Service::new();
    let proxy = FaultProxy::start(&partner.url()).await;
    let acknowledging = proxy.cut_before(Direction::ToServer, partner.acknowledgement());
    partner.add(&created("e1", "ann")).await;
    partner.add(&created("e2", "bob")).await;
    let mut first = service.start(&partner, &proxy.url(partner.scheme()), &[]);
    acknowledging.fired(SOON).await;
    assert_eq!(service.letters().await, ["ann"], "the effect is committed before it is acknowledged");
    first.kill().await;
    assert_eq!(partner.pending().await, Some((0, 2)), "the broker waits for both");

    let mut second = service.start(&partner, &partner.url(), &["--consumer", "customers-2"]);
    partner.nothing_pending().await;
    assert_eq!(service.letters().await, ["ann", "bob"]);
    assert!(second.terminate().await.success());
    assert!(second.log().contains("applied: 1, repeated: 1,"), "{}", second.log());
}

async fn what_can_never_be_applied_is_set_aside_and_blocks_no_other(partner: Partner) {
    let service = Service::new();
    let newer = created("e5", "eve").replace("\"version\":1", "\"version\":2");
    let cases = [
        ("{nonsense", "invalid envelope: key must be a string at line 1 column 2"),
        (r#"{"data": {}}"#, "invalid envelope: missing field `metadata`"),
        (
            &envelope("e3", "user.created", json!({"user_id": "eve"})),
            "user.created: data: missing field `email`",
        ),
        (&envelope("e4", "user.created", json!({"user_id": " ", "email": "e@e"})), "data.user_id is empty"),
        (&newer, "version 2 is not supported"),
        // Only the subscriber's database rejects this.
        (
            &envelope("e6", "user.created", json!({"user_id": "eve", "email": "eve"})),
            "the database rejects the command",
        ),
    ];
    partner.add(&created("e1", "ann")).await;
    for (body, _) in &cases {
        partner.add(body).await;
    }
    partner.add(&created("e7", "bob")).await;
    let mut subscriber = service.start(&partner, &partner.url(), &[]);
    partner.nothing_pending().await;
    assert_eq!(service.letters().await, ["ann", "bob"]);
    let poison = service.poison().await;
    assert_eq!(poison.len(), cases.len(), "{poison:?}");
    for (body, reason) in &cases {
        let found = poison.iter().find(|row| row[1] == *body).unwrap_or_else(|| panic!("{body} is missing"));
        assert!(found[0].contains(reason), "{body}: {}", found[0]);
    }
    assert!(subscriber.terminate().await.success());
    // A rejected message is not in the inbox.
    assert_eq!(service.rows("SELECT event_id FROM inbox ORDER BY event_id").await.concat(), ["e1", "e7"]);
}

#[tokio::test]
async fn what_a_consumer_that_is_gone_has_read_is_reclaimed_and_what_ends_everybody_put_aside() {
    let Some(partner) = redis().await else { return };
    let Partner::Redis(server) = &partner else { unreachable!("it is Redis") };
    let service = Service::new();
    for (id, user) in [("e1", "ann"), ("e2", "bob"), ("e3", "eve")] {
        partner.add(&created(id, user)).await;
    }
    let mut connection = server.connect().await;
    let mut command = async |arguments: &[&str]| -> redis::Value {
        redis::cmd(arguments[0]).arg(&arguments[1..]).query_async(&mut connection).await.expect("answered")
    };
    command(&["XGROUP", "CREATE", "user", GROUP, "0"]).await;
    command(&["XREADGROUP", "GROUP", GROUP, "gone", "COUNT", "2", "STREAMS", "user", ">"]).await;
    // The second one has ended five processes.
    let entries: Vec<(String, Vec<String>)> =
        redis::from_redis_value(command(&["XRANGE", "user", "-", "+"]).await).expect("entries");
    command(&["XCLAIM", "user", GROUP, "gone", "0", &entries[1].0, "RETRYCOUNT", "5"]).await;

    let mut subscriber = service.start(&partner, &partner.url(), &["--attempts", "5"]);
    partner.nothing_pending().await;
    assert!(subscriber.terminate().await.success());
    let mut letters = service.letters().await;
    letters.sort();
    assert_eq!(letters, ["ann", "eve"]);
    let poison = service.poison().await;
    assert_eq!(poison, [["read 6 times without an acknowledgement".to_owned(), created("e2", "bob")]]);
}

/// An open transaction of another process, or a full disk, has the same effect.
#[tokio::test]
async fn while_its_database_is_unavailable_the_current_event_waits_and_is_not_blamed() {
    let Some(partner) = redis().await else { return };
    let service = Service::new();
    let mut subscriber = service.start(&partner, &partner.url(), &["--attempts", "1"]);
    partner.add(&created("e1", "ann")).await;
    partner.nothing_pending().await;

    let lock = service.database.begin_with("BEGIN IMMEDIATE").await.expect("locked");
    partner.add(&created("e2", "bob")).await;
    eventually(SOON, "it has noticed", async || {
        match subscriber.log().matches("; trying again in").count() {
            0 => Err(subscriber.log()),
            _ => Ok(()),
        }
    })
    .await;
    partner.add(&created("e3", "eve")).await;
    eventually(SOON, "it has tried again", async || {
        match subscriber.log().matches("; trying again in").count() {
            0 | 1 => Err(subscriber.log()),
            _ => Ok(()),
        }
    })
    .await;
    lock.rollback().await.expect("unlocked");
    partner.nothing_pending().await;
    assert_eq!(service.letters().await, ["ann", "bob", "eve"]);
    assert!(service.poison().await.is_empty());
    assert!(subscriber.terminate().await.success());
}

async fn an_unavailable_broker_is_waited_for(mut partner: Partner) {
    let service = Service::new();
    let url = partner.url();
    let mut subscriber = service.start(&partner, &url, &[]);
    partner.add(&created("e1", "ann")).await;
    partner.nothing_pending().await;
    partner.kill().await;
    // The NATS client reconnects automatically.
    let noticed =
        if matches!(partner, Partner::Nats(_)) { "event: disconnected" } else { "; trying again in" };
    eventually(SOON, "it has noticed", async || match subscriber.log().contains(noticed) {
        true => Ok(()),
        false => Err(subscriber.log()),
    })
    .await;
    partner.restart().await;
    partner.add(&created("e2", "bob")).await;
    eventually(SOON, "it continues", async || match service.letters().await {
        letters if letters == ["ann", "bob"] => Ok(()),
        letters => Err(letters),
    })
    .await;
    partner.nothing_pending().await;
    assert!(subscriber.terminate().await.success());
}

#[tokio::test]
async fn a_wrong_option_is_reported_with_its_name() {
    let service = Service::new();
    for (arguments, expected) in [
        (vec!["--broker", "http://127.0.0.1"], "--broker: unknown scheme http://"),
        (vec!["--database", "/nowhere/at/all.db"], "--database /nowhere/at/all.db: database: "),
        (vec!["--batch", "0"], "'--batch <BATCH>': 0 is not in 1..=1000"),
        (vec!["--reclaim-after", "soon"], "'--reclaim-after <RECLAIM_AFTER>'"),
    ] {
        let mut command = Command::new(example("subscriber"));
        command.current_dir(service.folder.path()).args(&arguments).env_remove("SUBSCRIBER_BROKER");
        let output = tokio::time::timeout(SOON, command.output()).await.expect("it ends").expect("it runs");
        assert!(!output.status.success(), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
}

#[test]
fn the_example_explains_its_usage() {
    let output = std::process::Command::new(example("subscriber")).arg("--help").output().expect("it runs");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for option in ["--broker", "--stream", "--group", "--database", "--reclaim-after", "SUBSCRIBER_BROKER"] {
        assert!(text.contains(option), "{option}: {text}");
    }
}
