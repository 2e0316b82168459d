//! External brokers: where an event leaves for somebody else's messaging. One trait, one adapter per
//! protocol; the relay of the outbox and a subscription that names a broker publish through it.
//!
//! | adapter | acknowledged when | de-duplicates by message id |
//! |---|---|---|
//! | [`nats`] JetStream | the stream has stored it | yes, within the stream's duplicate window (`Nats-Msg-Id`) |
//! | [`nats`] core | the server has processed it (at most once from there: nobody may listen) | no |
//! | [`redis`] | `XADD` has answered | no: the reader goes by `headers.id` of the envelope |
//! | [`amqp`] | the publisher confirm has come, and the message was not returned | no: the reader goes by `message_id` |
//! | [`kafka`] | all in-sync replicas have it | repetitions of the client's own only: the reader goes by the header `id` |
//!
//! Everywhere a message may arrive twice: a publish whose answer was lost ends as
//! [`PublishError::Unavailable`] and is tried again.
//!
//! Nothing connects when a broker is made: the first publish does, and the next one after a loss. A
//! failed attempt is repeated no sooner than after a growing pause (0.1 s to 5 s); publishes meanwhile
//! end at once as `Unavailable`.

pub mod amqp;
mod attempt;
pub mod kafka;
mod link;
pub mod nats;
pub mod redis;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use attempt::attempt;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use secrecy::SecretString;

/// One message for a broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutgoingMessage {
    /// The message id: the same on each attempt.
    pub id: String,
    /// Where to: a NATS subject, a Redis stream, an AMQP routing key, a Kafka topic.
    pub stream: String,
    /// Messages of one key arrive in the order in which they were given.
    pub key: String,
    /// The envelope as JSON.
    pub body: Bytes,
    /// Headers beside the id, as far as the protocol has any.
    pub headers: Vec<(String, String)>,
}

/// Why a message was not acknowledged. The reasons are for people and hold no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The broker cannot be reached, does not let us in, does not answer, or takes nothing now (out of memory,
    /// read-only, loading, without replicas). No message is at fault and all wait, without using up an attempt. It
    /// may have arrived nevertheless.
    #[error("unavailable: {reason}")]
    Unavailable { reason: String },
    /// The broker has no room where this message goes: its queue or stream is full. It waits and uses up no attempt;
    /// messages with other destinations go on.
    #[error("no room: {reason}")]
    NoRoom { reason: String },
    /// The broker said no to this message: not permitted, nobody to take it. An operator may mend that.
    #[error("refused: {reason}")]
    Refused { reason: String },
    /// It will never be taken as it is: too large, or not to be expressed in the protocol.
    #[error("cannot be published: {reason}")]
    Permanent { reason: String },
}

impl PublishError {
    fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into() }
    }

    fn no_room(reason: impl Into<String>) -> Self {
        Self::NoRoom { reason: reason.into() }
    }

    fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }

    fn permanent(reason: impl Into<String>) -> Self {
        Self::Permanent { reason: reason.into() }
    }
}

/// What became of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Published {
    /// So many from the front of the group are with the broker.
    pub acknowledged: usize,
    /// Why the next one is not; none if all are.
    pub error: Option<PublishError>,
}

impl Published {
    fn all(group: &[OutgoingMessage]) -> Self {
        Self { acknowledged: group.len(), error: None }
    }

    fn none(error: PublishError) -> Self {
        Self { acknowledged: 0, error: Some(error) }
    }
}

/// One external broker. Cheap to share; many groups are published at once over few connections.
pub trait Broker: Send + Sync {
    /// Publishes messages of *one* key in their order and stops at the first that is not acknowledged,
    /// so that none overtakes another. Ends within the timeout of the options for each step that waits.
    ///
    /// Dropped while it runs, what it was sending may arrive or not.
    fn publish<'a>(&'a self, group: &'a [OutgoingMessage]) -> BoxFuture<'a, Published>;

    /// Whether the broker can be reached and lets us in.
    fn check(&self) -> BoxFuture<'_, Result<(), PublishError>>;

    /// Ends the connections; what is under way ends as unavailable, and so does all that comes later.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A broker, with its name in the settings before it.
pub type NamedBroker = (String, Arc<dyn Broker>);

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct SettingError {
    /// The setting's name below the broker's own.
    pub setting: &'static str,
    pub reason: String,
}

impl SettingError {
    fn new(setting: &'static str, reason: impl Into<String>) -> Self {
        Self { setting, reason: reason.into() }
    }
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection with everything that belongs to it: TLS, login.
    pub connect: Duration,
    /// For the acknowledgement of a publish.
    pub publish: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), publish: Duration::from_secs(10) }
    }
}

/// TLS of a connection. The protocol's own certificates of the system count where no CA is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Also where the URL does not say so by its scheme.
    pub required: bool,
    /// PEM; replaces the system's (NATS and AMQP: is added to them).
    pub ca_file: Option<PathBuf>,
    /// PEM, with `key_file`: our own certificate.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

/// The contents of the files of [`Tls`].
#[derive(Clone, Default)]
struct TlsFiles {
    ca: Option<Vec<u8>>,
    /// Certificate and key.
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Reads the files anew, so that a certificate that was exchanged counts from the next connection on.
    async fn read(&self) -> Result<TlsFiles, SettingError> {
        self.validate()?;
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

    fn validate(&self) -> Result<(), SettingError> {
        if self.cert_file.is_some() != self.key_file.is_some() {
            let setting = if self.cert_file.is_some() { "tls_cert_file" } else { "tls_key_file" };
            return Err(SettingError::new(setting, "set tls_cert_file and tls_key_file both, or neither"));
        }
        Ok(())
    }

    /// Whether a file is named, which only means something where TLS is spoken.
    fn has_files(&self) -> bool {
        self.ca_file.is_some() || self.cert_file.is_some() || self.key_file.is_some()
    }
}

async fn read_file(setting: &'static str, path: &Path) -> Result<Vec<u8>, SettingError> {
    tokio::fs::read(path)
        .await
        .map_err(|error| SettingError::new(setting, format!("cannot read {}: {error}", path.display())))
}

/// A setting that turns out to be unusable when connecting: all messages wait until it is corrected.
impl From<SettingError> for PublishError {
    fn from(error: SettingError) -> Self {
        Self::unavailable(error.to_string())
    }
}

/// A URL without credentials (they have settings of their own, which are sealed and hidden) in one of
/// the schemes.
fn parse_url(url: &str, schemes: &[&str]) -> Result<url::Url, SettingError> {
    let expected = || format!("must be {}://host:port", schemes.join("://host:port or "));
    let parsed =
        url::Url::parse(url).map_err(|error| SettingError::new("url", format!("{error}: {}", expected())))?;
    if !schemes.contains(&parsed.scheme()) || parsed.host_str().is_none_or(str::is_empty) {
        return Err(SettingError::new("url", expected()));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(SettingError::new("url", "holds credentials: put them into user and password"));
    }
    Ok(parsed)
}

/// User and password go together.
fn check_login(user: Option<&String>, password: Option<&SecretString>) -> Result<(), SettingError> {
    match (user, password) {
        (Some(_), None) => Err(SettingError::new("password", "set it beside user")),
        (None, Some(_)) => Err(SettingError::new("user", "set it beside password")),
        _ => Ok(()),
    }
}

/// rustls wants to be told its provider once per process; whoever comes later finds it there.
fn install_tls_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
