//! `hub subscription`: manages the registry. Secrets are sealed when they are stored, and never printed.

mod apply;
mod circuits;
mod read;
mod rotate;
mod sample;
mod waits;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::error::{Answer, CliError};
use super::output::{Printer, cell, confirm, warn};
use super::{manage, operator, selector};
use crate::domain::key::EventKey;
use crate::domain::subscription::{DEFAULT_TENANT, Subscription, SubscriptionState};
use crate::management::{Management, PreviousSecret, StateSet, SubscriptionFilter, SubscriptionSelector};
use crate::nats::{StoredSubscription, UnreadableEntry};
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub(super) enum SubscriptionCommand {
    /// Create or replace all subscriptions of a file, or none if one of them is invalid. A credential "***" keeps its
    /// stored value
    #[command(after_help = "Example:\n  hub subscription apply --file crm.json")]
    Apply {
        /// File with one subscription or a list, in JSON or TOML ([[subscriptions]]); '-' reads standard input
        #[arg(long, short, value_name = "FILE")]
        file: PathBuf,
    },
    /// List subscriptions
    List {
        /// Tenant
        #[arg(long, value_parser = super::tenant)]
        tenant: Option<String>,
        /// Event key that the subscription matches, for example user.created
        #[arg(long, value_name = "KEY")]
        event: Option<EventKey>,
        /// State: active, paused or disabled
        #[arg(long)]
        state: Option<SubscriptionState>,
    },
    /// Show a subscription with all its fields; `apply` accepts the output of --output json
    Show {
        #[command(flatten)]
        name: Name,
        /// Show only its circuits and its hold: whether its endpoint keeps failing or asked for a pause, and when it is
        /// tried again. WAITING counts its envelopes in the domain outbox that are not delivered yet, in all lanes
        #[arg(long)]
        circuits: bool,
    },
    /// Pause a subscription: it gets no new events. Events published meanwhile are not kept for it; to keep them, use
    /// `hub domain pause`
    Pause(Name),
    /// Resume a paused or disabled subscription; it gets events published from now on. Also of an active one, a probe is sent
    /// at once if its circuit is open, and its hold ends. Prints what still delays its envelopes
    Resume(Name),
    /// List the subscriptions that match an event; exit with 1 if none matches
    #[command(after_help = "Example:\n  hub subscription match user.created --tenant acme")]
    Match(sample::MatchOptions),
    /// Send a sample event to a subscription's endpoint or broker once, and print request and answer; exit with 1 if it is
    /// not accepted
    Test(sample::TestOptions),
    /// Rotate the signing secret, and print the key to verify with, only once
    RotateSecret {
        #[command(flatten)]
        name: Name,
        /// Time for which the previous secret also signs, for example 24h; 0s for not at all
        #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = rotate::overlap)]
        overlap: std::time::Duration,
        /// Replace the newest secret, because it was lost before a receiver had it: it stops signing, and the previous
        /// secret keeps signing until its end
        #[arg(long, conflicts_with = "overlap")]
        replace: bool,
        /// Kind of the new secret [default: the kind of the previous secret]
        #[arg(long, value_enum)]
        algorithm: Option<rotate::AlgorithmName>,
    },
    /// Remove a subscription; its pending envelopes become dead letters
    Remove {
        #[command(flatten)]
        name: Name,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}

/// The name of a subscription.
#[derive(Debug, Clone, Args)]
pub(super) struct Name {
    /// Id of the subscription, or <tenant>/<id>
    #[arg(value_name = "ID", value_parser = selector)]
    id: SubscriptionSelector,
    /// Tenant of the subscription; required if several tenants have this id
    #[arg(long, value_parser = super::tenant)]
    tenant: Option<String>,
}

impl Name {
    fn naming(&self) -> Result<SubscriptionSelector, CliError> {
        let SubscriptionSelector { id, tenant } = self.id.clone();
        match (&tenant, &self.tenant) {
            (Some(one), Some(other)) if one != other => Err(CliError::Usage(format!(
                "--tenant {other}: conflicts with the id, which names the tenant {one}; use one of the two"
            ))),
            _ => Ok(SubscriptionSelector { id, tenant: tenant.or(self.tenant.clone()) }),
        }
    }
}

/// The short name: `crm`, or `acme/crm`.
fn shown(stored: &StoredSubscription) -> String {
    let Subscription { id, tenant, .. } = &stored.subscription;
    if tenant == DEFAULT_TENANT { id.to_string() } else { format!("{tenant}/{id}") }
}

pub(super) async fn run(
    command: SubscriptionCommand,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    match command {
        SubscriptionCommand::Apply { file } => apply::run(&file, settings, printer).await,
        SubscriptionCommand::List { tenant, event, state } => {
            let filter = SubscriptionFilter { tenant, event, state };
            let management = manage(settings).await?;
            let (found, unreadable) = management.subscriptions_and_unreadable(&filter).await?;
            // Without a leader, some may be missing.
            match management.jet_stream().confirm_registry_leader().await {
                Err(error) if found.is_empty() => return Err(error.into()),
                Err(error) => warn(&format!("the latest changes may be missing: {error}")),
                Ok(()) => {}
            }
            list(&marked(&found, &unreadable), printer)
        }
        SubscriptionCommand::Show { name, circuits } => {
            let management = manage(settings).await?;
            let stored = find(&management, &name).await?;
            let mut shown = stored.subscription.hidden_json();
            if circuits {
                circuits::print(&management.circuits(&stored).await?, printer)?
            } else if printer.is_json() {
                printer.json(&shown)?
            } else {
                circuits::add(&mut shown, &management.circuits(&stored).await?);
                printer.fields(&shown)?
            }
            Ok(Answer::Yes)
        }
        SubscriptionCommand::Pause(name) => {
            set_state(&manage(settings).await?, &name, SubscriptionState::Paused, printer).await
        }
        SubscriptionCommand::Resume(name) => {
            set_state(&manage(settings).await?, &name, SubscriptionState::Active, printer).await
        }
        SubscriptionCommand::Match(options) => sample::matching(options, settings, printer).await,
        SubscriptionCommand::Test(options) => sample::test(options, settings, printer).await,
        SubscriptionCommand::RotateSecret { name, overlap, replace, algorithm } => {
            let secrets =
                if replace { PreviousSecret::IsReplaced } else { PreviousSecret::Overlaps(overlap) };
            rotate::run(&name, secrets, algorithm, settings, printer).await
        }
        SubscriptionCommand::Remove { name, yes } => {
            remove(&manage(settings).await?, &name, yes, printer).await
        }
    }
}

/// The entries of a list. An entry whose last revision is unreadable is marked, and listed even if it has no readable
/// revision.
fn marked(found: &[StoredSubscription], unreadable: &[UnreadableEntry]) -> Vec<serde_json::Value> {
    let is_of = |entry: &UnreadableEntry, stored: &StoredSubscription| {
        let Subscription { id, tenant, .. } = &stored.subscription;
        entry.name.id() == id.as_str() && entry.name.tenant() == tenant
    };
    let mut shown: Vec<serde_json::Value> = Vec::new();
    for stored in found {
        let mut json = stored.subscription.hidden_json();
        if let Some(entry) = unreadable.iter().find(|entry| is_of(entry, stored)) {
            json["unreadable"] = entry.reason.to_string().into();
        }
        shown.push(json);
    }
    for entry in unreadable.iter().filter(|entry| !found.iter().any(|stored| is_of(entry, stored))) {
        shown.push(json!({
            "id": entry.name.id(), "tenant": entry.name.tenant(), "unreadable": entry.reason.to_string(),
        }));
    }
    shown
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
            match (text("/state"), shown.get("unreadable").is_some()) {
                (state, false) => state,
                (state, true) if state.is_empty() => "UNREADABLE".to_owned(),
                (state, true) => format!("{state}, UNREADABLE"),
            },
            cell(&events.join(" "), 40),
            text("/delivery/auth/type"),
            cell(&target(shown), 80),
            cell(&text("/disabled_reason"), 60),
        ]
    });
    printer.table(&["ID", "TENANT", "STATE", "EVENTS", "AUTH", "TARGET", "DISABLED BECAUSE"], rows)?;
    Ok(Answer::Yes)
}

