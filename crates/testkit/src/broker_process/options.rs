//! The options of a private nats-server, and its configuration file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Maximum size of all streams together.
const MAX_FILE_STORE: &str = "64GB";

/// Where the server keeps its streams, its configuration and its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A folder that is removed with the [`BrokerProcess`](super::BrokerProcess).
    Temporary,
    /// A permanent folder, created if it does not exist, and used by one server at a time.
    Lasting(PathBuf),
}

/// When the server calls fsync for stored messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncInterval {
    /// The default, every two minutes: a crash of the process loses nothing, a power failure may.
    #[default]
    Default,
    /// Before each acknowledgement.
    Always,
}

/// The cluster options of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMember {
    /// The name of the cluster, the same for each member.
    pub name: String,
    /// The port for the other servers.
    pub port: u16,
    /// The ports of all members, on loopback.
    pub routes: Vec<u16>,
}

/// The options of [`BrokerProcess::start`](super::BrokerProcess::start). The server listens on loopback only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerOptions {
    /// The nats-server to run, see [`find_or_fetch`](super::find_or_fetch).
    pub binary: PathBuf,
    /// Temporary by default.
    pub data: Data,
    /// The port for clients; a free one by default.
    pub port: Option<u16>,
    /// Sync interval of the file store.
    pub sync_interval: SyncInterval,
    /// The largest message in bytes; 1 MB by default.
    pub max_payload: Option<u64>,
    /// Most messages of an atomic batch; 1,000 by default.
    pub max_batch_size: Option<u64>,
    /// On by default.
    pub jetstream: bool,
    /// A random name by default. The names in a cluster must be distinct; spaces are rejected.
    pub server_name: Option<String>,
    /// `None` by default: a single server.
    pub cluster: Option<ClusterMember>,
    /// A folder of the owner that is removed with the server if the owner is killed. A temporary data folder is removed
    /// anyway.
    pub owner_folder: Option<PathBuf>,
    /// Further lines of the configuration file.
    pub extra_config: String,
}

impl BrokerOptions {
    /// One server with JetStream on free ports, its data in a temporary folder.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            data: Data::Temporary,
            port: None,
            sync_interval: SyncInterval::Default,
            max_payload: None,
            max_batch_size: None,
            jetstream: true,
            server_name: None,
            cluster: None,
            owner_folder: None,
            extra_config: String::new(),
        }
    }

    /// The configuration file, with the streams in `store`. Ports are arguments.
    pub(super) fn config(&self, store: &Path) -> String {
        let mut text = String::from("# Generated at each start.\nhost: \"127.0.0.1\"\n");
        // Writing to a String cannot fail, so the results are dropped.
        if let Some(name) = &self.server_name {
            let _ = writeln!(text, "server_name: {}", quoted(name));
        }
        if let Some(bytes) = self.max_payload {
            let _ = writeln!(text, "max_payload: {bytes}");
        }
        if self.jetstream {
            let _ = writeln!(text, "jetstream {{\n  store_dir: {}", quoted(&store.to_string_lossy()));
            // The default is three quarters of the free disk space, which may be less than the limits of all streams.
            // They are limits, not reservations.
            let _ = writeln!(text, "  max_file_store: {MAX_FILE_STORE}");
            if self.sync_interval == SyncInterval::Always {
                text.push_str("  sync_interval: always\n");
            }
            if let Some(most) = self.max_batch_size {
                let _ = writeln!(text, "  limits {{ batch {{ max_msgs: {most} }} }}");
            }
            text.push_str("}\n");
        }
        if let Some(cluster) = &self.cluster {
            let routes: Vec<_> =
                cluster.routes.iter().map(|port| quoted(&format!("nats://127.0.0.1:{port}"))).collect();
            let _ = writeln!(
                text,
                "cluster {{\n  name: {}\n  host: \"127.0.0.1\"\n  port: {}\n  routes: [{}]\n}}",
                quoted(&cluster.name),
                cluster.port,
                routes.join(", ")
            );
        }
        text.push_str(&self.extra_config);
        text.push('\n');
        text
    }
}

/// A string of the configuration file: in double quotes, with backslash escapes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_the_given_options_only() {
        let plain = BrokerOptions::new("nats-server");
        assert_eq!(
            plain.config(Path::new("/data/a \"b\"")),
            "# Generated at each start.\nhost: \"127.0.0.1\"\njetstream {\n  store_dir: \"/data/a \\\"b\\\"\"\n  max_file_store: 64GB\n}\n\n"
        );
        let all = BrokerOptions {
            sync_interval: SyncInterval::Always,
            max_payload: Some(8_388_608),
            max_batch_size: Some(16),
            server_name: Some("one".to_owned()),
            cluster: Some(ClusterMember { name: "c".to_owned(), port: 7001, routes: vec![7001, 7002] }),
            extra_config: "lame_duck_duration: 30s".to_owned(),
            ..plain.clone()
        };
        let text = all.config(Path::new("/data"));
        for line in [
            "server_name: \"one\"",
            "max_payload: 8388608",
            "  limits { batch { max_msgs: 16 } }",
            "  sync_interval: always",
            "  port: 7001",
            "  routes: [\"nats://127.0.0.1:7001\", \"nats://127.0.0.1:7002\"]",
            "lame_duck_duration: 30s",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} in\n{text}");
        }
        assert!(
            !BrokerOptions { jetstream: false, ..plain }.config(Path::new("/data")).contains("jetstream")
        );
    }
}
