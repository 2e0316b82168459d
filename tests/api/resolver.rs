//! Subscriptions resolved over gRPC: one hub answers from its registry, another hub on a broker of its own
//! calls it. The answering process is killed, frozen, and called with the wrong token.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    Account, Behaviour, FaultProxy, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually,
    free_port, http_client, ids, patient, subscription,
};

const STEP: Duration = Duration::from_secs(60);
const TOKEN: &str = "a-token-of-the-resolver-4711";
const OUTBOX: &str = "HUB_OUTBOX_USER_LIFECYCLE";

/// The broker, the test's connection and the process that answers.
struct Answering {
    _broker: TestBroker,
    client: TestClient,
    hub: Hub,
    port: u16,
}

impl Answering {
    async fn start() -> Self {
        let broker = TestBroker::start().await;
        let port = free_port();
        let settings = answering(port).with(|settings| {
            settings.subscriptions.listen_token = Some(TOKEN.to_owned());
        });
        let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "subscription-resolver"]);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        Self { _broker: broker, client, hub, port }
    }
}

/// Waits until only the missing answer of the resolver keeps a hub from being ready.
async fn waits_for_an_answer(hub: &Hub) {
    eventually(STEP, "the hub is ready but for the resolver", async || {
        let Ok(answer) = http_client().get(hub.health_url("/readyz")).send().await else {
            return Err("no answer".to_owned());
        };
        let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
        let only = status == 503 && text == "not ready: answer of the subscription resolver\n";
        if only { Ok(()) } else { Err(text) }
    })
    .await;
}

/// Settings of a hub that answers at `port`.
fn answering(port: u16) -> TestSettings {
    TestSettings::default().with(|settings| settings.subscriptions.listen = Some(format!("127.0.0.1:{port}")))
}

/// Settings of a hub that calls the resolver at `port`.
fn asking(port: u16, token: &str) -> TestSettings {
    TestSettings::patient().with(|settings| {
        settings.subscriptions.source = Some("grpc".to_owned());
        settings.subscriptions.grpc_url = Some(format!("http://127.0.0.1:{port}"));
        settings.subscriptions.token = Some(token.to_owned());
    })
}

#[tokio::test]
async fn a_killed_resolver_makes_events_wait_and_loses_and_doubles_no_pair() {
    let mut answering = Answering::start().await;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut filtered = patient("filtered", &["user.created"], &receiver.url("/filtered"));
    filtered["filter"] = json!([{ "prefix": { "id": "second" } }]);
    let others = [
        patient("all", &["user.>"], &receiver.url("/all")),
        patient("created", &["user.created"], &receiver.url("/created")),
        patient("elsewhere", &["role.>"], &receiver.url("/elsewhere")),
        filtered,
    ];
    answering.client.subscribe(others).await;
    // Without a cache, so that events published after the kill need a new answer.
    let settings = asking(answering.port, TOKEN)
        .with(|settings| settings.subscriptions.max_staleness = Some(Duration::ZERO));
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;

    let first = ids("first", 200);
    client.publish_all("user.created", &first).await;
    receiver.wait_accepted("/all", 200, STEP).await;
    receiver.wait_accepted("/created", 200, STEP).await;
    broker.nothing_pending_within(STEP).await;

    answering.hub.kill().await;
    let waiting = ids("waiting", 100);
    client.publish_all("user.deleted", &waiting).await;
    hub.wait_for_log("subscription resolver failed, events wait", STEP).await;
    let second = ids("second", 2_000);
    client.publish_all("user.created", &second).await;
    assert_eq!(client.stream("HUB_EVENTS").await.state.messages, 2_100, "every event waits");
    assert_eq!(
        client.stream(OUTBOX).await.state.last_sequence,
        400,
        "no event is fanned out, not even partly"
    );
    waits_for_an_answer(&hub).await;
    // It keeps retrying; failures are counted, and logged once.
    let unavailable = ["kind=\"unavailable\""];
    let failed = hub.metric("hub_resolver_failures_total", &unavailable).await;
    hub.metric_above("hub_resolver_failures_total", &unavailable, failed + 1.0, STEP).await;
    assert_eq!(hub.log().matches("subscription resolver failed").count(), 1, "once, not for each event");

    answering.hub.start();
    answering.hub.ready().await;
    hub.ready().await;
    receiver.wait_accepted("/all", 2_300, STEP).await;
    receiver.wait_accepted("/created", 2_200, STEP).await;
    receiver.wait_accepted("/filtered", 2_000, STEP).await;
    broker.nothing_pending_within(STEP).await;
    let letters = client.dead_letters("user-lifecycle").await;
    let created: Vec<String> = first.iter().chain(&second).cloned().collect();
    let all: Vec<String> = created.iter().chain(&waiting).cloned().collect();
    for (events, pair, times) in [
        (&all, ("all", "/all"), 2_300),
        (&created, ("created", "/created"), 2_200),
        (&second, ("filtered", "/filtered"), 2_000),
    ] {
        let account = Account::of(events, &[pair], &receiver, &letters);
        account.assert_complete(pair.0);
        assert_eq!((account.delivered, account.doubles, account.dead), (times, 0, 0), "{}", pair.0);
    }
    assert_eq!(receiver.count("/elsewhere"), 0);
    assert!(hub.log().contains("subscription resolver answers again"), "the end of the outage is logged");
}

