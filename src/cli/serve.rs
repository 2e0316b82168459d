//! `hub serve`

use clap::Args;

use super::error::{Answer, CliError};
use crate::serve::{self, Role, ServeOptions};
use crate::settings::Settings;

#[derive(Debug, Args)]
pub struct Options {
    /// What this process does; repeat it or separate by commas. All roles where not given
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
    let mut serve = ServeOptions { domains: options.domains, dev: options.dev, ..ServeOptions::default() };
    if !options.roles.is_empty() {
        serve.roles = options.roles.into_iter().collect();
    }
    serve::run(settings, serve).await?;
    Ok(Answer::Yes)
}
