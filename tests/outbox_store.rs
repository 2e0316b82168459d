//! The outbox's rows as relays and operators handle them, on real PostgreSQL and on SQLite.

mod support;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use integration_hub::domain::outbox::{Lane, RaisedEvent, Status, Step};
use integration_hub::store::{
    ClaimRequest, ClaimedRow, Cursor, FailedAttempt, GivenUp, Retention, Row, Selection, Store, StoreError,
    StoreOptions,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use support::outbox::{TestDatabase, claim, claim_of, event, ids, of_broker, positions};
use support::{PASSWORD, TestPostgres, eventually};

const SOON: Duration = Duration::from_secs(20);
const NOW: Duration = Duration::ZERO;
const LATER: Duration = Duration::from_secs(3600);

/// Runs each of these on both databases.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_postgres {
            $(#[tokio::test]
            async fn $name() {
                let Some(database) = super::TestDatabase::postgres().await else { return };
                super::$name(&database).await;
            })*
        }
        mod on_sqlite {
            $(#[tokio::test]
            async fn $name() {
                let Some(database) = super::TestDatabase::sqlite().await else { return };
                super::$name(&database).await;
            })*
        }
    };
}

on_both!(
    commit_writes_and_rollback_leaves_nothing,
    order_is_kept_within_a_stream,
    a_failed_row_holds_back_its_stream_alone,
    a_long_stream_that_waits_starves_nobody,
    a_stream_in_other_hands_starves_nobody,
    relays_at_once_take_each_row_once_and_in_order,
    whatever_happens_no_row_overtakes_another,
    a_claim_passes_over_the_streams_it_is_told,
    an_expired_claim_is_taken_over_and_its_holder_knows,
    expired_claims_go_before_what_is_due_for_longer,
    an_extended_claim_stays,
    each_step_leads_where_the_domain_says,
    live_goes_before_bulk_but_not_within_a_stream,
    operators_list_retry_and_discard,
    cleanup_keeps_what_is_young_or_owed,
    reconciling_writes_what_is_missing_in_its_place,
    setting_up_is_idempotent_and_concurrent,
    brokers_are_added_and_only_removed_on_demand,
    internal_and_external_rows_go_their_own_ways,
    what_is_due_next_is_told,
);

fn raised(id: &str, stream: &str) -> RaisedEvent {
    RaisedEvent::from_json(&event(id, stream).to_string()).expect("the event is good")
}

async fn raise(database: &TestDatabase, rows: &[(&str, &str)]) {
    let events: Vec<RaisedEvent> = rows.iter().map(|(id, stream)| raised(id, stream)).collect();
    database.publish(&events, true).await.expect("the events are raised");
}

async fn rows(store: &Store) -> Vec<Row> {
    store.list(&Selection::default(), &Cursor::default(), 10_000).await.expect("the rows are listed")
}

fn failed(position: i64, retry_after: Duration) -> FailedAttempt {
    FailedAttempt { position, error: "it said no".to_owned(), retry_after }
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

    // The same id again is refused, and so is all of its transaction.
    let error = database.publish(&[raised("e2", "s"), public], true).await.unwrap_err().to_string();
    assert!(error.contains("raised before"), "{error}");
    assert_eq!(rows(&store).await.len(), 3);
}

