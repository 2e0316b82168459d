//! `hub demo`: the whole pipeline on this machine, from a published event to the subscriber, through
//! the dead letter and back. Each step is shown and checked against the real streams and
//! receivers.

mod receiver;
mod scenario;
mod stage;
mod telling;
#[cfg(test)]
mod tests;
mod token_endpoint;
mod what_next;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::domain::field_error::FieldError;
use crate::facts::DemoLogShared;
use crate::queued_writer::{self, QueuedWriter};
use crate::serve::{Role, ServeError};
use crate::settings::SettingsError;
use crate::signals::Signals;
use hub_testkit::broker_process::{BrokerProcessError, find_or_fetch};
use stage::{Processes, Stage};
use telling::{Teller, Unmet};

/// Lines of the hub's log that are shown after a failure.
const LOG_LINES: usize = 40;
/// From the signal to the end, whatever is still in flight.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// See the hub at work: a private nats-server, every role, three subscribers, and what happens to an
/// event that one of them does not take
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DemoOptions {
    /// Leave after the steps: with 0 if every one was seen to hold, else with 1
    #[arg(long)]
    pub once: bool,
}

/// What the demo showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every step was seen to hold.
    Held,
    /// A step did not hold, a part ended by itself, or the demo was interrupted before its end.
    NotHeld,
}

/// Why the demo could not begin.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(transparent)]
    Broker(#[from] BrokerProcessError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the demo's own settings: {0}")]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Dev(#[from] crate::dev::DevError),
    #[error("the demo's own subscription: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Subscription(Vec<FieldError>),
    #[error("{}: {source}; TMPDIR names another place for the demo's folder", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("a receiver cannot listen on 127.0.0.1: {0}")]
    Listen(std::io::Error),
    #[error("signals cannot be watched: {0}")]
    Signals(std::io::Error),
}

/// Runs the demo on standard output. Whatever the outcome, everything is stopped and removed when it
/// returns.
pub async fn run(options: DemoOptions) -> Result<Verdict, DemoError> {
    let mut signals = Signals::new().map_err(DemoError::Signals)?;
    let mut teller = Teller::on_stdout();
    let folder = tempfile::Builder::new()
        .prefix("hub-demo-")
        .tempdir()
        .map_err(|source| DemoError::File { path: std::env::temp_dir(), source })?;
    let log = DemoLog::start(folder.path().join("hub.log"))?;

    teller.text("Integration Hub: a demo. Everything runs on this machine and is removed at the end.");
    let started = tokio::select! {
        started = begin(folder.path(), &mut teller) => started,
        () = signals.next() => {
            teller.text("\ninterrupted");
            return Ok(Verdict::NotHeld);
        }
    };
    let (stage, mut processes) = match started {
        Ok(parts) => parts,
        Err(error) => {
            log.show_end(&mut teller);
            return Err(error);
        }
    };
    teller.tell(&format!("the hub writes its log to {}", log.path.display()));
    let verdict = carry_out(&options, &stage, &mut processes, &mut signals, &mut teller, &log).await;
    teller.text("\nstopping");
    tokio::select! {
        () = processes.stop() => {}
        () = signals.next() => teller.text("at once"),
        () = tokio::time::sleep(STOP_LIMIT) => teller.text("what is still in flight is given up"),
    }
    let path = folder.path().to_owned();
    if let Err(source) = folder.close() {
        teller.text(&format!("{} was not removed: {source}", path.display()));
    }
    Ok(verdict)
}

async fn begin(folder: &Path, teller: &mut Teller) -> Result<(Stage, Processes), DemoError> {
    teller.heading("A nats-server, and a hub");
    let binary = tokio::task::spawn_blocking(|| {
        find_or_fetch(None, &|text| queued_writer::stderr().put(format!("{text}\n")))
    })
    .await
    .map_err(|_| crate::dev::DevError::Interrupted)??;
    stage::start(folder, binary, Role::ALL.into_iter().collect(), teller).await
}

/// The steps, and what comes after them.
async fn carry_out(
    options: &DemoOptions,
    stage: &Stage,
    processes: &mut Processes,
    signals: &mut Signals,
    teller: &mut Teller,
    log: &DemoLog,
) -> Verdict {
    let played = tokio::select! {
        played = scenario::play(stage, teller, scenario::LIMIT) => Some(played),
        reason = processes.ended() => Some(Err(Unmet::new("the hub and its server to run", reason))),
        () = signals.next() => None,
    };
    match played {
        Some(Ok(())) => {}
        Some(Err(unmet)) => {
            teller.failed(&unmet);
            log.show_end(teller);
            return Verdict::NotHeld;
        }
        None => {
            teller.text("\ninterrupted");
            return Verdict::NotHeld;
        }
    }
    teller.text("\nEvery step held.");
    if options.once {
        return Verdict::Held;
    }
    teller.heading("It stays up until ctrl-c. From another terminal, try:");
    let invitation = what_next::invitation(stage, &log.path);
    teller.text(&invitation);
    tokio::select! {
        () = what_next::narrate(stage, teller) => Verdict::Held,
        () = signals.next() => Verdict::Held,
        reason = processes.ended() => {
            teller.failed(&Unmet::new("the hub and its server to run", reason));
            log.show_end(teller);
            Verdict::NotHeld
        }
    }
}

/// The log of the hub goes to a file, so that it does not mix with the steps.
struct DemoLog {
    path: PathBuf,
    outlet: QueuedWriter,
}

impl DemoLog {
    fn start(path: PathBuf) -> Result<Self, DemoError> {
        let file =
            std::fs::File::create(&path).map_err(|source| DemoError::File { path: path.clone(), source })?;
        let outlet = QueuedWriter::new("demo-log", file);
        let writer = outlet.clone();
        let started = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new("info,integration_hub=debug"))
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .log_internal_errors(false)
            .try_init();
        // Whoever embeds the demo may have a log of his own: then that one is written.
        if let Err(error) = started {
            DemoLogShared { error: &*error }.emit();
        }
        Ok(Self { path, outlet })
    }

    /// The folder goes with the demo, so the end of the log is shown where it is needed.
    fn show_end(&self, teller: &mut Teller) {
        self.outlet.flush(queued_writer::FLUSH_LIMIT);
        let text = match std::fs::read(&self.path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => format!("(it cannot be read: {error})"),
        };
        let lines: Vec<&str> = text.lines().collect();
        if lines.is_empty() {
            return;
        }
        let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
        teller.text(&format!("\nThe end of the hub's log:\n  {}", end.join("\n  ")));
    }
}
