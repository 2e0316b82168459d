//! Helpers for tests of the relay: settings, received messages, and the state of rows.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use hub_outbox::{Row, RowCursor, Store};
use integration_hub::domain::producer_outbox::{RaisedEvent, Status};
use serde_json::{Value, json};

use super::outbox::of_broker;
use super::{TestBroker, TestDatabase, TestPostgres, TestSettings, eventually};

pub const SOON: Duration = Duration::from_secs(30);
pub const RELAY: [&str; 2] = ["--role", "outbox-relay"];
pub const EVENTS: &str = "HUB_EVENTS";

/// Settings of a hub that relays this database; otherwise the defaults.
pub fn settings(database_url: &str) -> TestSettings {
    TestSettings::default().with_outbox(database_url)
}

/// A database on a server that the test may crash.
pub async fn own_postgres() -> Option<TestDatabase> {
    let server = TestPostgres::start_alone().await?;
    let pool = sqlx::PgPool::connect(&server.url()).await.expect("the server answers");
    Some(TestDatabase::Postgres { server, pool })
}

/// The address of the server of a database, for a proxy, and the URL through that proxy.
pub fn through(database: &TestDatabase, port: u16) -> String {
    let TestDatabase::Postgres { server, .. } = database else { panic!("SQLite has no server") };
    server.url_at(port)
}

/// A published event.
pub fn public(id: &str, stream: &str) -> Value {
    let mut event = super::outbox::event(id, stream);
    event["published"] = json!(true);
    event
}

/// Raises events in one transaction.
pub async fn raise(database: &TestDatabase, events: &[Value]) {
    let events: Vec<RaisedEvent> = events
        .iter()
        .map(|event| RaisedEvent::from_json(&event.to_string()).expect("the event is good"))
        .collect();
    database.publish(&events, true).await.expect("the events are raised");
}

/// A message in a stream.
pub struct Stored {
    pub subject: String,
    pub id: String,
    /// `Nats-Msg-Id`.
    pub message_id: String,
    pub body: Value,
}

impl Stored {
    /// The stream of the row, from the envelope.
    pub fn stream(&self) -> String {
        self.body["metadata"]["headers"]["stream"].as_str().unwrap_or_default().to_owned()
    }
}

/// A server of a partner, with a stream `PARTNER` for the subjects below `user.`.
pub async fn partner() -> TestBroker {
    let broker = TestBroker::start().await;
    let config = stream::Config {
        name: "PARTNER".to_owned(),
        subjects: vec!["user.>".to_owned()],
        ..stream::Config::default()
    };
    broker.jetstream().await.create_stream(config).await.expect("the stream is made");
    broker
}

/// Number of messages that a stream has stored so far; 0 if the stream does not exist.
pub async fn taken(context: &jetstream::Context, name: &str) -> u64 {
    let Ok(stream) = context.get_stream(name).await else { return 0 };
    stream.cached_info().state.last_sequence
}

/// Waits until a stream has that many messages. Returns them in order. Nothing else may consume the stream.
pub async fn stored(broker: &TestBroker, name: &str, count: u64) -> Vec<Stored> {
    let context = broker.jetstream().await;
    eventually(SOON, &format!("{count} messages are in {name}"), async || {
        match taken(&context, name).await {
            taken if taken >= count => Ok(()),
            taken => Err(taken),
        }
    })
    .await;
    let stream = context.get_stream(name).await.expect("the stream is there");
    let mut found = Vec::new();
    for sequence in 1..=stream.cached_info().state.last_sequence {
        let message = stream.get_raw_message(sequence).await.expect("no message was removed");
        let body: Value = serde_json::from_slice(&message.payload).expect("envelopes are JSON");
        let id = body["metadata"]["headers"]["id"].as_str().expect("each has an id").to_owned();
        let message_id = message.headers.get("Nats-Msg-Id").expect("each has a message id").to_string();
        found.push(Stored { subject: message.subject.to_string(), id, message_id, body });
    }
    found
}

/// The rows of a broker, in order of insertion.
pub async fn rows(store: &Store, broker: &str) -> Vec<Row> {
    store.list(&of_broker(Some(broker)), &RowCursor::default(), 100_000).await.expect("the rows are listed")
}

/// Waits until that many rows of a broker have this status.
pub async fn wait_for(store: &Store, broker: &str, status: Status, count: usize) -> Vec<Row> {
    eventually(SOON, &format!("{count} rows of {broker} are {status}"), async || {
        let rows = rows(store, broker).await;
        if rows.iter().filter(|row| row.status == status).count() == count {
            return Ok(rows);
        }
        let mut seen = BTreeMap::<Status, usize>::new();
        for row in &rows {
            *seen.entry(row.status).or_default() += 1;
        }
        Err(seen)
    })
    .await
}

/// `<stream>/<number>` for each of `count` events on that many streams, in the order in which they are raised.
pub fn in_streams(count: usize, streams: usize) -> Vec<(String, String)> {
    (0..count).map(|n| (format!("e{n:05}"), format!("s{}", n % streams))).collect()
}

/// # Panics
///
/// If events of a stream (whose ids increase in the order of raising) are out of order or duplicate.
pub fn assert_in_order(arrived: impl IntoIterator<Item = (String, String)>) {
    let mut last = BTreeMap::<String, String>::new();
    for (id, stream) in arrived {
        if let Some(before) = last.insert(stream.clone(), id.clone()) {
            assert!(before < id, "in {stream}, {id} came after {before}");
        }
    }
}
