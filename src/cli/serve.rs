//! `hub serve`

use clap::Args;

use super::error::{Answer, CliError};
use super::logging;
use crate::serve::{self, Role, ServeError, ServeOptions};
use crate::settings::Settings;
use crate::signals::LogSignals;
use crate::tasks::Task;

#[derive(Debug, Args)]
pub(super) struct ServeArguments {
    /// Roles of this process; repeatable, or separated by commas [default: all except subscription-resolver,
    /// and outbox-relay only if outbox.database_url is set]
    #[arg(long = "role", value_name = "ROLE", value_delimiter = ',')]
    roles: Vec<Role>,
    /// Domains whose outboxes and dead letters this process handles; repeatable, or separated by commas [default: all]
    #[arg(long = "domain", value_name = "NAME", value_delimiter = ',')]
    domains: Vec<String>,
    /// Start a private nats-server with persistent data, and use it; accept API requests without a token on this machine
    #[arg(long)]
    dev: bool,
}

pub(super) async fn run(options: ServeArguments, settings: Settings) -> Result<Answer, CliError> {
    let roles = match options.roles {
        named if named.is_empty() => Role::by_default(&settings),
        named => named.into_iter().collect(),
    };
    let defaults = ServeOptions::default();
    // A private server either starts or does not; any other may come later.
    let patience = defaults.patience.filter(|_| options.dev);
    let serve = ServeOptions { roles, domains: options.domains, dev: options.dev, patience };
    let signals = LogSignals::new().map_err(ServeError::Signals)?;
    let _log_level = Task::start("the level of the log", logging::follow(signals));
    serve::run(settings, serve).await?;
    Ok(Answer::Yes)
}
