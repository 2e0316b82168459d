//! `hub subscription`: the registry. Secrets are sealed on the way in and never come out.

mod apply;
mod read;
mod rotate;
mod sample;

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::error::{Answer, CliError};
use super::output::{Printer, cell, confirm};
use super::{manage, operator};
use crate::domain::key::EventKey;
use crate::domain::subscription::{State, SubscriptionId};
use crate::management::{Management, ManagementError, SubscriptionFilter};
use crate::nats::{NatsError, Stored};
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create or replace subscriptions: all that the file holds, or none if one of them is refused.
    /// A credential given as "***" keeps the one that is stored
    Apply {
        /// One subscription or a list, as JSON or TOML ([[subscriptions]]); '-' is standard input
        #[arg(long, short, value_name = "FILE")]
        file: PathBuf,
    },
    /// All subscriptions, or those that the options leave
    List {
        /// Of this tenant
        #[arg(long)]
        tenant: Option<String>,
        /// That want this event key, such as user.created
        #[arg(long, value_name = "KEY")]
        event: Option<EventKey>,
        /// In this state: active, paused or disabled
        #[arg(long)]
        state: Option<State>,
    },
    /// One subscription with all its fields; with --output json as `apply` takes it
    Show {
        #[arg(value_parser = id)]
        id: SubscriptionId,
    },
    /// Stop making envelopes for a subscription
    Pause {
        #[arg(value_parser = id)]
        id: SubscriptionId,
    },
    /// Make envelopes for it again, from now on: one that is paused, or that the hub has disabled
    Resume {
        #[arg(value_parser = id)]
        id: SubscriptionId,
    },
    /// Who would get an event: exit code 1 where nobody would
    Match(sample::MatchOptions),
    /// Send a sample event to a subscription's endpoint or broker, once, and show request and answer:
    /// exit code 1 where it is not accepted
    Test(sample::TestOptions),
    /// Sign with a new secret, and print what the receiver verifies with, this once
    RotateSecret {
        #[arg(value_parser = id)]
        id: SubscriptionId,
        /// How long the secret before signs beside the new one: such as 24h, or 0s for not at all
        #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = rotate::overlap)]
        overlap: std::time::Duration,
        /// The kind of the new secret; that of the one before where not given
        #[arg(long, value_enum)]
        algorithm: Option<rotate::Kind>,
    },
    /// Remove a subscription
    Remove {
        #[arg(value_parser = id)]
        id: SubscriptionId,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

fn id(text: &str) -> Result<SubscriptionId, String> {
    SubscriptionId::try_from(text.to_owned())
}

pub async fn run(command: Command, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    match command {
        Command::Apply { file } => apply::run(&file, settings, printer).await,
        Command::List { tenant, event, state } => {
            let filter = SubscriptionFilter { tenant, event, state };
            let found = manage(settings).await?.subscriptions(&filter).await?;
            let found: Vec<_> = found.iter().map(|stored| stored.subscription.hidden_json()).collect();
            list(&found, printer)
        }
        Command::Show { id } => {
            let shown = find(&manage(settings).await?, &id).await?.subscription.hidden_json();
            if printer.is_json() {
                printer.json(&shown)?
            } else {
                printer.fields(&shown)?
            }
            Ok(Answer::Yes)
        }
        Command::Pause { id } => set_state(&manage(settings).await?, &id, State::Paused, printer).await,
        Command::Resume { id } => set_state(&manage(settings).await?, &id, State::Active, printer).await,
        Command::Match(options) => sample::matching(options, settings, printer).await,
        Command::Test(options) => sample::test(options, settings, printer).await,
        Command::RotateSecret { id, overlap, algorithm } => {
            rotate::run(&id, overlap, algorithm, settings, printer).await
        }
        Command::Remove { id, yes } => remove(&manage(settings).await?, &id, yes, printer).await,
    }
}

fn list(found: &[serde_json::Value], printer: Printer) -> Result<Answer, CliError> {
    if printer.is_json() {
        printer.json(&found)?;
        return Ok(Answer::Yes);
    }
    let rows = found.iter().map(|shown| {
        let text = |pointer: &str| {
            shown.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
        };
        let events: Vec<&str> = shown
            .get("events")
            .and_then(serde_json::Value::as_array)
            .map(|events| events.iter().filter_map(serde_json::Value::as_str).collect())
            .unwrap_or_default();
        vec![
            text("/id"),
            text("/tenant"),
            text("/state"),
            cell(&events.join(" "), 40),
            text("/delivery/auth/type"),
            cell(&target(shown), 80),
            cell(&text("/disabled_reason"), 60),
        ]
    });
    printer.table(&["ID", "TENANT", "STATE", "EVENTS", "AUTH", "TARGET", "DISABLED BECAUSE"], rows)?;
    Ok(Answer::Yes)
}

/// Its URL, or `broker partner_events: orders`.
fn target(shown: &serde_json::Value) -> String {
    let text = |name: &str| shown["delivery"][name].as_str();
    match (text("url"), text("broker"), text("stream")) {
        (Some(url), ..) => url.to_owned(),
        (None, Some(broker), Some(stream)) => format!("broker {broker}: {stream}"),
        _ => String::new(),
    }
}

async fn find(management: &Management, id: &SubscriptionId) -> Result<Stored, CliError> {
    Ok(management.subscription(&operator(), id).await?)
}

async fn set_state(
    management: &Management,
    id: &SubscriptionId,
    state: State,
    printer: Printer,
) -> Result<Answer, CliError> {
    let stored = find(management, id).await?;
    let (_, changed) = management.set_state(stored, state).await?;
    let name = state.as_str();
    if printer.is_json() {
        printer.json(&json!({"id": id, "state": state, "changed": changed}))?;
    } else {
        printer.line(&format!("{id}: {}{name}", if changed { "" } else { "already " }))?;
    }
    Ok(Answer::Yes)
}

async fn remove(
    management: &Management,
    id: &SubscriptionId,
    yes: bool,
    printer: Printer,
) -> Result<Answer, CliError> {
    let revision = match find(management, id).await {
        Ok(stored) => Some(stored.revision),
        // What is stored cannot be read: all the more reason to remove it.
        Err(CliError::Management(ManagementError::Nats(NatsError::Answer { .. }))) => None,
        Err(error) => return Err(error),
    };
    if !confirm(&format!("Remove the subscription {id}?"), yes)? {
        printer.line(&format!("{id}: left as it is"))?;
        return Ok(Answer::No);
    }
    management.remove_subscription(id, revision).await?;
    if printer.is_json() {
        printer.json(&json!({"id": id, "removed": true}))?;
    } else {
        printer.line(&format!("{id}: removed"))?;
    }
    Ok(Answer::Yes)
}
