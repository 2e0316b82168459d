//! A Kafka-compatible broker (Tansu) of the test's own.

use std::path::PathBuf;

use krafka::admin::{AdminClient, NewTopic};
use tempfile::TempDir;
use tokio::process::Command;

use super::external_broker::{Certificates, ServerProcess};
use super::{FaultProxy, eventually, free_port, require_tool, tool};

/// One broker on a free port of loopback, which keeps its topics in memory. Clients learn the address of
/// the proxy in front of it.
pub struct KafkaServer {
    pub process: ServerProcess,
    pub proxy: FaultProxy,
    _folder: TempDir,
}

impl KafkaServer {
    /// None, with a message, where there is none: `HUB_TEST_KAFKA`, or `tansu` on `PATH`.
    pub async fn start() -> Option<Self> {
        Self::start_with(|_| Vec::new()).await
    }

    pub async fn start_tls(certificates: &Certificates) -> Option<Self> {
        let (cert, key) = (certificates.cert(), certificates.key());
        Self::start_with(|_| {
            let path = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
            vec!["--cert".to_owned(), path(&cert), "--key".to_owned(), path(&key)]
        })
        .await
    }

    async fn start_with(arguments: impl Fn(u16) -> Vec<String>) -> Option<Self> {
        let binary = require_tool("tansu", tool("tansu", "HUB_TEST_KAFKA"))?;
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let proxy = FaultProxy::start(&format!("127.0.0.1:{port}")).await;
        let advertised = format!("tcp://localhost:{}", proxy.address().port());
        let arguments = arguments(port);
        let command = move || {
            let mut command = Command::new(&binary);
            command.args(["broker", "--listener-url", &format!("tcp://127.0.0.1:{port}")]);
            command.args(["--advertised-listener-url", &advertised, "--storage-engine", "memory://tansu/"]);
            command.args(&arguments);
            command
        };
        let process = ServerProcess::start(port, &folder.path().join("log"), command).await;
        Some(Self { process, proxy, _folder: folder })
    }

    /// Bootstrap server: the proxy.
    pub fn url(&self) -> String {
        format!("localhost:{}", self.proxy.address().port())
    }

    /// A client of the test's own.
    pub async fn client(&self) -> krafka::Kafka {
        let connected = krafka::Kafka::builder(self.url()).client_id("test").connect().await;
        connected.unwrap_or_else(|error| panic!("connecting: {error}"))
    }

    pub async fn create_topic(&self, topic: &str, partitions: i32) {
        let admin: AdminClient = self.client().await.admin();
        eventually(std::time::Duration::from_secs(20), "the topic is created", async || {
            let topic = NewTopic::new(topic, partitions, 1)?;
            admin.create_topics([topic], Default::default()).await.map(drop)
        })
        .await;
    }
}
