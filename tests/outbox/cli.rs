//! `hub outbox` on PostgreSQL and on SQLite. It needs no NATS server.

use hub_outbox::GivenUp;
use integration_hub::domain::producer_outbox::Priority;
use serde_json::{Value, json};

use crate::support::outbox::{TestDatabase, claim, claim_of, event, positions};
use crate::support::relay::settings;
use crate::support::settings::{ExternalBroker, external};
use crate::support::{Hub, PASSWORD, TestSettings, free_port, print_output};

/// Without a NATS server, which `hub outbox` does not need.
fn hub(database: &TestDatabase, brokers: &[ExternalBroker]) -> Hub {
    let settings = settings(&database.url()).with_brokers(brokers.iter().cloned());
    Hub::not_started(&format!("nats://127.0.0.1:{}", free_port()), &settings)
}

fn partner() -> ExternalBroker {
    external("partner", "redis", "redis://127.0.0.1:6379")
}

/// Runs a command that must exit with `code`; returns standard output and standard error.
async fn ends_with(hub: &Hub, code: i32, args: &[&str]) -> (String, String) {
    let output = hub.cli(args).await;
    let shown = print_output(&output);
    assert_eq!(output.status.code(), Some(code), "`hub {}`: {shown}", args.join(" "));
    assert!(!shown.contains(PASSWORD), "{shown}");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (text(output.stdout), text(output.stderr))
}

async fn databases() -> Vec<TestDatabase> {
    let mut found: Vec<TestDatabase> = TestDatabase::postgres().await.into_iter().collect();
    found.extend(TestDatabase::sqlite().await);
    found
}

#[tokio::test]
async fn it_is_set_up_once_and_registers_the_brokers() {
    for database in databases().await {
        let before = hub(&database, &[]);
        let (_, error) = ends_with(&before, 1, &["outbox", "status"]).await;
        assert!(error.contains("hub outbox setup"), "{error}");
        let (told, _) = ends_with(&before, 0, &["outbox", "setup"]).await;
        assert!(
            told.contains("outbox schema created, version 2") && told.contains("external brokers: none"),
            "{told}"
        );

        let with_partner = hub(&database, &[partner()]);
        let made = with_partner.cli_json(&["outbox", "setup"]).await;
        assert_eq!(made["schema"], json!({"from": 2, "to": 2}));
        assert_eq!(made["brokers"]["added"], json!(["partner"]));
        // Without an entry in the settings, it is kept until `--prune`.
        let (_, warning) = ends_with(&before, 0, &["outbox", "setup"]).await;
        assert!(warning.contains("not configured: partner") && warning.contains("--prune"), "{warning}");
        // A broker for subscriptions only is not registered.
        let for_subscriptions = hub(&database, &[partner().with(|broker| broker.outbox = Some(false))]);
        let (told, warning) = ends_with(&for_subscriptions, 0, &["outbox", "setup"]).await;
        assert!(
            told.contains("external brokers: none") && warning.contains("not configured: partner"),
            "{told}"
        );
        let made = for_subscriptions.cli_json(&["outbox", "setup", "--prune"]).await;
        assert_eq!(made["brokers"]["removed"], json!(["partner"]));
    }
}