#[tokio::test]
async fn a_change_is_seen_when_the_kept_answer_ends() {
    let answering = Answering::start().await;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    answering.client.subscribe([subscription("moving", &["user.>"], &receiver.url("/before"))]).await;
    let mut hub = Hub::serve(&broker.url(), &asking(answering.port, TOKEN), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.publish("user.created", "one").await;
    receiver.wait_accepted("/before", 1, STEP).await;
    answering.client.subscribe([subscription("moving", &["user.>"], &receiver.url("/after"))]).await;
    let mut published = 1;
    eventually(STEP, "an event goes where the subscription points now", async || {
        client.publish("user.created", &format!("after-{published}")).await;
        published += 1;
        if receiver.count("/after") > 0 { Ok(()) } else { Err(published) }
    })
    .await;
    broker.nothing_pending_within(STEP).await;
    let (before, after) = (receiver.accepted("/before").len(), receiver.accepted("/after").len());
    assert_eq!(before + after, published, "each went to one of the two");
    // The first event needs an answer; most events within the next second use the cached one.
    let count = async |name: &str| hub.metric(name, &[]).await;
    let (answers, hits) =
        (count("hub_resolver_answers_total").await, count("hub_resolver_cache_hits_total").await);
    assert!(answers >= 2.0 && hits >= 1.0, "{answers} answers, {hits} from the cache");
    assert_eq!(count("hub_resolver_failures_total").await, 0.0);
    let served = answering.hub.metric("hub_resolver_served_total", &["result=\"answered\""]).await;
    assert!(served >= answers, "{answers} answers, but {served} served");
}

#[tokio::test]
async fn an_answer_means_what_the_resolver_says_and_a_410_disables_nobody() {
    let answering = Answering::start().await;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/gone", Behaviour::status(410));
    receiver.set("/patient", Behaviour::failing_first(1, 410));
    let mut patient = subscription("patient", &["user.>"], &receiver.url("/patient"));
    patient["delivery"]["statuses"] = json!({ "retry": [410] });
    let gone = subscription("gone", &["user.>"], &receiver.url("/gone"));
    answering.client.subscribe([gone, patient]).await;
    let mut hub = Hub::serve(&broker.url(), &asking(answering.port, TOKEN), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.publish("user.created", "one").await;
    hub.wait_for_log("subscription not disabled, it is resolved elsewhere", STEP).await;
    receiver.wait_accepted("/patient", 1, STEP).await;
    broker.nothing_pending_within(STEP).await;

    // It is still tried, because nothing disables it.
    client.publish("user.created", "two").await;
    receiver.wait_for("/gone", 2, STEP).await;
    receiver.wait_accepted("/patient", 2, STEP).await;
    broker.nothing_pending_within(STEP).await;
    let letters = client.dead_letters("user-lifecycle").await;
    let outcomes: Vec<_> = letters
        .iter()
        .map(|entry| {
            (entry.letter.subscription.as_str(), entry.letter.reason.as_str(), entry.letter.attempts)
        })
        .collect();
    assert_eq!(outcomes, [("gone", "permanent", 1); 2]);
    let shown = answering.hub.cli_json(&["subscription", "show", "gone"]).await;
    assert_eq!(shown["state"], "active");
}

#[tokio::test]
async fn a_wrong_token_is_refused_and_the_events_wait() {
    let answering = Answering::start().await;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    answering.client.subscribe([subscription("crm", &["user.>"], &receiver.url("/crm"))]).await;
    let mut hub = Hub::serve(&broker.url(), &asking(answering.port, "another-token"), &[]);
    // Before there is any event.
    waits_for_an_answer(&hub).await;
    let client = TestClient::connect(&broker.url()).await;
    client.publish("user.created", "one").await;
    hub.wait_for_log("set subscriptions.token to the token it expects", STEP).await;
    assert_eq!(client.stream("HUB_EVENTS").await.state.messages, 1);
    assert_eq!(client.stream(OUTBOX).await.state.last_sequence, 0);
    assert!(hub.metric("hub_resolver_failures_total", &["kind=\"not-admitted\""]).await > 0.0);
    let refused = answering.hub.metric("hub_resolver_served_total", &["result=\"not-admitted\""]).await;
    assert!(refused > 0.0);
    assert!(hub.terminate().await.success());

    let mut hub = Hub::serve(&broker.url(), &asking(answering.port, TOKEN), &[]);
    hub.ready().await;
    receiver.wait_accepted("/crm", 1, STEP).await;
    broker.nothing_pending_within(STEP).await;
    for log in [hub.log(), answering.hub.log()] {
        assert!(!log.contains(TOKEN) && !log.contains("another-token"), "no token is logged");
    }
}

#[tokio::test]
async fn a_slow_resolver_runs_into_the_deadline_and_the_events_wait() {
    let answering = Answering::start().await;
    let proxy = FaultProxy::start(&format!("127.0.0.1:{}", answering.port)).await;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    answering.client.subscribe([patient("crm", &["user.>"], &receiver.url("/crm"))]).await;
    let deadline = Some(Duration::from_millis(200));
    let settings =
        asking(proxy.address().port(), TOKEN).with(|settings| settings.subscriptions.deadline = deadline);
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    proxy.freeze();
    let client = TestClient::connect(&broker.url()).await;
    let events = ids("event", 50);
    client.publish_all("user.created", &events).await;
    hub.wait_for_log("(subscriptions.deadline)", STEP).await;
    assert_eq!(client.stream("HUB_EVENTS").await.state.messages, 50);
    assert_eq!(client.stream(OUTBOX).await.state.last_sequence, 0);
    proxy.thaw();
    receiver.wait_accepted("/crm", 50, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(receiver.doubles("/crm").len(), 0);
}

#[tokio::test]
async fn the_role_answers_without_a_token_only_if_configured() {
    let broker = TestBroker::start().await;
    let listen = answering(free_port());
    let mut hub = Hub::serve(&broker.url(), &listen, &["--role", "subscription-resolver"]);
    assert!(!hub.ended(STEP).await.success());
    assert!(hub.log().contains("subscriptions.listen_token"), "{}", hub.log());
    let open = listen.with(|settings| settings.subscriptions.listen_anonymous = Some(true));
    let mut hub = Hub::serve(&broker.url(), &open, &["--role", "subscription-resolver"]);
    hub.ready().await;
}

#[tokio::test]
async fn an_envelope_that_does_not_fit_with_its_delivery_is_dead_lettered_and_the_others_arrive() {
    const DLT: &str = "HUB_OUTBOX_USER_LIFECYCLE_DLT";
    let answering = Answering::start().await;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut large = patient("large", &["user.>"], &receiver.url("/large"));
    let headers =
        (0..64).map(|number| (format!("x-header-{number}"), serde_json::Value::from("v".repeat(240))));
    large["delivery"]["headers"] = headers.collect::<serde_json::Map<_, _>>().into();
    let mut small = patient("small", &["user.>"], &receiver.url("/small"));
    small["delivery"]["timeout"] = "20s".into();
    answering.client.subscribe([large, small]).await;
    let settings = asking(answering.port, TOKEN).with(|settings| settings.events.max_size = Some(1_047_000));
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let resize = async |bytes| {
        let mut config = client.stream(DLT).await.config;
        config.max_bytes = bytes;
        client.context.update_stream(config).await.expect("the stream is changed");
    };
    // The others do not wait for room in the dead-letter stream.
    resize(100).await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", "one");
    let body = json!({"data": "x".repeat(1_033_000)}).to_string();
    let sent = client.context.publish_with_headers("hub.events.user.created", headers, body.into()).await;
    sent.expect("sent").await.expect("stored");
    receiver.wait_for("/small", 1, STEP).await;
    hub.wait_for_log("dead letters cannot be stored", STEP).await;
    assert_eq!(client.stream(DLT).await.state.last_sequence, 0);
    resize(10_000_000).await;
    broker.nothing_pending_within(STEP).await;
    let list = hub.cli_json(&["dlt", "list"]).await;
    let letters = list["dead_letters"].as_array().or_else(|| list.as_array()).expect("a list").clone();
    assert_eq!(letters.len(), 1, "{list}");
    for (field, value) in [
        ("subscription", "large"),
        ("reason", "too-large"),
        ("fault", "subscriber"),
        ("state", "parked"),
        ("event_id", "one"),
    ] {
        assert_eq!(letters[0][field], value, "{list}");
    }
    let counted = hub.metric("hub_dead_lettered_total", &["reason=\"too-large\""]).await;
    assert!((counted - 1.0).abs() < 0.1, "{counted}");
    // The dead letter contains the whole event.
    let id = letters[0]["id"].as_str().expect("an id");
    let shown = hub.cli_json(&["dlt", "show", id]).await.to_string();
    assert!(shown.len() > 1_033_000, "{} bytes", shown.len());
    assert_eq!(client.stream("HUB_REJECTED").await.state.last_sequence, 0);
    assert_eq!(client.stream("HUB_EVENTS").await.state.messages, 0);
    assert_eq!(receiver.count("/large"), 0);
}
