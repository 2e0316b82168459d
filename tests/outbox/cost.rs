//! The cost of a claim on PostgreSQL with many published rows, in rows that the server reads.

use std::time::Duration;

use hub_outbox::RaisedEvent;

use crate::support::eventually;
use crate::support::outbox::{TestDatabase, claim, event, positions};

const BATCH: usize = 100;
const ROUNDS: usize = 60;
const ARCHIVE: usize = 1_000_000;

/// Raises, claims and marks a hundred rows, each time on new connections, because the server publishes the statistics
/// of a connection when it ends.
async fn round(database: &TestDatabase, round: usize) {
    let events: Vec<_> = (0..BATCH)
        .map(|number| {
            let event = event(&format!("{round}-{number}"), &format!("s{number}"));
            RaisedEvent::from_json(&event.to_string()).expect("the event is good")
        })
        .collect();
    database.publish(&events, true).await.expect("the events are raised");
    let store = database.store();
    let claimed = claim(&store, "one", BATCH).await;
    assert_eq!(claimed.len(), BATCH);
    assert_eq!(store.mark_published("internal", "one", &positions(&claimed)).await.unwrap(), BATCH as u64);
    store.close().await;
}

/// Number of rows and index entries that the server has read so far.
async fn read_so_far(database: &TestDatabase) -> i64 {
    let TestDatabase::Postgres { pool, .. } = database else { unreachable!("it is PostgreSQL") };
    let statement = "SELECT (SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_user_tables)::bigint \
                     + (SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes)::bigint";
    sqlx::query_scalar(statement).fetch_one(pool).await.expect("the statistics are read")
}

#[tokio::test]
async fn a_million_published_rows_are_not_read_by_a_claim() {
    let Some(database) = TestDatabase::postgres().await else { return };
    database.outbox(&[]).await.close().await;
    database
        .sql(&format!(
            "INSERT INTO {{messages}} (position, broker, message_id, event_type, stream, lane, is_public, payload,
                 status, settled_at)
             SELECT nextval('hub_outbox.positions'), 'internal', 'old-' || n, 'user.created', 's' || n % 1000,
                 'live', false, '{{\"data\": 1}}', 'published', now()
             FROM generate_series(1, {ARCHIVE}) AS n"
        ))
        .await
        .expect("the archive is written");
    database.sql("VACUUM (ANALYZE) {messages}").await.expect("the server tidies up");
    let before = read_so_far(&database).await;
    for number in 0..ROUNDS {
        round(&database, number).await;
    }
    // Each row was read at least once, to be claimed.
    let read = eventually(Duration::from_secs(30), "the statistics are published", async || {
        let read = read_so_far(&database).await - before;
        if read >= (ROUNDS * BATCH) as i64 { Ok(read) } else { Err(read) }
    })
    .await;
    let each = read / ROUNDS as i64;
    println!("a claim of {BATCH} with {ARCHIVE} published rows reads {each} rows and index entries");
    assert!(each < (ARCHIVE / 20) as i64, "a claim reads {each} rows and index entries");
}
