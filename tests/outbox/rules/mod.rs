//! One table of the rules of an event, checked against the SQL of both databases, the Rust function and the event
//! processor. An event is either accepted by all writers and delivered, or rejected by all, within the transaction.

mod cases;
mod generated;

use std::collections::BTreeSet;

use cases::Verdict::{Accepted, Refused};
use cases::{LARGEST, REFUSED_SOMEHOW, cases};
use generated::any_event;
use hub_outbox::publish;
use hub_outbox::{RowCursor, RowSelection, Store};
use integration_hub::domain::event::{Event, Publication};
use integration_hub::domain::producer_outbox::{CONTENT_TYPE, RaisedEvent};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use sqlx::Executor as _;

use crate::support::outbox::{TestDatabase, event, on_both};
use crate::support::relay::SOON;
use crate::support::{Hub, Receiver, TestBroker, TestClient, TestSettings, subscription};

on_both!(
    the_table_holds_for_every_writer,
    what_is_accepted_is_delivered,
    an_outbox_of_version_1_is_brought_to_this_one,
);

/// The results of both writers of a database, SQL and Rust: the text of the error, or the number of rows.
async fn written(database: &TestDatabase, event: &str) -> [Result<(), String>; 2] {
    let by_sql = match database {
        TestDatabase::Postgres { pool, .. } => {
            pool.execute(sqlx::query("SELECT hub_outbox.publish($1::jsonb)").bind(event)).await.map(drop)
        }
        TestDatabase::Sqlite { pool, .. } => {
            let insert = "INSERT INTO hub_outbox_publish (event) VALUES (?1)";
            pool.execute(sqlx::query(insert).bind(event)).await.map(drop)
        }
    };
    let by_rust = match RaisedEvent::from_json(event) {
        Err(error) => Err(error.to_string()),
        Ok(mut event) => {
            // The row by SQL already has the id.
            event.id = event
                .id
                .map(|id| if id.len() < 250 { format!("{id}-rs") } else { format!("-rs{}", &id[4..]) });
            let written = match database {
                TestDatabase::Postgres { pool, .. } => {
                    publish(&mut *pool.acquire().await.expect("a connection"), &event).await
                }
                TestDatabase::Sqlite { pool, .. } => {
                    publish(&mut *pool.acquire().await.expect("a connection"), &event).await
                }
            };
            written.map(drop).map_err(|error| error.to_string())
        }
    };
    [by_sql.map_err(|error| error.to_string()), by_rust]
}

/// Reads every row as the Event Processor does, and deletes it.
async fn read_all(database: &TestDatabase, store: &Store) -> Vec<Event> {
    let rows = store
        .list(&RowSelection::default(), &RowCursor::default(), 100_000)
        .await
        .expect("the rows are listed");
    let mut events = Vec::new();
    for row in rows {
        let payload = store.payload("internal", &row.message_id).await.expect("read").expect("it is there");
        let publication = Publication {
            subject_tail: &row.event_type,
            tenant_token: None,
            headers: &[("Nats-Msg-Id", &row.message_id), ("Content-Type", CONTENT_TYPE)],
            body: payload.as_bytes(),
            stream: "HUB_EVENTS",
            sequence: 1,
            time: time::OffsetDateTime::UNIX_EPOCH,
            max_size: LARGEST,
        };
        let event = publication.decode();
        events.push(event.unwrap_or_else(|rejection| {
            panic!("{rejection}: {}", payload.chars().take(2_000).collect::<String>())
        }));
    }
    database.sql("DELETE FROM {messages}").await.expect("the rows are deleted");
    events
}

fn shown(event: &str) -> String {
    event.chars().take(200).collect()
}

