//! Fan-out by number: none, very many, a burst, a full outbox, and a restart in the middle.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Account, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
    subscription,
};

const STEP: Duration = Duration::from_secs(60);

#[tokio::test]
async fn one_event_reaches_2500_subscriptions_once_each() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let all = (0..2_500).map(|number| patient(&format!("s-{number}"), &["user.*"], &receiver.url("/all")));
    client.subscribe(all).await;
    assert!(client.publish("user.created", "one").await);
    receiver.wait_accepted("/all", 2_500, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(receiver.count("/all"), 2_500, "one request for each subscription");
    assert_eq!(receiver.doubles("/all").len(), 0);
    assert_eq!(client.stream("HUB_OUTBOX_USER_LIFECYCLE").await.state.last_sequence, 2_500);
    assert!(receiver.received("/all").iter().all(|request| request.json()["id"] == "one"));
}

#[tokio::test]
async fn an_event_without_subscriptions_is_acknowledged() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("other", &["user.deleted", "role.>"], &receiver.url("/other"))]).await;
    client.publish("user.created", "nobodys").await;
    hub.metric_above("hub_events_unmatched_total", &["domain=\"user-lifecycle\""], 0.5, STEP).await;
    broker.nothing_pending_within(STEP).await;
    for stream in ["HUB_OUTBOX_USER_LIFECYCLE", "HUB_OUTBOX_USER_LIFECYCLE_DLT", "HUB_REJECTED"] {
        assert_eq!(client.stream(stream).await.state.last_sequence, 0, "{stream}");
    }
    assert_eq!(receiver.count("/other"), 0);
}

#[tokio::test]
async fn a_burst_of_10000_events_is_delivered_once_each() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("crm", &["token.>"], &receiver.url("/crm"))]).await;
    let events = ids("event", 10_000);
    client.publish_all("token.refreshed", &events).await;
    receiver.wait_accepted("/crm", 10_000, STEP).await;
    broker.nothing_pending_within(STEP).await;
    // An envelope that moves to the subscription's own lane is written a second time.
    let moved = hub.metric("hub_envelopes_spilled_total", &["domain=\"access-session\""]).await as u64;
    assert_eq!(client.stream("HUB_OUTBOX_ACCESS_SESSION").await.state.last_sequence, 10_000 + moved);
    let account =
        Account::of(&events, &[("crm", "/crm")], &receiver, &client.dead_letters("access-session").await);
    account.assert_complete("a burst of 10,000");
    assert_eq!((account.delivered, account.doubles), (10_000, 0));
}

