//! `hub subscription apply`: checks all subscriptions before it writes any.

use std::path::Path;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use super::read::{document, label, read};
use crate::cli::error::{Answer, CliError};
use crate::cli::output::{Printer, warn};
use crate::cli::{manage_sealed, operator};
use crate::domain::subscription::{Secret, Subscription};
use crate::management::{
    Management, ManagementError, PlannedWrite, WriteAction, categories, patterns_without_domain,
};
use crate::seal::Sealer;
use crate::settings::Settings;

/// Concurrent reads and writes of the registry.
const AT_ONCE: usize = 64;

#[derive(Debug, Serialize)]
struct Applied {
    id: String,
    tenant: String,
    action: WriteAction,
    revision: u64,
}

pub(super) async fn run(file: &Path, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let subscriptions = read(file, settings)?;
    warn_of_patterns_without_domain(&subscriptions, settings);
    if Sealer::from_settings(&settings.secrets)?.is_none() {
        refuse_plain_secrets(&subscriptions)?;
    }
    let management = manage_sealed(settings).await?;
    let writes = plan(&management, subscriptions, &document(file)).await?;
    let applied: Vec<Applied> = stream::iter(&writes)
        .map(|write| carry_out(&management, write))
        .buffered(AT_ONCE)
        .try_collect()
        .await?;

    let conflicts: Vec<String> =
        applied.iter().filter(|one| one.action == WriteAction::Conflict).map(|one| one.id.clone()).collect();
    if printer.is_json() {
        printer.json(&applied)?;
    } else {
        let rows = applied
            .into_iter()
            .map(|one| vec![one.id, one.tenant, one.action.as_str().to_owned(), one.revision.to_string()]);
        printer.table(&["ID", "TENANT", "ACTION", "REVISION"], rows)?;
    }
    if conflicts.is_empty() { Ok(Answer::Yes) } else { Err(CliError::Conflict { ids: conflicts.join(", ") }) }
}

/// Warns of patterns that no domain of these settings can feed: a hub with the same settings rejects such events.
fn warn_of_patterns_without_domain(subscriptions: &[Subscription], settings: &Settings) {
    let categories = categories(settings);
    for (position, subscription) in subscriptions.iter().enumerate() {
        for pattern in patterns_without_domain(&categories, subscription) {
            warn(&format!(
                "{}: events: these settings have no domain for {:?}; the running hub decides by its own. Add the pattern to \
                 a [[domains]] entry of every process and of the command line",
                label(position, Some(subscription.id.as_str())),
                pattern.as_str()
            ));
        }
    }
}

fn refuse_plain_secrets(subscriptions: &[Subscription]) -> Result<(), CliError> {
    let with_secrets: Vec<&str> = subscriptions
        .iter()
        .filter(|subscription| {
            (*subscription).clone().secrets_mut().iter().any(|secret| matches!(secret, Secret::Plain(_)))
        })
        .map(|subscription| subscription.id.as_str())
        .collect();
    if with_secrets.is_empty() {
        return Ok(());
    }
    Err(CliError::no_master_key(with_secrets.join(", ")))
}

/// Plans the write of each subscription, with its secrets sealed; writes nothing.
async fn plan(
    management: &Management,
    subscriptions: Vec<Subscription>,
    document: &str,
) -> Result<Vec<PlannedWrite>, CliError> {
    let caller = &operator();
    let planned: Vec<_> = stream::iter(subscriptions.into_iter().enumerate())
        .map(|(position, subscription)| async move {
            let label = label(position, Some(subscription.id.as_str()));
            (label, management.plan_write(caller, subscription).await)
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    let (mut writes, mut problems) = (Vec::new(), Vec::new());
    for (label, planned) in planned {
        match planned {
            Ok(write) => writes.push(write),
            Err(ManagementError::Invalid(errors) | ManagementError::SecretsNeeded(errors)) => {
                problems.extend(errors.into_iter().map(|error| format!("{label}: {error}")));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if problems.is_empty() {
        Ok(writes)
    } else {
        Err(CliError::Invalid { document: document.to_owned(), problems })
    }
}

async fn carry_out(management: &Management, write: &PlannedWrite) -> Result<Applied, ManagementError> {
    let (revision, action) = management.write_subscription(write).await?;
    let Subscription { id, tenant, .. } = &write.subscription;
    Ok(Applied { id: id.to_string(), tenant: tenant.clone(), action, revision })
}
