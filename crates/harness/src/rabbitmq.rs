//! A RabbitMQ broker of the test's own.

use std::path::PathBuf;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use tempfile::TempDir;
use tokio::process::Command;

use super::external_broker::{Certificates, ServerProcess};
use super::{free_port, require_tool, tool};

/// One RabbitMQ on free ports of loopback, with its own port mapper; its data survive a restart.
pub struct RabbitMq {
    pub process: ServerProcess,
    /// The Erlang port mapper: ended last.
    _mapper: ServerProcess,
    tls_port: Option<u16>,
    _folder: TempDir,
}

impl RabbitMq {
    /// None, with a message, where there is none: `HUB_TEST_RABBITMQ`, or `rabbitmq-server` on `PATH`.
    /// `config` are further lines of rabbitmq.conf.
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
        let mapper = move || {
            let mut command = Command::new(&epmd);
            command.args(["-port", &mapper_port.to_string(), "-address", "127.0.0.1"]);
            command
        };
        let mapper = ServerProcess::start(mapper_port, &path.join("epmd.log"), mapper).await;
        let data = path.clone();
        let command = move || {
            let mut command = Command::new(&binary);
            command
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
                );
            command
        };
        let process = ServerProcess::start(port, &path.join("server.log"), command).await;
        Some(Self { process, _mapper: mapper, tls_port, _folder: folder })
    }

    pub fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}", self.process.port())
    }

    pub fn tls_url(&self) -> String {
        format!("amqps://localhost:{}", self.tls_port.expect("started with TLS"))
    }

    /// A channel of the test's own.
    pub async fn channel(&self) -> Channel {
        let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await;
        let connection = connection.unwrap_or_else(|error| panic!("connecting: {error}"));
        connection.create_channel().await.expect("a channel")
    }

    /// A durable queue, with such arguments.
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
