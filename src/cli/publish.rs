//! `hub publish`: publishes a bare JSON event, and waits for its acknowledgement by JetStream.

use std::path::PathBuf;

use clap::Args;

use super::error::{Answer, CliError};
use super::output::{Printer, warn};
use super::{manage, read_input};
use crate::domain::event::Rejection;
use crate::domain::headers;
use crate::domain::key::EventKey;
use crate::management::publishing::{Published, RawEvent};
use crate::management::{ManagementError, categories};
use crate::settings::Settings;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hub publish user.created '{\"user_id\":\"u1\"}' --id e-1 --tenant acme")]
pub(super) struct PublishOptions {
    /// Event key, <resource>.<operation>, for example user.created
    key: EventKey,
    /// Data of the event, a JSON value; '-' reads standard input
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    data: Option<String>,
    /// File with the data; '-' reads standard input
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Id of the event; an event with the same id and source is stored only once in the duplicate window
    #[arg(long)]
    id: Option<String>,
    /// Tenant of the event [default: default]
    #[arg(long)]
    tenant: Option<String>,
    /// Source of the event [default: nats]
    #[arg(long)]
    source: Option<String>,
}

pub(super) async fn run(
    options: PublishOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let data = match (&options.file, options.data.as_deref()) {
        (Some(file), _) => read_input(file)?,
        (None, Some("-")) => read_input("-".as_ref())?,
        (None, data) => data.unwrap_or_default().as_bytes().to_vec(),
    };
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&data) {
        return Err(CliError::DataNotJson(error));
    }
    let given = [("id", &options.id), ("tenant", &options.tenant), ("source", &options.source)];
    // A line break would start another header.
    if let Some((name, _)) = given.iter().find(|(_, value)| {
        value.as_ref().is_some_and(|value| value.is_empty() || value.contains(char::is_control))
    }) {
        return Err(CliError::Usage(format!("--{name}: must not be empty or contain a control character")));
    }
    // A header does not keep them.
    if let Some((name, _)) =
        given.iter().find(|(_, value)| value.as_ref().is_some_and(|value| value.trim() != value))
    {
        return Err(CliError::Usage(format!("--{name}: must not begin or end with a space; remove it")));
    }
    let has_domain = categories(settings).domain_of(&options.key).is_some();
    if !has_domain {
        warn(&format!("{}; the hub rejects the event", Rejection::no_domain(&options.key).detail));
    }
    let headers: Vec<(&str, &str)> = [
        ("Nats-Msg-Id", &options.id),
        (headers::TENANT, &options.tenant),
        (headers::SOURCE, &options.source),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value.as_deref()?)))
    .collect();

    let form = RawEvent { key: Some(&options.key), headers, body: data.into() };
    let hub = manage(settings).await?;
    let published = hub.send_event(form).await.map_err(|error| match error {
        ManagementError::Full { .. }
        | ManagementError::TooLarge(_)
        | ManagementError::TooLargeForServer(_)
        | ManagementError::Invalid(_)
        | ManagementError::EventRejected(_) => CliError::EventRejected(error),
        other => other.into(),
    })?;
    let Published { stream, sequence, id, duplicate } = &published;
    if printer.is_json() {
        printer.json(&published)?;
    } else if *duplicate {
        printer.line(&format!(
            "duplicate: {stream} already has the id {id} at sequence {sequence}; nothing was stored"
        ))?;
    } else if has_domain {
        printer.line(&format!("published: {stream} sequence {sequence}, id {id}"))?;
    } else {
        printer
            .line(&format!("rejected: {stream} sequence {sequence}, id {id}; no domain accepts the key"))?;
    }
    Ok(if has_domain { Answer::Yes } else { Answer::No })
}
