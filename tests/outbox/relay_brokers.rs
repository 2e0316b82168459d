//! The relay with each kind of external broker: events raised in SQL arrive stripped and in order, also if the broker
//! fails.

use std::collections::BTreeSet;
use std::time::Duration;

use hub_outbox::{Row, Store};
use integration_hub::domain::producer_outbox::Status;
use serde_json::{Value, json};

use crate::support::outbox::event;
use crate::support::partner::{Arrived, Partner};
use crate::support::relay::{
    EVENTS, RELAY, SOON, assert_in_order, public, raise, rows, settings, stored, wait_for,
};
use crate::support::{Direction, Hub, TestBroker, TestDatabase, TestSettings, eventually};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Rows of one claim.
const BATCH: usize = 100;

fn relaying(database: &TestDatabase, partner: &Partner, max_attempts: u32) -> TestSettings {
    settings(&database.url()).with_brokers([partner.entry("partner")]).with(|settings| {
        settings.outbox.batch = Some(BATCH);
        settings.outbox.max_attempts = Some(max_attempts);
        settings.outbox.retry = Some(vec![Duration::from_millis(100)]);
    })
}

/// A relay with one external broker, `partner`, and the events raised so far.
struct Story {
    database: TestDatabase,
    store: Store,
    broker: TestBroker,
    partner: Partner,
    hub: Hub,
    /// Rows of each broker that are sent or will be.
    internal: usize,
    external: usize,
}

impl Story {
    async fn begin(partner: Partner) -> Option<Self> {
        let database = TestDatabase::postgres().await?;
        let store = database.outbox(&["partner"]).await;
        let broker = TestBroker::start().await;
        let settings = relaying(&database, &partner, 2);
        let mut hub = Hub::serve(&broker.url(), &settings, &RELAY);
        hub.ready().await;
        Some(Self { database, store, broker, partner, hub, internal: 0, external: 0 })
    }

    /// Raises published events, over ten streams: `<step>00000`, `<step>00001`, …
    async fn raise(&mut self, step: &str, count: usize) -> BTreeSet<String> {
        let ids: Vec<String> = (0..count).map(|n| format!("{step}{n:05}")).collect();
        let streams = ids.iter().enumerate().map(|(n, id)| public(id, &format!("user-{step}{}", n % 10)));
        raise(&self.database, &streams.collect::<Vec<Value>>()).await;
        self.internal += count;
        self.external += count;
        ids.into_iter().collect()
    }

    /// Waits until the internal broker has everything, also if the external one fails.
    async fn internal_goes_on(&self) {
        wait_for(&self.store, "internal", Status::Published, self.internal).await;
    }

    /// Waits until the external broker has everything as well, without using up an attempt.
    async fn all_is_published(&self, step: &str) {
        let rows = wait_for(&self.store, "partner", Status::Published, self.external).await;
        let used: Vec<&Row> =
            rows.iter().filter(|row| row.message_id.starts_with(step) && row.attempts > 0).collect();
        assert!(used.is_empty(), "no row is at fault: {used:?}");
    }

    async fn is_up(&self, up: bool) {
        eventually(SOON, "the relay knows how the broker is", async || {
            let value = self.hub.metric("hub_relay_broker_up", &["broker=\"partner\""]).await;
            if value == f64::from(u8::from(up)) { Ok(()) } else { Err(value) }
        })
        .await;
    }

    /// Waits until they have arrived, each stream in order. Returns them with duplicates.
    async fn arrived(&self, category: &str, expected: &BTreeSet<String>) -> Vec<Arrived> {
        let mut arrived = self.partner.arrived(category, expected).await;
        arrived.retain(|message| expected.contains(&message.id));
        let mut seen = BTreeSet::new();
        let first: Vec<(String, String)> = arrived
            .iter()
            .filter(|message| seen.insert(&message.id))
            .map(|message| (message.id.clone(), message.stream.clone()))
            .collect();
        assert_in_order(first);
        arrived
    }
}

