//! Limits how often a line is repeated whose number events, endpoints or tenants decide.
//!
//! The limits are those of [`repeated_lines`](crate::domain::repeated_lines), for the whole process: a line that is left
//! out is written at the level DEBUG only, and the next one about the same thing has `repeated`, the number of those left
//! out. If none follows, [`write_left_out`] says so. Metrics count every one.
//!
//! While the NATS server does not answer, each task that needs it has an error. These lines are one kind, about one
//! thing, whichever sentence they have: one at the start, and one per interval.

use std::error::Error;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::Level;

use crate::domain::api_changes::{ApiChange, ApiChanges, ChangesLeftOut};
use crate::domain::repeated_lines::{LeftOut, LineDecision, RepeatedLines, Thing};
use crate::domain::subscription::SubscriptionRef;
use crate::nats::NatsError;
use crate::sinks;

/// A sentence of the log, and its level.
type LineKind = (Level, &'static str);

/// The kind of all lines that the silence of the server causes.
const SERVER_SILENT: LineKind = (Level::WARN, "the NATS server does not answer");
/// The default of `log.repeat_interval`, for programs that do not set it.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static LINES: LazyLock<Mutex<RepeatedLines<LineKind>>> =
    LazyLock::new(|| Mutex::new(RepeatedLines::new(DEFAULT_INTERVAL)));

static CHANGES: LazyLock<Mutex<ApiChanges>> = LazyLock::new(|| Mutex::new(ApiChanges::new(DEFAULT_INTERVAL)));

fn changes() -> MutexGuard<'static, ApiChanges> {
    CHANGES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lines() -> MutexGuard<'static, RepeatedLines<LineKind>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes each repeated line at most once per `interval`; each one if it is zero.
pub fn limit_repeated_lines(interval: Duration) {
    *lines() = RepeatedLines::new(interval);
    *changes() = ApiChanges::new(interval);
    sinks::limit_repeated_lines(interval);
}

/// Writes the numbers of lines that were left out and not followed by another; to be called every few seconds.
pub fn write_left_out() {
    let due = lines().due(START.elapsed());
    due.into_iter().for_each(summarize);
    let due = changes().due(START.elapsed());
    due.into_iter().for_each(summarize_changes);
    sinks::write_left_out();
}

/// Writes all numbers of lines that were left out, at the end of the process.
pub fn write_rest_of_left_out() {
    let rest = lines().rest();
    rest.into_iter().for_each(summarize);
    let rest = changes().rest();
    rest.into_iter().for_each(summarize_changes);
    sinks::write_rest_of_left_out();
}

fn summarize(left_out: LeftOut<LineKind>) {
    let LeftOut { kind: (level, line), about, count: repeated } = left_out;
    let [domain, tenant, subscription, about] =
        about.each_ref().map(|text| Some(text.as_str()).filter(|text| !text.is_empty()));
    match level {
        Level::ERROR => {
            tracing::error!(line, domain, tenant, subscription, about, repeated, "lines left out")
        }
        Level::WARN => tracing::warn!(line, domain, tenant, subscription, about, repeated, "lines left out"),
        _ => tracing::info!(line, domain, tenant, subscription, about, repeated, "lines left out"),
    }
}

/// The sentence of a change that was made through the API.
const CHANGE: &str = "API request";

/// Whether a change through the API has a line of its own.
pub(super) fn change_has_line(change: ApiChange<'_>) -> bool {
    changes().has_line(change, START.elapsed())
}

fn summarize_changes(left_out: ChangesLeftOut) {
    let ChangesLeftOut { caller, tenant, method, route, count: repeated } = &left_out;
    let [caller, tenant, method, route] =
        [caller, tenant, method, route].map(|text| Some(text.as_str()).filter(|text| !text.is_empty()));
    tracing::info!(line = CHANGE, method, route, tenant, caller, repeated, "lines left out");
}

/// What a line is about: lines about the same thing are repetitions of each other.
#[derive(Clone, Copy, Default)]
pub(super) struct About<'a> {
    thing: Thing<'a>,
    server_silent: bool,
}

impl<'a> About<'a> {
    pub(super) fn domain(domain: &'a str) -> Self {
        Self { thing: Thing { domain, ..Thing::default() }, server_silent: false }
    }

    pub(super) fn detail(detail: &'a str) -> Self {
        Self::default().with(detail)
    }

    /// The NATS server, which does not answer.
    pub(super) fn server_silent() -> Self {
        Self { server_silent: true, ..Self::default() }
    }

    pub(super) fn of(self, subscription: &'a SubscriptionRef) -> Self {
        self.of_parts(subscription.tenant(), subscription.id())
    }

    pub(super) fn of_parts(mut self, tenant: &'a str, subscription: &'a str) -> Self {
        (self.thing.tenant, self.thing.subscription) = (tenant, subscription);
        self
    }

    pub(super) fn with(mut self, detail: &'a str) -> Self {
        self.thing.detail = detail;
        self
    }

    /// Why the line is written: an unreachable server is a thing of its own.
    pub(super) fn cause(mut self, error: &(dyn Error + 'static)) -> Self {
        self.server_silent = is_server_silent(error);
        self
    }
}

/// Whether the NATS server cannot be reached or does not answer, by the type of the error or of its sources.
fn is_server_silent(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<NatsError>() {
            return error.is_unreachable() || matches!(error, NatsError::NotConnected);
        }
        next = error.source();
    }
    false
}

/// Decides about one line.
pub(super) fn turn(level: Level, line: &'static str, about: About<'_>) -> LineDecision {
    let (kind, thing) = match about.server_silent {
        true => (SERVER_SILENT, Thing::default()),
        false => ((level, line), about.thing),
    };
    lines().turn(kind, thing, START.elapsed())
}

/// Writes a line within the limits: `limited!(WARN "sentence", about; fields)`.
macro_rules! limited {
    ($level:ident $line:literal, $about:expr; $($fields:tt)+) => {
        if tracing::enabled!(tracing::Level::$level) {
            match $crate::facts::limited::turn(tracing::Level::$level, $line, $about) {
                $crate::domain::repeated_lines::LineDecision::Write { left_out } => {
                    let repeated = Some(left_out).filter(|left_out| *left_out > 0);
                    tracing::event!(tracing::Level::$level, $($fields)+, repeated, $line);
                }
                $crate::domain::repeated_lines::LineDecision::LeaveOut => tracing::debug!($($fields)+, $line),
            }
        }
    };
}
pub(super) use limited;
