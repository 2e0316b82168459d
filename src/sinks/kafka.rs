//! Kafka and what speaks its protocol: an idempotent producer that waits for all in-sync replicas.
//!
//! A record's key is the message's key, so a key's records stay in one partition and in order; the header
//! `id` is the message id. Kafka drops the repetitions of a producer that resends by itself; a publish
//! that is tried again after [`PublishError::Unavailable`] may be in the topic twice, and the reader goes
//! by the id.

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
use super::{Broker, OutgoingMessage, PublishError, Published, SettingError, Timeouts, Tls};

/// `message.max.bytes` of a Kafka broker as it comes.
pub const LARGEST: usize = 1_048_588;
/// The longest name of a topic in bytes.
const LONGEST_TOPIC: usize = 249;

/// SASL, when there are credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mechanism {
    /// The password itself travels: with TLS only.
    Plain,
    ScramSha256,
    #[default]
    ScramSha512,
}

/// How to reach a Kafka cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bootstrap servers: `host:port`, several with commas between.
    pub url: String,
    pub user: Option<String>,
    pub password: Option<SecretString>,
    pub mechanism: Mechanism,
    pub tls: Tls,
    /// The largest record in bytes, key and headers included: the topic's `max.message.bytes`.
    pub largest: usize,
    pub timeouts: Timeouts,
}

impl Options {
    /// Without credentials, without TLS.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: None,
            password: None,
            mechanism: Mechanism::default(),
            tls: Tls::default(),
            largest: LARGEST,
            timeouts: Timeouts::default(),
        }
    }
}

/// What a broker's error code says of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It will never be taken.
    TooLarge,
    NoTopic,
    Refused,
    /// Nothing: the cluster takes no record now.
    Unavailable,
}

fn meaning(code: ErrorCode) -> Meaning {
    match code {
        ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge | ErrorCode::InvalidTopic => {
            Meaning::TooLarge
        }
        ErrorCode::UnknownTopicOrPartition | ErrorCode::UnknownTopicId => Meaning::NoTopic,
        ErrorCode::TopicAuthorizationFailed | ErrorCode::InvalidRecord | ErrorCode::PolicyViolation => {
            Meaning::Refused
        }
        // Without replicas, leader or coordinator, throttled, out of storage, or a producer id that is no more.
        _ => Meaning::Unavailable,
    }
}

/// A Kafka cluster; all publishes share one producer with a connection to each broker of the cluster.
pub struct Kafka {
    options: Options,
    link: Link<Session>,
}

#[derive(Clone)]
struct Session {
    client: Client,
    producer: Arc<Producer>,
}

impl Kafka {
    /// Checks the options; connects with the first publish.
    pub fn new(options: Options) -> Result<Self, SettingError> {
        for server in options.url.split(',').map(str::trim) {
            let port = server.rsplit_once(':').and_then(|(host, port)| {
                (!host.is_empty() && !host.contains(['/', '@'])).then(|| port.parse::<u16>().ok()).flatten()
            });
            if port.is_none() {
                let reason = "must be host:port, several with commas between, without a scheme";
                return Err(SettingError::new("url", reason));
            }
        }
        super::check_login(options.user.as_ref(), options.password.as_ref())?;
        options.tls.validate()?;
        if options.mechanism == Mechanism::Plain && options.password.is_some() && !uses_tls(&options.tls) {
            let reason = "plain sends the password as it is: use TLS, or scram-sha-512";
            return Err(SettingError::new("mechanism", reason));
        }
        super::install_tls_provider();
        Ok(Self { link: Link::new(options.timeouts.connect), options })
    }

    async fn session(&self) -> Result<Linked<Session>, PublishError> {
        self.link.get(self.connect()).await
    }

    async fn connect(&self) -> Result<Session, PublishError> {
        let options = &self.options;
        // A send waits for room and the topic's partitions first, and for the acknowledgement then.
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
            // Records gather while others of their partition are in flight; a pause on top of that only
            // slows a single key (measured: 265/s with 2 ms).
            .linger(Duration::ZERO)
            .delivery_timeout(half)
            .max_block(half)
            // A record that fits makes a request that fits, whatever the framing adds.
            .max_request_size(options.largest.saturating_mul(2).max(LARGEST))
            .buffer_memory(options.largest.saturating_mul(4).max(32 * 1024 * 1024))
            // Nobody asked for our metrics.
            .metrics_push(false)
            .build()
            .await
            .map_err(|error| self.error(&error))?;
        Ok(Session { client, producer: Arc::new(producer) })
    }

