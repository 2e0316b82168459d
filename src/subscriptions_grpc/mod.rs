//! `hub.subscriptions.v1.SubscriptionResolver`: who gets an event, asked of another process, and
//! answered for one. The contract is `proto/subscriptions.proto`.
//!
//! `generated.rs` is made from it by `.ci/grpc-code` and kept here, so that building needs neither
//! protoc nor a build script.

mod client;
mod server;

#[allow(clippy::all)]
#[rustfmt::skip]
mod generated;

pub use client::{ClientOptions, OptionsError, ResolveError, ResolverClient};
pub use server::{Found, Lookup, LookupError, ResolverServer, ServerError, ServerOptions};

/// The largest answer: some 100,000 subscriptions.
const MOST_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// A file of the settings that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {} cannot be read: {source}", file.display())]
pub struct FileError {
    pub setting: &'static str,
    pub file: std::path::PathBuf,
    pub source: std::io::Error,
}

fn read_file(setting: &'static str, file: &std::path::Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(file).map_err(|source| FileError { setting, file: file.to_owned(), source })
}
