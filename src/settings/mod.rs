//! The settings: one file between the embedded defaults and the environment.
//!
//! `defaults.toml` is both the manual and the first layer. Later layers override earlier ones: defaults, file,
//! environment (`HUB__SECTION__KEY`), flags. A key that is not in the defaults is an error in every layer.

mod circuit;
mod error;
mod exports;
mod external_broker;
mod files;
mod layers;
mod metrics;
mod outbox;
mod quotas;
mod secret;
mod show;
mod size;
mod validate;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

use crate::domain::attempt_record::LogChoice;
use crate::domain::duration;
use crate::domain::key::KeyPattern;
use crate::domain::producer_outbox::is_external_broker;

pub use circuit::CircuitSettings;
pub use error::{SettingProblem, SettingsError};
pub(crate) use exports::Exports;
pub use external_broker::{ExternalBroker, Mechanism, Provider};
pub use metrics::MetricsSettings;
pub use outbox::{Pooler, ProducerOutboxSettings};
pub use quotas::{Quota, Quotas, Tenant};
pub use secret::{NoSecret, SecretName};

/// The first layer, and the manual of every setting.
pub const DEFAULTS: &str = include_str!("defaults.toml");

/// The file that is read if none is given.
pub const DEFAULT_FILE: &str = "hub.toml";

/// The effective settings. `defaults.toml` describes each field under the same name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub nats: Nats,
    /// In matching order: an event belongs to the first domain with a matching pattern.
    pub domains: Vec<Domain>,
    /// Brokers, besides the internal one, for the published events of the producer outbox and for subscriptions.
    pub external_brokers: Vec<ExternalBroker>,
    /// Tenants with quotas of their own.
    pub tenants: Vec<Tenant>,
    pub quotas: Quotas,
    pub events: Events,
    pub delivery: Delivery,
    pub circuit: CircuitSettings,
    pub redrive: Redrive,
    pub sweep: Sweep,
    pub limits: Limits,
    pub subscriptions: Subscriptions,
    pub outbox: ProducerOutboxSettings,
    pub secrets: Secrets,
    pub api: Api,
    pub health: Health,
    pub metrics: MetricsSettings,
    pub log: LogSettings,
    /// The layer of each value, by its key.
    #[serde(skip)]
    origins: BTreeMap<String, String>,
    #[serde(skip)]
    shown: String,
    #[serde(skip)]
    exports: Exports,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nats {
    pub url: String,
    pub prefix: String,
    pub replicas: usize,
    pub inbox_prefix: String,
    #[serde(deserialize_with = "unset_if_empty")]
    pub credentials_file: Option<PathBuf>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub nkey_seed_file: Option<PathBuf>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub user: Option<String>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub password: Option<SecretString>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub token: Option<SecretString>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub tls_ca_file: Option<PathBuf>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub tls_cert_file: Option<PathBuf>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub tls_key_file: Option<PathBuf>,
    pub tls_required: bool,
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    #[serde(with = "duration")]
    pub request_timeout: Duration,
}

/// One domain: the patterns of its event keys, and the size of its delivery pool.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    pub name: String,
    pub events: Vec<KeyPattern>,
    pub concurrency: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    #[serde(with = "size")]
    pub max_size: ByteSize,
    pub batch: usize,
    pub held: usize,
    #[serde(with = "size")]
    pub held_bytes: ByteSize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delivery {
    pub max_deliver: u32,
    #[serde(with = "duration::list")]
    pub retry: Vec<Duration>,
    #[serde(with = "duration")]
    pub max_retry_after: Duration,
    #[serde(deserialize_with = "networks")]
    pub allow_networks: Vec<IpNet>,
    #[serde(with = "duration")]
    pub max_timeout: Duration,
    #[serde(with = "duration")]
    pub ack_wait: Duration,
    pub held: usize,
    #[serde(with = "size")]
    pub held_bytes: ByteSize,
    pub queue_per_subscription: usize,
    pub max_backlog: u64,
    #[serde(with = "size")]
    pub max_backlog_bytes: ByteSize,
    #[serde(with = "duration")]
    pub max_age: Duration,
    #[serde(with = "size")]
    pub response_limit: ByteSize,
    #[serde(with = "duration")]
    pub grace: Duration,
    #[serde(deserialize_with = "named")]
    pub log: LogChoice,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redrive {
    #[serde(with = "duration::list")]
    pub schedule: Vec<Duration>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    #[serde(with = "duration")]
    pub interval: Duration,
}

/// Largest size and age of the streams.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    #[serde(with = "size")]
    pub events: ByteSize,
    #[serde(with = "size")]
    pub outbox: ByteSize,
    #[serde(with = "size")]
    pub dlt: ByteSize,
    #[serde(with = "size")]
    pub attempts: ByteSize,
    #[serde(with = "size")]
    pub rejected: ByteSize,
    #[serde(with = "size")]
    pub advisories: ByteSize,
    #[serde(with = "duration")]
    pub rejected_max_age: Duration,
    #[serde(with = "duration")]
    pub attempts_max_age: Duration,
    #[serde(with = "duration")]
    pub duplicate_window: Duration,
}

