//! `hub serve --dev`: a private nats-server whose data lasts, and a master key beside it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::broker_process::{BrokerOptions, BrokerProcess, BrokerProcessError, Data, find_or_fetch};
use crate::settings::Settings;

#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error(transparent)]
    Broker(#[from] BrokerProcessError),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("looking for a nats-server was interrupted")]
    Interrupted,
}

/// The private server while it runs.
pub struct Dev {
    broker: BrokerProcess,
}

impl Dev {
    pub async fn stop(mut self) {
        if let Err(error) = self.broker.stop().await {
            tracing::warn!(%error, "the private nats-server did not stop by itself");
        }
    }
}

/// `$XDG_DATA_HOME/integration-hub`, or `~/.local/share/integration-hub`.
pub fn folder() -> PathBuf {
    std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
        .unwrap_or_else(std::env::temp_dir)
        .join("integration-hub")
}

/// Starts the server on the folder's data and points the settings at it. Deliveries may reach this
/// machine, unless the settings name networks of their own.
pub async fn start(settings: &mut Settings) -> Result<Dev, DevError> {
    let folder = folder();
    std::fs::create_dir_all(&folder).map_err(|source| DevError::File { path: folder.clone(), source })?;
    let binary = tokio::task::spawn_blocking(|| find_or_fetch(None, &|text| tracing::info!("{text}")))
        .await
        .map_err(|_| DevError::Interrupted)??;
    let mut options = BrokerOptions::new(binary);
    options.data = Data::Lasting(folder.join("nats"));
    options.port = port(&settings.nats.url);
    let broker = BrokerProcess::start(options).await?;
    settings.nats.url = broker.url().to_owned();
    if settings.secrets.master_key.is_none() && settings.secrets.master_key_file.is_none() {
        settings.secrets.master_key_file = Some(master_key(&folder)?);
    }
    if settings.delivery.allow_networks.is_empty() {
        settings.delivery.allow_networks = loopback();
    }
    tracing::info!(url = settings.nats.url, data = %folder.display(), "a private nats-server runs");
    Ok(Dev { broker })
}

/// The networks of this machine alone.
pub fn loopback() -> Vec<ipnet::IpNet> {
    ["127.0.0.0/8", "::1/128"].iter().filter_map(|network| network.parse().ok()).collect()
}

/// The port that the settings name on this machine, so that `nats` and the other commands find the
/// server where they look for it.
fn port(url: &str) -> Option<u16> {
    url::Url::parse(url).ok()?.port_or_known_default().or(Some(4222))
}

/// A key made once and kept beside the data that it seals.
pub(crate) fn master_key(folder: &Path) -> Result<PathBuf, DevError> {
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
