//! What the archive of published rows costs a claim on PostgreSQL.

use std::time::{Duration, Instant};

use hub_outbox::RaisedEvent;
use hub_outbox::Store;

use crate::support::outbox::{TestDatabase, claim, event, positions};

const BATCH: usize = 100;
const ROUNDS: usize = 60;

/// The time of one claim of a hundred rows.
async fn cost(database: &TestDatabase, store: &Store, round: usize) -> Duration {
    let events: Vec<_> = (0..BATCH)
        .map(|number| {
            let event = event(&format!("{round}-{number}"), &format!("s{number}"));
            RaisedEvent::from_json(&event.to_string()).expect("the event is good")
        })
        .collect();
    database.publish(&events, true).await.expect("the events are raised");
    let started = Instant::now();
    let claimed = claim(store, "one", BATCH).await;
    let took = started.elapsed();
    assert_eq!(claimed.len(), BATCH);
    assert_eq!(store.mark_published("internal", "one", &positions(&claimed)).await.unwrap(), BATCH as u64);
    took
}

#[tokio::test]
async fn a_million_published_rows_cost_a_claim_little() {
    let Some(empty) = TestDatabase::postgres().await else { return };
    let Some(full) = TestDatabase::postgres().await else { return };
    let stores = [empty.outbox(&[]).await, full.outbox(&[]).await];
    full.sql(
        "INSERT INTO {messages} (position, broker, message_id, event_type, stream, lane, is_public, payload, status,
             settled_at)
         SELECT nextval('hub_outbox.positions'), 'internal', 'old-' || n, 'user.created', 's' || n % 1000, 'live',
             false, '{\"data\": 1}', 'published', now()
         FROM generate_series(1, 1000000) AS n",
    )
    .await
    .expect("the archive is written");
    // The archive is old; what the server does about a million rows that have just come is not its cost.
    for upkeep in ["VACUUM (ANALYZE) {messages}", "CHECKPOINT"] {
        full.sql(upkeep).await.expect("the server tidies up");
    }
    let mut times = [Vec::new(), Vec::new()];
    // In turns, so that whatever else the machine does meets both.
    for round in 0..ROUNDS {
        for (at, database) in [&empty, &full].into_iter().enumerate() {
            times[at].push(cost(database, &stores[at], round).await);
        }
    }
    let [empty, full] = times.map(|mut times| {
        times.sort();
        times[ROUNDS / 2]
    });
    println!("a claim of {BATCH}: {empty:?} from an empty table, {full:?} beside 1,000,000 published rows");
    assert!(full <= empty.mul_f64(1.5), "{empty:?} and {full:?}");
}
