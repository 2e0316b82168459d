//! Publishing over HTTP, and the trace of an event, on a real hub.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hub_testkit::broker_process::BrokerOptions;
use serde_json::{Value, json};

use crate::support::{
    ApiAnswer, ApiClient, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually,
    nats_server, print_output, require_tool, subscription, tool,
};

const STEP: Duration = Duration::from_secs(30);
const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

fn event(id: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/idp", "type": "user.created", "data": {"user_id": id}})
}

fn with(id: &str, name: &str, value: Value) -> Value {
    let mut event = event(id);
    event[name] = value;
    event
}

async fn publish(api: &ApiClient, content_type: &str, body: impl Into<Vec<u8>>) -> ApiAnswer {
    api.send("POST", "/v1/events", &[("content-type", content_type)], Some(body.into())).await
}

async fn one(api: &ApiClient, event: &Value) -> ApiAnswer {
    publish(api, STRUCTURED, event.to_string()).await
}

async fn batch(api: &ApiClient, events: &[Value]) -> ApiAnswer {
    publish(api, BATCH, Value::from(events).to_string()).await
}

/// Starts a hub with small limits of all streams except the events stream, because a server cannot reserve more than the
/// disk has.
async fn serving(broker: &TestBroker, settings: &TestSettings, args: &[&str]) -> Hub {
    let small = settings.clone().with(|settings| {
        for limit in [
            &mut settings.limits.outbox,
            &mut settings.limits.dlt,
            &mut settings.limits.attempts,
            &mut settings.limits.rejected,
        ] {
            *limit = Some(64_000_000);
        }
    });
    let mut hub = Hub::serve(&broker.url(), &small, args);
    hub.ready().await;
    hub
}

async fn publisher(hub: &Hub) -> ApiClient {
    ApiClient::with_scopes(hub, "producer", "publish", None).await
}

/// The number of events that the stream has ever stored.
async fn taken(client: &TestClient) -> u64 {
    client.stream("HUB_EVENTS").await.state.last_sequence
}

