//! The parts of the demo: a private nats-server, a hub with all its roles, and three subscribers, in this process and one
//! temporary folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio_util::sync::CancellationToken;

use super::DemoError;
use super::narration::Narrator;
use super::subscriber::{Credentials, Subscriber};
use crate::domain::subscription::{Incarnation, Subscription, SubscriptionLimits};
use crate::facts::{DemoHubFailed, DemoServerNotStopped};
use crate::from_settings::connect_options;
use crate::nats::JetStream;
use crate::seal::{Sealer, seal_subscription};
use crate::serve::{Hub, Role, ServeOptions};
use crate::settings::Settings;
use crate::tasks::{Task, TaskError};
use hub_testkit::broker_process::{BrokerOptions, BrokerProcess, BrokerProcessError, Data};
use hub_testkit::token_endpoint::TokenEndpoint;

/// Time that subscriber C takes for each answer.
pub(super) const PAUSE_OF_C: Duration = Duration::from_millis(500);
/// Concurrent deliveries of subscriber C.
pub(super) const IN_FLIGHT_OF_C: u32 = 2;

const CLIENT_ID: &str = "integration-hub";
const SCOPE: &str = "events";
const TOKEN_LIFETIME: Duration = Duration::from_secs(600);

/// The parts that the scenario uses.
pub(super) struct Stage {
    pub settings: Settings,
    pub js: JetStream,
    /// A connection of its own, as of a producer.
    pub publisher: JetStream,
    pub readiness: crate::health::Readiness,
    pub a: Subscriber,
    pub b: Subscriber,
    pub c: Subscriber,
    pub tokens: TokenEndpoint,
    /// In clear text, to check that they are stored nowhere else.
    pub secrets: [String; 2],
    sealer: Sealer,
    pub nats_url: String,
    pub health_url: String,
    /// The settings file, for other commands.
    pub config: PathBuf,
}

/// The parts that must be stopped.
pub(super) struct Processes {
    broker: BrokerProcess,
    hub: Task<Result<(), TaskError>>,
    stop: CancellationToken,
}

/// Starts all parts. If one fails, the others are stopped.
pub(super) async fn start(
    folder: &Path,
    binary: PathBuf,
    roles: BTreeSet<Role>,
    narrator: &mut Narrator,
) -> Result<(Stage, Processes), DemoError> {
    let mut options = BrokerOptions::new(binary);
    options.data = Data::Lasting(folder.join("nats"));
    options.owner_folder = Some(folder.to_owned());
    let broker = BrokerProcess::start(options).await?;
    let nats_url = broker.url();
    narrator.report(&format!("private nats-server at {nats_url}, with its data in {}", folder.display()));

    let config = folder.join("hub.toml");
    let text = settings_text(&nats_url);
    std::fs::write(&config, &text).map_err(|source| DemoError::File { path: config.clone(), source })?;
    let mut settings = Settings::from_toml(&config.display().to_string(), &text)?;
    // In memory only, so that no key is left on the disk if the demo is killed.
    settings.secrets.master_key = Some(STANDARD.encode(rand::random::<[u8; 32]>()).into());
    let sealer = Sealer::from_settings(&settings.secrets).map_err(crate::serve::ServeError::from)?;
    let sealer = sealer.expect("the settings above have a key");

    let secret = || format!("{:032x}", rand::random::<u128>());
    let secrets = [secret(), secret()];
    let tokens = TokenEndpoint::bind(CLIENT_ID, &secrets[0]).await.map_err(DemoError::Listen)?;
    tokens.set_scopes(&[SCOPE]);
    tokens.set_lifetime(TOKEN_LIFETIME);
    let a = Credentials::OAuth2(tokens.guard());
    let a = Subscriber::start("A", a, Duration::ZERO, true).await.map_err(DemoError::Listen)?;
    let b = Credentials::ApiKey(secrets[1].clone());
    let b = Subscriber::start("B", b, Duration::ZERO, false).await.map_err(DemoError::Listen)?;
    let c = Credentials::None;
    let c = Subscriber::start("C", c, PAUSE_OF_C, true).await.map_err(DemoError::Listen)?;

    let stop = CancellationToken::new();
    let options = ServeOptions { roles, ..ServeOptions::default() };
    let hub = Hub::start(&settings, &options, &stop).await?;
    let publisher = JetStream::connect(&connect_options(&settings, "hub demo publisher"))
        .await
        .map_err(crate::serve::ServeError::from)?;
    let (js, readiness) = (hub.js.clone(), hub.readiness.clone());
    let health_url = hub.health.map(|address| format!("http://{address}")).unwrap_or_default();
    let hub = Task::start("the hub", hub.join());
    let stage = Stage {
        settings,
        js,
        publisher,
        readiness,
        a,
        b,
        c,
        tokens,
        secrets,
        sealer,
        nats_url,
        health_url,
        config,
    };
    Ok((stage, Processes { broker, hub, stop }))
}

