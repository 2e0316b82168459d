//! Operations of producers, relays and operators on the rows, on PostgreSQL and SQLite.

use std::collections::HashSet;
use std::time::Duration;

use hub_outbox::{
    ClaimRequest, FailedAttempt, GivenUp, Retention, Row, RowCursor, RowSelection, Store, StoreError,
    StoreOptions,
};
use integration_hub::domain::producer_outbox::{Priority, RaisedEvent, RowStep, Status};
use serde_json::json;

use crate::support::outbox::{TestDatabase, claim, claim_of, event, ids, of_broker, on_both, positions};
use crate::support::{PASSWORD, TestPostgres, eventually};

const SOON: Duration = Duration::from_secs(20);
const NOW: Duration = Duration::ZERO;
const LATER: Duration = Duration::from_secs(3600);

on_both!(
    commit_writes_and_rollback_leaves_nothing,
    each_step_leads_where_the_domain_says,
    operators_list_retry_and_discard,
    cleanup_keeps_recent_and_open_rows,
    reconciling_writes_what_is_missing_in_its_place,
    setting_up_is_idempotent_and_concurrent,
    brokers_are_added_and_only_removed_on_demand,
    internal_and_external_rows_are_independent,
);

fn raised(id: &str, stream: &str) -> RaisedEvent {
    RaisedEvent::from_json(&event(id, stream).to_string()).expect("the event is good")
}

async fn raise(database: &TestDatabase, rows: &[(&str, &str)]) {
    let events: Vec<RaisedEvent> = rows.iter().map(|(id, stream)| raised(id, stream)).collect();
    database.publish(&events, true).await.expect("the events are raised");
}

async fn rows(store: &Store) -> Vec<Row> {
    store.list(&RowSelection::default(), &RowCursor::default(), 10_000).await.expect("the rows are listed")
}

fn failed(position: i64, retry_after: Duration) -> FailedAttempt {
    FailedAttempt { position, error: "rejected".to_owned(), retry_after, counts: true }
}

async fn commit_writes_and_rollback_leaves_nothing(database: &TestDatabase) {
    let store = database.outbox(&["partner"]).await;
    let mut public = raised("e1", "s");
    public.published = true;
    let mut unnamed = raised("x", "s");
    unnamed.id = None;
    database.publish(&[public.clone()], false).await.unwrap();
    assert_eq!(rows(&store).await, []);

    let made_up = database.publish(&[public.clone(), unnamed], true).await.unwrap().pop().unwrap();
    let found = rows(&store).await;
    let written: Vec<_> = found.iter().map(|row| (row.broker.as_str(), row.message_id.as_str())).collect();
    assert_eq!(written, [("internal", "e1"), ("partner", "e1"), ("internal", made_up.as_str())]);
    assert_eq!(made_up.len(), 36);
    assert_eq!(found[0].position, found[1].position);

    // The same id is rejected, together with its transaction.
    let error = database.publish(&[raised("e2", "s"), public], true).await.unwrap_err().to_string();
    assert!(error.contains("raised before"), "{error}");
    assert_eq!(rows(&store).await.len(), 3);
}