#[tokio::test(flavor = "multi_thread")]
async fn each_form_is_delivered_and_the_same_again_is_known() {
    let broker = TestBroker::start().await;
    let hub = serving(&broker, &TestSettings::quick(), &[]).await;
    let (receiver, client) = (Receiver::start().await, TestClient::connect(&broker.url()).await);
    client.subscribe([subscription("crm", &["user.*"], &receiver.url("/crm"))]).await;
    let mut acme = subscription("acme", &["user.*"], &receiver.url("/acme"));
    acme["tenant"] = json!("acme");
    client.subscribe([acme]).await;
    let api = publisher(&hub).await;

    let first = one(&api, &event("s-1")).await.expect(202);
    assert_eq!(first["events"][0]["id"], "s-1");
    assert_eq!(
        (&first["events"][0]["stream"], &first["events"][0]["duplicate"]),
        (&json!("HUB_EVENTS"), &json!(false))
    );
    let again = one(&api, &event("s-1")).await.expect(202);
    assert_eq!(again["events"][0]["duplicate"], true);
    assert_eq!(again["events"][0]["sequence"], first["events"][0]["sequence"]);

    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [
        ("content-type", "application/json; charset=utf-8"),
        ("ce-specversion", "1.0"),
        ("ce-id", "b%2F1%20%E2%82%AC"),
        ("ce-source", "/idp"),
        ("ce-type", "user.created"),
        ("ce-correlationid", "c-7"),
        ("traceparent", traceparent),
        ("x-internal", "stays here"),
    ];
    let binary = api.send("POST", "/v1/events", &headers, Some(br#"{"user_id": "b"}"#.to_vec())).await;
    assert_eq!(binary.expect(202)["events"][0]["id"], "b/1 €");

    let mut many: Vec<Value> = (0..1_000).map(|number| event(&format!("m-{number}"))).collect();
    many[500] = many[499].clone();
    let answer = batch(&api, &many).await.expect(202);
    let answered: Vec<&str> =
        answer["events"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(answered, many.iter().map(|event| event["id"].as_str().unwrap()).collect::<Vec<_>>());
    let doubles = answer["events"].as_array().unwrap().iter().filter(|one| one["duplicate"] == true).count();
    assert_eq!(doubles, 1);
    assert_eq!(batch(&api, &[]).await.expect(202)["events"], json!([]));

    let received = receiver.wait_for("/crm", 1_001, STEP).await;
    let find = |id: &str| received.iter().find(|one| one.json()["id"] == id).expect("delivered").json();
    assert_eq!(
        (find("s-1")["data"].clone(), find("m-999")["source"].clone()),
        (json!({"user_id": "s-1"}), json!("/idp"))
    );
    let binary = find("b/1 €");
    assert_eq!((&binary["correlationid"], &binary["data"]), (&json!("c-7"), &json!({"user_id": "b"})));
    assert_eq!(binary["traceparent"], traceparent);
    assert!(binary.get("x-internal").is_none(), "{binary}");
    broker.nothing_pending_within(STEP).await;
    assert_eq!(receiver.count("/crm"), 1_001);

    // A tenant's token publishes for that tenant, and for no other.
    let acme = ApiClient::with_scopes(&hub, "acme", "publish", Some("acme")).await;
    one(&acme, &event("s-1")).await.expect(202);
    one(&acme, &with("s-2", "tenant", json!("acme"))).await.expect(202);
    one(&acme, &with("s-3", "tenant", json!("globex"))).await.expect_field(400, "tenant");
    batch(&acme, &[event("s-4"), with("s-5", "tenant", json!("default"))])
        .await
        .expect_field(400, "[1].tenant");
    let received = receiver.wait_for("/acme", 2, STEP).await;
    assert!(received.iter().all(|one| one.json()["tenant"] == "acme"));
    broker.nothing_pending_within(STEP).await;
    assert_eq!((receiver.count("/crm"), receiver.count("/acme")), (1_001, 2));
    let reader = ApiClient::with_scopes(&hub, "reader", "read", None).await;
    one(&reader, &event("s-6")).await.expect(403);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_and_nothing_of_it_is_published() {
    let options = BrokerOptions { max_payload: Some(8_000_000), ..BrokerOptions::new(nats_server()) };
    let broker = TestBroker::start_with(options).await;
    let settings = TestSettings::default().with(|settings| settings.events.max_size = Some(100_000));
    let hub = serving(&broker, &settings, &["--role", "api"]).await;
    let client = TestClient::connect(&broker.url()).await;
    let api = publisher(&hub).await;

    let mut no_id = event("x");
    no_id.as_object_mut().unwrap().remove("id");
    let wrong = [
        ("id", no_id),
        ("type", with("x", "type", json!("user"))),
        ("type", with("x", "type", json!("invoice.paid"))),
        ("specversion", with("x", "specversion", json!("0.3"))),
        ("time", with("x", "time", json!("yesterday"))),
        ("tenant", with("x", "tenant", json!("a b"))),
        ("Team", with("x", "Team", json!("billing"))),
        ("data_base64", with("x", "data_base64", json!("$"))),
    ];
    for (field, event) in &wrong {
        let event = if *field == "data_base64" { &with_no_data(event) } else { event };
        one(&api, event).await.expect_field(400, field);
        let problem = batch(&api, &[self::event("good"), event.clone()]).await;
        problem.expect_field(400, &format!("[1].{field}"));
    }
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "x"),
        ("ce-source", "/idp"),
        ("ce-type", "user.created"),
        ("content-type", "application/json"),
    ];
    for (field, header) in [
        ("nats-msg-id", ("nats-msg-id", "mine")),
        ("nats-ttl", ("nats-ttl", "1s")),
        ("hub-tenant", ("hub-tenant", "acme")),
        ("ce-id", ("ce-id", "y")),
        ("time", ("ce-time", "noon")),
        ("ce-subject", ("ce-subject", "\u{e9}")),
    ] {
        let headers: Vec<_> = binary.into_iter().chain([header]).collect();
        api.send("POST", "/v1/events", &headers, Some(b"{}".to_vec())).await.expect_field(400, field);
    }
    api.send("POST", "/v1/events", &binary, Some(b"{".to_vec())).await.expect(400);
    publish(&api, STRUCTURED, "").await.expect_field(400, "body");
    publish(&api, STRUCTURED, "[]").await.expect_field(400, "body");
    publish(&api, STRUCTURED, b"\xff".to_vec()).await.expect_field(400, "body");
    publish(&api, BATCH, "{}").await.expect_field(400, "body");
    for content_type in ["application/json", "text/plain", "application/cloudevents+avro"] {
        let problem = publish(&api, content_type, event("x").to_string()).await.expect(415);
        assert!(problem["detail"].as_str().unwrap().contains(STRUCTURED), "{problem}");
    }
    api.send("POST", "/v1/events", &[], None).await.expect(415);

    // Too large for an event, for a body, for a batch; and too many events.
    let large = |size: usize| with("x", "data", "x".repeat(size).into());
    for size in [100_000, 200_000, 3_000_000] {
        one(&api, &large(size)).await.expect(413);
    }
    batch(&api, &[event("good"), large(100_000)]).await.expect_field(413, "[1]");
    batch(&api, &vec![large(50_000); 20]).await.expect(413);
    batch(&api, &(0..1_001).map(|number| event(&number.to_string())).collect::<Vec<_>>()).await.expect(413);
    assert_eq!(taken(&client).await, 0);
    one(&api, &large(90_000)).await.expect(202);
    batch(&api, &vec![large(50_000); 10]).await.expect(202);
    assert_eq!(taken(&client).await, 1);
}

fn with_no_data(event: &Value) -> Value {
    let mut event = event.clone();
    event.as_object_mut().unwrap().remove("data");
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_answers_503_and_loses_nothing_that_was_accepted() {
    let broker = TestBroker::start().await;
    let settings = TestSettings::quick().with(|settings| settings.limits.events = Some(1_000_000));
    let hub = serving(&broker, &settings, &["--role", "api"]).await;
    let (receiver, client) = (Receiver::start().await, TestClient::connect(&broker.url()).await);
    client.subscribe([subscription("crm", &["user.*"], &receiver.url("/crm"))]).await;
    let api = publisher(&hub).await;
    let padded = |id: String| with(&id, "data", "x".repeat(10_000).into());

    let events: Vec<Value> = (0..150).map(|number| padded(format!("e-{number}"))).collect();
    let answer = batch(&api, &events).await;
    let problem = answer.expect(503);
    assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0), "{answer:?}");
    let missing: Vec<&str> =
        problem["errors"].as_array().unwrap().iter().map(|one| one["field"].as_str().unwrap()).collect();
    let stored = taken(&client).await;
    assert!(stored > 0 && missing.len() as u64 == 150 - stored, "{stored} are stored, {missing:?} are not");
    assert!(problem["detail"].as_str().unwrap().contains(&format!("{stored} of 150")), "{problem}");
    let alone = one(&api, &padded("alone".to_owned())).await;
    alone.expect(503);
    assert!(!alone.header("retry-after").is_empty());

    // The hub catches up, and accepts the refused events; it recognises the stored ones.
    let _roles =
        serving(&broker, &settings, &["--role", "event-processor", "--role", "outbox-processor"]).await;
    let mut known = 0;
    eventually(STEP, "the same batch is taken", async || {
        let answer = batch(&api, &events).await;
        if answer.status != 202 {
            assert_eq!(answer.status, 503, "{answer:?}");
            return Err(answer.text);
        }
        known =
            answer.json()["events"].as_array().unwrap().iter().filter(|one| one["duplicate"] == true).count();
        Ok(())
    })
    .await;
    assert!(known as u64 >= stored, "{known} of {stored} were known");
    one(&api, &padded("alone".to_owned())).await.expect(202);
    receiver.wait_for("/crm", 151, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(receiver.count("/crm"), 151);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_broker_the_api_answers_503_and_recovers() {
    let mut broker = TestBroker::start().await;
    let mut hub = serving(&broker, &TestSettings::quick(), &[]).await;
    let (receiver, client) = (Receiver::start().await, TestClient::connect(&broker.url()).await);
    client.subscribe([subscription("crm", &["user.*"], &receiver.url("/crm"))]).await;
    let api = publisher(&hub).await;
    one(&api, &event("before")).await.expect(202);
    let many: Vec<Value> = (0..600).map(|number| event(&format!("m-{number}"))).collect();

    // It hangs.
    broker.freeze().await;
    // The client's own timeout is the limit of the wait.
    let late = one(&api, &event("hanging")).await;
    broker.thaw();
    late.expect(503);
    assert!(!late.header("retry-after").is_empty(), "{late:?}");
    one(&api, &event("hanging")).await.expect(202);

    // It is gone.
    broker.process().kill().await.expect("killed");
    eventually(STEP, "the hub is not ready", async || match api.get("/readyz").await.status {
        503 => Ok(()),
        status => Err(status),
    })
    .await;
    let gone = batch(&api, &many).await;
    gone.expect(503);
    assert!(!gone.header("retry-after").is_empty(), "{gone:?}");
    assert_eq!(api.get("/healthz").await.status, 200);
    broker.process().restart().await.expect("restarted");
    hub.ready().await;
    eventually(STEP, "the batch is taken", async || {
        let answer = batch(&api, &many).await;
        // While the server recovers its streams the answer is 503 and nothing else.
        assert!(matches!(answer.status, 202 | 503), "{answer:?}");
        if answer.status == 202 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    receiver.wait_accepted("/crm", 602, STEP).await;
    broker.nothing_pending_within(STEP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_can_be_traced_by_its_tenant() {
    let broker = TestBroker::start().await;
    let hub = serving(&broker, &TestSettings::quick(), &[]).await;
    let (receiver, client) = (Receiver::start().await, TestClient::connect(&broker.url()).await);
    receiver.set("/dead", Behaviour::status(400));
    let of_acme = |id: &str, key: &str| {
        let mut one = subscription(id, &[key], &receiver.url(&format!("/{id}")));
        one["tenant"] = json!("acme");
        one
    };
    client.subscribe([of_acme("live", "user.*"), of_acme("dead", "policy.*")]).await;
    let acme = ApiClient::with_scopes(&hub, "acme", "publish,read", Some("acme")).await;
    let globex = ApiClient::with_scopes(&hub, "globex", "publish,read", Some("globex")).await;
    let admin = ApiClient::with_scopes(&hub, "admin", "read", None).await;
    one(&acme, &event("a/b c")).await.expect(202);
    one(&acme, &with("d?1", "type", json!("policy.updated"))).await.expect(202);

    for (path, subscriber, state) in [("a%2Fb%20c", "live", "delivered"), ("d%3F1", "dead", "dead-lettered")]
    {
        let path = format!("/v1/events/{path}");
        let story = eventually(STEP, "the story is whole", async || {
            let answer = acme.get(&path).await;
            match answer.status {
                200 if answer.json()["subscribers"][0]["state"] == state => Ok(answer.json()),
                200 | 404 => Err(answer.text),
                _ => panic!("{answer:?}"),
            }
        })
        .await;
        assert_eq!(story["subscribers"][0]["subscription"], subscriber);
        assert_eq!(story["complete"], true);
        assert!(
            story["timeline"].as_array().unwrap().iter().any(|step| step["what"] == "attempt"),
            "{story}"
        );
        let trace = hub.cli_json(&["event", "trace", story["event_id"].as_str().unwrap()]).await;
        assert_eq!(admin.get(&path).await.expect(200), trace);
        globex.get(&path).await.expect(404);
        globex.get(&format!("{path}?since=1h")).await.expect(404);
    }
    acme.get("/v1/events/d%3F1?domain=policy-client,user-lifecycle&since=1h&timeout=5s").await.expect(200);
    acme.get("/v1/events/d%3F1?domain=user-lifecycle").await.expect(404);
    acme.get("/v1/events/d%3F1?since=2100-01-01T00:00:00Z").await.expect(404);
    acme.get("/v1/events/nothing").await.expect(404);
    acme.get("/v1/events/x?domain=sales").await.expect_field(400, "domain");
    acme.get("/v1/events/x?since=yesterday").await.expect_field(400, "since");
    acme.get("/v1/events/x?timeout=1h").await.expect_field(400, "timeout");
    admin.get("/v1/events/%FF").await.expect_field(400, "id");
    admin.get("/v1/subscriptions/%FF").await.expect_field(400, "id");
    acme.get("/v1/events/x?limit=1").await.expect_field(400, "limit");
    publisher(&hub).await.get("/v1/events/x").await.expect(403);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_public_sdk_publishes() {
    const PACKAGES: &str = "HUB_TEST_PYTHON_RECEIVERS";
    let folder = std::env::var_os(PACKAGES).filter(|value| !value.is_empty()).map(PathBuf::from);
    let Some(folder) = require_tool(&format!("the CloudEvents SDK (its folder in {PACKAGES})"), folder)
    else {
        return;
    };
    let Some(python) = require_tool("python3", tool("python3", "HUB_TEST_NO_OTHER")) else { return };
    let broker = TestBroker::start().await;
    let hub = serving(&broker, &TestSettings::quick(), &[]).await;
    let (receiver, client) = (Receiver::start().await, TestClient::connect(&broker.url()).await);
    client.subscribe([subscription("crm", &["user.*"], &receiver.url("/crm"))]).await;
    let api = publisher(&hub).await;

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/receivers/publish.py");
    let run = tokio::process::Command::new(python)
        .args([script.as_os_str(), hub.api_url("/v1/events").as_ref()])
        .env("PYTHONPATH", folder)
        .env("HUB_TOKEN", api.token())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(STEP, run).await.expect("the script ends").expect("the script runs");
    assert!(output.status.success(), "{}", print_output(&output));
    let answers: Value = serde_json::from_slice(&output.stdout).expect("the script prints JSON");
    assert_eq!(answers.as_array().map(Vec::len), Some(2), "{answers}");
    for answer in answers.as_array().unwrap() {
        assert_eq!(answer["status"], 202, "{answer}");
    }
    let mut received: Vec<Value> =
        receiver.wait_for("/crm", 2, STEP).await.iter().map(|one| one.json()).collect();
    received.sort_by_key(|event| event["id"].to_string());
    for (event, id) in received.iter().zip(["binary €", "structured €"]) {
        assert_eq!((&event["id"], &event["subject"]), (&json!(id), &json!("Zoë \"the\" 100%")));
        assert_eq!(
            (&event["data"], &event["time"]),
            (&json!({"user_id": id}), &json!("2026-01-31T12:00:00Z"))
        );
    }
}
