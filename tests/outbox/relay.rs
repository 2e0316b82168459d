//! `hub serve --role outbox-relay` on real databases and brokers: committed events arrive, in order.

use std::time::Duration;

use async_nats::jetstream::stream;
use futures_util::StreamExt;
use hub_outbox::{RowCursor, RowSelection, Store};
use integration_hub::domain::producer_outbox::Status;
use serde_json::{Value, json};

use crate::support::outbox::event;
use crate::support::outbox::on_both;
use crate::support::relay::{
    EVENTS, RELAY, SOON, assert_in_order, in_streams, partner, public, raise, rows, settings, stored, taken,
    wait_for,
};
use crate::support::settings::external;
use crate::support::{
    Hub, Receiver, RedisServer, TestBroker, TestClient, TestDatabase, TestSettings, eventually, subscription,
};

on_both!(
    a_commit_is_delivered_and_a_rollback_is_not,
    internal_and_external_messages_are_the_rows_envelopes,
    two_relays_send_each_row_once_and_in_order,
    live_goes_before_bulk,
    rows_that_can_never_be_published_are_abandoned_and_block_no_other,
    an_invalid_payload_is_abandoned_and_blocks_no_other,
    ids_that_nats_takes_for_one_are_not_lost_silently,
    missing_external_rows_are_found_and_sent,
    old_rows_are_deleted,
);

async fn a_commit_is_delivered_and_a_rollback_is_not(database: &TestDatabase) {
    database.outbox(&[]).await;
    let (broker, receiver) = (TestBroker::start().await, Receiver::start().await);
    // All roles: the settings name a database, so the relay is among them.
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick().with_outbox(&database.url()), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("all", &["user.>"], &receiver.url("/all"))]).await;

    let raised = |id: &str| serde_json::from_value(public(id, "user-u1")).expect("the event is good");
    database.publish(&[raised("undone-1"), raised("undone-2")], false).await.unwrap();
    database.publish(&[raised("done-1"), raised("done-2")], true).await.unwrap();
    let received = receiver.wait_for("/all", 2, SOON).await;
    broker.nothing_pending_within(SOON).await;

    let mut ids: Vec<String> =
        received.iter().map(|request| request.json()["id"].as_str().unwrap_or_default().to_owned()).collect();
    ids.sort();
    assert_eq!(ids, ["done-1", "done-2"]);
    let cloud_event = received[0].json();
    assert_eq!((&cloud_event["type"], &cloud_event["source"]), (&json!("user.created"), &json!("outbox")));
    assert!(cloud_event["data"]["user_id"].is_string() && cloud_event.get("metadata").is_none());
    assert_eq!(receiver.count("/all"), 2);
    let store = database.store();
    assert_eq!(
        store.list(&RowSelection::default(), &RowCursor::default(), 10).await.unwrap().len(),
        2,
        "no other rows"
    );
    // A published event without a target is reported once, regardless of their number.
    database.publish(&[raised("later-1"), raised("later-2")], true).await.unwrap();
    receiver.wait_for("/all", 4, SOON).await;
    assert_eq!(hub.log().matches("no external broker is configured").count(), 1);
    assert!(hub.terminate().await.success());
}

async fn internal_and_external_messages_are_the_rows_envelopes(database: &TestDatabase) {
    database.outbox(&["partner"]).await;
    let (broker, partner) = (TestBroker::start().await, partner().await);
    let external = external("partner", "nats", &partner.url());
    let mut hub = Hub::serve(&broker.url(), &settings(&database.url()).with_brokers([external]), &RELAY);
    hub.ready().await;
    raise(database, &[public("e1", "user-u1"), event("e2", "user-u1"), public("e3", "user-u1")]).await;

    let inside = stored(&broker, EVENTS, 3).await;
    let outside = stored(&partner, "PARTNER", 2).await;
    for (messages, name, prefix, ids) in [
        (&inside, "internal", "hub.events.", vec!["e1", "e2", "e3"]),
        (&outside, "partner", "", vec!["e1", "e3"]),
    ] {
        assert_eq!(messages.iter().map(|message| message.id.as_str()).collect::<Vec<_>>(), ids);
        for message in messages {
            assert_eq!(message.subject, format!("{prefix}user.created"));
            assert_eq!(Some(&message.body), database.envelope(name, &message.id).await.as_ref());
        }
    }
    let domain = |message: &Value| message["metadata"]["domain"].get("priority").is_some();
    assert!(domain(&inside[0].body) && !domain(&outside[0].body), "the sent envelope is stripped");
    let store = database.store();
    wait_for(&store, "internal", Status::Published, 3).await;
    wait_for(&store, "partner", Status::Published, 2).await;
    for (broker, published) in [("internal", 3.0), ("partner", 2.0)] {
        let label = format!("broker=\"{broker}\"");
        assert_eq!(hub.metric("hub_relay_published_total", &[&label]).await, published);
        assert_eq!(hub.metric("hub_relay_lag_seconds_count", &[&label]).await, published);
        assert_eq!(hub.metric("hub_relay_broker_up", &[&label]).await, 1.0);
    }
}

