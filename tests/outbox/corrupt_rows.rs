//! Rows with values that another program wrote and that the hub cannot read: each is abandoned alone, with its reason,
//! and all others are sent.

use std::time::Duration;

use hub_outbox::{FailedAttempt, GivenUp, RowCursor, RowSelection};
use integration_hub::domain::producer_outbox::{RaisedEvent, Status};

use crate::support::outbox::{TestDatabase, claim, event, on_both};
use crate::support::relay::{RELAY, SOON, settings, wait_for};
use crate::support::{Hub, TestBroker, eventually};

on_both!(
    a_row_that_cannot_be_read_fails_no_claim,
    an_operator_sees_every_row,
    the_relay_abandons_each_alone_and_sends_the_others,
    a_wait_or_claim_far_ahead_is_brought_forward,
);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// The claim reports this column.
    Unreadable(&'static str),
    /// No claim finds it.
    NeverDue,
    /// The hub reads it.
    Readable,
}

/// Changes of a row, one for each kind of value that the table accepts and no producer writes.
fn nonsense(database: &TestDatabase) -> Vec<(&'static str, Expected)> {
    use Expected::{NeverDue, Readable, Unreadable};
    match database {
        TestDatabase::Postgres { .. } => vec![
            ("created_at = 'infinity'", Unreadable("created_at")),
            ("created_at = '-infinity'", Unreadable("created_at")),
            ("created_at = '290000-01-01'", Unreadable("created_at")),
            ("created_at = '4000-01-01 BC'", Unreadable("created_at")),
            ("due_at = 'infinity'", NeverDue),
            ("due_at = '290000-01-01'", NeverDue),
            ("due_at = '-infinity'", Readable),
            ("due_at = '4000-01-01 BC'", Readable),
            ("attempts = 2147483647", Readable),
            ("attempts = -5", Readable),
        ],
        TestDatabase::Sqlite { .. } => vec![
            ("created_at = 9223372036854775807", Unreadable("created_at")),
            ("created_at = -9223372036854775807", Unreadable("created_at")),
            ("message_id = CAST(x'626164ff' AS TEXT)", Unreadable("message_id")),
            ("event_type = CAST(x'ff41' AS TEXT)", Unreadable("event_type")),
            ("stream = CAST(x'fe41' AS TEXT)", Unreadable("stream")),
            ("payload = CAST(x'7bff7d' AS TEXT)", Unreadable("payload")),
            ("due_at = 9223372036854775807", NeverDue),
            ("due_at = 253402300800000", NeverDue),
            ("due_at = -9223372036854775807", Readable),
            ("attempts = 9223372036854775807", Readable),
            ("attempts = -9223372036854775807", Readable),
        ],
    }
}

/// Raises a row for each kind of nonsense, each followed by a good one of its stream, and one in a stream of its own.
/// Returns the positions of the changed ones.
async fn raise(database: &TestDatabase) -> Vec<(i64, Expected)> {
    let kinds = nonsense(database);
    let mut events = Vec::new();
    for (number, _) in kinds.iter().enumerate() {
        for name in ["bad", "behind"] {
            events.push(event(&format!("{name}{number}"), &format!("s{number}")));
        }
    }
    events.push(event("alone", "alone"));
    let events: Vec<RaisedEvent> = events
        .iter()
        .map(|event| RaisedEvent::from_json(&event.to_string()).expect("the event is good"))
        .collect();
    database.publish(&events, true).await.expect("the events are raised");
    let rows =
        database.store().list(&RowSelection::default(), &RowCursor::default(), 1_000).await.expect("listed");
    let mut changed = Vec::new();
    for (number, (change, expected)) in kinds.into_iter().enumerate() {
        let row = rows.iter().find(|row| row.message_id == format!("bad{number}")).expect("it is there");
        let statement = format!("UPDATE {{messages}} SET {change} WHERE position = {}", row.position);
        database.sql(&statement).await.unwrap_or_else(|error| panic!("{change}: {error}"));
        changed.push((row.position, expected));
    }
    changed
}

async fn a_row_that_cannot_be_read_fails_no_claim(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let changed = raise(database).await;
    let is_never_due = |position: i64| changed.contains(&(position, Expected::NeverDue));
    let claimed = claim(&store, "one", 1_000).await;
    for (position, expected) in &changed {
        let row = claimed.iter().find(|row| row.position == *position);
        match expected {
            Expected::NeverDue => assert_eq!(row, None),
            Expected::Readable => assert_eq!(row.expect("claimed").unreadable, None),
            Expected::Unreadable(column) => {
                let unreadable = row.expect("claimed").unreadable.expect("unreadable");
                assert_eq!(unreadable.column, *column);
            }
        }
    }
    let waiting = changed.iter().filter(|(position, _)| is_never_due(*position)).count();
    assert_eq!(
        claimed.len(),
        2 * changed.len() + 1 - 2 * waiting,
        "and every good row that is not behind one"
    );

    // Each can be settled together with others.
    let failed = |position: i64| FailedAttempt {
        position,
        error: "refused".to_owned(),
        retry_after: Duration::ZERO,
        counts: true,
    };
    let all: Vec<FailedAttempt> = claimed.iter().map(|row| failed(row.position)).collect();
    assert_eq!(store.fail("internal", "one", &all).await.unwrap(), all.len() as u64);
    let again = claim(&store, "two", 1_000).await;
    assert_eq!(again.len(), claimed.len());
    let all: Vec<GivenUp> =
        again.iter().map(|row| GivenUp { position: row.position, reason: "refused".to_owned() }).collect();
    assert_eq!(store.abandon("internal", "two", &all).await.unwrap(), all.len() as u64);

    // What never becomes due is found, and what was behind it is free; it was not postponed as well.
    assert_eq!(store.next_due("internal").await.unwrap(), Some(Duration::ZERO));
    assert_eq!(claim(&store, "three", 1_000).await, []);
    let mut found = store.abandon_never_due(1_000).await.unwrap();
    found.sort_by_key(|row| row.position);
    let positions: Vec<i64> = found.iter().map(|row| row.position).collect();
    let expected: Vec<i64> =
        changed.iter().map(|(position, _)| *position).filter(|position| is_never_due(*position)).collect();
    assert_eq!(positions, expected);
    assert!(found.iter().all(|row| row.reason.column == "due_at" && row.broker == "internal"));
    assert_eq!(store.abandon_never_due(1_000).await.unwrap(), []);
    assert_eq!(claim(&store, "four", 1_000).await.len(), waiting);
}

