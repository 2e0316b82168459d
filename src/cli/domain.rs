//! `hub domain`: what each domain owes, and pausing its deliveries.

use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::{Answer, CliError};
use super::output::{Printer, cell, time};
use super::{connect, find_domain};
use crate::domain::duration;
use crate::nats::JetStream;
use crate::nats::subjects::lane_of_consumer;
use crate::settings::{Domain, Settings};

/// JetStream pauses until a time; this far away it stands for "until resumed".
const UNTIL_RESUMED: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Every domain: its events, what waits in its outbox and its dead letters, whether it is paused
    List,
    /// Stop the deliveries of a domain; events wait in its outbox, and other domains go on
    Pause {
        /// The domain
        name: String,
        /// How long, such as 2h or 30m; until it is resumed where not given
        #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
        duration: Option<Duration>,
    },
    /// Go on with the deliveries of a domain
    Resume {
        /// The domain
        name: String,
    },
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    events: Vec<String>,
    concurrency: usize,
    /// Envelopes in the outbox: all that is still owed.
    outbox: u64,
    /// Those of them that were handed out and are not settled.
    in_flight: u64,
    /// Unresolved dead letters.
    dlt: u64,
    lanes: usize,
    paused: bool,
    /// RFC 3339; null where not paused, or paused until resumed.
    paused_until: Option<String>,
    #[serde(skip)]
    state: String,
}

pub async fn run(command: Command, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    match command {
        Command::List => list(settings, printer).await,
        Command::Pause { name, duration } => {
            let domain = find_domain(settings, &name)?;
            let until = OffsetDateTime::now_utc() + duration.unwrap_or(UNTIL_RESUMED);
            let text = until.format(&Rfc3339).map_err(|error| {
                CliError::Usage(format!(
                    "--for: the time it leads to cannot be written ({error}); give a shorter one"
                ))
            })?;
            set_pause(&connect(settings).await?, domain, Some(&text), printer).await
        }
        Command::Resume { name } => {
            let domain = find_domain(settings, &name)?;
            set_pause(&connect(settings).await?, domain, None, printer).await
        }
    }
}

async fn list(settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let js = connect(settings).await?;
    let mut rows = Vec::new();
    for domain in &settings.domains {
        rows.push(look(&js, domain).await?);
    }
    if printer.is_json() {
        printer.json(&rows)?;
        return Ok(Answer::Yes);
    }
    let head = ["DOMAIN", "STATE", "OUTBOX", "IN FLIGHT", "DLT", "CONCURRENCY", "EVENTS"];
    let cells = rows.into_iter().map(|row| {
        vec![
            row.name,
            row.state,
            row.outbox.to_string(),
            row.in_flight.to_string(),
            row.dlt.to_string(),
            row.concurrency.to_string(),
            cell(&row.events.join(" "), 60),
        ]
    });
    printer.table(&head, cells)?;
    Ok(Answer::Yes)
}

async fn look(js: &JetStream, domain: &Domain) -> Result<Row, CliError> {
    let outbox = js.names().outbox_stream(&domain.name);
    let depth = js.stream_info(&outbox).await?.state.messages;
    let dlt = js.stream_info(&js.names().dlt_stream(&domain.name)).await?.state.messages;
    let (mut in_flight, mut paused, mut until) = (0, 0, None);
    let lanes = lanes(js, &outbox).await?;
    for lane in &lanes {
        let info = js.consumer_info(&outbox, lane).await?;
        in_flight += info.num_ack_pending;
        if info.paused {
            paused += 1;
            let text = info.config.get("pause_until").and_then(serde_json::Value::as_str);
            until = until.max(text.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok()));
        }
    }
    // Beyond any pause that a person would give in hours.
    let until = until.filter(|until| *until < OffsetDateTime::now_utc() + UNTIL_RESUMED / 2).map(time);
    let state = match (paused, &until) {
        (0, _) => "active".to_owned(),
        (some, _) if some < lanes.len() => format!("{some} of {} lanes paused", lanes.len()),
        (_, Some(until)) => format!("paused until {until}"),
        (_, None) => "paused until resumed".to_owned(),
    };
    Ok(Row {
        name: domain.name.clone(),
        events: domain.events.iter().map(ToString::to_string).collect(),
        concurrency: domain.concurrency,
        outbox: depth,
        in_flight,
        dlt,
        lanes: lanes.len(),
        paused: paused > 0,
        paused_until: until,
        state,
    })
}

/// The durables of an outbox's lanes.
async fn lanes(js: &JetStream, outbox: &str) -> Result<Vec<String>, CliError> {
    let names = js.consumer_names(outbox).await?;
    Ok(names.into_iter().filter(|name| lane_of_consumer(name).is_some()).collect())
}

async fn set_pause(
    js: &JetStream,
    domain: &Domain,
    until: Option<&str>,
    printer: Printer,
) -> Result<Answer, CliError> {
    let outbox = js.names().outbox_stream(&domain.name);
    let lanes = lanes(js, &outbox).await?;
    if lanes.is_empty() {
        return Err(CliError::NotProvisioned { subject: format!("the lanes of {outbox}") });
    }
    for lane in &lanes {
        js.pause_consumer(&outbox, lane, until).await?;
    }
    let row = look(js, domain).await?;
    if printer.is_json() {
        printer.json(&row)?;
    } else {
        printer.line(&format!("{}: {}", row.name, row.state))?;
    }
    Ok(Answer::Yes)
}
