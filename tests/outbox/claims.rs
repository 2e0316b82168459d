//! The selection and the order of claimed rows, on PostgreSQL and SQLite.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hub_outbox::{ClaimRequest, ClaimedRow, FailedAttempt, GivenUp, Row, RowCursor, RowSelection, Store};
use integration_hub::domain::producer_outbox::{Priority, RaisedEvent, Status};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

use crate::support::eventually;
use crate::support::outbox::{TestDatabase, claim, claim_of, event, ids, of_broker, on_both, positions};

const SOON: Duration = Duration::from_secs(20);
const NOW: Duration = Duration::ZERO;
const LATER: Duration = Duration::from_secs(3600);
const MUCH_LATER: Duration = Duration::from_secs(10 * 3600);
/// SQLite rounds times to milliseconds.
const PRECISION: Duration = Duration::from_millis(1);

on_both!(
    order_is_kept_within_a_stream,
    a_failed_row_holds_back_its_stream_alone,
    a_long_waiting_stream_starves_no_other,
    a_stream_claimed_by_another_relay_starves_no_other,
    relays_at_once_take_each_row_once_and_in_order,
    whatever_happens_no_row_overtakes_another,
    a_claim_skips_the_streams_that_the_request_names,
    an_expired_claim_is_taken_over_and_its_holder_knows,
    expired_claims_go_before_what_is_due_for_longer,
    an_extended_claim_stays,
    live_goes_before_bulk_but_not_within_a_stream,
    the_next_due_time_is_reported,
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

async fn order_is_kept_within_a_stream(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let before = time::OffsetDateTime::now_utc();
    raise(database, &[("a1", "a"), ("b1", "b"), ("a2", "a"), ("a3", "a"), ("b2", "b")]).await;
    let after = time::OffsetDateTime::now_utc();
    let first = claim(&store, "one", 2).await;
    assert_eq!(ids(&first), ["a1", "b1"]);
    // Pending rows after claimed rows of their stream are not claimed.
    assert_eq!(claim(&store, "two", 10).await, []);
    store.mark_published("internal", "one", &[first[0].position]).await.unwrap();
    assert_eq!(ids(&claim(&store, "two", 1).await), ["a2"]);
    // One claim may contain a whole stream, because its holder sends it in order.
    store.mark_published("internal", "one", &[first[1].position]).await.unwrap();
    assert_eq!(ids(&claim(&store, "one", 10).await), ["b2"]);
    let row = &first[0];
    assert_eq!((row.event_type.as_str(), row.stream.as_str(), row.attempts), ("user.created", "a", 0));
    assert!(row.payload.contains("\"a1\"") && !row.is_public);
    let created = row.created_at;
    let is_then = before - PRECISION <= created && created <= after + PRECISION;
    assert!(is_then, "{created} is not from {before} to {after}");
}

async fn a_failed_row_holds_back_its_stream_alone(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    raise(database, &[("a1", "a"), ("a2", "a"), ("b1", "b")]).await;
    let claimed = claim(&store, "one", 10).await;
    assert_eq!(ids(&claimed), ["a1", "a2", "b1"]);
    store.fail("internal", "one", &[failed(claimed[0].position, LATER)]).await.unwrap();
    store.release("internal", "one", &[claimed[1].position]).await.unwrap();
    store.mark_published("internal", "one", &[claimed[2].position]).await.unwrap();
    for _ in 0..3 {
        assert_eq!(claim(&store, "one", 10).await, []);
    }
    raise(database, &[("a3", "a"), ("b2", "b")]).await;
    assert_eq!(ids(&claim(&store, "one", 10).await), ["b2"]);

    // A retry by the operator makes the whole stream due at once, including the postponed rows.
    let retried = store.retry(&of_broker(None), &RowCursor::default(), 10).await.unwrap();
    assert_eq!((retried.changed, retried.next), (1, None));
    let claimed = claim(&store, "one", 10).await;
    assert_eq!(ids(&claimed), ["a1", "a2", "a3"]);
    assert_eq!(claimed[0].attempts, 0);

    // The end of the wait has the same effect.
    store.fail("internal", "one", &[failed(claimed[0].position, Duration::from_millis(300))]).await.unwrap();
    store.release("internal", "one", &positions(&claimed[1..])).await.unwrap();
    let again = eventually(SOON, "the stream is due again", async || {
        let claimed = claim(&store, "one", 10).await;
        if claimed.is_empty() { Err("nothing yet") } else { Ok(claimed) }
    })
    .await;
    assert_eq!(ids(&again), ["a1", "a2", "a3"]);
    assert_eq!((again[0].attempts, again[1].attempts), (1, 0));
}

/// A waiting row is followed by far more rows than one claim reads.
async fn a_long_waiting_stream_starves_no_other(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let names: Vec<String> = (0..200).map(|number| format!("a{number:03}")).collect();
    let stuck: Vec<RaisedEvent> = names.iter().map(|name| raised(name, "a")).collect();
    database.publish(&stuck, true).await.unwrap();
    let head = claim(&store, "one", 1).await;
    store.fail("internal", "one", &[failed(head[0].position, LATER)]).await.unwrap();
    raise(database, &[("b1", "b")]).await;
    assert_eq!(ids(&claim(&store, "one", 10).await), ["b1"]);
    // They are postponed in steps, and then are not read any more.
    for _ in 0..25 {
        assert_eq!(claim(&store, "one", 10).await, []);
    }
    let rows = rows(&store).await;
    let due = |row: &Row| row.due_at.expect("it is open");
    let head = rows.iter().find(|row| row.position == head[0].position).map(due).expect("it is there");
    let earlier = rows.iter().filter(|row| row.status == Status::Pending && due(row) < head).count();
    assert_eq!(earlier, 0, "rows are read before the one that they wait for");
    store.retry(&RowSelection::default(), &RowCursor::default(), 10).await.unwrap();
    let all = claim(&store, "one", 1000).await;
    assert_eq!(ids(&all), names.iter().map(String::as_str).collect::<Vec<_>>());
}

async fn a_stream_claimed_by_another_relay_starves_no_other(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let events: Vec<RaisedEvent> = (0..30).map(|number| raised(&format!("a{number}"), "a")).collect();
    database.publish(&events, true).await.unwrap();
    raise(database, &[("b1", "b")]).await;
    assert_eq!(claim(&store, "one", 10).await.len(), 10);
    assert_eq!(ids(&claim(&store, "two", 10).await), ["b1"]);
}

async fn relays_at_once_take_each_row_once_and_in_order(database: &TestDatabase) {
    const STREAMS: usize = 13;
    const EVENTS: usize = 1_500;
    let store = database.outbox(&[]).await;
    let events: Vec<RaisedEvent> = (0..EVENTS)
        .map(|number| raised(&format!("{number:04}"), &format!("s{}", number % STREAMS)))
        .collect();
    let (before, while_they_run) = events.split_at(EVENTS / 2);
    database.publish(before, true).await.unwrap();
    let sent: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let relays = (0..4).map(|number| {
        let (store, sent) = (store.clone(), Arc::clone(&sent));
        tokio::spawn(async move {
            let holder = format!("relay-{number}");
            let mut round = 0;
            while sent.lock().unwrap().len() < EVENTS {
                let claimed = claim(&store, &holder, 37).await;
                round += 1;
                // Some attempts fail: the later rows of the stream are released.
                let failing = (round % 5 == 0).then(|| claimed.first()).flatten();
                let (mut done, mut back) = (Vec::new(), Vec::new());
                for row in &claimed {
                    if failing.is_some_and(|failing| failing.stream == row.stream) {
                        back.push(row.position);
                    } else {
                        sent.lock().unwrap().push((row.stream.clone(), row.message_id.clone()));
                        done.push(row.position);
                    }
                }
                if let Some(row) = failing {
                    let wait = Duration::from_millis(5);
                    assert_eq!(
                        store.fail("internal", &holder, &[failed(row.position, wait)]).await.unwrap(),
                        1
                    );
                    let released = store.release("internal", &holder, &back[1..]).await.unwrap();
                    assert_eq!(released, back.len() as u64 - 1);
                }
                let marked = store.mark_published("internal", &holder, &done).await.unwrap();
                assert_eq!(marked, done.len() as u64);
                tokio::task::yield_now().await;
            }
        })
    });
    let relays: Vec<_> = relays.collect();
    for event in while_they_run.chunks(50) {
        database.publish(event, true).await.unwrap();
    }
    for relay in relays {
        tokio::time::timeout(Duration::from_secs(120), relay).await.expect("all are sent").unwrap();
    }
    let sent = sent.lock().unwrap().clone();
    let distinct: HashSet<&String> = sent.iter().map(|(_, id)| id).collect();
    assert_eq!((sent.len(), distinct.len()), (EVENTS, EVENTS), "each once, none skipped");
    let mut last = BTreeMap::new();
    for (stream, id) in &sent {
        if let Some(before) = last.insert(stream, id) {
            assert!(before < id, "{stream}: {before} before {id}");
        }
    }
}

/// Random events, claims, successes, failures, releases and expiries: when a row is claimed, all earlier rows of its
/// stream are settled or in the same claim, and in the end all rows are sent.
async fn whatever_happens_no_row_overtakes_another(database: &TestDatabase) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let store = database.outbox(&[]).await;
    let mut held: Vec<(String, ClaimedRow)> = Vec::new();
    let mut raised_so_far = 0;
    for step in 0..250 {
        let draining = step >= 200;
        match random.random_range(if draining { 2 } else { 0 }..10) {
            0 | 1 => {
                for _ in 0..random.random_range(1..6) {
                    let stream = format!("s{}", random.random_range(0..4));
                    let mut event = event(&format!("{raised_so_far:04}"), &stream);
                    event["priority"] = json!(if random.random_ratio(1, 4) { "bulk" } else { "live" });
                    database.raise(&event).await.unwrap();
                    raised_so_far += 1;
                }
            }
            2..=4 => {
                let holder = format!("relay-{}", random.random_range(0..3));
                let priority = Priority::ALL[random.random_range(0..2)];
                let claim_time = Duration::from_millis(random.random_range(1..60));
                let limit = random.random_range(1..8);
                let request = ClaimRequest {
                    broker: "internal",
                    priority,
                    holder: &holder,
                    limit,
                    claim_time,
                    passed_over: &[],
                };
                let claimed = store.claim(&request).await.unwrap();
                assert!(claimed.len() <= limit);
                let all = rows(&store).await;
                for row in &claimed {
                    let before = all.iter().filter(|other| {
                        other.stream == row.stream && other.position < row.position && other.status.is_open()
                    });
                    for other in before {
                        let with_it = claimed.iter().any(|claimed| claimed.position == other.position);
                        assert!(with_it, "seed {seed}, step {step}: {row:?} before {other:?}");
                    }
                }
                held.extend(claimed.into_iter().map(|row| (holder.clone(), row)));
            }
            what if !held.is_empty() => {
                let (holder, row) = held.swap_remove(random.random_range(0..held.len()));
                let position = row.position;
                // (If the claim has expired, it is no longer the holder.)
                match what {
                    5 => {
                        let wait = Duration::from_millis(random.random_range(0..50));
                        store.fail("internal", &holder, &[failed(position, wait)]).await.unwrap()
                    }
                    6 => store.release("internal", &holder, &[position]).await.unwrap(),
                    7 if random.random_ratio(1, 3) => {
                        let row = GivenUp { position, reason: "no".to_owned() };
                        store.abandon("internal", &holder, &[row]).await.unwrap()
                    }
                    _ => store.mark_published("internal", &holder, &[position]).await.unwrap(),
                };
            }
            _ => {}
        }
    }
    eventually(SOON, "all is sent", async || {
        for priority in Priority::ALL {
            let claimed = claim_of(&store, "internal", priority, "last", 100).await;
            store.mark_published("internal", "last", &positions(&claimed)).await.unwrap();
        }
        let open: Vec<Row> = rows(&store).await.into_iter().filter(|row| row.status.is_open()).collect();
        if open.is_empty() { Ok(()) } else { Err(open) }
    })
    .await;
    assert_eq!(rows(&store).await.len(), raised_so_far);
}

