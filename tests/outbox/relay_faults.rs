//! The relay when the process, the database or a broker fails: each row still arrives in order, and no row
//! waits for the broker of another.

use std::collections::HashMap;
use std::time::Duration;

use integration_hub::domain::producer_outbox::Status;
use serde_json::Value;

use crate::support::outbox::event;
use crate::support::relay::{
    EVENTS, RELAY, SOON, Stored, assert_in_order, in_streams, own_postgres, partner, public, raise, rows,
    settings, stored, taken, through, wait_for,
};
use crate::support::settings::external;
use crate::support::{Direction, FaultProxy, Hub, TestBroker, TestDatabase, eventually, http_client};

/// The first message of each event. The hub's own stream also stores a repetition, with the same message id; other NATS
/// servers drop it.
fn once(arrived: Vec<Stored>) -> Vec<Stored> {
    let mut ids = HashMap::new();
    arrived
        .into_iter()
        .filter(|message| match ids.insert(message.id.clone(), message.message_id.clone()) {
            Some(before) => {
                assert_eq!(before, message.message_id, "a repetition of {}", message.id);
                false
            }
            None => true,
        })
        .collect()
}

fn events(count: usize, streams: usize, make: fn(&str, &str) -> Value) -> Vec<Value> {
    in_streams(count, streams).iter().map(|(id, stream)| make(id, stream)).collect()
}

async fn is_ready(hub: &Hub) -> bool {
    let answer = http_client().get(hub.health_url("/readyz")).send().await;
    answer.is_ok_and(|answer| answer.status() == 200)
}

#[tokio::test]
async fn killed_between_publishing_and_marking_each_event_is_in_the_streams_once() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&["partner"]).await;
    let (broker, partner) = (TestBroker::start().await, partner().await);
    let external = external("partner", "nats", &partner.url());
    let TestDatabase::Postgres { server, .. } = &database else { unreachable!("it is PostgreSQL") };
    let proxy = FaultProxy::start(&format!("127.0.0.1:{}", server.port())).await;
    let at = |url: &str| {
        settings(url).with_brokers([external.clone()]).with(|settings| {
            settings.outbox.claim_time = Some(Duration::from_secs(2));
            settings.outbox.timeout = Some(Duration::from_secs(60));
        })
    };
    let mut first = Hub::serve(&broker.url(), &at(&through(&database, proxy.address().port())), &RELAY);
    first.ready().await;

    // Each of the two workers marks over its own connection.
    let marking = [0, 1].map(|_| proxy.cut_before(Direction::ToServer, "SET status = 'published'"));
    raise(&database, &events(30, 6, public)).await;
    for marking in marking {
        marking.fired(SOON).await;
    }
    // The other messages of the round are in transit.
    for (server, name) in [(&broker, EVENTS), (&partner, "PARTNER")] {
        let context = server.jetstream().await;
        eventually(SOON, "all are published", async || match taken(&context, name).await {
            30 => Ok(()),
            taken => Err(taken),
        })
        .await;
    }
    // The claim is renewed, so that no other relay sends them.
    for broker in ["internal", "partner"] {
        assert!(rows(&store, broker).await.iter().all(|row| row.status == Status::Processing));
    }
    first.kill().await;

    let mut second = Hub::serve(&broker.url(), &at(&database.url()), &RELAY);
    second.ready().await;
    wait_for(&store, "internal", Status::Published, 30).await;
    wait_for(&store, "partner", Status::Published, 30).await;
    let published = second.metric("hub_relay_published_total", &[]).await;
    assert_eq!(published, 60.0, "the second one sent all of them again");
    for (server, name) in [(&broker, EVENTS), (&partner, "PARTNER")] {
        let arrived = once(stored(server, name, 30).await);
        assert_eq!(arrived.len(), 30, "each is there");
        assert_in_order(arrived.iter().map(|message| (message.id.clone(), message.stream())));
    }
}

/// Two relays, one of which is killed at random moments: both brokers have each event once, in order.
async fn killed_anywhere_each_event_is_in_the_streams_once(database: &TestDatabase) {
    const ROWS: usize = 2_000;
    const KILLS: usize = 8;
    let store = database.outbox(&["partner"]).await;
    let (broker, partner) = (TestBroker::start().await, partner().await);
    let external = external("partner", "nats", &partner.url());
    let settings = settings(&database.url()).with_brokers([external]).with(|settings| {
        settings.outbox.batch = Some(100);
        settings.outbox.claim_time = Some(Duration::from_secs(1));
    });
    let mut relays = [0, 1].map(|_| Hub::serve(&broker.url(), &settings, &RELAY));
    for relay in &mut relays {
        relay.ready().await;
    }
    let context = broker.jetstream().await;
    let all = events(ROWS, 20, public);
    for (kill, chunk) in all.chunks(ROWS / KILLS).enumerate() {
        raise(database, chunk).await;
        let moment = (kill * chunk.len() + rand::random_range(1..chunk.len())) as u64;
        eventually(SOON, &format!("{moment} are published"), async || match taken(&context, EVENTS).await {
            taken if taken >= moment => Ok(()),
            taken => Err(taken),
        })
        .await;
        let relay = &mut relays[kill % 2];
        relay.kill().await;
        relay.start();
    }
    for (name, server, stream) in [("internal", &broker, EVENTS), ("partner", &partner, "PARTNER")] {
        let rows = wait_for(&store, name, Status::Published, ROWS).await;
        assert!(rows.iter().all(|row| row.attempts == 0), "no attempt was used up");
        let arrived = once(stored(server, stream, ROWS as u64).await);
        assert_eq!(arrived.len(), ROWS, "{name}");
        assert_in_order(arrived.iter().map(|message| (message.id.clone(), message.stream())));
    }
}

