//! Raising events from any language: results and errors of the SQL function of PostgreSQL and the view of SQLite.

use hub_outbox::RaiseError;
use hub_outbox::{RowCursor, RowSelection, StoreError};
use integration_hub::domain::event::Publication;
use integration_hub::domain::producer_outbox::{CONTENT_TYPE, RaisedEvent};
use serde_json::{Value, json};

use crate::support::TestPostgres;
use crate::support::outbox::{TestDatabase, claim, event, ids};

/// SQLite rounds times to milliseconds.
const PRECISION: std::time::Duration = std::time::Duration::from_millis(1);
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

async fn databases(brokers: &[&str]) -> Vec<TestDatabase> {
    let mut found: Vec<TestDatabase> = TestDatabase::postgres().await.into_iter().collect();
    found.extend(TestDatabase::sqlite().await);
    for database in &found {
        database.outbox(brokers).await;
    }
    found
}

/// Every field that an event may have.
fn whole() -> Value {
    json!({
        "id": "e-1", "type": "user.created", "source": "idp", "time": "2026-01-31T12:00:00.5+02:00",
        "tenant": "acme", "stream": "user-u1", "data": {"name": "Ünïcode ☃", "list": [1, 2.5, null, {"a": true}]},
        "published": true, "priority": "bulk", "traceparent": TRACE, "correlation_id": "c-1", "causation_id": "k-1",
        "version": 3, "fqn": "idp.UserCreated", "kind": "EVENT", "sequence_id": 17, "origin_stream": "user-o1",
        "stream_category": "user", "expected_version": 16, "asynchronous": false,
        "event_store": {"position": 16, "global_position": 99}, "extensions": {"region": "eu", "partner_tier": 1},
    })
}

/// The complete envelopes of an event with all fields, kept and stripped.
#[tokio::test]
async fn the_full_and_the_stripped_envelope() {
    for database in databases(&["partner"]).await {
        database.raise(&whole()).await.unwrap();
        let headers = json!({
            "id": "e-1", "type": "user.created", "time": "2026-01-31T12:00:00.5+02:00", "stream": "user-u1",
            "traceparent": {
                "trace_id": "0af7651916cd43dd8448eb211c80319c", "parent_id": "b7ad6b7169203331", "sampled": true,
            },
        });
        let extensions = json!({"region": "eu", "partner_tier": 1, "source": "idp", "tenant": "acme"});
        let mut full = database.envelope("internal", "e-1").await.unwrap();
        if matches!(database, TestDatabase::Postgres { .. }) {
            // SHA-256, in hexadecimal digits, of the data in the envelope.
            let checksum = full["metadata"]["envelope"]["checksum"].take();
            assert_eq!(checksum.as_str().unwrap().len(), 64);
        }
        assert_eq!(
            full,
            json!({
                "data": whole()["data"],
                "metadata": {
                    "headers": headers,
                    "domain": {
                        "fqn": "idp.UserCreated", "kind": "EVENT", "version": 3, "sequence_id": "17",
                        "correlation_id": "c-1", "causation_id": "k-1", "origin_stream": "user-o1",
                        "stream_category": "user", "expected_version": 16, "asynchronous": false, "priority": -100,
                        "published": true,
                    },
                    "event_store": {"position": 16, "global_position": 99},
                    "envelope": {"specversion": "1.0", "checksum": null},
                    "extensions": extensions,
                },
            })
        );
        let stripped = database.envelope("partner", "e-1").await.unwrap();
        assert_eq!(
            stripped,
            json!({
                "data": whole()["data"],
                "metadata": {
                    "headers": headers,
                    "domain": {
                        "fqn": "idp.UserCreated", "kind": "EVENT", "version": 3, "sequence_id": "17",
                        "correlation_id": "c-1", "causation_id": "k-1", "origin_stream": "user-o1",
                        "stream_category": "user",
                    },
                    "envelope": {"specversion": "1.0"},
                    "extensions": extensions,
                },
            })
        );
    }
}

