//! Parses subscriptions, with errors that name the field.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::delivery::names_a_broker;
use super::{BrokerDelivery, Delivery, EndpointDelivery, Subscription};
use crate::field_error::FieldError;
use crate::strict_json::{self, StrictJsonError};

impl Subscription {
    /// Parses a subscription from outside. The error names the path of the field, such as `delivery.auth.type`; a
    /// syntax error has the field `JSON` and names line and column. Call `validate` next, which checks the values.
    /// Subscriptions that the hub has stored passed both, so serde alone may read them.
    pub fn from_json(json: &[u8]) -> Result<Self, FieldError> {
        let value = strict_json::parse(json).map_err(|error| match error {
            StrictJsonError::Duplicate { path } => {
                FieldError::new(path, "occurs twice; remove one of the two")
            }
            StrictJsonError::Syntax(error) => {
                FieldError::new("JSON", format!("{error}; write one JSON object"))
            }
        })?;
        Self::from_value(value)
    }

    /// Parses a subscription from a value, for lists and other formats.
    pub fn from_value(value: Value) -> Result<Self, FieldError> {
        check_form(&value)?;
        // The delivery first and separately: as a part of the whole, errors in it would have no path.
        if let Some(delivery) = value.get("delivery") {
            Delivery::check_fields(delivery)?;
        }
        read("", &value)
    }
}

impl Delivery {
    /// Checks that every field of a delivery has the right type. The error names the path of the field, which begins
    /// with `delivery`. For further checks, use `Subscription::from_value` and `validate`.
    pub(crate) fn check_fields(delivery: &Value) -> Result<(), FieldError> {
        if names_a_broker(delivery) {
            read::<BrokerDelivery>("delivery", delivery).map(drop)
        } else {
            read::<EndpointDelivery>("delivery", delivery).map(drop)
        }
    }
}

/// Parses the value at the path `at`, which is empty for the whole subscription.
fn read<T: DeserializeOwned>(at: &str, value: &Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = match (at, error.path().to_string().as_str()) {
            ("", ".") => "subscription".to_owned(),
            ("", path) => path.to_owned(),
            (at, ".") => at.to_owned(),
            (at, path) => format!("{at}.{path}"),
        };
        let remedy = remedy(&path);
        FieldError::new(path, error.into_inner().to_string() + remedy)
    })
}

/// The remedy of an error, by the path of the field; the problem is serde's message.
fn remedy(path: &str) -> &'static str {
    match path {
        "incarnation" => "; remove it, because the hub makes it",
        "id" => ", like \"billing-crm\"",
        "delivery.url" | "delivery.auth.token_url" => {
            "; write an absolute URL, like https://crm.example/hooks"
        }
        "delivery.broker" => "; write the name of one of the [[external_brokers]] of the settings",
        "delivery.stream" => "; write the subject, stream, routing key or topic",
        "delivery.content_mode" => "; write \"structured\" or \"binary\"",
        "events" => "; write a list, like [\"user.created\", \"role.*\"]",
        "filter" => "; write a list, like [{\"exact\": {\"source\": \"idp\"}}]",
        "delivery.headers" => "; write an object of strings, like {\"x-team\": \"billing\"}",
        "delivery.secret_headers" => "; write an object of strings, like {\"x-api-key\": \"…\"}",
        "delivery.signing" => "; write {\"secret\": \"whsec_…\"}",
        "delivery.statuses" => "; write {\"retry\": [400], \"permanent\": [404, \"5xx\"]}",
        "disabled_at" => "; write a time like 2026-01-31T12:00:00Z, or remove it",
        "delivery.signing.previous" | "delivery.signing.previous.until" => {
            "; write {\"secret\": \"whsec_…\", \"until\": \"2030-01-31T00:00:00Z\"}"
        }
        "delivery.tls" => "; write {\"ca\": \"…\", \"cert\": \"…\", \"key\": \"…\"}, each in PEM",
        "state" => "; write \"active\" or \"paused\"",
        "delivery.max_backlog" => "; write a whole number",
        "delivery.rate_limit" => "; write {\"per_second\": 100, \"burst\": 200}",
        _ => "",
    }
}

