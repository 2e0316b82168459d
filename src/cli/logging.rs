//! The log, always on standard error: standard output belongs to the answer.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use super::printable::{EscapedLog, LogText};
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
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(EscapedLog::new(std::io::stderr, text));
    // A second start in one process (a test, say) keeps the first log.
    let _ = match (plan, settings.format) {
        (LogPlan::Elsewhere, _) => Ok(()),
        (LogPlan::Service, LogFormat::Json) => log.json().flatten_event(true).try_init(),
        (LogPlan::Service, LogFormat::Text) => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        (LogPlan::Command { .. }, _) => {
            log.with_ansi(std::io::stderr().is_terminal()).without_time().with_target(false).try_init()
        }
    };
}