#[tokio::test]
async fn what_is_not_given_has_a_default() {
    for database in databases(&["partner"]).await {
        let bare =
            json!({"type": "user.created", "stream": "user-u1", "data": "text", "id": "e-2", "time": null});
        let before = time::OffsetDateTime::now_utc();
        database.raise(&bare).await.unwrap();
        let after = time::OffsetDateTime::now_utc();
        let mut full = database.envelope("internal", "e-2").await.unwrap();
        let time = full["metadata"]["headers"]["time"].take();
        let time = time::OffsetDateTime::parse(
            time.as_str().unwrap(),
            &time::format_description::well_known::Rfc3339,
        );
        let time = time.expect("RFC 3339");
        let is_now = before - PRECISION <= time && time <= after + PRECISION;
        assert!(is_now, "{time} is not from {before} to {after}");
        full["metadata"]["envelope"]["checksum"].take();
        assert_eq!(
            full,
            json!({
                "data": "text",
                "metadata": {
                    "headers": {"id": "e-2", "type": "user.created", "time": null, "stream": "user-u1", "traceparent": null},
                    "domain": {
                        "fqn": null, "kind": "EVENT", "version": 1, "sequence_id": null, "correlation_id": null,
                        "causation_id": null, "origin_stream": null, "stream_category": null, "expected_version": null,
                        "asynchronous": true, "priority": 0, "published": false,
                    },
                    "event_store": null,
                    "envelope": {"specversion": "1.0", "checksum": null},
                    "extensions": {},
                },
            })
        );
        assert_eq!(database.envelope("partner", "e-2").await, None, "it is not published");
        // An event without an id gets one of its own.
        for _ in 0..3 {
            let event = json!({"type": "user.created", "stream": "x", "data": null, "published": true});
            database.raise(&event).await.unwrap();
        }
        let selection = RowSelection { stream: Some("x".to_owned()), ..RowSelection::default() };
        let rows = database.store().list(&selection, &RowCursor::default(), 100).await.unwrap();
        let ids: std::collections::BTreeSet<_> = rows.iter().map(|row| &row.message_id).collect();
        assert_eq!((rows.len(), ids.len()), (6, 3));
        assert!(ids.iter().all(|id| id.len() >= 32), "{ids:?}");
    }
}

/// The hub reads the written rows: the CloudEvent for subscribers has no internal fields.
#[tokio::test]
async fn the_event_processor_reads_the_full_envelope() {
    for database in databases(&["partner"]).await {
        database.raise(&whole()).await.unwrap();
        let payload = database.store().payload("internal", "e-1").await.unwrap().unwrap();
        let event = Publication {
            subject_tail: "user.created",
            tenant_token: None,
            headers: &[("Nats-Msg-Id", "e-1"), ("Content-Type", CONTENT_TYPE)],
            body: payload.as_bytes(),
            stream: "HUB_EVENTS",
            sequence: 1,
            time: time::OffsetDateTime::UNIX_EPOCH,
            max_size: 100_000,
        };
        let cloudevent: Value = serde_json::from_str(event.decode().unwrap().to_cloudevent().get()).unwrap();
        assert_eq!(
            cloudevent,
            json!({
                "specversion": "1.0", "id": "e-1", "source": "idp", "type": "user.created", "tenant": "acme",
                "time": "2026-01-31T12:00:00.5+02:00", "subject": "user-u1", "datacontenttype": "application/json",
                "traceparent": TRACE, "correlationid": "c-1", "causationid": "k-1", "sequence": "17",
                "published": true, "region": "eu", "partnertier": 1, "data": whole()["data"],
            })
        );
    }
}