/// Every field that an event may have.
fn whole() -> Value {
    json!({
        "id": "a-whole", "type": "user.created", "source": "idp", "time": "2026-01-31T12:00:00.5+02:00",
        "tenant": "acme", "stream": "user-u1", "data": {"name": "Ünïcode ☃", "list": [1, 2.5, null, {"a": true}]},
        "published": true, "priority": "bulk", "traceparent": TRACE, "correlation_id": "c-1", "causation_id": "k-1",
        "version": 3, "fqn": "idp.UserCreated", "kind": "EVENT", "sequence_id": 17, "origin_stream": "user-o1",
        "stream_category": "user", "expected_version": 16, "asynchronous": false,
        "event_store": {"position": 16, "global_position": 99}, "extensions": {"region": "eu", "partner_tier": 1},
    })
}

/// The envelope of [`whole`]: all kept fields, and with `full` also the stripped ones.
fn envelope(full: bool) -> Value {
    let mut envelope = json!({
        "data": whole()["data"],
        "metadata": {
            "headers": {
                "id": "a-whole", "type": "user.created", "time": "2026-01-31T12:00:00.5+02:00", "stream": "user-u1",
                "traceparent": {
                    "trace_id": "0af7651916cd43dd8448eb211c80319c", "parent_id": "b7ad6b7169203331", "sampled": true,
                },
            },
            "domain": {
                "fqn": "idp.UserCreated", "kind": "EVENT", "version": 3, "sequence_id": "17", "correlation_id": "c-1",
                "causation_id": "k-1", "origin_stream": "user-o1", "stream_category": "user",
            },
            "envelope": {"specversion": "1.0"},
            "extensions": {"region": "eu", "partner_tier": 1, "source": "idp", "tenant": "acme"},
        },
    });
    if full {
        let metadata = &mut envelope["metadata"];
        let stripped =
            json!({"expected_version": 16, "asynchronous": false, "priority": -100, "published": true});
        let fields = stripped.as_object().expect("an object").clone();
        metadata["domain"].as_object_mut().expect("an object").extend(fields);
        metadata["event_store"] = json!({"position": 16, "global_position": 99});
        metadata["envelope"]["checksum"] = Value::Null;
    }
    envelope
}

/// Events raised with SQL in one transaction each: kept and stripped fields are compared one by one, and an unpublished
/// event is not sent.
async fn raised_in_sql_it_arrives_stripped_and_in_order(story: &mut Story) {
    let mut expected = BTreeSet::from(["a-whole".to_owned()]);
    story.database.raise(&whole()).await.expect("the event is raised");
    for n in 0..60 {
        let id = format!("a{n:05}");
        let is_public = n % 3 != 0;
        let raised = if is_public { public } else { event };
        story.database.raise(&raised(&id, &format!("user-{}", n % 4))).await.expect("the event is raised");
        if is_public {
            expected.insert(id);
        }
    }
    (story.internal, story.external) = (61, 41);
    story.internal_goes_on().await;
    story.all_is_published("a").await;
    let arrived = story.arrived("user", &expected).await;
    assert_eq!(arrived.len(), 41, "each once, and no unpublished event");
    for message in &arrived {
        assert_eq!(Some(&message.body), story.database.envelope("partner", &message.id).await.as_ref());
    }
    let of_whole = |message: &&Arrived| message.id == "a-whole";
    assert_eq!(arrived.iter().find(of_whole).expect("it arrived").body, envelope(false));
    let inside = stored(&story.broker, EVENTS, 61).await;
    let mut full = inside.into_iter().find(|message| message.id == "a-whole").expect("it arrived").body;
    let checksum = full["metadata"]["envelope"]["checksum"].take();
    assert_eq!(checksum.as_str().map(str::len), Some(64), "{checksum}");
    assert_eq!(full, envelope(true));
}

async fn while_it_hangs_its_rows_wait_and_no_others(story: &mut Story) {
    story.partner.proxy().freeze();
    let expected = story.raise("b", 100).await;
    story.internal_goes_on().await;
    story.is_up(false).await;
    let waiting = rows(&story.store, "partner").await;
    assert!(waiting.iter().filter(|row| expected.contains(&row.message_id)).all(|row| row.status.is_open()));
    story.partner.proxy().thaw();
    story.all_is_published("b").await;
    story.arrived("user", &expected).await;
    story.is_up(true).await;
}