/// The source of subscriptions, and the resolver that other hubs can ask.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscriptions {
    pub source: SubscriptionSource,
    #[serde(deserialize_with = "unset_if_empty")]
    pub grpc_url: Option<String>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub token: Option<SecretString>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub tls_ca_file: Option<PathBuf>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub tls_cert_file: Option<PathBuf>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub tls_key_file: Option<PathBuf>,
    #[serde(with = "duration")]
    pub deadline: Duration,
    #[serde(with = "duration")]
    pub max_staleness: Duration,
    pub cache_entries: usize,
    #[serde(deserialize_with = "listen")]
    pub listen: SocketAddr,
    #[serde(deserialize_with = "unset_if_empty")]
    pub listen_token: Option<SecretString>,
    pub listen_anonymous: bool,
    #[serde(deserialize_with = "unset_if_empty")]
    pub listen_tls_cert_file: Option<PathBuf>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub listen_tls_key_file: Option<PathBuf>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub listen_tls_client_ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum SubscriptionSource {
    Registry,
    Grpc,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    #[serde(deserialize_with = "unset_if_empty")]
    pub master_key: Option<SecretString>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub master_key_file: Option<PathBuf>,
    pub key_id: String,
    /// `<key id>:<key in base64>`
    #[serde(deserialize_with = "list_of_secrets")]
    pub previous_keys: Vec<SecretString>,
    /// `<key id>:<path>`
    pub previous_key_files: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Api {
    #[serde(deserialize_with = "listen")]
    pub listen: SocketAddr,
    pub anonymous: bool,
    pub allowed_hosts: Vec<String>,
    pub connections: usize,
    pub connections_per_peer: usize,
    pub requests: usize,
    pub requests_per_peer: usize,
    pub requests_per_token: usize,
    pub requests_per_tenant: usize,
    pub unknown_tokens_per_peer: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    #[serde(deserialize_with = "listen")]
    pub listen: SocketAddr,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    pub format: LogFormat,
    pub level: String,
    #[serde(with = "duration")]
    pub repeat_interval: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum LogFormat {
    Text,
    Json,
}

impl Settings {
    /// Reads and validates all layers.
    ///
    /// `file`: the settings file; if not given, `hub.toml` in the working directory, if it exists. `overrides`: dotted
    /// key and value from flags, such as `("nats.url", "nats://…")`; values have the form of environment variables.
    pub fn load(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Self, SettingsError> {
        let file = match file {
            Some(path) => Some(path.to_owned()),
            None => Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()),
        };
        let text = match file {
            Some(path) => match std::fs::read_to_string(&path) {
                Ok(text) => Some((path.display().to_string(), text)),
                Err(source) => return Err(SettingsError::Read { file: path, source }),
            },
            None => None,
        };
        Self::from_layers(text, layers::environment(std::env::vars_os())?, overrides)
    }

    /// Misspelt variables of the environment, each with the correct name: `HUB_NATS_URL` for `HUB__NATS__URL`.
    pub fn misspelt_variables() -> Vec<(String, String)> {
        layers::with_one_underscore(std::env::vars_os().map(|(name, _)| name))
    }

    /// The embedded defaults alone.
    pub fn defaults() -> Self {
        Self::from_layers(None, Vec::new(), &[]).expect("the embedded defaults are valid: a test loads them")
    }

    /// The defaults, overridden by the text of a settings file. Errors call it `name`. Reads neither files nor the
    /// environment.
    pub fn from_toml(name: &str, text: &str) -> Result<Self, SettingsError> {
        Self::from_layers(Some((name.to_owned(), text.to_owned())), Vec::new(), &[])
    }

    fn from_layers(
        file: Option<(String, String)>,
        environment: Vec<(String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Self, SettingsError> {
        let exports = Exports::of(file.as_ref().map(|(name, _)| Path::new(name)), &environment, overrides);
        let merged = layers::merge(file, environment, overrides)?;
        let leaves = show::leaves(&merged);
        let mut settings: Settings =
            merged.try_deserialize().map_err(|error| layers::refused(error, &leaves))?;
        settings.exports = exports;
        settings.shown = show::render(&leaves);
        settings.origins = leaves.into_iter().map(|leaf| (leaf.key, leaf.layer)).collect();
        settings.validate()?;
        Ok(settings)
    }

    /// The effective settings at the time they were loaded, as TOML, each with its layer. Secrets show as `***`.
    pub fn show(&self) -> String {
        self.shown.clone()
    }

    /// The environment variables with which another process has the settings that were loaded.
    pub(crate) fn exports(&self) -> &Exports {
        &self.exports
    }

    /// Whether the setting with this key has its default.
    pub(crate) fn is_default(&self, key: &str) -> bool {
        self.origins.get(key).is_none_or(|layer| layer == "defaults")
    }

    /// A problem of the setting with this key, with the setting's layer.
    pub(crate) fn problem(&self, key: &str, problem: impl Into<String>) -> SettingProblem {
        SettingProblem { key: key.to_owned(), layer: self.layer_of(key).to_owned(), problem: problem.into() }
    }

    /// The layer of a value; for a part of one, or for a section or list, the layer of the value around or below it.
    fn layer_of(&self, key: &str) -> &str {
        let mut at = key;
        loop {
            if let Some(layer) = self.origins.get(at) {
                return layer;
            }
            let is_below =
                |known: &str| known.strip_prefix(at).is_some_and(|rest| rest.starts_with(['.', '[']));
            let mut below = self.origins.iter().filter(|(known, _)| is_below(known)).map(|(_, layer)| layer);
            if let Some(layer) = below.find(|layer| *layer != "defaults") {
                return layer;
            }
            match at.rfind(['.', '[']) {
                Some(end) => at = &at[..end],
                None => return "defaults",
            }
        }
    }
}

impl TryFrom<String> for LogFormat {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("is {text:?}; must be \"text\" or \"json\"")),
        }
    }
}

impl TryFrom<String> for SubscriptionSource {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "registry" => Ok(Self::Registry),
            "grpc" => Ok(Self::Grpc),
            _ => Err(format!("is {text:?}; must be \"registry\" or \"grpc\"")),
        }
    }
}

