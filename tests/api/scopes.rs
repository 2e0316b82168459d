//! Every operation of the OpenAPI document needs the scope that its summary names.

use serde_json::Value;

use crate::support::{ApiClient, Hub, TestBroker, TestSettings};

const SCOPES: [&str; 4] = ["publish", "read", "manage", "operate"];

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_needs_the_scope_of_its_description() {
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::default(), &[]);
    hub.ready().await;
    let mut callers = Vec::new();
    for scope in SCOPES {
        callers.push((scope, ApiClient::with_scopes(&hub, scope, scope, None).await));
    }
    let document = ApiClient::with_token(&hub, None).get("/openapi.json").await.expect(200);
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            // Nothing has this name, so that no request changes anything.
            let mut sent = path.replace("{id}", "none").replace("{name}", "none").replace("{broker}", "none");
            for (number, parameter) in required(operation).enumerate() {
                let separator = if number == 0 { '?' } else { '&' };
                sent += &format!("{separator}{parameter}=user.created");
            }
            for (scope, caller) in &callers {
                let headers = [("content-type", "application/json")];
                let answer = caller.send(&method.to_uppercase(), &sent, &headers, Some(b"[]".to_vec())).await;
                let refused = answer.status == 403;
                assert_eq!(
                    refused,
                    !needs(operation, scope),
                    "{method} {path} with {scope}: {}",
                    answer.text
                );
                if refused {
                    let problem = answer.expect(403);
                    let detail = problem["detail"].as_str().unwrap_or_default();
                    assert!(detail.contains("hub token create NAME --scope "), "{detail}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_bearer_token_is_answered_with_what_to_send() {
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::default(), &[]);
    hub.ready().await;
    let nobody = ApiClient::with_token(&hub, None);
    for (header, problem) in [
        (None, "a token is required"),
        (Some("Basic dXNlcjpwdw=="), "the authorization header is not a bearer token"),
        (Some("hub_ci_secret"), "the authorization header is not a bearer token"),
        (Some("Bearer hub_ci_secret"), "the token is unknown, revoked or expired"),
    ] {
        let headers: Vec<(&str, &str)> = header.iter().map(|value| ("authorization", *value)).collect();
        let answer = nobody.send("GET", "/v1/domains", &headers, None).await;
        assert!(answer.header("www-authenticate").starts_with("Bearer"), "{header:?}");
        let refused = answer.expect(401);
        let detail = refused["detail"].as_str().unwrap_or_default();
        assert!(detail.starts_with(problem), "{header:?}: {detail}");
        let with_remedy =
            detail.contains("send `authorization: Bearer <token>`") || detail.contains("hub token list");
        assert!(with_remedy, "{header:?}: {detail}");
    }
}

/// The names of the required parameters of the query.
fn required(operation: &Value) -> impl Iterator<Item = &str> {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let required = parameters.filter(|one| one["in"] == "query" && one["required"] == true);
    required.filter_map(|one| one["name"].as_str())
}

fn needs(operation: &Value, scope: &str) -> bool {
    operation["summary"].as_str().is_some_and(|summary| summary.contains(&format!("(scope `{scope}`")))
}
