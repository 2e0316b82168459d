//! A private RabbitMQ server.

use std::path::PathBuf;

use hub_testkit::owned_process::Plan;
use hub_testkit::server_process::{Ready, ServerProcess};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use tempfile::TempDir;

use super::external_broker::Certificates;
use super::{free_port, require_tool, tool};

/// A RabbitMQ server on free loopback ports, with its own port mapper. Its data survives a restart.
pub struct RabbitMq {
    process: ServerProcess,
    /// The Erlang port mapper; ends last.
    _mapper: ServerProcess,
    tls_port: Option<u16>,
    _folder: TempDir,
}

impl RabbitMq {
    /// Starts `HUB_TEST_RABBITMQ`, or `rabbitmq-server` from `PATH`. `None`, with a message, if there is neither.
    /// `config` has additional lines for rabbitmq.conf.
    pub async fn start(config: &str) -> Option<Self> {
        Self::start_with(config, None).await
    }

    /// Also listens with TLS.
    pub async fn start_tls(certificates: &Certificates) -> Option<Self> {
        let port = free_port();
        let config = format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\nssl_options.verify = verify_none\n",
            certificates.ca().display(),
            certificates.cert().display(),
            certificates.key().display()
        );
        Self::start_with(&config, Some(port)).await
    }

    async fn start_with(config: &str, tls_port: Option<u16>) -> Option<Self> {
        let binary = require_tool("rabbitmq-server", tool("rabbitmq-server", "HUB_TEST_RABBITMQ"))?;
        let beside = binary.with_file_name("epmd");
        let epmd = if beside.is_file() { beside } else { PathBuf::from("epmd") };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned();
        let (port, mapper_port, distribution_port) = (free_port(), free_port(), free_port());
        let config = format!("listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users.guest = true\n{config}");
        std::fs::write(path.join("rabbitmq.conf"), config).expect("a file");
        std::fs::write(path.join("enabled_plugins"), "[].").expect("a file");
        std::fs::write(path.join("rabbitmq-env.conf"), "").expect("a file");
        let mapper =
            move || Plan::new(&epmd).args(["-port", &mapper_port.to_string(), "-address", "127.0.0.1"]);
        let log = path.join("epmd.log");
        let mapper = ServerProcess::start("epmd", mapper_port, &log, Ready::Listening, mapper).await;
        let mapper = mapper.unwrap_or_else(|error| panic!("{error}"));
        let data = path.clone();
        let command = move || {
            Plan::new(&binary)
                .env("HOME", &data)
                .env("RABBITMQ_NODENAME", format!("hub{port}@localhost"))
                .env("RABBITMQ_CONFIG_FILE", data.join("rabbitmq"))
                .env("RABBITMQ_CONF_ENV_FILE", data.join("rabbitmq-env.conf"))
                .env("RABBITMQ_ENABLED_PLUGINS_FILE", data.join("enabled_plugins"))
                .env("RABBITMQ_MNESIA_BASE", data.join("mnesia"))
                .env("RABBITMQ_LOG_BASE", data.join("log"))
                .env("RABBITMQ_LOGS", "-")
                .env("RABBITMQ_PID_FILE", data.join("pid"))
                .env("RABBITMQ_DIST_PORT", distribution_port.to_string())
                .env("ERL_EPMD_PORT", mapper_port.to_string())
                .env("ERL_EPMD_ADDRESS", "127.0.0.1")
                .env(
                    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                    "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2",
                )
        };
        let log = path.join("server.log");
        let process = ServerProcess::start("rabbitmq-server", port, &log, Ready::Listening, command).await;
        let process = process.unwrap_or_else(|error| panic!("{error}"));
        Some(Self { process, _mapper: mapper, tls_port, _folder: folder })
    }

    pub fn port(&self) -> u16 {
        self.process.port()
    }

    /// Sends SIGKILL, and waits until the process has ended.
    pub async fn kill(&mut self) {
        self.process.kill().await.expect("it is running");
    }

    /// Starts it again, on the same port with the same data.
    pub async fn restart(&mut self) {
        self.process.restart().await.unwrap_or_else(|error| panic!("{error}"));
    }

    pub fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}", self.port())
    }

    pub fn tls_url(&self) -> String {
        format!("amqps://localhost:{}", self.tls_port.expect("started with TLS"))
    }

    /// A new channel.
    pub async fn channel(&self) -> Channel {
        let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await;
        let connection = connection.unwrap_or_else(|error| panic!("connecting: {error}"));
        connection.create_channel().await.expect("a channel")
    }

    /// Declares a durable queue with these arguments.
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
