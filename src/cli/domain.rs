//! `hub domain`: lists, pauses and resumes domains.

use std::time::Duration;

use clap::Subcommand;

use super::error::{Answer, CliError};
use super::manage;
use super::output::{Printer, cell, time};
use crate::domain::duration;
use crate::management::domains::{DomainRow, Pause};
use crate::management::find_domain;
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub(super) enum DomainCommand {
    /// List domains with their event keys, pending envelopes, dead letters and state
    List,
    /// Pause deliveries of a domain; envelopes wait in its outbox, and no event is lost
    #[command(after_help = "Example:\n  hub domain pause user-lifecycle --for 2h")]
    Pause {
        /// Name of the domain
        name: String,
        /// Duration, for example 2h or 30m, at most 3650d [default: until resumed]
        #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
        duration: Option<Duration>,
    },
    /// Resume deliveries of a domain
    Resume {
        /// Name of the domain
        name: String,
    },
}

pub(super) async fn run(
    command: DomainCommand,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    match command {
        DomainCommand::List => list(settings, printer).await,
        DomainCommand::Pause { name, duration } => {
            find_domain(settings, &name)?;
            let pause = Pause::lasting(duration).map_err(CliError::InvalidOption)?;
            one(&manage(settings).await?.pause_domain(&name, &pause).await?, printer)
        }
        DomainCommand::Resume { name } => {
            find_domain(settings, &name)?;
            one(&manage(settings).await?.resume_domain(&name).await?, printer)
        }
    }
}

async fn list(settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let rows = manage(settings).await?.domains().await?;
    if printer.is_json() {
        printer.json(&rows)?;
        return Ok(Answer::Yes);
    }
    let head = ["DOMAIN", "STATE", "OUTBOX", "UNACKNOWLEDGED", "DLT", "CONCURRENCY", "EVENTS"];
    let cells = rows.into_iter().map(|row| {
        let state = state(&row);
        vec![
            row.name,
            state,
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

fn one(row: &DomainRow, printer: Printer) -> Result<Answer, CliError> {
    if printer.is_json() {
        printer.json(row)?;
    } else {
        printer.line(&format!("{}: {}", row.name, state(row)))?;
    }
    Ok(Answer::Yes)
}

fn state(row: &DomainRow) -> String {
    match (row.paused_lanes, row.paused_until) {
        (0, _) => "active".to_owned(),
        (some, _) if some < row.lanes => format!("{some} of {} lanes paused", row.lanes),
        (_, Some(until)) => format!("paused until {}", time(until)),
        (_, None) => "paused until resumed".to_owned(),
    }
}
