//! `hub subscription apply`: all are checked before any is written.

use std::path::Path;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use secrecy::ExposeSecret as _;
use serde::Serialize;

use super::read::read;
use crate::cli::error::{Answer, CliError};
use crate::cli::output::{Printer, warn};
use crate::cli::{categories, connect};
use crate::domain::field_error::FieldError;
use crate::domain::key::EventKey;
use crate::domain::subscription::{Secret, Subscription};
use crate::nats::{JetStream, NatsError};
use crate::seal::{Sealer, seal_subscription};
use crate::settings::Settings;

/// Reads and writes of the registry under way at once.
const AT_ONCE: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Action {
    Created,
    Updated,
    Unchanged,
    Conflict,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
            Self::Conflict => "conflict",
        }
    }
}

#[derive(Debug, Serialize)]
struct Applied {
    id: String,
    action: Action,
    revision: u64,
}

/// A checked subscription and what it replaces.
struct Write {
    subscription: Subscription,
    expected: u64,
    action: Action,
}

pub(super) async fn run(file: &Path, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let subscriptions = read(file, settings)?;
    let sealer = Sealer::from_settings(&settings.secrets)?;
    warn_of_keys_without_domain(&subscriptions, settings);
    if sealer.is_none() {
        refuse_plain_secrets(&subscriptions)?;
    }
    let js = connect(settings).await?;
    let writes = plan(&js, subscriptions, sealer.as_ref(), &file.display().to_string()).await?;
    let applied: Vec<Applied> =
        stream::iter(writes).map(|write| carry_out(&js, write)).buffered(AT_ONCE).try_collect().await?;

    let conflicts: Vec<String> =
        applied.iter().filter(|one| one.action == Action::Conflict).map(|one| one.id.clone()).collect();
    if printer.is_json() {
        printer.json(&applied)?;
    } else {
        let rows = applied
            .into_iter()
            .map(|one| vec![one.id, one.action.as_str().to_owned(), one.revision.to_string()]);
        printer.table(&["ID", "ACTION", "REVISION"], rows)?;
    }
    if conflicts.is_empty() { Ok(Answer::Yes) } else { Err(CliError::Conflict { ids: conflicts.join(", ") }) }
}

/// Events that no domain takes are rejected, so a subscription for them waits in vain.
fn warn_of_keys_without_domain(subscriptions: &[Subscription], settings: &Settings) {
    let categories = categories(settings);
    for subscription in subscriptions {
        for pattern in &subscription.events {
            // A pattern with wildcards is no key; what it may match cannot be told so simply.
            let Ok(key) = pattern.as_str().parse::<EventKey>() else { continue };
            if categories.domain_of(&key).is_none() {
                warn(&format!(
                    "{}: no domain takes {key}; add a pattern for it to a [[domains]] entry of the settings",
                    subscription.id
                ));
            }
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
    let dev = crate::dev::folder().join("master.key");
    let hint = if dev.exists() {
        format!(". `hub serve --dev` uses HUB__SECRETS__MASTER_KEY_FILE={}", dev.display())
    } else {
        String::new()
    };
    Err(CliError::NoMasterKey { subscriptions: with_secrets.join(", "), hint })
}

/// Compares each with what is stored and settles its secrets; nothing is written.
async fn plan(
    js: &JetStream,
    subscriptions: Vec<Subscription>,
    sealer: Option<&Sealer>,
    document: &str,
) -> Result<Vec<Write>, CliError> {
    let stored: Vec<(u64, Option<Subscription>)> = stream::iter(&subscriptions)
        .map(|subscription| js.subscription_at(&subscription.id))
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let (mut writes, mut problems) = (Vec::new(), Vec::new());
    for (mut subscription, (expected, stored)) in subscriptions.into_iter().zip(stored) {
        let errors = settle_secrets(&mut subscription, stored.as_ref(), sealer);
        problems.extend(errors.into_iter().map(|error| format!("{}: {error}", subscription.id)));
        let action = match &stored {
            None => Action::Created,
            Some(stored) if same(stored, &subscription) => Action::Unchanged,
            Some(_) => Action::Updated,
        };
        writes.push(Write { subscription, expected, action });
    }
    if problems.is_empty() {
        Ok(writes)
    } else {
        Err(CliError::Invalid { document: document.to_owned(), problems })
    }
}

/// Whether both are stored as the same text. A plain secret is never the same: it is new.
fn same(stored: &Subscription, new: &Subscription) -> bool {
    match (serde_json::to_value(stored), serde_json::to_value(new)) {
        (Ok(stored), Ok(new)) => stored == new,
        _ => false,
    }
}

/// Seals what is plain, and takes from the stored subscription what is to be kept or has not
/// changed.
fn settle_secrets(
    subscription: &mut Subscription,
    stored: Option<&Subscription>,
    sealer: Option<&Sealer>,
) -> Vec<FieldError> {
    let id = subscription.id.as_str().to_owned();
    let mut stored = stored.cloned();
    let kept = stored.as_mut().map(|stored| stored.delivery.named_secrets_mut()).unwrap_or_default();
    let mut errors = Vec::new();
    for (field, secret) in subscription.delivery.named_secrets_mut() {
        let kept = kept.iter().find(|(name, _)| *name == field).map(|(_, secret)| &**secret);
        match (&*secret, kept, sealer) {
            (Secret::Sealed(_), Some(kept), _) => *secret = kept.clone(),
            // Sealed for this subscription with this hub's key, from a copy of the registry, say.
            (Secret::Sealed(sealed), None, Some(sealer)) if sealer.open(&id, sealed).is_ok() => {}
            (Secret::Sealed(_), None, _) => errors.push(FieldError::new(
                field,
                "is \"***\" or sealed, which keeps the stored credential, and none is stored; write the credential itself",
            )),
            (Secret::Plain(plain), Some(Secret::Sealed(sealed)), Some(sealer)) => {
                let same = sealer
                    .open(&id, sealed)
                    .is_ok_and(|opened| opened.expose_secret() == plain.expose_secret());
                if same {
                    *secret = Secret::Sealed(sealed.clone());
                }
            }
            (Secret::Plain(_), ..) => {}
        }
    }
    if let Some(sealer) = sealer {
        seal_subscription(sealer, subscription);
    }
    errors
}

async fn carry_out(js: &JetStream, write: Write) -> Result<Applied, NatsError> {
    let Write { subscription, expected, action } = write;
    let id = subscription.id.to_string();
    if action == Action::Unchanged {
        return Ok(Applied { id, action, revision: expected });
    }
    match js.put_subscription(&subscription, Some(expected)).await {
        Ok(revision) => Ok(Applied { id, action, revision }),
        Err(error) if error.is_wrong_last_sequence() => {
            Ok(Applied { id, action: Action::Conflict, revision: expected })
        }
        Err(error) => Err(error),
    }
}