async fn two_relays_send_each_row_once_and_in_order(database: &TestDatabase) {
    const ROWS: usize = 1_500;
    let store = database.outbox(&["partner"]).await;
    let (broker, other) = (TestBroker::start().await, TestBroker::start().await);
    // Core NATS drops no duplicates, so every message that is sent twice is received twice.
    let listener = other.client().await;
    let mut heard = listener.subscribe("user.>").await.expect("subscribed");
    let external = external("partner", "nats", &other.url()).with(|broker| broker.jetstream = Some(false));
    let settings =
        settings(&database.url()).with_brokers([external]).with(|settings| settings.outbox.batch = Some(50));
    let mut hubs = [0, 1].map(|_| Hub::serve(&broker.url(), &settings, &RELAY));
    for hub in &mut hubs {
        hub.ready().await;
    }

    let events = in_streams(ROWS, 25);
    for chunk in events.chunks(100) {
        let raised: Vec<Value> = chunk.iter().map(|(id, stream)| public(id, stream)).collect();
        raise(database, &raised).await;
    }
    wait_for(&store, "internal", Status::Published, ROWS).await;
    wait_for(&store, "partner", Status::Published, ROWS).await;

    let inside = stored(&broker, EVENTS, ROWS as u64).await;
    assert_eq!(inside.len(), ROWS, "no duplicates");
    assert_in_order(inside.iter().map(|message| (message.id.clone(), message.stream())));
    let mut outside = Vec::new();
    while outside.len() < ROWS {
        let message = tokio::time::timeout(SOON, heard.next()).await.expect("it was published");
        let body: Value =
            serde_json::from_slice(&message.expect("still subscribed").payload).expect("an envelope");
        let of = |field: &str| body["metadata"]["headers"][field].as_str().unwrap_or_default().to_owned();
        outside.push((of("id"), of("stream")));
    }
    assert_in_order(outside.clone());
    let mut ids: Vec<&String> = outside.iter().map(|(id, _)| id).collect();
    ids.sort();
    assert!(ids.iter().copied().eq(events.iter().map(|(id, _)| id)), "each once, none skipped");
    let mut published = 0.0;
    for hub in &mut hubs {
        published += hub.metric("hub_relay_published_total", &[]).await;
        assert!(hub.terminate().await.success());
    }
    assert_eq!(published, 2.0 * ROWS as f64);
    // The relays have ended, so this message is the last.
    listener.publish("user.end", "".into()).await.expect("published");
    let next = tokio::time::timeout(SOON, heard.next()).await.expect("it was published");
    assert_eq!(next.expect("still subscribed").subject.as_str(), "user.end", "nothing was sent twice");
}

async fn live_goes_before_bulk(database: &TestDatabase) {
    const BULK: usize = 1_500;
    database.outbox(&[]).await;
    let broker = TestBroker::start().await;
    let bulk: Vec<Value> = in_streams(BULK, BULK)
        .iter()
        .map(|(id, stream)| {
            let mut event = event(id, stream);
            event["priority"] = json!("bulk");
            event
        })
        .collect();
    raise(database, &bulk).await;
    let live: Vec<Value> = (0..5).map(|n| event(&format!("live-{n}"), &format!("live-{n}"))).collect();
    raise(database, &live).await;
    let mut hub = Hub::serve(&broker.url(), &settings(&database.url()), &RELAY);
    hub.ready().await;
    let arrived = stored(&broker, EVENTS, (BULK + 5) as u64).await;
    let last_live = arrived.iter().rposition(|message| message.id.starts_with("live-")).expect("it is there");
    // Raised last, but waits for at most one short round of bulk rows.
    assert!(last_live < 300, "the last live event is number {last_live} of {}", arrived.len());
}

