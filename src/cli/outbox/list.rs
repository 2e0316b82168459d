//! `hub outbox list`

use clap::Args;

use super::select::{RowSelectionOptions, note_unknown_broker};
use crate::cli::error::{Answer, CliError};
use crate::cli::output::{JsonArray, Printer, cell, note, time};
use crate::management::producer_outbox::{ProducerOutbox, Row, RowCursor};

/// Rows read at once.
const PAGE: usize = 1_000;

#[derive(Debug, Args)]
pub(super) struct OutboxListOptions {
    #[command(flatten)]
    filter: RowSelectionOptions,
    /// Maximum number of rows
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "all")]
    limit: u32,
    /// All rows, without a limit
    #[arg(long)]
    all: bool,
    /// Cursor to continue after: <position>:<broker> of the last row, as printed after the list.
    /// With --output json, take both fields from the last entry
    #[arg(long, value_name = "CURSOR")]
    after: Option<RowCursor>,
}

const HEAD: [&str; 11] = [
    "POSITION",
    "BROKER",
    "ID",
    "EVENT KEY",
    "STREAM",
    "PRIORITY",
    "STATUS",
    "ATTEMPTS",
    "RAISED AT",
    "DUE AT",
    "LAST ERROR",
];

pub(super) async fn run(
    options: OutboxListOptions,
    outbox: &ProducerOutbox,
    printer: Printer,
) -> Result<Answer, CliError> {
    let selection = options.filter.selection();
    let mut after = Some(options.after.unwrap_or_default());
    let mut left = if options.all { usize::MAX } else { options.limit as usize };
    let mut array = if printer.is_json() { Some(JsonArray::begin()) } else { None };
    let mut listed = 0;
    while let Some(cursor) = after.take_if(|_| left > 0) {
        let page = outbox.list(&selection, &cursor, left.min(PAGE)).await?;
        left -= page.rows.len();
        listed += page.rows.len();
        after = page.next;
        match &mut array {
            Some(array) => {
                for row in &page.rows {
                    array.push(row)?;
                }
            }
            None if page.rows.is_empty() => {}
            None => printer.page(&HEAD, page.rows.iter().map(cells))?,
        }
    }
    let cursor = after.map(|after| format!("more: --after {after}"));
    match array {
        Some(array) => {
            array.end()?;
            // Standard output holds the array only; its last entry holds the cursor, too.
            if let Some(cursor) = cursor {
                note(&cursor);
            }
        }
        None => match cursor {
            Some(cursor) => printer.line(&cursor)?,
            None if listed == 0 => printer.line("no rows")?,
            None => {}
        },
    }
    if listed == 0 {
        note_unknown_broker(outbox, &selection).await?;
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
        row.priority.as_str().to_owned(),
        row.status.to_string(),
        row.attempts.to_string(),
        time(row.created_at),
        or_dash(row.due_at.map(time)),
        or_dash(row.last_error.as_deref().map(|error| cell(error, 60))),
    ]
}
