//! `[[external_brokers]]`: brokers for the published events of the producer outbox, and for subscriptions that name one.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

use super::layers::SettingType;
use super::validate::Findings;
use super::{Settings, unset_if_empty};
use crate::domain::duration;
use crate::domain::field_error::FieldError;
use crate::domain::producer_outbox::{Destination, NameRules, is_external_broker};
use crate::domain::subscription::is_credential_parameter;

/// One entry. `defaults.toml` describes each field.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalBroker {
    pub name: String,
    pub provider: Provider,
    pub url: String,
    #[serde(default, deserialize_with = "unset_if_empty")]
    pub user: Option<String>,
    #[serde(default, deserialize_with = "unset_if_empty")]
    pub password: Option<SecretString>,
    #[serde(default, deserialize_with = "unset_if_empty")]
    pub token: Option<SecretString>,
    #[serde(default, deserialize_with = "unset_if_empty")]
    pub credentials_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "unset_if_empty")]
    pub nkey_seed_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "unset_if_empty")]
    pub tls_ca_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "unset_if_empty")]
    pub tls_cert_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "unset_if_empty")]
    pub tls_key_file: Option<PathBuf>,
    #[serde(default)]
    pub tls_required: bool,
    /// Approximate number of entries that a Redis stream keeps.
    pub max_len: Option<u64>,
    #[serde(default = "yes")]
    pub jetstream: bool,
    /// Whether the broker gets the published events of the producer outbox; if not, only subscriptions use it.
    #[serde(default = "yes")]
    pub outbox: bool,
    #[serde(default, deserialize_with = "unset_if_empty")]
    destination: Option<String>,
    /// AMQP only; the default exchange if empty.
    #[serde(default)]
    pub exchange: String,
    /// Kafka only, if a password is set.
    #[serde(default)]
    pub mechanism: Mechanism,
    /// Longest wait for the acknowledgement of a message.
    #[serde(default = "ten_seconds", with = "duration")]
    pub timeout: Duration,
}

/// SASL mechanism of a Kafka login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum Mechanism {
    Plain,
    ScramSha256,
    #[default]
    ScramSha512,
}

/// Kind of broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Provider {
    Nats,
    Redis,
    Amqp,
    Kafka,
}

fn yes() -> bool {
    true
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

impl TryFrom<String> for Mechanism {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "plain" => Ok(Self::Plain),
            "scram-sha-256" => Ok(Self::ScramSha256),
            "scram-sha-512" => Ok(Self::ScramSha512),
            _ => Err(format!("is {text:?}; must be \"plain\", \"scram-sha-256\" or \"scram-sha-512\"")),
        }
    }
}

impl TryFrom<String> for Provider {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "nats" => Ok(Self::Nats),
            "redis" => Ok(Self::Redis),
            "amqp" => Ok(Self::Amqp),
            "kafka" => Ok(Self::Kafka),
            _ => Err(format!("is {text:?}; must be \"nats\", \"redis\", \"amqp\" or \"kafka\"")),
        }
    }
}

impl Provider {
    /// The name in the settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Redis => "redis",
            Self::Amqp => "amqp",
            Self::Kafka => "kafka",
        }
    }

    /// Whether this program has the provider's client. Every provider except NATS is a cargo feature of the same name.
    pub fn is_built_in(self) -> bool {
        match self {
            Self::Nats => true,
            Self::Redis => cfg!(feature = "redis"),
            Self::Amqp => cfg!(feature = "amqp"),
            Self::Kafka => cfg!(feature = "kafka"),
        }
    }

    /// Problem and remedy of a provider that is not built in.
    pub fn not_built_in(self) -> String {
        let name = self.name();
        format!(
            "{name:?} is not built into this program; build it with the cargo feature {name:?}, or remove the entry"
        )
    }

    /// The schemes of its URL, the ones with TLS last.
    fn schemes(self) -> &'static [&'static str] {
        match self {
            Self::Nats => &["nats", "tls"],
            Self::Redis => &["redis", "rediss"],
            Self::Amqp => &["amqp", "amqps"],
            Self::Kafka => &[],
        }
    }

    /// The default destination: one subject or routing key for each event key, but one stream or topic for all events
    /// of a category.
    fn destination(self) -> &'static str {
        match self {
            Self::Nats | Self::Amqp => "{type}",
            Self::Redis | Self::Kafka => "{category}",
        }
    }

    /// Which names are valid destinations.
    fn names(self) -> NameRules {
        match self {
            Self::Nats => NameRules::Subject,
            Self::Redis | Self::Amqp => NameRules::Any,
            Self::Kafka => NameRules::Topic,
        }
    }
}

