//! `hub serve`

use clap::Args;

use super::error::{Answer, CliError};
use crate::serve::{self, Role, ServeOptions};
use crate::settings::Settings;

#[derive(Debug, Args)]
pub struct Options {
    /// What this process does; repeat it or separate by commas. Where not given: all but
    /// subscription-resolver, and outbox-relay only where outbox.database_url is set
    #[arg(long = "role", value_name = "ROLE", value_delimiter = ',')]
    roles: Vec<Role>,
    /// Work on the outboxes and dead letters of these domains alone; repeat it or separate by commas
    #[arg(long = "domain", value_name = "NAME", value_delimiter = ',')]
    domains: Vec<String>,
    /// Start a private nats-server whose data lasts, and use it
    #[arg(long)]
    dev: bool,
}

pub async fn run(options: Options, settings: Settings) -> Result<Answer, CliError> {
    let roles = match options.roles {
        named if named.is_empty() => Role::by_default(&settings),
        named => named.into_iter().collect(),
    };
    let serve = ServeOptions { roles, domains: options.domains, dev: options.dev };
    serve::run(settings, serve).await?;
    Ok(Answer::Yes)
}
