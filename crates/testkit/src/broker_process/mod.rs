//! A nats-server of the hub's own: found or fetched, started on free ports, stopped with its owner.
//!
//! Used by `hub demo`, `hub serve --dev`, `hub-bench` and the tests. Nothing in here speaks the NATS
//! protocol: it deals with processes, files and the server's monitoring port alone.
//!
//! * [`find_or_fetch`] gives the path of a usable binary.
//! * [`BrokerProcess`] is one running server; [`BrokerCluster`] is several that form a cluster.
//!
//! The server reports its ports, in a file it writes once it accepts connections
//! (`--ports_file_dir`), and its health on the monitoring port (`/healthz`, `/jsz`).

mod cluster;
mod error;
mod find;
mod folder;
mod options;
mod probe;
mod server;

pub use cluster::BrokerCluster;
pub use error::BrokerProcessError;
pub use find::{FETCHED_VERSION, MINIMUM_VERSION, find_or_fetch};
pub use options::{BrokerOptions, ClusterMember, Data, SyncInterval};
pub use server::BrokerProcess;
