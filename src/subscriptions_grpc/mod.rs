//! Client and server of `hub.subscriptions.v1.SubscriptionResolver`, which returns the subscriptions that want an event.
//! The contract is `proto/subscriptions.proto`.
//!
//! `.ci/grpc-code` generates `generated.rs` from it. The file is checked in, so that building needs neither protoc nor a
//! build script.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

mod client;
mod server;

// The generator writes `pub` everywhere.
#[allow(clippy::all, unreachable_pub)]
#[rustfmt::skip]
mod generated;

pub(crate) use client::{ClientOptions, OptionsError, ResolveError, ResolverClient};
pub(crate) use server::{Found, Lookup, LookupError, ResolverServer, Served, ServerError, ServerOptions};

/// Maximum size of an answer in bytes, enough for about 100,000 subscriptions.
const MOST_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// A file named in the settings that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: cannot read {}: {source}", file.display())]
pub struct FileError {
    pub setting: &'static str,
    pub file: std::path::PathBuf,
    pub source: std::io::Error,
}

/// Reads a file of PEM certificates. A file without any is an error, because it would mean no trusted roots.
fn read_certificates(setting: &'static str, file: &std::path::Path) -> Result<Vec<u8>, FileError> {
    let pem = read_file(setting, file)?;
    match CertificateDer::pem_slice_iter(&pem).next() {
        Some(Ok(_)) => Ok(pem),
        _ => Err(FileError {
            setting,
            file: file.to_owned(),
            source: std::io::Error::new(std::io::ErrorKind::InvalidData, "it contains no PEM certificate"),
        }),
    }
}

fn read_file(setting: &'static str, file: &std::path::Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(file).map_err(|source| FileError { setting, file: file.to_owned(), source })
}
