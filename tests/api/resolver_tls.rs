//! The gRPC resolver over TLS: which server the calling hub trusts, and which callers the answering hub admits.
//! If one of the two does not trust the other, events wait.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::settings::{Subscriptions, file};
use crate::support::{
    Ca, Hub, IdentityFiles, Receiver, TestBroker, TestClient, TestSettings, eventually, free_port,
    http_client, subscription,
};

const STEP: Duration = Duration::from_secs(60);
const TOKEN: &str = "a-token-of-the-resolver-4711";
const OUTBOX: &str = "HUB_OUTBOX_USER_LIFECYCLE";

/// A hub that answers over TLS, with a certificate of a private authority.
struct Answering {
    _broker: TestBroker,
    client: TestClient,
    hub: Hub,
    port: u16,
}

impl Answering {
    async fn start(files: impl FnOnce(&mut Subscriptions)) -> Self {
        let broker = TestBroker::start().await;
        let port = free_port();
        let settings = TestSettings::default().with(|settings| {
            settings.subscriptions.listen = Some(format!("127.0.0.1:{port}"));
            settings.subscriptions.listen_token = Some(TOKEN.to_owned());
            files(&mut settings.subscriptions);
        });
        let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "subscription-resolver"]);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        Self { _broker: broker, client, hub, port }
    }
}

fn asking(url: &str, files: impl FnOnce(&mut Subscriptions)) -> TestSettings {
    TestSettings::quick().with(|settings| {
        settings.subscriptions.source = Some("grpc".to_owned());
        settings.subscriptions.grpc_url = Some(url.to_owned());
        settings.subscriptions.token = Some(TOKEN.to_owned());
        files(&mut settings.subscriptions);
    })
}

/// The calling side: a broker, a published event, and hubs that try to resolve it one after the other.
struct Asking {
    broker: TestBroker,
    client: TestClient,
}

impl Asking {
    async fn start() -> Self {
        let broker = TestBroker::start().await;
        let client = TestClient::connect(&broker.url()).await;
        Self { broker, client }
    }

    /// Asserts that a hub with these settings gets no answer: it logs that, is not ready, and keeps the event.
    async fn waits(&self, settings: &TestSettings) {
        let mut hub = Hub::serve(&self.broker.url(), settings, &[]);
        hub.wait_for_log("subscription resolver failed, events wait", STEP).await;
        eventually(STEP, "everything else is ready", async || {
            let Ok(answer) = http_client().get(hub.health_url("/readyz")).send().await else {
                return Err("no answer".to_owned());
            };
            let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
            if status == 503 && text == "not ready: answer of the subscription resolver\n" {
                Ok(())
            } else {
                Err(text)
            }
        })
        .await;
        let before = self.client.stream("HUB_EVENTS").await.state.messages;
        self.client.publish("user.created", "one").await;
        // It receives the event, and hands it back.
        eventually(STEP, "the event was handed out", async || {
            let consumer = self.client.consumer("HUB_EVENTS", "event-processor").await;
            if consumer.delivered.consumer_sequence > 0 { Ok(()) } else { Err(consumer.num_pending) }
        })
        .await;
        assert!(hub.metric("hub_resolver_failures_total", &["kind=\"unavailable\""]).await > 0.0);
        assert_eq!(hub.metric("hub_resolver_answers_total", &[]).await, 0.0);
        assert!(hub.terminate().await.success());
        assert_eq!(self.client.stream("HUB_EVENTS").await.state.messages, before + 1, "the event waits");
        assert_eq!(self.client.stream(OUTBOX).await.state.last_sequence, 0, "and is not fanned out");
    }

    /// Asserts that a hub with these settings delivers the waiting event.
    async fn flows(&self, settings: &TestSettings, receiver: &Receiver) {
        let mut hub = Hub::serve(&self.broker.url(), settings, &[]);
        hub.ready().await;
        receiver.wait_accepted("/crm", 1, STEP).await;
        self.broker.nothing_pending_within(STEP).await;
        assert_eq!(receiver.doubles("/crm").len(), 0);
        assert!(hub.metric("hub_resolver_answers_total", &[]).await > 0.0);
    }
}

