//! A private Kafka-compatible broker (Tansu).

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hub_testkit::owned_process::Plan;
use hub_testkit::server_process::{Ready, ServerProcess};
use krafka::admin::{AdminClient, NewTopic};
use krafka::auth::AuthConfig;
use krafka::consumer::AutoOffsetReset;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::external_broker::Certificates;
use super::{FaultProxy, eventually, free_port, require_tool, tool};

/// A broker on a free loopback port, with its topics in memory. It returns to clients the address of the proxy, or of
/// the TLS listener, in front of it.
pub struct KafkaServer {
    process: ServerProcess,
    pub proxy: FaultProxy,
    /// The task that accepts TLS; it and its connections end with this.
    tls: Option<(u16, JoinSet<()>)>,
    _folder: TempDir,
}

impl KafkaServer {
    /// Starts `HUB_TEST_KAFKA`, or `tansu` from `PATH`. `None`, with a message, if there is neither.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[], None).await
    }

    /// Starts a broker that requires SASL/SCRAM and has no users.
    pub async fn start_authenticating() -> Option<Self> {
        Self::start_with(&["--authentication"], None).await
    }

    /// Starts a broker with TLS. TLS ends in front of the proxy, because Tansu's own options for it exclude each other.
    pub async fn start_tls(certificates: &Certificates) -> Option<Self> {
        Self::start_with(&[], Some(certificates)).await
    }

    async fn start_with(arguments: &'static [&str], certificates: Option<&Certificates>) -> Option<Self> {
        let binary = require_tool("tansu", tool("tansu", "HUB_TEST_KAFKA"))?;
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let proxy = FaultProxy::start(&format!("127.0.0.1:{port}")).await;
        let tls = match certificates {
            Some(certificates) => Some(end_tls(certificates, proxy.address()).await),
            None => None,
        };
        let public = tls.as_ref().map_or(proxy.address().port(), |(port, _)| *port);
        let advertised = format!("tcp://localhost:{public}");
        let command = move || {
            Plan::new(&binary)
                .args(["broker", "--listener-url", &format!("tcp://127.0.0.1:{port}")])
                .args(["--advertised-listener-url", &advertised, "--storage-engine", "memory://tansu/"])
                .args(arguments)
        };
        let log = folder.path().join("log");
        let process = ServerProcess::start("tansu", port, &log, Ready::Listening, command).await;
        let process = process.unwrap_or_else(|error| panic!("{error}"));
        Some(Self { process, proxy, tls, _folder: folder })
    }

    pub fn port(&self) -> u16 {
        self.process.port()
    }

    /// Sends SIGKILL, and waits until the process has ended.
    pub async fn kill(&mut self) {
        self.process.kill().await.expect("it is running");
    }

    /// Starts it again on the same port, without its topics.
    pub async fn restart(&mut self) {
        self.process.restart().await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// The bootstrap server: the address in front of the broker.
    pub fn url(&self) -> String {
        let port = self.tls.as_ref().map_or(self.proxy.address().port(), |(port, _)| *port);
        format!("localhost:{port}")
    }

    /// A new client.
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

/// A record of a topic.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub partition: i32,
    pub id: String,
    pub key: String,
    pub body: String,
    pub traceparent: Option<String>,
}

impl KafkaServer {
    /// Reads a topic from the beginning until all expected records are there.
    ///
    /// # Panics
    ///
    /// After 20 s, with the number of records.
    pub async fn read(&self, topic: &str, is_enough: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
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
                    Seen {
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

/// Listens with TLS, and forwards to the broker without TLS.
async fn end_tls(certificates: &Certificates, upstream: SocketAddr) -> (u16, JoinSet<()>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let cert = CertificateDer::from_pem_file(certificates.cert()).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(certificates.key()).expect("a key");
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .expect("a certificate and its key");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                // Some tests expect a failed handshake.
                let Ok(mut client) = acceptor.accept(client).await else { return };
                if let Ok(mut server) = TcpStream::connect(upstream).await {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    (port, tasks)
}