async fn the_table_holds_for_every_writer(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    for (event, verdict) in cases() {
        let written = written(database, &event).await;
        for (by, written) in ["SQL", "Rust"].iter().zip(&written) {
            match (verdict, written) {
                (Accepted, Ok(())) => {}
                (Refused(field), Err(error)) => {
                    // PostgreSQL rejects some texts as invalid jsonb before it knows the field.
                    let unread = matches!(database, TestDatabase::Postgres { .. })
                        && ["unsupported Unicode escape", "invalid input syntax for type json"]
                            .iter()
                            .any(|text| error.contains(text));
                    assert!(
                        error.contains(field) || (unread && *by == "SQL"),
                        "{by}, {}: {error}",
                        shown(&event)
                    );
                }
                (verdict, written) => panic!("{by}, {}: {written:?} is not {verdict:?}", shown(&event)),
            }
        }
        let events = read_all(database, &store).await;
        assert_eq!(events.len(), if verdict == Accepted { 2 } else { 0 }, "{}", shown(&event));
        if let [by_sql, by_rust] = &events[..] {
            let attributes = |event: &Event| {
                let mut attributes: Value =
                    serde_json::from_str(event.to_cloudevent().get()).expect("it is JSON");
                // Each has its own id; the time is the current time if none is set; PostgreSQL's JSON has spaces.
                for own in ["id", "time", "data"] {
                    attributes.as_object_mut().expect("an object").remove(own);
                }
                attributes
            };
            assert_eq!(attributes(by_sql), attributes(by_rust), "{}", shown(&event));
        }
    }
    for event in REFUSED_SOMEHOW {
        for written in written(database, event).await {
            written.expect_err(event);
        }
        assert!(read_all(database, &store).await.is_empty(), "{event}");
    }
}

/// End to end: every accepted case reaches a subscriber, and nothing is abandoned or rejected.
async fn what_is_accepted_is_delivered(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let accepted = cases().into_iter().filter(|(_, verdict)| *verdict == Accepted);
    let mut tenants = BTreeSet::from(["default".to_owned()]);
    for (event, _) in accepted {
        // Keys without a domain are not part of this test.
        let event = event.replace("\"a.b.c-d_E.0\"", "\"user.c-d_E.0\"");
        let read: Value = serde_json::from_str(&event).unwrap_or_default();
        tenants.extend(read["tenant"].as_str().map(str::to_owned));
        let [by_sql, _] = written(database, &event).await;
        by_sql.unwrap_or_else(|error| panic!("{}: {error}", shown(&event)));
    }
    let raised =
        store.list(&RowSelection::default(), &RowCursor::default(), 100_000).await.expect("listed").len();
    let (broker, receiver) = (TestBroker::start().await, Receiver::start().await);
    // The subscriptions exist before the relay starts.
    Hub::not_started(&broker.url(), &TestSettings::quick()).cli_ok(&["provision"]).await;
    let client = TestClient::connect(&broker.url()).await;
    let wanted = tenants.iter().map(|tenant| {
        let mut wanted = subscription("all", &["user.>"], &receiver.url("/all"));
        wanted["tenant"] = tenant.as_str().into();
        wanted
    });
    client.subscribe(wanted).await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick().with_outbox(&database.url()), &[]);
    hub.ready().await;
    receiver.wait_for("/all", raised, SOON).await;
    broker.nothing_pending_within(SOON).await;
    let status = store.status().await.expect("counted");
    assert_eq!((status[0].published, status[0].abandoned), (raised as u64, 0));
    assert_eq!(receiver.count("/all"), raised);
    assert!(hub.terminate().await.success());
}