    async fn security(&self) -> Result<Option<AuthConfig>, PublishError> {
        let options = &self.options;
        let login = match (&options.user, &options.password) {
            (Some(user), Some(password)) => {
                let password = password.expose_secret();
                Some(match options.mechanism {
                    Mechanism::Plain => AuthConfig::sasl_plain(user, password),
                    Mechanism::ScramSha256 => AuthConfig::sasl_scram_sha256(user, password),
                    Mechanism::ScramSha512 => AuthConfig::sasl_scram_sha512(user, password),
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
        match error {
            // The login, or a certificate; the text is the server's and may hold anything.
            KrafkaError::Auth { .. }
            | KrafkaError::Broker { code: ErrorCode::SaslAuthenticationFailed, .. } => {
                PublishError::unavailable(format!(
                    "{} does not let us in: correct user and password, mechanism, or the TLS files",
                    self.options.url
                ))
            }
            KrafkaError::Broker { code, .. } => match meaning(*code) {
                Meaning::TooLarge => PublishError::permanent(reason),
                Meaning::NoTopic => {
                    PublishError::refused(format!("{reason}: create the topic, or correct destination"))
                }
                Meaning::Refused => PublishError::refused(reason),
                Meaning::Unavailable => PublishError::unavailable(reason),
            },
            KrafkaError::UnknownTopic { topic } => PublishError::refused(format!(
                "{}: there is no topic {topic:?}: create the topic, or correct destination",
                self.options.url
            )),
            _ => PublishError::unavailable(reason),
        }
    }

    /// As [`error`](Self::error), of a record that could not even be queued: then what is wrong about its
    /// shape is told as a wrong configuration or an impossible length.
    fn queue_error(&self, error: &KrafkaError) -> PublishError {
        match error {
            KrafkaError::Config { .. }
            | KrafkaError::Protocol { .. }
            | KrafkaError::Serialization { .. }
            | KrafkaError::Compression { .. } => PublishError::permanent(error.to_string()),
            _ => self.error(error),
        }
    }

    async fn publish_group(&self, group: &[OutgoingMessage]) -> Published {
        if group.is_empty() {
            return Published::all(group);
        }
        let linked = match self.session().await {
            Ok(linked) => linked,
            Err(error) => return Published::none(error),
        };
        // One by one: a batch in flight may fail while the next one does not.
        for (acknowledged, message) in group.iter().enumerate() {
            if let Err(error) = self.publish_one(&linked, message).await {
                return Published { acknowledged, error: Some(error) };
            }
        }
        Published::all(group)
    }

    async fn publish_one(
        &self,
        linked: &Linked<Session>,
        message: &OutgoingMessage,
    ) -> Result<(), PublishError> {
        if message.stream.len() > LONGEST_TOPIC {
            return Err(PublishError::permanent(format!(
                "destination: the topic is {} bytes long, and Kafka takes {LONGEST_TOPIC}",
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
                "{size} bytes are more than the {} that the topic takes (max.message.bytes)",
                self.options.largest
            )));
        }
        let queued = linked.connection.producer.enqueue(record).await;
        let (error, told) = match queued {
            Ok(delivery) => match delivery.await {
                Ok(_) => return Ok(()),
                Err(error) => (self.error(&error), error),
            },
            Err(error) => (self.queue_error(&error), error),
        };
        // The last: the cluster has lost what this producer wrote; with a new id it can go on.
        let is_over = told.is_fatal() || matches!(told, KrafkaError::OutOfOrderSequence { .. });
        if is_over && let Some(session) = self.link.lost(linked).await {
            self.end(session).await;
        }
        Err(error)
    }

    async fn end(&self, session: Session) {
        let options = CloseOptions::new().timeout(self.options.timeouts.connect);
        if let Err(error) = session.producer.close_with(options).await {
            tracing::debug!(%error, "a Kafka producer ended with records under way");
        }
    }
}

fn uses_tls(tls: &Tls) -> bool {
    tls.required || tls.has_files()
}

impl Broker for Kafka {
    fn publish<'a>(&'a self, group: &'a [OutgoingMessage]) -> BoxFuture<'a, Published> {
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
    fn only_an_answer_about_the_record_is_its_fault() {
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
            assert_eq!(meaning(code), Meaning::Unavailable, "{code:?}");
        }
        for (code, expected) in [
            (ErrorCode::MessageTooLarge, Meaning::TooLarge),
            (ErrorCode::RecordListTooLarge, Meaning::TooLarge),
            (ErrorCode::InvalidTopic, Meaning::TooLarge),
            (ErrorCode::UnknownTopicOrPartition, Meaning::NoTopic),
            (ErrorCode::TopicAuthorizationFailed, Meaning::Refused),
            (ErrorCode::PolicyViolation, Meaning::Refused),
        ] {
            assert_eq!(meaning(code), expected, "{code:?}");
        }
    }
}