/// Every step from every status, compared with the table of the core.
async fn each_step_leads_where_the_domain_says(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let steps = [
        RowStep::Claim { due: true },
        RowStep::Claim { due: false },
        RowStep::Publish { held: true },
        RowStep::Publish { held: false },
        RowStep::Fail { held: true },
        RowStep::Fail { held: false },
        RowStep::Abandon { held: true },
        RowStep::Abandon { held: false },
        RowStep::Release { held: true },
        RowStep::Release { held: false },
        RowStep::Retry,
        RowStep::Discard,
    ];
    for from in Status::ALL {
        for step in steps {
            let id = format!("{from}-{step:?}");
            raise(database, &[(&id, &id)]).await;
            let selection = RowSelection { message_ids: vec![id.clone()], ..RowSelection::default() };
            let row = async || store.list(&selection, &RowCursor::default(), 2).await.unwrap().pop().unwrap();
            let position = row().await.position;
            if from != Status::Pending {
                assert_eq!(ids(&claim(&store, "one", 10).await), [id.as_str()]);
            }
            match from {
                Status::Pending | Status::Processing => 0,
                Status::Failed => store.fail("internal", "one", &[failed(position, NOW)]).await.unwrap(),
                Status::Published => store.mark_published("internal", "one", &[position]).await.unwrap(),
                Status::Abandoned => {
                    let row = GivenUp { position, reason: "because".to_owned() };
                    store.abandon("internal", "one", &[row]).await.unwrap()
                }
            };
            assert_eq!(row().await.status, from);
            if let RowStep::Claim { due } = step {
                let later = if matches!(database, TestDatabase::Sqlite { .. }) {
                    "9000000000000"
                } else {
                    "now() + interval '1 hour'"
                };
                let at = match (due, database) {
                    (false, _) => later,
                    (true, TestDatabase::Sqlite { .. }) => "1",
                    (true, TestDatabase::Postgres { .. }) => "now() - interval '1 second'",
                };
                let script = format!(
                    "UPDATE {{messages}} SET due_at = {at} WHERE message_id = '{id}' AND due_at IS NOT NULL"
                );
                database.sql(&script).await.unwrap();
            }
            let holder = |held| if held { "one" } else { "another" };
            let changed = match step {
                RowStep::Claim { .. } => claim(&store, "heir", 10).await.len() as u64,
                RowStep::Publish { held } => {
                    store.mark_published("internal", holder(held), &[position]).await.unwrap()
                }
                RowStep::Fail { held } => {
                    store.fail("internal", holder(held), &[failed(position, LATER)]).await.unwrap()
                }
                RowStep::Abandon { held } => {
                    let row = GivenUp { position, reason: "because".to_owned() };
                    store.abandon("internal", holder(held), &[row]).await.unwrap()
                }
                RowStep::Release { held } => {
                    store.release("internal", holder(held), &[position]).await.unwrap()
                }
                RowStep::Retry => store.retry(&selection, &RowCursor::default(), 10).await.unwrap().changed,
                RowStep::Discard => {
                    store.discard(&selection, "by hand", &RowCursor::default(), 10).await.unwrap().changed
                }
            };
            let expected = from.after(step);
            assert_eq!(changed, u64::from(expected.is_some()), "{id}");
            let row = row().await;
            assert_eq!(row.status, expected.unwrap_or(from), "{id}");
            assert_eq!(row.due_at.is_some(), row.status.is_open(), "{id}");
            assert_eq!(row.settled_at.is_some(), !row.status.is_open(), "{id}");
            assert_eq!(row.claimed_by.is_some(), row.status == Status::Processing, "{id}");
            // Removes it before the next case.
            database.sql("DELETE FROM {messages}").await.unwrap();
        }
    }
}

