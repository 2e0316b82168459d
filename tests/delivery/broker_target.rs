//! Subscriptions with a broker instead of a URL: the messages that arrive, and the permission to name a broker.

use std::collections::BTreeSet;

use integration_hub::domain::producer_outbox::RaisedEvent;
use serde_json::{Value, json};

use crate::support::broker_target::{arrived, entries, event_ids, to_broker};
use crate::support::relay::{SOON, partner, stored};
use crate::support::settings::external;
use crate::support::{
    ApiClient, Hub, Receiver, RedisServer, TestBroker, TestClient, TestDatabase, TestSettings, eventually,
    free_port, subscription,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_arrives_in_redis_and_nats_in_the_stripped_envelope() {
    let Some(redis) = RedisServer::start(&[]).await else { return };
    let (broker, other, receiver) = (TestBroker::start().await, partner().await, Receiver::start().await);
    let brokers =
        [external("partner_events", "redis", &redis.url()), external("other", "nats", &other.url())];
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick().with_brokers(brokers), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe([
            to_broker("to-redis", &["user.>"], "partner_events", "orders"),
            to_broker("to-nats", &["user.>"], "other", "user.orders"),
            subscription("to-url", &["user.>"], &receiver.url("/url")),
        ])
        .await;
    client.publish("user.created", "e1").await;

    let in_redis = arrived(&redis, "orders", 1).await.remove(0);
    let in_nats = stored(&other, "PARTNER", 1).await.remove(0);
    receiver.wait_accepted("/url", 1, SOON).await;
    broker.nothing_pending_within(SOON).await;
    let time = in_redis["metadata"]["headers"]["time"].clone();
    assert!(time.is_string());
    assert_eq!(
        in_redis,
        json!({
            "data": {"user_id": "e1"},
            "metadata": {
                "headers": {"id": "e1", "type": "user.created", "time": time, "stream": null, "traceparent": null},
                "domain": {"fqn": null, "kind": "EVENT", "version": 1, "sequence_id": null,
                           "correlation_id": null, "causation_id": null, "origin_stream": null,
                           "stream_category": null},
                "envelope": {"specversion": "1.0"},
                "extensions": {"source": "nats", "tenant": "default"}
            }
        })
    );
    assert_eq!((in_nats.subject.as_str(), &in_nats.body), ("user.orders", &in_redis));

    // Log, trace and metrics are as for any delivery, but without a status.
    let trace = eventually(SOON, "the attempts are logged", async || {
        // The exit code is 1 until something is known about the event.
        let output = hub.cli(&["event", "trace", "e1", "--output", "json"]).await;
        let trace: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let attempts = trace["timeline"].as_array().into_iter().flatten();
        let attempts: Vec<Value> = attempts.filter(|step| step["what"] == "attempt").cloned().collect();
        if attempts.len() == 3 { Ok(attempts) } else { Err(attempts) }
    })
    .await;
    let of = |id: &str| trace.iter().find(|step| step["subscription"] == id).expect("it was tried");
    assert_eq!((&of("to-nats")["outcome"], &of("to-nats")["status"]), (&json!("delivered"), &Value::Null));
    assert_eq!((&of("to-url")["outcome"], &of("to-url")["status"]), (&json!("delivered"), &json!(200)));
    assert_eq!(of("to-nats")["envelope"], in_nats.message_id.as_str(), "the message id is the envelope's");
    assert_eq!(hub.metric("hub_failures_total", &[]).await, 0.0);
    assert!(hub.terminate().await.success());
}

/// For an event of a producer outbox, a subscription sends the same message as the relay.
async fn an_outbox_event_is_sent_as_its_external_row(database: TestDatabase) {
    let Some(redis) = RedisServer::start(&[]).await else { return };
    database.outbox(&["partner_events"]).await;
    let broker = TestBroker::start().await;
    let partner = external("partner_events", "redis", &redis.url()).to("rows");
    let direct =
        external("direct", "redis", &redis.url()).to("direct").with(|broker| broker.outbox = Some(false));
    let settings = TestSettings::quick().with_outbox(&database.url()).with_brokers([partner, direct]);
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let direct = to_broker("direct", &["user.>"], "direct", "asked-for");
    client.subscribe([to_broker("all", &["user.>"], "partner_events", "all"), direct]).await;
    let events = [
        json!({"id": "small", "type": "user.created", "stream": "user-u1", "data": [1.5, null], "published": true}),
        json!({
            "id": "full", "type": "user.renamed", "stream": "user-u1", "data": {"name": "ä \"quoted\""},
            "source": "crm", "time": "2026-01-31T12:00:00.123+01:00", "tenant": "default", "published": true,
            "priority": "bulk", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "correlation_id": "c1", "causation_id": "c0", "version": 3, "fqn": "Crm.UserRenamed",
            "kind": "EVENT", "sequence_id": "0.7", "origin_stream": "import-1", "stream_category": "crm::user",
            "expected_version": 6, "asynchronous": false, "event_store": {"position": 9},
            "extensions": {"partner_tier": "gold", "nested": {"list": [1, 2.25, {"deep": true}]}, "empty": ""}
        }),
    ];
    for event in &events {
        let event = RaisedEvent::from_json(&event.to_string()).expect("the event is good");
        database.publish(&[event], true).await.expect("it is raised");
    }

    let by_id = |mut messages: Vec<Value>| {
        messages.sort_by_key(|body| body["metadata"]["headers"]["id"].to_string());
        messages
    };
    let rows = by_id(arrived(&redis, "rows", 2).await);
    let sent = by_id(arrived(&redis, "all", 2).await);
    assert_eq!(event_ids(&rows), BTreeSet::from(["full", "small"]));
    assert_eq!(sent, rows);
    // A broker for subscriptions only gets their messages, and none of the outbox.
    assert_eq!(by_id(arrived(&redis, "asked-for", 2).await), rows);
    assert!(entries(&redis, "direct").await.is_empty());
    let full = &sent[0]["metadata"];
    assert_eq!(
        (
            &full["domain"]["fqn"],
            &full["extensions"]["nested"]["list"][1],
            &full["extensions"]["partner_tier"]
        ),
        (&json!("Crm.UserRenamed"), &json!(2.25), &json!("gold"))
    );
    for internal in ["expected_version", "asynchronous", "priority", "published"] {
        assert!(full["domain"].get(internal).is_none(), "{internal} stays inside");
    }
    assert!(full.get("event_store").is_none() && full["envelope"].get("checksum").is_none());
    assert!(hub.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_event_of_postgres_is_sent_as_its_external_row() {
    let Some(database) = TestDatabase::postgres().await else { return };
    an_outbox_event_is_sent_as_its_external_row(database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_event_of_sqlite_is_sent_as_its_external_row() {
    let Some(database) = TestDatabase::sqlite().await else { return };
    an_outbox_event_is_sent_as_its_external_row(database).await;
}

/// Subscriptions from a resolver: the envelope contains the name of the broker, which the delivering hub has.
#[tokio::test(flavor = "multi_thread")]
async fn a_resolver_may_name_a_broker() {
    let (registry, broker, other) = (TestBroker::start().await, TestBroker::start().await, partner().await);
    let port = free_port();
    let listen = TestSettings::default().with(|settings| {
        settings.subscriptions.listen = Some(format!("127.0.0.1:{port}"));
        settings.subscriptions.listen_anonymous = Some(true);
    });
    let mut answering = Hub::serve(&registry.url(), &listen, &["--role", "subscription-resolver"]);
    answering.ready().await;
    let elsewhere = TestClient::connect(&registry.url()).await;
    elsewhere.subscribe([to_broker("to-nats", &["user.>"], "other", "user.orders")]).await;

    let asking =
        TestSettings::quick().with_brokers([external("other", "nats", &other.url())]).with(|settings| {
            settings.subscriptions.source = Some("grpc".to_owned());
            settings.subscriptions.grpc_url = Some(format!("http://127.0.0.1:{port}"));
        });
    let mut hub = Hub::serve(&broker.url(), &asking, &[]);
    hub.ready().await;
    TestClient::connect(&broker.url()).await.publish("user.created", "e1").await;
    let message = stored(&other, "PARTNER", 1).await.remove(0);
    assert_eq!(
        (message.subject.as_str(), event_ids(&[message.body])),
        ("user.orders", BTreeSet::from(["e1"]))
    );
    broker.nothing_pending_within(SOON).await;
    assert!(hub.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_and_the_api_check_show_and_test_it() {
    let Some(redis) = RedisServer::start(&[]).await else { return };
    let broker = TestBroker::start().await;
    let settings = TestSettings::quick().with_brokers([external("partner_events", "redis", &redis.url())]);
    let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "api"]);
    hub.ready().await;
    let file = hub.folder().join("crm.json");
    let path = file.to_str().expect("UTF-8").to_owned();
    let write = |document: &Value| std::fs::write(&file, document.to_string()).expect("the file is written");

    write(&to_broker("crm", &["user.*"], "partner", "orders"));
    let refused = hub.cli(&["subscription", "apply", "-f", &path]).await;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{error}");
    assert!(error.contains("delivery.broker: ") && error.contains("partner_events"), "{error}");

    let document = to_broker("crm", &["user.*"], "partner_events", "orders");
    write(&document);
    hub.cli_ok(&["subscription", "apply", "-f", &path]).await;
    let list = hub.cli_ok(&["subscription", "list"]).await;
    assert!(list.contains("broker partner_events: orders"), "{list}");
    let shown = hub.cli_json(&["subscription", "show", "crm"]).await;
    assert_eq!(
        (&shown["delivery"]["broker"], &shown["delivery"]["stream"]),
        (&json!("partner_events"), &json!("orders"))
    );
    // The shown subscription can be applied again.
    write(&shown);
    assert_eq!(hub.cli_json(&["subscription", "apply", "-f", &path]).await[0]["action"], "unchanged");
    let output = hub.cli(&["subscription", "rotate-secret", "crm"]).await;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("delivery.signing"), "there is nothing to sign");

    let tested = hub.cli_json(&["subscription", "test", "crm"]).await;
    assert_eq!(tested["a_delivery_would"], "be done");
    assert_eq!(
        (&tested["request"]["broker"], &tested["answer"]["status"]),
        (&json!("partner_events"), &Value::Null)
    );
    let sample = arrived(&redis, "orders", 1).await.remove(0);
    assert_eq!(sample["metadata"]["headers"]["type"], "user.test");
    let sent = tested["request"]["body"].as_str().expect("the sent message is shown");
    assert_eq!(serde_json::from_str::<Value>(sent).expect("JSON"), sample);

    let api = ApiClient::with_scopes(&hub, "admin", "read,manage", None).await;
    let unknown = to_broker("api", &["user.*"], "partner", "orders");
    api.post("/v1/subscriptions", &unknown).await.expect_field(400, "delivery.broker");
    let mut both = to_broker("api", &["user.*"], "partner_events", "orders");
    both["delivery"]["url"] = json!("http://127.0.0.1:9/hooks");
    api.post("/v1/subscriptions", &both).await.expect_field(400, "delivery.url");
    both["delivery"] = json!({"broker": "partner_events", "stream": "orders", "headers": {"x-team": "a"}});
    api.post("/v1/subscriptions", &both).await.expect_field(400, "delivery.headers");
    api.post("/v1/subscriptions", &to_broker("api", &["user.*"], "partner_events", "orders"))
        .await
        .expect(201);
    let tested = api.post("/v1/subscriptions/api/test", &json!({})).await.expect(200);
    assert_eq!(tested["request"]["stream"], "orders", "{tested}");

    // A tenant uses the operator's broker credentials only in subscriptions that the operator created.
    let acme = ApiClient::with_scopes(&hub, "acme", "read,manage", Some("acme")).await;
    let own = to_broker("own", &["user.*"], "partner_events", "orders");
    acme.post("/v1/subscriptions", &own).await.expect_field(400, "delivery.broker");
    let mut given = to_broker("given", &["user.*"], "partner_events", "orders-of-acme");
    given["tenant"] = json!("acme");
    api.post("/v1/subscriptions", &given).await.expect(201);
    let any = [("if-match", "*")];
    let before = acme.get("/v1/subscriptions/given").await.expect(200);
    for patch in [
        json!({"delivery": {"max_in_flight": 4}}),
        json!({"delivery": {"stream": "orders"}}),
        json!({"delivery": {"broker": null, "stream": null, "url": "https://acme.example/"}}),
        json!({"events": [">"]}),
        json!({}),
    ] {
        acme.patch("/v1/subscriptions/given", &any, &patch).await.expect(403);
    }
    acme.put("/v1/subscriptions/given", &any, &before).await.expect(403);
    acme.post("/v1/subscriptions", &given).await.expect(403);
    for action in ["pause", "resume", "test", "rotate-secret"] {
        acme.post(&format!("/v1/subscriptions/given/{action}"), &json!({})).await.expect(403);
    }
    acme.delete("/v1/subscriptions/given", &[]).await.expect(403);
    assert_eq!(acme.get("/v1/subscriptions/given").await.expect(200), before);
    assert!(hub.terminate().await.success());
}
