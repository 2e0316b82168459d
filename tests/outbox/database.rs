//! Connecting to the outbox database: the errors if it is unavailable, and a connection pooler in between.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use hub_outbox::publish;
use hub_outbox::{CONNECT_LIMIT, Store, StoreError, StoreOptions};
use integration_hub::domain::producer_outbox::{RaisedEvent, Status};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::support::outbox::{TestDatabase, event};
use crate::support::relay::{EVENTS, RELAY, SOON, settings, stored, wait_for};
use crate::support::{Hub, PASSWORD, TestBroker, TestPostgres, free_port, print_output, require_tool, tool};
use hub_testkit::owned_process::Plan;
use hub_testkit::server_process::{Ready, ServerProcess};

/// PgBouncer in transaction mode before a PostgreSQL, with two connections to it.
struct PgBouncer {
    port: u16,
    _process: ServerProcess,
    _folder: TempDir,
}

impl PgBouncer {
    /// Starts `HUB_TEST_PGBOUNCER`, or `pgbouncer` from `PATH`. `None`, with a message, if there is neither. `settings`
    /// are lines of its section `[pgbouncer]`.
    async fn start(postgres: &TestPostgres, settings: &str) -> Option<Self> {
        let binary: PathBuf = require_tool("pgbouncer", tool("pgbouncer", "HUB_TEST_PGBOUNCER"))?;
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let (users, ini) = (folder.path().join("users.txt"), folder.path().join("pgbouncer.ini"));
        std::fs::write(&users, format!("\"hub\" \"{PASSWORD}\"\n")).expect("written");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = 2\nmax_client_conn = 200\n{settings}\n",
            postgres.port(),
            users.display()
        );
        std::fs::write(&ini, text).expect("written");
        let is_root = rustix::process::getuid().is_root();
        if is_root {
            // It drops root privileges, and reads its files afterwards.
            let id = |what| {
                let output =
                    std::process::Command::new("id").args([what, "nobody"]).output().expect("id runs");
                String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().expect("a number")
            };
            for path in [folder.path(), &users, &ini] {
                std::os::unix::fs::chown(path, Some(id("-u")), Some(id("-g")))
                    .expect("root may give files away");
            }
        }
        let command = move || {
            let user: &[&str] = if is_root { &["-u", "nobody"] } else { &[] };
            Plan::new(&binary).args(user).arg(&ini)
        };
        let log = folder.path().join("log");
        let process = ServerProcess::start("pgbouncer", port, &log, Ready::Listening, command).await;
        let process = process.unwrap_or_else(|error| panic!("{error}"));
        Some(Self { port, _process: process, _folder: folder })
    }
}

/// A database, and its URL through a pooler.
async fn pooled(settings: &str) -> Option<(TestDatabase, PgBouncer, String)> {
    let database = TestDatabase::postgres().await?;
    let TestDatabase::Postgres { server, .. } = &database else { return None };
    let pooler = PgBouncer::start(server, settings).await?;
    let url = server.url_at(pooler.port);
    Some((database, pooler, url))
}

/// Setup, producers, two relays and the command line at the same time, over two connections.
#[tokio::test(flavor = "multi_thread")]
async fn everything_works_through_a_pooler_in_transaction_mode() {
    const EVENTS_RAISED: usize = 400;
    let Some((database, _pooler, url)) = pooled("").await else { return };
    let broker = TestBroker::start().await;
    let of_pooler = settings(&url).with(|settings| settings.outbox.pooler = Some("transaction".to_owned()));
    Hub::not_started(&broker.url(), &of_pooler).cli_ok(&["outbox", "setup"]).await;
    let mut hubs = [0, 1].map(|_| Hub::serve(&broker.url(), &of_pooler, &RELAY));
    for hub in &mut hubs {
        hub.ready().await;
    }

    // Producers: plain SQL in the simple protocol, and Rust in a transaction.
    let options: PgConnectOptions = url.parse().expect("an address");
    let producers = PgPoolOptions::new()
        .max_connections(8)
        .connect_with(options.extra_float_digits(None).statement_cache_capacity(0))
        .await
        .expect("the pooler answers");
    let numbers: Vec<usize> = (0..EVENTS_RAISED).collect();
    let raising = async {
        for chunk in numbers.chunks(20) {
            let producers = &producers;
            let each = chunk.iter().map(|number| async move {
                let event = event(&format!("e{number:05}"), &format!("s{}", number % 7));
                if number % 2 == 0 {
                    let statement = format!("SELECT hub_outbox.publish('{event}')");
                    let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(statement));
                    statement.execute(producers).await.expect("raised");
                } else {
                    let event: RaisedEvent = serde_json::from_value(event).expect("the event is good");
                    let mut transaction = producers.begin().await.expect("a transaction begins");
                    publish(&mut transaction, &event).await.expect("raised");
                    transaction.commit().await.expect("committed");
                }
            });
            futures_util::future::join_all(each).await;
        }
    };
    let operating = async {
        for _ in 0..5 {
            hubs[0].cli_ok(&["outbox", "status"]).await;
            hubs[0].cli_ok(&["outbox", "list", "--limit", "5"]).await;
            hubs[0].cli_ok(&["outbox", "cleanup"]).await;
            hubs[0].cli_ok(&["outbox", "reconcile"]).await;
        }
    };
    tokio::join!(raising, operating);

    let store = database.store();
    wait_for(&store, "internal", Status::Published, EVENTS_RAISED).await;
    let arrived = stored(&broker, EVENTS, EVENTS_RAISED as u64).await;
    let ids: BTreeSet<&str> = arrived.iter().map(|message| message.id.as_str()).collect();
    assert_eq!((arrived.len(), ids.len()), (EVENTS_RAISED, EVENTS_RAISED), "each once");
    for hub in &mut hubs {
        let log = hub.log();
        assert!(!log.contains("producer outbox database failed"), "{log}");
        assert!(hub.terminate().await.success());
    }
}

