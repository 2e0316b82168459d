//! The external brokers of Integration Hub: one trait, and one adapter per protocol. The relay of the producer outbox and
//! the delivery to a subscription that names a broker publish through it.
//!
//! ```no_run
//! use hub_sinks::nats::{Nats, NatsOptions};
//! use hub_sinks::{Broker, OutgoingMessage};
//!
//! # async fn publish() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = Nats::new(NatsOptions::new("nats://127.0.0.1:4222"))?;
//! let message = OutgoingMessage {
//!     id: "evt_7".to_owned(),
//!     stream: "user.created".to_owned(),
//!     key: "u-42".to_owned(),
//!     body: r#"{"user": "u-42"}"#.into(),
//!     headers: Vec::new(),
//! };
//! let published = broker.publish(&[message]).await;
//! assert_eq!((published.acknowledged, published.error), (1, None));
//! # Ok(())
//! # }
//! ```
//!
//! | adapter | cargo feature | acknowledged when | de-duplicates by message id |
//! |---|---|---|---|
//! | `nats`, JetStream | always built in | the stream has stored it | yes, within the stream's duplicate window (`Nats-Msg-Id`) |
//! | `nats`, core | always built in | the server has processed it (at most once from there: possibly nobody subscribes) | no |
//! | `redis` | `redis` | `XADD` has answered | no: readers use `headers.id` of the envelope |
//! | `amqp` | `amqp` | the broker has confirmed it and did not return it | no: readers use `message_id` |
//! | `kafka` | `kafka` | all in-sync replicas have it | only the client's own retries: readers use the header `id` |
//!
//! With every adapter a message may arrive twice: if the answer to a publish is lost, the publish fails with
//! [`PublishError::Unavailable`] and is retried.
//!
//! Creating a broker opens no connection: the first publish connects, and the first one after a loss reconnects. After
//! a failed attempt there is a growing pause (0.1 s to 5 s); until it has passed, each publish fails at once with
//! `Unavailable`.

#[cfg(feature = "amqp")]
pub mod amqp;
mod attempt;
mod error;
mod facts;
#[cfg(feature = "kafka")]
pub mod kafka;
mod link;
pub mod nats;
#[cfg(feature = "redis")]
pub mod redis;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use attempt::attempt;
pub use error::{PublishError, PublishReason};
pub use facts::limited::{limit_repeated_lines, write_left_out, write_rest_of_left_out};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use secrecy::SecretString;

/// One message for a broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutgoingMessage {
    /// The message id: the same on each attempt.
    pub id: String,
    /// The destination: a NATS subject, a Redis stream, an AMQP routing key, a Kafka topic.
    pub stream: String,
    /// Messages with the same key arrive in the order in which they were given.
    pub key: String,
    /// The envelope as JSON.
    pub body: Bytes,
    /// Headers besides the id, if the protocol has headers.
    pub headers: Vec<(String, String)>,
}

/// The result of publishing a group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct PublishedGroup {
    /// Number of messages, from the start of the group, that the broker acknowledged.
    pub acknowledged: usize,
    /// Why the next one was not acknowledged; `None` if all were.
    pub error: Option<PublishError>,
}

impl PublishedGroup {
    fn all(group: &[OutgoingMessage]) -> Self {
        Self { acknowledged: group.len(), error: None }
    }

    fn none(error: PublishError) -> Self {
        Self { acknowledged: 0, error: Some(error) }
    }
}

/// One external broker. Many groups are published concurrently over few connections.
pub trait Broker: Send + Sync {
    /// Publishes messages of *one* key in their order, and stops at the first that is not acknowledged, so that none
    /// overtakes another. Each step that waits is bounded by a timeout of the options.
    ///
    /// If the future is dropped, the message that is being sent may or may not arrive.
    fn publish<'a>(&'a self, group: &'a [OutgoingMessage]) -> BoxFuture<'a, PublishedGroup>;

    /// Checks that the broker is reachable and accepts the login.
    fn check(&self) -> BoxFuture<'_, Result<(), PublishError>>;

