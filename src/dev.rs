//! `hub serve --dev`: a private nats-server with persistent data, and a master key.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use crate::facts::{PrivateServerNotStopped, PrivateServerSearched, PrivateServerStarted};
use crate::nats::subjects::SubjectNames;
use crate::settings::{Exports, Settings};
use crate::shell_command::{executable, quoted};
use hub_testkit::broker_process::{BrokerOptions, BrokerProcess, BrokerProcessError, Data, find_or_fetch};

#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error(transparent)]
    Broker(#[from] BrokerProcessError),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the search for a nats-server was interrupted")]
    Interrupted,
    #[error(
        "nats.url: {url} is not on this machine, where --dev starts a server; unset nats.url, set it to nats://127.0.0.1:PORT, or omit --dev"
    )]
    Elsewhere { url: String },
    #[error(
        "nats.url: port {port} of this machine is in use, perhaps by another nats-server; to use that server, omit --dev; for a private one, set another port, for example HUB__NATS__URL=nats://127.0.0.1:{}",
        .port.checked_add(1).unwrap_or(4222)
    )]
    PortTaken { port: u16 },
    #[error(
        "{} is in use by another `hub serve --dev` (process id {pid} of its nats-server); use or stop that one, or set XDG_DATA_HOME to another folder", folder.display()
    )]
    Running { folder: PathBuf, pid: u32 },
    #[error("the private nats-server ended by itself: {status}; see its log, {}", log.display())]
    ServerEnded { status: ExitStatus, log: PathBuf },
    #[error("the private nats-server ended by itself: {source}; see its log, {}", log.display())]
    ServerLost { source: BrokerProcessError, log: PathBuf },
}

/// The default of `nats.url`.
const DEFAULT_URL: &str = "nats://127.0.0.1:4222";
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];

/// The private server while it runs.
pub(crate) struct Dev {
    broker: BrokerProcess,
    folder: PathBuf,
    /// What other processes need to use the same server, key and settings.
    exports: Exports,
}

impl Dev {
    /// Waits until the server ends by itself, which is a failure. Cancel safe.
    pub(crate) async fn ended(&mut self) -> DevError {
        let ended = self.broker.ended().await;
        let log = self.broker.folder().join("nats-server.log");
        match ended {
            Ok(status) => DevError::ServerEnded { status, log },
            Err(source) => DevError::ServerLost { source, log },
        }
    }

    pub(crate) async fn stop(mut self) {
        if self.broker.pid().is_some()
            && let Err(error) = self.broker.stop().await
        {
            PrivateServerNotStopped { error: &error }.emit();
        }
    }

    /// Commands to copy to another terminal.
    pub(crate) fn invitation(
        &self,
        settings: &Settings,
        health: Option<SocketAddr>,
        api: Option<SocketAddr>,
    ) -> String {
        let hub = executable();
        let url = self.broker.url();
        let server = if url == DEFAULT_URL { String::new() } else { format!("--server {url} ") };
        let exports: Vec<String> =
            self.exports.variables.iter().map(|(name, value)| format!("{name}={}", quoted(value))).collect();
        let secrets = match &self.exports.secrets[..] {
            [] => String::new(),
            names => format!("    # and, as for this process, the secret {}\n", names.join(", ")),
        };
        let health = health.map(|address| format!("    curl http://{address}/readyz\n")).unwrap_or_default();
        let api = match api {
            None => String::new(),
            Some(address) if settings.api.anonymous => {
                format!("    curl http://{address}/v1/subscriptions\n")
            }
            Some(address) => format!(
                "    {hub} token create dev --scope read,manage,operate,publish\n    \
                 curl -H \"authorization: Bearer $TOKEN\" http://{address}/v1/subscriptions\n"
            ),
        };
        format!(
            "\nThe hub runs, with a private nats-server at {url}. Its data is kept in {folder}.\n\n  \
             Try in another terminal:\n    \
             export {exports}\n{secrets}    \
             echo '{{\"id\":\"mine\",\"events\":[\"user.>\"],\"delivery\":{{\"url\":\"http://127.0.0.1:9000/\"}}}}' | {hub} subscription apply -f -\n    \
             nats {server}pub {subject} '{{\"user_id\":\"u1\"}}'\n    \
             {hub} dlt list\n\
             {health}{api}\n  \
             Ctrl-C finishes the deliveries in flight, and stops both.\n\n",
            folder = self.folder.display(),
            subject = SubjectNames::new(&settings.nats.prefix).event("user.created"),
            exports = exports.join(" "),
        )
    }
}

/// `$XDG_DATA_HOME/integration-hub`, or `~/.local/share/integration-hub`.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
        .unwrap_or_else(std::env::temp_dir)
        .join("integration-hub")
}

