//! The producer outbox over HTTP, on PostgreSQL and on SQLite, and the operations that the API and the command
//! line share.

use std::time::Duration;

use hub_outbox::{GivenUp, Store, StoreOptions};
use integration_hub::domain::producer_outbox::{Priority, Status};
use integration_hub::management::ManagementError;
use integration_hub::management::producer_outbox::{BatchRun, ProducerOutbox, RowCursor, RowSelection};
use integration_hub::settings::Settings;
use serde_json::{Value, json};

use crate::support::outbox::{claim, claim_of, event, positions};
use crate::support::relay::{SOON, own_postgres, public, raise, rows, settings, stored, through, wait_for};
use crate::support::{
    ApiClient, FaultProxy, Hub, PASSWORD, TestBroker, TestDatabase, TestSettings, eventually, free_port,
};

const ALL: &str = "read,operate";
const API: [&str; 2] = ["--role", "api"];
/// Method, path and scope.
const PATHS: [(&str, &str, &str); 9] = [
    ("GET", "/v1/outbox", "read"),
    ("GET", "/v1/outbox/messages", "read"),
    ("GET", "/v1/outbox/messages/internal/e0", "read"),
    ("POST", "/v1/outbox/messages/internal/e0/retry", "operate"),
    ("POST", "/v1/outbox/messages/internal/e0/discard", "operate"),
    ("POST", "/v1/outbox/retry", "operate"),
    ("POST", "/v1/outbox/discard", "operate"),
    ("POST", "/v1/outbox/cleanup", "operate"),
    ("POST", "/v1/outbox/reconcile", "operate"),
];

async fn serve(broker: &TestBroker, settings: &TestSettings, args: &[&str]) -> Hub {
    let mut hub = Hub::serve(&broker.url(), settings, args);
    hub.ready().await;
    hub
}

async fn databases() -> Vec<TestDatabase> {
    let mut found: Vec<TestDatabase> = TestDatabase::postgres().await.into_iter().collect();
    found.extend(TestDatabase::sqlite().await);
    found
}

/// Calls a path of [`PATHS`], with a body if it needs one.
async fn ask(api: &ApiClient, method: &str, path: &str) -> crate::support::ApiAnswer {
    match path.rsplit_once('/') {
        Some(("/v1/outbox", "retry" | "discard")) => api.post(path, &json!({"all": true})).await,
        _ => api.send(method, path, &[], None).await,
    }
}

/// `<broker>/<id>` of a page.
fn named(page: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let messages = page["messages"].as_array().expect("a list");
    messages.iter().map(|row| format!("{}/{}", text(&row["broker"]), text(&row["message_id"]))).collect()
}

async fn list(api: &ApiClient, query: &str) -> String {
    named(&api.get(&format!("/v1/outbox/messages?{query}")).await.expect(200)).join(" ")
}

