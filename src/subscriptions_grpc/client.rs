//! Asking a resolver.

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

/// Calls for one resolution, the first one included.
const MOST_CALLS: u32 = 3;
/// The wait before the second call; doubled before each further one, and jittered.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// A connection over which nothing came back for this long is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// `http://host:port` or `https://host:port`.
    pub url: String,
    pub token: Option<SecretString>,
    /// The roots that the resolver's certificate is checked against; the system's where not set.
    pub ca_file: Option<PathBuf>,
    /// The hub's own certificate and key.
    pub identity_files: Option<(PathBuf, PathBuf)>,
    /// The longest one call may take.
    pub deadline: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("subscriptions.grpc_url: {0}; write http://host:port or https://host:port")]
    Url(String),
    #[error("subscriptions.tls_ca_file, tls_cert_file and tls_key_file cannot be used: {0}; give PEM files")]
    Tls(String),
    #[error("subscriptions.token holds what no HTTP header can; use visible ASCII characters")]
    Token,
}

/// Why there is no answer now. Whatever it is, the events wait.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    #[error("the resolver cannot be reached: {0}")]
    Unavailable(String),
    #[error("the resolver did not answer within {0:?} (subscriptions.deadline)")]
    Deadline(Duration),
    #[error("the resolver does not know this hub: {0}; set subscriptions.token to the token it expects")]
    NotAdmitted(String),
    #[error("the resolver failed with {code}: {message}")]
    Failed { code: String, message: String },
    #[error("the resolver's answer cannot be used: {0}")]
    Answer(#[from] Unusable),
}

impl ResolveError {
    /// Its name in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Deadline(_) => "deadline",
            Self::NotAdmitted(_) => "not-admitted",
            Self::Failed { .. } => "failed",
            Self::Answer(_) => "answer",
        }
    }

    /// Whether another call may end better soon.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Deadline(_))
    }
}

/// A connection to a resolver, made when it is first needed and again when it was lost. Cheap to
/// clone.
#[derive(Clone)]
pub struct ResolverClient {
    client: SubscriptionResolverClient<Channel>,
    authorization: Option<MetadataValue<Ascii>>,
    deadline: Duration,
}

impl ResolverClient {
    /// Reads the files and checks the options; connects later.
    pub fn new(options: &ClientOptions) -> Result<Self, OptionsError> {
        let mut endpoint = Endpoint::from_shared(options.url.clone())
            .map_err(|error| OptionsError::Url(error.to_string()))?
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
            endpoint = endpoint.tls_config(tls).map_err(|error| OptionsError::Tls(whole_text(&error)))?;
        }
        let authorization = match &options.token {
            Some(token) => {
                let mut value: MetadataValue<Ascii> =
                    format!("Bearer {}", token.expose_secret()).parse().map_err(|_| OptionsError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let client = SubscriptionResolverClient::new(endpoint.connect_lazy())
            .max_decoding_message_size(MOST_ANSWER_BYTES);
        Ok(Self { client, authorization, deadline: options.deadline })
    }

    /// All active subscriptions of the tenant whose patterns match the key, with their filters. Each
    /// of at most three calls runs into the deadline; they are made only where another may help.
    pub async fn resolve(&self, tenant: &str, key: &str) -> Result<Vec<IndexEntry>, ResolveError> {
        let mut wait = FIRST_WAIT;
        let mut calls = 1;
        loop {
            match self.call(tenant, key).await {
                Err(error) if error.is_transient() && calls < MOST_CALLS => {
                    tracing::debug!(%error, tenant, key, calls, "asking the resolver again");
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
            .map_err(|status| self.failed(&status))?;
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

    fn failed(&self, status: &Status) -> ResolveError {
        let message = || status.message().chars().take(300).collect::<String>();
        match (status.code(), cause(status)) {
            (Code::DeadlineExceeded, _) | (Code::Cancelled, None) => ResolveError::Deadline(self.deadline),
            // The connection made the status, and not the resolver: whatever its code, no TLS where
            // TLS is spoken, or a certificate that was refused.
            (_, Some(cause)) => ResolveError::Unavailable(cause),
            (Code::Unavailable | Code::ResourceExhausted | Code::Aborted, None) => {
                ResolveError::Unavailable(message())
            }
            (Code::Unauthenticated | Code::PermissionDenied, None) => ResolveError::NotAdmitted(message()),
            (code, None) => ResolveError::Failed { code: format!("{code:?}"), message: message() },
        }
    }
}

/// What broke the connection, where that is what the status came from.
fn cause(status: &Status) -> Option<String> {
    std::error::Error::source(status).map(whole_text)
}

/// An error with what caused it: tonic's own texts are "transport error".
fn whole_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text.chars().take(500).collect()
}