async fn rows_that_can_never_be_published_are_abandoned_and_block_no_other(database: &TestDatabase) {
    let store = database.outbox(&["partner"]).await;
    let (broker, partner) = (TestBroker::start().await, partner().await);
    let external = external("partner", "nats", &partner.url());
    // One row is larger than a server accepts (`publish` now rejects such an event); for the subject of another, the
    // partner has no stream, so its server rejects the message.
    let mut refused = public("e4", "s1");
    refused["type"] = json!("order.placed");
    let raised = [public("e1", "s1"), public("e2", "s1"), public("e3", "s1"), refused, public("e5", "s1")];
    raise(database, &raised).await;
    let larger = match database {
        TestDatabase::Postgres { .. } => {
            "jsonb_set(payload::jsonb, '{data}', to_jsonb(repeat('x', 1100000)))::json"
        }
        TestDatabase::Sqlite { .. } => "json_set(payload, '$.data', hex(zeroblob(550000)))",
    };
    let enlarge = format!("UPDATE {{messages}} SET payload = {larger} WHERE message_id = 'e2'");
    database.sql(&enlarge).await.expect("the rows are changed");
    let settings = settings(&database.url()).with_brokers([external]).with(|settings| {
        settings.outbox.max_attempts = Some(2);
        settings.outbox.retry = Some(vec![Duration::from_millis(50)]);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &RELAY);
    hub.ready().await;

    let inside = stored(&broker, EVENTS, 4).await;
    let outside = stored(&partner, "PARTNER", 3).await;
    let ids = |messages: &[crate::support::relay::Stored]| -> Vec<String> {
        messages.iter().map(|message| message.id.clone()).collect()
    };
    assert_eq!(ids(&inside), ["e1", "e3", "e4", "e5"]);
    assert_eq!(ids(&outside), ["e1", "e3", "e5"]);
    let inside = wait_for(&store, "internal", Status::Published, 4).await;
    let outside = wait_for(&store, "partner", Status::Published, 3).await;
    assert_eq!((inside[1].status, inside[1].attempts), (Status::Abandoned, 1));
    let reason = |row: &hub_outbox::Row| row.last_error.clone().unwrap_or_default();
    assert!(reason(&inside[1]).contains("larger than the server's max_payload"), "{:?}", inside[1]);
    assert_eq!((outside[1].status, outside[1].attempts), (Status::Abandoned, 1));
    assert_eq!((outside[3].status, outside[3].attempts), (Status::Abandoned, 2));
    assert!(reason(&outside[3]).contains("no stream stores this subject"), "{:?}", outside[3]);
    let partner = "broker=\"partner\"";
    assert_eq!(hub.metric("hub_relay_abandoned_total", &[partner]).await, 2.0);
    assert_eq!(hub.metric("hub_relay_failed_total", &[partner]).await, 1.0);
    assert_eq!(hub.metric("hub_relay_abandoned_total", &["broker=\"internal\""]).await, 1.0);
    assert!(hub.log().contains("scope=\"external\"") && hub.log().contains("scope=\"internal\""));
}

/// The table was written directly: SQLite accepts any text, PostgreSQL any JSON.
async fn an_invalid_payload_is_abandoned_and_blocks_no_other(database: &TestDatabase) {
    let store = database.outbox(&["partner"]).await;
    let (broker, partner) = (TestBroker::start().await, partner().await);
    raise(database, &[public("e1", "s1"), public("e2", "s1"), public("e3", "s1"), public("e4", "s1")]).await;
    let broken = match database {
        TestDatabase::Postgres { .. } => "\"text\"",
        TestDatabase::Sqlite { .. } => "{\"data\": ",
    };
    for (id, payload) in [("e2", broken), ("e3", "{\"data\": 1}")] {
        let script = format!("UPDATE {{messages}} SET payload = '{payload}' WHERE message_id = '{id}'");
        database.sql(&script).await.expect("the rows are changed");
    }
    let external = external("partner", "nats", &partner.url());
    let mut hub = Hub::serve(&broker.url(), &settings(&database.url()).with_brokers([external]), &RELAY);
    hub.ready().await;
    for (name, server, stream) in [("internal", &broker, EVENTS), ("partner", &partner, "PARTNER")] {
        let rows = wait_for(&store, name, Status::Published, 2).await;
        for row in &rows[1..3] {
            assert_eq!((row.status, row.attempts), (Status::Abandoned, 1), "{row:?}");
            let reason = row.last_error.clone().unwrap_or_default();
            assert!(reason.contains("the payload is not an envelope: "), "{reason}");
        }
        let arrived = stored(server, stream, 2).await;
        assert_eq!(arrived.iter().map(|message| message.id.as_str()).collect::<Vec<_>>(), ["e1", "e4"]);
    }
}

/// The server trims header values, so `Nats-Msg-Id` would be that of another event.
async fn ids_that_nats_takes_for_one_are_not_lost_silently(database: &TestDatabase) {
    let store = database.outbox(&["partner"]).await;
    let (broker, partner) = (TestBroker::start().await, partner().await);
    let external = external("partner", "nats", &partner.url());
    // Older versions of `publish` accepted ids with spaces at their ends.
    raise(database, &["x", "before", "after", "%20x", "x y"].map(|id| public(id, "s"))).await;
    for (id, blank) in [("before", " x"), ("after", "x ")] {
        let renamed = format!("UPDATE {{messages}} SET message_id = '{blank}' WHERE message_id = '{id}'");
        database.sql(&renamed).await.unwrap();
    }
    let mut hub = Hub::serve(&broker.url(), &settings(&database.url()).with_brokers([external]), &RELAY);
    hub.ready().await;
    for (name, server, stream) in [("internal", &broker, EVENTS), ("partner", &partner, "PARTNER")] {
        let rows = wait_for(&store, name, Status::Published, 3).await;
        for row in &rows[1..3] {
            assert_eq!(row.status, Status::Abandoned, "{row:?}");
            let reason = row.last_error.clone().unwrap_or_default();
            assert!(reason.contains("begins or ends with a space"), "{reason}");
        }
        let arrived = stored(server, stream, 3).await;
        assert_eq!(
            arrived.iter().map(|message| message.id.as_str()).collect::<Vec<_>>(),
            ["x", "%20x", "x y"]
        );
    }
}

async fn missing_external_rows_are_found_and_sent(database: &TestDatabase) {
    database.outbox(&["partner"]).await;
    let (broker, partner) = (TestBroker::start().await, partner().await);
    raise(database, &[public("e1", "s1"), public("e2", "s2"), event("e3", "s3")]).await;
    database.sql("DELETE FROM {messages} WHERE broker = 'partner' AND message_id = 'e1'").await.unwrap();
    let external = external("partner", "nats", &partner.url());
    let settings = settings(&database.url()).with_brokers([external]).with(|settings| {
        settings.outbox.reconcile_interval = Some(Duration::from_millis(200));
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &RELAY);
    hub.ready().await;
    let mut ids: Vec<String> =
        stored(&partner, "PARTNER", 2).await.iter().map(|message| message.id.clone()).collect();
    ids.sort();
    assert_eq!(ids, ["e1", "e2"]);
}

async fn old_rows_are_deleted(database: &TestDatabase) {
    let store = database.outbox(&[]).await;
    let broker = TestBroker::start().await;
    let settings = settings(&database.url()).with(|settings| {
        settings.outbox.cleanup_interval = Some(Duration::from_millis(200));
        settings.outbox.cleanup_batch = Some(7);
        settings.outbox.published_retention = Some(Duration::from_secs(1));
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &RELAY);
    hub.ready().await;
    let events: Vec<Value> = in_streams(50, 5).iter().map(|(id, stream)| event(id, stream)).collect();
    raise(database, &events).await;
    assert_eq!(stored(&broker, EVENTS, 50).await.len(), 50);
    eventually(SOON, "the rows are deleted", async || {
        let left = rows(&store, "internal").await.len();
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    assert_eq!(taken(&broker.jetstream().await, EVENTS).await, 50);
}

/// With a poll interval of an hour, only the notification of the commit can start the relay.
#[tokio::test]
async fn a_commit_wakes_the_relay() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&[]).await;
    let broker = TestBroker::start().await;
    let hour = Some(Duration::from_secs(3600));
    let settings = settings(&database.url()).with(|settings| {
        settings.outbox.poll_min = hour;
        settings.outbox.poll_max = hour;
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &RELAY);
    hub.ready().await;
    for n in 1..=20 {
        raise(&database, &[event(&format!("e{n}"), "s")]).await;
        wait_for(&store, "internal", Status::Published, n).await;
    }
}

#[tokio::test]
async fn a_stop_gives_back_what_is_not_published() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&["partner"]).await;
    let (broker, partner) = (TestBroker::start().await, partner().await);
    let proxy = crate::support::FaultProxy::start(&partner.url()).await;
    let patient = external("partner", "nats", &proxy.url("nats"))
        .with(|broker| broker.timeout = Some(Duration::from_secs(40)));
    let settings = settings(&database.url())
        .with_brokers([patient])
        .with(|settings| settings.delivery.grace = Some(Duration::from_secs(1)));
    let mut hub = Hub::serve(&broker.url(), &settings, &RELAY);
    hub.ready().await;
    raise(&database, &[public("e1", "s1")]).await;
    wait_for(&store, "partner", Status::Published, 1).await;
    proxy.freeze();
    raise(&database, &[public("e2", "s1"), public("e3", "s1"), public("e4", "s2")]).await;
    wait_for(&store, "partner", Status::Processing, 3).await;
    wait_for(&store, "internal", Status::Published, 4).await;
    assert!(hub.terminate().await.success(), "it ends although the broker hangs");
    let rows = rows(&store, "partner").await;
    let stand: Vec<_> = rows.iter().map(|row| (row.status, row.attempts)).collect();
    assert_eq!(stand[1..], [(Status::Pending, 0); 3], "given back, no attempt used up");
}

#[tokio::test]
async fn a_redis_stream_gets_the_stripped_envelopes_in_order() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&["partner"]).await;
    let broker = TestBroker::start().await;
    let external = external("partner", "redis", &server.url()).to("{tenant}:{category}");
    let mut hub = Hub::serve(&broker.url(), &settings(&database.url()).with_brokers([external]), &RELAY);
    hub.ready().await;
    let ids: Vec<String> = (0..200).map(|n| format!("e{n:03}")).collect();
    let events: Vec<Value> = ids.iter().map(|id| public(id, "user-u1")).collect();
    raise(&database, &events).await;
    wait_for(&store, "partner", Status::Published, 200).await;
    let mut connection = server.connect().await;
    let entries: Vec<(String, Vec<String>)> = redis::cmd("XRANGE")
        .arg(&["default:user", "-", "+"])
        .query_async(&mut connection)
        .await
        .expect("the stream is there");
    let mut arrived = Vec::new();
    for (_, fields) in &entries {
        assert_eq!((fields.len(), fields[0].as_str()), (2, "data"));
        let envelope: Value = serde_json::from_str(&fields[1]).expect("an envelope");
        let id = envelope["metadata"]["headers"]["id"].as_str().expect("an id").to_owned();
        assert_eq!(Some(envelope), database.envelope("partner", &id).await);
        arrived.push(id);
    }
    assert_eq!(arrived, ids);
}