/// Starts the server on the data of [`folder`], and sets `nats.url` to it. Allows deliveries to this machine, unless
/// `delivery.allow_networks` is set.
pub(crate) async fn start(settings: &mut Settings) -> Result<Dev, DevError> {
    let port = port(&settings.nats.url)?;
    let folder = folder();
    std::fs::create_dir_all(&folder).map_err(|source| DevError::File { path: folder.clone(), source })?;
    let binary =
        tokio::task::spawn_blocking(|| find_or_fetch(None, &|text| PrivateServerSearched { text }.emit()))
            .await
            .map_err(|_| DevError::Interrupted)??;
    let mut options = BrokerOptions::new(binary);
    options.data = Data::Lasting(folder.join("nats"));
    options.port = Some(port);
    options.server_name = Some("hub-dev".to_owned());
    let broker = BrokerProcess::start(options).await.map_err(|error| match error {
        BrokerProcessError::InUse { folder, pid: Some(pid) } => DevError::Running { folder, pid },
        BrokerProcessError::Exited { .. } if is_taken(port) => DevError::PortTaken { port },
        error => error.into(),
    })?;
    settings.nats.url = broker.url();
    if settings.secrets.master_key.is_none() && settings.secrets.master_key_file.is_none() {
        settings.secrets.master_key_file = Some(master_key(&folder)?);
    }
    if settings.delivery.allow_networks.is_empty() {
        settings.delivery.allow_networks = loopback();
    }
    let exports = exports(settings);
    // Only users of this machine reach a loopback address; requests of web pages are detected by Host and Origin.
    if settings.is_default("api.anonymous") {
        settings.api.anonymous = settings.api.listen.ip().is_loopback();
    }
    PrivateServerStarted { url: &settings.nats.url, data: &folder.display() }.emit();
    Ok(Dev { broker, folder, exports })
}

/// The variables for another terminal: every setting that is not a default, and those that a subscription with a credential
/// and an endpoint on this machine needs, wherever their values are from.
fn exports(settings: &Settings) -> Exports {
    let mut exports = settings.exports().clone();
    exports.set("HUB__NATS__URL", &settings.nats.url);
    if let Some(file) = &settings.secrets.master_key_file {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
        exports.set("HUB__SECRETS__MASTER_KEY_FILE", file.to_string_lossy());
    }
    let networks: Vec<String> = settings.delivery.allow_networks.iter().map(ToString::to_string).collect();
    exports.set("HUB__DELIVERY__ALLOW_NETWORKS", networks.join(","));
    exports
}

/// A hint for an error about a missing master key, if `hub serve --dev` made one on this machine; otherwise empty.
pub(crate) fn key_hint() -> String {
    let key = folder().join("master.key");
    if !key.exists() {
        return String::new();
    }
    format!(
        "; for the hub of `hub serve --dev`, set HUB__SECRETS__MASTER_KEY_FILE={}",
        quoted(&key.to_string_lossy())
    )
}

/// The networks of this machine.
pub(crate) fn loopback() -> Vec<ipnet::IpNet> {
    LOOPBACK.iter().filter_map(|network| network.parse().ok()).collect()
}

/// The port of `nats.url` on this machine, so that `nats` and other commands find the server at its usual address.
fn port(url: &str) -> Result<u16, DevError> {
    let elsewhere = || DevError::Elsewhere { url: url.to_owned() };
    let parsed = url::Url::parse(url).map_err(|_| elsewhere())?;
    // In a URL with a scheme unknown to the URL standard, "127.0.0.1" is parsed as a name.
    match parsed.host_str() {
        Some("127.0.0.1" | "localhost") if parsed.scheme() == "nats" => Ok(parsed.port().unwrap_or(4222)),
        _ => Err(elsewhere()),
    }
}

fn is_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err()
}

/// Creates the key on the first call, in the folder of the data that it seals.
fn master_key(folder: &Path) -> Result<PathBuf, DevError> {
    use base64::Engine as _;
    let path = folder.join("master.key");
    let failed = |source| DevError::File { path: path.clone(), source };
    if path.exists() {
        return Ok(path);
    }
    let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 32]>());
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    file.write_all(key.as_bytes()).map_err(failed)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_for_another_terminal_are_complete_whatever_this_one_has() {
        let needed = ["HUB__NATS__URL", "HUB__SECRETS__MASTER_KEY_FILE", "HUB__DELIVERY__ALLOW_NETWORKS"];
        let own = "delivery.allow_networks = ['10.0.0.0/8']\nsecrets.master_key_file = '/own.key'";
        for text in ["", own] {
            let mut settings = Settings::from_toml("/etc/hub.toml", text).expect("valid");
            if text.is_empty() {
                settings.delivery.allow_networks = loopback();
                settings.secrets.master_key_file = Some(PathBuf::from("/dev.key"));
            }
            let exports = exports(&settings);
            let names: Vec<&str> = exports.variables.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names[0], "HUB_CONFIG");
            assert_eq!(names[1..], needed);
            assert!(exports.variables.iter().all(|(_, value)| !value.is_empty()), "{exports:?}");
        }
    }

    #[test]
    fn only_a_server_on_this_machine_is_started() {
        assert_eq!(port(DEFAULT_URL).unwrap(), 4222);
        assert_eq!(port("nats://localhost").unwrap(), 4222);
        assert_eq!(port("nats://127.0.0.1:4333").unwrap(), 4333);
        for url in
            ["nats://nats.example:4222", "tls://127.0.0.1:4222", "nats://127.0.0.1,nats://127.0.0.2", ""]
        {
            assert!(matches!(port(url), Err(DevError::Elsewhere { .. })), "{url}");
        }
    }
}
