//! Circuit breakers: the lane of an endpoint that keeps failing is paused at the broker. Nothing is lost, no attempt is used
//! up, and one envelope at a time is sent as a probe.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::{
    Account, ApiClient, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids,
    patient,
};

const STEP: Duration = Duration::from_secs(60);
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const LANE: &str = "lane-own-broken";
const OPENED: &str = "endpoint keeps failing, circuit opened";
const OPEN_AGAIN: &str = "probe failed, circuit open again";
const CLOSED: &str = "circuit closed";

/// A circuit opens after four failures. All attempts of an envelope take less than a second.
fn settings(first_pause: Duration, longest_pause: Duration) -> TestSettings {
    TestSettings::patient().with(|settings| {
        settings.circuit.failures = Some(4);
        settings.circuit.failing_for = Some(Duration::ZERO);
        settings.circuit.first_pause = Some(first_pause);
        settings.circuit.longest_pause = Some(longest_pause);
        // The tests count the lines.
        settings.log.repeat_interval = Some(Duration::ZERO);
    })
}

async fn subscribe(client: &TestClient, receiver: &Receiver) {
    let both = ["broken", "well"].map(|id| patient(id, &["policy.>"], &receiver.url(&format!("/{id}"))));
    client.subscribe(both).await;
}

fn count(hub: &Hub, text: &str) -> usize {
    hub.log().matches(text).count()
}

/// The circuit of the broken subscription, as the command line shows it.
async fn circuit(hub: &Hub) -> Value {
    let circuits = hub.cli_json(&["subscription", "show", "broken", "--circuits"]).await;
    let circuits = circuits.as_array().expect("a list");
    circuits.iter().find(|row| row["domain"] == "policy-client").expect("the domain is listed").clone()
}