async fn a_connection_lost_in_mid_publish_loses_nothing(story: &mut Story) {
    let sent = story.partner.proxy().cut_after(Direction::ToServer, "c00100");
    let expected = story.raise("c", 4 * BATCH).await;
    // The broker has stored it, and its acknowledgement is lost.
    sent.fired(SOON).await;
    story.partner.proxy().cut();
    story.all_is_published("c").await;
    let arrived = story.arrived("user", &expected).await;
    let repeated = arrived.len() - expected.len();
    // Each of the two workers of a relay has a claim: a stream that the first has finished is taken by the second while the
    // others of the first are still on their way. `relay_scripted` has both claims in transit.
    assert!(repeated <= 2 * BATCH, "{repeated} came again");
}

async fn refused_rows_are_abandoned_and_block_no_other(story: &mut Story, reason: &str) {
    story.partner.shut("order").await;
    let order = |id: &str| {
        let mut event = public(id, "user-d");
        event["type"] = json!("order.created");
        event
    };
    raise(&story.database, &[public("d0", "user-d"), order("d1"), public("d2", "user-d")]).await;
    story.internal += 3;
    story.external += 2;
    story.internal_goes_on().await;
    let rows = wait_for(&story.store, "partner", Status::Abandoned, 1).await;
    let refused = rows.iter().find(|row| row.message_id == "d1").expect("it is there");
    assert_eq!((refused.status, refused.attempts), (Status::Abandoned, 2));
    assert!(refused.last_error.as_ref().is_some_and(|error| error.contains(reason)), "{refused:?}");
    wait_for(&story.store, "partner", Status::Published, story.external).await;
    story.arrived("user", &BTreeSet::from(["d0".to_owned(), "d2".to_owned()])).await;

    // An operator retries it, once the broker accepts it.
    story.partner.open("order").await;
    story.hub.cli_ok(&["outbox", "retry", "d1"]).await;
    story.external += 1;
    wait_for(&story.store, "partner", Status::Published, story.external).await;
    story.arrived("order", &BTreeSet::from(["d1".to_owned()])).await;
}

async fn killed_in_the_middle_it_gets_everything_when_it_is_back(story: &mut Story) {
    // A broker without persistence has no topic for a moment after its restart.
    assert!(story.hub.terminate().await.success());
    let settings = relaying(&story.database, &story.partner, 1000);
    story.hub = Hub::serve(&story.broker.url(), &settings, &RELAY);
    story.hub.ready().await;

    let sent = story.partner.proxy().cut_after(Direction::ToServer, "e00100");
    let mut expected = story.raise("e", 300).await;
    sent.fired(SOON).await;
    story.partner.kill().await;
    story.internal_goes_on().await;
    story.is_up(false).await;
    let waiting = rows(&story.store, "partner").await.into_iter().filter(|row| row.status.is_open());
    let waiting: BTreeSet<String> = waiting.map(|row| row.message_id).collect();
    assert!(waiting.contains("e00100") && waiting.contains("e00299"), "{waiting:?}");
    story.partner.restart().await;
    if story.partner.is_durable() {
        story.all_is_published("e").await;
    } else {
        wait_for(&story.store, "partner", Status::Published, story.external).await;
        expected = waiting;
    }
    story.arrived("user", &expected).await;
    assert!(story.hub.terminate().await.success());
}

/// All with one server, because some start slowly.
async fn story(partner: Option<Partner>, refusal: &str) {
    let Some(partner) = partner else { return };
    let Some(mut story) = Story::begin(partner).await else { return };
    raised_in_sql_it_arrives_stripped_and_in_order(&mut story).await;
    while_it_hangs_its_rows_wait_and_no_others(&mut story).await;
    a_connection_lost_in_mid_publish_loses_nothing(&mut story).await;
    refused_rows_are_abandoned_and_block_no_other(&mut story, refusal).await;
    killed_in_the_middle_it_gets_everything_when_it_is_back(&mut story).await;
}

#[tokio::test]
async fn redis_streams() {
    story(Partner::redis().await, "WRONGTYPE").await;
}

#[tokio::test]
async fn another_nats() {
    story(Partner::nats().await, "no stream stores this subject").await;
}

#[tokio::test]
async fn amqp() {
    story(Partner::amqp().await, "NO_ROUTE").await;
}

#[tokio::test]
async fn kafka() {
    story(Partner::kafka().await, "create the topic").await;
}
