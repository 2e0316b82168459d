//! Tests against real servers on free local ports.

mod address_guard;
mod answers;
mod auth;
mod early_answers;
mod endpoint;
mod headers;
mod tls;

use std::sync::{Arc, Mutex};

use hub_testkit::receiver::{Behaviour, Received, Receiver};
use secrecy::SecretString;
use tokio::task::JoinSet;

use super::*;
use crate::domain::subscription::{EndpointDelivery, Identity, Incarnation, SubscriptionRef};
use crate::http_delivery::target::TargetError;

const EVENT: &str = r#"{"specversion":"1.0","id":"e 1","source":"/idp","type":"user.created","tenant":"acme","data":{"user_id": "u1"}}"#;

/// Opens `sealed-x` as `x`.
struct Opener;

impl OpenSecret for Opener {
    fn open(
        &self,
        subscription: &Identity,
        field: &str,
        sealed: &str,
    ) -> Result<SecretString, SecretNotOpened> {
        assert_eq!(*subscription, identity());
        assert!(field.starts_with("delivery."), "{field}");
        sealed.strip_prefix("sealed-").map(SecretString::from).ok_or(SecretNotOpened::NoMasterKey)
    }
}

fn identity() -> Identity {
    let subscription = SubscriptionRef::of("acme", "billing-crm").unwrap();
    Identity { subscription, incarnation: Incarnation::new(1) }
}

fn view() -> EnvelopeView<'static> {
    EnvelopeView { id: "env_1", event: Bytes::from_static(EVENT.as_bytes()), traceparent: None }
}

/// A client that may reach loopback.
fn local() -> HttpDelivery {
    let allow = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    HttpDelivery::new(HttpConfig { addresses: AddressPolicy { allow }, ..HttpConfig::default() })
}

/// `rest` are further members of the delivery, as JSON.
fn prepared(url: &str, rest: &str) -> Result<Target, TargetError> {
    let json = format!(r#"{{"url":"{url}","timeout":"5s"{rest}}}"#);
    let delivery: EndpointDelivery = serde_json::from_str(&json).unwrap();
    Target::prepare(&identity(), &delivery, &Opener)
}

fn target(url: &str, rest: &str) -> Target {
    prepared(url, rest).unwrap()
}

fn answered(status: u16) -> Outcome {
    Outcome::Answered { status, retry_after: None }
}

/// A receiver whose answers depend on the request.
struct Server(Receiver);

impl Server {
    async fn start(answer: impl Fn(&Received) -> Behaviour + Send + Sync + 'static) -> Self {
        let receiver = Receiver::start().await;
        receiver.set_default(Behaviour::Choose(Arc::new(answer)));
        Self(receiver)
    }

    fn url(&self) -> String {
        self.0.url("/hook")
    }

    fn got(&self) -> Vec<Received> {
        self.0.received("/hook")
    }
}

fn text(status: u16, body: impl Into<Bytes>) -> Behaviour {
    with_headers(status, [], body)
}

fn with_headers<const N: usize>(
    status: u16,
    headers: [(&'static str, &str); N],
    body: impl Into<Bytes>,
) -> Behaviour {
    let headers = headers.map(|(name, value)| (name, value.to_owned())).into();
    Behaviour::Answer { status, headers, body: body.into() }
}

fn ok(_: &Received) -> Behaviour {
    Behaviour::status(204)
}

/// Path and query.
fn uri(request: &Received) -> String {
    let query = request.query.as_ref().map(|query| format!("?{query}"));
    request.path.clone() + &query.unwrap_or_default()
}