/// Waits until all of these envelopes are in the lane of the broken subscription.
async fn all_in_lane(client: &TestClient, envelopes: u64) {
    eventually(STEP, "the envelopes are in the lane", async || {
        let lane = client.js.consumer_info(OUTBOX, LANE).await.map_err(|error| error.to_string())?;
        let shared = client.js.consumer_info(OUTBOX, "lane-shared").await.expect("there");
        let seen = (lane.num_pending + lane.num_ack_pending, shared.num_pending + shared.num_ack_pending);
        if seen == (envelopes, 0) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// Asserts that each event arrived once at this path, and that no dead letter is left.
async fn assert_each_once(client: &TestClient, receiver: &Receiver, events: &[String], path: &str) {
    let letters = client.dead_letters("policy-client").await;
    let account = Account::of(events, &[("broken", path)], receiver, &letters);
    account.assert_complete(path);
    assert_eq!((account.delivered, account.doubles, account.dead), (events.len(), 0, 0));
}

#[tokio::test]
async fn an_endpoint_that_keeps_failing_is_paused_at_the_broker_and_gets_everything_later() {
    const EVENTS: usize = 300;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let settings = settings(Duration::from_millis(500), Duration::from_secs(2));
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    receiver.set("/broken", Behaviour::status(503));
    subscribe(&client, &receiver).await;
    let events = ids("event", EVENTS);
    client.publish_all("policy.updated", &events).await;

    // The neighbour gets everything; the broken one is paused, in the broker itself.
    receiver.wait_accepted("/well", EVENTS, STEP).await;
    hub.wait_for_log(OPENED, STEP).await;
    all_in_lane(&client, EVENTS as u64).await;
    eventually(STEP, "the durable is paused", async || {
        let lane = client.consumer(OUTBOX, LANE).await;
        let error = lane.config.metadata.get("hub.circuit.error").cloned();
        let seen =
            (lane.paused, lane.config.max_ack_pending, error.as_deref() == Some("503 Service Unavailable"));
        if seen == (true, 1, true) { Ok(()) } else { Err(seen) }
    })
    .await;
    let row = circuit(&hub).await;
    assert!(row["since"].is_string(), "{row}");
    assert_eq!(row["last_error"], "503 Service Unavailable");
    assert_eq!(row["waiting"], EVENTS);
    let reader = ApiClient::with_scopes(&hub, "reader", "read", None).await;
    let listed = reader.get("/v1/subscriptions/broken/circuits").await.expect(200);
    let states: Vec<&str> = listed["circuits"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|row| row["state"].as_str())
        .collect();
    assert_eq!(states.iter().filter(|state| **state == "closed").count(), states.len() - 1, "{listed}");
    reader.get("/v1/subscriptions/nobody/circuits").await.expect(404);
    let shown = hub.cli_ok(&["subscription", "show", "broken"]).await;
    assert!(shown.contains("circuit.policy-client.last_error"), "{shown}");
    assert_eq!(hub.metric("hub_circuits_open", &["domain=\"policy-client\""]).await, 1.0);

    // The outage is many times as long as all retries of an envelope.
    eventually(STEP, "four probes have failed", async || {
        let probes = count(&hub, OPEN_AGAIN);
        if probes >= 4 { Ok(()) } else { Err(probes) }
    })
    .await;
    assert!(client.dead_letters("policy-client").await.is_empty(), "no attempt was used up");
    // Few besides the probes, of which a slow machine sees more.
    let requests = receiver.count("/broken");
    let probes = count(&hub, OPEN_AGAIN);
    assert!(requests < 36 + probes, "{requests} requests to an endpoint that fails, {probes} failed probes");
    assert_eq!(hub.metric("hub_deliveries_total", &["outcome=\"exhausted\""]).await, 0.0);

    receiver.set("/broken", Behaviour::ok());
    receiver.wait_accepted("/broken", EVENTS, STEP).await;
    hub.wait_for_log(CLOSED, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_each_once(&client, &receiver, &events, "/broken").await;
    let row = circuit(&hub).await;
    assert_eq!(
        (&row["state"], &row["since"], &row["last_error"]),
        (&"closed".into(), &Value::Null, &Value::Null)
    );
    let lane = client.consumer(OUTBOX, LANE).await;
    assert!(!lane.paused && lane.config.max_ack_pending > 1_000);
    assert!(!lane.config.metadata.keys().any(|key| key.starts_with("hub.circuit.")));
    assert_eq!(hub.metric("hub_circuits_open", &[]).await, 0.0);
    for (to, line) in [("open", OPENED), ("open", OPEN_AGAIN), ("closed", CLOSED)] {
        let label = format!("to=\"{to}\"");
        let counted = hub.metric("hub_circuit_transitions_total", &[&label]).await;
        assert!(counted >= count(&hub, line) as f64, "{line}");
    }
    assert_eq!(count(&hub, OPENED), 1);
    assert_eq!(receiver.count("/well"), EVENTS);
}

#[tokio::test]
async fn an_open_circuit_survives_a_restart_of_the_hub_until_somebody_resumes_the_subscription() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let long = Duration::from_secs(600);
    let mut hub = Hub::serve(&broker.url(), &settings(long, long), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    receiver.set("/broken", Behaviour::status(500));
    subscribe(&client, &receiver).await;
    let before = ids("before", 50);
    client.publish_all("policy.updated", &before).await;
    hub.wait_for_log(OPENED, STEP).await;
    all_in_lane(&client, 50).await;
    let tried = receiver.count("/broken");

    // Nothing is sent, not even what is published meanwhile.
    hub.kill().await;
    let after = ids("after", 50);
    client.publish_all("policy.updated", &after).await;
    hub.start();
    hub.ready().await;
    receiver.wait_accepted("/well", 100, STEP).await;
    all_in_lane(&client, 100).await;
    assert_eq!(receiver.count("/broken"), tried, "an open circuit sends nothing");
    assert_eq!(circuit(&hub).await["state"], "open");

    // A probe at once, of which all others wait; it fails.
    let resumed = hub.cli_ok(&["subscription", "resume", "broken"]).await;
    assert!(resumed.starts_with("broken: already active\n  policy-client: the circuit is "), "{resumed}");
    assert!(!resumed.contains("user-lifecycle"), "{resumed}");
    hub.wait_for_log(OPEN_AGAIN, STEP).await;
    all_in_lane(&client, 100).await;
    assert_eq!(receiver.count("/broken"), tried + 1, "one probe");

    receiver.set("/broken", Behaviour::ok());
    hub.cli_ok(&["subscription", "resume", "broken"]).await;
    receiver.wait_accepted("/broken", 100, STEP).await;
    broker.nothing_pending_within(STEP).await;
    let all: Vec<String> = before.into_iter().chain(after).collect();
    assert_each_once(&client, &receiver, &all, "/broken").await;
}

#[tokio::test]
async fn two_replicas_send_one_probe_for_each_pause_and_a_new_url_is_tried_at_once() {
    const PAUSE: Duration = Duration::from_secs(2);
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let settings = settings(PAUSE, PAUSE);
    let mut hubs = [Hub::serve(&broker.url(), &settings, &[]), Hub::serve(&broker.url(), &settings, &[])];
    for hub in &mut hubs {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    let nats = client.context.client();
    let advisories = format!("$JS.EVENT.ADVISORY.CONSUMER.PAUSE.{OUTBOX}.{LANE}");
    let mut advisories = nats.subscribe(advisories).await.expect("subscribed");
    nats.flush().await.expect("flushed");
    receiver.set("/broken", Behaviour::status(502));
    subscribe(&client, &receiver).await;
    let events = ids("event", 200);
    client.publish_all("policy.updated", &events).await;
    eventually(STEP, "both know the open circuit", async || {
        let mut known = 0.0;
        for hub in &hubs {
            known += hub.metric("hub_circuits_open", &[]).await;
        }
        if known == 2.0 { Ok(()) } else { Err(known) }
    })
    .await;
    all_in_lane(&client, 200).await;
    let probes = || -> usize { hubs.iter().map(|hub| count(hub, OPEN_AGAIN)).sum() };
    let probed = probes();
    eventually(STEP, "more probes have failed", async || {
        let probes = probes();
        if probes >= probed + 4 { Ok(()) } else { Err(probes) }
    })
    .await;
    // The end of each pause, as the server knows it. The next one begins with the failure of its probe.
    let mut ends = BTreeSet::new();
    while let Some(Some(advisory)) = advisories.next().now_or_never() {
        let advisory: Value = serde_json::from_slice(&advisory.payload).expect("JSON");
        if advisory["paused"] == true {
            let end = advisory["pause_until"].as_str().expect("a time");
            ends.insert(SystemTime::from(OffsetDateTime::parse(end, &Rfc3339).expect("RFC 3339")));
        }
    }
    let ends: Vec<SystemTime> = ends.into_iter().collect();
    let arrived: Vec<SystemTime> =
        receiver.received("/broken").iter().map(|request| request.arrived_at).collect();
    let after_each: Vec<usize> = ends
        .windows(2)
        .map(|pair| arrived.iter().filter(|at| (pair[0]..pair[1]).contains(*at)).count())
        .collect();
    assert!(after_each.iter().all(|probes| *probes <= 1), "one probe after each pause: {after_each:?}");
    assert!(after_each.iter().sum::<usize>() >= 4, "the probes are found: {after_each:?}, {ends:?}");
    assert!(client.dead_letters("policy-client").await.is_empty());

    client.subscribe([patient("broken", &["policy.>"], &receiver.url("/moved"))]).await;
    receiver.wait_accepted("/moved", 200, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_each_once(&client, &receiver, &events, "/moved").await;
    receiver.wait_accepted("/well", 200, STEP).await;
    eventually(STEP, "both know the closed circuit", async || {
        let mut known = 0.0;
        for hub in &hubs {
            known += hub.metric("hub_circuits_open", &[]).await;
        }
        if known == 0.0 { Ok(()) } else { Err(known) }
    })
    .await;
}

#[tokio::test]
async fn a_domain_that_is_paused_and_resumed_and_a_durable_that_is_resumed_lead_to_one_probe_each() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let long = Duration::from_secs(600);
    let mut hub = Hub::serve(&broker.url(), &settings(long, long), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    receiver.set("/broken", Behaviour::status(503));
    subscribe(&client, &receiver).await;
    client.publish_all("policy.updated", &ids("event", 40)).await;
    hub.wait_for_log(OPENED, STEP).await;
    all_in_lane(&client, 40).await;
    let tried = receiver.count("/broken");
    let paused = async || {
        let domains = hub.cli_json(&["domain", "list"]).await;
        let domains = domains.as_array().expect("a list").clone();
        domains.iter().find(|row| row["name"] == "policy-client").expect("listed")["paused"] == true
    };
    assert!(!paused().await, "an open circuit does not pause the domain");

    hub.cli_ok(&["domain", "pause", "policy-client"]).await;
    assert!(paused().await);
    assert_eq!(circuit(&hub).await["next_probe"], Value::Null);
    hub.cli_ok(&["domain", "resume", "policy-client"]).await;
    let probes = async |number: usize| {
        eventually(STEP, "the probe has failed", async || {
            let probes = count(&hub, OPEN_AGAIN);
            if probes >= number { Ok(()) } else { Err(probes) }
        })
        .await;
        all_in_lane(&client, 40).await;
        assert_eq!(receiver.count("/broken"), tried + number, "one probe each");
        assert!(!paused().await, "the circuit is open again, and the domain is not paused");
    };
    probes(1).await;
    client.js.pause_consumer(OUTBOX, LANE, None).await.expect("resumed");
    probes(2).await;
    // The circuit's own pause is left alone.
    hub.cli_ok(&["domain", "resume", "policy-client"]).await;
    client.publish("policy.updated", "last").await;
    receiver.wait_accepted("/well", 41, STEP).await;
    all_in_lane(&client, 41).await;
    assert_eq!(receiver.count("/broken"), tried + 2);
}

#[tokio::test]
async fn the_envelopes_of_a_removed_subscription_do_not_wait_for_its_circuit() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let long = Duration::from_secs(600);
    let mut hub = Hub::serve(&broker.url(), &settings(long, long), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    receiver.set("/broken", Behaviour::status(503));
    subscribe(&client, &receiver).await;
    client.publish_all("policy.updated", &ids("event", 40)).await;
    hub.wait_for_log(OPENED, STEP).await;
    all_in_lane(&client, 40).await;
    hub.cli_ok(&["subscription", "remove", "broken", "--yes"]).await;
    broker.nothing_pending_within(STEP).await;
    let letters = client.dead_letters("policy-client").await;
    assert_eq!(letters.len(), 40);
    assert!(letters.iter().all(|entry| entry.letter.reason.as_str() == "removed"));
    eventually(STEP, "the lane is removed", async || match client.js.consumer_info(OUTBOX, LANE).await {
        Err(error) if error.is_not_found() => Ok(()),
        lane => Err(format!("{lane:?}")),
    })
    .await;
}
