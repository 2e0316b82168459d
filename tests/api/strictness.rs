//! No part of a request is ignored, for every operation of the API: query parameters, codings, media types, and members
//! that occur twice. Every problem names its field.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{ApiClient, Hub, TestBroker, TestSettings, http_client};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

async fn hub(broker: &TestBroker) -> Hub {
    let mut hub = Hub::serve(&broker.url(), &TestSettings::default().with_key(KEY), &["--role", "api"]);
    hub.ready().await;
    hub
}

/// An operation of the OpenAPI document.
struct Operation {
    method: String,
    /// With a value for each parameter of the path, and the required ones of the query.
    path: String,
    takes_json: bool,
}

impl Operation {
    fn with(&self, query: &str) -> String {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        format!("{}{separator}{query}", self.path)
    }
}

async fn operations(hub: &Hub) -> Vec<Operation> {
    let text = http_client().get(hub.api_url("/openapi.json")).send().await.expect("it answers");
    let api: Value = serde_json::from_str(&text.text().await.expect("to the end")).expect("JSON");
    let mut operations = Vec::new();
    for (path, item) in api["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let mut filled: String = path
                .split('/')
                .map(|part| if part.starts_with('{') { "none" } else { part })
                .collect::<Vec<_>>()
                .join("/");
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            if parameters.into_iter().any(|one| one["in"] == "query" && one["required"] == true) {
                filled.push_str("?event=user.created");
            }
            operations.push(Operation {
                method: method.to_ascii_uppercase(),
                takes_json: operation["requestBody"].is_object() && path != "/v1/events",
                path: filled,
            });
        }
    }
    operations
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_refuses_what_it_would_ignore() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker).await;
    let api = ApiClient::with_scopes(&hub, "all", "publish,read,manage,operate", None).await;
    let operations = operations(&hub).await;
    assert!(operations.len() > 25, "{}", operations.len());
    let json = ("content-type", "application/json");
    let mut bodies = 0;
    for operation in &operations {
        let Operation { method, path, takes_json } = operation;
        let name = format!("{method} {path}");
        for bogus in ["bogus=1", "bogus", "%62ogus=1&bogus=2"] {
            let answer = api.send(method, &operation.with(bogus), &[json], Some(b"{}".to_vec())).await;
            assert_eq!(answer.status, 400, "{name}?{bogus}: {}", answer.text);
            answer.expect_field(400, "bogus");
        }
        for coding in ["gzip", "br", "identity, gzip", "x"] {
            let headers = [json, ("content-encoding", coding)];
            let answer = api.send(method, path, &headers, Some(b"\x1f\x8b".to_vec())).await;
            assert_eq!(answer.status, 415, "{name} in {coding}: {}", answer.text);
            answer.expect_field(415, "content-encoding");
        }
        if !takes_json {
            continue;
        }
        bodies += 1;
        for (body, field) in [
            (r#"{"a":1,"a":1}"#, "a"),
            (
                r#"{"id":"a","delivery":{"url":"https://a.example/","url":"https://b.example/"}}"#,
                "delivery.url",
            ),
            (r#"{"a":[{},{"b":1,"\u0062":2}]}"#, "a[1].b"),
        ] {
            let headers = [json, ("if-match", "*")];
            let answer = api.send(method, path, &headers, Some(body.as_bytes().to_vec())).await;
            assert_eq!(answer.status, 400, "{name}: {}", answer.text);
            answer.expect_field(400, field);
        }
        for media in ["application/json-patch+json", "application/vnd.api+json", "text/json"] {
            let answer = api.send(method, path, &[("content-type", media)], Some(b"{}".to_vec())).await;
            assert_eq!(answer.status, 415, "{name} as {media}: {}", answer.text);
            answer.expect_field(415, "content-type");
        }
        let merge = [("content-type", "application/merge-patch+json")];
        let answer = api.send(method, path, &merge, Some(b"{}".to_vec())).await;
        assert_eq!(answer.status == 415, method != "PATCH", "{name}: {}", answer.text);
    }
    assert!(bodies > 8, "{bodies}");
    // Without a coding, and with the one that changes nothing.
    let event = json!({"specversion": "1.0", "id": "e", "source": "/s", "type": "user.created"}).to_string();
    let headers = [("content-type", "application/cloudevents+json"), ("content-encoding", "identity")];
    api.send("POST", "/v1/events", &headers, Some(event.into_bytes())).await.expect(202);
    // A caller without a token learns only that.
    let nobody = ApiClient::with_token(&hub, None);
    nobody.get("/v1/subscriptions?bogus=1").await.expect_field(401, "authorization");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_problem_names_the_parameter_or_header() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker).await;
    let api = ApiClient::with_scopes(&hub, "all", "publish,read,manage,operate", None).await;
    for (path, field) in [
        ("/v1/subscriptions?limit=abc", "limit"),
        ("/v1/subscriptions?limit=0", "limit"),
        ("/v1/subscriptions?limit=1&limit=2", "limit"),
        ("/v1/subscriptions?state=x", "state"),
        ("/v1/subscriptions?event=x", "event"),
        ("/v1/subscriptions?after=x", "after"),
        ("/v1/subscriptions/%FF", "id"),
        ("/v1/subscriptions/UPPER", "id"),
        ("/v1/orders?limit=-1", "limit"),
        ("/v1/domains/%FF", "name"),
        ("/v1/events/%FF", "id"),
        ("/v1/outbox/messages/internal/%FF", "id"),
        ("/v1/outbox/messages/%FF/x", "broker"),
        ("/v1/matches", "event"),
        ("/v1/matches?event=", "event"),
        ("/v1/matches?event=user.created&source=", "source"),
        ("/v1/matches?event=user.created&source=%01", "source"),
        ("/v1/matches?event=user.created&tenant=", "tenant"),
        ("/v1/dead-letters?limit=abc", "limit"),
        ("/v1/dead-letters?reason=x", "reason"),
        ("/v1/dead-letters/stats?limit=1", "limit"),
    ] {
        let answer = api.get(path).await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.text);
        answer.expect_field(400, field);
    }
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "%FF"),
        ("ce-source", "/idp"),
        ("ce-type", "user.created"),
        ("content-type", "application/json"),
    ];
    api.send("POST", "/v1/events", &binary, Some(b"{}".to_vec())).await.expect_field(400, "ce-id");
    api.send("POST", "/v1/events", &binary[4..], Some(b"{}".to_vec()))
        .await
        .expect_field(415, "content-type");
    let plain =
        json!({"id": "crm", "events": ["user.created"], "delivery": {"url": "http://127.0.0.1:9/hooks"}});
    api.post("/v1/subscriptions", &plain).await.expect(201);
    let change = json!({"events": ["user.*"]});
    api.patch("/v1/subscriptions/crm", &[], &change).await.expect_field(428, "if-match");
    api.patch("/v1/subscriptions/crm", &[("if-match", "\"1000\"")], &change)
        .await
        .expect_field(412, "if-match");
    let absent = [("if-none-match", "*")];
    api.put("/v1/subscriptions/crm", &absent, &plain).await.expect_field(412, "if-none-match");
    for token in [None, Some("x"), Some("hub_no-one_x")] {
        ApiClient::with_token(&hub, token).get("/v1/domains").await.expect_field(401, "authorization");
    }
    // What only the hub sets.
    let mut disabled = plain;
    disabled["id"] = json!("other");
    disabled["state"] = json!("disabled");
    disabled["disabled_reason"] = json!("paid too late");
    let manager = ApiClient::with_scopes(&hub, "manager", "read,manage", None).await;
    manager.post("/v1/subscriptions", &disabled).await.expect_field(400, "disabled_reason");
}

/// The client sends the body only after the answer, which must not ask for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_announced_too_large_is_refused_before_it_is_sent() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker).await;
    let api = ApiClient::with_scopes(&hub, "all", "publish,manage", None).await;
    let address = hub.api_url("").trim_start_matches("http://").trim_end_matches('/').to_owned();
    for (path, media, length, expected) in [
        ("/v1/subscriptions", "application/json", 2_000_000, "HTTP/1.1 413"),
        ("/v1/events", "application/cloudevents+json", 500_000_000, "HTTP/1.1 413"),
        ("/v1/subscriptions?bogus=1", "application/json", 2_000_000, "HTTP/1.1 400"),
        ("/v1/subscriptions", "application/json", 2, "HTTP/1.1 100"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(&address).await.expect("the API listens");
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\ncontent-type: {media}\r\n\
             content-length: {length}\r\nexpect: 100-continue\r\n\r\n",
            api.token()
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("answered");
        assert_eq!(String::from_utf8_lossy(&answer), expected, "{path}, {length} bytes");
    }
}
