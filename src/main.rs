//! `hub`: from the command line to an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use integration_hub::cli::{Cli, logging};
use integration_hub::settings::Settings;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The lifecycle: the command line (a usage error ends here, with 2), the settings in all their
/// layers, the log, the runtime, the one command, its answer as the exit code. A command owns all
/// that it starts and has stopped it when it returns.
fn main() -> ExitCode {
    let cli = Cli::parse();
    let answer = (|| {
        let settings = Settings::load(cli.config_file(), &cli.overrides())?;
        logging::start(cli.log_plan(), &settings.log);
        let runtime = cli.runtime()?;
        runtime.block_on(cli.run(settings))
    })();
    match answer {
        Ok(answer) => answer.into(),
        Err(error) => error.report(),
    }
}
