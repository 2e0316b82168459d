//! A token that is bound to a tenant, and a request that names another tenant: one rule for every operation.

use serde_json::{Value, json};

use crate::support::{ApiClient, Hub, TestBroker, TestSettings, subscription};

const ALL: &str = "publish,read,manage,operate";

/// An operation of the OpenAPI document that takes `tenant`.
struct Operation {
    method: String,
    /// With a value for each parameter of the path, and the required ones of the query but `tenant`.
    path: String,
    has_body: bool,
}

impl Operation {
    async fn send(&self, api: &ApiClient, tenant: &str) -> crate::support::ApiAnswer {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        let path = format!("{}{separator}tenant={tenant}", self.path);
        let headers = [("content-type", "application/json"), ("if-match", "*")];
        let body = self.has_body.then(|| b"{}".to_vec());
        api.send(&self.method, &path, if self.has_body { &headers } else { &headers[1..] }, body).await
    }
}

async fn operations(hub: &Hub) -> Vec<Operation> {
    let document = ApiClient::with_token(hub, None).get("/openapi.json").await.expect(200);
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let parameters: Vec<&Value> = operation["parameters"].as_array().into_iter().flatten().collect();
            let is_query = |one: &&&Value| one["in"] == "query";
            if !parameters.iter().filter(is_query).any(|one| one["name"] == "tenant") {
                continue;
            }
            let mut filled = path.replace("{id}", "crm");
            if parameters.iter().filter(is_query).any(|one| one["required"] == true) {
                filled.push_str("?event=user.created");
            }
            let has_body = operation["requestBody"].is_object();
            found.push(Operation { method: method.to_ascii_uppercase(), path: filled, has_body });
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_refuses_another_tenant_in_the_same_way() {
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::default(), &["--role", "api"]);
    hub.ready().await;
    let admin = ApiClient::with_scopes(&hub, "admin", ALL, None).await;
    let acme = ApiClient::with_scopes(&hub, "acme", ALL, Some("acme")).await;
    for tenant in ["acme", "globex"] {
        let mut one = subscription("crm", &["user.*"], "http://127.0.0.1:9/crm");
        one["tenant"] = json!(tenant);
        admin.post("/v1/subscriptions", &one).await.expect(201);
    }
    let operations = operations(&hub).await;
    assert!(operations.len() >= 12, "{} operations take a tenant", operations.len());
    for operation in &operations {
        let name = format!("{} {}", operation.method, operation.path);
        // Whether the tenant exists makes no difference.
        let mut answers = Vec::new();
        for other in ["globex", "default", "nobody"] {
            let answer = operation.send(&acme, other).await;
            assert_eq!(answer.status, 403, "{name} of {other}: {}", answer.text);
            answers.push(answer.expect_field(403, "tenant"));
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{name}");
        for invalid in ["", "a%20b", "%FF"] {
            for caller in [&acme, &admin] {
                let answer = operation.send(caller, invalid).await;
                assert_eq!(answer.status, 400, "{name} of {invalid:?}: {}", answer.text);
                answer.expect_field(400, "tenant");
            }
        }
        // Its own tenant, and any tenant for a token without one, are as if the parameter was left out.
        for (caller, tenant) in [(&acme, "acme"), (&admin, "globex")] {
            let answer = operation.send(caller, tenant).await;
            assert!(answer.status != 403, "{name} of {tenant}: {}", answer.text);
        }
        let unknown = operation.send(&ApiClient::with_token(&hub, None), "globex").await;
        unknown.expect_field(401, "authorization");
    }
    // The conditions of bulk jobs have it in their bodies.
    for path in ["/v1/dead-letters/replay", "/v1/dead-letters/discard"] {
        acme.post(path, &json!({"tenant": "globex"})).await.expect_field(403, "tenant");
        acme.post(path, &json!({"tenant": "a b"})).await.expect_field(400, "tenant");
    }
    // Nothing of the other tenant was changed.
    for operation in ["GET", "PATCH"] {
        let answer = match operation {
            "GET" => admin.get("/v1/subscriptions/crm?tenant=globex").await,
            _ => admin.patch("/v1/subscriptions/crm?tenant=globex", &[("if-match", "*")], &json!({})).await,
        };
        let status = answer.status;
        assert!(matches!(status, 200 | 404), "{operation}: {}", answer.text);
    }
}
