//! A Kafka-compatible broker (Tansu) of a test, and a client of it.

use std::sync::Arc;
use std::time::Duration;

use hub_testkit::kafka::TansuServer;
use krafka::admin::{AdminClient, NewTopic};
use krafka::auth::AuthConfig;
use krafka::consumer::AutoOffsetReset;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::external_broker::Certificates;
use super::{FaultProxy, eventually, require_tool, tool};

/// One broker on a free loopback port behind a proxy, which keeps its topics in memory.
pub struct KafkaServer(TansuServer);

impl KafkaServer {
    /// `None`, with a message, if there is no Tansu: `HUB_TEST_KAFKA`, or `tansu` on `PATH`.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[], None).await
    }

    /// It requires SASL/SCRAM, and has no users.
    pub async fn start_authenticating() -> Option<Self> {
        Self::start_with(&["--authentication"], None).await
    }

    /// Clients connect with TLS.
    pub async fn start_tls(certificates: &Certificates) -> Option<Self> {
        Self::start_with(&[], Some(Arc::new(tls_config(certificates)))).await
    }

    async fn start_with(arguments: &[&str], tls: Option<Arc<rustls::ServerConfig>>) -> Option<Self> {
        let program = require_tool("tansu", tool("tansu", "HUB_TEST_KAFKA"))?;
        let server = TansuServer::start(&program, arguments, tls).await;
        Some(Self(server.unwrap_or_else(|error| panic!("{error}"))))
    }

    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// The proxy that every client uses.
    pub fn proxy(&self) -> &FaultProxy {
        self.0.proxy()
    }

    /// Kills it (SIGKILL), and waits until it is gone.
    pub async fn kill(&mut self) {
        self.0.process().kill().await.expect("it is running");
    }

    /// Starts it again, on the same port without its topics.
    pub async fn restart(&mut self) {
        self.0.process().restart().await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// The bootstrap server: the proxy, or the TLS listener in front of it.
    pub fn url(&self) -> String {
        self.0.bootstrap()
    }

    /// A client on a new connection.
    pub async fn client(&self) -> krafka::Kafka {
        self.client_with(AuthConfig::plaintext()).await
    }

    async fn client_with(&self, security: AuthConfig) -> krafka::Kafka {
        let builder = krafka::Kafka::builder(self.url()).client_id("test").security(security);
        builder.connect().await.unwrap_or_else(|error| panic!("connecting: {error}"))
    }

    pub async fn create_topic(&self, topic: &str, partitions: i32) {
        self.create_topic_with(AuthConfig::plaintext(), topic, partitions).await;
    }

    pub async fn create_topic_with(&self, security: AuthConfig, topic: &str, partitions: i32) {
        let admin: AdminClient = self.client_with(security).await.admin();
        eventually(Duration::from_secs(20), "the topic is created", async || {
            let topic = NewTopic::new(topic, partitions, 1)?;
            admin.create_topics([topic], Default::default()).await.map(drop)
        })
        .await;
    }
}

/// A record, as a consumer receives it.
#[derive(Debug, PartialEq)]
pub struct KafkaRecord {
    pub partition: i32,
    pub id: String,
    pub key: String,
    pub body: String,
    pub traceparent: Option<String>,
}

impl KafkaServer {
    /// Reads a topic from its beginning until `is_enough` accepts the records.
    ///
    /// # Panics
    ///
    /// After 20 s, with the number of records.
    pub async fn read(&self, topic: &str, is_enough: impl Fn(&[KafkaRecord]) -> bool) -> Vec<KafkaRecord> {
        let client = self.client().await;
        let consumer = client
            .consumer_without_group()
            .auto_offset_reset(AutoOffsetReset::Earliest)
            .build()
            .await
            .expect("a consumer");
        let partitions = client.producer().metrics_push(false).build().await.expect("a producer");
        let partitions = partitions.partitions_for(topic).await.expect("the topic");
        let partitions: Vec<i32> = partitions.iter().map(|partition| partition.partition).collect();
        consumer.assign(topic, partitions).await.expect("assigned");
        let mut seen = Vec::new();
        let reading = async {
            while !is_enough(&seen) {
                let records = consumer.poll(Duration::from_millis(200)).await.expect("polled");
                seen.extend(records.iter().map(|record| {
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
                    let header = |name: &str| {
                        let found = record.headers.iter().find(|(key, _)| key == name);
                        found.and_then(|(_, value)| value.as_ref().map(|value| text(value)))
                    };
                    KafkaRecord {
                        partition: record.partition,
                        id: header("id").expect("an id"),
                        key: text(record.key.as_ref().expect("a key")),
                        body: text(record.value.as_ref().expect("a value")),
                        traceparent: header("traceparent"),
                    }
                }));
            }
        };
        let read = tokio::time::timeout(Duration::from_secs(20), reading).await;
        assert!(read.is_ok(), "{topic} has {} records only", seen.len());
        seen
    }
}

/// The TLS settings of a server with this certificate.
fn tls_config(certificates: &Certificates) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let cert = CertificateDer::from_pem_file(certificates.cert()).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(certificates.key()).expect("a key");
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .expect("a certificate and its key")
}
