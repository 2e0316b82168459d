//! `hub publish`: a bare JSON event, acknowledged by JetStream.

use std::path::PathBuf;

use clap::Args;

use super::error::{Answer, CliError};
use super::output::{Printer, warn};
use super::{manage, read_input};
use crate::domain::event::Rejection;
use crate::domain::key::EventKey;
use crate::management::publishing::{EventForm, Published};
use crate::management::{ManagementError, categories};
use crate::settings::Settings;

#[derive(Debug, Args)]
pub struct Options {
    /// The event key, <resource>.<operation>, such as user.created
    key: EventKey,
    /// The event's data, a JSON value; '-' reads it from standard input
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    data: Option<String>,
    /// Read the data from a file; '-' is standard input
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The event's id: the same id within the duplicate window counts once
    #[arg(long)]
    id: Option<String>,
    /// The tenant; "default" where not given
    #[arg(long)]
    tenant: Option<String>,
    /// Where the event comes from; "nats" where not given
    #[arg(long)]
    source: Option<String>,
}

pub async fn run(options: Options, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let data = match (&options.file, options.data.as_deref()) {
        (Some(file), _) => read_input(file)?,
        (None, Some("-")) => read_input("-".as_ref())?,
        (None, data) => data.unwrap_or_default().as_bytes().to_vec(),
    };
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&data) {
        return Err(CliError::EventRejected(format!(
            "the data is not JSON: {error}; write a JSON value, such as '{{\"user_id\":\"u1\"}}'"
        )));
    }
    let given = [("id", &options.id), ("tenant", &options.tenant), ("source", &options.source)];
    // A line break would end the header and begin another.
    if let Some((name, _)) = given.iter().find(|(_, value)| {
        value.as_ref().is_some_and(|value| value.is_empty() || value.contains(char::is_control))
    }) {
        return Err(CliError::Usage(format!("--{name} is empty or holds a control character")));
    }
    // The header would lose them.
    if let Some((name, _)) =
        given.iter().find(|(_, value)| value.as_ref().is_some_and(|value| value.trim() != value))
    {
        return Err(CliError::Usage(format!("--{name} begins or ends with a blank; take it out")));
    }
    if categories(settings).domain_of(&options.key).is_none() {
        warn(&format!("{}; the hub will keep it as rejected", Rejection::no_domain(&options.key).detail));
    }
    let headers: Vec<(&str, &str)> =
        [("Nats-Msg-Id", &options.id), ("Hub-Tenant", &options.tenant), ("Hub-Source", &options.source)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
            .collect();

    let form = EventForm { key: Some(&options.key), headers, body: data.into() };
    let hub = manage(settings).await?;
    let published = hub.send_event(form).await.map_err(|error| match error {
        ManagementError::Full { .. }
        | ManagementError::TooLarge(_)
        | ManagementError::Invalid(_)
        | ManagementError::EventRejected(_) => CliError::EventRejected(error.to_string()),
        other => other.into(),
    })?;
    let Published { stream, sequence, id, duplicate } = &published;
    if printer.is_json() {
        printer.json(&published)?;
    } else if *duplicate {
        printer.line(&format!(
            "duplicate: {stream} has the id {id} already, at sequence {sequence}; nothing was stored"
        ))?;
    } else {
        printer.line(&format!("published: {stream} sequence {sequence}, id {id}"))?;
    }
    Ok(Answer::Yes)
}