/// The kinds of authentication, each with its required and its optional fields.
const AUTH: [(&str, &[&str], &[&str]); 5] = [
    ("none", &[], &[]),
    ("api_key", &["key"], &["header", "query"]),
    ("basic", &["username", "password"], &[]),
    ("bearer", &["token"], &[]),
    (
        "oauth2",
        &["token_url", "client_id", "client_secret"],
        &["scopes", "audience", "client_auth", "token_type"],
    ),
];

/// Checks for problems that serde reports without a path or in its own terms: missing fields, kinds of authentication,
/// and features that this version does not support.
fn check_form(value: &Value) -> Result<(), FieldError> {
    let object = value.as_object().ok_or_else(|| {
        FieldError::new(
            "subscription",
            "must be an object; write {\"id\": …, \"events\": […], \"delivery\": {…}}",
        )
    })?;
    require(object, "", &["id", "events", "delivery"])?;
    let Some(delivery) = object["delivery"].as_object() else {
        return Err(FieldError::new(
            "delivery",
            "must be an object; write {\"url\": \"https://…\"}, or {\"broker\": \"…\", \"stream\": \"…\"}",
        ));
    };
    if names_a_broker(&object["delivery"]) {
        check_broker(delivery)?;
    } else {
        check_endpoint(delivery)?;
    }
    check_word(delivery, "ordering", &["none", "strict"])?;
    check_word(delivery, "on_dead_letter", &["stop", "skip"])
}

/// Checks a field that is one of a few words.
fn check_word(
    delivery: &serde_json::Map<String, Value>,
    field: &str,
    words: &[&str],
) -> Result<(), FieldError> {
    match delivery.get(field) {
        Some(value) if !value.as_str().is_some_and(|word| words.contains(&word)) && !value.is_null() => {
            let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
            Err(FieldError::new(
                format!("delivery.{field}"),
                format!("unsupported value {value}; write {}, or remove it", words.join(" or ")),
            ))
        }
        _ => Ok(()),
    }
}

/// Fields of a delivery to an endpoint that a delivery to a broker cannot have.
const ENDPOINT_FIELDS: [&str; 8] =
    ["url", "content_mode", "headers", "secret_headers", "auth", "signing", "statuses", "tls"];

fn check_broker(delivery: &serde_json::Map<String, Value>) -> Result<(), FieldError> {
    if let Some(name) = ENDPOINT_FIELDS.iter().find(|name| delivery.contains_key(**name)) {
        let problem = match *name {
            "url" => "conflicts with broker; remove url, or remove broker and stream",
            "auth" | "tls" => {
                "applies only to a url; remove it, and configure the broker in the settings ([[external_brokers]])"
            }
            _ => "applies only to a url, not to a broker; remove it",
        };
        return Err(FieldError::new(format!("delivery.{name}"), problem));
    }
    require(delivery, "delivery.", &["broker", "stream"])
}

fn check_endpoint(delivery: &serde_json::Map<String, Value>) -> Result<(), FieldError> {
    for name in ["mtls", "client_cert", "client_certificate"] {
        if delivery.contains_key(name) {
            return Err(mutual_tls_elsewhere(format!("delivery.{name}")));
        }
    }
    require(delivery, "delivery.", &["url"])?;
    check_objects(delivery)?;
    match delivery.get("auth") {
        Some(auth) => check_auth(auth),
        None => Ok(()),
    }
}

/// Checks fields that must be objects. Serde's error would quote their value, which may contain a secret.
fn check_objects(delivery: &serde_json::Map<String, Value>) -> Result<(), FieldError> {
    let signing = delivery.get("signing");
    let places = [
        ("delivery.signing", signing),
        ("delivery.signing.previous", signing.and_then(|signing| signing.get("previous"))),
        ("delivery.tls", delivery.get("tls")),
        ("delivery.headers", delivery.get("headers")),
        ("delivery.secret_headers", delivery.get("secret_headers")),
    ];
    for (field, value) in places {
        if value.is_some_and(|value| !value.is_object() && !value.is_null()) {
            return Err(FieldError::new(field, format!("must be an object{}", remedy(field))));
        }
    }
    Ok(())
}

