//! The server of a resolver.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};

use super::generated::subscription_resolver_server::{SubscriptionResolver, SubscriptionResolverServer};
use super::generated::{ResolveRequest, ResolveResponse, Subscription};
use super::{FileError, MOST_ANSWER_BYTES, read_certificates, read_file};
use crate::domain::index::IndexEntry;
use crate::domain::key::EventKey;
use crate::domain::subscription::is_tenant;

/// Maximum number of concurrent calls per connection.
const CALLS_PER_CONNECTION: usize = 64;
/// Time limit of one answer, whatever the caller's deadline.
const CALL_LIMIT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long open calls may continue after a stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// The future of a look-up.
pub(crate) type Found<'a> = futures_util::future::BoxFuture<'a, Result<Vec<Arc<IndexEntry>>, LookupError>>;

/// The source of the answers.
pub trait Lookup: Send + Sync + 'static {
    /// The tenant's active subscriptions whose patterns match the key.
    fn matching(&self, tenant: String, key: EventKey) -> Found<'_>;

    /// Gets the outcome of each call.
    fn served(&self, result: Served);
}

/// The outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    Answered,
    /// The caller's token is missing or wrong.
    NotAdmitted,
    /// The request is invalid.
    Invalid,
    /// The source is unavailable.
    Unavailable,
}

impl Served {
    /// The value of the metrics label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NotAdmitted => "not-admitted",
            Self::Invalid => "invalid",
            Self::Unavailable => "unavailable",
        }
    }

    fn of(result: &Result<ResolveResponse, Status>) -> Self {
        match result.as_ref().map_err(Status::code) {
            Ok(_) => Self::Answered,
            Err(Code::Unauthenticated) => Self::NotAdmitted,
            Err(Code::InvalidArgument) => Self::Invalid,
            Err(_) => Self::Unavailable,
        }
    }
}

/// Why the source is unavailable. The text goes to the caller.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("the subscription registry is still loading")]
    Loading,
    #[error("the subscription registry is unavailable")]
    Registry(#[source] Box<dyn Error + Send + Sync>),
    #[error("a subscription of the tenant is unreadable")]
    UnreadableEntry,
}

#[derive(Debug, Clone)]
pub struct ServerOptions {
    pub listen: SocketAddr,
    /// The bearer token that callers must send; without one every caller is answered.
    pub token: Option<SecretString>,
    /// Certificate and key; if set, only TLS connections are accepted.
    pub identity_files: Option<(PathBuf, PathBuf)>,
    /// If set, callers need a certificate of this authority.
    pub client_ca_file: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "subscriptions.listen: cannot listen on {address}: {source}; choose another address, or stop the process that uses it"
    )]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("subscriptions.listen_tls_cert_file, listen_tls_key_file: {0}; write paths of PEM files")]
    Tls(#[source] tonic::transport::Error),
    #[error("the resolver's listener failed: {0}")]
    Serve(#[source] tonic::transport::Error),
}

/// A bound listener.
pub struct ResolverServer {
    server: Server,
    incoming: TcpIncoming,
    token: Option<Token>,
}

impl ResolverServer {
    pub fn bind(options: &ServerOptions) -> Result<Self, ServerError> {
        let mut server = Server::builder()
            .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
            .timeout(CALL_LIMIT)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE));
        if let Some((certificate, key)) = &options.identity_files {
            let certificate = read_certificates("subscriptions.listen_tls_cert_file", certificate)?;
            let key = read_file("subscriptions.listen_tls_key_file", key)?;
            let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
            if let Some(file) = &options.client_ca_file {
                let roots = read_certificates("subscriptions.listen_tls_client_ca_file", file)?;
                tls = tls.client_ca_root(Certificate::from_pem(roots));
            }
            server = server.tls_config(tls).map_err(ServerError::Tls)?;
        }
        let address = options.listen;
        let incoming =
            TcpIncoming::bind(address).map_err(|source| ServerError::Listen { address, source })?;
        Ok(Self { server, incoming, token: options.token.as_ref().map(Token::new) })
    }

    /// The address of the listener, for a configured port 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.incoming.local_addr().ok()
    }

    /// Answers calls until `stop`, then waits for open calls, at most [`STOP_LIMIT`].
    pub async fn run(self, lookup: Arc<dyn Lookup>, stop: CancellationToken) -> Result<(), ServerError> {
        let Self { mut server, incoming, token } = self;
        let resolver = SubscriptionResolverServer::new(Service { lookup, token })
            .max_encoding_message_size(MOST_ANSWER_BYTES);
        let stopped = stop.clone();
        let serving = server
            .add_service(resolver)
            .serve_with_incoming_shutdown(incoming, async move { stopped.cancelled().await });
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_LIMIT).await;
        };
        tokio::select! {
            served = serving => served.map_err(ServerError::Serve),
            () = late => Ok(()),
        }
    }
}

