//! The log, always on standard error; standard output is for results.
//!
//! Lines go through [`queued_writer`](crate::queued_writer), so that a slow or missing reader of the log never blocks or ends
//! the process.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;

use tracing_subscriber::EnvFilter;

use crate::facts::ThreadPanicked;
use crate::printable::{self, EscapedLog, LogText};
use crate::queued_writer;
use crate::settings::{LogFormat, LogSettings};

/// What a command logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogPlan {
    /// Logs warnings and errors; with `--verbose`, info as well.
    Command { verbose: bool },
    /// Logs by the setting `[log]`.
    Service,
    /// Logs nothing here, because the command writes its own log.
    Elsewhere,
}

/// Starts the log of this process. `RUST_LOG` overrides the plan.
pub fn start(plan: LogPlan, settings: &LogSettings) {
    let level = match plan {
        LogPlan::Command { verbose: false } => "warn",
        LogPlan::Command { verbose: true } => "info",
        LogPlan::Service => settings.level.as_str(),
        LogPlan::Elsewhere => "off",
    };
    // The settings' level was checked when they were loaded.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let text = match (plan, settings.format) {
        (LogPlan::Service, LogFormat::Json) => LogText::Json,
        _ => LogText::Text,
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(EscapedLog::new(|| queued_writer::stderr().clone(), text))
        .log_internal_errors(false);
    // A second start in one process (in a test) keeps the first log.
    let _ = match (plan, settings.format) {
        (LogPlan::Elsewhere, _) => Ok(()),
        (LogPlan::Service, LogFormat::Json) => log.json().flatten_event(true).try_init(),
        (LogPlan::Service, LogFormat::Text) => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        (LogPlan::Command { .. }, _) => {
            log.with_ansi(std::io::stderr().is_terminal()).without_time().with_target(false).try_init()
        }
    };
    // The standard hook writes to standard error directly, and blocks on its reader with the lock held.
    match plan {
        LogPlan::Service => std::panic::set_hook(Box::new(log_panic)),
        LogPlan::Command { .. } | LogPlan::Elsewhere => std::panic::set_hook(Box::new(print_panic)),
    }
}

/// Writes the queued text, for a limited time: the last step of a process.
pub fn finish() {
    queued_writer::stdout().flush(queued_writer::FLUSH_LIMIT);
    queued_writer::stderr().flush(queued_writer::FLUSH_LIMIT);
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let (message, location, thread) = parts(panic);
    let backtrace = backtrace();
    let backtrace = backtrace.as_ref().map(|backtrace| backtrace as &dyn fmt::Display);
    ThreadPanicked { message, location: &location, thread: &thread, backtrace }.emit();
}

fn print_panic(panic: &PanicHookInfo<'_>) {
    let (message, location, thread) = parts(panic);
    let backtrace = backtrace().map(|backtrace| format!("\n{backtrace}")).unwrap_or_default();
    let text = format!("thread {thread:?} panicked at {location}: {message}{backtrace}");
    queued_writer::stderr().put(format!("{}\n", printable::lines(&text)));
}

fn parts<'a>(panic: &'a PanicHookInfo<'_>) -> (&'a str, String, String) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    (panic.payload_as_str().unwrap_or("a panic value that is not text"), location, thread)
}

/// A backtrace, if `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` enables it.
fn backtrace() -> Option<Backtrace> {
    Some(Backtrace::capture()).filter(|backtrace| backtrace.status() == BacktraceStatus::Captured)
}
