//! The listener: at most so many connections, of all and of one peer, each of which has to say what it wants in
//! time. What is in hand is never cut to make room.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connections::{Caps, Connections, Full, Link, Watched, peer_of};
use super::problem::Problem;

/// How often a connection's deadlines are looked at.
const TICK: Duration = Duration::from_millis(500);
/// How long open requests are waited for at the end.
const GRACE: Duration = Duration::from_secs(10);
/// After an accept that failed for want of file descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that are told at once why they are not taken; more are closed without a word.
const TOLD_AT_ONCE: usize = 64;
/// How long that may take.
const TELLING: Duration = Duration::from_secs(1);

/// What a request's connection says of it.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) link: Arc<Link>,
    /// The address of the hub's that the caller has connected to.
    pub(super) local: Option<IpAddr>,
}

pub(super) async fn serve(listener: TcpListener, router: Router, caps: Caps, stop: CancellationToken) {
    let connections = Connections::new(caps);
    let telling = Arc::new(Semaphore::new(TOLD_AT_ONCE));
    let graceful = GracefulShutdown::new();
    let mut tasks = JoinSet::new();
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = stop.cancelled() => break,
        };
        while tasks.try_join_next().is_some() {}
        let place = match connections.admit(peer_of(address)) {
            Ok(place) => place,
            Err(full) => {
                if let Ok(permit) = telling.clone().try_acquire_owned() {
                    tasks.spawn(async move {
                        let _ = tokio::time::timeout(TELLING, tell(stream, full)).await;
                        drop(permit);
                    });
                }
                continue;
            }
        };
        // An answer is one write; waiting for more to send would only delay it.
        let _ = stream.set_nodelay(true);
        let local = stream.local_addr().ok().map(|address| address.ip().to_canonical());
        let link = place.link.clone();
        let of_requests = Connection { link: link.clone(), local };
        let router = TowerToHyperService::new(router.clone());
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let mut request = request.map(Body::new);
            let connection = of_requests.clone();
            connection.link.head_is_read();
            request.extensions_mut().insert(connection.clone());
            let answer = router.call(request);
            async move {
                let answer = answer.await;
                connection.link.is_answered();
                answer
            }
        });
        let io = TokioIo::new(Watched { stream, link: link.clone() });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // The link has the deadlines.
            .header_read_timeout(None)
            .serve_connection(io, service);
        let connection = graceful.watch(connection);
        tasks.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let mut tick = tokio::time::interval(TICK);
            loop {
                tokio::select! {
                    ended = &mut connection => {
                        if let Err(error) = ended {
                            tracing::debug!(%error, "a connection ended");
                        }
                        break;
                    }
                    () = link.is_cut() => break,
                    _ = tick.tick() => if link.is_overdue() { break },
                }
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still open after {} s and are cut", GRACE.as_secs());
    }
    tasks.shutdown().await;
}

/// Says why a connection is not taken. What its peer sends meanwhile is read and thrown away: it would not read an
/// answer on a connection that breaks.
async fn tell(mut stream: TcpStream, full: Full) {
    let problem = match full {
        Full::Listener => Problem::later(1, "the hub has as many connections as api.connections allows"),
        Full::Peer => Problem::too_many(
            1,
            "this address has as many connections with requests in hand as api.connections_per_peer allows; \
             use fewer at once",
        ),
    };
    let written = async {
        stream.write_all(&problem.to_http()).await?;
        stream.shutdown().await
    };
    if written.await.is_ok() {
        let mut thrown_away = [0; 4096];
        while matches!(stream.read(&mut thrown_away).await, Ok(1..)) {}
    }
}