/// A database of version 1, with a row that the current rules reject.
async fn an_outbox_of_version_1_is_brought_to_this_one(database: &TestDatabase) {
    let (schema, before) = match database {
        TestDatabase::Postgres { .. } => (
            "CREATE SCHEMA hub_outbox; CREATE TABLE hub_outbox.migrations (
                 version bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT clock_timestamp());
             INSERT INTO hub_outbox.migrations (version) VALUES (1);",
            include_str!("../../../crates/outbox/src/postgres/0001_outbox.sql"),
        ),
        TestDatabase::Sqlite { .. } => (
            "CREATE TABLE hub_outbox_migrations (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
             INSERT INTO hub_outbox_migrations (version) VALUES (1);",
            include_str!("../../../crates/outbox/src/sqlite/0001_outbox.sql"),
        ),
    };
    database.sql(schema).await.expect("version 1 is written down");
    database.sql(before).await.expect("version 1 is made");
    let mut old = event(" e1 ", "user-u1");
    database.raise(&old).await.expect("version 1 accepts it");
    let store = database.store();
    let error = store.check().await.expect_err("it is outdated").to_string();
    assert!(error.contains("schema version 1") && error.contains("hub outbox setup"), "{error}");

    let done = store.setup().await.expect("it is brought up");
    assert_eq!((done.from, done.to), (1, 2));
    assert_eq!(store.setup().await.expect("once more").from, 2);
    store.check().await.expect("it is of this version");
    let rows = store.list(&RowSelection::default(), &RowCursor::default(), 10).await.expect("listed");
    assert_eq!((rows.len(), rows[0].message_id.as_str()), (1, " e1 "), "the raised row is kept");
    let error = database.raise(&old).await.expect_err("a rule of today").to_string();
    assert!(error.contains("id"), "{error}");
    old["id"] = json!("e2");
    database.raise(&old).await.expect("a good one is taken");
}

/// `events.max_size` of the relay that started last, or of `hub outbox setup`.
#[tokio::test]
async fn the_database_applies_the_limit_that_it_was_given() {
    for database in [TestDatabase::postgres().await, TestDatabase::sqlite().await].into_iter().flatten() {
        let store = database.outbox(&[]).await;
        let raise = async |bytes: usize| {
            database.raise(&json!({"type": "a.b", "stream": "s", "data": "x".repeat(bytes)})).await
        };
        raise(5_000).await.expect("the default is larger");
        store.limit_events(4_000).await.expect("stored");
        let error = raise(5_000).await.expect_err("too large").to_string();
        assert!(error.contains("data") && error.contains("events.max_size"), "{error}");
        raise(1_000).await.expect("it fits");
        store.limit_events(8_000_000).await.expect("stored");
        raise(5_000_000).await.expect("it fits now");
    }
}

/// Generated events: the writers agree, and the Event Processor reads what they write. `HUB_TEST_SEED` repeats a run.
#[tokio::test]
async fn the_writers_agree_on_generated_events() {
    const EVENTS: usize = 1_500;
    let seed =
        std::env::var("HUB_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("HUB_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let databases: Vec<TestDatabase> =
        [TestDatabase::postgres().await, TestDatabase::sqlite().await].into_iter().flatten().collect();
    let mut stores = Vec::new();
    for database in &databases {
        stores.push(database.outbox(&[]).await);
    }
    let mut accepted = 0;
    for number in 0..EVENTS {
        let event = any_event(&mut random);
        let by_rust = RaisedEvent::from_json(&event);
        accepted += usize::from(by_rust.is_ok());
        for (database, store) in databases.iter().zip(&stores) {
            let [by_sql, published] = written(database, &event).await;
            for written in [&by_sql, &published] {
                assert_eq!(
                    written.is_ok(),
                    by_rust.is_ok(),
                    "seed {seed}, event {number}: {event}\nRust: {by_rust:?}\n{}: {by_sql:?}, {published:?}",
                    if matches!(database, TestDatabase::Postgres { .. }) { "PostgreSQL" } else { "SQLite" }
                );
            }
            // This also permits an id to be used again.
            if by_rust.is_ok() {
                assert_eq!(read_all(database, store).await.len(), 2, "seed {seed}, event {number}");
            }
        }
    }
    assert!(
        (EVENTS / 10..EVENTS * 9 / 10).contains(&accepted),
        "seed {seed}: {accepted} of {EVENTS} are accepted"
    );
}