    /// Closes the connections. Pending publishes and all later ones fail as unavailable.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A broker after its name in the settings.
pub type NamedBroker = (String, Arc<dyn Broker>);

/// An unusable setting.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct SettingError {
    /// The field's name within the broker's entry.
    pub setting: &'static str,
    /// The problem and its remedy.
    pub reason: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl SettingError {
    /// An error without a cause. `reason`: the problem and its remedy, without the field's name and without secrets.
    pub fn new(setting: &'static str, reason: impl Into<String>) -> Self {
        Self { setting, reason: reason.into(), source: None }
    }

    fn caused_by(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { source: Some(Box::new(source)), ..self }
    }
}

/// Timeouts of a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, including TLS and login.
    pub connect: Duration,
    /// For the acknowledgement of a publish.
    pub publish: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), publish: Duration::from_secs(10) }
    }
}

/// TLS of a connection. Without a CA file the system's root certificates apply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BrokerTls {
    /// Require TLS even if the URL's scheme does not.
    pub required: bool,
    /// PEM; replaces the system's roots (NATS and AMQP: is added to them).
    pub ca_file: Option<PathBuf>,
    /// PEM, with `key_file`: the hub's own certificate.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

/// The contents of the files of [`BrokerTls`].
#[cfg(any(feature = "redis", feature = "amqp", feature = "kafka"))]
#[derive(Clone, Default)]
struct TlsFiles {
    ca: Option<Vec<u8>>,
    /// Certificate and key.
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl BrokerTls {
    /// Reads the files. This happens for each connection, so a replaced certificate is used from the next one on.
    #[cfg(any(feature = "redis", feature = "amqp", feature = "kafka"))]
    async fn read(&self) -> Result<TlsFiles, SettingError> {
        let ca = match &self.ca_file {
            Some(path) => Some(read_file("tls_ca_file", path).await?),
            None => None,
        };
        let identity = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => {
                Some((read_file("tls_cert_file", cert).await?, read_file("tls_key_file", key).await?))
            }
            _ => None,
        };
        Ok(TlsFiles { ca, identity })
    }

    /// Checks that the files are readable.
    async fn check_files(&self) -> Result<(), SettingError> {
        let files = [
            ("tls_ca_file", &self.ca_file),
            ("tls_cert_file", &self.cert_file),
            ("tls_key_file", &self.key_file),
        ];
        for (setting, path) in files {
            if let Some(path) = path {
                read_file(setting, path).await?;
            }
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), SettingError> {
        if self.cert_file.is_some() != self.key_file.is_some() {
            let setting = if self.cert_file.is_some() { "tls_cert_file" } else { "tls_key_file" };
            return Err(SettingError::new(setting, "set tls_cert_file and tls_key_file both, or neither"));
        }
        Ok(())
    }

    /// Whether a file is set, which requires TLS.
    #[cfg(any(feature = "redis", feature = "amqp", feature = "kafka"))]
    fn has_files(&self) -> bool {
        self.ca_file.is_some() || self.cert_file.is_some() || self.key_file.is_some()
    }
}

async fn read_file(setting: &'static str, path: &Path) -> Result<Vec<u8>, SettingError> {
    tokio::fs::read(path).await.map_err(|error| {
        SettingError::new(setting, format!("cannot read {}: {error}", path.display())).caused_by(error)
    })
}

/// A setting may prove unusable only when connecting: then all messages wait until it is corrected.
impl From<SettingError> for PublishError {
    fn from(error: SettingError) -> Self {
        Self::unavailable(error.to_string()).caused_by(error)
    }
}

/// Parses a URL with one of the schemes. It must not contain credentials, which belong in settings that are sealed and
/// hidden.
fn parse_url(url: &str, schemes: &[&str]) -> Result<url::Url, SettingError> {
    let expected = || format!("must be {}://host:port", schemes.join("://host:port or "));
    let parsed = url::Url::parse(url)
        .map_err(|error| SettingError::new("url", format!("{error}; {}", expected())).caused_by(error))?;
    if !schemes.contains(&parsed.scheme()) || parsed.host_str().is_none_or(str::is_empty) {
        return Err(SettingError::new("url", expected()));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(SettingError::new("url", "contains credentials; set user and password instead"));
    }
    Ok(parsed)
}

/// Checks that user and password are both set, or neither.
fn check_login(user: Option<&String>, password: Option<&SecretString>) -> Result<(), SettingError> {
    match (user, password) {
        (Some(_), None) => Err(SettingError::new("password", "is required, because user is set")),
        (None, Some(_)) => Err(SettingError::new("user", "is required, because password is set")),
        _ => Ok(()),
    }
}

/// Installs the TLS provider of the process, unless it is installed already.
fn install_tls_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