async fn a_claim_skips_the_streams_that_the_request_names(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    raise(database, &[("a1", "a"), ("b1", "b"), ("a2", "a"), ("c1", "c")]).await;
    let passed_over = &["a".to_owned(), "c".to_owned()];
    let (broker, priority, holder, limit, claim_time) = ("internal", Priority::Live, "one", 1, LATER);
    let request = ClaimRequest { broker, priority, holder, limit, claim_time, passed_over };
    // The limit is one; skipped rows do not count.
    assert_eq!(ids(&store.claim(&request).await.unwrap()), ["b1"]);
    assert_eq!(store.claim(&request).await.unwrap(), []);
    assert_eq!(ids(&claim(&store, "two", 10).await), ["a1", "a2", "c1"]);
}

async fn an_expired_claim_is_taken_over_and_its_holder_knows(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    raise(database, &[("a1", "a"), ("a2", "a")]).await;
    let short = ClaimRequest {
        broker: "internal",
        priority: Priority::Live,
        holder: "dead",
        limit: 10,
        claim_time: Duration::from_millis(200),
        passed_over: &[],
    };
    let lost = store.claim(&short).await.unwrap();
    assert_eq!(ids(&lost), ["a1", "a2"]);
    assert_eq!(store.mark_published("internal", "dead", &[lost[0].position]).await.unwrap(), 1);
    let taken = eventually(SOON, "the claim expires", async || {
        let claimed = claim(&store, "heir", 10).await;
        if claimed.is_empty() { Err("nothing yet") } else { Ok(claimed) }
    })
    .await;
    assert_eq!(ids(&taken), ["a2"]);
    let position = [taken[0].position];
    assert_eq!(store.mark_published("internal", "dead", &position).await.unwrap(), 0);
    assert_eq!(store.fail("internal", "dead", &[failed(position[0], NOW)]).await.unwrap(), 0);
    assert_eq!(store.release("internal", "dead", &position).await.unwrap(), 0);
    assert_eq!(store.extend("internal", "dead", &position, LATER).await.unwrap(), 0);
    let given_up = GivenUp { position: position[0], reason: "x".to_owned() };
    assert_eq!(store.abandon("internal", "dead", &[given_up]).await.unwrap(), 0);
    assert_eq!(store.mark_published("internal", "heir", &position).await.unwrap(), 1);
}

