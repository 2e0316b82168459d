//! The log, always on standard error: standard output belongs to the answer.
//!
//! Lines go through [`outlet`](crate::outlet): no reader of the log, and no lack of one, holds up or ends the process.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;

use tracing_subscriber::EnvFilter;

use crate::outlet;
use crate::printable::{self, EscapedLog, LogText};
use crate::settings::{Log, LogFormat};

/// How much a command tells beside its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogPlan {
    /// Warnings only; from info on with `--verbose`.
    Command { verbose: bool },
    /// As `[log]` in the settings says.
    Service,
    /// The command writes a log of its own.
    Elsewhere,
}

/// Starts the log of this process. `RUST_LOG` goes before all else.
pub fn start(plan: LogPlan, settings: &Log) {
    let level = match plan {
        LogPlan::Command { verbose: false } => "warn",
        LogPlan::Command { verbose: true } => "info",
        LogPlan::Service => settings.level.as_str(),
        LogPlan::Elsewhere => "off",
    };
    // The settings' level was checked when they were loaded; RUST_LOG is nobody's but the user's.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let text = match (plan, settings.format) {
        (LogPlan::Service, LogFormat::Json) => LogText::Json,
        _ => LogText::Text,
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(EscapedLog::new(|| outlet::stderr().clone(), text))
        .log_internal_errors(false);
    // A second start in one process (a test, say) keeps the first log.
    let _ = match (plan, settings.format) {
        (LogPlan::Elsewhere, _) => Ok(()),
        (LogPlan::Service, LogFormat::Json) => log.json().flatten_event(true).try_init(),
        (LogPlan::Service, LogFormat::Text) => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        (LogPlan::Command { .. }, _) => {
            log.with_ansi(std::io::stderr().is_terminal()).without_time().with_target(false).try_init()
        }
    };
    // The standard hook writes to standard error itself, and waits for its reader with the lock held.
    match plan {
        LogPlan::Service => std::panic::set_hook(Box::new(log_panic)),
        LogPlan::Command { .. } | LogPlan::Elsewhere => std::panic::set_hook(Box::new(tell_panic)),
    }
}

/// Writes what is still queued, for a bounded time: the last step of a process.
pub fn finish() {
    outlet::stdout().flush(outlet::FLUSH_LIMIT);
    outlet::stderr().flush(outlet::FLUSH_LIMIT);
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let (message, location, thread) = parts(panic);
    match backtrace() {
        Some(backtrace) => tracing::error!(message, location, thread, %backtrace, "panicked"),
        None => tracing::error!(message, location, thread, "panicked"),
    }
}

fn tell_panic(panic: &PanicHookInfo<'_>) {
    let (message, location, thread) = parts(panic);
    let backtrace = backtrace().map(|backtrace| format!("\n{backtrace}")).unwrap_or_default();
    let text = format!("thread {thread:?} panicked at {location}: {message}{backtrace}");
    outlet::stderr().put(format!("{}\n", printable::lines(&text)));
}

fn parts<'a>(panic: &'a PanicHookInfo<'_>) -> (&'a str, String, String) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    (panic.payload_as_str().unwrap_or("a value that is not text"), location, thread)
}

/// Only if `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` asks for one.
fn backtrace() -> Option<Backtrace> {
    Some(Backtrace::capture()).filter(|backtrace| backtrace.status() == BacktraceStatus::Captured)
}
