//! A client of the hub's HTTP API, with a token of the hub.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::{Hub, http_client};

/// A caller of the API.
pub struct ApiClient {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

/// An answer of the API.
#[derive(Debug)]
pub struct ApiAnswer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl ApiAnswer {
    /// The body as JSON; null for an empty body.
    pub fn json(&self) -> Value {
        if self.text.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Asserts the status, and returns the body.
    ///
    /// # Panics
    ///
    /// For another status, or an error without a problem document (RFC 9457).
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        if status >= 400 {
            assert_eq!(self.header("content-type"), "application/problem+json");
            let problem = self.json();
            assert_eq!(problem["status"], status);
            assert!(problem["title"].is_string() && problem["type"].is_string(), "{problem}");
        }
        self.json()
    }

    /// Asserts a problem that names this field.
    pub fn expect_field(&self, status: u16, field: &str) -> Value {
        let problem = self.expect(status);
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        assert!(errors.iter().any(|error| error["field"] == field), "no {field:?} in {problem}");
        problem
    }
}

impl ApiClient {
    /// Makes a caller with a new token of `hub token create` that has these scopes (separated by commas).
    pub async fn with_scopes(hub: &Hub, name: &str, scopes: &str, tenant: Option<&str>) -> Self {
        let mut args = vec!["token", "create", name, "--scope", scopes];
        args.extend(tenant.iter().flat_map(|tenant| ["--tenant", tenant]));
        let made = hub.cli_json(&args).await;
        let token = made["token"].as_str().expect("the token is shown once").to_owned();
        Self { http: http_client(), base: hub.api_url(""), token: Some(token) }
    }

    /// Makes a caller with this text as token, or without a token.
    pub fn with_token(hub: &Hub, token: Option<&str>) -> Self {
        Self { http: http_client(), base: hub.api_url(""), token: token.map(str::to_owned) }
    }

    pub fn token(&self) -> &str {
        self.token.as_deref().unwrap_or_default()
    }

    /// The secret part of the token, `hub_<name>_<secret>`. It may itself contain `_`, and a name may not.
    pub fn token_secret(&self) -> &str {
        self.token().splitn(3, '_').nth(2).expect("a token with a secret")
    }

    pub async fn get(&self, path: &str) -> ApiAnswer {
        self.send("GET", path, &[], None).await
    }

    pub async fn delete(&self, path: &str, headers: &[(&str, &str)]) -> ApiAnswer {
        self.send("DELETE", path, headers, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> ApiAnswer {
        self.json("POST", path, &[], body).await
    }

    pub async fn put(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> ApiAnswer {
        self.json("PUT", path, headers, body).await
    }

    pub async fn patch(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> ApiAnswer {
        self.json("PATCH", path, headers, body).await
    }

    async fn json(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> ApiAnswer {
        let mut headers = headers.to_vec();
        headers.push(("content-type", "application/json"));
        self.send(method, path, &headers, Some(body.to_string().into_bytes())).await
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> ApiAnswer {
        let method = method.parse().expect("a method");
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a header's name");
            request = request.header(name, HeaderValue::try_from(*value).expect("a header's value"));
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let answer = request.send().await.expect("the hub answers");
        ApiAnswer {
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
            text: answer.text().await.expect("to the end"),
        }
    }
}