#[tokio::test]
async fn a_full_outbox_makes_its_events_wait_and_no_others() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/hanging", Behaviour::Hang);
    let settings = TestSettings::quick().with(|settings| {
        settings.delivery.max_deliver = Some(100);
        settings.events.max_size = Some(10_000);
        settings.limits.outbox = Some(100_000);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe([
            subscription("hanging", &["policy.>"], &receiver.url("/hanging")),
            subscription("healthy", &["user.>"], &receiver.url("/healthy")),
        ])
        .await;
    let stuck = ids("stuck", 600);
    client.publish_all("policy.updated", &stuck).await;
    hub.wait_for_log("domain outbox full", STEP).await;

    // Events that do not fit wait in the events stream, and do not affect the other domain.
    let free = ids("free", 100);
    client.publish_all("user.created", &free).await;
    receiver.wait_accepted("/healthy", 100, STEP).await;
    let waiting = broker.messages("HUB_EVENTS").await;
    let standing = broker.messages("HUB_OUTBOX_POLICY_CLIENT").await;
    assert_eq!(waiting + standing, 600, "{waiting} events wait, {standing} envelopes are in the outbox");
    assert!(waiting > 100, "{waiting} events wait");

    receiver.set("/hanging", Behaviour::ok());
    receiver.wait_accepted("/hanging", 600, STEP).await;
    broker.nothing_pending_within(STEP).await;
    for (events, pair, domain) in [
        (&stuck, ("hanging", "/hanging"), "policy-client"),
        (&free, ("healthy", "/healthy"), "user-lifecycle"),
    ] {
        let account = Account::of(events, &[pair], &receiver, &client.dead_letters(domain).await);
        account.assert_complete(domain);
        assert_eq!((account.delivered, account.doubles, account.dead), (events.len(), 0, 0));
    }
    assert_eq!(client.stream("HUB_OUTBOX_POLICY_CLIENT").await.state.last_sequence, 600);
}

/// An event that its outbox could never hold as a whole is delivered in parts; one that does not fit now blocks no other.
#[tokio::test]
async fn an_event_that_does_not_fit_blocks_no_other() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    // A request hangs until its attempt times out, which takes longer than this test waits.
    let (open, gate) = Behaviour::gate();
    receiver.set("/hanging", gate);
    let settings = TestSettings::patient().with(|settings| {
        settings.events.max_size = Some(100_000);
        settings.limits.outbox = Some(1_000_000);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    // Fifteen times 90 KB is more than the limit of the outbox; five times is less, but does not fit in addition to ten.
    let in_parts =
        (0..15).map(|number| patient(&format!("parts-{number}"), &["user.big"], &receiver.url("/parts")));
    let later =
        (0..5).map(|number| patient(&format!("later-{number}"), &["user.large"], &receiver.url("/later")));
    let hanging = patient("hanging", &["user.slow"], &receiver.url("/hanging"));
    let small = patient("small", &["user.small"], &receiver.url("/small"));
    client.subscribe(in_parts.chain(later).chain([hanging, small])).await;
    let large = |key: &str, id: &str| {
        let body =
            json!({"specversion": "1.0", "id": id, "source": "/t", "type": key, "data": "x".repeat(90_000)});
        (format!("hub.events.{key}"), body.to_string())
    };
    let publish = async |(subject, body): (String, String)| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("content-type", "application/cloudevents+json");
        let sent = client.context.publish_with_headers(subject, headers, body.into()).await.expect("sent");
        sent.await.expect("stored");
    };
    publish(large("user.big", "parts")).await;
    receiver.wait_accepted("/parts", 15, STEP).await;
    for number in 0..10 {
        publish(large("user.slow", &format!("slow-{number}"))).await;
    }
    receiver.wait_for("/hanging", 1, STEP).await;
    eventually(STEP, "the outbox holds the ten events", async || {
        let stored = client.stream("HUB_OUTBOX_USER_LIFECYCLE").await.state.messages;
        if stored == 10 { Ok(()) } else { Err(stored) }
    })
    .await;
    publish(large("user.large", "later")).await;
    let events = ids("small", 300);
    client.publish_all("user.small", &events).await;
    receiver.wait_accepted("/small", 300, STEP).await;
    let rejected = client.stream("HUB_REJECTED").await.state.messages;
    assert_eq!((rejected, receiver.count("/parts"), receiver.count("/later")), (0, 15, 0));
    // It is delivered once there is room.
    open.send_replace(true);
    receiver.wait_accepted("/later", 5, STEP).await;
}

#[tokio::test]
async fn restarts_in_the_middle_of_a_fan_out_lose_and_double_no_envelope() {
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &["--role", "event-processor"]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    // No process delivers: every envelope stays in the outbox, where it can be counted.
    let subscriptions = ["a", "b", "c"];
    client.subscribe(subscriptions.map(|id| subscription(id, &["org.>"], "http://127.0.0.1:1/"))).await;
    let events = ids("event", 6_000);
    let outbox = "HUB_OUTBOX_ORGANIZATION";
    let restarts = async {
        for envelopes in [1_000, 5_000, 9_000] {
            eventually(STEP, "the fan-out continues", async || {
                let standing = client.stream(outbox).await.state.messages;
                if standing >= envelopes { Ok(()) } else { Err(standing) }
            })
            .await;
            assert!(hub.terminate().await.success());
            hub.start();
            // It handles SIGTERM once it is ready.
            hub.ready().await;
        }
    };
    tokio::join!(client.publish_all("org.renamed", &events), restarts);
    eventually(STEP, "no event waits", async || {
        let waiting = client.stream("HUB_EVENTS").await.state.messages;
        if waiting == 0 { Ok(()) } else { Err(waiting) }
    })
    .await;
    let state = client.stream(outbox).await.state;
    assert_eq!((state.messages, state.last_sequence), (18_000, 18_000));
}

/// An event of a tenant.
async fn publish_for(client: &TestClient, tenant: &str, key: &str, data: &Value) {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Hub-Tenant", tenant);
    let sent =
        client.context.publish_with_headers(format!("hub.events.{key}"), headers, data.to_string().into());
    sent.await.expect("sent").await.expect("stored");
}

/// A filter with `comparisons` comparisons, the last one with this source.
fn any_of(comparisons: usize, source: &str) -> Value {
    let mut leaves: Vec<Value> =
        (1..comparisons).map(|number| json!({"exact": {"source": format!("no-{number}")}})).collect();
    leaves.push(json!({"exact": {"source": source}}));
    json!([{ "any": leaves }])
}

#[tokio::test]
async fn the_worst_that_one_tenant_may_ask_for_does_not_keep_anothers_event_waiting() {
    const EVENTS: u64 = 1_500;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::not_started(&broker.url(), &TestSettings::quick());
    hub.cli_ok(&["provision"]).await;
    let client = TestClient::connect(&broker.url()).await;
    // The most expensive case: 60 subscriptions with 256 comparisons each, all evaluated and none true.
    let evil = (0..60).map(|number| {
        let mut one = subscription(&format!("evil-{number}"), &["user.>"], &receiver.url("/evil"));
        one["tenant"] = "evil".into();
        one["filter"] = any_of(256, "nobody");
        one
    });
    client.subscribe(evil).await;
    let mut good = subscription("good", &["user.>"], &receiver.url("/good"));
    good["tenant"] = "good".into();
    client.subscribe([good]).await;
    for number in 0..EVENTS {
        publish_for(&client, "evil", "user.created", &json!({ "number": number })).await;
    }
    publish_for(&client, "good", "user.created", &json!({"user_id": "u1"})).await;

    // It is the last in the stream, and is delivered while most of the others still wait.
    hub.start();
    receiver.wait_for("/good", 1, STEP).await;
    let waiting = client.stream("HUB_EVENTS").await.state.messages;
    assert!(waiting > EVENTS / 2, "only {waiting} of the {EVENTS} events before it were left");
    // All of them are still processed.
    hub.metric_above("hub_events_unmatched_total", &[], EVENTS as f64 - 0.5, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!((receiver.count("/good"), receiver.count("/evil")), (1, 0));
}

#[tokio::test]
async fn a_filter_stored_before_the_limit_still_applies_and_is_logged() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    for (id, last) in [
        ("wants", json!({"exact": {"type": "user.created"}})),
        ("wants-not", json!({"exact": {"type": "no"}})),
    ] {
        let mut one = subscription(id, &["user.>"], &receiver.url(&format!("/{id}")));
        one["filter"] = any_of(24_000, "nobody");
        one["filter"][0]["any"].as_array_mut().expect("a list").push(last);
        client.subscribe([one]).await;
    }
    client.publish("user.created", "one").await;
    receiver.wait_for("/wants", 1, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!((receiver.count("/wants"), receiver.count("/wants-not")), (1, 0));
    hub.wait_for_log("a stored filter exceeds the current limit", STEP).await;
}

/// A subscription with the largest allowed configuration: 64 headers.
fn large(id: &str, url: &str) -> Value {
    let mut one = subscription(id, &["user.>"], url);
    let headers = (0..64).map(|number| (format!("x-header-{number}"), Value::from("v".repeat(240))));
    one["delivery"]["headers"] = headers.collect::<serde_json::Map<_, _>>().into();
    one["delivery"]["timeout"] = "20s".into();
    one
}

#[tokio::test]
async fn a_large_event_reaches_a_large_subscription_and_all_others() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let settings = TestSettings::quick().with(|settings| settings.events.max_size = Some(1_047_000));
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe([
            large("large", &receiver.url("/large")),
            subscription("small", &["user.>"], &receiver.url("/small")),
        ])
        .await;
    publish_for(&client, "default", "user.created", &json!({"data": "x".repeat(1_033_000)})).await;
    for path in ["/large", "/small"] {
        let received = receiver.wait_for(path, 1, STEP).await;
        assert_eq!(received[0].json()["data"]["data"].as_str().map(str::len), Some(1_033_000), "{path}");
    }
    assert_eq!(receiver.received("/large")[0].header("x-header-63"), "v".repeat(240));
    broker.nothing_pending_within(STEP).await;
    assert_eq!(client.stream("HUB_REJECTED").await.state.last_sequence, 0);
    // An event that is too large itself is rejected for all subscriptions.
    publish_for(&client, "default", "user.created", &json!({"data": "x".repeat(1_044_300)})).await;
    hub.metric_above("hub_events_rejected_total", &["reason=\"too-large\""], 0.5, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!((receiver.count("/large"), receiver.count("/small")), (1, 1));
}
