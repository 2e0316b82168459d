//! A private nats-server: found or fetched, started on free ports, stopped with its owner.
//!
//! Used by `hub demo`, `hub serve --dev`, `hub-bench` and the tests. It does not use the NATS protocol, only processes,
//! files and the monitoring port of the server.
//!
//! * [`find_or_fetch`] returns the path of a usable binary.
//! * [`BrokerProcess`] is one running server; [`BrokerCluster`] is a cluster of several.
//!
//! The server writes its ports to a file once it accepts connections (`--ports_file_dir`), and reports its health on the
//! monitoring port (`/healthz`, `/jsz`).

mod cluster;
mod error;
mod find;
mod folder;
mod options;
mod probe;
mod server;

pub use cluster::BrokerCluster;
pub use error::{BrokerProcessError, FetchError, VersionError};
pub use find::{FETCHED_VERSION, MINIMUM_VERSION, find_or_fetch};
pub use options::{BrokerOptions, ClusterMember, Data, SyncInterval};
pub use server::BrokerProcess;
