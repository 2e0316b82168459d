//! A RabbitMQ server of a test, and a client of it.

use hub_testkit::rabbitmq::{RabbitMqServer, TlsFiles};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};

use super::external_broker::Certificates;
use super::{require_tool, tool};

/// One RabbitMQ server on free loopback ports; its data survives a restart.
pub struct RabbitMq(RabbitMqServer);

impl RabbitMq {
    /// `None`, with a message, if there is no RabbitMQ: `HUB_TEST_RABBITMQ`, or `rabbitmq-server` on `PATH`. `config` has
    /// further lines of `rabbitmq.conf`.
    pub async fn start(config: &str) -> Option<Self> {
        let program = require_tool("rabbitmq-server", tool("rabbitmq-server", "HUB_TEST_RABBITMQ"))?;
        let server = RabbitMqServer::start(&program, config).await;
        Some(Self(server.unwrap_or_else(|error| panic!("{error}"))))
    }

    /// The same, with a second listener for TLS.
    pub async fn start_tls(certificates: &Certificates) -> Option<Self> {
        let program = require_tool("rabbitmq-server", tool("rabbitmq-server", "HUB_TEST_RABBITMQ"))?;
        let (ca, certificate, key) = (certificates.ca(), certificates.cert(), certificates.key());
        let files = TlsFiles { ca: &ca, certificate: &certificate, key: &key };
        let server = RabbitMqServer::start_tls(&program, files).await;
        Some(Self(server.unwrap_or_else(|error| panic!("{error}"))))
    }

    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Kills it (SIGKILL), and waits until it is gone.
    pub async fn kill(&mut self) {
        self.0.process().kill().await.expect("it is running");
    }

    /// Starts it again, on the same port with the same data.
    pub async fn restart(&mut self) {
        self.0.process().restart().await.unwrap_or_else(|error| panic!("{error}"));
    }

    pub fn url(&self) -> String {
        self.0.url()
    }

    pub fn tls_url(&self) -> String {
        format!("amqps://localhost:{}", self.0.tls_port().expect("started with TLS"))
    }

    /// A channel on a new connection.
    pub async fn channel(&self) -> Channel {
        let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await;
        let connection = connection.unwrap_or_else(|error| panic!("connecting: {error}"));
        connection.create_channel().await.expect("a channel")
    }

    /// Creates a durable queue with these arguments.
    pub async fn declare(&self, queue: &str, arguments: FieldTable) {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let channel = self.channel().await;
        channel.queue_declare(queue.into(), options, arguments).await.expect("a queue");
    }

    pub async fn delete(&self, queue: &str) {
        let channel = self.channel().await;
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("deleted");
    }
}
