//! Generates `src/subscriptions_grpc/generated.rs`. With `--check` it compares instead, and fails if they differ.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/subscriptions_grpc");
    let contract = protox::compile(["subscriptions.proto"], [home.join("proto")])?;
    let folder = std::env::temp_dir().join(format!("grpc-code-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    tonic_prost_build::configure().out_dir(&folder).compile_fds(contract)?;
    let made = std::fs::read_to_string(folder.join("hub.subscriptions.v1.rs"))?;
    std::fs::remove_dir_all(&folder)?;
    let generated = home.join("generated.rs");
    if std::env::args().any(|argument| argument == "--check") {
        if std::fs::read_to_string(&generated)? != made {
            eprintln!(
                "src/subscriptions_grpc/generated.rs: differs from the .proto; run this without --check"
            );
            return Ok(ExitCode::FAILURE);
        }
        return Ok(ExitCode::SUCCESS);
    }
    std::fs::write(&generated, made)?;
    Ok(ExitCode::SUCCESS)
}