async fn order_is_kept_within_a_stream(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    raise(database, &[("a1", "a"), ("b1", "b"), ("a2", "a"), ("a3", "a"), ("b2", "b")]).await;
    let first = claim(&store, "one", 2).await;
    assert_eq!(ids(&first), ["a1", "b1"]);
    // What is behind rows that another one holds does not go, though it is pending.
    assert_eq!(claim(&store, "two", 10).await, []);
    store.mark_published("internal", "one", &[first[0].position]).await.unwrap();
    assert_eq!(ids(&claim(&store, "two", 1).await), ["a2"]);
    // In one claim a whole stream may go: its holder sends it in order.
    store.mark_published("internal", "one", &[first[1].position]).await.unwrap();
    assert_eq!(ids(&claim(&store, "one", 10).await), ["b2"]);
    let row = &first[0];
    assert_eq!((row.event_type.as_str(), row.stream.as_str(), row.attempts), ("user.created", "a", 0));
    assert!(row.payload.contains("\"a1\"") && !row.is_public);
    let age = time::OffsetDateTime::now_utc() - row.created_at;
    assert!(age.whole_seconds().abs() < 60, "{age}");
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

    // An operator's word brings the whole stream back at once, also what was put off behind it.
    let retried = store.retry(&of_broker(None), &Cursor::default(), 10).await.unwrap();
    assert_eq!((retried.changed, retried.next), (1, None));
    let claimed = claim(&store, "one", 10).await;
    assert_eq!(ids(&claimed), ["a1", "a2", "a3"]);
    assert_eq!(claimed[0].attempts, 0);

    // So does the time.
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

/// Far more rows than one claim looks at stand behind one that waits.
async fn a_long_stream_that_waits_starves_nobody(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let names: Vec<String> = (0..200).map(|number| format!("a{number:03}")).collect();
    let stuck: Vec<RaisedEvent> = names.iter().map(|name| raised(name, "a")).collect();
    database.publish(&stuck, true).await.unwrap();
    let head = claim(&store, "one", 1).await;
    store.fail("internal", "one", &[failed(head[0].position, LATER)]).await.unwrap();
    raise(database, &[("b1", "b")]).await;
    assert_eq!(ids(&claim(&store, "one", 10).await), ["b1"]);
    // They are put off little by little, and then cost nothing.
    for _ in 0..25 {
        assert_eq!(claim(&store, "one", 10).await, []);
    }
    let due_now =
        rows(&store).await.iter().filter(|row| row.status == Status::Pending).fold(0, |count, row| {
            let due = row.due_at.expect("it is open") - time::OffsetDateTime::now_utc();
            count + usize::from(due.whole_seconds() < 60)
        });
    assert_eq!(due_now, 0);
    store.retry(&Selection::default(), &Cursor::default(), 10).await.unwrap();
    let all = claim(&store, "one", 1000).await;
    assert_eq!(ids(&all), names.iter().map(String::as_str).collect::<Vec<_>>());
}

async fn a_stream_in_other_hands_starves_nobody(database: &TestDatabase) {
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
                // Now and then an attempt fails: what is behind it in its stream is given back.
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

/// Random events, claims, successes, failures, returns and expiries: whenever a row is claimed, all that
/// stands before it in its stream is settled or in the same claim; and in the end everything is sent.
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
                let lane = Lane::ALL[random.random_range(0..2)];
                let claim_time = Duration::from_millis(random.random_range(1..60));
                let limit = random.random_range(1..8);
                let request = ClaimRequest {
                    broker: "internal",
                    lane,
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
                // (Not its own any more where the claim has expired.)
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
        for lane in Lane::ALL {
            let claimed = claim_of(&store, "internal", lane, "last", 100).await;
            store.mark_published("internal", "last", &positions(&claimed)).await.unwrap();
        }
        let open: Vec<Row> = rows(&store).await.into_iter().filter(|row| row.status.is_open()).collect();
        if open.is_empty() { Ok(()) } else { Err(open) }
    })
    .await;
    assert_eq!(rows(&store).await.len(), raised_so_far);
}

async fn a_claim_passes_over_the_streams_it_is_told(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    raise(database, &[("a1", "a"), ("b1", "b"), ("a2", "a"), ("c1", "c")]).await;
    let passed_over = ["a".to_owned(), "c".to_owned()];
    let claim_time = LATER;
    let (broker, lane, holder, limit) = ("internal", Lane::Live, "one", 1);
    let request = ClaimRequest { broker, lane, holder, limit, claim_time, passed_over: &passed_over };
    // Room for one only: what is passed over takes none of it.
    assert_eq!(ids(&store.claim(&request).await.unwrap()), ["b1"]);
    assert_eq!(store.claim(&request).await.unwrap(), []);
    assert_eq!(ids(&claim(&store, "two", 10).await), ["a1", "a2", "c1"]);
}

