//! `hub dlt stats`

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::Serialize;
use time::OffsetDateTime;

use super::select::{PAGE, Pages, chosen};
use crate::cli::connect;
use crate::cli::error::{Answer, CliError};
use crate::cli::output::{Printer, spinner, time};
use crate::domain::dead_letter::State;
use crate::domain::outcome::Reason;
use crate::nats::DeadLetterQuery;
use crate::settings::Settings;

/// Subscriptions in the table; `--output json` has all.
const MOST_IN_TABLE: usize = 20;

#[derive(Debug, Clone, Copy, Serialize)]
struct Count {
    count: u64,
    /// When the oldest of them failed.
    #[serde(with = "time::serde::rfc3339")]
    oldest: OffsetDateTime,
}

#[derive(Debug, Serialize)]
struct ByDomain {
    domain: String,
    reason: Reason,
    state: State,
    #[serde(flatten)]
    count: Count,
}

#[derive(Debug, Serialize)]
struct BySubscription {
    subscription: String,
    #[serde(flatten)]
    count: Count,
}

#[derive(Debug, Serialize)]
struct Stats {
    total: u64,
    #[serde(with = "time::serde::rfc3339::option")]
    oldest: Option<OffsetDateTime>,
    by_domain: Vec<ByDomain>,
    /// Most first.
    by_subscription: Vec<BySubscription>,
}

impl Count {
    fn add<K: Ord>(counts: &mut BTreeMap<K, Count>, key: K, failed_at: OffsetDateTime) {
        let count = counts.entry(key).or_insert(Count { count: 0, oldest: failed_at });
        count.count += 1;
        count.oldest = count.oldest.min(failed_at);
    }
}

pub async fn run(names: &[String], settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let domains = chosen(names, settings)?;
    let js = connect(settings).await?;
    let stats = count(Pages::new(&js, DeadLetterQuery::default(), domains)).await?;
    if printer.is_json() {
        printer.json(&stats)?;
        return Ok(Answer::Yes);
    }
    if stats.total == 0 {
        printer.line("no dead letters")?;
        return Ok(Answer::Yes);
    }
    let rows = stats.by_domain.iter().map(|row| {
        vec![
            row.domain.clone(),
            row.reason.to_string(),
            row.state.to_string(),
            row.count.count.to_string(),
            time(row.count.oldest),
        ]
    });
    printer.table(&["DOMAIN", "REASON", "STATE", "COUNT", "OLDEST"], rows)?;
    printer.line("")?;
    let rows = stats
        .by_subscription
        .iter()
        .take(MOST_IN_TABLE)
        .map(|row| vec![row.subscription.clone(), row.count.count.to_string(), time(row.count.oldest)]);
    printer.table(&["SUBSCRIPTION", "COUNT", "OLDEST"], rows)?;
    let more = stats.by_subscription.len().saturating_sub(MOST_IN_TABLE);
    if more > 0 {
        printer.line(&format!("and {more} more subscriptions: --output json has all"))?;
    }
    printer.line(&format!("\n{} in all", stats.total))?;
    Ok(Answer::Yes)
}

async fn count(mut pages: Pages<'_>) -> Result<Stats, CliError> {
    let (mut by_domain, mut by_subscription) = (BTreeMap::new(), BTreeMap::new());
    let progress = spinner("counting");
    while let Some(page) = pages.next(PAGE).await? {
        progress.inc(page.len() as u64);
        for entry in page {
            let letter = entry.letter;
            Count::add(&mut by_domain, (letter.domain, letter.reason, letter.state), letter.failed_at);
            Count::add(&mut by_subscription, letter.subscription, letter.failed_at);
        }
    }
    progress.finish_and_clear();
    let by_domain: Vec<ByDomain> = by_domain
        .into_iter()
        .map(|((domain, reason, state), count)| ByDomain { domain, reason, state, count })
        .collect();
    let mut by_subscription: Vec<BySubscription> = by_subscription
        .into_iter()
        .map(|(subscription, count)| BySubscription { subscription, count })
        .collect();
    by_subscription.sort_by_key(|row| Reverse(row.count.count));
    Ok(Stats {
        total: by_domain.iter().map(|row| row.count.count).sum(),
        oldest: by_domain.iter().map(|row| row.count.oldest).min(),
        by_domain,
        by_subscription,
    })
}