async fn operators_list_retry_and_discard(database: &TestDatabase) {
    let store = database.outbox(&["partner"]).await;
    for number in 0..7 {
        let mut event = event(&format!("e{number}"), &format!("s{}", number % 2));
        event["published"] = json!(true);
        if number == 6 {
            event["type"] = json!("role.granted");
        }
        database.raise(&event).await.unwrap();
    }
    let list = async |selection: RowSelection| {
        let found = store.list(&selection, &RowCursor::default(), 100).await.unwrap();
        found.into_iter().map(|row| row.message_id).collect::<Vec<_>>()
    };
    let partner = || of_broker(Some("partner"));
    assert_eq!(list(partner()).await.len(), 7);
    assert_eq!(list(RowSelection { stream: Some("s1".to_owned()), ..partner() }).await, ["e1", "e3", "e5"]);
    assert_eq!(list(RowSelection { event_type: Some("role.granted".to_owned()), ..partner() }).await, ["e6"]);
    assert_eq!(
        list(RowSelection { message_ids: vec!["e2".to_owned(), "x".to_owned()], ..partner() }).await,
        ["e2"]
    );
    assert_eq!(list(RowSelection { statuses: vec![Status::Abandoned], ..partner() }).await, [""; 0]);

    // A page continues after the last row of the previous one, brokers included.
    let (mut seen, mut cursor) = (Vec::new(), RowCursor::default());
    loop {
        let page = store.list(&RowSelection::default(), &cursor, 3).await.unwrap();
        let Some(last) = page.last() else { break };
        cursor = RowCursor { position: last.position, broker: last.broker.clone() };
        seen.extend(page.into_iter().map(|row| (row.message_id, row.broker)));
    }
    assert_eq!((seen.len(), seen.iter().collect::<HashSet<_>>().len()), (14, 14));

    // In batches, until none is left.
    let (mut changed, mut cursor) = (0, Some(RowCursor::default()));
    while let Some(after) = cursor {
        let batch = store.discard(&partner(), "not wanted", &after, 3).await.unwrap();
        assert!(batch.changed <= 3);
        changed += batch.changed;
        cursor = batch.next;
    }
    assert_eq!(changed, 7);
    let status = store.status().await.unwrap();
    assert_eq!(status.iter().map(|one| one.broker.as_str()).collect::<Vec<_>>(), ["internal", "partner"]);
    assert_eq!((status[0].pending, status[1].abandoned, status[1].pending), (7, 7, 0));
    assert!(status[0].oldest_open_at.is_some() && status[1].oldest_open_at.is_none());
    let backlog = store.backlog().await.unwrap();
    assert_eq!((backlog[0].pending, backlog[1].abandoned), (7, 0));
    let row = store.list(&partner(), &RowCursor::default(), 1).await.unwrap().remove(0);
    assert_eq!((row.status, row.last_error.as_deref()), (Status::Abandoned, Some("not wanted")));

    let (mut changed, mut cursor) = (0, Some(RowCursor::default()));
    while let Some(after) = cursor {
        let batch = store.retry(&partner(), &after, 3).await.unwrap();
        changed += batch.changed;
        cursor = batch.next;
    }
    assert_eq!(changed, 7);
    assert_eq!(claim_of(&store, "partner", Priority::Live, "one", 100).await.len(), 7);
    assert_eq!(claim(&store, "one", 100).await.len(), 7);
}

async fn cleanup_keeps_recent_and_open_rows(database: &TestDatabase) {
    let store = database.outbox(&["partner"]).await;
    for number in 0..6 {
        let mut event = event(&format!("e{number}"), &format!("s{number}"));
        event["published"] = json!(true);
        database.raise(&event).await.unwrap();
    }
    let internal = claim(&store, "one", 4).await;
    store.mark_published("internal", "one", &positions(&internal[..3])).await.unwrap();
    let given_up = GivenUp { position: internal[3].position, reason: "no".to_owned() };
    store.abandon("internal", "one", &[given_up]).await.unwrap();
    let external = claim_of(&store, "partner", Priority::Live, "one", 10).await;
    store.mark_published("partner", "one", &positions(&external)).await.unwrap();

    let keep = |published, abandoned| Retention { published, abandoned };
    assert_eq!(store.cleanup(keep(LATER, LATER), 100).await.unwrap(), 0);
    // Settled in the past.
    let past =
        if matches!(database, TestDatabase::Sqlite { .. }) { "1" } else { "now() - interval '2 days'" };
    database
        .sql(&format!("UPDATE {{messages}} SET settled_at = {past} WHERE settled_at IS NOT NULL"))
        .await
        .unwrap();
    // In batches, internal rows first. The abandoned row is kept longer, together with its external row.
    let abandoned = Duration::from_secs(100 * 365 * 24 * 3600);
    assert_eq!(store.cleanup(keep(LATER, abandoned), 2).await.unwrap(), 2);
    assert_eq!(store.cleanup(keep(LATER, abandoned), 2).await.unwrap(), 2);
    assert_eq!(store.cleanup(keep(LATER, abandoned), 100).await.unwrap(), 2);
    assert_eq!(store.cleanup(keep(LATER, abandoned), 100).await.unwrap(), 0);
    // Deleted rows are not missing.
    assert_eq!(store.reconcile(&RowCursor::default(), 100).await.unwrap().changed, 0);
    let left: Vec<_> =
        rows(&store).await.into_iter().map(|row| (row.message_id, row.broker, row.status)).collect();
    let row = |id: &str, broker: &str, status| (id.to_owned(), broker.to_owned(), status);
    assert_eq!(
        left,
        [
            row("e3", "internal", Status::Abandoned),
            row("e3", "partner", Status::Published),
            row("e4", "internal", Status::Pending),
            row("e4", "partner", Status::Published),
            row("e5", "internal", Status::Pending),
            row("e5", "partner", Status::Published),
        ]
    );
    assert_eq!(store.cleanup(keep(LATER, LATER), 100).await.unwrap(), 2);
}

