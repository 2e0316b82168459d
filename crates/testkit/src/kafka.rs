//! A private Kafka-compatible broker (Tansu).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::ServerError;
use crate::connections::serve_connections;
use crate::owned_process::Plan;
use crate::proxy::FaultProxy;
use crate::server_process::{Ready, ServerProcess};

const PROGRAM: &str = "tansu";
/// TLS connections at the same time.
const MOST_CONNECTIONS: usize = 256;

/// One Tansu broker on a free loopback port, behind a fault proxy. It keeps its topics in memory: a restart loses them.
///
/// Kafka clients connect to the address that the broker announces: that of the proxy, or of the TLS listener in front of
/// the proxy. (The options of Tansu for a TLS listener of its own exclude each other.)
pub struct TansuServer {
    // Dropped in this order: the process is gone before its folder is removed.
    process: ServerProcess,
    proxy: FaultProxy,
    tls: Option<TlsListener>,
    _folder: TempDir,
}

impl TansuServer {
    /// Starts `program` with further `arguments`, and waits until it listens. With `tls`, clients connect with TLS.
    ///
    /// # Errors
    ///
    /// As [`ServerProcess::start`], or the folder or a port is not available.
    pub async fn start(
        program: &Path,
        arguments: &[&str],
        tls: Option<Arc<ServerConfig>>,
    ) -> Result<Self, ServerError> {
        let folder = crate::folder("hub-tansu-")?;
        let port = crate::free_port().map_err(ServerError::NoPort)?;
        let proxy = FaultProxy::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await;
        let proxy = proxy.map_err(ServerError::NoPort)?;
        let tls = match tls {
            Some(config) => {
                let listener = TlsListener::bind(config, proxy.address()).await;
                Some(listener.map_err(ServerError::NoPort)?)
            }
            None => None,
        };
        let public = tls.as_ref().map_or(proxy.address().port(), |tls| tls.port);
        let advertised = format!("tcp://localhost:{public}");
        let (path, program) = (folder.path().to_owned(), program.to_owned());
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let plan = move || {
            Plan::new(&program)
                .with_folder(&path)
                .args(["broker", "--listener-url", &format!("tcp://127.0.0.1:{port}")])
                .args(["--advertised-listener-url", &advertised, "--storage-engine", "memory://tansu/"])
                .args(&arguments)
        };
        let log = folder.path().join("log");
        let process = ServerProcess::start(PROGRAM, port, &log, Ready::Listening, plan).await?;
        Ok(Self { process, proxy, tls, _folder: folder })
    }

    /// The port of the broker itself, behind the proxy.
    pub fn port(&self) -> u16 {
        self.process.port()
    }

    /// The bootstrap server for clients: `localhost:<port>`.
    pub fn bootstrap(&self) -> String {
        let port = self.tls.as_ref().map_or(self.proxy.address().port(), |tls| tls.port);
        format!("localhost:{port}")
    }

    /// The proxy that every client uses.
    pub fn proxy(&self) -> &FaultProxy {
        &self.proxy
    }

    /// To kill and restart it.
    pub fn process(&mut self) -> &mut ServerProcess {
        &mut self.process
    }
}

/// Accepts TLS and forwards in clear text, until it is dropped.
struct TlsListener {
    port: u16,
    accepting: JoinHandle<()>,
}

impl TlsListener {
    async fn bind(config: Arc<ServerConfig>, upstream: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let acceptor = TlsAcceptor::from(config);
        let serve = move |client: TcpStream| {
            let acceptor = acceptor.clone();
            async move {
                // Some tests expect the handshake to fail.
                let Ok(mut client) = acceptor.accept(client).await else { return };
                if let Ok(mut server) = TcpStream::connect(upstream).await {
                    // Ends when either side closes the connection.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            }
        };
        let accepting = tokio::spawn(async move {
            serve_connections(listener, MOST_CONNECTIONS, serve).await;
        });
        Ok(Self { port, accepting })
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        // Ends the connections, too.
        self.accepting.abort();
    }
}