/// With the defaults of PgBouncer, and with ignored startup parameters: the error names the setting, at once.
#[tokio::test]
async fn without_the_setting_the_error_names_it() {
    for lines in ["", "ignore_startup_parameters = extra_float_digits"] {
        let Some((database, _pooler, url)) = pooled(lines).await else { return };
        database.outbox(&[]).await;
        let broker = TestBroker::start().await;
        let mut hub = Hub::not_started(&broker.url(), &settings(&url));
        let output = hub.cli(&["outbox", "status"]).await;
        let shown = print_output(&output);
        assert!(
            !output.status.success() && shown.contains("outbox.pooler = \"transaction\""),
            "{lines}: {shown}"
        );
        assert!(!shown.contains(PASSWORD), "{shown}");
        // The relay ends instead of trying forever.
        hub = Hub::serve(&broker.url(), &settings(&url), &RELAY);
        assert!(!hub.ended(SOON).await.success());
        assert!(hub.log().contains("outbox.pooler"), "{}", hub.log());
    }
}

/// Accepts connections and never answers.
async fn silent() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

/// The error text and the remedy of each kind of failed connection.
#[tokio::test]
async fn a_database_that_cannot_be_reached_is_reported_with_its_cause() {
    assert!(CONNECT_LIMIT < Duration::from_secs(3));
    let Some(postgres) = TestPostgres::start().await else { return };
    let (_listener, mute) = silent().await;
    let good = postgres.url();
    let nobody = free_port();
    let database = good.rsplit('/').next().expect("a database").to_owned();
    for (url, cause, remedy) in [
        (postgres.url_at(nobody), "onnection refused", "start the database"),
        (postgres.url_at(mute), "no answer within 2.5s", "outbox.database_url"),
        (good.replace("127.0.0.1", "no-such-host.invalid"), "", "outbox.database_url"),
        (
            good.replace(PASSWORD, "wrong-secret"),
            "password authentication failed",
            "correct user and password",
        ),
        (good.replace(&database, "nope"), "database \"nope\" does not exist;", "create the database"),
        (format!("{good}?sslmode=require"), "TLS", "sslmode"),
    ] {
        let hub = Hub::not_started("nats://127.0.0.1:1", &settings(&url));
        let output = hub.cli(&["outbox", "status"]).await;
        let shown = print_output(&output);
        assert!(
            !output.status.success() && shown.contains(cause) && shown.contains(remedy),
            "{url}: {shown}"
        );
        for never in [PASSWORD, "wrong-secret", "at line", "pool timed out"] {
            assert!(!shown.contains(never), "{never}: {shown}");
        }
        let store = Store::new(StoreOptions::new(url.as_str().into())).expect("the URL is good");
        let error = store.check().await.expect_err("there is no such database");
        assert!(matches!(error, StoreError::Connect { .. }), "{error:?}");
    }
}

/// The database fails while no query runs, and the pool would hide the failure.
#[tokio::test]
async fn a_database_that_dies_under_an_idle_relay_is_reported_with_its_cause() {
    let Some(postgres) = TestPostgres::start_alone().await else { return };
    let broker = TestBroker::start().await;
    let url = postgres.url();
    let cli = Hub::not_started(&broker.url(), &settings(&url));
    cli.cli_ok(&["outbox", "setup"]).await;
    let mut hub = Hub::serve(&broker.url(), &settings(&url), &["--role", "outbox-relay"]);
    hub.ready().await;
    hub.wait_for_log("relay started", SOON).await;
    postgres.crash().await;
    // Refused, reset, or an error of the server, depending on the moment.
    let told = "producer outbox database failed";
    hub.wait_for_log(told, SOON).await;
    let log = hub.log();
    assert_eq!(log.matches(told).count(), 1, "logged once: {log}");
    assert!(!log.contains("raise outbox.connections"), "{log}");
    let ready = crate::support::http_client().get(hub.health_url("/readyz")).send().await.expect("answered");
    assert_eq!(ready.status(), 503);
    postgres.restart().await;
    hub.wait_for_log("producer outbox database answers again", SOON).await;
    hub.ready().await;
}

/// `hub serve` logs it, and continues when the database is available; the API reports it in its answer.
#[tokio::test]
async fn the_relay_and_the_api_report_the_cause() {
    let broker = TestBroker::start().await;
    let url = format!("postgres://hub:{PASSWORD}@127.0.0.1:{}/x", free_port());
    let settings = settings(&url).with(|settings| settings.api.anonymous = Some(true));
    let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "outbox-relay", "--role", "api"]);
    hub.wait_for_log("onnection refused", SOON).await;
    let answer = crate::support::eventually(SOON, "the API answers", async || {
        let response = crate::support::http_client().get(hub.api_url("/v1/outbox")).send().await;
        response.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(answer.status(), 503);
    let problem: serde_json::Value =
        serde_json::from_slice(&answer.bytes().await.expect("to the end")).expect("problem details");
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("onnection refused"), "{problem}");

    assert!(!hub.log().contains(PASSWORD));
    assert!(hub.terminate().await.success());
}
