//! `hub.subscriptions.v1.SubscriptionResolver`: who gets an event, asked of another process, and
//! answered for one. The contract is `proto/subscriptions.proto`.
//!
//! `generated.rs` is made from it by `.ci/grpc-code` and kept here, so that building needs neither
//! protoc nor a build script.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

mod client;
mod server;

#[allow(clippy::all)]
#[rustfmt::skip]
mod generated;

pub use client::{ClientOptions, OptionsError, ResolveError, ResolverClient};
pub use server::{Found, Lookup, LookupError, ResolverServer, Served, ServerError, ServerOptions};

/// The largest answer: some 100,000 subscriptions.
const MOST_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// A file of the settings that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {} cannot be read: {source}", file.display())]
pub struct FileError {
    pub setting: &'static str,
    pub file: std::path::PathBuf,
    pub source: std::io::Error,
}

/// A file of certificates in PEM; one without any would be taken for no roots at all.
fn read_certificates(setting: &'static str, file: &std::path::Path) -> Result<Vec<u8>, FileError> {
    let pem = read_file(setting, file)?;
    match CertificateDer::pem_slice_iter(&pem).next() {
        Some(Ok(_)) => Ok(pem),
        _ => Err(FileError {
            setting,
            file: file.to_owned(),
            source: std::io::Error::new(std::io::ErrorKind::InvalidData, "it holds no certificate in PEM"),
        }),
    }
}

fn read_file(setting: &'static str, file: &std::path::Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(file).map_err(|source| FileError { setting, file: file.to_owned(), source })
}
