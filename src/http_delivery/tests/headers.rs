//! The headers that a subscription adds: each is refused by its name, or arrives unchanged.

use serde_json::{Value, json};

use super::*;
use crate::domain::subscription::{Subscription, SubscriptionLimits};

/// Fields of the IANA registry and of common gateways, those of the connection and of the hub among them.
const NAMES: [&str; 92] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "alt-svc",
    "authorization",
    "cache-control",
    "close",
    "connection",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "depth",
    "destination",
    "digest",
    "dnt",
    "early-data",
    "etag",
    "expect",
    "expires",
    "forwarded",
    "from",
    "host",
    "http2-settings",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "last-modified",
    "link",
    "location",
    "max-forwards",
    "mime-version",
    "origin",
    "pragma",
    "prefer",
    "priority",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "referer",
    "retry-after",
    "sec-fetch-mode",
    "sec-gpc",
    "sec-websocket-key",
    "server",
    "set-cookie",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "upgrade-insecure-requests",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-api-key",
    "x-correlation-id",
    "x-csrf-token",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-http-method-override",
    "x-request-id",
    "x-team",
    "webhook-id",
    "webhook-signature",
    "webhook-attributes-signature",
    "webhook-anything",
    "ce-id",
    "ce-anything",
    "X-Upper",
    "_under",
    "~!#$%&'*+.^`|",
    "idempotency-key",
    "x-",
    "0",
];
const VALUES: [&str; 5] = ["plain", "", "a, b;c=\"d\"", "tab\twithin", "!#$%&'()*+,-./:;<=>?@[]^_`{|}~"];

fn refused(name: &str, value: &str, member: &str) -> Vec<String> {
    let delivery = json!({"url": "https://a.example/", member: {name: value}});
    let document = json!({"id": "a", "events": ["user.*"], "delivery": delivery});
    let limits = SubscriptionLimits { max_timeout: Duration::from_secs(60) };
    let errors = Subscription::from_value(document).unwrap().validate(&limits).err().unwrap_or_default();
    errors.into_iter().map(|error| error.field).collect()
}

#[tokio::test]
async fn every_accepted_header_arrives_unchanged() {
    let server = Server::start(ok).await;
    let http = local();
    let mut taken = 0;
    for (mode, name, value) in NAMES.iter().enumerate().flat_map(|(number, name)| {
        VALUES.iter().map(move |value| (["structured", "binary"][number % 2], *name, *value))
    }) {
        for member in ["headers", "secret_headers"] {
            let fields = refused(name, value, member);
            if !fields.is_empty() {
                assert!(
                    fields.iter().all(|field| *field == format!("delivery.{member}.{name}")),
                    "{fields:?}"
                );
                continue;
            }
            taken += 1;
            let given: Value = json!({name: value});
            let rest = format!(r#","content_mode":"{mode}","{member}":{given}"#);
            let attempt = http.attempt(&target(&server.url(), &rest), &view(), 1).await;
            assert_eq!(attempt.outcome, answered(204), "{name}: {value:?} {attempt:?}");
            let got = server.got().pop().unwrap();
            let all: Vec<&[u8]> = got.headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
            assert_eq!(all, [value.as_bytes()], "{mode} {member} {name}");
            assert_eq!(got.header("content-length"), got.body.len().to_string(), "{name}");
        }
    }
    assert!(taken > 400, "{taken}");
    for name in
        ["host", "content-length", "transfer-encoding", "connection", "te", "user-agent", "traceparent"]
    {
        assert!(
            !refused(name, "x", "headers").is_empty() && !refused(name, "x", "secret_headers").is_empty(),
            "{name}"
        );
    }
}

#[tokio::test]
async fn the_default_accept_header_allows_any_answer() {
    let server = Server::start(ok).await;
    local().attempt(&target(&server.url(), ""), &view(), 1).await;
    assert_eq!(server.got()[0].header("accept"), "*/*");
}

/// It is hidden in the request and redacted in the answer, even if it was stored before such names were refused.
#[tokio::test]
async fn a_credential_in_a_header_is_never_shown() {
    for rest in [
        r#","secret_headers":{"x-api-key":{"sealed":"sealed-open-sesame"}}"#,
        r#","headers":{"x-api-key":"open-sesame"}"#,
    ] {
        let server = Server::start(|got| text(400, got.header("x-api-key").to_owned())).await;
        let target = target(&server.url(), rest);
        let (sent, attempt) = local().attempt_and_capture(&target, &view(), 1).await;
        assert_eq!(server.got()[0].header("x-api-key"), "open-sesame");
        assert_eq!(attempt.answer_excerpt.as_deref(), Some("***"));
        let shown = format!("{sent:?} {attempt:?} {target:?}");
        assert!(shown.contains(r#"("x-api-key", "***")"#) && !shown.contains("sesame"), "{shown}");
    }
}
