//! `hub secrets rotate`: reseals credentials with the current key.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;

use crate::cli::connect;
use crate::cli::error::{Answer, CliError};
use crate::cli::output::{Printer, progress};
use crate::nats::{JetStream, NatsError, StoredSubscription};
use crate::seal::{Outdated, SealError, Sealer, open_settings, reseal_subscription};
use crate::settings::{SecretName, Settings};

/// Concurrent writes to the registry.
const AT_ONCE: usize = 64;
/// Number of tries for a subscription that someone else writes at the same time.
const MOST_READS: usize = 5;

/// The result of one subscription.
enum Done {
    Resealed,
    /// No credential is sealed with another key.
    Current,
    NotOpened(SealError),
    Contended,
}

pub(super) async fn run(settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let no_key = || CliError::no_master_key("the registry".to_owned());
    let sealer = Sealer::from_settings(&settings.secrets)?.ok_or_else(no_key)?;
    let outdated = sealer.outdated_settings(settings);
    let js = connect(&open_settings(settings, SecretName::is_to_connect)?).await?;
    let stored = js.subscriptions().await?;
    // Otherwise some may be missing.
    js.confirm_registry_leader().await?;
    let bar = progress(stored.len(), "sealing");
    let (js, sealer_ref, bar_ref) = (&js, &sealer, &bar);
    let done: Vec<(String, Done)> = stream::iter(stored)
        .map(|stored| async move {
            let id = format!("{}/{}", stored.subscription.tenant, stored.subscription.id);
            let done = rotate(js, sealer_ref, stored).await?;
            bar_ref.inc(1);
            Ok::<_, NatsError>((id, done))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    bar.finish_and_clear();

    let count = |wanted: fn(&Done) -> bool| done.iter().filter(|(_, done)| wanted(done)).count();
    let resealed = count(|done| matches!(done, Done::Resealed));
    let current = count(|done| matches!(done, Done::Current));
    let problems: Vec<String> = done
        .iter()
        .filter_map(|(id, done)| match done {
            Done::Resealed | Done::Current => None,
            Done::NotOpened(error) => Some(format!("{id}: {error}")),
            Done::Contended => Some(format!(
                "{id}: changed by someone else during {MOST_READS} tries; run the command again"
            )),
        })
        .collect();
    let key = sealer.key_id();
    if printer.is_json() {
        printer.json(&json!({
            "key_id": key, "resealed": resealed, "unchanged": current, "left": problems.len(),
            "settings": outdated.iter().map(in_json).collect::<Vec<_>>(),
        }))?;
    } else {
        printer.line(&format!("{resealed} resealed with the key {key}, {current} unchanged"))?;
        for line in outdated.iter().map(in_text) {
            printer.line(&line)?;
        }
    }
    match (problems.is_empty(), outdated.is_empty()) {
        (false, _) => Err(CliError::NotResealed { problems }),
        // The hub cannot change its own settings.
        (true, false) => Ok(Answer::No),
        (true, true) => Ok(Answer::Yes),
    }
}

fn in_json(outdated: &Outdated) -> serde_json::Value {
    let Outdated { name, key_id, anew } = outdated;
    json!({
        "setting": name.to_string(), "key_id": key_id,
        "sealed": anew.as_ref().ok(), "problem": anew.as_ref().err().map(ToString::to_string),
    })
}

fn in_text(outdated: &Outdated) -> String {
    let Outdated { name, key_id, anew } = outdated;
    let key = name.key();
    match anew {
        Ok(anew) => {
            format!("{key}: the setting is sealed with the key {key_id}; replace its value with {anew}")
        }
        Err(_) => format!(
            "{key}: the setting is sealed with the key {key_id} and cannot be opened; seal it again with `hub secrets seal {name}`"
        ),
    }
}

/// Reseals one subscription. If someone else changes it meanwhile, reads it again.
async fn rotate(js: &JetStream, sealer: &Sealer, stored: StoredSubscription) -> Result<Done, NatsError> {
    let StoredSubscription { mut subscription, mut revision } = stored;
    // Every listed subscription has a valid name.
    let Ok(name) = subscription.reference() else { return Ok(Done::Current) };
    for _ in 0..MOST_READS {
        match reseal_subscription(sealer, &mut subscription) {
            Ok(0) => return Ok(Done::Current),
            Ok(_) => {}
            Err(error) => return Ok(Done::NotOpened(error)),
        }
        match js.put_subscription(&subscription, Some(revision)).await {
            Ok(_) => return Ok(Done::Resealed),
            Err(error) if error.is_wrong_last_sequence() => {}
            Err(error) => return Err(error),
        }
        let Some(stored) = js.subscription(&name).await? else { return Ok(Done::Current) };
        (subscription, revision) = (stored.subscription, stored.revision);
    }
    Ok(Done::Contended)
}
