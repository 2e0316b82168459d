//! Several relays in this process, on both databases, with a scripted broker, which rejects messages, loses
//! acknowledgements and hangs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hub_outbox::Retention;
use integration_hub::domain::message_id::MessageIds;
use integration_hub::domain::producer_outbox::{Destination, RelayRetryPolicy, Status};
use integration_hub::facts::Metrics;
use integration_hub::health::Readiness;
use integration_hub::roles::outbox_relay::{ExternalTarget, OutboxRelay, OutboxRelaySettings};
use integration_hub::sinks::{Broker, OutgoingMessage, PublishError, PublishedGroup};
use integration_hub::tasks::TaskError;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::outbox::on_both;
use crate::support::relay::{SOON, assert_in_order, in_streams, public, raise, wait_for};
use crate::support::{TestBroker, TestClient, TestDatabase, eventually};

on_both!(
    (flavor = "multi_thread", worker_threads = 2),
    whatever_the_broker_does_streams_arrive_whole_and_in_order,
    what_is_behind_a_refused_row_waits_for_it,
    rows_behind_an_abandoned_row_continue,
    a_claim_lasts_as_long_as_its_round,
    a_lost_connection_repeats_a_claim_of_each_worker_and_no_more,
);

/// The reaction of the broker to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Take,
    Refuse,
    RefuseForEver,
    Panic,
    /// Stores it, and its acknowledgement is lost.
    TakeAndHang,
    /// Stores it after a wait.
    Slow(Duration),
    /// Before the cut: stores it, and its acknowledgement is lost in the cut.
    TakeUntilCut,
}

type Script = dyn FnMut(&OutgoingMessage) -> Deed + Send;

struct Scripted {
    script: Mutex<Box<Script>>,
    /// Ids and keys, as they arrived.
    arrived: Mutex<Vec<(String, String)>>,
    /// The connection is lost, once.
    cut: CancellationToken,
}

impl Scripted {
    fn new(script: impl FnMut(&OutgoingMessage) -> Deed + Send + 'static) -> Arc<Self> {
        let cut = CancellationToken::new();
        Arc::new(Self { script: Mutex::new(Box::new(script)), arrived: Mutex::default(), cut })
    }

    fn arrived(&self) -> Vec<(String, String)> {
        self.arrived.lock().expect("nobody panics with it").clone()
    }

    /// The first arrival of each.
    fn first_arrivals(&self) -> Vec<(String, String)> {
        let mut seen = BTreeSet::new();
        self.arrived().into_iter().filter(|(id, _)| seen.insert(id.clone())).collect()
    }
}

impl Broker for Scripted {
    fn publish<'a>(&'a self, group: &'a [OutgoingMessage]) -> BoxFuture<'a, PublishedGroup> {
        async move {
            let (reason, mut loses) = ("as the script says", false);
            for (acknowledged, message) in group.iter().enumerate() {
                assert_eq!(message.key, group[0].key, "a group is of one stream");
                let deed = (self.script.lock().expect("nobody panics with it"))(message);
                if let Deed::Slow(wait) = deed {
                    tokio::time::sleep(wait).await;
                }
                assert_ne!(deed, Deed::Panic, "as the script says");
                loses |= deed == Deed::TakeUntilCut && !self.cut.is_cancelled();
                let error = match deed {
                    Deed::Refuse => Some(PublishError::refused(reason)),
                    Deed::RefuseForEver => Some(PublishError::permanent(reason)),
                    Deed::TakeAndHang => Some(PublishError::unavailable(reason)),
                    Deed::Take | Deed::Slow(_) | Deed::TakeUntilCut | Deed::Panic => None,
                };
                if !matches!(deed, Deed::Refuse | Deed::RefuseForEver) {
                    let arrival = (message.id.clone(), message.key.clone());
                    self.arrived.lock().expect("nobody panics with it").push(arrival);
                }
                if error.is_some() {
                    return PublishedGroup { acknowledged, error };
                }
            }
            if loses {
                self.cut.cancelled().await;
                return PublishedGroup { acknowledged: 0, error: Some(PublishError::unavailable(reason)) };
            }
            PublishedGroup { acknowledged: group.len(), error: None }
        }
        .boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), PublishError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}

fn quick() -> OutboxRelaySettings {
    let week = Duration::from_secs(7 * 24 * 3600);
    OutboxRelaySettings {
        largest_event: 900_000,
        batch: 20,
        claim_time: Duration::from_secs(5),
        retry: RelayRetryPolicy { max_attempts: 1_000, waits: vec![Duration::from_millis(30)] },
        poll_min: Duration::from_millis(20),
        poll_max: Duration::from_millis(200),
        retention: Retention { published: week, abandoned: week },
        cleanup_interval: week,
        cleanup_batch: 1_000,
        reconcile_interval: week,
        grace: Duration::from_secs(2),
    }
}

/// Relays with this external broker, each with its own connections and metrics.
struct Relays {
    stop: CancellationToken,
    running: Vec<JoinHandle<Result<(), TaskError>>>,
    /// The internal broker has no events stream: its rows wait, and do not matter here.
    _broker: TestBroker,
}

impl Relays {
    async fn start(
        count: usize,
        database: &TestDatabase,
        partner: &Arc<Scripted>,
        settings: OutboxRelaySettings,
    ) -> Self {
        let (stop, broker) = (CancellationToken::new(), TestBroker::start().await);
        let mut running = Vec::new();
        for _ in 0..count {
            let target = ExternalTarget {
                name: "partner".to_owned(),
                broker: partner.clone(),
                destination: Destination::parse("{type}").expect("a template"),
            };
            let js = TestClient::connect(&broker.url()).await.js;
            let (metrics, readiness) = (Metrics::new(), Readiness::default());
            let (store, ids, settings) = (database.store(), MessageIds::new([7; 32]), settings.clone());
            let relay = OutboxRelay::new(store, js, ids, vec![target], settings, metrics, &readiness);
            running.push(tokio::spawn(relay.run(stop.clone())));
        }
        Self { stop, running, _broker: broker }
    }

