//! `hub event`: one event's story.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use time::OffsetDateTime;

use super::dlt::Moment;
use super::error::{Answer, CliError};
use super::manage;
use super::output::{Printer, cell, warn};
use crate::domain::subscription::SubscriptionRef;
use crate::domain::trace::Step;
use crate::management::domain_names;
use crate::management::traces::{TraceRequest, Traced};
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// An event's whole story: every step from its publication to each subscriber's last state
    Trace(TraceOptions),
}

#[derive(Debug, Args)]
pub struct TraceOptions {
    /// The event's id: what it was published with, or <events stream>-<sequence>
    id: String,
    /// Look into these domains alone; repeat it or separate by commas
    #[arg(long = "domain", value_name = "NAME", value_delimiter = ',')]
    domains: Vec<String>,
    /// Only what happened at or after: a time, such as 2026-01-31T08:00:00Z, or how long ago, such as 2h
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// Look for so long at most, and tell what was found until then
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub async fn run(command: Command, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    match command {
        Command::Trace(options) => trace(options, settings, printer).await,
    }
}

async fn trace(options: TraceOptions, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    domain_names(settings, &options.domains)?;
    let request = TraceRequest {
        event_id: options.id.clone(),
        domains: options.domains,
        since: options.since.map(|since| since.resolve(OffsetDateTime::now_utc())),
        tenant: None,
        timeout: options.timeout,
    };
    let Traced { trace, complete } = manage(settings).await?.trace_event(&request).await?;
    if !complete {
        warn(&format!(
            "not all streams were read within {}; narrow it with --domain or --since, or give more with --timeout",
            humantime::format_duration(options.timeout)
        ));
    }
    let Some(trace) = trace else {
        return Err(CliError::NothingMatched(format!(
            "nothing is known of the event {:?}{}: it was never published, nobody wanted it, or everything of it is \
             delivered and not in the delivery log (delivery.log is {:?}, kept for {})",
            options.id,
            if complete { "" } else { " so far" },
            settings.delivery.log.to_string(),
            humantime::format_duration(settings.limits.attempts_max_age)
        )));
    };
    if printer.is_json() {
        let mut shown = serde_json::to_value(&trace).map_err(|error| CliError::Output(error.into()))?;
        shown["complete"] = json!(complete);
        printer.json(&shown)?;
        return Ok(Answer::Yes);
    }
    printer.table(
        &["TIME", "STEP", "SUBSCRIPTION", "ATTEMPT", "OUTCOME", "STATUS", "MS", "DETAIL"],
        trace.timeline.iter().map(row),
    )?;
    if !trace.subscribers.is_empty() {
        printer.line("")?;
        printer.table(
            &["SUBSCRIPTION", "DOMAIN", "STATE", "ATTEMPTS", "LAST STATUS", "NEXT REDRIVE", "ENVELOPE"],
            trace.subscribers.iter().map(|one| {
                vec![
                    named(one.tenant.as_deref(), &one.subscription),
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

fn row(step: &Step) -> Vec<String> {
    vec![
        milliseconds(step.at),
        step.what.as_str().to_owned(),
        step.subscription.as_deref().map_or_else(|| "-".to_owned(), |id| named(step.tenant.as_deref(), id)),
        or_dash(step.attempt),
        step.outcome.map_or("-", |outcome| outcome.as_str()).to_owned(),
        or_dash(step.status),
        or_dash(step.latency_ms),
        step.detail.as_deref().map_or_else(|| "-".to_owned(), |text| cell(text, 60)),
    ]
}

/// `crm`, or `acme/crm`.
fn named(tenant: Option<&str>, id: &str) -> String {
    tenant
        .and_then(|tenant| SubscriptionRef::of(tenant, id))
        .map_or_else(|| id.to_owned(), |name| name.to_string())
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// RFC 3339 to the millisecond, in UTC: steps follow each other closely.
fn milliseconds(at: OffsetDateTime) -> String {
    // A producer may name a time whose UTC form has another year than can be written.
    let Some(at) = at.checked_to_offset(time::UtcOffset::UTC) else { return super::output::time(at) };
    let second = super::output::time(at);
    format!("{}.{:03}Z", second.trim_end_matches('Z'), at.millisecond())
}
