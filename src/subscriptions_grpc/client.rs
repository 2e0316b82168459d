//! The client of a resolver.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::generated::subscription_resolver_client::SubscriptionResolverClient;
use super::generated::{ResolveRequest, Subscription as Resolved};
use super::{FileError, MOST_ANSWER_BYTES, read_certificates, read_file};
use crate::domain::index::IndexEntry;
use crate::domain::resolution::{self, Unusable};
use crate::domain::words::{span, with_sources};
use crate::facts::ResolverCallFailed;

/// Maximum number of calls for one resolution, including the first.
const MOST_CALLS: u32 = 3;
/// Wait before the second call; doubled before each further call, with jitter.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// A connection without an answer for this long is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// `http://host:port` or `https://host:port`.
    pub url: String,
    pub token: Option<SecretString>,
    /// Roots for the resolver's certificate; the system's roots if not set.
    pub ca_file: Option<PathBuf>,
    /// The hub's own certificate and key.
    pub identity_files: Option<(PathBuf, PathBuf)>,
    /// Time limit of one call.
    pub deadline: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("subscriptions.grpc_url: {}; write http://host:port or https://host:port", whole_text(.0))]
    Url(#[source] tonic::transport::Error),
    #[error("subscriptions.tls_ca_file, tls_cert_file, tls_key_file: {}; write paths of PEM files", whole_text(.0))]
    Tls(#[source] tonic::transport::Error),
    #[error(
        "subscriptions.token: contains characters that an HTTP header cannot hold; use visible ASCII characters"
    )]
    Token(#[source] tonic::metadata::errors::InvalidMetadataValue),
}

/// Why there is no answer now. In every case the events wait.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    #[error("the resolver is unavailable: {}", message(.0))]
    Unavailable(#[source] Box<Status>),
    #[error("the resolver did not answer within {} (subscriptions.deadline)", span(*.0))]
    Deadline(Duration),
    #[error("the resolver rejected the token: {}; set subscriptions.token to the token it expects", message(.0))]
    NotAdmitted(#[source] Box<Status>),
    #[error("the resolver failed with {:?}: {}", .0.code(), message(.0))]
    Failed(#[source] Box<Status>),
    #[error("the resolver's answer is invalid: {0}")]
    Answer(#[from] Unusable),
}

impl ResolveError {
    /// The value of the metrics label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Deadline(_) => "deadline",
            Self::NotAdmitted(_) => "not-admitted",
            Self::Failed(_) => "failed",
            Self::Answer(_) => "answer",
        }
    }

    /// Whether another call may succeed soon.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Deadline(_))
    }
}

/// A connection to a resolver, opened at the first call and again after a loss. Cheap to clone.
#[derive(Clone)]
pub struct ResolverClient {
    client: SubscriptionResolverClient<Channel>,
    authorization: Option<MetadataValue<Ascii>>,
    deadline: Duration,
}

impl ResolverClient {
    /// Reads the files and checks the options. Does not connect yet.
    pub fn new(options: &ClientOptions) -> Result<Self, OptionsError> {
        let mut endpoint = Endpoint::from_shared(options.url.clone())
            .map_err(OptionsError::Url)?
            .connect_timeout(options.deadline)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        if options.url.starts_with("https:") {
            let mut tls = ClientTlsConfig::new();
            tls = match &options.ca_file {
                Some(file) => tls.ca_certificate(Certificate::from_pem(read_certificates(
                    "subscriptions.tls_ca_file",
                    file,
                )?)),
                None => tls.with_native_roots(),
            };
            if let Some((certificate, key)) = &options.identity_files {
                let certificate = read_certificates("subscriptions.tls_cert_file", certificate)?;
                tls = tls
                    .identity(Identity::from_pem(certificate, read_file("subscriptions.tls_key_file", key)?));
            }
            endpoint = endpoint.tls_config(tls).map_err(OptionsError::Tls)?;
        }
        let authorization = match &options.token {
            Some(token) => {
                let mut value: MetadataValue<Ascii> =
                    format!("Bearer {}", token.expose_secret()).parse().map_err(OptionsError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let client = SubscriptionResolverClient::new(endpoint.connect_lazy())
            .max_decoding_message_size(MOST_ANSWER_BYTES);
        Ok(Self { client, authorization, deadline: options.deadline })
    }

    /// All active subscriptions of the tenant whose patterns match the key, with their filters. Makes at most three calls,
    /// each with the deadline, and repeats a call only after a transient error.
    pub async fn resolve(&self, tenant: &str, key: &str) -> Result<Vec<IndexEntry>, ResolveError> {
        let mut wait = FIRST_WAIT;
        let mut calls = 1;
        loop {
            match self.call(tenant, key).await {
                Err(error) if error.is_transient() && calls < MOST_CALLS => {
                    ResolverCallFailed { error: &error, tenant, key, calls }.emit();
                    tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.5))).await;
                    wait *= 2;
                    calls += 1;
                }
                result => return result,
            }
        }
    }

    async fn call(&self, tenant: &str, key: &str) -> Result<Vec<IndexEntry>, ResolveError> {
        let mut request = Request::new(ResolveRequest { tenant: tenant.to_owned(), key: key.to_owned() });
        request.set_timeout(self.deadline);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        let mut client = self.client.clone();
        let answer = tokio::time::timeout(self.deadline, client.resolve(request)).await;
        let answer = answer
            .map_err(|_| ResolveError::Deadline(self.deadline))?
            .map_err(|status| self.failed(status))?;
        let subscriptions = answer.into_inner().subscriptions;
        let entries = subscriptions.into_iter().map(
            |Resolved { id, revision, filter_json, delivery_json, incarnation }| {
                resolution::entry(tenant, id, &incarnation, revision, &filter_json, &delivery_json)
            },
        );
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        resolution::each_once(&entries)?;
        Ok(entries)
    }

    fn failed(&self, status: Status) -> ResolveError {
        // A status with a source comes from the connection, not from the resolver: for example TLS on one side only, or
        // a rejected certificate.
        let of_connection = std::error::Error::source(&status).is_some();
        let (code, status) = (status.code(), Box::new(status));
        match code {
            Code::DeadlineExceeded => ResolveError::Deadline(self.deadline),
            _ if of_connection => ResolveError::Unavailable(status),
            Code::Cancelled => ResolveError::Deadline(self.deadline),
            Code::Unavailable | Code::ResourceExhausted | Code::Aborted => ResolveError::Unavailable(status),
            Code::Unauthenticated | Code::PermissionDenied => ResolveError::NotAdmitted(status),
            _ => ResolveError::Failed(status),
        }
    }
}

/// What broke the connection, or else the message of the resolver, at most 300 characters.
fn message(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => whole_text(source),
        None => status.message().chars().take(300).collect(),
    }
}

/// An error and its sources, at most 500 characters; tonic's own errors only say "transport error".
fn whole_text(error: &dyn std::error::Error) -> String {
    with_sources(error).chars().take(500).collect()
}
