//! Kafka and compatible servers: an idempotent producer that waits for all in-sync replicas.
//!
//! A record's key is the message's key, so the records of a key stay in one partition and in order; the header `id` is
//! the message id. Kafka drops duplicates that the producer's own retries cause. A publish that is retried after
//! [`PublishError::Unavailable`] may be in the topic twice; readers recognise it by the id.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use krafka::admin::DescribeClusterOptions;
use krafka::auth::{AuthConfig, TlsConfig};
use krafka::error::{ErrorCode, KrafkaError};
use krafka::producer::{Acks, Producer};
use krafka::{CloseOptions, Kafka as Client, Record};
use secrecy::{ExposeSecret, SecretString};

use super::link::{Link, Linked};
use super::{Broker, BrokerTls, OutgoingMessage, PublishError, PublishedGroup, SettingError, Timeouts};
use crate::facts::KafkaRecordsPending;

/// Default of a Kafka broker's `message.max.bytes`.
pub const LARGEST: usize = 1_048_588;
/// Longest topic name in bytes.
const LONGEST_TOPIC: usize = 249;

/// SASL mechanism, used if credentials are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SaslMechanism {
    /// Sends the password in clear: allowed with TLS only.
    Plain,
    ScramSha256,
    #[default]
    ScramSha512,
}

/// How to reach a Kafka cluster.
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// Bootstrap servers: `host:port`; several, separated by commas.
    pub url: String,
    pub user: Option<String>,
    pub password: Option<SecretString>,
    pub mechanism: SaslMechanism,
    pub tls: BrokerTls,
    /// Largest record in bytes, including key and headers: the topic's `max.message.bytes`.
    pub largest: usize,
    pub timeouts: Timeouts,
}

impl KafkaOptions {
    /// Options without credentials and TLS.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: None,
            password: None,
            mechanism: SaslMechanism::default(),
            tls: BrokerTls::default(),
            largest: LARGEST,
            timeouts: Timeouts::default(),
        }
    }
}

/// What a broker's error code means for the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordErrorMeaning {
    /// The broker can never accept it.
    TooLarge,
    NoTopic,
    Refused,
    /// The record is not the cause: the cluster accepts no record at the moment.
    Unavailable,
}

fn meaning(code: ErrorCode) -> RecordErrorMeaning {
    match code {
        ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge | ErrorCode::InvalidTopic => {
            RecordErrorMeaning::TooLarge
        }
        ErrorCode::UnknownTopicOrPartition | ErrorCode::UnknownTopicId => RecordErrorMeaning::NoTopic,
        ErrorCode::TopicAuthorizationFailed | ErrorCode::InvalidRecord | ErrorCode::PolicyViolation => {
            RecordErrorMeaning::Refused
        }
        // No replicas, leader or coordinator, throttled, out of storage, or an expired producer id.
        _ => RecordErrorMeaning::Unavailable,
    }
}

/// A Kafka cluster. All publishes share one producer, which has a connection to each broker of the cluster.
pub struct Kafka {
    options: KafkaOptions,
    link: Link<KafkaSession>,
}

#[derive(Clone)]
struct KafkaSession {
    client: Client,
    producer: Arc<Producer>,
}

impl Kafka {
    /// Checks the options. The first publish connects.
    pub fn new(options: KafkaOptions) -> Result<Self, SettingError> {
        for server in options.url.split(',').map(str::trim) {
            let port = server.rsplit_once(':').and_then(|(host, port)| {
                (!host.is_empty() && !host.contains(['/', '@'])).then(|| port.parse::<u16>().ok()).flatten()
            });
            if port.is_none() {
                let reason = "must be host:port without a scheme; separate several with commas";
                return Err(SettingError::new("url", reason));
            }
        }
        super::check_login(options.user.as_ref(), options.password.as_ref())?;
        options.tls.validate()?;
        if options.mechanism == SaslMechanism::Plain && options.password.is_some() && !uses_tls(&options.tls)
        {
            let reason = "plain sends the password in clear; use TLS, or scram-sha-512";
            return Err(SettingError::new("mechanism", reason));
        }
        super::install_tls_provider();
        Ok(Self { link: Link::new(options.timeouts.connect), options })
    }

    async fn session(&self) -> Result<Linked<KafkaSession>, PublishError> {
        self.link.get(self.connect()).await
    }

