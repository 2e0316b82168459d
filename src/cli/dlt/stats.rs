//! `hub dlt stats`

use crate::cli::error::{Answer, CliError};
use crate::cli::manage;
use crate::cli::output::{Printer, or_dash, spinner, time};
use crate::management::dead_letters::DeadLetterQuery;
use crate::management::domain_names;
use crate::settings::Settings;

/// Maximum number of subscriptions in the table; `--output json` has all.
const MOST_IN_TABLE: usize = 20;

pub(super) async fn run(names: &[String], settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    domain_names(settings, names)?;
    let hub = manage(settings).await?;
    let filter = DeadLetterQuery { domains: names.to_vec(), ..DeadLetterQuery::default() };
    let progress = spinner("counting");
    let stats = hub.dead_letter_stats(&filter, |seen| progress.set_position(seen)).await?;
    progress.finish_and_clear();
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
    let rows = stats.by_subscription.iter().take(MOST_IN_TABLE).map(|row| {
        vec![
            or_dash(&row.subscription),
            or_dash(&row.tenant),
            row.count.count.to_string(),
            time(row.count.oldest),
        ]
    });
    printer.table(&["SUBSCRIPTION", "TENANT", "COUNT", "OLDEST"], rows)?;
    let more = stats.by_subscription.len().saturating_sub(MOST_IN_TABLE);
    if more > 0 {
        printer.line(&format!("and {more} more; print all with --output json"))?;
    }
    printer.lines(&format!("\n{} in total", stats.total))?;
    Ok(Answer::Yes)
}