/// Rust, PostgreSQL and SQLite reject the same events, and name the field. (SQLite before 3.47 cannot include the name
/// of an unknown field in an error.)
#[tokio::test]
async fn a_bad_event_is_refused_everywhere_and_leaves_nothing() {
    let databases = databases(&["partner"]).await;
    let long = "x".repeat(513);
    let cases = [
        ("id", json!("")),
        ("id", json!(1)),
        ("id", json!("a\nb")),
        ("id", json!(long)),
        ("type", json!("user")),
        ("type", json!("user.cre ated")),
        ("type", json!("user..created")),
        ("type", json!(".user.created")),
        ("type", json!("user.created.")),
        ("type", json!("user.*")),
        ("type", json!(format!("user.{}", "x".repeat(251)))),
        ("type", json!(null)),
        ("stream", json!(null)),
        ("stream", json!("")),
        ("stream", json!(7)),
        ("source", json!("")),
        ("source", json!(["x"])),
        ("time", json!("yesterday")),
        ("time", json!("2026-02-30T00:00:00Z")),
        ("time", json!("2026-01-31 12:00:00")),
        ("time", json!(1738324800)),
        ("tenant", json!("a b")),
        ("tenant", json!("x".repeat(65))),
        ("published", json!("yes")),
        ("published", json!(1)),
        ("priority", json!("urgent")),
        ("priority", json!(5)),
        ("traceparent", json!("00-x")),
        ("traceparent", json!(TRACE.replace("00-0af", "01-0af"))),
        ("traceparent", json!("00-00000000000000000000000000000000-b7ad6b7169203331-01")),
        ("correlation_id", json!(1)),
        ("causation_id", json!("")),
        ("version", json!(0)),
        ("version", json!(-1)),
        ("version", json!(1.5)),
        ("version", json!("1")),
        ("fqn", json!(false)),
        ("kind", json!("QUERY")),
        ("sequence_id", json!(1.5)),
        ("sequence_id", json!(true)),
        ("origin_stream", json!("\u{1}")),
        ("stream_category", json!({})),
        ("expected_version", json!("3")),
        ("expected_version", json!(0.5)),
        ("asynchronous", json!("no")),
        ("event_store", json!([])),
        ("extensions", json!("x")),
        ("extensions", json!({"source": "x"})),
        ("extensions", json!({"id": "x"})),
        ("extensions", json!({"x": "y".repeat(20_000)})),
        ("colour", json!("red")),
    ];
    for (field, value) in cases {
        let mut bad = event("e", "s");
        bad[field] = value.clone();
        let error = RaisedEvent::from_json(&bad.to_string()).expect_err(field).to_string();
        assert!(error.contains(field), "{field} {value}: {error}");
        for database in &databases {
            let refused = database.raise(&bad).await;
            let error = refused.expect_err(&format!("{field} {value} on {}", name(database))).to_string();
            let told = field != "colour" || matches!(database, TestDatabase::Postgres { .. });
            let expected = if told { field.to_owned() } else { "is not one of id".to_owned() };
            assert!(error.contains(&expected), "{field} {value} on {}: {error}", name(database));
            assert!(error.contains("hub_outbox"), "{error}");
        }
    }
    for missing in ["type", "stream", "data"] {
        let mut bad = event("e", "s");
        bad.as_object_mut().unwrap().remove(missing);
        for database in &databases {
            let error = database.raise(&bad).await.expect_err(missing).to_string();
            assert!(error.contains(missing), "{missing}: {error}");
        }
    }
    for bad in [json!([]), json!("x"), json!(null)] {
        for database in &databases {
            let error = database.raise(&bad).await.expect_err("no object").to_string();
            assert!(error.contains("JSON object"), "{error}");
        }
    }
    for database in &databases {
        let rows = database.store().list(&RowSelection::default(), &RowCursor::default(), 10).await.unwrap();
        assert_eq!(rows, []);
    }
}

fn name(database: &TestDatabase) -> &'static str {
    match database {
        TestDatabase::Postgres { .. } => "PostgreSQL",
        TestDatabase::Sqlite { .. } => "SQLite",
    }
}

