//! `hub`: from the command line to an exit code.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use integration_hub::cli::{Cli, logging};
use integration_hub::open_files;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The lifecycle: the command line (a usage error ends here, with 2), the settings in all their
/// layers, the log, the runtime, the one command, its answer as the exit code. A command owns all
/// that it starts and has stopped it when it returns. The last lines of the log are written at the end.
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
        // Nothing is waited for that the command left behind: a download it was told to give up, say.
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
