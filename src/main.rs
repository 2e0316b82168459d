//! The `hub` program.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use integration_hub::cli::{Cli, logging};
use integration_hub::open_files;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Parses the command line (a usage error exits with 2), loads the settings, starts the log and the runtime, runs the
/// command, and converts its answer to the exit code. A command stops everything that it started before it returns.
/// The last log lines are written at the end.
fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let answer = (|| {
        let settings = cli.settings()?;
        logging::start(cli.log_plan(), &settings.log);
        open_files::raise();
        let runtime = cli.runtime()?;
        let answer = runtime.block_on(cli.run(settings));
        // Do not wait for blocking work that the command abandoned, such as a cancelled download.
        runtime.shutdown_background();
        answer
    })();
    let code = match answer {
        Ok(answer) => answer.into(),
        Err(error) => error.report(),
    };
    logging::finish();
    code
}