fn check_auth(auth: &Value) -> Result<(), FieldError> {
    let Some(auth) = auth.as_object() else {
        return Err(FieldError::new("delivery.auth", "must be an object; write {\"type\": \"none\"}"));
    };
    require(auth, "delivery.auth.", &["type"])?;
    let kind = auth["type"].as_str().unwrap_or_default();
    if matches!(kind, "mtls" | "mutual_tls" | "tls" | "tls_client_auth") {
        return Err(mutual_tls_elsewhere("delivery.auth.type".to_owned()));
    }
    let Some((_, required, optional)) = AUTH.iter().find(|(name, ..)| *name == kind) else {
        return Err(FieldError::new(
            "delivery.auth.type",
            format!("unknown type {}; write one of none, api_key, basic, bearer, oauth2", auth["type"]),
        ));
    };
    require(auth, "delivery.auth.", required)?;
    let known = |name: &str| name == "type" || required.contains(&name) || optional.contains(&name);
    if let Some(name) = auth.keys().find(|name| !known(name)) {
        let fields: Vec<&str> = required.iter().chain(*optional).copied().collect();
        let expected = if fields.is_empty() { "no other fields".to_owned() } else { fields.join(", ") };
        return Err(FieldError::new(
            format!("delivery.auth.{name}"),
            format!("unknown field of type {kind:?}, which has {expected}; remove it"),
        ));
    }
    // Serde reports no path inside an object whose fields depend on its type.
    for (name, value) in auth {
        let (fits, expected) = match name.as_str() {
            "scopes" => (
                value.as_array().is_some_and(|scopes| scopes.iter().all(Value::is_string)),
                "a list of strings",
            ),
            "token_url" => (
                value.as_str().is_some_and(|text| url::Url::parse(text).is_ok()),
                "an absolute URL, like https://idp.example/token",
            ),
            "client_auth" => (
                matches!(value.as_str(), Some("client_secret_basic" | "client_secret_post")),
                "\"client_secret_basic\" or \"client_secret_post\"",
            ),
            "token_type" => (matches!(value.as_str(), Some("any" | "bearer")), "\"any\" or \"bearer\""),
            "key" | "password" | "token" | "client_secret" => (is_secret(value), "a string"),
            "header" | "query" | "audience" => (value.is_string() || value.is_null(), "a string"),
            _ => (value.is_string(), "a string"),
        };
        if !fits {
            return Err(FieldError::new(format!("delivery.auth.{name}"), format!("must be {expected}")));
        }
    }
    Ok(())
}

/// A plain string, or `{"sealed": "…"}` as the hub stores it.
fn is_secret(value: &Value) -> bool {
    value.is_string()
        || value.as_object().is_some_and(|form| form.get("sealed").is_some_and(Value::is_string))
}

fn mutual_tls_elsewhere(field: String) -> FieldError {
    FieldError::new(
        field,
        "mutual TLS has its own field; write \"tls\": {\"ca\": \"…\", \"cert\": \"…\", \"key\": \"…\"} in delivery",
    )
}

fn require(object: &serde_json::Map<String, Value>, path: &str, names: &[&str]) -> Result<(), FieldError> {
    match names.iter().find(|name| !object.contains_key(**name)) {
        Some(name) => Err(FieldError::new(
            format!("{path}{name}"),
            match *name {
                "id" => "is missing; write \"id\": \"billing-crm\"".to_owned(),
                "events" => "is missing; write \"events\": [\"user.created\"]".to_owned(),
                "delivery" => "is missing; write \"delivery\": {\"url\": \"https://…\"}".to_owned(),
                "url" => "is missing; write \"url\": \"https://…\", or \"broker\" and \"stream\"".to_owned(),
                "token_url" => format!("is missing; write \"{name}\": \"https://…\""),
                "broker" => {
                    "is missing, but delivery.stream is set; write the name of one of the [[external_brokers]]"
                        .to_owned()
                }
                "stream" => {
                    "is missing, but delivery.broker is set; write the subject, stream, routing key or topic"
                        .to_owned()
                }
                "type" => "is missing; write one of none, api_key, basic, bearer, oauth2".to_owned(),
                other => format!("is missing; write \"{other}\": \"…\""),
            },
        )),
        None => Ok(()),
    }
}