/// The rows of a crashed relay come before a backlog that was due before their claim expired.
async fn expired_claims_go_before_what_is_due_for_longer(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let names: Vec<String> = (0..60).map(|number| format!("a{number:02}")).collect();
    let events: Vec<RaisedEvent> = names.iter().map(|name| raised(name, "a")).collect();
    database.publish(&events, true).await.unwrap();
    let claim_time = Duration::from_millis(50);
    let request = ClaimRequest {
        broker: "internal",
        priority: Priority::Live,
        holder: "dead",
        limit: 7,
        claim_time,
        passed_over: &[],
    };
    assert_eq!(store.claim(&request).await.unwrap().len(), 7);
    let mut sent: Vec<String> = Vec::new();
    let mut claims = 0;
    eventually(SOON, "everything is sent", async || {
        let claimed = claim(&store, "heir", 10).await;
        claims += usize::from(!claimed.is_empty());
        sent.extend(claimed.iter().map(|row| row.message_id.clone()));
        store.mark_published("internal", "heir", &positions(&claimed)).await.unwrap();
        if sent.len() < names.len() { Err(sent.len()) } else { Ok(()) }
    })
    .await;
    assert_eq!(sent, names);
    assert_eq!(claims, 6);
}

async fn an_extended_claim_stays(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    raise(database, &[("a1", "a")]).await;
    let claim_time = Duration::from_secs(2);
    let request = ClaimRequest {
        broker: "internal",
        priority: Priority::Live,
        holder: "one",
        limit: 1,
        claim_time,
        passed_over: &[],
    };
    let position = [store.claim(&request).await.unwrap()[0].position];
    let ends = async || rows(&store).await[0].due_at.expect("it is claimed");
    let before = ends().await;
    assert_eq!(store.extend("internal", "one", &position, LATER).await.unwrap(), 1);
    let more = ends().await - before;
    assert!(more >= LATER - claim_time, "{more}");
    assert_eq!(rows(&store).await[0].claimed_by.as_deref(), Some("one"));
}

