//! `hub provision`

use clap::Args;
use serde_json::json;

use super::connect;
use super::error::{Answer, CliError};
use super::output::{Printer, warn};
use crate::domain::words::counted;
use crate::nats::provision::{self, Drift, DriftKind};
use crate::settings::Settings;

#[derive(Debug, Args)]
pub(super) struct ProvisionOptions {
    /// Change nothing; print the differences between the server and the definitions, and exit with 1 if there are any
    #[arg(long)]
    check: bool,
}

pub(super) async fn run(
    options: ProvisionOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let js = connect(settings).await?;
    if let Some(max_payload) = crate::from_settings::less_than_events(settings, &js) {
        warn(&format!(
            "events.max_size: is {}, but the server accepts messages of at most {max_payload} bytes; raise max_payload of the \
             server, or lower events.max_size",
            settings.events.max_size
        ));
    }
    let stream_parameters = crate::from_settings::stream_parameters(settings);
    if options.check {
        let drifts = provision::check(&js, &stream_parameters).await?;
        if printer.is_json() {
            printer.json(&drifts)?;
        } else if drifts.is_empty() {
            printer.line("no drift: all streams and consumers match the definitions")?;
        } else {
            for drift in &drifts {
                printer.line(&drift.to_string())?;
            }
        }
        return Ok(if drifts.is_empty() { Answer::Yes } else { Answer::No });
    }
    let done = provision::apply(&js, &stream_parameters).await?;
    let moved = js.move_misplaced_entries().await?;
    if printer.is_json() {
        printer.json(&json!({
            "moved": moved,
            "created": done.created,
            "changed": done.changed,
            "kept": done.kept,
            "unchanged": done.unchanged,
        }))?;
        return Ok(Answer::Yes);
    }
    let created = done.created.iter().map(|what| vec!["created".to_owned(), what.clone(), String::new()]);
    let changed = done.changed.iter().map(|drift| row("changed", drift));
    let kept = done.kept.iter().map(|drift| row("kept", drift));
    let rows: Vec<_> = created.chain(changed).chain(kept).collect();
    if !rows.is_empty() {
        printer.table(&["ACTION", "WHAT", "DETAIL"], rows)?;
    }
    printer.line(&format!(
        "{} created, {} changed, {} kept (a change would lose messages), {} unchanged",
        done.created.len(),
        done.changed.len(),
        done.kept.len(),
        done.unchanged
    ))?;
    if moved > 0 {
        printer.line(&format!("{} moved, to a key with the tenant", counted(moved, "subscription")))?;
    }
    Ok(Answer::Yes)
}

fn row(action: &str, drift: &Drift) -> Vec<String> {
    let detail = match &drift.kind {
        DriftKind::Missing => "missing".to_owned(),
        DriftKind::Differs { field, wanted, found } => format!("{field}: {found} -> {wanted}"),
        DriftKind::WouldLose { field, wanted, found } => {
            format!("{field}: keeps {found}, because {wanted} would drop stored messages")
        }
    };
    vec![action.to_owned(), drift.what.clone(), detail]
}