#[tokio::test]
async fn killed_anywhere_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    killed_anywhere_each_event_is_in_the_streams_once(&database).await;
}

#[tokio::test]
async fn killed_anywhere_on_sqlite() {
    let Some(database) = TestDatabase::sqlite().await else { return };
    killed_anywhere_each_event_is_in_the_streams_once(&database).await;
}

#[tokio::test]
async fn a_database_that_crashes_and_comes_back_is_waited_for() {
    let Some(database) = own_postgres().await else { return };
    let store = database.outbox(&[]).await;
    let broker = TestBroker::start().await;
    let claim = Some(Duration::from_secs(2));
    let settings = settings(&database.url()).with(|settings| settings.outbox.claim_time = claim);
    let mut hub = Hub::serve(&broker.url(), &settings, &RELAY);
    hub.ready().await;
    let TestDatabase::Postgres { server, .. } = &database else { unreachable!("it is PostgreSQL") };

    // While rows are being published.
    raise(&database, &events(3_000, 30, event)).await;
    let context = broker.jetstream().await;
    eventually(SOON, "some are published", async || match taken(&context, EVENTS).await {
        0 => Err("none"),
        _ => Ok(()),
    })
    .await;
    server.crash().await;
    eventually(
        SOON,
        "the relay is not ready",
        async || {
            if is_ready(&hub).await { Err("it is") } else { Ok(()) }
        },
    )
    .await;
    server.restart().await;
    hub.ready().await;
    wait_for(&store, "internal", Status::Published, 3_000).await;
    let arrived = once(stored(&broker, EVENTS, 3_000).await);
    assert_eq!(arrived.len(), 3_000);
    assert_in_order(arrived.iter().map(|message| (message.id.clone(), message.stream())));
    hub.wait_for_log("producer outbox database answers again", SOON).await;
    // Notifications of commits work again.
    raise(&database, &[event("later", "s")]).await;
    wait_for(&store, "internal", Status::Published, 3_001).await;
    assert!(hub.terminate().await.success());
}

#[tokio::test]
async fn a_broker_that_hangs_makes_its_own_rows_wait_and_no_others() {
    const ROWS: usize = 300;
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&["partner", "steady"]).await;
    let (broker, partner, steady) = (TestBroker::start().await, partner().await, self::partner().await);
    let proxy = FaultProxy::start(&partner.url()).await;
    let brokers =
        [external("partner", "nats", &proxy.url("nats")), external("steady", "nats", &steady.url())];
    let mut hub = Hub::serve(&broker.url(), &settings(&database.url()).with_brokers(brokers), &RELAY);
    hub.ready().await;
    raise(&database, &[public("e", "warm")]).await;
    wait_for(&store, "partner", Status::Published, 1).await;

    proxy.freeze();
    raise(&database, &events(ROWS, 10, public)).await;
    // The other brokers get everything while it hangs.
    wait_for(&store, "internal", Status::Published, ROWS + 1).await;
    wait_for(&store, "steady", Status::Published, ROWS + 1).await;
    hub.wait_for_log("broker unavailable, its rows wait", SOON).await;
    assert_eq!(hub.metric("hub_relay_broker_up", &["broker=\"partner\""]).await, 0.0);
    let waiting = rows(&store, "partner").await;
    assert_eq!(waiting.iter().filter(|row| row.status.is_open()).count(), ROWS);
    assert!(is_ready(&hub).await, "others' brokers do not make the hub unready");

    proxy.thaw();
    let all = wait_for(&store, "partner", Status::Published, ROWS + 1).await;
    assert!(all.iter().all(|row| row.attempts == 0), "no attempt was used up");
    let arrived = stored(&partner, "PARTNER", ROWS as u64 + 1).await;
    assert_eq!(arrived.len(), ROWS + 1);
    assert_in_order(arrived.iter().map(|message| (message.id.clone(), message.stream())));
    hub.wait_for_log("broker accepts messages again", SOON).await;
}