/// The database reports problems that Rust cannot check.
#[tokio::test]
async fn the_databases_refusal_reaches_the_rust_caller() {
    let mut text = RaisedEvent::from_json(&event("e1", "s").to_string()).unwrap();
    for database in databases(&[]).await {
        database.publish(&[text.clone()], true).await.unwrap();
        let error = database.publish(&[text.clone()], true).await.unwrap_err();
        assert!(matches!(error, RaiseError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains("an id of its own"), "{error}");
    }
    text.id = Some(String::new());
    let Some(database) = TestDatabase::postgres().await else { return };
    assert!(matches!(database.publish(&[text.clone()], true).await, Err(RaiseError::Field(_))));
    text.id = None;
    let error = database.publish(&[text], true).await.unwrap_err();
    assert!(matches!(error, RaiseError::Store(StoreError::NotSetUp)), "{error:?}");
}

/// From psql, in a transaction that also changes a table of the application, and from a trigger of that table.
#[tokio::test]
async fn psql_and_triggers_raise_events() {
    let Some(server) = TestPostgres::start().await else { return };
    let store = hub_outbox::Store::new(hub_outbox::StoreOptions::new(server.url().into()));
    let store = store.unwrap();
    store.setup().await.unwrap();
    store.sync_brokers(&["partner".to_owned()], false).await.unwrap();
    let psql = |script: &str| {
        let output = server.psql(script);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let (done, _, error) = psql("CREATE TABLE users (id text PRIMARY KEY)");
    assert!(done, "{error}");
    let (done, answer, error) = psql(
        "BEGIN; INSERT INTO users VALUES ('u0');
         SELECT hub_outbox.publish('{\"id\": \"lost\", \"type\": \"user.created\", \"stream\": \"u0\", \"data\": 1}'); ROLLBACK;
         BEGIN; INSERT INTO users VALUES ('u1');
         SELECT hub_outbox.publish('{\"id\": \"kept\", \"type\": \"user.created\", \"stream\": \"u1\", \"data\": 1}'); COMMIT",
    );
    assert!(done && answer.ends_with("kept"), "{answer} {error}");
    let (done, _, error) = psql(
        "CREATE FUNCTION raise_user() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM hub_outbox.publish(jsonb_build_object(
                 'id', 'by-' || TG_OP, 'type', 'user.created', 'stream', 'u', 'data', to_jsonb(NEW), 'published', true));
             RETURN NEW; END $$;
         CREATE TRIGGER raise AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION raise_user();
         INSERT INTO users VALUES ('u2')",
    );
    assert!(done, "{error}");
    assert_eq!(ids(&claim(&store, "one", 10).await), ["kept", "by-INSERT"]);

    // The error aborts the transaction, and names the remedy.
    let (done, _, error) =
        psql("SELECT hub_outbox.publish('{\"type\": \"user.created\", \"strem\": \"u1\", \"data\": 1}')");
    assert!(!done && error.contains("strem: is not a field") && error.contains("HINT:"), "{error}");

    // A producer needs only usage of the schema; it cannot read rows.
    let (done, _, error) = psql(
        "CREATE ROLE producer; GRANT USAGE ON SCHEMA hub_outbox TO producer; SET ROLE producer;
         SELECT hub_outbox.lock_stream('u3');
         SELECT hub_outbox.publish('{\"id\": \"least\", \"type\": \"user.created\", \"stream\": \"u3\", \"data\": 1}')",
    );
    assert!(done, "{error}");
    let (done, _, error) = psql("SET ROLE producer; SELECT * FROM hub_outbox.messages");
    assert!(!done && error.contains("permission denied"), "{error}");
    assert_eq!(ids(&claim(&store, "one", 10).await), ["least"]);
    psql("DROP OWNED BY producer; DROP ROLE producer");
}

/// The holder of a stream is the only one that can raise events on it, until its transaction ends.
#[tokio::test]
async fn a_stream_can_be_locked() {
    let Some(database) = TestDatabase::postgres().await else { return };
    database.outbox(&[]).await;
    let TestDatabase::Postgres { pool, .. } = &database else { unreachable!("it was asked for") };
    let mut first = pool.begin().await.unwrap();
    sqlx::query("SELECT hub_outbox.lock_stream('user-u1')").execute(&mut *first).await.unwrap();
    let lock = async |stream: &str| {
        let mut second = pool.begin().await?;
        sqlx::query("SET LOCAL lock_timeout = '100ms'").execute(&mut *second).await?;
        sqlx::query("SELECT hub_outbox.lock_stream($1)").bind(stream).execute(&mut *second).await?;
        second.commit().await
    };
    lock("user-u2").await.unwrap();
    let error = lock("user-u1").await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("55P03"), "{error}");
    first.commit().await.unwrap();
    lock("user-u1").await.unwrap();
}
