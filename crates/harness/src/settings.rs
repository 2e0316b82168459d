//! The settings of the hub of a test, as types: a misspelt field does not compile, and fields that a test does not set
//! have the hub's default.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Serialize, Serializer};

/// The settings of a test. Sections and fields have the names of the settings file; `None` is the hub's default.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TestSettings {
    pub nats: Nats,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<Domain>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub external_brokers: Vec<ExternalBroker>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<Tenant>,
    pub quotas: Quotas,
    pub events: Events,
    pub delivery: Delivery,
    pub circuit: Circuit,
    pub redrive: Redrive,
    pub sweep: Sweep,
    pub limits: Limits,
    pub subscriptions: Subscriptions,
    pub outbox: Outbox,
    pub secrets: Secrets,
    pub api: Api,
    pub health: Health,
    pub log: Log,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Nats {
    pub url: Option<String>,
    pub user: Option<String>,
    pub password: Option<String>,
    pub inbox_prefix: Option<String>,
    pub replicas: Option<u32>,
    #[serde(serialize_with = "duration")]
    pub request_timeout: Option<Duration>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Domain {
    pub name: String,
    pub events: Vec<String>,
    pub concurrency: Option<usize>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct ExternalBroker {
    pub name: String,
    pub provider: String,
    pub url: String,
    pub user: Option<String>,
    pub password: Option<String>,
    pub jetstream: Option<bool>,
    pub outbox: Option<bool>,
    pub destination: Option<String>,
    #[serde(serialize_with = "duration")]
    pub timeout: Option<Duration>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Tenant {
    pub name: String,
    pub subscriptions: Option<usize>,
    pub events_per_second: Option<usize>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Quotas {
    pub subscriptions: Option<usize>,
    #[serde(serialize_with = "bytes")]
    pub subscriptions_size: Option<u64>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Events {
    #[serde(serialize_with = "bytes")]
    pub max_size: Option<u64>,
    pub batch: Option<usize>,
    pub held: Option<usize>,
    #[serde(serialize_with = "bytes")]
    pub held_bytes: Option<u64>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Delivery {
    pub max_deliver: Option<u32>,
    #[serde(serialize_with = "durations")]
    pub retry: Option<Vec<Duration>>,
    #[serde(serialize_with = "duration")]
    pub max_retry_after: Option<Duration>,
    pub allow_networks: Option<Vec<String>>,
    #[serde(serialize_with = "duration")]
    pub max_timeout: Option<Duration>,
    #[serde(serialize_with = "duration")]
    pub ack_wait: Option<Duration>,
    pub held: Option<usize>,
    #[serde(serialize_with = "bytes")]
    pub held_bytes: Option<u64>,
    pub queue_per_subscription: Option<usize>,
    pub max_backlog: Option<u64>,
    #[serde(serialize_with = "bytes")]
    pub max_backlog_bytes: Option<u64>,
    #[serde(serialize_with = "duration")]
    pub max_age: Option<Duration>,
    #[serde(serialize_with = "duration")]
    pub grace: Option<Duration>,
    pub log: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Circuit {
    pub enabled: Option<bool>,
    pub failures: Option<u32>,
    #[serde(serialize_with = "duration")]
    pub failing_for: Option<Duration>,
    #[serde(serialize_with = "duration")]
    pub first_pause: Option<Duration>,
    #[serde(serialize_with = "duration")]
    pub longest_pause: Option<Duration>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Redrive {
    #[serde(serialize_with = "durations")]
    pub schedule: Option<Vec<Duration>>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Sweep {
    #[serde(serialize_with = "duration")]
    pub interval: Option<Duration>,
}

/// In bytes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Limits {
    #[serde(serialize_with = "bytes")]
    pub events: Option<u64>,
    #[serde(serialize_with = "bytes")]
    pub outbox: Option<u64>,
    #[serde(serialize_with = "bytes")]
    pub dlt: Option<u64>,
    #[serde(serialize_with = "bytes")]
    pub attempts: Option<u64>,
    #[serde(serialize_with = "bytes")]
    pub rejected: Option<u64>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Subscriptions {
    pub source: Option<String>,
    pub grpc_url: Option<String>,
    pub token: Option<String>,
    pub tls_ca_file: Option<PathBuf>,
    pub tls_cert_file: Option<PathBuf>,
    pub tls_key_file: Option<PathBuf>,
    #[serde(serialize_with = "duration")]
    pub deadline: Option<Duration>,
    #[serde(serialize_with = "duration")]
    pub max_staleness: Option<Duration>,
    pub listen: Option<String>,
    pub listen_token: Option<String>,
    pub listen_anonymous: Option<bool>,
    pub listen_tls_cert_file: Option<PathBuf>,
    pub listen_tls_key_file: Option<PathBuf>,
    pub listen_tls_client_ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Outbox {
    pub database_url: Option<String>,
    pub pooler: Option<String>,
    #[serde(serialize_with = "duration")]
    pub timeout: Option<Duration>,
    pub batch: Option<usize>,
    #[serde(serialize_with = "duration")]
    pub claim_time: Option<Duration>,
    pub max_attempts: Option<u32>,
    #[serde(serialize_with = "durations")]
    pub retry: Option<Vec<Duration>>,
    #[serde(serialize_with = "duration")]
    pub poll_min: Option<Duration>,
    #[serde(serialize_with = "duration")]
    pub poll_max: Option<Duration>,
    #[serde(serialize_with = "duration")]
    pub published_retention: Option<Duration>,
    #[serde(serialize_with = "duration")]
    pub cleanup_interval: Option<Duration>,
    pub cleanup_batch: Option<usize>,
    #[serde(serialize_with = "duration")]
    pub reconcile_interval: Option<Duration>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Secrets {
    pub master_key: Option<String>,
    pub key_id: Option<String>,
    pub previous_keys: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Api {
    pub listen: Option<String>,
    pub anonymous: Option<bool>,
    pub allowed_hosts: Option<Vec<String>>,
    pub connections_per_peer: Option<usize>,
    pub requests_per_peer: Option<usize>,
    pub requests_per_token: Option<usize>,
    pub requests_per_tenant: Option<usize>,
    pub unknown_tokens_per_peer: Option<usize>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Health {
    pub listen: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Log {
    pub level: Option<String>,
    pub format: Option<String>,
    #[serde(serialize_with = "duration")]
    pub repeat_interval: Option<Duration>,
}

impl TestSettings {
    /// Short retries and waits: three attempts, no redrive.
    pub fn quick() -> Self {
        Self::timed(Duration::from_secs(2), Duration::from_secs(3))
    }

    /// Like [`Self::quick`], for tests that count each delivery: on a busy machine a successful attempt may take
    /// seconds, and must neither time out nor be redelivered meanwhile.
    pub fn patient() -> Self {
        Self::timed(Duration::from_secs(60), Duration::from_secs(75))
    }

    fn timed(max_timeout: Duration, ack_wait: Duration) -> Self {
        Self::default().with(|settings| {
            settings.delivery.max_deliver = Some(3);
            settings.delivery.retry = Some(vec![Duration::from_millis(100), Duration::from_millis(200)]);
            settings.delivery.max_timeout = Some(max_timeout);
            settings.delivery.ack_wait = Some(ack_wait);
            settings.delivery.grace = Some(Duration::from_secs(5));
            settings.redrive.schedule = Some(Vec::new());
            settings.sweep.interval = Some(Duration::from_secs(1));
        })
    }

    /// With these changes.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// With redrives after these waits.
    pub fn with_redrives(self, schedule: impl IntoIterator<Item = Duration>) -> Self {
        self.with(|settings| settings.redrive.schedule = Some(schedule.into_iter().collect()))
    }

    /// With this `secrets.master_key`.
    pub fn with_key(self, key: &str) -> Self {
        self.with(|settings| settings.secrets.master_key = Some(key.to_owned()))
    }

    /// With this `outbox.database_url`.
    pub fn with_outbox(self, database_url: &str) -> Self {
        self.with(|settings| settings.outbox.database_url = Some(database_url.to_owned()))
    }

    /// Adds these external brokers.
    pub fn with_brokers(self, brokers: impl IntoIterator<Item = ExternalBroker>) -> Self {
        self.with(|settings| settings.external_brokers.extend(brokers))
    }

    /// The settings file.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("settings are TOML")
    }
}

impl ExternalBroker {
    /// With these changes.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// With this destination template.
    pub fn to(self, destination: &str) -> Self {
        self.with(|broker| broker.destination = Some(destination.to_owned()))
    }
}

/// An external broker with a timeout of two seconds.
pub fn external(name: &str, provider: &str, url: &str) -> ExternalBroker {
    ExternalBroker {
        name: name.to_owned(),
        provider: provider.to_owned(),
        url: url.to_owned(),
        timeout: Some(Duration::from_secs(2)),
        ..ExternalBroker::default()
    }
}

/// The path of a file as the value of a field.
pub fn file(path: &Path) -> Option<PathBuf> {
    Some(path.to_owned())
}

fn duration<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(&humantime::format_duration(*value)),
        None => serializer.serialize_none(),
    }
}

fn durations<S: Serializer>(values: &Option<Vec<Duration>>, serializer: S) -> Result<S::Ok, S::Error> {
    match values {
        Some(values) => {
            serializer.collect_seq(values.iter().map(|value| humantime::format_duration(*value).to_string()))
        }
        None => serializer.serialize_none(),
    }
}

fn bytes<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(&format_args!("{value}B")),
        None => serializer.serialize_none(),
    }
}
