//! `hub dlt replay` and `hub dlt discard`: many at once, with progress.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt as _, stream};
use indicatif::ProgressBar;
use serde_json::json;
use tokio::time::Instant;

use super::select::{Filter, PAGE, Pages};
use crate::cli::connect;
use crate::cli::error::{Answer, CliError};
use crate::cli::output::{Printer, confirm, progress, spinner};
use crate::domain::dead_letter::State;
use crate::domain::duration;
use crate::nats::{DeadLetterQuery, JetStream, NatsError, RedriveOrder};
use crate::settings::Settings;

/// Orders and deletions under way at once.
const AT_ONCE: usize = 256;
/// How often replayed dead letters are looked at; the server tells nobody when one is dropped.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub struct Selection {
    /// The ids, as `hub dlt list` shows them
    ids: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// All dead letters
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub struct ReplayOptions {
    #[command(flatten)]
    selection: Selection,
    /// Also those that are on their way again, whose envelope you know to be gone: each is sent once more
    #[arg(long)]
    force: bool,
    /// Wait until each is delivered or has failed again; exit with 1 if not all were delivered
    #[arg(long)]
    wait: bool,
    /// Longest wait of --wait
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::parse)]
    timeout: Duration,
}

#[derive(Debug, Args)]
pub struct DiscardOptions {
    #[command(flatten)]
    selection: Selection,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Where one selected dead letter stands.
#[derive(Debug, Clone)]
struct Selected {
    domain: String,
    sequence: u64,
    id: String,
    replaying: bool,
}

pub async fn replay(
    options: ReplayOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let (js, selected) = select(&options.selection, settings).await?;
    let total = selected.len();
    let ordered: Vec<&Selected> = selected.iter().filter(|one| options.force || !one.replaying).collect();
    let already = total - ordered.len();
    let order = if options.force { RedriveOrder::OperatorForce } else { RedriveOrder::Operator };
    let bar = progress(ordered.len(), "ordering");
    let acts = ordered.iter().map(|one| js.order_redrive(&one.domain, one.sequence, order));
    each(acts, "ordered", &bar).await?;

    let mut shown = json!({"selected": total, "ordered": ordered.len(), "already_replaying": already});
    if !printer.is_json() {
        printer.line(&ordered_line(ordered.len(), already))?;
    }
    let mut answer = Answer::Yes;
    if options.wait {
        // Those that were on their way already are waited for as well.
        let Outcome { delivered, failed, on_their_way } = follow(&js, &selected, options.timeout).await?;
        if delivered < total {
            answer = Answer::No;
        }
        shown["delivered"] = json!(delivered);
        shown["failed"] = json!(failed);
        shown["on_their_way"] = json!(on_their_way);
        if !printer.is_json() {
            printer.line(&format!(
                "{delivered} delivered, {failed} failed again, {on_their_way} still on their way"
            ))?;
        }
    }
    if printer.is_json() {
        printer.json(&shown)?;
    }
    Ok(answer)
}

fn ordered_line(ordered: usize, already: usize) -> String {
    let mut line = format!("{ordered} ordered to be sent again");
    if already > 0 {
        line.push_str(&format!("; {already} on their way already (--force sends them once more)"));
    }
    line
}

pub async fn discard(
    options: DiscardOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let (js, selected) = select(&options.selection, settings).await?;
    let replaying = selected.iter().filter(|one| one.replaying).count();
    let mut question = format!("Discard {} dead letters, undelivered?", selected.len());
    if replaying > 0 {
        question
            .push_str(&format!(" {replaying} of them are on their way again and may still be delivered."));
    }
    if !confirm(&question, options.yes)? {
        printer.line("nothing was discarded")?;
        return Ok(Answer::No);
    }
    let bar = progress(selected.len(), "discarding");
    let acts = selected.iter().map(|one| js.drop_dead_letter(&one.domain, one.sequence));
    each(acts, "discarded", &bar).await?;
    if printer.is_json() {
        printer.json(&json!({"discarded": selected.len()}))?;
    } else {
        printer.line(&format!("{} discarded", selected.len()))?;
    }
    Ok(Answer::Yes)
}

/// All that are meant, before anything is done to them: what is put there meanwhile is not.
async fn select(selection: &Selection, settings: &Settings) -> Result<(JetStream, Vec<Selected>), CliError> {
    let Selection { ids, filter, all } = selection;
    if ids.is_empty() && filter.is_empty() && !all {
        return Err(CliError::Usage(
            "say which: ids, --domain, --subscription, --reason, --state, --event-key, --since, --until, or --all"
                .to_owned(),
        ));
    }
    if *all && !(ids.is_empty() && filter.is_empty()) {
        return Err(CliError::Usage(
            "--all means every dead letter; give it alone, or leave it out".to_owned(),
        ));
    }
    let domains = filter.domain_names(settings)?;
    let mut query = filter.query();
    query.ids = ids.iter().cloned().collect();
    let js = connect(settings).await?;
    let mut selected = Vec::new();
    let bar = spinner("selecting");
    let mut pages = Pages::new(&js, query, domains);
    while let Some(page) = pages.next(PAGE).await? {
        bar.inc(page.len() as u64);
        selected.extend(page.into_iter().map(|entry| Selected {
            sequence: entry.sequence,
            replaying: entry.letter.state == State::Replaying,
            domain: entry.letter.domain,
            id: entry.letter.id,
        }));
    }
    bar.finish_and_clear();
    let found: HashSet<&str> = selected.iter().map(|one| one.id.as_str()).collect();
    let missing: Vec<&str> = ids.iter().map(String::as_str).filter(|id| !found.contains(id)).collect();
    if !missing.is_empty() {
        return Err(CliError::NothingMatched(format!(
            "no dead letter {} matches; nothing was done. `hub dlt list` shows those that are there",
            missing.join(", ")
        )));
    }
    if selected.is_empty() {
        return Err(CliError::NothingMatched("no dead letter matches; nothing was done".to_owned()));
    }
    Ok((js, selected))
}

/// Runs all, many at once; stops at the first failure and tells how far it came.
async fn each(
    acts: impl ExactSizeIterator<Item = impl Future<Output = Result<(), NatsError>>>,
    verb: &'static str,
    bar: &ProgressBar,
) -> Result<(), CliError> {
    let total = acts.len();
    let mut results = std::pin::pin!(stream::iter(acts).buffer_unordered(AT_ONCE));
    let mut done = 0;
    while let Some(result) = results.next().await {
        result.map_err(|source| CliError::Halfway { verb, done, total, source })?;
        done += 1;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

struct Outcome {
    delivered: usize,
    failed: usize,
    on_their_way: usize,
}

/// Looks until none of them stands any more, or the time is up. One that is gone was delivered,
/// unless one of the same id stands behind it: that is its successor, which failed again.
async fn follow(js: &JetStream, ordered: &[Selected], limit: Duration) -> Result<Outcome, CliError> {
    let deadline = Instant::now() + limit;
    let mut waiting: BTreeMap<&str, HashMap<u64, &str>> = BTreeMap::new();
    for one in ordered {
        waiting.entry(&one.domain).or_default().insert(one.sequence, &one.id);
    }
    let mut outcome = Outcome { delivered: 0, failed: 0, on_their_way: ordered.len() };
    let mut seen: HashMap<&str, (u64, u64)> = HashMap::new();
    let bar = progress(ordered.len(), "waiting");
    loop {
        for (domain, pending) in waiting.iter_mut().filter(|(_, pending)| !pending.is_empty()) {
            // Counted before it is read: what changes in between is read again.
            let state = js.stream_info(&js.names().dlt_stream(domain)).await?.state;
            if seen.insert(domain, (state.messages, state.last_seq)) == Some((state.messages, state.last_seq))
            {
                continue;
            }
            let (standing, newest) = standing(js, domain, pending).await?;
            pending.retain(|sequence, id| {
                if standing.contains(sequence) {
                    return true;
                }
                let failed = newest.get(*id).is_some_and(|newer| newer > sequence);
                *(if failed { &mut outcome.failed } else { &mut outcome.delivered }) += 1;
                false
            });
        }
        outcome.on_their_way = waiting.values().map(HashMap::len).sum();
        bar.set_position((ordered.len() - outcome.on_their_way) as u64);
        if outcome.on_their_way == 0 || Instant::now() >= deadline {
            bar.finish_and_clear();
            return Ok(outcome);
        }
        tokio::time::sleep_until(deadline.min(Instant::now() + LOOK_EVERY)).await;
    }
}

/// Which of the pending sequences stand in the stream, and the newest sequence of each id.
async fn standing(
    js: &JetStream,
    domain: &str,
    pending: &HashMap<u64, &str>,
) -> Result<(HashSet<u64>, HashMap<String, u64>), CliError> {
    let query = DeadLetterQuery {
        ids: pending.values().map(|id| (*id).to_owned()).collect(),
        ..DeadLetterQuery::default()
    };
    let (mut standing, mut newest) = (HashSet::new(), HashMap::new());
    let mut pages = Pages::new(js, query, vec![domain.to_owned()]);
    while let Some(page) = pages.next(PAGE).await? {
        for entry in page {
            if pending.contains_key(&entry.sequence) {
                standing.insert(entry.sequence);
            }
            newest.insert(entry.letter.id, entry.sequence);
        }
    }
    Ok((standing, newest))
}
