//! `hub outbox`: manages the producer outbox.

mod list;
mod select;

use std::convert::Infallible;

use clap::{Args, Subcommand};
use secrecy::SecretString;
use serde_json::json;

use super::error::{Answer, CliError};
use super::output::{Printer, confirm, spinner, time, warn};
use crate::management::ManagementError;
use crate::management::producer_outbox::{BatchRun, ChangedRows, ProducerOutbox, SetUpReport, Store};
use crate::settings::{Pooler, Settings};
use hub_outbox::StoreOptions;
use select::RowArguments;

#[derive(Debug, Args)]
pub(super) struct OutboxOptions {
    /// URL of the producer's database; overrides outbox.database_url. Prefer HUB__OUTBOX__DATABASE_URL, which keeps the
    /// password out of the process list
    #[arg(long, global = true, value_name = "URL", value_parser = secret)]
    database_url: Option<SecretString>,
    #[command(subcommand)]
    command: OutboxCommand,
}

/// Hides the URL in `Debug`, because it holds a password.
fn secret(text: &str) -> Result<SecretString, Infallible> {
    Ok(text.into())
}

#[derive(Debug, Subcommand)]
enum OutboxCommand {
    /// Create or migrate the outbox schema, and register the configured external brokers; safe to repeat
    Setup {
        /// Also unregister brokers that are not configured; events are no longer published to them
        #[arg(long)]
        prune: bool,
    },
    /// Count rows by target broker and status
    Status,
    /// List rows in order of insertion
    #[command(after_help = "Example:\n  hub outbox list --status failed,abandoned --broker internal")]
    List(list::OutboxListOptions),
    /// Retry failed and abandoned rows; their attempts start again at 0
    #[command(after_help = "Example:\n  hub outbox retry --broker partner_events --status abandoned")]
    Retry(RowArguments),
    /// Abandon pending and failed rows without sending them
    Discard {
        #[command(flatten)]
        selected: RowArguments,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
    /// Delete published and abandoned rows older than outbox.published_retention and outbox.abandoned_retention
    Cleanup,
    /// Write missing rows of published events for external brokers
    Reconcile,
}

pub(super) async fn run(
    options: OutboxOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let url = options.database_url.or_else(|| settings.outbox.database_url.clone());
    let mut store = StoreOptions::new(url.ok_or(CliError::NoDatabase)?);
    store.timeout = settings.outbox.timeout;
    store.is_pooled = settings.outbox.pooler == Pooler::Transaction;
    store.create = matches!(options.command, OutboxCommand::Setup { .. });
    let outbox = ProducerOutbox::new(Store::new(store)?, settings);
    if !matches!(options.command, OutboxCommand::Setup { .. }) {
        outbox.check().await?;
    }
    let answer = match options.command {
        OutboxCommand::Setup { prune } => setup(&outbox, prune, settings, printer).await,
        OutboxCommand::Status => status(&outbox, printer).await,
        OutboxCommand::List(options) => list::run(options, &outbox, printer).await,
        OutboxCommand::Retry(selected) => retry(&outbox, &selected, printer).await,
        OutboxCommand::Discard { selected, yes } => discard(&outbox, &selected, yes, printer).await,
        OutboxCommand::Cleanup => {
            let done = with_progress("deleted", async |course| outbox.cleanup(course).await).await?;
            counted(printer, "deleted", done)
        }
        OutboxCommand::Reconcile => {
            let done = with_progress("written", async |course| outbox.reconcile(course).await).await?;
            counted(printer, "written", done)
        }
    };
    outbox.close().await;
    answer
}

async fn setup(
    outbox: &ProducerOutbox,
    prune: bool,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let names: Vec<String> = settings.outbox_brokers().map(|broker| broker.name.clone()).collect();
    let SetUpReport { schema: made, brokers } = outbox.set_up(&names, prune).await?;
    if printer.is_json() {
        printer.json(&json!({"schema": made, "brokers": {
            "configured": names, "added": brokers.added, "removed": brokers.removed, "unconfigured": brokers.unconfigured,
        }}))?;
    } else {
        printer.line(&match (made.from, made.to) {
            (0, to) => format!("outbox schema created, version {to}"),
            (from, to) if from == to => format!("outbox schema is up to date, version {to}"),
            (from, to) => format!("outbox schema migrated from version {from} to {to}"),
        })?;
        let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        printer.line(&format!("external brokers: {}", list(&names)))?;
        for (what, names) in [("added", &brokers.added), ("removed", &brokers.removed)] {
            if !names.is_empty() {
                printer.line(&format!("{what}: {}", names.join(", ")))?;
            }
        }
    }
    if !brokers.unconfigured.is_empty() {
        warn(&format!(
            "registered but not configured: {}; events are still published to them. Add them to [[external_brokers]] with \
             outbox = true, or unregister them with --prune",
            brokers.unconfigured.join(", ")
        ));
    }
    Ok(Answer::Yes)
}

async fn status(outbox: &ProducerOutbox, printer: Printer) -> Result<Answer, CliError> {
    let brokers = outbox.status().await?;
    if printer.is_json() {
        printer.json(&brokers)?;
        return Ok(Answer::Yes);
    }
    let head =
        ["BROKER", "CONFIGURED", "PENDING", "PROCESSING", "FAILED", "PUBLISHED", "ABANDONED", "OLDEST OPEN"];
    let rows = brokers.into_iter().map(|row| {
        let counts = [row.pending, row.processing, row.failed, row.published, row.abandoned];
        let configured = if row.configured { "yes" } else { "no" };
        let mut cells = vec![row.broker, configured.to_owned()];
        cells.extend(counts.iter().map(u64::to_string));
        cells.push(row.oldest_open_at.map_or_else(|| "-".to_owned(), time));
        cells
    });
    printer.table(&head, rows)?;
    Ok(Answer::Yes)
}

type Progress = Box<dyn FnMut(u64) + Send>;

/// Runs a change without a time limit, and shows its progress.
async fn with_progress(
    verb: &'static str,
    change: impl AsyncFnOnce(BatchRun<Progress>) -> Result<ChangedRows, ManagementError>,
) -> Result<u64, CliError> {
    let bar = spinner(verb);
    let seen = bar.clone();
    let done = change(BatchRun::unlimited(Box::new(move |rows| seen.inc(rows)))).await;
    bar.finish_and_clear();
    Ok(done?.rows)
}

async fn retry(
    outbox: &ProducerOutbox,
    selected: &RowArguments,
    printer: Printer,
) -> Result<Answer, CliError> {
    let selection = selected.selection()?;
    outbox.check_ids(&selection).await?;
    match with_progress("retried", async |course| outbox.retry(&selection, course).await).await? {
        0 => Err(nothing("retried", "failed or abandoned")),
        retried => counted(printer, "retried", retried),
    }
}

async fn discard(
    outbox: &ProducerOutbox,
    selected: &RowArguments,
    yes: bool,
    printer: Printer,
) -> Result<Answer, CliError> {
    let selection = selected.selection()?;
    outbox.check_ids(&selection).await?;
    let question = "Abandon all matching pending and failed rows without sending them?";
    if !confirm(question, yes)? {
        printer.line("nothing was discarded")?;
        return Ok(Answer::No);
    }
    match with_progress("discarded", async |course| outbox.discard(&selection, course).await).await? {
        0 => Err(nothing("discarded", "pending or failed")),
        discarded => counted(printer, "discarded", discarded),
    }
}

/// The result of a change that matched no row.
fn nothing(verb: &str, statuses: &str) -> CliError {
    CliError::NothingMatched(format!("no {statuses} row matches; nothing was {verb}"))
}

fn counted(printer: Printer, verb: &str, count: u64) -> Result<Answer, CliError> {
    if printer.is_json() {
        printer.json(&json!({verb: count}))?;
    } else {
        printer.line(&format!("{count} {verb}"))?;
    }
    Ok(Answer::Yes)
}
