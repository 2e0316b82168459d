//! `hub subscription match` and `hub subscription test`: try out a sample event.

use clap::Args;
use serde_json::Value;

use super::{Name, find, list, shown};
use crate::cli::error::{Answer, CliError};
use crate::cli::output::{Printer, warn};
use crate::cli::{manage, manage_sealed, pair, tenant, warn_without_domain};
use crate::domain::key::EventKey;
use crate::management::Sample;
use crate::settings::Settings;

#[derive(Debug, Args)]
pub(crate) struct MatchOptions {
    /// Event key, for example user.created
    key: EventKey,
    /// Tenant of the event
    #[arg(long, default_value = "default", value_parser = tenant)]
    tenant: String,
    /// Source of the event
    #[arg(long, default_value = "nats")]
    source: String,
    /// Further attribute of the event, for filters, for example subject=u1; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = attribute)]
    attribute: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct TestOptions {
    #[command(flatten)]
    name: Name,
    /// Event key of the sample [default: a key that the subscription matches]
    #[arg(long, value_name = "KEY")]
    event: Option<EventKey>,
}

/// Parses `--attribute`.
fn attribute(text: &str) -> Result<(String, String), String> {
    pair(text).ok_or_else(|| "must be NAME=VALUE, such as subject=u1".to_owned())
}

/// Lists the subscriptions that match an event, with the index and the filters of the fan-out.
pub(super) async fn matching(
    options: MatchOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let MatchOptions { key, tenant, source, attribute } = options;
    warn_without_domain(settings, &key);
    let sample = Sample { key, tenant, source, attributes: attribute };
    let management = manage(settings).await?;
    let (found, unusable) = management.matching(&sample).await?;
    if found.is_empty() {
        management.jet_stream().confirm_registry_leader().await?;
    }
    unusable.iter().for_each(|one| warn(&one.to_string()));
    let found: Vec<Value> = found.iter().map(|one| one.subscription.hidden_json()).collect();
    if found.is_empty() && !printer.is_json() {
        printer
            .line(&format!("no active subscription of tenant {} matches {}", sample.tenant, sample.key))?;
    } else {
        list(&found, printer)?;
    }
    Ok(if found.is_empty() { Answer::No } else { Answer::Yes })
}

/// Sends one sample event to the endpoint, without the streams, and prints request and answer. Never retries, creates a
/// dead letter or disables the subscription.
pub(super) async fn test(
    options: TestOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let management = manage_sealed(settings).await?;
    let stored = find(&management, &options.name).await?;
    let attempt = management.test_subscription(&stored.subscription, options.event).await?;
    if attempt.unwanted {
        warn(&format!("{} does not match {}; the sample is sent anyway", shown(&stored), attempt.event_key));
    }
    let shown = serde_json::to_value(&attempt).map_err(|error| CliError::Output(error.into()))?;
    if printer.is_json() {
        printer.json(&shown)?
    } else {
        printer.fields(&shown)?
    }
    Ok(if attempt.accepted { Answer::Yes } else { Answer::No })
}