impl Stage {
    /// The three subscriptions as their owners write them, with credentials in clear text.
    pub(super) fn subscriptions(&self) -> Vec<serde_json::Value> {
        let [client_secret, api_key] = &self.secrets;
        vec![
            serde_json::json!({
                "id": "subscriber-a",
                "events": ["policy.>"],
                "delivery": {
                    "url": self.a.events_url(),
                    "auth": {
                        "type": "oauth2",
                        "token_url": self.tokens.token_url(),
                        "client_id": CLIENT_ID,
                        "client_secret": client_secret,
                        "scopes": [SCOPE],
                    },
                },
            }),
            serde_json::json!({
                "id": "subscriber-b",
                "events": ["policy.updated"],
                "delivery": {
                    "url": self.b.events_url(),
                    "auth": {"type": "api_key", "key": api_key},
                },
            }),
            serde_json::json!({
                "id": "subscriber-c",
                "events": ["policy.>", "user.>"],
                "delivery": {"url": self.c.events_url(), "max_in_flight": IN_FLIGHT_OF_C},
            }),
        ]
    }

    /// Validates, seals and stores a subscription, as `hub subscription apply` does.
    pub(super) async fn apply(&self, subscription: serde_json::Value) -> Result<Subscription, DemoError> {
        let refused = |errors: Vec<_>| DemoError::Subscription(errors);
        let mut subscription =
            Subscription::from_value(subscription).map_err(|error| refused(vec![error]))?;
        subscription
            .validate(&SubscriptionLimits { max_timeout: self.settings.delivery.max_timeout })
            .map_err(refused)?;
        subscription.incarnation = Incarnation::new(rand::random());
        seal_subscription(&self.sealer, &mut subscription);
        self.js.put_subscription(&subscription, Some(0)).await.map_err(crate::serve::ServeError::from)?;
        Ok(subscription)
    }
}

/// A process of the demo ended by itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProcessEnded {
    #[error("the hub stopped unexpectedly")]
    Hub,
    #[error("the hub stopped: {0}")]
    HubFailed(#[source] TaskError),
    #[error("the nats-server ended by itself: {0}")]
    Server(ExitStatus),
    #[error("the nats-server cannot be watched: {0}")]
    ServerLost(#[source] BrokerProcessError),
}

impl Processes {
    /// Waits until the hub or the server ends by itself, which is a failure. Returns the reason.
    pub(super) async fn ended(&mut self) -> ProcessEnded {
        tokio::select! {
            hub = self.hub.join() => match hub {
                Ok(Ok(())) => ProcessEnded::Hub,
                Ok(Err(error)) | Err(error) => ProcessEnded::HubFailed(error),
            },
            server = self.broker.ended() => match server {
                Ok(status) => ProcessEnded::Server(status),
                Err(error) => ProcessEnded::ServerLost(error),
            },
        }
    }

    /// Stops the hub, which finishes its deliveries in flight, and then the server.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        if !self.hub.is_finished()
            && let Ok(Err(error)) | Err(error) = self.hub.join().await
        {
            DemoHubFailed { error: &error }.emit();
        }
        if self.broker.pid().is_some()
            && let Err(error) = self.broker.stop().await
        {
            DemoServerNotStopped { error: &error }.emit();
        }
    }
}

/// The settings of the demo, also for other commands while it runs. They contain no key, because no command that the demo
/// suggests seals or opens a secret.
fn settings_text(nats_url: &str) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    format!(
        r#"# Written by `hub demo`, and removed with it. Times are shorter than in production.
[nats]
url = {nats_url}
[delivery]
max_deliver = 4
retry = ["200ms", "400ms", "800ms"]
grace = "5s"
allow_networks = ["127.0.0.0/8"]
[redrive]
schedule = ["3s", "5s", "10s", "30s", "1m", "5m"]
[sweep]
interval = "5s"
[limits]
events = "64MB"
outbox = "64MB"
dlt = "64MB"
attempts = "64MB"
rejected = "64MB"
advisories = "64MB"
[api]
listen = "127.0.0.1:0"
[health]
listen = "127.0.0.1:0"
"#,
        nats_url = quoted(nats_url),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_the_demo_are_valid_and_hold_no_key() {
        let settings = Settings::from_toml("hub.toml", &settings_text("nats://127.0.0.1:4222")).unwrap();
        assert_eq!(settings.nats.url, "nats://127.0.0.1:4222");
        assert!(settings.secrets.master_key.is_none() && settings.secrets.master_key_file.is_none());
    }
}
