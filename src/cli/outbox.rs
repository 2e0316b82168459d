//! `hub outbox`: the transactional outbox in the producer's database.

mod list;
mod select;

use std::convert::Infallible;

use clap::{Args, Subcommand};
use secrecy::SecretString;
use serde_json::json;

use super::error::{Answer, CliError};
use super::output::{Printer, confirm, spinner, time, warn};
use crate::settings::Settings;
use crate::store::{Batch, Cursor, Retention, Store, StoreError, StoreOptions};
use select::Selected;

/// Rows that one statement changes: short transactions, whatever is asked for.
const BATCH: usize = 1_000;

#[derive(Debug, Args)]
pub struct Options {
    /// The producer's database: goes before outbox.database_url of the settings
    /// (HUB__OUTBOX__DATABASE_URL keeps its password out of the list of processes)
    #[arg(long, global = true, value_name = "URL", value_parser = secret)]
    database_url: Option<SecretString>,
    #[command(subcommand)]
    command: Command,
}

/// It holds a password, which no Debug is to show.
fn secret(text: &str) -> Result<SecretString, Infallible> {
    Ok(text.into())
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the outbox's tables and functions, or bring them to this version, and tell them the external
    /// brokers of the settings. May be run at any time
    Setup {
        /// Also forget the brokers that are not in the settings: published events no longer go to them
        #[arg(long)]
        prune: bool,
    },
    /// How many rows stand where, by target broker
    Status,
    /// The rows, in order of insertion
    List(list::Options),
    /// Send failed and abandoned rows again, with all their attempts
    Retry(Selected),
    /// Abandon pending and failed rows, unsent
    Discard {
        #[command(flatten)]
        selected: Selected,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Delete the published and abandoned rows that are older than the settings keep them
    Cleanup,
    /// Write the external rows of published events that are missing
    Reconcile,
}

pub async fn run(options: Options, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let url = options.database_url.or_else(|| settings.outbox.database_url.clone());
    let mut store = StoreOptions::new(url.ok_or(CliError::NoDatabase)?);
    store.timeout = settings.outbox.timeout;
    store.create = matches!(options.command, Command::Setup { .. });
    let store = Store::new(store)?;
    if !matches!(options.command, Command::Setup { .. }) {
        store.check().await?;
    }
    let answer = match options.command {
        Command::Setup { prune } => setup(&store, prune, settings, printer).await,
        Command::Status => status(&store, printer).await,
        Command::List(options) => list::run(options, &store, printer).await,
        Command::Retry(selected) => retry(&store, &selected, printer).await,
        Command::Discard { selected, yes } => discard(&store, &selected, yes, printer).await,
        Command::Cleanup => cleanup(&store, settings, printer).await,
        Command::Reconcile => reconcile(&store, printer).await,
    };
    store.close().await;
    answer
}

async fn setup(
    store: &Store,
    prune: bool,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let made = store.setup().await?;
    let names: Vec<String> = settings.external_brokers.iter().map(|broker| broker.name.clone()).collect();
    let brokers = store.sync_brokers(&names, prune).await?;
    if printer.is_json() {
        printer.json(&json!({"schema": made, "brokers": {
            "configured": names, "added": brokers.added, "removed": brokers.removed, "unconfigured": brokers.unconfigured,
        }}))?;
    } else {
        printer.line(&match (made.from, made.to) {
            (0, to) => format!("the outbox is set up, schema version {to}"),
            (from, to) if from == to => format!("the outbox was set up already, schema version {to}"),
            (from, to) => format!("the outbox went from schema version {from} to {to}"),
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
            "the settings do not have {}, to which published events still go: add them to [[external_brokers]], or run this with --prune",
            brokers.unconfigured.join(", ")
        ));
    }
    Ok(Answer::Yes)
}

async fn status(store: &Store, printer: Printer) -> Result<Answer, CliError> {
    let brokers = store.status().await?;
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

/// Goes through all batches; a failure tells how far it came.
async fn each_batch(
    verb: &'static str,
    mut batch: impl AsyncFnMut(&Cursor) -> Result<Batch, StoreError>,
) -> Result<u64, CliError> {
    let bar = spinner(verb);
    let (mut changed, mut next) = (0, Some(Cursor::default()));
    while let Some(after) = next {
        let done = batch(&after).await.map_err(|source| match changed {
            0 => CliError::Store(source),
            done => CliError::OutboxHalfway { verb, done, source },
        })?;
        changed += done.changed;
        bar.inc(done.changed);
        next = done.next;
    }
    bar.finish_and_clear();
    Ok(changed)
}

async fn retry(store: &Store, selected: &Selected, printer: Printer) -> Result<Answer, CliError> {
    let selection = selected.selection()?;
    selected.check_ids(store).await?;
    let changed = each_batch("retried", async |after| store.retry(&selection, after, BATCH).await).await?;
    told(printer, "retried", changed, "no failed or abandoned row matches")
}

async fn discard(
    store: &Store,
    selected: &Selected,
    yes: bool,
    printer: Printer,
) -> Result<Answer, CliError> {
    let selection = selected.selection()?;
    selected.check_ids(store).await?;
    let question = "Abandon all pending and failed rows that match, unsent?";
    if !confirm(question, yes)? {
        printer.line("nothing was discarded")?;
        return Ok(Answer::No);
    }
    let reason = "discarded by an operator";
    let changed =
        each_batch("discarded", async |after| store.discard(&selection, reason, after, BATCH).await).await?;
    told(printer, "discarded", changed, "no pending or failed row matches")
}

/// A change that changed nothing is an answer of its own.
fn told(printer: Printer, verb: &str, changed: u64, none: &str) -> Result<Answer, CliError> {
    if changed == 0 {
        return Err(CliError::NothingMatched(format!("{none}; nothing was {verb}")));
    }
    if printer.is_json() {
        printer.json(&json!({verb: changed}))?;
    } else {
        printer.line(&format!("{changed} {verb}"))?;
    }
    Ok(Answer::Yes)
}

async fn cleanup(store: &Store, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let outbox = &settings.outbox;
    let retention =
        Retention { published: outbox.published_retention, abandoned: outbox.abandoned_retention };
    let limit = outbox.cleanup_batch;
    let deleted = each_batch("deleted", async |_| {
        let changed = store.cleanup(retention, limit).await?;
        Ok(Batch { changed, next: (changed >= limit as u64).then(Cursor::default) })
    })
    .await?;
    counted(printer, "deleted", deleted)
}

async fn reconcile(store: &Store, printer: Printer) -> Result<Answer, CliError> {
    let derived = each_batch("written", async |after| store.reconcile(after, BATCH).await).await?;
    counted(printer, "written", derived)
}

fn counted(printer: Printer, verb: &str, count: u64) -> Result<Answer, CliError> {
    if printer.is_json() {
        printer.json(&json!({verb: count}))?;
    } else {
        printer.line(&format!("{count} {verb}"))?;
    }
    Ok(Answer::Yes)
}