    async fn connect(&self) -> Result<KafkaSession, PublishError> {
        let options = &self.options;
        // A send first waits for buffer space and the topic's partitions, then for the acknowledgement.
        let half = options.timeouts.publish / 2;
        let mut builder = Client::builder(&options.url)
            .client_id("integration-hub")
            .connect_timeout(options.timeouts.connect.min(half))
            .request_timeout(half)
            .allow_auto_create_topics(false);
        if let Some(security) = self.security().await? {
            builder = builder.security(security);
        }
        let client = builder.connect().await.map_err(|error| self.error(&error))?;
        let producer = client
            .producer()
            .acks(Acks::All)
            .idempotent(true)
            // Records collect in a batch while others of their partition are in flight; an additional pause only
            // slows a single key down (measured: 265/s with 2 ms).
            .linger(Duration::ZERO)
            .delivery_timeout(half)
            .max_block(half)
            // Leaves room for the framing of a request with the largest record.
            .max_request_size(options.largest.saturating_mul(2).max(LARGEST))
            .buffer_memory(options.largest.saturating_mul(4).max(32 * 1024 * 1024))
            // No metrics are sent to the broker.
            .metrics_push(false)
            .build()
            .await
            .map_err(|error| self.error(&error))?;
        Ok(KafkaSession { client, producer: Arc::new(producer) })
    }

    async fn security(&self) -> Result<Option<AuthConfig>, PublishError> {
        let options = &self.options;
        let login = match (&options.user, &options.password) {
            (Some(user), Some(password)) => {
                let password = password.expose_secret();
                Some(match options.mechanism {
                    SaslMechanism::Plain => AuthConfig::sasl_plain(user, password),
                    SaslMechanism::ScramSha256 => AuthConfig::sasl_scram_sha256(user, password),
                    SaslMechanism::ScramSha512 => AuthConfig::sasl_scram_sha512(user, password),
                })
            }
            _ => None,
        };
        if !uses_tls(&options.tls) {
            return Ok(login);
        }
        let files = options.tls.read().await?;
        let mut tls = TlsConfig::new();
        tls = match files.ca {
            Some(ca) => tls.with_ca_cert_pem(ca),
            None => tls.with_native_roots(),
        };
        if let Some((cert, key)) = files.identity {
            tls = tls.with_client_cert_pem(cert, key);
        }
        Ok(Some(login.unwrap_or_else(AuthConfig::plaintext).with_tls(tls)))
    }

    fn error(&self, error: &KrafkaError) -> PublishError {
        let reason = format!("{}: {error}", self.options.url);
        let failed = match error {
            // The login or a certificate. The server's text is dropped, because it may contain anything.
            KrafkaError::Auth { .. }
            | KrafkaError::Broker { code: ErrorCode::SaslAuthenticationFailed, .. } => {
                return PublishError::unavailable(format!(
                    "{} rejects the login; correct user and password, mechanism, or the TLS files",
                    self.options.url
                ));
            }
            KrafkaError::Broker { code, .. } => match meaning(*code) {
                RecordErrorMeaning::TooLarge => PublishError::permanent(reason),
                RecordErrorMeaning::NoTopic => {
                    PublishError::refused(format!("{reason}; create the topic, or correct destination"))
                }
                RecordErrorMeaning::Refused => PublishError::refused(reason),
                RecordErrorMeaning::Unavailable => PublishError::unavailable(reason),
            },
            KrafkaError::UnknownTopic { topic } => PublishError::refused(format!(
                "{}: no topic {topic:?}; create it, or correct destination",
                self.options.url
            )),
            _ => PublishError::unavailable(reason),
        };
        failed.caused_by(error.clone())
    }

    /// Like [`error`](Self::error), for a record that could not be queued: the client reports a malformed record as a
    /// configuration, protocol, serialization or compression error.
    fn queue_error(&self, error: &KrafkaError) -> PublishError {
        match error {
            KrafkaError::Config { .. }
            | KrafkaError::Protocol { .. }
            | KrafkaError::Serialization { .. }
            | KrafkaError::Compression { .. } => {
                PublishError::permanent(error.to_string()).caused_by(error.clone())
            }
            _ => self.error(error),
        }
    }

