//! The connection below AMQP: TCP, or TLS over it.
//!
//! The client's own TLS brings parsers of PKCS #12 and other formats, which nobody uses here: about thirty crates. So it gets a
//! runtime whose streams are made here.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures_util::{Stream, TryFutureExt, io as futures_io};
use lapin::tcp::AsyncTcpStream;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, Error};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use crate::{SettingError, TlsFiles};

/// Opens a connection, over TLS if that is given, whatever the scheme.
pub(super) async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
    tls: Option<Arc<ClientConfig>>,
) -> Result<Connection, Error> {
    let open =
        async move |uri: AMQPUri, _: Runtime<Kit>| Ok(AsyncTcpStream::Plain(open(&uri, tls.clone()).await?));
    Connection::connector(uri, Runtime::new(Kit(Tokio::current())), open, properties).await
}

async fn open(uri: &AMQPUri, tls: Option<Arc<ClientConfig>>) -> io::Result<Socket> {
    let (host, port) = (uri.authority.host.as_str(), uri.authority.port);
    let tcp = TcpStream::connect((host, port)).await?;
    tcp.set_nodelay(true)?;
    let stream: Transport = match tls {
        Some(tls) => {
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            Box::pin(TlsConnector::from(tls).connect(name, tcp).await?)
        }
        None => Box::pin(tcp),
    };
    Ok(stream.compat())
}

/// TLS with these files, besides the system's roots.
pub(super) fn tls(files: TlsFiles) -> Result<Arc<ClientConfig>, SettingError> {
    let mut roots = system_roots().clone();
    if let Some(ca) = files.ca {
        for root in certificates("tls_ca_file", &ca)? {
            roots.add(root).map_err(|error| unusable("tls_ca_file", error))?;
        }
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let config = match files.identity {
        Some((chain, key)) => {
            let chain = certificates("tls_cert_file", &chain)?;
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| {
                SettingError::new("tls_key_file", "has no private key in PEM").caused_by(error)
            })?;
            builder.with_client_auth_cert(chain, key).map_err(|error| unusable("tls_cert_file", error))?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn certificates(setting: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SettingError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(SettingError::new(setting, "has no certificate in PEM")),
        Err(error) => Err(SettingError::new(setting, "is not a PEM file").caused_by(error)),
    }
}

fn unusable(setting: &'static str, error: rustls::Error) -> SettingError {
    SettingError::new(setting, format!("cannot be used: {error}")).caused_by(error)
}

/// Read once.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    })
}

trait Duplex: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

type Transport = Pin<Box<dyn Duplex>>;
type Socket = Compat<Transport>;

/// Tokio, with these streams.
#[derive(Debug, Clone)]
struct Kit(Tokio);

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        future: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for Kit {
    type TcpStream = Socket;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// AMQP needs no other sockets.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl futures_io::AsyncRead + futures_io::AsyncWrite + Send + Unpin + 'static> {
        Err::<Socket, _>(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        TcpStream::connect(address).map_ok(|tcp| {
            let stream: Transport = Box::pin(tcp);
            stream.compat()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_PEM: &[u8] = b"no certificate";
    const DAMAGED: &[u8] = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        crate::install_tls_provider();
        let identity = |cert: &[u8], key: &[u8]| Some((cert.to_vec(), key.to_vec()));
        for (files, setting) in [
            (TlsFiles { ca: Some(NO_PEM.to_vec()), identity: None }, "tls_ca_file"),
            (TlsFiles { ca: Some(DAMAGED.to_vec()), identity: None }, "tls_ca_file"),
            (TlsFiles { ca: None, identity: identity(NO_PEM, NO_PEM) }, "tls_cert_file"),
            (TlsFiles { ca: None, identity: identity(DAMAGED, NO_PEM) }, "tls_key_file"),
        ] {
            let error = tls(files).expect_err("the file cannot be used");
            assert_eq!(error.setting, setting, "{error}");
        }
        assert!(tls(TlsFiles::default()).is_ok());
    }
}