/// The target of a subscription: its URL, or `broker partner_events: orders`.
fn target(shown: &serde_json::Value) -> String {
    let text = |name: &str| shown["delivery"][name].as_str();
    match (text("url"), text("broker"), text("stream")) {
        (Some(url), ..) => url.to_owned(),
        (None, Some(broker), Some(stream)) => format!("broker {broker}: {stream}"),
        _ => String::new(),
    }
}

async fn find(management: &Management, name: &Name) -> Result<StoredSubscription, CliError> {
    Ok(management.subscription(&operator(), &name.naming()?).await?)
}

async fn set_state(
    management: &Management,
    name: &Name,
    state: SubscriptionState,
    printer: Printer,
) -> Result<Answer, CliError> {
    let stored = find(management, name).await?;
    let StateSet { stored, changed, hold_ended } = management.set_state(stored, state).await?;
    let Subscription { id, tenant, .. } = &stored.subscription;
    let waits = match state {
        SubscriptionState::Active => waits::found(management, &stored).await,
        _ => Vec::new(),
    };
    if printer.is_json() {
        let mut done = json!({"id": id, "tenant": tenant, "state": state, "changed": changed});
        if state == SubscriptionState::Active {
            done["hold_ended"] = hold_ended.into();
            done["waits"] = json!(waits);
        }
        printer.json(&done)?;
    } else {
        let already = if changed { "" } else { "already " };
        let held = if hold_ended { ", hold ended" } else { "" };
        printer.line(&format!("{}: {already}{}{held}", shown(&stored), state.as_str()))?;
        for wait in &waits {
            printer.line(&format!("  {}", waits::text(wait, &shown(&stored))))?;
        }
    }
    Ok(Answer::Yes)
}

async fn remove(
    management: &Management,
    name: &Name,
    yes: bool,
    printer: Printer,
) -> Result<Answer, CliError> {
    let mut naming = name.naming()?;
    let stored = match find(management, name).await {
        Ok(stored) => Some(stored),
        // An unreadable entry can be removed too.
        Err(error) => match management.unreadable_entry(&naming).await? {
            Some(entry) => {
                naming.tenant = Some(entry.tenant().to_owned());
                None
            }
            None => return Err(error),
        },
    };
    let shown = stored.as_ref().map_or_else(|| naming.to_string(), shown);
    if !confirm(&format!("Remove the subscription {shown}?"), yes)? {
        printer.line(&format!("{shown}: not removed"))?;
        return Ok(Answer::No);
    }
    match &stored {
        Some(stored) => management.remove_subscription(stored).await?,
        None => management.remove_unreadable(&naming).await?,
    }
    if printer.is_json() {
        let tenant = stored.map(|stored| stored.subscription.tenant).or(naming.tenant);
        printer.json(&json!({"id": naming.id, "tenant": tenant, "removed": true}))?;
    } else {
        printer.line(&format!("{shown}: removed"))?;
    }
    Ok(Answer::Yes)
}
