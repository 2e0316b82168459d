//! `hub outbox list`

use clap::Args;

use super::select::Filter;
use crate::cli::error::{Answer, CliError};
use crate::cli::output::{JsonArray, Printer, cell, time};
use crate::store::{Cursor, Row, Store};

/// Rows read at once.
const PAGE: usize = 1_000;

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    filter: Filter,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "all")]
    limit: u32,
    /// All of them
    #[arg(long)]
    all: bool,
    /// Go on where the list before ended, with the cursor it printed
    #[arg(long, value_name = "CURSOR", value_parser = cursor)]
    after: Option<Cursor>,
}

/// `<position>:<broker>`
fn cursor(text: &str) -> Result<Cursor, String> {
    let read = || {
        let (position, broker) = text.split_once(':')?;
        Some(Cursor { position: position.parse().ok()?, broker: broker.to_owned() })
    };
    read().ok_or_else(|| "write it as the list before printed it, such as 120:internal".to_owned())
}

const HEAD: [&str; 11] = [
    "POSITION",
    "BROKER",
    "ID",
    "EVENT KEY",
    "STREAM",
    "LANE",
    "STATUS",
    "ATTEMPTS",
    "RAISED AT",
    "DUE AT",
    "LAST ERROR",
];

pub async fn run(options: Options, store: &Store, printer: Printer) -> Result<Answer, CliError> {
    let selection = options.filter.selection();
    let mut after = options.after.unwrap_or_default();
    let mut left = if options.all { usize::MAX } else { options.limit as usize };
    let mut array = if printer.is_json() { Some(JsonArray::begin()?) } else { None };
    let (mut listed, mut more) = (0, false);
    while left > 0 {
        // One more than is shown tells whether there is more.
        let wanted = left.min(PAGE);
        let mut page = store.list(&selection, &after, wanted + 1).await?;
        more = page.len() > wanted;
        page.truncate(wanted);
        let Some(last) = page.last() else { break };
        after = Cursor { position: last.position, broker: last.broker.clone() };
        left -= page.len();
        listed += page.len();
        match &mut array {
            Some(array) => {
                for row in &page {
                    array.push(row)?;
                }
            }
            None => printer.table(&HEAD, page.iter().map(cells))?,
        }
        if !more {
            break;
        }
    }
    let cursor = more.then(|| format!("more: --after {}:{}", after.position, after.broker));
    match array {
        Some(array) => {
            array.end()?;
            // Standard output is the array alone.
            if let Some(cursor) = cursor {
                eprintln!("{cursor}");
            }
        }
        None => match cursor {
            Some(cursor) => printer.line(&cursor)?,
            None if listed == 0 => printer.line("no rows")?,
            None => {}
        },
    }
    Ok(Answer::Yes)
}

fn cells(row: &Row) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        row.position.to_string(),
        row.broker.clone(),
        cell(&row.message_id, 40),
        row.event_type.clone(),
        cell(&row.stream, 40),
        row.lane.as_str().to_owned(),
        row.status.to_string(),
        row.attempts.to_string(),
        time(row.created_at),
        or_dash(row.due_at.map(time)),
        or_dash(row.last_error.as_deref().map(|error| cell(error, 60))),
    ]
}