/// Reads `""` as not set.
fn unset_if_empty<'de, D: Deserializer<'de>, T: From<String>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(if text.is_empty() { None } else { Some(T::from(text)) })
}

/// Reads a list of secrets. Serde's own error for another type would quote the value.
fn list_of_secrets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SecretString>, D::Error> {
    struct List;
    impl<'de> serde::de::Visitor<'de> for List {
        type Value = Vec<SecretString>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of strings")
        }
        fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self::Value, E> {
            Err(E::custom("is text; write a list, such as [\"k0:…\"]"))
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut secrets = Vec::new();
            while let Some(secret) = list.next_element::<String>()? {
                secrets.push(secret.into());
            }
            Ok(secrets)
        }
    }
    deserializer.deserialize_any(List)
}

/// Reads a value by its name; the error lists the valid names.
fn named<'de, D: Deserializer<'de>, T: std::str::FromStr<Err: std::fmt::Display>>(
    deserializer: D,
) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    Vec::<String>::deserialize(deserializer)?
        .into_iter()
        .map(|text| {
            text.parse::<IpNet>()
                .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
                .map_err(|_| {
                    serde::de::Error::custom(format!(
                        "{text:?} is not a network; write an address and a prefix length, such as \"10.20.0.0/16\" or \"fd00::/8\""
                    ))
                })
        })
        .collect()
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        serde::de::Error::custom(format!(
            "{text:?} is not a listen address; write an IP address and a port, such as \"0.0.0.0:8080\""
        ))
    })
}

#[cfg(test)]
mod tests;