impl ExternalBroker {
    /// The fields of an entry.
    pub(super) const FIELDS: [(&'static str, SettingType); 19] = [
        ("name", SettingType::Text),
        ("provider", SettingType::Text),
        ("url", SettingType::Text),
        ("user", SettingType::Text),
        ("password", SettingType::Text),
        ("token", SettingType::Text),
        ("credentials_file", SettingType::Text),
        ("nkey_seed_file", SettingType::Text),
        ("tls_ca_file", SettingType::Text),
        ("tls_cert_file", SettingType::Text),
        ("tls_key_file", SettingType::Text),
        ("tls_required", SettingType::Flag),
        ("max_len", SettingType::Whole),
        ("jetstream", SettingType::Flag),
        ("outbox", SettingType::Flag),
        ("destination", SettingType::Text),
        ("exchange", SettingType::Text),
        ("mechanism", SettingType::Text),
        ("timeout", SettingType::Text),
    ];

    /// The destination of the messages. An error concerns the template; loading the settings rejects it.
    pub fn destination(&self) -> Result<Destination, FieldError> {
        let template = self.destination.as_deref().unwrap_or(self.provider.destination());
        Destination::parse(template)?.with_names(self.provider.names())
    }

    /// Checks that a name is a valid destination. The error says which names are.
    pub fn check_name(&self, name: &str) -> Result<(), FieldError> {
        Destination::parse(name)?.with_names(self.provider.names()).map(drop)
    }

    /// Checks each server of the URL. The errors do not quote the URL, because it may contain a password.
    fn check_url(&self) -> Result<(), String> {
        let schemes = self.provider.schemes();
        let forms = if schemes.is_empty() {
            "host:port".to_owned()
        } else {
            schemes.iter().map(|scheme| format!("{scheme}://host:port")).collect::<Vec<_>>().join(" or ")
        };
        for server in self.url.split(',').map(str::trim) {
            let whole = if schemes.is_empty() { format!("kafka://{server}") } else { server.to_owned() };
            let Ok(url) = url::Url::parse(&whole) else {
                return Err(format!("is not an address; write {forms}"));
            };
            let has_user = !url.username().is_empty() || url.password().is_some();
            if has_user || url.query_pairs().any(|(name, _)| is_credential_parameter(&name)) {
                return Err("must not contain a user or password; set user and password, or token".to_owned());
            }
            let fits = url.has_host()
                && (schemes.contains(&url.scheme()) || (schemes.is_empty() && url.port().is_some()));
            if !fits {
                return Err(format!("must be {forms}"));
            }
        }
        Ok(())
    }
}

impl Settings {
    /// The external brokers for the published events of the producer outbox.
    pub fn outbox_brokers(&self) -> impl Iterator<Item = &ExternalBroker> {
        self.external_brokers.iter().filter(|broker| broker.outbox)
    }
}

impl Findings<'_> {
    pub(super) fn external_brokers(&mut self) {
        for broker in &self.settings.external_brokers {
            let key = |field: &str| format!("external_brokers[{}].{field}", broker.name);
            self.require(
                is_external_broker(&broker.name),
                &key("name"),
                format!(
                    "{:?} must be 1 to 64 of a-z, 0-9, '_' and '-', start with a letter or digit, and not be \"internal\"",
                    broker.name
                ),
            );
            self.require(broker.provider.is_built_in(), &key("provider"), broker.provider.not_built_in());
            if let Err(problem) = broker.check_url() {
                self.require(false, &key("url"), problem);
            }
            let password_alone = broker.provider == Provider::Redis && broker.user.is_none();
            self.require(
                broker.user.is_some() == broker.password.is_some() || password_alone,
                &key(if broker.user.is_some() { "user" } else { "password" }),
                "set user and password both, or neither",
            );
            let logins = [
                ("password", broker.password.is_some()),
                ("token", broker.token.is_some()),
                ("credentials_file", broker.credentials_file.is_some()),
                ("nkey_seed_file", broker.nkey_seed_file.is_some()),
            ];
            let given: Vec<&str> =
                logins.iter().filter(|(_, given)| *given).map(|(field, _)| *field).collect();
            if let [_, second, ..] = given[..] {
                self.require(
                    false,
                    &key(second),
                    format!("only one kind of login is allowed; keep one of {}", given.join(", ")),
                );
            }
            let only = [
                ("token", broker.token.is_some(), Provider::Nats),
                ("credentials_file", broker.credentials_file.is_some(), Provider::Nats),
                ("nkey_seed_file", broker.nkey_seed_file.is_some(), Provider::Nats),
                ("jetstream", !broker.jetstream, Provider::Nats),
                ("max_len", broker.max_len.is_some(), Provider::Redis),
                ("exchange", !broker.exchange.is_empty(), Provider::Amqp),
                ("mechanism", broker.mechanism != Mechanism::default(), Provider::Kafka),
            ];
            if let Err(error) = broker.destination() {
                self.require(false, &key("destination"), error.problem);
            }
            self.positive(&key("timeout"), broker.timeout);
            for (field, given, provider) in only {
                self.require(
                    !given || broker.provider == provider,
                    &key(field),
                    format!("applies to provider = {:?} only; leave it out", provider.name()),
                );
            }
            self.require(broker.max_len != Some(0), &key("max_len"), "must be 1 or more");
            self.require(
                broker.tls_cert_file.is_some() == broker.tls_key_file.is_some(),
                &key(if broker.tls_cert_file.is_some() { "tls_cert_file" } else { "tls_key_file" }),
                "set tls_cert_file and tls_key_file both, or neither",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CI also runs this test in a build without any of the features.
    #[test]
    fn a_provider_that_is_not_built_in_is_rejected() {
        for (provider, url) in [
            (Provider::Nats, "nats://127.0.0.1"),
            (Provider::Redis, "redis://127.0.0.1"),
            (Provider::Amqp, "amqp://127.0.0.1"),
            (Provider::Kafka, "127.0.0.1:9092"),
        ] {
            let name = provider.name();
            let text =
                format!("[[external_brokers]]\nname = \"partner\"\nprovider = {name:?}\nurl = {url:?}\n");
            let error = Settings::from_toml("hub.toml", &text).err().map(|error| error.to_string());
            let expected = format!(
                "external_brokers[partner].provider: {name:?} is not built into this program; \
                 build it with the cargo feature {name:?}, or remove the entry (hub.toml)"
            );
            assert_eq!(error, (!provider.is_built_in()).then_some(expected));
        }
    }
}
