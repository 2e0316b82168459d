//! Why a PostgreSQL, Redis, RabbitMQ or Kafka server does not run.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No loopback port is free.
    #[error("no free port on 127.0.0.1: {0}")]
    NoPort(#[source] io::Error),
    /// A file or folder of the server could not be written or read.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// The program did not start, or could not be signalled or waited for.
    #[error("cannot run {program}: {source}")]
    Run { program: &'static str, source: io::Error },
    /// The program ended before it was ready, or with an error.
    #[error("{program} ended ({status}); its output:\n{log}")]
    Ended { program: &'static str, status: ExitStatus, log: String },
    /// The server runs but is not ready.
    #[error("{program} was not ready after {}; its output:\n{log}", humantime::format_duration(*.waited))]
    NotReady { program: &'static str, waited: Duration, log: String },
    /// The server was killed before.
    #[error("{program} is not running; start it with restart()")]
    NotRunning { program: &'static str },
    /// The user `nobody` has no numeric id: PostgreSQL refuses to run as root.
    #[error("cannot find the user nobody, which PostgreSQL must run as: `id` printed {text:?}")]
    NoUser { text: String },
}
