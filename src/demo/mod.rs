//! `hub demo`: shows the whole pipeline on this machine, from a published event to its subscribers, to a dead letter and
//! back. Each step is checked against the real streams and receivers.

mod expectation;
mod narration;
mod scenario;
mod stage;
mod subscriber;
#[cfg(test)]
mod tests;
mod what_next;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::bounded::BoundedFields;
use crate::cli::logging::of_the_hub;
use crate::domain::field_error::FieldError;
use crate::facts::DemoLogShared;
use crate::printable::{EscapedLog, LogText};
use crate::queued_writer::{self, QueuedWriter};
use crate::serve::{Role, ServeError};
use crate::settings::SettingsError;
use crate::signals::Signals;
use expectation::Unmet;
use hub_testkit::broker_process::{BrokerProcessError, find_or_fetch};
use narration::Narrator;
use stage::{Processes, Stage};

/// Lines of the log that are shown after a failure.
const LOG_LINES: usize = 40;
/// Time limit of a stop.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Show the hub at work: a private nats-server, every role, three subscribers, and an event that one of them does not
/// accept
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct DemoOptions {
    /// Exit after the steps: with 0 if every check holds, otherwise with 1
    #[arg(long)]
    pub once: bool,
}

/// The result of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Every check holds.
    Passed,
    /// A check does not hold, a part ended by itself, or the demo was interrupted before its end.
    Failed,
}

/// Why the demo could not start.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(transparent)]
    Broker(#[from] BrokerProcessError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the settings of the demo are invalid: {0}")]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Dev(#[from] crate::dev::DevError),
    #[error("a subscription of the demo is invalid: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Subscription(Vec<FieldError>),
    #[error("{}: {source}; to use another folder, set TMPDIR", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("cannot listen on 127.0.0.1: {0}")]
    Listen(std::io::Error),
    #[error("cannot watch for signals: {0}")]
    Signals(std::io::Error),
}

/// Runs the demo on standard output. Everything is stopped and removed when it returns.
pub(crate) async fn run(options: DemoOptions) -> Result<Verdict, DemoError> {
    let mut signals = Signals::new().map_err(DemoError::Signals)?;
    let mut narrator = Narrator::on_stdout();
    let folder = tempfile::Builder::new()
        .prefix("hub-demo-")
        .tempdir()
        .map_err(|source| DemoError::File { path: std::env::temp_dir(), source })?;
    let log = DemoLog::start(folder.path().join("hub.log"))?;

    narrator.text("Integration Hub, a demo. Everything runs on this machine and is removed at the end.");
    let started = tokio::select! {
        started = begin(folder.path(), &mut narrator) => started,
        () = signals.next() => {
            narrator.text("\ninterrupted");
            return Ok(Verdict::Failed);
        }
    };
    let (stage, mut processes) = match started {
        Ok(parts) => parts,
        Err(error) => {
            log.show_end(&mut narrator);
            return Err(error);
        }
    };
    narrator.report(&format!("the hub logs to {}", log.path.display()));
    let verdict = carry_out(&options, &stage, &mut processes, &mut signals, &mut narrator, &log).await;
    narrator.text("\nstopping");
    tokio::select! {
        () = processes.stop() => {}
        () = signals.next() => narrator.text("stopping at once"),
        () = tokio::time::sleep(STOP_LIMIT) => narrator.text("deliveries in flight are cancelled"),
    }
    let path = folder.path().to_owned();
    if let Err(source) = folder.close() {
        narrator.text(&format!("cannot remove {}: {source}", path.display()));
    }
    Ok(verdict)
}

async fn begin(folder: &Path, narrator: &mut Narrator) -> Result<(Stage, Processes), DemoError> {
    narrator.heading("Start a nats-server and a hub");
    let binary = tokio::task::spawn_blocking(|| {
        find_or_fetch(None, &|text| queued_writer::stderr().put(format!("{text}\n")))
    })
    .await
    .map_err(|_| crate::dev::DevError::Interrupted)??;
    stage::start(folder, binary, Role::ALL.into_iter().collect(), narrator).await
}

/// Runs the steps, and then waits for a signal.
async fn carry_out(
    options: &DemoOptions,
    stage: &Stage,
    processes: &mut Processes,
    signals: &mut Signals,
    narrator: &mut Narrator,
    log: &DemoLog,
) -> Verdict {
    let played = tokio::select! {
        played = scenario::play(stage, narrator, scenario::LIMIT) => Some(played),
        reason = processes.ended() => Some(Err(Unmet::failed("the hub and its server run", reason))),
        () = signals.next() => None,
    };
    match played {
        Some(Ok(())) => {}
        Some(Err(unmet)) => {
            narrator.failed(&unmet);
            log.show_end(narrator);
            return Verdict::Failed;
        }
        None => {
            narrator.text("\ninterrupted");
            return Verdict::Failed;
        }
    }
    narrator.text("\nEvery step held.");
    if options.once {
        return Verdict::Passed;
    }
    narrator.heading("The demo runs until ctrl-c. Try in another terminal:");
    let invitation = what_next::invitation(stage, &log.path);
    narrator.text(&invitation);
    tokio::select! {
        () = what_next::narrate(stage, narrator) => Verdict::Passed,
        () = signals.next() => Verdict::Passed,
        reason = processes.ended() => {
            narrator.failed(&Unmet::failed("the hub and its server run", reason));
            log.show_end(narrator);
            Verdict::Failed
        }
    }
}

/// The log of the hub, in a file, so that it does not mix with the steps.
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
            .with_env_filter(EnvFilter::new(of_the_hub("info,integration_hub=debug")))
            .fmt_fields(BoundedFields)
            .with_ansi(false)
            .with_writer(EscapedLog::new(move || writer.clone(), LogText::Text))
            .log_internal_errors(false)
            .try_init();
        // A program that embeds the demo may have a log of its own.
        if let Err(error) = started {
            DemoLogShared { error: &*error }.emit();
        }
        Ok(Self { path, outlet })
    }

    /// Shows the end of the log, because the file is removed with the demo.
    fn show_end(&self, narrator: &mut Narrator) {
        self.outlet.flush(queued_writer::FLUSH_LIMIT);
        let text = match std::fs::read(&self.path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => format!("(cannot read it: {error})"),
        };
        let lines: Vec<&str> = text.lines().collect();
        if lines.is_empty() {
            return;
        }
        let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
        narrator.text(&format!("\nThe end of the hub's log:\n  {}", end.join("\n  ")));
    }
}
