//! The `hub` program.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use integration_hub::cli::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A usage error exits with 2.
fn main() -> ExitCode {
    match Cli::read() {
        Ok(cli) => cli.execute(),
        Err(code) => code,
    }
}