#[tokio::test]
async fn operators_look_retry_discard_and_tidy_up() {
    for database in databases().await {
        let hub = hub(&database, &[partner()]);
        hub.cli_ok(&["outbox", "setup"]).await;
        let (told, _) = ends_with(&hub, 0, &["outbox", "list"]).await;
        assert_eq!(told, "no rows\n");
        let (told, note) = ends_with(&hub, 0, &["outbox", "list", "--broker", "nope"]).await;
        assert_eq!(told, "no rows\n");
        assert!(
            note.contains("no target broker \"nope\" exists; the outbox has internal, partner"),
            "{note}"
        );
        for number in 0..4 {
            let mut event = event(&format!("e{number}"), "user-u1");
            event["published"] = json!(true);
            database.raise(&event).await.unwrap();
        }
        let store = database.store();
        let external = claim_of(&store, "partner", Priority::Live, "one", 2).await;
        let given_up = |row: &_| GivenUp { position: *row, reason: "the message is too large".to_owned() };
        let rows: Vec<GivenUp> = positions(&external).iter().map(given_up).collect();
        store.abandon("partner", "one", &rows).await.unwrap();
        let internal = claim(&store, "one", 1).await;
        store.mark_published("internal", "one", &positions(&internal)).await.unwrap();

        let status = hub.cli_json(&["outbox", "status"]).await;
        let counts = |broker: &Value| {
            ["pending", "processing", "failed", "published", "abandoned"]
                .map(|name| broker[name].as_u64().unwrap())
        };
        assert_eq!((&status[0]["broker"], counts(&status[0])), (&json!("internal"), [3, 0, 0, 1, 0]));
        assert_eq!((&status[1]["broker"], counts(&status[1])), (&json!("partner"), [2, 0, 0, 0, 2]));
        assert_eq!(status[1]["configured"], true);
        assert!(status[1]["oldest_open_at"].is_string());
        let (table, _) = ends_with(&hub, 0, &["outbox", "status"]).await;
        assert_eq!(table.lines().count(), 3, "{table}");

        let abandoned =
            hub.cli_json(&["outbox", "list", "--broker", "partner", "--status", "abandoned"]).await;
        assert_eq!(abandoned.as_array().unwrap().len(), 2);
        assert_eq!(abandoned[0]["message_id"], "e0");
        assert_eq!(abandoned[0]["last_error"], "the message is too large");
        assert_eq!((&abandoned[0]["status"], &abandoned[0]["lane"]), (&json!("abandoned"), &json!("live")));
        // Page by page.
        let (first, _) = ends_with(&hub, 0, &["outbox", "list", "--limit", "5"]).await;
        let cursor = first.lines().last().unwrap().strip_prefix("more: --after ").unwrap().to_owned();
        let (rest, _) = ends_with(&hub, 0, &["outbox", "list", "--after", &cursor]).await;
        assert_eq!((first.lines().count(), rest.lines().count()), (7, 4), "{first}{rest}");

        let (_, error) = ends_with(&hub, 2, &["outbox", "retry"]).await;
        assert!(error.contains("--all"), "{error}");
        let (_, error) = ends_with(&hub, 1, &["outbox", "retry", "e0", "nobody"]).await;
        assert!(error.contains("no row nobody"), "{error}");
        assert_eq!(hub.cli_json(&["outbox", "retry", "e0"]).await, json!({"retried": 1}));
        let (_, error) = ends_with(&hub, 1, &["outbox", "retry", "e0"]).await;
        assert!(error.contains("no failed or abandoned row matches"), "{error}");
        let (_, error) = ends_with(&hub, 2, &["outbox", "discard", "--broker", "partner"]).await;
        assert!(error.contains("--yes"), "{error}");
        let (told, _) = ends_with(&hub, 0, &["outbox", "discard", "--broker", "partner", "--yes"]).await;
        assert_eq!(told, "3 discarded\n");

        // No row is old enough to be deleted or to be missing.
        assert_eq!(hub.cli_json(&["outbox", "cleanup"]).await, json!({"deleted": 0}));
        assert_eq!(hub.cli_json(&["outbox", "reconcile"]).await, json!({"written": 0}));
        database.sql("DELETE FROM {messages} WHERE broker = 'partner' AND message_id = 'e2'").await.unwrap();
        assert_eq!(hub.cli_json(&["outbox", "reconcile"]).await, json!({"written": 1}));
        let kept = ["--set", "outbox.published_retention=1ms", "--set", "outbox.abandoned_retention=1ms"];
        let args = [&["outbox", "cleanup"], &kept[..]].concat();
        // Both rows of e0; the internal rows of the others are still open.
        assert_eq!(hub.cli_json(&args).await, json!({"deleted": 2}));
    }
}

#[tokio::test]
async fn unreachable_and_unreadable_databases_are_reported() {
    let hub = Hub::not_started(&format!("nats://127.0.0.1:{}", free_port()), &TestSettings::default());
    let (_, error) = ends_with(&hub, 1, &["outbox", "status"]).await;
    assert!(error.contains("outbox.database_url") && error.contains("--database-url"), "{error}");
    let nobody = format!("postgres://hub:{PASSWORD}@127.0.0.1:{}/x", free_port());
    let short = ["--set", "outbox.timeout=2s"];
    let args = [&["outbox", "status", "--database-url", &nobody], &short[..]].concat();
    let (_, error) = ends_with(&hub, 3, &args).await;
    assert!(error.contains("cannot be reached"), "{error}");
    let (_, error) = ends_with(&hub, 1, &["outbox", "setup", "--database-url", "mysql://h/x"]).await;
    assert!(error.contains("database URL: unknown scheme"), "{error}");
    let absent = hub.folder().join("absent.db");
    let url = format!("sqlite://{}", absent.display());
    let (_, error) = ends_with(&hub, 3, &["outbox", "status", "--database-url", &url]).await;
    assert!(error.contains("cannot be reached"), "{error}");
    assert!(!absent.exists(), "only setup makes a database");
    ends_with(&hub, 0, &["outbox", "setup", "--database-url", &url]).await;
    ends_with(&hub, 0, &["--set", &format!("outbox.database_url={url}"), "outbox", "status"]).await;
    let (shown, _) =
        ends_with(&hub, 0, &["--set", &format!("outbox.database_url={nobody}"), "config", "show"]).await;
    assert!(shown.contains("database_url = \"***\""), "{shown}");
}
