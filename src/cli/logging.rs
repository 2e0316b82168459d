//! The log, always on standard error; standard output is for results.
//!
//! Lines go through [`queued_writer`](crate::queued_writer), so that a slow or missing reader of the log never blocks or ends
//! the process.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;

use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload;

use crate::bounded::{self, BoundedFields};
use crate::facts::{LogLevelChanged, ThreadPanicked, limit_repeated_lines, write_rest_of_left_out};
use crate::printable::{self, EscapedLog, LogText};
use crate::queued_writer;
use crate::settings::{LogFormat, LogSettings};
use crate::signals::{LogSignal, LogSignals};

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
    limit_repeated_lines(settings.repeat_interval);
    let level = match plan {
        LogPlan::Command { verbose: false } => "warn",
        LogPlan::Command { verbose: true } => "info",
        LogPlan::Service => settings.level.as_str(),
        LogPlan::Elsewhere => "off",
    };
    // The settings' level was checked when they were loaded.
    let filter = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|text| !text.is_empty());
    let filter = filter.map(|text| of_the_hub(&text)).filter(|text| EnvFilter::try_new(text).is_ok());
    let configured = filter.unwrap_or_else(|| of_the_hub(level));
    let text = match (plan, settings.format) {
        (LogPlan::Service, LogFormat::Json) => LogText::Json,
        _ => LogText::Text,
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&configured))
        .fmt_fields(BoundedFields)
        .with_writer(EscapedLog::new(|| queued_writer::stderr().clone(), text))
        .log_internal_errors(false);
    // A second start in one process (in a test) keeps the first log.
    let _ = match (plan, settings.format) {
        (LogPlan::Elsewhere, _) => Ok(()),
        (LogPlan::Service, LogFormat::Json) => {
            let log = log.json().flatten_event(true).with_filter_reloading();
            keep(configured, log.reload_handle());
            log.try_init()
        }
        (LogPlan::Service, LogFormat::Text) => {
            let log = log.with_ansi(std::io::stderr().is_terminal()).with_filter_reloading();
            keep(configured, log.reload_handle());
            log.try_init()
        }
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

/// The filter of the log of a service, which can be changed while it runs.
struct LogFilter {
    configured: String,
    replace: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
}

static FILTER: OnceLock<LogFilter> = OnceLock::new();

fn keep<S: Send + Sync + 'static>(configured: String, handle: reload::Handle<EnvFilter, S>) {
    let replace = Box::new(move |filter| handle.reload(filter));
    // As the log, the first one stays.
    let _ = FILTER.set(LogFilter { configured, replace });
}

/// Changes the level of the log at each signal: all lines of the hub, or those of the settings. Never returns.
pub(super) async fn follow(mut signals: LogSignals) {
    loop {
        let signal = signals.next().await;
        let Some(LogFilter { configured, replace }) = FILTER.get() else { continue };
        let filter = match signal {
            LogSignal::Debug => format!("{configured},{}", of_the_hub("debug")),
            LogSignal::Configured => configured.clone(),
        };
        // The line is written at the lower of the two levels, so that it is in the log.
        if signal == LogSignal::Configured {
            LogLevelChanged { filter: &filter }.emit();
        }
        // Fails only if the log has ended.
        let replaced = replace(EnvFilter::new(&filter));
        if signal == LogSignal::Debug && replaced.is_ok() {
            LogLevelChanged { filter: &filter }.emit();
        }
    }
}

/// Prefixes of the hub's own log targets: the hub, and its crates.
const OWN_TARGETS: [&str; 2] = ["integration_hub", "hub_"];

/// The filter with each level that names no target limited to the hub. Libraries repeat what the hub logs, and their lines
/// may contain values of settings and events, so they log only if the filter names them.
pub(crate) fn of_the_hub(filter: &str) -> String {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |part: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part));
    let part = |part: &str| {
        if is_level(part) {
            OWN_TARGETS.map(|target| format!("{target}={part}")).join(",")
        } else {
            part.to_owned()
        }
    };
    let parts: Vec<String> =
        filter.split(',').map(str::trim).filter(|text| !text.is_empty()).map(part).collect();
    if parts.is_empty() { "off".to_owned() } else { parts.join(",") }
}

/// Writes the numbers of lines that were left out, and the queued text, for a limited time: the last step of a process.
pub fn finish() {
    write_rest_of_left_out();
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
    let message = bounded::middle(message, bounded::MAX_ERROR_BYTES);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printable::kept::KeptLog;

    #[test]
    fn a_level_alone_applies_to_the_hub_only() {
        for (given, expected) in [
            ("info", "integration_hub=info,hub_=info"),
            ("off", "integration_hub=off,hub_=off"),
            ("", "off"),
            (
                "warn, integration_hub::facts::nats=debug",
                "integration_hub=warn,hub_=warn,integration_hub::facts::nats=debug",
            ),
            ("info,async_nats=info", "integration_hub=info,hub_=info,async_nats=info"),
            ("sqlx=debug", "sqlx=debug"),
            ("sqlx", "sqlx"),
        ] {
            assert_eq!(of_the_hub(given), expected);
            assert!(EnvFilter::try_new(of_the_hub(given)).is_ok(), "{given}");
        }
    }

    #[test]
    fn libraries_log_only_if_the_filter_names_them() {
        let logged = |filter: &str| {
            let lines = KeptLog::default();
            let log = tracing_subscriber::fmt()
                .with_env_filter(EnvFilter::new(of_the_hub(filter)))
                .with_writer(lines.clone())
                .finish();
            tracing::subscriber::with_default(log, || {
                tracing::error!(target: "sqlx_postgres::options", "of-sqlx");
                tracing::error!(target: "lapin::channel", "of-lapin");
                tracing::warn!(target: "integration_hub::facts::nats", "of-hub");
                tracing::warn!(target: "hub_testkit", "of-testkit");
            });
            let text = lines.records().concat();
            ["of-sqlx", "of-lapin", "of-hub", "of-testkit"].map(|word| text.contains(word))
        };
        assert_eq!(logged("trace"), [false, false, true, true]);
        assert_eq!(logged("error"), [false, false, false, false]);
        assert_eq!(logged("warn,lapin=error"), [false, true, true, true]);
    }
}