#[tokio::test]
async fn a_connection_lost_in_mid_publish_loses_nothing() {
    const ROWS: usize = 400;
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&["partner"]).await;
    let (broker, partner) = (TestBroker::start().await, partner().await);
    let proxy = FaultProxy::start(&partner.url()).await;
    let external = external("partner", "nats", &proxy.url("nats"));
    let settings =
        settings(&database.url()).with_brokers([external]).with(|settings| settings.outbox.batch = Some(100));
    let mut hub = Hub::serve(&broker.url(), &settings, &RELAY);
    hub.ready().await;
    let acknowledging = proxy.cut_before(Direction::ToClient, "{\"stream\":\"PARTNER\"");
    raise(&database, &events(ROWS, 8, public)).await;
    // The partner has stored some, and their acknowledgements are lost.
    acknowledging.fired(SOON).await;
    proxy.cut();
    let all = wait_for(&store, "partner", Status::Published, ROWS).await;
    assert!(all.iter().all(|row| row.attempts == 0), "no attempt was used up");
    let arrived = stored(&partner, "PARTNER", ROWS as u64).await;
    assert_eq!(arrived.len(), ROWS);
    assert_in_order(arrived.iter().map(|message| (message.id.clone(), message.stream())));
}

#[tokio::test]
async fn a_restarted_internal_broker_gets_everything_and_external_brokers_are_not_affected() {
    const ROWS: usize = 2_000;
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&["partner"]).await;
    let (mut broker, partner) = (TestBroker::start().await, partner().await);
    let external = external("partner", "nats", &partner.url());
    let mut hub = Hub::serve(&broker.url(), &settings(&database.url()).with_brokers([external]), &RELAY);
    hub.ready().await;
    let context = broker.jetstream().await;
    raise(&database, &events(ROWS, 20, event)).await;
    eventually(SOON, "some are published", async || match taken(&context, EVENTS).await {
        0 => Err("none"),
        _ => Ok(()),
    })
    .await;
    broker.process().kill().await.expect("the broker is killed");
    hub.wait_for_log("broker unavailable, its rows wait", SOON).await;
    assert!(rows(&store, "internal").await.iter().any(|row| row.status.is_open()), "there was work left");
    raise(&database, &[public("outside", "s")]).await;
    wait_for(&store, "partner", Status::Published, 1).await;
    assert_eq!(stored(&partner, "PARTNER", 1).await[0].id, "outside");
    broker.process().restart().await.expect("the broker starts on the same port");
    let all = wait_for(&store, "internal", Status::Published, ROWS + 1).await;
    assert!(all.iter().all(|row| row.attempts == 0), "no attempt was used up");
    let arrived = once(stored(&broker, EVENTS, ROWS as u64 + 1).await);
    assert_eq!(arrived.len(), ROWS + 1);
    assert_in_order(arrived.iter().map(|message| (message.id.clone(), message.stream())));
}

/// A relay that is frozen until its claims expire is overtaken, and settles no row afterwards.
#[tokio::test]
async fn a_relay_cut_off_from_the_database_is_overtaken() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let store = database.outbox(&["partner"]).await;
    let (broker, partner) = (TestBroker::start().await, partner().await);
    let TestDatabase::Postgres { server, .. } = &database else { unreachable!("it is PostgreSQL") };
    let database_proxy = FaultProxy::start(&format!("127.0.0.1:{}", server.port())).await;
    let partner_proxy = FaultProxy::start(&partner.url()).await;
    let between = |database_url: &str, partner_url: &str| {
        let partner = external("partner", "nats", partner_url);
        settings(database_url).with_brokers([partner]).with(|settings| {
            settings.outbox.claim_time = Some(Duration::from_secs(2));
            settings.outbox.timeout = Some(Duration::from_secs(1));
        })
    };
    let far = between(&through(&database, database_proxy.address().port()), &partner_proxy.url("nats"));
    let mut first = Hub::serve(&broker.url(), &far, &RELAY);
    first.ready().await;
    raise(&database, &[public("e", "warm")]).await;
    wait_for(&store, "partner", Status::Published, 1).await;

    partner_proxy.freeze();
    raise(&database, &events(40, 4, public)).await;
    wait_for(&store, "partner", Status::Processing, 40).await;
    database_proxy.freeze();
    let near = between(&database.url(), &partner.url());
    let mut second = Hub::serve(&broker.url(), &near, &RELAY);
    second.ready().await;
    wait_for(&store, "partner", Status::Published, 41).await;
    first.wait_for_log("producer outbox database failed", SOON).await;
    partner_proxy.thaw();
    database_proxy.thaw();
    first.wait_for_log("producer outbox database answers again", SOON).await;
    raise(&database, &[public("last", "s0")]).await;
    let all = wait_for(&store, "partner", Status::Published, 42).await;
    assert!(all.iter().all(|row| row.attempts == 0));
    let arrived = stored(&partner, "PARTNER", 42).await;
    assert_eq!(arrived.len(), 42);
    let numbered = arrived.iter().filter(|message| message.id.starts_with("e0"));
    assert_in_order(numbered.map(|message| (message.id.clone(), message.stream())));
    tokio::time::timeout(Duration::from_secs(60), first.terminate()).await.expect("it ends");
}
