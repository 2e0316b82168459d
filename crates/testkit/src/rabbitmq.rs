//! A private RabbitMQ server.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::ServerError;
use crate::owned_process::Plan;
use crate::server_process::{Ready, ServerProcess};

const PROGRAM: &str = "rabbitmq-server";
const MAPPER: &str = "epmd";

/// The files of a TLS listener, in PEM.
#[derive(Debug, Clone, Copy)]
pub struct TlsFiles<'a> {
    pub ca: &'a Path,
    pub certificate: &'a Path,
    pub key: &'a Path,
}

/// One RabbitMQ server on free loopback ports, with an Erlang port mapper of its own. Its data survives a restart.
pub struct RabbitMqServer {
    // Dropped in this order: the processes are gone before their folder is removed.
    process: ServerProcess,
    _mapper: ServerProcess,
    tls_port: Option<u16>,
    _folder: TempDir,
}

impl RabbitMqServer {
    /// Starts `program`, and waits until it listens. `config` has further lines of `rabbitmq.conf`.
    ///
    /// # Errors
    ///
    /// As [`ServerProcess::start`], or the folder or a port is not available.
    pub async fn start(program: &Path, config: &str) -> Result<Self, ServerError> {
        Self::start_with(program, config, None).await
    }

    /// The same, with a second listener for TLS.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_tls(program: &Path, files: TlsFiles<'_>) -> Result<Self, ServerError> {
        let port = crate::free_port().map_err(ServerError::NoPort)?;
        let config = format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = false\n",
            files.ca.display(),
            files.certificate.display(),
            files.key.display()
        );
        Self::start_with(program, &config, Some(port)).await
    }

    async fn start_with(program: &Path, config: &str, tls_port: Option<u16>) -> Result<Self, ServerError> {
        let beside = program.with_file_name(MAPPER);
        let epmd = if beside.is_file() { beside } else { PathBuf::from(MAPPER) };
        let folder = crate::folder("hub-rabbitmq-")?;
        let data = folder.path().to_owned();
        let port = || crate::free_port().map_err(ServerError::NoPort);
        let (port, mapper_port, distribution_port) = (port()?, port()?, port()?);
        let config = format!("listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users.guest = true\n{config}");
        for (name, text) in [
            ("rabbitmq.conf", config.as_str()),
            ("enabled_plugins", "[]."),
            // Without this file the server reads that of the machine.
            ("rabbitmq-env.conf", ""),
        ] {
            let path = data.join(name);
            std::fs::write(&path, text).map_err(|source| ServerError::File { path, source })?;
        }
        let mapper =
            move || Plan::new(&epmd).args(["-port", &mapper_port.to_string(), "-address", "127.0.0.1"]);
        let log = data.join("epmd.log");
        let mapper = ServerProcess::start(MAPPER, mapper_port, &log, Ready::Listening, mapper).await?;

        let log = data.join("server.log");
        let program = program.to_owned();
        let plan = move || {
            Plan::new(&program)
                .with_folder(&data)
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
        let process = ServerProcess::start(PROGRAM, port, &log, Ready::Listening, plan).await?;
        Ok(Self { process, _mapper: mapper, tls_port, _folder: folder })
    }

    pub fn port(&self) -> u16 {
        self.process.port()
    }

    /// The port of the TLS listener, if it was started with one.
    pub fn tls_port(&self) -> Option<u16> {
        self.tls_port
    }

    /// `amqp://127.0.0.1:<port>`
    pub fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}", self.port())
    }

    /// To kill and restart it.
    pub fn process(&mut self) -> &mut ServerProcess {
        &mut self.process
    }
}
