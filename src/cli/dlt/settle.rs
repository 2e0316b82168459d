//! `hub dlt replay` and `hub dlt discard`: change many dead letters, with progress.

use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;

use super::drain;
use super::select::{DeadLetterSelectionOptions, explain};
use crate::cli::error::{Answer, CliError};
use crate::cli::manage;
use crate::cli::output::{Printer, confirm, progress, spinner};
use crate::domain::duration;
use crate::domain::words::counted;
use crate::management::dead_letter_actions::{Followed, Replayed, SelectedDeadLetter};
use crate::management::dead_letters::DeadLetterQuery;
use crate::management::{Management, domain_names};
use crate::settings::Settings;

#[derive(Debug, Args)]
pub(super) struct DltSelection {
    /// Ids, as printed by `hub dlt list`
    ids: Vec<String>,
    #[command(flatten)]
    filter: DeadLetterSelectionOptions,
    /// All dead letters
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayOptions {
    #[command(flatten)]
    selection: DltSelection,
    /// Replay at the pace at which the outbox and each subscription have room, until none is left; for many dead letters,
    /// or a full dead-letter stream. It can be interrupted and started again; exit with 1 if some are left that can be
    /// replayed
    #[arg(long, conflicts_with_all = ["ids", "force", "wait"])]
    drain: bool,
    /// Time without progress after which --drain ends
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::parse)]
    patience: Duration,
    /// Also replay dead letters with a replay in progress, if their envelopes are known to be lost: each is sent once more
    #[arg(long)]
    force: bool,
    /// Wait until each dead letter is delivered or has failed again; exit with 1 if not all were delivered
    #[arg(long)]
    wait: bool,
    /// Maximum duration of --wait
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::parse)]
    timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct DiscardOptions {
    #[command(flatten)]
    selection: DltSelection,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn replay(
    options: ReplayOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    if options.drain {
        let filter = resolve(&options.selection, settings)?;
        return drain::run(&filter, options.patience, settings, printer).await;
    }
    let (hub, selected) = select(&options.selection, settings).await?;
    let bar = progress(selected.len(), "replaying");
    let replayed = hub.replay(&selected, options.force, |done, total| moved(&bar, done, total)).await?;
    bar.finish_and_clear();

    let mut shown = serde_json::to_value(replayed).map_err(|error| CliError::Output(error.into()))?;
    if !printer.is_json() {
        printer.line(&ordered_line(&replayed))?;
    }
    let mut answer = Answer::Yes;
    if options.wait {
        // Also waits for dead letters whose replay was in progress before.
        let awaited = hub.deliverable(&selected).await?;
        let bar = progress(awaited.len(), "waiting");
        let settled = |now: Followed| bar.set_position((now.delivered + now.failed + now.discarded) as u64);
        let Followed { delivered, failed, on_their_way, discarded } =
            hub.follow(&awaited, options.timeout, settled).await?;
        bar.finish_and_clear();
        if delivered < selected.len() {
            answer = Answer::No;
        }
        shown["delivered"] = json!(delivered);
        shown["failed"] = json!(failed);
        shown["on_their_way"] = json!(on_their_way);
        shown["discarded"] = json!(discarded);
        if !printer.is_json() {
            let meanwhile =
                if discarded > 0 { format!(", {discarded} discarded meanwhile") } else { String::new() };
            printer.line(&format!(
                "{delivered} delivered, {failed} failed again, {on_their_way} still in progress{meanwhile}"
            ))?;
        }
    }
    if printer.is_json() {
        printer.json(&shown)?;
    }
    Ok(answer)
}

fn ordered_line(replayed: &Replayed) -> String {
    let Replayed { ordered, already_replaying: already, removed, .. } = *replayed;
    let mut line = format!("{} started", counted(ordered, "replay"));
    if already > 0 {
        line.push_str(&format!("; {already} already in progress (use --force to send them once more)"));
    }
    if removed > 0 {
        line.push_str(&format!("; {removed} skipped, because their subscription was removed"));
    }
    line
}

pub(super) async fn discard(
    options: DiscardOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let (hub, selected) = select(&options.selection, settings).await?;
    let replaying = selected.iter().filter(|one| one.replaying).count();
    let mut question = format!("Discard {} without delivery?", counted(selected.len(), "dead letter"));
    if replaying > 0 {
        question.push_str(&format!(
            " A replay of {replaying} of them is in progress; a request in flight may still be delivered."
        ));
    }
    if !confirm(&question, options.yes)? {
        printer.line("nothing was discarded")?;
        return Ok(Answer::No);
    }
    let bar = progress(selected.len(), "discarding");
    hub.discard(&selected, |done, total| moved(&bar, done, total)).await?;
    bar.finish_and_clear();
    if printer.is_json() {
        printer.json(&json!({"discarded": selected.len()}))?;
    } else {
        printer.line(&format!("{} discarded", counted(selected.len(), "dead letter")))?;
    }
    Ok(Answer::Yes)
}

fn moved(bar: &ProgressBar, done: usize, total: usize) {
    bar.set_length(total as u64);
    bar.set_position(done as u64);
}

/// Checks the selection.
fn resolve(selection: &DltSelection, settings: &Settings) -> Result<DeadLetterQuery, CliError> {
    let DltSelection { ids, filter, all } = selection;
    let filter = filter.resolve(ids)?;
    match (all, filter.means_all() && filter.tenant.is_none()) {
        (false, true) => {
            return Err(CliError::Usage(
                "no dead letters selected; use ids, --domain, --tenant, --subscription, --reason, --state, --event-key, \
                 --since, --until, or --all"
                    .to_owned(),
            ));
        }
        (true, false) => {
            return Err(CliError::Usage(
                "--all: cannot be combined with ids or filters; use one or the other".to_owned(),
            ));
        }
        _ => {}
    }
    domain_names(settings, &filter.domains)?;
    Ok(filter)
}

async fn select(
    selection: &DltSelection,
    settings: &Settings,
) -> Result<(Management, Vec<SelectedDeadLetter>), CliError> {
    let filter = resolve(selection, settings)?;
    let hub = manage(settings).await?;
    let bar = spinner("selecting");
    let selected = hub.select_dead_letters(&filter, |seen| bar.set_position(seen as u64)).await;
    bar.finish_and_clear();
    Ok((hub, selected.map_err(explain)?))
}
