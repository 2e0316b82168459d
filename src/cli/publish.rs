//! `hub publish`: publishes a bare JSON event, and waits for its acknowledgement by JetStream.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};

use super::error::{Answer, CliError};
use super::output::{Printer, warn};
use super::{manage, read_input, warn_without_domain};
use crate::domain::headers;
use crate::domain::key::EventKey;
use crate::management::publishing::{Published, RawEvent, Verdict};
use crate::management::{Management, ManagementError};
use crate::settings::Settings;
use crate::shell_command::quoted;

/// Longest wait for the running hub to process an event for whose key these settings have no domain.
const VERDICT_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("content").required(true).args(["data", "file"]), override_usage = "hub publish [OPTIONS] <KEY> <DATA|--file <FILE>>", after_help = "Example:\n  hub publish user.created '{\"user_id\":\"u1\"}' --id e-1 --tenant acme")]
pub(super) struct PublishOptions {
    /// Event key, <resource>.<operation>, for example user.created
    key: EventKey,
    /// Data of the event, a JSON value; '-' reads standard input
    data: Option<String>,
    /// File with the data; '-' reads standard input
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Id of the event; an event of the same tenant, source, key and id is stored only once within
    /// limits.duplicate_window
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
    let has_domain = warn_without_domain(settings, &options.key);
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
    // The event may have been rejected the first time.
    let verdict = if has_domain && !published.duplicate { None } else { verdict(&hub, &published).await };
    let Published { stream, sequence, id, duplicate } = &published;
    if printer.is_json() {
        printer.json(&published)?;
    } else if *duplicate {
        printer.line(&format!(
            "duplicate: {stream} already has the id {id} at sequence {sequence}; nothing was stored"
        ))?;
    } else {
        printer.line(&format!("stored: {stream} sequence {sequence}, id {id}"))?;
    }
    match verdict {
        Some(Verdict::Rejected { problem }) => {
            let remedy = if *duplicate { "; publish it with another --id" } else { "" };
            warn(&format!("{id}: the hub rejected the event: {problem}{remedy}"));
            Ok(Answer::No)
        }
        Some(Verdict::Waiting) => {
            warn(&format!(
                "{id}: the hub has not processed the event yet; follow it with `hub event trace {}`",
                quoted(id)
            ));
            Ok(Answer::Yes)
        }
        Some(Verdict::Accepted) | None => Ok(Answer::Yes),
    }
}

/// What the running hub did with the event; `None`, with a warning, if that is unknown.
async fn verdict(hub: &Management, published: &Published) -> Option<Verdict> {
    match hub.verdict(published, VERDICT_LIMIT).await {
        Ok(verdict) => Some(verdict),
        Err(error) => {
            warn(&format!("{}: what the hub did with the event is unknown: {error}", published.id));
            None
        }
    }
}
