//! `hub dlt list`

use clap::Args;

use super::select::{DeadLetterSelectionOptions, explain, note_unknown_names};
use crate::cli::error::{Answer, CliError};
use crate::cli::manage;
use crate::cli::output::{JsonArray, Printer, cell, note, or_dash, time};
use crate::management::dead_letters::{Cursor, PAGE};
use crate::management::domain_names;
use crate::nats::DeadLetterEntry;
use crate::settings::Settings;

#[derive(Debug, Args)]
pub(crate) struct DltListOptions {
    #[command(flatten)]
    filter: DeadLetterSelectionOptions,
    /// Maximum number of dead letters
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "all")]
    limit: u32,
    /// All dead letters, without a limit
    #[arg(long)]
    all: bool,
    /// Cursor to continue after: <domain>/<sequence> of the last dead letter, as printed after the list.
    /// With --output json, take both fields from the last entry
    #[arg(long, value_name = "CURSOR")]
    after: Option<Cursor>,
}

const HEAD: [&str; 12] = [
    "ID",
    "DOMAIN",
    "SUBSCRIPTION",
    "TENANT",
    "EVENT KEY",
    "REASON",
    "FAULT",
    "STATE",
    "ATTEMPTS",
    "LAST ERROR",
    "FAILED AT",
    "NEXT REDRIVE",
];

pub(super) async fn run(
    options: DltListOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let filter = options.filter.resolve(&[])?;
    domain_names(settings, &filter.domains)?;
    let hub = manage(settings).await?;
    let mut pages = hub.dead_letter_pages(&filter)?;
    if let Some(cursor) = &options.after {
        pages = pages.after(cursor).map_err(explain)?;
    }
    let mut left = if options.all { usize::MAX } else { options.limit as usize };
    let mut array = if printer.is_json() { Some(JsonArray::begin()) } else { None };
    let mut listed = 0;
    while left > 0 {
        let Some(page) = pages.next(left.min(PAGE)).await? else { break };
        left -= page.len();
        listed += page.len();
        match &mut array {
            Some(array) => {
                for entry in &page {
                    array.push(entry)?;
                }
            }
            None => printer.page(&HEAD, page.iter().map(row))?,
        }
    }
    if listed == 0 {
        hub.confirm_leader().await?;
    }
    let cursor = if left == 0 { pages.cursor().await? } else { None };
    match array {
        Some(array) => {
            array.end()?;
            // Standard output holds the array only; its last entry holds the cursor, too.
            if let Some(cursor) = cursor {
                note(&format!("more: --after {cursor}"));
            }
        }
        None => match cursor {
            Some(cursor) => printer.line(&format!("more: --after {cursor}"))?,
            None if listed == 0 => printer.line("no dead letters")?,
            None => {}
        },
    }
    if listed == 0 {
        note_unknown_names(&hub, &filter).await?;
    }
    Ok(Answer::Yes)
}

fn row(entry: &DeadLetterEntry) -> Vec<String> {
    let letter = &entry.letter;
    // The status is left out if the error begins with it.
    let error = match (&letter.last_error, letter.last_status) {
        (Some(error), Some(status)) if !error.starts_with(&status.to_string()) => format!("{status} {error}"),
        (Some(error), _) => error.clone(),
        (None, Some(status)) => status.to_string(),
        (None, None) => "-".to_owned(),
    };
    vec![
        letter.id.clone(),
        letter.domain.clone(),
        or_dash(&letter.subscription),
        or_dash(&letter.tenant),
        letter.event_key.clone(),
        letter.reason.to_string(),
        letter.fault.to_string(),
        letter.state.to_string(),
        letter.attempts.to_string(),
        cell(&error, 40),
        time(letter.failed_at),
        letter.next_redrive_at.map_or_else(|| "-".to_owned(), time),
    ]
}