/// The digest of the token that callers must send. Digests are compared in constant time, so that the response time
/// reveals neither the token nor its length.
struct Token([u8; 32]);

impl Token {
    fn new(token: &SecretString) -> Self {
        Self(Sha256::digest(token.expose_secret()).into())
    }

    fn is(&self, sent: &[u8]) -> bool {
        self.0.ct_eq(Sha256::digest(sent).as_slice()).into()
    }
}

struct Service {
    lookup: Arc<dyn Lookup>,
    token: Option<Token>,
}

impl Service {
    fn admit(&self, request: &Request<ResolveRequest>) -> Result<(), Status> {
        let Some(token) = &self.token else { return Ok(()) };
        let sent = request.metadata().get("authorization").map(|value| value.as_bytes());
        match sent.and_then(bearer) {
            Some(sent) if token.is(sent) => Ok(()),
            Some(_) => Err(Status::unauthenticated("wrong bearer token")),
            None => Err(Status::unauthenticated("send authorization: Bearer <token>")),
        }
    }
}

/// The token of `Bearer <token>`; the scheme is case-insensitive (RFC 9110 section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

#[tonic::async_trait]
impl SubscriptionResolver for Service {
    async fn resolve(&self, request: Request<ResolveRequest>) -> Result<Response<ResolveResponse>, Status> {
        let result = self.answer(request).await;
        self.lookup.served(Served::of(&result));
        result.map(Response::new)
    }
}

impl Service {
    async fn answer(&self, request: Request<ResolveRequest>) -> Result<ResolveResponse, Status> {
        self.admit(&request)?;
        let ResolveRequest { tenant, key } = request.into_inner();
        if !is_tenant(&tenant) {
            return Err(Status::invalid_argument(
                "tenant: must be 1 to 64 of letters, digits, '_', '.' and '-'",
            ));
        }
        let key =
            EventKey::try_from(key).map_err(|error| Status::invalid_argument(format!("key: {error}")))?;
        let found = self.lookup.matching(tenant, key).await;
        let entries = found.map_err(|error| Status::unavailable(error.to_string()))?;
        let subscriptions = entries.iter().map(|entry| to_message(entry)).collect::<Result<_, _>>()?;
        Ok(ResolveResponse { subscriptions })
    }
}

fn to_message(entry: &IndexEntry) -> Result<Subscription, Status> {
    let interest = &entry.subscription;
    let filter_json = if interest.filter.is_empty() {
        String::new()
    } else {
        serde_json::to_string(&interest.filter)
            .map_err(|error| Status::internal(format!("the filter of {}: {error}", interest.id())))?
    };
    Ok(Subscription {
        id: interest.id().to_owned(),
        revision: entry.revision,
        filter_json,
        delivery_json: entry.delivery.get().to_owned(),
        incarnation: if interest.incarnation.is_legacy() {
            String::new()
        } else {
            interest.incarnation.to_string()
        },
    })
}
