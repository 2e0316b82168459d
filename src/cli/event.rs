//! `hub event`: traces an event.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use time::OffsetDateTime;

use super::dlt::Moment;
use super::error::{Answer, CliError};
use super::manage;
use super::output::{Printer, cell, warn};
use crate::domain::duration;
use crate::domain::trace::TraceStep;
use crate::domain::words::span;
use crate::management::domain_names;
use crate::management::traces::{TraceRequest, Traced};
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub(super) enum EventCommand {
    /// Trace an event: every step from its publication to the last state of each of its envelopes
    #[command(
        after_help = "Examples:\n  hub event trace e-1\n  hub event trace e-1 --since 2h --domain user-lifecycle"
    )]
    Trace(TraceOptions),
}

#[derive(Debug, Args)]
pub(super) struct TraceOptions {
    /// Id of the event: the id it was published with, or <events stream>-<sequence>
    #[arg(value_parser = event_id)]
    id: String,
    /// Domains to search; repeatable, or separated by commas [default: all]
    #[arg(long = "domain", value_name = "NAME", value_delimiter = ',')]
    domains: Vec<String>,
    /// Start of the search: a time, for example 2026-01-31T08:00:00Z, or an age, for example 2h
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// Maximum duration of the search; after it, the steps found so far are printed
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration::parse)]
    timeout: Duration,
}

/// Refuses an empty id, which no event has.
fn event_id(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err(
            "must not be empty; write the id that `hub publish` printed, such as HUB_EVENTS-17".to_owned()
        );
    }
    Ok(text.to_owned())
}

pub(super) async fn run(
    command: EventCommand,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    match command {
        EventCommand::Trace(options) => trace(options, settings, printer).await,
    }
}

async fn trace(options: TraceOptions, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let request = TraceRequest {
        event_id: options.id.clone(),
        domains: domain_names(settings, &options.domains)?,
        since: options.since.map(|since| since.resolve(OffsetDateTime::now_utc())),
        tenant: None,
        timeout: options.timeout,
    };
    let Traced { trace, complete } = manage(settings).await?.trace_event(&request).await?;
    if trace.is_none() && !complete {
        return Err(CliError::TraceCut { id: options.id, timeout: options.timeout });
    }
    if !complete {
        warn(&format!(
            "not all streams were read within {}; narrow the search with --domain or --since, or raise --timeout",
            span(options.timeout)
        ));
    }
    let Some(trace) = trace else {
        return Err(CliError::NothingMatched(format!(
            "no trace of the event {:?} in the domains {}: it was not published, no subscription matched it (or it was \
             paused), it belongs to a domain that these settings do not have, or it was delivered and is not in the \
             delivery log (delivery.log = {:?}, kept for {}); check the tenant and the key with `hub subscription match`",
            options.id,
            request.domains.join(", "),
            settings.delivery.log.to_string(),
            span(settings.limits.attempts_max_age)
        )));
    };
    if printer.is_json() {
        let mut shown = serde_json::to_value(&trace).map_err(|error| CliError::Output(error.into()))?;
        shown["complete"] = json!(complete);
        printer.json(&shown)?;
        return Ok(Answer::Yes);
    }
    printer.table(
        &["TIME", "STEP", "SUBSCRIPTION", "TENANT", "ATTEMPT", "OUTCOME", "STATUS", "MS", "DETAIL"],
        trace.timeline.iter().map(row),
    )?;
    if !trace.subscribers.is_empty() {
        printer.line("")?;
        printer.table(
            &[
                "SUBSCRIPTION",
                "TENANT",
                "DOMAIN",
                "STATE",
                "ATTEMPTS",
                "LAST STATUS",
                "NEXT REDRIVE",
                "ENVELOPE",
            ],
            trace.subscribers.iter().map(|one| {
                vec![
                    one.subscription.clone(),
                    or_dash(one.tenant.as_deref()),
                    one.domain.clone(),
                    one.state.as_str().to_owned(),
                    one.attempts.to_string(),
                    or_dash(one.last_status),
                    one.next_redrive_at.map_or_else(|| "-".to_owned(), super::output::time),
                    one.envelope.clone(),
                ]
            }),
        )?;
    }
    Ok(Answer::Yes)
}

fn row(step: &TraceStep) -> Vec<String> {
    vec![
        milliseconds(step.at),
        step.what.as_str().to_owned(),
        or_dash(step.subscription.as_deref()),
        or_dash(step.tenant.as_deref()),
        or_dash(step.attempt),
        step.outcome.map_or("-", |outcome| outcome.as_str()).to_owned(),
        or_dash(step.status),
        or_dash(step.latency_ms),
        step.detail.as_deref().map_or_else(|| "-".to_owned(), |text| cell(text, 60)),
    ]
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Formats a time by RFC 3339, to the millisecond, in UTC.
fn milliseconds(at: OffsetDateTime) -> String {
    // A producer may set a time whose year in UTC is outside the range of RFC 3339.
    let Some(at) = at.checked_to_offset(time::UtcOffset::UTC) else { return super::output::time(at) };
    let second = super::output::time(at);
    format!("{}.{:03}Z", second.trim_end_matches('Z'), at.millisecond())
}