async fn an_operator_sees_every_row(database: &TestDatabase) {
    let store = database.outbox(&["partner"]).await;
    let changed = raise(database).await;
    let rows = store.list(&RowSelection::default(), &RowCursor::default(), 1_000).await.unwrap();
    assert_eq!(rows.len(), 2 * changed.len() + 1);
    for status in [store.status().await.unwrap(), store.backlog().await.unwrap()] {
        assert_eq!(status[0].pending, rows.len() as u64);
        assert!(status[0].oldest_open_at.is_some());
    }
    store.reconcile(&RowCursor::default(), 1_000).await.unwrap();
    assert!(store.next_due("internal").await.unwrap().is_some());
    // Corrected, one is sent.
    let discarded =
        store.discard(&RowSelection::default(), "test", &RowCursor::default(), 1_000).await.unwrap();
    assert_eq!(discarded.changed, rows.len() as u64);
    let retried = store.retry(&RowSelection::default(), &RowCursor::default(), 1_000).await.unwrap();
    assert_eq!(retried.changed, rows.len() as u64);
}

async fn the_relay_abandons_each_alone_and_sends_the_others(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let changed = raise(database).await;
    let broker = TestBroker::start().await;
    let settings = settings(&database.url());
    let settings = settings.with(|settings| settings.log.repeat_interval = Some(Duration::ZERO));
    let mut hub = Hub::serve(&broker.url(), &settings, &RELAY);
    hub.ready().await;
    let bad = changed.iter().filter(|(_, expected)| *expected != Expected::Readable).count();
    let rows = wait_for(&store, "internal", Status::Abandoned, bad).await;
    let sent = rows.len() - bad;
    let rows = wait_for(&store, "internal", Status::Published, sent).await;
    for row in rows.iter().filter(|row| row.status == Status::Abandoned) {
        let (_, expected) =
            changed.iter().find(|(position, _)| *position == row.position).expect("a changed one");
        let column = match expected {
            Expected::Unreadable(column) => *column,
            Expected::NeverDue => "due_at",
            Expected::Readable => panic!("{row:?} is readable"),
        };
        let reason = row.last_error.clone().unwrap_or_default();
        assert!(reason.contains(&format!("column {column}: ")), "{reason}");
        hub.wait_for_log(&format!("position={} ", row.position), SOON).await;
    }
    eventually(SOON, "each is counted", async || {
        let counted = hub.metric("hub_relay_abandoned_total", &["broker=\"internal\""]).await;
        if counted == bad as f64 { Ok(()) } else { Err(counted) }
    })
    .await;
    assert!(!hub.log().contains("producer outbox database failed"), "{}", hub.log());
    assert!(hub.terminate().await.success());
}

/// A clock that was wrong leaves such rows, and so does another program.
async fn a_wait_or_claim_far_ahead_is_brought_forward(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let mut events = Vec::new();
    for name in ["waits", "claimed", "soon"] {
        events.push(event(name, name));
        events.push(event(&format!("behind-{name}"), name));
    }
    let events: Vec<RaisedEvent> = events
        .iter()
        .map(|event| RaisedEvent::from_json(&event.to_string()).expect("the event is good"))
        .collect();
    database.publish(&events, true).await.expect("the events are raised");
    let days = |days: u32| match database {
        TestDatabase::Postgres { .. } => format!("now() + interval '{days} days'"),
        TestDatabase::Sqlite { .. } => format!("(unixepoch() + {days} * 86400) * 1000"),
    };
    for (name, status, due) in [
        ("waits", "status = 'failed', attempts = 3", days(3)),
        ("claimed", "status = 'processing', claimed_by = 'nobody'", days(30_000)),
        ("soon", "status = 'processing', claimed_by = 'nobody'", days(1)),
    ] {
        let statement =
            format!("UPDATE {{messages}} SET {status}, due_at = {due} WHERE message_id = '{name}'");
        database.sql(&statement).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    // A row behind one of them is not postponed with it.
    assert_eq!(claim(&store, "one", 100).await, []);
    assert_eq!(store.bring_forward(100).await.unwrap(), 2);
    assert_eq!(store.bring_forward(100).await.unwrap(), 0);
    assert_eq!(store.abandon_never_due(100).await.unwrap(), []);
    let mut due: Vec<String> =
        claim(&store, "two", 100).await.into_iter().map(|row| row.message_id).collect();
    due.sort();
    assert_eq!(due, ["behind-claimed", "behind-waits", "claimed", "waits"]);
}