#[tokio::test]
async fn an_unusable_outbox_is_reported_at_start() {
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::default(), &RELAY);
    assert!(!hub.ended(SOON).await.success());
    assert!(hub.log().contains("outbox.database_url"), "{}", hub.log());

    let Some(database) = TestDatabase::sqlite().await else { return };
    let mut hub = Hub::serve(&broker.url(), &settings(&database.url()), &RELAY);
    assert!(!hub.ended(SOON).await.success());
    assert!(hub.log().contains("run `hub outbox setup`"), "{}", hub.log());
}

/// The events stream is full: no attempt counts, and all rows are sent when there is room again.
#[tokio::test]
async fn a_full_events_stream_makes_all_rows_wait() {
    let Some(database) = TestDatabase::sqlite().await else { return };
    let store: Store = database.outbox(&[]).await;
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &settings(&database.url()), &RELAY);
    hub.ready().await;
    let context = broker.jetstream().await;
    let info = context.get_stream(EVENTS).await.expect("it was provisioned").cached_info().clone();
    let (whole, narrow) = (info.config.clone(), stream::Config { max_messages: 10, ..info.config });
    context.update_stream(narrow).await.expect("the stream is narrowed");

    let events: Vec<Value> = in_streams(40, 40).iter().map(|(id, stream)| event(id, stream)).collect();
    raise(&database, &events).await;
    hub.wait_for_log("broker unavailable, its rows wait", SOON).await;
    let before = store.list(&Default::default(), &RowCursor::default(), 100).await.unwrap();
    assert!(before.iter().filter(|row| row.status.is_open()).count() >= 30);
    context.update_stream(whole).await.expect("there is room again");
    let after = wait_for(&store, "internal", Status::Published, 40).await;
    assert!(after.iter().all(|row| row.attempts == 0), "no attempt was used up");
    assert_eq!(stored(&broker, EVENTS, 40).await.len(), 40);
    hub.wait_for_log("broker accepts messages again", SOON).await;
    assert_eq!(hub.log().matches("broker unavailable, its rows wait").count(), 1, "logged once");
}
