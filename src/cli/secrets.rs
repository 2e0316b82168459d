//! `hub secrets`: the master keys.

use clap::Subcommand;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;

use super::connect;
use super::error::{Answer, CliError};
use super::output::{Printer, progress};
use crate::domain::subscription::SubscriptionId;
use crate::nats::{JetStream, NatsError, Stored};
use crate::seal::{SealError, Sealer, reseal_subscription};
use crate::settings::Settings;

/// Writes of the registry under way at once.
const AT_ONCE: usize = 64;
/// How often a subscription is read again that someone else writes meanwhile.
const MOST_READS: usize = 5;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Seal every credential anew with the current key (secrets.key_id). May be run again at any time
    Rotate,
}

/// What became of one subscription.
enum Done {
    Resealed,
    /// Nothing in it is sealed with another key.
    Current,
    Unopened(SealError),
    Contended,
}

pub async fn run(command: Command, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let Command::Rotate = command;
    let no_key = || CliError::NoMasterKey { subscriptions: "the registry".to_owned(), hint: String::new() };
    let sealer = Sealer::from_settings(&settings.secrets)?.ok_or_else(no_key)?;
    let js = connect(settings).await?;
    let stored = js.subscriptions().await?;
    let bar = progress(stored.len(), "sealing");
    let (js, sealer_ref, bar_ref) = (&js, &sealer, &bar);
    let done: Vec<(SubscriptionId, Done)> = stream::iter(stored)
        .map(|stored| async move {
            let id = stored.subscription.id.clone();
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
            Done::Unopened(error) => Some(format!("{id}: {error}")),
            Done::Contended => {
                Some(format!("{id}: changed by someone else all the time; run the command again"))
            }
        })
        .collect();
    let key = sealer.key_id();
    if printer.is_json() {
        printer.json(&json!({
            "key_id": key, "resealed": resealed, "unchanged": current, "left": problems.len(),
        }))?;
    } else {
        printer.line(&format!("{resealed} sealed anew with the key {key}, {current} needed no change"))?;
    }
    if problems.is_empty() { Ok(Answer::Yes) } else { Err(CliError::NotResealed { problems }) }
}

/// A write is made only of what was read: a change by someone else meanwhile is read again.
async fn rotate(js: &JetStream, sealer: &Sealer, stored: Stored) -> Result<Done, NatsError> {
    let Stored { mut subscription, mut revision } = stored;
    let id = subscription.id.clone();
    for _ in 0..MOST_READS {
        match reseal_subscription(sealer, &mut subscription) {
            Ok(0) => return Ok(Done::Current),
            Ok(_) => {}
            Err(error) => return Ok(Done::Unopened(error)),
        }
        match js.put_subscription(&subscription, Some(revision)).await {
            Ok(_) => return Ok(Done::Resealed),
            Err(error) if error.is_wrong_last_sequence() => {}
            Err(error) => return Err(error),
        }
        let Some(stored) = js.subscription(&id).await? else { return Ok(Done::Current) };
        (subscription, revision) = (stored.subscription, stored.revision);
    }
    Ok(Done::Contended)
}