async fn reconciling_writes_what_is_missing_in_its_place(database: &TestDatabase) {
    let store = database.outbox(&["partner"]).await;
    for number in 0..5 {
        let mut event = event(&format!("e{number}"), "s");
        event["published"] = json!(number != 3);
        database.raise(&event).await.unwrap();
    }
    let before = database.envelope("partner", "e1").await.unwrap();
    database
        .sql("DELETE FROM {messages} WHERE broker = 'partner' AND message_id IN ('e1', 'e4')")
        .await
        .unwrap();
    // A broker that is added later gets no earlier events.
    tokio::time::sleep(Duration::from_millis(5)).await;
    store.sync_brokers(&["partner".to_owned(), "late".to_owned()], true).await.unwrap();

    let (mut derived, mut cursor) = (Vec::new(), Some(RowCursor::default()));
    while let Some(after) = cursor {
        let batch = store.reconcile(&after, 2).await.unwrap();
        derived.push(batch.changed);
        cursor = batch.next;
    }
    assert_eq!(derived, [1, 1, 0]);
    assert_eq!(database.envelope("partner", "e1").await.unwrap(), before);
    let claimed = claim_of(&store, "partner", Priority::Live, "one", 10).await;
    assert_eq!(ids(&claimed), ["e0", "e1", "e2", "e4"]);
    assert_eq!(claim_of(&store, "late", Priority::Live, "one", 10).await, []);
    assert_eq!(store.reconcile(&RowCursor::default(), 100).await.unwrap().changed, 0);
}

async fn setting_up_is_idempotent_and_concurrent(database: &TestDatabase) {
    let store = database.store();
    assert!(matches!(store.check().await, Err(StoreError::NotSetUp)));
    let error = claim_error(&store).await;
    match database {
        TestDatabase::Postgres { .. } => assert!(matches!(error, StoreError::NotSetUp), "{error}"),
        TestDatabase::Sqlite { .. } => assert!(error.to_string().contains("no such table"), "{error}"),
    }
    assert!(!error.is_transient());
    let at_once = (0..4).map(|_| {
        let store = database.store();
        tokio::spawn(async move { store.setup().await.unwrap() })
    });
    let mut made = 0;
    for done in at_once.collect::<Vec<_>>() {
        let done = done.await.unwrap();
        made += u32::from(done.from == 0);
        assert_eq!(done.to, 2);
    }
    assert_eq!(made, 1, "one of them created the schema, the others found it");
    raise(database, &[("e1", "s")]).await;
    assert_eq!(store.setup().await.unwrap().from, 2);
    assert_eq!(rows(&store).await.len(), 1);
    store.check().await.unwrap();

    let messages =
        if matches!(database, TestDatabase::Sqlite { .. }) { "hub_outbox_" } else { "hub_outbox." };
    database.sql(&format!("INSERT INTO {messages}migrations (version) VALUES (99)")).await.unwrap();
    for refused in [store.check().await, store.setup().await.map(drop)] {
        assert!(matches!(refused, Err(StoreError::Newer { found: 99, .. })), "{refused:?}");
    }
}