    async fn end(self) {
        self.stop.cancel();
        for relay in self.running {
            relay.await.expect("no panic").expect("no error");
        }
    }
}

fn events(count: usize, streams: usize) -> Vec<Value> {
    in_streams(count, streams).iter().map(|(id, stream)| public(id, stream)).collect()
}

async fn whatever_the_broker_does_streams_arrive_whole_and_in_order(database: &TestDatabase) {
    const ROWS: usize = 300;
    let store = database.outbox(&["partner"]).await;
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut hangs = 0;
    let partner = Scripted::new(move |_| match random.random_range(0..100) {
        // Each makes the whole broker wait for half a second and more.
        0 if hangs < 3 => {
            hangs += 1;
            Deed::TakeAndHang
        }
        1..=10 => Deed::Refuse,
        11..=20 => Deed::Slow(Duration::from_millis(5)),
        _ => Deed::Take,
    });
    let relays = Relays::start(3, database, &partner, quick()).await;
    for chunk in events(ROWS, 12).chunks(50) {
        raise(database, chunk).await;
    }
    let rows = wait_for(&store, "partner", Status::Published, ROWS).await;
    relays.end().await;
    assert_in_order(partner.first_arrivals());
    assert_eq!(partner.first_arrivals().len(), ROWS);
    assert!(rows.iter().any(|row| row.attempts > 0), "the broker did refuse");
}

async fn what_is_behind_a_refused_row_waits_for_it(database: &TestDatabase) {
    let store = database.outbox(&["partner"]).await;
    let mut refusals = 0;
    let partner = Scripted::new(move |message| {
        if message.id == "e00000" && refusals < 3 {
            refusals += 1;
            return Deed::Refuse;
        }
        Deed::Take
    });
    raise(database, &events(40, 2)).await;
    let relays = Relays::start(2, database, &partner, quick()).await;
    let rows = wait_for(&store, "partner", Status::Published, 40).await;
    relays.end().await;
    assert_in_order(partner.arrived());
    assert_eq!(partner.arrived().len(), 40, "each once");
    let attempts: BTreeMap<&str, u32> = rows
        .iter()
        .filter(|row| row.attempts > 0)
        .map(|row| (row.message_id.as_str(), row.attempts))
        .collect();
    assert_eq!(attempts, BTreeMap::from([("e00000", 3)]), "the rows behind it used no attempt");
    let other = partner.arrived().iter().position(|(id, _)| id == "e00001").expect("it arrived");
    let refused = partner.arrived().iter().position(|(id, _)| id == "e00000").expect("it arrived");
    assert!(other < refused, "the other stream did not wait");
}

async fn rows_behind_an_abandoned_row_continue(database: &TestDatabase) {
    let store = database.outbox(&["partner"]).await;
    let partner = Scripted::new(|message| match message.id.as_str() {
        "e00003" => Deed::RefuseForEver,
        "e00005" => Deed::Refuse,
        "e00007" => Deed::Panic,
        _ => Deed::Take,
    });
    raise(database, &events(10, 1)).await;
    let retry = RelayRetryPolicy { max_attempts: 2, waits: vec![Duration::from_millis(30)] };
    let relays = Relays::start(2, database, &partner, OutboxRelaySettings { retry, ..quick() }).await;
    let rows = wait_for(&store, "partner", Status::Published, 7).await;
    relays.end().await;
    assert_in_order(partner.first_arrivals());
    for (place, attempts) in [(3, 1), (5, 2), (7, 2)] {
        let row = &rows[place];
        assert_eq!((row.status, row.attempts), (Status::Abandoned, attempts), "{row:?}");
        assert!(
            row.last_error.as_ref().is_some_and(|reason| reason.contains("as the script says")),
            "{row:?}"
        );
    }
}

/// If publishing takes longer than a claim, the claim is renewed, and no other relay sends the rows.
async fn a_claim_lasts_as_long_as_its_round(database: &TestDatabase) {
    let store = database.outbox(&["partner"]).await;
    let partner = Scripted::new(|_| Deed::Slow(Duration::from_millis(500)));
    raise(database, &events(12, 1)).await;
    let settings = OutboxRelaySettings { claim_time: Duration::from_secs(2), ..quick() };
    let relays = Relays::start(3, database, &partner, settings).await;
    wait_for(&store, "partner", Status::Published, 12).await;
    relays.end().await;
    assert_eq!(partner.arrived().len(), 12, "each once");
    assert_in_order(partner.arrived());
}

/// What can be on its way to a broker: one claim of each of the two workers of a relay, whatever waits behind them.
async fn a_lost_connection_repeats_a_claim_of_each_worker_and_no_more(database: &TestDatabase) {
    let (settings, store) = (quick(), database.outbox(&["partner"]).await);
    let (in_flight, rows) = (2 * settings.batch, 6 * settings.batch);
    let partner = Scripted::new(|_| Deed::TakeUntilCut);
    let relays = Relays::start(1, database, &partner, settings).await;
    raise(database, &events(rows, rows)).await;
    eventually(SOON, "both workers have sent a claim", async || match partner.arrived().len() {
        arrived if arrived == in_flight => Ok(()),
        arrived => Err(arrived),
    })
    .await;
    partner.cut.cancel();
    wait_for(&store, "partner", Status::Published, rows).await;
    relays.end().await;
    assert_eq!(partner.first_arrivals().len(), rows);
    assert_eq!(partner.arrived().len() - rows, in_flight, "came again");
}