#[tokio::test]
async fn a_resolver_of_a_private_authority_is_called_only_by_hubs_that_trust_it() {
    let folder = TempDir::new().expect("a temporary folder");
    let (ca, another) = (Ca::new("of the resolver"), Ca::new("another"));
    let server = ca.issue(folder.path(), "127.0.0.1");
    let (ca, another) = (ca.write(folder.path(), "ca.crt"), another.write(folder.path(), "another.crt"));
    let answering = Answering::start(|subscriptions| {
        subscriptions.listen_tls_cert_file = file(&server.cert);
        subscriptions.listen_tls_key_file = file(&server.key);
    })
    .await;
    let receiver = Receiver::start().await;
    answering.client.subscribe([subscription("crm", &["user.>"], &receiver.url("/crm"))]).await;
    let asking_side = Asking::start().await;
    let url = format!("https://127.0.0.1:{}", answering.port);

    // The system's roots, those of another authority, a name that is not in the certificate, and no TLS.
    let trusting = |ca: &Path| {
        let ca = file(ca);
        move |subscriptions: &mut Subscriptions| subscriptions.tls_ca_file = ca
    };
    asking_side.waits(&asking(&url, |_| {})).await;
    asking_side.waits(&asking(&url, trusting(&another))).await;
    let by_name = format!("https://localhost:{}", answering.port);
    asking_side.waits(&asking(&by_name, trusting(&ca))).await;
    asking_side.waits(&asking(&url.replace("https", "http"), |_| {})).await;
    assert_eq!(answering.hub.metric("hub_resolver_served_total", &[]).await, 0.0, "no caller got an answer");
    asking_side.flows(&asking(&url, trusting(&ca)), &receiver).await;
    assert!(answering.hub.metric("hub_resolver_served_total", &["result=\"answered\""]).await > 0.0);
}

#[tokio::test]
async fn a_resolver_that_requires_a_client_certificate_answers_only_callers_that_have_one() {
    let folder = TempDir::new().expect("a temporary folder");
    let (servers, clients) = (Ca::new("servers"), Ca::new("clients"));
    let server = servers.issue(folder.path(), "127.0.0.1");
    let ours = clients.issue(folder.path(), "hub.example");
    // Issued by an authority that the resolver does not accept.
    let theirs = servers.issue(folder.path(), "other.example");
    let (servers, clients) =
        (servers.write(folder.path(), "servers.crt"), clients.write(folder.path(), "clients.crt"));
    let answering = Answering::start(|subscriptions| {
        subscriptions.listen_tls_cert_file = file(&server.cert);
        subscriptions.listen_tls_key_file = file(&server.key);
        subscriptions.listen_tls_client_ca_file = file(&clients);
    })
    .await;
    let receiver = Receiver::start().await;
    answering.client.subscribe([subscription("crm", &["user.>"], &receiver.url("/crm"))]).await;
    let asking_side = Asking::start().await;
    let url = format!("https://127.0.0.1:{}", answering.port);
    let with = |identity: Option<&IdentityFiles>| {
        asking(&url, |subscriptions| {
            subscriptions.tls_ca_file = file(&servers);
            subscriptions.tls_cert_file = identity.and_then(|identity| file(&identity.cert));
            subscriptions.tls_key_file = identity.and_then(|identity| file(&identity.key));
        })
    };

    asking_side.waits(&with(None)).await;
    asking_side.waits(&with(Some(&theirs))).await;
    assert_eq!(answering.hub.metric("hub_resolver_served_total", &[]).await, 0.0, "no caller got an answer");
    asking_side.flows(&with(Some(&ours)), &receiver).await;
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_at_the_start() {
    let folder = TempDir::new().expect("a temporary folder");
    let broker = TestBroker::start().await;
    let missing = folder.path().join("missing.crt");
    let no_pem = folder.path().join("no.pem");
    std::fs::write(&no_pem, "no certificate").expect("written");
    let answering = TestSettings::default().with(|settings| {
        settings.subscriptions.listen = Some(format!("127.0.0.1:{}", free_port()));
        settings.subscriptions.listen_anonymous = Some(true);
        settings.subscriptions.listen_tls_cert_file = file(&no_pem);
        settings.subscriptions.listen_tls_key_file = file(&no_pem);
    });
    let trusting =
        |ca: &Path| asking("https://127.0.0.1:1", |subscriptions| subscriptions.tls_ca_file = file(ca));
    for (settings, role, setting) in [
        (trusting(&missing), "event-processor", "tls_ca_file"),
        (trusting(&no_pem), "event-processor", "tls_ca_file"),
        (answering, "subscription-resolver", "listen_tls_cert_file"),
    ] {
        let mut hub = Hub::serve(&broker.url(), &settings, &["--role", role]);
        assert!(!hub.ended(STEP).await.success(), "{setting}");
        assert!(hub.log().contains(&format!("subscriptions.{setting}")), "{setting}: {}", hub.log());
    }
}