async fn an_expired_claim_is_taken_over_and_its_holder_knows(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    raise(database, &[("a1", "a"), ("a2", "a")]).await;
    let short = ClaimRequest {
        broker: "internal",
        lane: Lane::Live,
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

/// A dead relay's rows stand before a backlog that is due since before the claim expired.
async fn expired_claims_go_before_what_is_due_for_longer(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let names: Vec<String> = (0..60).map(|number| format!("a{number:02}")).collect();
    let events: Vec<RaisedEvent> = names.iter().map(|name| raised(name, "a")).collect();
    database.publish(&events, true).await.unwrap();
    let claim_time = Duration::from_millis(50);
    let request = ClaimRequest {
        broker: "internal",
        lane: Lane::Live,
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
        lane: Lane::Live,
        holder: "one",
        limit: 1,
        claim_time,
        passed_over: &[],
    };
    let position = [store.claim(&request).await.unwrap()[0].position];
    assert_eq!(store.extend("internal", "one", &position, LATER).await.unwrap(), 1);
    let due = rows(&store).await[0].due_at.unwrap() - time::OffsetDateTime::now_utc();
    assert!(due.whole_seconds() > 3000, "{due}");
    assert_eq!(rows(&store).await[0].claimed_by.as_deref(), Some("one"));
}

/// Every step from every status, compared with the pure table.
async fn each_step_leads_where_the_domain_says(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let steps = [
        Step::Claim { due: true },
        Step::Claim { due: false },
        Step::Publish { held: true },
        Step::Publish { held: false },
        Step::Fail { held: true },
        Step::Fail { held: false },
        Step::Abandon { held: true },
        Step::Abandon { held: false },
        Step::Release { held: true },
        Step::Release { held: false },
        Step::Retry,
        Step::Discard,
    ];
    for from in Status::ALL {
        for step in steps {
            let id = format!("{from}-{step:?}");
            raise(database, &[(&id, &id)]).await;
            let selection = Selection { message_ids: vec![id.clone()], ..Selection::default() };
            let row = async || store.list(&selection, &Cursor::default(), 2).await.unwrap().pop().unwrap();
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
            if let Step::Claim { due } = step {
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
                Step::Claim { .. } => claim(&store, "heir", 10).await.len() as u64,
                Step::Publish { held } => {
                    store.mark_published("internal", holder(held), &[position]).await.unwrap()
                }
                Step::Fail { held } => {
                    store.fail("internal", holder(held), &[failed(position, LATER)]).await.unwrap()
                }
                Step::Abandon { held } => {
                    let row = GivenUp { position, reason: "because".to_owned() };
                    store.abandon("internal", holder(held), &[row]).await.unwrap()
                }
                Step::Release { held } => store.release("internal", holder(held), &[position]).await.unwrap(),
                Step::Retry => store.retry(&selection, &Cursor::default(), 10).await.unwrap().changed,
                Step::Discard => {
                    store.discard(&selection, "by hand", &Cursor::default(), 10).await.unwrap().changed
                }
            };
            let expected = from.after(step);
            assert_eq!(changed, u64::from(expected.is_some()), "{id}");
            let row = row().await;
            assert_eq!(row.status, expected.unwrap_or(from), "{id}");
            assert_eq!(row.due_at.is_some(), row.status.is_open(), "{id}");
            assert_eq!(row.settled_at.is_some(), !row.status.is_open(), "{id}");
            assert_eq!(row.claimed_by.is_some(), row.status == Status::Processing, "{id}");
            // Out of the way of the next.
            database.sql("DELETE FROM {messages}").await.unwrap();
        }
    }
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
    assert_eq!(live[0].lane, Lane::Live);
    let bulk = claim_of(&store, "internal", Lane::Bulk, "one", 10).await;
    assert_eq!(ids(&bulk), ["b1", "b2"]);
    store.mark_published("internal", "one", &positions(&bulk)).await.unwrap();
    let last = eventually(SOON, "the live row is next in its stream", async || {
        let claimed = claim(&store, "one", 10).await;
        if claimed.is_empty() { Err("nothing yet") } else { Ok(claimed) }
    })
    .await;
    assert_eq!(ids(&last), ["l1"]);
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
    let list = async |selection: Selection| {
        let found = store.list(&selection, &Cursor::default(), 100).await.unwrap();
        found.into_iter().map(|row| row.message_id).collect::<Vec<_>>()
    };
    let partner = || of_broker(Some("partner"));
    assert_eq!(list(partner()).await.len(), 7);
    assert_eq!(list(Selection { stream: Some("s1".to_owned()), ..partner() }).await, ["e1", "e3", "e5"]);
    assert_eq!(list(Selection { event_type: Some("role.granted".to_owned()), ..partner() }).await, ["e6"]);
    assert_eq!(
        list(Selection { message_ids: vec!["e2".to_owned(), "x".to_owned()], ..partner() }).await,
        ["e2"]
    );
    assert_eq!(list(Selection { statuses: vec![Status::Abandoned], ..partner() }).await, [""; 0]);

    // Pages go on where the last one ended, brokers included.
    let (mut seen, mut cursor) = (Vec::new(), Cursor::default());
    loop {
        let page = store.list(&Selection::default(), &cursor, 3).await.unwrap();
        let Some(last) = page.last() else { break };
        cursor = Cursor { position: last.position, broker: last.broker.clone() };
        seen.extend(page.into_iter().map(|row| (row.message_id, row.broker)));
    }
    assert_eq!((seen.len(), seen.iter().collect::<HashSet<_>>().len()), (14, 14));

    // In batches, to the end.
    let (mut changed, mut cursor) = (0, Some(Cursor::default()));
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
    let row = store.list(&partner(), &Cursor::default(), 1).await.unwrap().remove(0);
    assert_eq!((row.status, row.last_error.as_deref()), (Status::Abandoned, Some("not wanted")));

    let (mut changed, mut cursor) = (0, Some(Cursor::default()));
    while let Some(after) = cursor {
        let batch = store.retry(&partner(), &after, 3).await.unwrap();
        changed += batch.changed;
        cursor = batch.next;
    }
    assert_eq!(changed, 7);
    assert_eq!(claim_of(&store, "partner", Lane::Live, "one", 100).await.len(), 7);
    assert_eq!(claim(&store, "one", 100).await.len(), 7);
}

async fn cleanup_keeps_what_is_young_or_owed(database: &TestDatabase) {
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
    let external = claim_of(&store, "partner", Lane::Live, "one", 10).await;
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
    // Bounded; the internal rows first. The abandoned one is kept longer, and with it its external row.
    let abandoned = Duration::from_secs(100 * 365 * 24 * 3600);
    assert_eq!(store.cleanup(keep(LATER, abandoned), 2).await.unwrap(), 2);
    assert_eq!(store.cleanup(keep(LATER, abandoned), 2).await.unwrap(), 2);
    assert_eq!(store.cleanup(keep(LATER, abandoned), 100).await.unwrap(), 2);
    assert_eq!(store.cleanup(keep(LATER, abandoned), 100).await.unwrap(), 0);
    // What was cleaned up is no gap.
    assert_eq!(store.reconcile(&Cursor::default(), 100).await.unwrap().changed, 0);
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
    // A broker that comes later has no claim to what was before.
    tokio::time::sleep(Duration::from_millis(5)).await;
    store.sync_brokers(&["partner".to_owned(), "late".to_owned()], true).await.unwrap();

    let (mut derived, mut cursor) = (Vec::new(), Some(Cursor::default()));
    while let Some(after) = cursor {
        let batch = store.reconcile(&after, 2).await.unwrap();
        derived.push(batch.changed);
        cursor = batch.next;
    }
    assert_eq!(derived, [1, 1, 0]);
    assert_eq!(database.envelope("partner", "e1").await.unwrap(), before);
    let claimed = claim_of(&store, "partner", Lane::Live, "one", 10).await;
    assert_eq!(ids(&claimed), ["e0", "e1", "e2", "e4"]);
    assert_eq!(claim_of(&store, "late", Lane::Live, "one", 10).await, []);
    assert_eq!(store.reconcile(&Cursor::default(), 100).await.unwrap().changed, 0);
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
        assert_eq!(done.to, 1);
    }
    assert_eq!(made, 1, "one of them made it, the others found it");
    raise(database, &[("e1", "s")]).await;
    assert_eq!(store.setup().await.unwrap().from, 1);
    assert_eq!(rows(&store).await.len(), 1);
    store.check().await.unwrap();

    let messages =
        if matches!(database, TestDatabase::Sqlite { .. }) { "hub_outbox_" } else { "hub_outbox." };
    database.sql(&format!("INSERT INTO {messages}migrations (version) VALUES (99)")).await.unwrap();
    for refused in [store.check().await, store.setup().await.map(drop)] {
        assert!(matches!(refused, Err(StoreError::Newer { found: 99, .. })), "{refused:?}");
    }
}

async fn claim_error(store: &Store) -> StoreError {
    let request = ClaimRequest {
        broker: "internal",
        lane: Lane::Live,
        holder: "x",
        limit: 1,
        claim_time: LATER,
        passed_over: &[],
    };
    store.claim(&request).await.expect_err("there is no outbox")
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

async fn internal_and_external_rows_go_their_own_ways(database: &TestDatabase) {
    let store = database.outbox(&["partner"]).await;
    let mut first = event("e1", "s");
    first["published"] = json!(true);
    database.raise(&first).await.unwrap();
    database.raise(&event("e2", "s")).await.unwrap();
    let external = claim_of(&store, "partner", Lane::Live, "one", 10).await;
    assert_eq!(ids(&external), ["e1"], "what is not published never leaves");
    assert!(external[0].is_public);
    store.fail("partner", "one", &[failed(external[0].position, LATER)]).await.unwrap();
    assert_eq!(ids(&claim(&store, "one", 10).await), ["e1", "e2"]);
}

async fn what_is_due_next_is_told(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    assert_eq!(store.next_due("internal").await.unwrap(), None);
    raise(database, &[("e1", "s")]).await;
    assert_eq!(store.next_due("internal").await.unwrap(), Some(NOW));
    let claimed = claim(&store, "one", 1).await;
    let wait = store.next_due("internal").await.unwrap().unwrap();
    assert!((30..=60).contains(&wait.as_secs()), "the claim's end: {wait:?}");
    store.fail("internal", "one", &[failed(claimed[0].position, LATER)]).await.unwrap();
    let wait = store.next_due("internal").await.unwrap().unwrap();
    assert!((3_000..=3_600).contains(&wait.as_secs()), "{wait:?}");
}

#[tokio::test]
async fn a_commit_is_heard_and_a_rollback_is_not() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&[]).await;
    let mut wakeups = store.wakeups().await.unwrap();
    assert!(wakeups.is_heard());
    database.publish(&[raised("e1", "s")], false).await.unwrap();
    database.publish(&[raised("e2", "s"), raised("e3", "s")], true).await.unwrap();
    tokio::time::timeout(SOON, wakeups.next()).await.expect("the commit is heard").unwrap();
    // Both events were one word.
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
    // A claim does not wait for the disk; with the next commit it is there for certain.
    publish("e2");
    server.crash();
    let error = claim_error(&store).await;
    assert!(error.is_transient(), "{error:?}");
    assert!(!format!("{error} {error:?} {store:?}").contains(PASSWORD), "{error:?} {store:?}");
    server.restart().await;
    // What was committed is there, the claim included, and word comes again.
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
fn a_bad_url_is_told_without_its_password() {
    for url in ["", "no scheme", "mysql://u:pg-tell-nobody@h/d", "postgres://u:pg-tell-nobody@h:port/d"] {
        let error = Store::new(StoreOptions::new(url.to_owned().into())).expect_err(url);
        assert!(matches!(error, StoreError::Url { .. }), "{error}");
        assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error:?}");
    }
}