/// Abandons `count` rows of a broker.
async fn abandon(store: &Store, broker: &str, count: usize) {
    let claimed = claim_of(store, broker, Priority::Live, "one", count).await;
    assert_eq!(claimed.len(), count, "rows of {broker} are claimed");
    let given_up = |position: &i64| GivenUp { position: *position, reason: "it is too large".to_owned() };
    let given_up: Vec<GivenUp> = positions(&claimed).iter().map(given_up).collect();
    store.abandon(broker, "one", &given_up).await.expect("they are abandoned");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_counted_listed_read_and_ordered_one_by_one_and_many_at_once() {
    for database in databases().await {
        let broker = TestBroker::start().await;
        let store = database.outbox(&["partner"]).await;
        for number in 0..4 {
            database.raise(&public(&format!("e{number}"), "user-u1")).await.expect("it is raised");
        }
        database.raise(&event("with / and ?", "other one")).await.expect("it is raised");
        abandon(&store, "partner", 2).await;
        let internal = claim(&store, "one", 1).await;
        store.mark_published("internal", "one", &positions(&internal)).await.expect("it is marked");
        let hub = serve(&broker, &settings(&database.url()), &API).await;
        let api = ApiClient::with_scopes(&hub, "ops", ALL, None).await;

        let status = api.get("/v1/outbox").await.expect(200);
        let counts = |of: &Value| {
            ["pending", "processing", "failed", "published", "abandoned"].map(|name| of[name].as_u64())
        };
        let (first, second) = (&status["brokers"][0], &status["brokers"][1]);
        assert_eq!((&first["broker"], &second["broker"]), (&json!("internal"), &json!("partner")));
        assert_eq!(counts(first), [4, 0, 0, 1, 0].map(Some));
        assert_eq!(counts(second), [2, 0, 0, 0, 2].map(Some));
        assert!(second["oldest_open_at"].is_string() && second["configured"] == true, "{status}");

        // By each filter, and by all of them together.
        let others =
            "internal/e1 partner/e1 internal/e2 partner/e2 internal/e3 partner/e3 internal/with / and ?";
        assert_eq!(list(&api, "").await, format!("internal/e0 partner/e0 {others}"));
        assert_eq!(list(&api, "broker=partner").await, "partner/e0 partner/e1 partner/e2 partner/e3");
        assert_eq!(list(&api, "status=abandoned,published").await, "internal/e0 partner/e0 partner/e1");
        assert_eq!(list(&api, "status=abandoned&status=published&broker=internal").await, "internal/e0");
        assert_eq!(list(&api, "stream=other%20one").await, "internal/with / and ?");
        assert_eq!(list(&api, "event_key=user.deleted").await, "");
        assert_eq!(
            list(&api, "broker=partner&status=abandoned&stream=user-u1&event_key=user.created").await,
            "partner/e0 partner/e1"
        );
        // Page by page, also if other rows are in between.
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = api.get(&format!("/v1/outbox/messages?limit=4{after}")).await.expect(200);
            seen.extend(named(&page));
            let Some(next) = page["next"].as_str() else { break };
            assert_eq!(named(&page).len(), 4);
            after = format!("&after={next}");
        }
        assert_eq!(seen.join(" "), format!("internal/e0 partner/e0 {others}"));
        for (query, field) in [
            ("limit=0", "limit"),
            ("limit=x", "limit"),
            ("after=120", "after"),
            ("status=lost", "status"),
            ("event_key=no%20key", "event_key"),
            ("broker=a&broker=b", "broker"),
            ("broker=No%20one", "broker"),
            ("stream=a%00b", "stream"),
            ("tenant=acme", "tenant"),
        ] {
            api.get(&format!("/v1/outbox/messages?{query}")).await.expect_field(400, field);
        }

        let row = api.get("/v1/outbox/messages/partner/e0").await.expect(200);
        assert_eq!((&row["status"], &row["attempts"]), (&json!("abandoned"), &json!(1)), "{row}");
        assert_eq!((&row["last_error"], &row["lane"]), (&json!("it is too large"), &json!("live")));
        assert_eq!(row["payload"]["metadata"]["headers"]["id"], "e0", "{row}");
        assert!(row["payload"]["metadata"].get("event_store").is_none(), "that of an external broker: {row}");
        let odd = "/v1/outbox/messages/internal/with%20%2F%20and%20%3F";
        assert_eq!(api.get(odd).await.expect(200)["payload"]["metadata"]["headers"]["id"], "with / and ?");
        for path in ["partner/nobody", "nobody/e0"] {
            let path = format!("/v1/outbox/messages/{path}");
            api.get(&path).await.expect(404);
            api.send("POST", &format!("{path}/retry"), &[], None).await.expect(404);
            api.send("POST", &format!("{path}/discard"), &[], None).await.expect(404);
        }
        api.get("/v1/outbox/messages/internal/a%00b").await.expect_field(400, "id");

        // One at a time.
        let post = async |path: &str| api.send("POST", &format!("/v1/outbox{path}"), &[], None).await;
        let retried = post("/messages/partner/e0/retry").await.expect(200);
        assert_eq!((&retried["status"], &retried["attempts"]), (&json!("pending"), &json!(0)), "{retried}");
        let refused = post("/messages/partner/e0/retry").await.expect(409);
        assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("is pending")), "{refused}");
        let discarded = post("/messages/internal/e3/discard").await.expect(200);
        assert_eq!(discarded["status"], "abandoned", "{discarded}");
        assert!(discarded["last_error"].as_str().is_some_and(|error| error.contains("operator")));
        post("/messages/internal/e3/discard").await.expect(409);
        post("/messages/internal/e0/retry").await.expect(409);

        // Many at once: a selection is required.
        let order = async |kind: &str, body: Value| api.post(&format!("/v1/outbox/{kind}"), &body).await;
        order("retry", json!({})).await.expect_field(400, "body");
        order("retry", json!({"after": "1:internal"})).await.expect_field(400, "body");
        order("discard", json!({"all": true, "broker": "partner"})).await.expect_field(400, "all");
        order("discard", json!({"brokers": "partner"})).await.expect_field(400, "brokers");
        order("discard", json!({"status": ["lost"]})).await.expect_field(400, "status[0]");
        order("discard", json!({"event_key": "no key"})).await.expect_field(400, "event_key");
        order("discard", json!({"all": true, "after": "x"})).await.expect_field(400, "after");
        order("discard", json!({"ids": vec!["x"; 1_001]})).await.expect_field(400, "ids");
        order("discard", json!({"ids": ["a\0b"]})).await.expect_field(400, "id");
        let missing = order("retry", json!({"ids": ["e1", "nobody"]})).await.expect(404);
        assert!(missing["detail"].as_str().is_some_and(|text| text.contains("nobody")), "{missing}");
        assert_eq!(
            order("retry", json!({"ids": ["e1", "nobody"], "after": "1000000:"})).await.expect(200),
            json!({"retried": 0, "next": null}),
            "continuing with rows that are deleted"
        );
        assert_eq!(
            order("retry", json!({"ids": ["e1"], "broker": "partner"})).await.expect(200),
            json!({"retried": 1, "next": null})
        );
        assert_eq!(
            order("retry", json!({"status": ["abandoned"]})).await.expect(200),
            json!({"retried": 1, "next": null}),
            "the discarded rows"
        );
        assert_eq!(
            order("retry", json!({"all": true})).await.expect(200),
            json!({"retried": 0, "next": null})
        );
        assert_eq!(
            order("discard", json!({"broker": "partner", "stream": "user-u1"})).await.expect(200),
            json!({"discarded": 4, "next": null})
        );
        assert_eq!(
            order("discard", json!({"all": true})).await.expect(200),
            json!({"discarded": 4, "next": null})
        );
        assert_eq!(list(&api, "status=pending,failed").await, "");

        // The upkeep.
        assert_eq!(
            post("/cleanup").await.expect(200),
            json!({"deleted": 0, "more": false}),
            "no row is old enough"
        );
        assert_eq!(post("/reconcile").await.expect(200), json!({"written": 0, "next": null}));
        database
            .sql("DELETE FROM {messages} WHERE broker = 'partner' AND message_id = 'e2'")
            .await
            .expect("deleted");
        assert_eq!(
            order("reconcile", json!({"after": "1000000:"})).await.expect(200),
            json!({"written": 0, "next": null}),
            "the cursor is behind all rows"
        );
        order("reconcile", json!({"after": 3})).await.expect_field(400, "after");
        assert_eq!(post("/reconcile").await.expect(200), json!({"written": 1, "next": null}));
        assert_eq!(list(&api, "status=pending").await, "partner/e2");
        let days = match &database {
            TestDatabase::Postgres { .. } => "settled_at - interval '40 days'",
            TestDatabase::Sqlite { .. } => "settled_at - 40 * 86400000",
        };
        database
            .sql(&format!("UPDATE {{messages}} SET settled_at = {days} WHERE settled_at IS NOT NULL"))
            .await
            .expect("they grow old");
        assert_eq!(post("/cleanup").await.expect(200), json!({"deleted": 8, "more": false}));
        assert_eq!(list(&api, "").await, "partner/e2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_path_asks_for_its_scope_and_for_a_token_of_the_whole_hub() {
    let database = TestDatabase::sqlite().await.expect("SQLite is always there");
    database.outbox(&[]).await;
    database.raise(&event("e0", "s")).await.expect("it is raised");
    let broker = TestBroker::start().await;
    let hub = serve(&broker, &settings(&database.url()), &API).await;
    let reader = ApiClient::with_scopes(&hub, "reader", "read", None).await;
    let operator = ApiClient::with_scopes(&hub, "operator", "operate", None).await;
    let acme = ApiClient::with_scopes(&hub, "acme", ALL, Some("acme")).await;
    let nobody = ApiClient::with_token(&hub, None);
    for (method, path, scope) in PATHS {
        let (with, without) = if scope == "read" { (&reader, &operator) } else { (&operator, &reader) };
        ask(&nobody, method, path).await.expect(401);
        let refused = ask(without, method, path).await.expect(403);
        assert!(refused["detail"].as_str().is_some_and(|text| text.contains(scope)), "{refused}");
        let refused = ask(&acme, method, path).await.expect(403);
        assert!(refused["detail"].as_str().is_some_and(|text| text.contains("\"acme\"")), "{refused}");
        let status = ask(with, method, path).await.status;
        // The row is pending: there is nothing to retry of it.
        assert_eq!(status, if path.ends_with("e0/retry") { 409 } else { 200 }, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_outbox_each_path_names_the_setting() {
    let broker = TestBroker::start().await;
    let none = serve(&broker, &TestSettings::default(), &API).await;
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("app.db");
    std::fs::File::create(&file).expect("an empty database");
    let not_set_up = serve(&broker, &settings(&format!("sqlite://{}", file.display())), &API).await;
    let ops = ApiClient::with_scopes(&none, "ops", ALL, None).await;
    for (hub, remedy) in [(none, "HUB__OUTBOX__DATABASE_URL"), (not_set_up, "hub outbox setup")] {
        let api = ApiClient::with_token(&hub, Some(ops.token()));
        for (method, path, _) in PATHS {
            let problem = ask(&api, method, path).await.expect(409);
            assert_eq!(problem["type"], "urn:integration-hub:problem:not-configured", "{problem}");
            let detail = problem["detail"].as_str().unwrap_or_default();
            assert!(detail.contains(remedy), "{method} {path}: {detail}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unavailable_database_is_reported_and_retried() {
    let Some(database) = TestDatabase::postgres().await else { return };
    database.outbox(&[]).await;
    let broker = TestBroker::start().await;
    let TestDatabase::Postgres { server, .. } = &database else { unreachable!("it is PostgreSQL") };
    let proxy = FaultProxy::start(&format!("127.0.0.1:{}", server.port())).await;
    let hub = serve(&broker, &settings(&through(&database, proxy.address().port())), &API).await;
    let api = ApiClient::with_scopes(&hub, "ops", ALL, None).await;
    api.get("/v1/outbox").await.expect(200);

    let away = async |what: &str| {
        // More than are served at once; each is answered within the client's own timeout.
        let asked = (0..6).map(|_| api.get("/v1/outbox"));
        for answer in futures_util::future::join_all(asked).await {
            let problem = answer.expect(503);
            assert_eq!(problem["type"], "urn:integration-hub:problem:unavailable");
            assert!(answer.header("retry-after").parse::<u32>().is_ok(), "{:?}", answer.headers);
            assert!(!answer.text.contains(PASSWORD), "{what}: {}", answer.text);
        }
        for (method, path, _) in [PATHS[2], PATHS[6]] {
            ask(&api, method, path).await.expect(503);
        }
    };
    proxy.freeze();
    away("it hangs").await;
    proxy.set_refusing(true);
    proxy.cut();
    away("it refuses").await;
    proxy.set_refusing(false);
    proxy.thaw();
    eventually(SOON, "the database answers again", async || match api.get("/v1/outbox").await {
        answer if answer.status == 200 => Ok(()),
        answer => Err(answer.text),
    })
    .await;
    assert!(!hub.log().contains(PASSWORD));
    assert!(!hub.log().contains(" ERROR "), "it is not a fault of the hub: {}", hub.log());

    let nobody = format!("postgres://hub:{PASSWORD}@127.0.0.1:{}/x", free_port());
    let hub = serve(&broker, &settings(&nobody), &API).await;
    let api = ApiClient::with_scopes(&hub, "ops2", ALL, None).await;
    let answer = api.get("/v1/outbox/messages").await;
    answer.expect(503);
    assert!(!answer.text.contains(PASSWORD) && !hub.log().contains(PASSWORD), "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_sends_retried_rows_and_stops_cleanly() {
    for database in databases().await {
        let store = database.outbox(&[]).await;
        raise(&database, &[event("e0", "s"), event("e1", "s")]).await;
        abandon(&store, "internal", 2).await;
        let broker = TestBroker::start().await;
        let roles = ["--role", "api", "--role", "outbox-relay"];
        let mut hub = serve(&broker, &settings(&database.url()), &roles).await;
        let api = ApiClient::with_scopes(&hub, "ops", ALL, None).await;
        let retried = api.post("/v1/outbox/retry", &json!({"broker": "internal"})).await.expect(200);
        assert_eq!(retried, json!({"retried": 2, "next": null}));
        wait_for(&store, "internal", Status::Published, 2).await;
        let arrived = stored(&broker, "HUB_EVENTS", 2).await;
        assert_eq!(arrived.iter().map(|message| message.id.as_str()).collect::<Vec<_>>(), ["e0", "e1"]);
        let status = api.get("/v1/outbox").await.expect(200);
        assert_eq!(status["brokers"][0]["published"], 2, "{status}");
        assert!(hub.terminate().await.success());
    }
}

/// With the default settings.
fn operated(store: Store) -> ProducerOutbox {
    ProducerOutbox::new(store, &Settings::defaults())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_change_that_reaches_its_time_limit_returns_a_cursor() {
    const ROWS: usize = 2_500;
    for database in databases().await {
        let outbox = operated(database.outbox(&["partner"]).await);
        let events: Vec<Value> = (0..ROWS).map(|number| public(&format!("e{number:04}"), "s")).collect();
        raise(&database, &events).await;
        let all = RowSelection::default();
        let begin = RowCursor::default;
        // No time at all: one batch.
        let done = outbox.discard(&all, BatchRun::limited(Duration::ZERO, begin())).await.expect("done");
        assert_eq!(done.rows, 1_000);
        let next = done.next.expect("there are more");
        let reread: RowCursor = next.to_string().parse().expect("it is read as it is written");
        assert_eq!(reread, next);
        let done =
            outbox.discard(&all, BatchRun::limited(Duration::from_secs(600), next)).await.expect("done");
        assert_eq!((done.rows, done.next), (4_000, None));

        // Each row once, even if it changes in between.
        let (mut after, mut batches) = (Some(begin()), Vec::new());
        while let Some(cursor) = after {
            let done = outbox.retry(&all, BatchRun::limited(Duration::ZERO, cursor)).await.expect("done");
            let store = database.store();
            abandon(&store, "internal", usize::from(batches.is_empty())).await;
            batches.push(done.rows);
            after = done.next;
        }
        assert_eq!(batches, [1_000, 1_000, 1_000, 1_000, 1_000, 0]);
        let again =
            outbox.retry(&all, BatchRun::limited(Duration::from_secs(600), begin())).await.expect("done");
        assert_eq!(again.rows, 1, "the row that was abandoned meanwhile");

        database.sql("DELETE FROM {messages} WHERE broker = 'partner'").await.expect("deleted");
        let mut written = Vec::new();
        let mut after = Some(begin());
        while let Some(cursor) = after {
            let done = outbox.reconcile(BatchRun::limited(Duration::ZERO, cursor)).await.expect("done");
            written.push(done.rows);
            after = done.next;
        }
        assert_eq!(written.iter().sum::<u64>(), ROWS as u64, "{written:?}");
        assert!(written.len() >= 3 && written.iter().all(|rows| *rows <= 1_000), "{written:?}");
        assert_eq!(rows(&database.store(), "partner").await.len(), ROWS);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_change_that_loses_the_database_reports_its_progress() {
    let Some(database) = own_postgres().await else { return };
    database.outbox(&[]).await;
    let events: Vec<Value> = (0..1_500).map(|number| event(&format!("e{number:04}"), "s")).collect();
    raise(&database, &events).await;
    let TestDatabase::Postgres { server, .. } = &database else { unreachable!("it is PostgreSQL") };
    let proxy = FaultProxy::start(&format!("127.0.0.1:{}", server.port())).await;
    let mut options = StoreOptions::new(through(&database, proxy.address().port()).into());
    options.timeout = Duration::from_secs(2);
    let outbox = operated(Store::new(options).expect("the URL is good"));
    let lost = move |rows| {
        assert_eq!(rows, 1_000, "one batch is done");
        proxy.set_refusing(true);
        proxy.cut();
    };
    let error = outbox
        .discard(&RowSelection::default(), BatchRun::unlimited(lost))
        .await
        .expect_err("it is unavailable");
    assert!(error.is_passing(), "{error}");
    assert!(matches!(error, ManagementError::RowsPartlyChanged { done: 1_000, .. }), "{error}");
    assert!(error.to_string().contains("after 1000 rows were discarded"), "{error}");
    assert!(!error.to_string().contains(PASSWORD), "{error}");
}
