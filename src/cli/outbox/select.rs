//! Which rows of the outbox a command means.

use clap::Args;

use crate::cli::error::CliError;
use crate::domain::key::EventKey;
use crate::domain::producer_outbox::Status;
use crate::management::outbox::RowSelection;

#[derive(Debug, Default, Args)]
pub struct Filter {
    /// Of this target broker: internal, or one of the external brokers
    #[arg(long, value_name = "NAME")]
    broker: Option<String>,
    /// pending, processing, failed, published or abandoned; repeat it or separate by commas
    #[arg(long = "status", value_name = "STATUS", value_delimiter = ',')]
    statuses: Vec<Status>,
    /// Of this stream
    #[arg(long, value_name = "KEY")]
    stream: Option<String>,
    /// Of events with this key
    #[arg(long, value_name = "KEY")]
    event_key: Option<EventKey>,
}

impl Filter {
    fn is_empty(&self) -> bool {
        let Self { broker, statuses, stream, event_key } = self;
        broker.is_none() && statuses.is_empty() && stream.is_none() && event_key.is_none()
    }

    pub fn selection(&self) -> RowSelection {
        RowSelection {
            broker: self.broker.clone(),
            statuses: self.statuses.clone(),
            message_ids: Vec::new(),
            stream: self.stream.clone(),
            event_type: self.event_key.as_ref().map(ToString::to_string),
        }
    }
}

/// Rows that are to be changed: nothing is meant unsaid.
#[derive(Debug, Args)]
pub struct Selected {
    /// The events' ids, on every broker unless --broker says which
    ids: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// All of them
    #[arg(long)]
    all: bool,
}

impl Selected {
    pub fn selection(&self) -> Result<RowSelection, CliError> {
        let Self { ids, filter, all } = self;
        if ids.is_empty() && filter.is_empty() && !all {
            return Err(CliError::Usage(
                "say which: ids, --broker, --status, --stream, --event-key, or --all".to_owned(),
            ));
        }
        if *all && !(ids.is_empty() && filter.is_empty()) {
            return Err(CliError::Usage("--all means every row; give it alone, or leave it out".to_owned()));
        }
        Ok(RowSelection { message_ids: ids.clone(), ..filter.selection() })
    }
}