async fn brokers_are_added_and_only_removed_on_demand(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut event = event("e1", "s");
    event["published"] = json!(true);
    database.raise(&event).await.unwrap();
    assert_eq!(rows(&store).await.len(), 1, "no external broker, no external row");
    let synced = store.sync_brokers(&names(&["a", "b"]), false).await.unwrap();
    assert_eq!((synced.added, synced.unconfigured), (names(&["a", "b"]), names(&[])));
    let synced = store.sync_brokers(&names(&["b"]), false).await.unwrap();
    assert_eq!((synced.added, synced.removed, synced.unconfigured), (names(&[]), names(&[]), names(&["a"])));
    event["id"] = json!("e2");
    database.raise(&event).await.unwrap();
    assert_eq!(rows(&store).await.len(), 4);
    let synced = store.sync_brokers(&names(&["b"]), true).await.unwrap();
    assert_eq!((synced.removed, synced.unconfigured), (names(&["a"]), names(&[])));
    event["id"] = json!("e3");
    database.raise(&event).await.unwrap();
    let status = store.status().await.unwrap();
    let seen: Vec<_> = status.iter().map(|one| (one.broker.as_str(), one.configured, one.pending)).collect();
    assert_eq!(seen, [("internal", true, 3), ("a", false, 1), ("b", true, 2)]);
}

async fn internal_and_external_rows_are_independent(database: &TestDatabase) {
    let store = database.outbox(&["partner"]).await;
    let mut first = event("e1", "s");
    first["published"] = json!(true);
    database.raise(&first).await.unwrap();
    database.raise(&event("e2", "s")).await.unwrap();
    let external = claim_of(&store, "partner", Priority::Live, "one", 10).await;
    assert_eq!(ids(&external), ["e1"], "an unpublished event is never sent");
    assert!(external[0].is_public);
    store.fail("partner", "one", &[failed(external[0].position, LATER)]).await.unwrap();
    assert_eq!(ids(&claim(&store, "one", 10).await), ["e1", "e2"]);
}

async fn claim_error(store: &Store) -> StoreError {
    let request = ClaimRequest {
        broker: "internal",
        priority: Priority::Live,
        holder: "x",
        limit: 1,
        claim_time: LATER,
        passed_over: &[],
    };
    store.claim(&request).await.expect_err("there is no outbox")
}

#[tokio::test]
async fn a_commit_notifies_and_a_rollback_does_not() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&[]).await;
    let mut wakeups = store.wakeups().await.unwrap();
    assert!(wakeups.is_heard());
    database.publish(&[raised("e1", "s")], false).await.unwrap();
    database.publish(&[raised("e2", "s"), raised("e3", "s")], true).await.unwrap();
    tokio::time::timeout(SOON, wakeups.next()).await.expect("the commit is heard").unwrap();
    // One notification for both events.
    let more = tokio::time::timeout(Duration::from_millis(300), wakeups.next()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn a_database_that_crashes_is_found_again() {
    let Some(server) = TestPostgres::start_alone().await else { return };
    let mut options = StoreOptions::new(server.url().into());
    options.timeout = Duration::from_secs(3);
    let store = Store::new(options).unwrap();
    store.setup().await.unwrap();
    let mut wakeups = store.wakeups().await.unwrap();
    let publish = |id: &str| {
        let script = format!("SELECT hub_outbox.publish('{}')", event(id, "s"));
        let output = server.psql(&script);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    publish("e1");
    let claimed = claim(&store, "one", 10).await;
    // A claim does not wait for the disk; the next commit makes it durable.
    publish("e2");
    server.crash().await;
    let error = claim_error(&store).await;
    assert!(error.is_transient(), "{error:?}");
    assert!(!format!("{error} {error:?} {store:?}").contains(PASSWORD), "{error:?} {store:?}");
    server.restart().await;
    // Committed data is there, the claim included, and notifications work again.
    let marked = eventually(SOON, "the store is connected again", async || {
        store.mark_published("internal", "one", &positions(&claimed)).await
    });
    assert_eq!(marked.await, 1);
    tokio::time::timeout(SOON, wakeups.next()).await.expect("the loss wakes").unwrap();
    publish("e3");
    tokio::time::timeout(SOON, wakeups.next()).await.expect("the commit is heard").unwrap();
    assert_eq!(ids(&claim(&store, "one", 10).await), ["e2", "e3"]);
}

#[test]
fn a_bad_url_is_reported_without_its_password() {
    for url in ["", "no scheme", "mysql://u:pg-tell-nobody@h/d", "postgres://u:pg-tell-nobody@h:port/d"] {
        let error = Store::new(StoreOptions::new(url.to_owned().into())).expect_err(url);
        assert!(matches!(error, StoreError::Url { .. }), "{error}");
        assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error:?}");
    }
}