    async fn publish_group(&self, group: &[OutgoingMessage]) -> PublishedGroup {
        if group.is_empty() {
            return PublishedGroup::all(group);
        }
        let linked = match self.session().await {
            Ok(linked) => linked,
            Err(error) => return PublishedGroup::none(error),
        };
        // One by one: a batch in flight may fail while the next one succeeds.
        for (acknowledged, message) in group.iter().enumerate() {
            if let Err(error) = self.publish_one(&linked, message).await {
                return PublishedGroup { acknowledged, error: Some(error) };
            }
        }
        PublishedGroup::all(group)
    }

    async fn publish_one(
        &self,
        linked: &Linked<KafkaSession>,
        message: &OutgoingMessage,
    ) -> Result<(), PublishError> {
        if message.stream.len() > LONGEST_TOPIC {
            return Err(PublishError::permanent(format!(
                "destination: the topic is {} bytes long; Kafka allows {LONGEST_TOPIC}",
                message.stream.len()
            )));
        }
        let mut record = Record::new(message.stream.as_str(), message.body.clone())
            .key(message.key.clone())
            .header("id", message.id.clone());
        for (name, value) in &message.headers {
            record = record.header(name.as_str(), value.clone());
        }
        let size = record.estimated_size();
        if size > self.options.largest {
            return Err(PublishError::permanent(format!(
                "the record has {size} bytes; the topic allows {} (max.message.bytes)",
                self.options.largest
            )));
        }
        let queued = linked.connection.producer.enqueue(record).await;
        let (error, cause) = match queued {
            Ok(delivery) => match delivery.await {
                Ok(_) => return Ok(()),
                Err(error) => (self.error(&error), error),
            },
            Err(error) => (self.queue_error(&error), error),
        };
        // Out of order: the cluster has lost records of this producer; a producer with a new id can continue.
        let is_over = cause.is_fatal() || matches!(cause, KrafkaError::OutOfOrderSequence { .. });
        if is_over && let Some(session) = self.link.lost(linked).await {
            self.end(session).await;
        }
        Err(error)
    }

    async fn end(&self, session: KafkaSession) {
        let options = CloseOptions::new().timeout(self.options.timeouts.connect);
        if let Err(error) = session.producer.close_with(options).await {
            KafkaRecordsPending { error: &error }.emit();
        }
    }
}

fn uses_tls(tls: &BrokerTls) -> bool {
    tls.required || tls.has_files()
}

impl Broker for Kafka {
    fn publish<'a>(&'a self, group: &'a [OutgoingMessage]) -> BoxFuture<'a, PublishedGroup> {
        self.publish_group(group).boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), PublishError>> {
        async {
            let linked = self.session().await?;
            let options = DescribeClusterOptions::default().timeout(self.options.timeouts.publish);
            let described = linked.connection.client.admin().describe_cluster(options).await;
            described.map(drop).map_err(|error| self.error(&error))
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            if let Some(session) = self.link.close().await {
                self.end(session).await;
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_error_about_the_record_is_attributed_to_it() {
        for code in [
            ErrorCode::NotEnoughReplicas,
            ErrorCode::NotEnoughReplicasAfterAppend,
            ErrorCode::LeaderNotAvailable,
            ErrorCode::NotLeaderForPartition,
            ErrorCode::ReplicaNotAvailable,
            ErrorCode::BrokerNotAvailable,
            ErrorCode::CoordinatorLoadInProgress,
            ErrorCode::CoordinatorNotAvailable,
            ErrorCode::NotCoordinator,
            ErrorCode::RequestTimedOut,
            ErrorCode::NetworkException,
            ErrorCode::KafkaStorageException,
            ErrorCode::ThrottlingQuotaExceeded,
            ErrorCode::ClusterAuthorizationFailed,
            ErrorCode::UnknownProducerId,
            ErrorCode::UnknownServerError,
        ] {
            assert_eq!(meaning(code), RecordErrorMeaning::Unavailable, "{code:?}");
        }
        for (code, expected) in [
            (ErrorCode::MessageTooLarge, RecordErrorMeaning::TooLarge),
            (ErrorCode::RecordListTooLarge, RecordErrorMeaning::TooLarge),
            (ErrorCode::InvalidTopic, RecordErrorMeaning::TooLarge),
            (ErrorCode::UnknownTopicOrPartition, RecordErrorMeaning::NoTopic),
            (ErrorCode::TopicAuthorizationFailed, RecordErrorMeaning::Refused),
            (ErrorCode::PolicyViolation, RecordErrorMeaning::Refused),
        ] {
            assert_eq!(meaning(code), expected, "{code:?}");
        }
    }
}
