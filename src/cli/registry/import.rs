//! `hub registry import`: validates the whole file and compares it with the registry before it writes anything.

use std::path::PathBuf;

use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use crate::cli::error::{Answer, CliError};
use crate::cli::output::Printer;
use crate::cli::{connect, read_input};
use crate::domain::registry_backup;
use crate::domain::subscription::{Subscription, SubscriptionRef};
use crate::nats::provision::join;
use crate::nats::{JetStream, NatsError, RegistryEntry};
use crate::seal::{Sealer, open_settings, open_subscription};
use crate::settings::Settings;

/// Concurrent reads and writes of the registry.
const AT_ONCE: usize = 64;

#[derive(Debug, Args)]
pub(in crate::cli) struct ImportOptions {
    /// Backup that `hub registry export` wrote; - reads standard input
    #[arg(long, short, value_name = "FILE")]
    file: PathBuf,
    /// Replace subscriptions of the registry that differ from the file
    #[arg(long)]
    overwrite: bool,
    /// Restore a registry that was lost: create it, import the file, and only then let the hub continue
    #[arg(long)]
    create_registry: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Action {
    Created,
    Replaced,
    Unchanged,
    /// Changed by someone else meanwhile; not written.
    Conflict,
}

/// One subscription of the file.
struct Planned {
    name: SubscriptionRef,
    subscription: Subscription,
    /// The revision that the write expects.
    revision: u64,
    action: Action,
}

#[derive(Debug, Serialize)]
struct Imported {
    id: String,
    tenant: String,
    action: Action,
    revision: u64,
}

pub(super) async fn run(
    options: ImportOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let document = options.file.display().to_string();
    let read = registry_backup::read(&read_input(&options.file)?)
        .map_err(|source| CliError::Backup { document: document.clone(), source })?;
    let settings = open_settings(settings, |_| true)?;
    if let Some(sealer) = Sealer::from_settings(&settings.secrets)? {
        refuse_foreign_secrets(&read, &sealer, &document)?;
    }
    let js = connect(&settings).await?;
    let parameters = crate::from_settings::stream_parameters(&settings);
    let lost = match js.check_registry().await {
        Ok(()) => false,
        Err(error) if error.is_registry_lost() && options.create_registry => {
            join::create_registry_bucket(&js, &parameters).await?;
            true
        }
        Err(error) => return Err(error.into()),
    };
    let planned: Vec<Planned> = stream::iter(read)
        .map(|(name, subscription)| plan(&js, name, subscription, lost))
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let differing = planned.iter().filter(|one| one.action == Action::Replaced);
    let names: Vec<String> = differing.map(|one| one.name.to_string()).collect();
    if !names.is_empty() && !options.overwrite {
        return Err(CliError::ImportConflict { names });
    }
    let imported: Vec<Imported> =
        stream::iter(planned).map(|one| carry_out(&js, one)).buffered(AT_ONCE).try_collect().await?;
    let conflicts: Vec<String> =
        imported.iter().filter(|one| one.action == Action::Conflict).map(|one| one.id.clone()).collect();
    // The hub continues after the last subscription is back, so that no event misses one.
    if lost && conflicts.is_empty() {
        join::accept_registry(&js, &parameters).await?;
    }
    if printer.is_json() {
        printer.json(&imported)?;
    } else {
        let rows = imported.into_iter().map(|one| {
            let action = match one.action {
                Action::Created => "created",
                Action::Replaced => "replaced",
                Action::Unchanged => "unchanged",
                Action::Conflict => "conflict",
            };
            vec![one.id, one.tenant, action.to_owned(), one.revision.to_string()]
        });
        printer.table(&["ID", "TENANT", "ACTION", "REVISION"], rows)?;
    }
    if conflicts.is_empty() { Ok(Answer::Yes) } else { Err(CliError::Conflict { ids: conflicts.join(", ") }) }
}

/// Refuses a backup whose secrets no key of these settings opens: deliveries would fail.
fn refuse_foreign_secrets(
    read: &[(SubscriptionRef, Subscription)],
    sealer: &Sealer,
    document: &str,
) -> Result<(), CliError> {
    let problems: Vec<String> = read
        .iter()
        .filter_map(|(name, subscription)| {
            let error = open_subscription(sealer, &mut subscription.clone()).err()?;
            Some(format!("{name}: {error}"))
        })
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(CliError::Invalid { document: document.to_owned(), problems })
    }
}

/// Compares one subscription with the registry. A lost registry is not trusted with the absence of an entry, and its
/// entries are read as they are.
async fn plan(
    js: &JetStream,
    name: SubscriptionRef,
    subscription: Subscription,
    lost: bool,
) -> Result<Planned, NatsError> {
    let entry = if lost { js.entry_of_lost_registry(&name).await? } else { js.registry_entry(&name).await? };
    let RegistryEntry { revision, subscription: stored, unreadable } = entry;
    let action = match (&stored, &unreadable) {
        (None, None) => Action::Created,
        (Some((stored, _)), None) if is_same(stored, &subscription) => Action::Unchanged,
        _ => Action::Replaced,
    };
    Ok(Planned { name, subscription, revision, action })
}

fn is_same(one: &Subscription, other: &Subscription) -> bool {
    matches!((serde_json::to_value(one), serde_json::to_value(other)), (Ok(one), Ok(other)) if one == other)
}

async fn carry_out(js: &JetStream, planned: Planned) -> Result<Imported, NatsError> {
    let Planned { name, subscription, revision, action } = planned;
    let (action, revision) = match action {
        Action::Unchanged | Action::Conflict => (action, revision),
        Action::Created | Action::Replaced => {
            match js.put_subscription(&subscription, Some(revision)).await {
                Ok(written) => (action, written),
                Err(error) if error.is_wrong_last_sequence() => (Action::Conflict, revision),
                Err(error) => return Err(error),
            }
        }
    };
    Ok(Imported { id: name.id().to_owned(), tenant: name.tenant().to_owned(), action, revision })
}
