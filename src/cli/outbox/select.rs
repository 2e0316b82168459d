//! Options that select rows of the producer outbox.

use clap::Args;

use crate::cli::error::CliError;
use crate::cli::output::note;
use crate::domain::key::EventKey;
use crate::domain::producer_outbox::{Status, TARGET_BROKER_NAMES, is_target_broker};
use crate::management::producer_outbox::{ProducerOutbox, RowSelection};

#[derive(Debug, Default, Args)]
pub(super) struct RowSelectionOptions {
    /// Target broker: internal, or the name of an external broker
    #[arg(long, value_name = "NAME", value_parser = target_broker)]
    broker: Option<String>,
    /// Statuses: pending, processing, failed, published or abandoned; repeatable, or separated by commas
    #[arg(long = "status", value_name = "STATUS", value_delimiter = ',')]
    statuses: Vec<Status>,
    /// Stream of the row
    #[arg(long, value_name = "KEY")]
    stream: Option<String>,
    /// Event key, for example user.created
    #[arg(long, value_name = "KEY")]
    event_key: Option<EventKey>,
}

/// Parses `--broker`.
fn target_broker(text: &str) -> Result<String, String> {
    if is_target_broker(text) {
        return Ok(text.to_owned());
    }
    Err(format!("is not the name of a target broker; {TARGET_BROKER_NAMES}"))
}

/// Notes on standard error that a filter names a target broker that the outbox does not know, so that an empty list is not
/// taken for "nothing waits".
pub(super) async fn note_unknown_broker(
    outbox: &ProducerOutbox,
    selection: &RowSelection,
) -> Result<(), CliError> {
    let Some(broker) = &selection.broker else { return Ok(()) };
    let known: Vec<String> = outbox.status().await?.into_iter().map(|row| row.broker).collect();
    if !known.contains(broker) {
        note(&format!("no target broker {broker:?} exists; the outbox has {}", known.join(", ")));
    }
    Ok(())
}

impl RowSelectionOptions {
    fn is_empty(&self) -> bool {
        let Self { broker, statuses, stream, event_key } = self;
        broker.is_none() && statuses.is_empty() && stream.is_none() && event_key.is_none()
    }

    pub(super) fn selection(&self) -> RowSelection {
        RowSelection {
            broker: self.broker.clone(),
            statuses: self.statuses.clone(),
            message_ids: Vec::new(),
            stream: self.stream.clone(),
            event_type: self.event_key.as_ref().map(ToString::to_string),
        }
    }
}

/// Rows to change. Without ids or filters, `--all` is required.
#[derive(Debug, Args)]
pub(super) struct RowArguments {
    /// Event ids, on all brokers unless --broker is set
    ids: Vec<String>,
    #[command(flatten)]
    filter: RowSelectionOptions,
    /// All rows
    #[arg(long)]
    all: bool,
}

impl RowArguments {
    pub(super) fn selection(&self) -> Result<RowSelection, CliError> {
        let Self { ids, filter, all } = self;
        if ids.is_empty() && filter.is_empty() && !all {
            return Err(CliError::Usage(
                "no rows selected; use ids, --broker, --status, --stream, --event-key, or --all".to_owned(),
            ));
        }
        if *all && !(ids.is_empty() && filter.is_empty()) {
            return Err(CliError::Usage(
                "--all: cannot be combined with ids or filters; use one or the other".to_owned(),
            ));
        }
        Ok(RowSelection { message_ids: ids.clone(), ..filter.selection() })
    }
}