async fn live_goes_before_bulk_but_not_within_a_stream(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    for (id, stream, priority) in
        [("b1", "a", "bulk"), ("b2", "b", "bulk"), ("l1", "a", "live"), ("l2", "c", "live")]
    {
        let mut event = event(id, stream);
        event["priority"] = json!(priority);
        database.raise(&event).await.unwrap();
    }
    let live = claim(&store, "one", 10).await;
    assert_eq!(ids(&live), ["l2"]);
    assert_eq!(live[0].priority, Priority::Live);
    let bulk = claim_of(&store, "internal", Priority::Bulk, "one", 10).await;
    assert_eq!(ids(&bulk), ["b1", "b2"]);
    store.mark_published("internal", "one", &positions(&bulk)).await.unwrap();
    let last = eventually(SOON, "the live row is next in its stream", async || {
        let claimed = claim(&store, "one", 10).await;
        if claimed.is_empty() { Err("nothing yet") } else { Ok(claimed) }
    })
    .await;
    assert_eq!(ids(&last), ["l1"]);
}

async fn the_next_due_time_is_reported(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    assert_eq!(store.next_due("internal").await.unwrap(), None);
    raise(database, &[("e1", "s")]).await;
    assert_eq!(store.next_due("internal").await.unwrap(), Some(NOW));
    let claimed = claim(&store, "one", 1).await;
    store.extend("internal", "one", &positions(&claimed), MUCH_LATER).await.unwrap();
    let claim_ends = store.next_due("internal").await.unwrap().unwrap();
    assert!(claim_ends > LATER && claim_ends <= MUCH_LATER, "{claim_ends:?}");
    store.fail("internal", "one", &[failed(claimed[0].position, LATER)]).await.unwrap();
    let tried_again = store.next_due("internal").await.unwrap().unwrap();
    assert!(tried_again > NOW && tried_again <= LATER, "{tried_again:?}");
}
