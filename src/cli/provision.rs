//! `hub provision`

use clap::Args;
use serde_json::json;

use super::connect;
use super::error::{Answer, CliError};
use super::output::{Printer, warn};
use crate::domain::backlog::size;
use crate::domain::shared_settings::{SharedSettings, for_people};
use crate::domain::words::counted;
use crate::nats::JetStream;
use crate::nats::definitions::StreamParameters;
use crate::nats::provision::join::{self, Joinable, Joining};
use crate::nats::provision::{self, Drift, DriftKind, field_value};
use crate::settings::Settings;

#[derive(Debug, Args)]
pub(super) struct ProvisionOptions {
    /// Change nothing; print the differences between the server and the definitions, and exit with 1 if there are any
    #[arg(long)]
    check: bool,
    /// Create the subscription registry if it is missing, or accept the one that was created in its place; subscriptions
    /// that it lacks are removed
    #[arg(long, conflicts_with = "check")]
    create_registry: bool,
}

pub(super) async fn run(
    options: ProvisionOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let js = connect(settings).await?;
    if let Some(max_payload) = crate::from_settings::less_than_events(settings, &js) {
        warn(&format!(
            "events.max_size: is {}, but the server accepts messages of at most {}; raise max_payload of the server, or \
             lower events.max_size",
            size::exact(settings.events.max_size.as_u64()),
            size::exact(max_payload)
        ));
    }
    let stream_parameters = crate::from_settings::stream_parameters(settings);
    let shared = crate::from_settings::shared_settings(settings);
    if options.check {
        return check(&js, &stream_parameters, &shared, printer).await;
    }
    let joining = Joining::Provision { create_registry: options.create_registry };
    let done = join::join(&js, &stream_parameters, &shared, joining).await?;
    for (bucket, lost) in &done.lost {
        warn(&format!("{bucket}: was missing and is created again, empty: {lost}"));
    }
    if let Some(unreadable) = &done.unreadable {
        warn(&format!("the recorded settings were unreadable, and are replaced by these: {unreadable}"));
    }
    for (domain, envelopes) in &done.left_behind {
        warn(&format!(
            "domain {domain}: removed from the settings, but {} wait in its outbox; add the domain again until they are \
             delivered",
            counted(*envelopes, "envelope")
        ));
    }
    let moved = js.move_misplaced_entries().await?;
    if printer.is_json() {
        printer.json(&json!({
            "moved": moved,
            "created": done.created,
            "changed": done.changed,
            "kept": done.kept,
            "settings": done.replaced,
            "unchanged": done.unchanged,
        }))?;
        return Ok(Answer::Yes);
    }
    let created = done.created.iter().map(|what| vec!["created".to_owned(), what.clone(), String::new()]);
    let changed = done.changed.iter().map(|drift| row("changed", drift));
    let kept = done.kept.iter().map(|drift| row("kept", drift));
    let settings = done.replaced.iter().map(|one| {
        let (here, recorded) = (shown(&one.here), shown(&one.recorded));
        vec!["recorded".to_owned(), one.setting.clone(), format!("{recorded} -> {here}")]
    });
    let rows: Vec<_> = created.chain(changed).chain(kept).chain(settings).collect();
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

/// Prints the differences of streams, consumers and shared settings, and the state of the registry.
async fn check(
    js: &JetStream,
    stream_parameters: &StreamParameters,
    shared: &SharedSettings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let drifts = provision::check(js, stream_parameters).await?;
    let Joinable { differences, unreadable, registry } = join::check_joining(js, shared).await?;
    let agrees = drifts.is_empty() && differences.is_empty() && unreadable.is_none() && registry.is_none();
    if printer.is_json() {
        let settings = differences.iter().map(|one| {
            let (field, wanted, found) = (&one.setting, &one.here, &one.recorded);
            json!({
                "what": "settings",
                "kind": {"kind": "differs", "field": field, "wanted": wanted, "found": found},
            })
        });
        let registry = registry
            .iter()
            .map(|error| json!({"what": "registry", "kind": {"kind": "lost", "detail": error.to_string()}}));
        let unreadable = unreadable.iter().map(
            |error| json!({"what": "settings", "kind": {"kind": "unreadable", "detail": error.to_string()}}),
        );
        let drifts = drifts.iter().map(|drift| json!(drift));
        printer.json(&drifts.chain(settings).chain(unreadable).chain(registry).collect::<Vec<_>>())?;
    } else if agrees {
        printer.line("no drift: all streams, consumers and shared settings match the definitions")?;
    } else {
        for drift in &drifts {
            printer.line(&drift.to_string())?;
        }
        if !differences.is_empty() {
            let rows = differences.iter().map(|one| {
                vec![one.setting.clone(), shown(&one.here), shown(&one.recorded), REMEDY.to_owned()]
            });
            printer.table(&["SETTING", "HERE", "RECORDED", "REMEDY"], rows)?;
        }
        for error in unreadable.iter().chain(&registry) {
            printer.line(&error.to_string())?;
        }
    }
    Ok(if agrees { Answer::Yes } else { Answer::No })
}

/// What to do about a difference of a setting.
const REMEDY: &str = "set the recorded value, or run `hub provision`";

fn shown(value: &Option<String>) -> String {
    value.as_deref().map_or_else(|| "(not set)".to_owned(), for_people)
}

fn row(action: &str, drift: &Drift) -> Vec<String> {
    let detail = match &drift.kind {
        DriftKind::Missing => "missing".to_owned(),
        DriftKind::Differs { field, wanted, found } => {
            format!("{field}: {} -> {}", field_value(field, found), field_value(field, wanted))
        }
        DriftKind::WouldLose { field, wanted, found } => {
            let (found, wanted) = (field_value(field, found), field_value(field, wanted));
            format!("{field}: keeps {found}, because {wanted} would drop stored messages")
        }
    };
    vec![action.to_owned(), drift.what.clone(), detail]
}
