//! Serves HTTP/1 on a listener, with a limit of connections in total and per peer, and deadlines for idle connections. A
//! request in progress is never cut to make room.

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
use tokio_util::sync::CancellationToken;

use super::connections::{
    ConnectionLimits, Connections, LimitReached, TrackedConnection, WatchedStream, peer_of,
};
use super::problem::Problem;
use super::unread_requests::AnsweringStream;
use crate::facts::{ConnectionFailed, ConnectionNotAccepted, OpenRequestsClosed};
use crate::tasks::Jobs;

/// Interval for checking a connection's deadlines.
const TICK: Duration = Duration::from_millis(500);
/// Maximum wait for open requests at shutdown.
const GRACE: Duration = Duration::from_secs(10);
/// Pause after a failed accept, for example without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Concurrent answers to refused connections; further refused connections are closed without an answer.
const REFUSALS_AT_ONCE: usize = 64;
/// Time limit for such an answer.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The connection of a request.
#[derive(Debug, Clone)]
pub(super) struct ConnectionInfo {
    pub(super) tracked: Arc<TrackedConnection>,
    /// The hub's address that the caller connected to.
    pub(super) local: Option<IpAddr>,
}

pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    stop: CancellationToken,
) {
    let connections = Connections::new(limits);
    let refusals = Arc::new(Semaphore::new(REFUSALS_AT_ONCE));
    let graceful = GracefulShutdown::new();
    let mut jobs = Jobs::new("a connection");
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    ConnectionNotAccepted { error: &error }.emit();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = stop.cancelled() => break,
        };
        let place = match connections.admit(peer_of(address)) {
            Ok(place) => place,
            Err(limit) => {
                if let Ok(permit) = refusals.clone().try_acquire_owned() {
                    jobs.start(async move {
                        let _ = tokio::time::timeout(REFUSAL_TIMEOUT, refuse(stream, limit)).await;
                        drop(permit);
                    });
                }
                continue;
            }
        };
        // An answer is one write; Nagle's algorithm would only delay it.
        let _ = stream.set_nodelay(true);
        let local = stream.local_addr().ok().map(|address| address.ip().to_canonical());
        let tracked = place.tracked.clone();
        let info = ConnectionInfo { tracked: tracked.clone(), local };
        let router = TowerToHyperService::new(router.clone());
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let mut request = request.map(Body::new);
            let connection = info.clone();
            connection.tracked.head_is_read();
            request.extensions_mut().insert(connection.clone());
            let answer = router.call(request);
            async move {
                let answer = answer.await;
                connection.tracked.is_answered();
                answer
            }
        });
        let io = AnsweringStream::new(WatchedStream { stream, tracked: tracked.clone() });
        let io = TokioIo::new(io);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // `TrackedConnection` has the deadlines.
            .header_read_timeout(None)
            .serve_connection(io, service);
        let connection = graceful.watch(connection);
        jobs.start(async move {
            let mut connection = std::pin::pin!(connection);
            let mut tick = tokio::time::interval(TICK);
            loop {
                tokio::select! {
                    ended = &mut connection => {
                        if let Err(error) = ended {
                            ConnectionFailed { error: &error }.emit();
                        }
                        break;
                    }
                    () = tracked.is_cut() => break,
                    _ = tick.tick() => if tracked.is_overdue() { break },
                }
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        OpenRequestsClosed { waited: GRACE }.emit();
    }
    jobs.shutdown().await;
}

/// Answers a refused connection with the reason. Incoming bytes are read and discarded, because the peer would not read
/// the answer on a broken connection.
async fn refuse(mut stream: TcpStream, limit: LimitReached) {
    let problem = match limit {
        LimitReached::Listener => Problem::later(
            1,
            "the hub has reached its limit of connections (api.connections); try again later",
        ),
        LimitReached::Peer => Problem::too_many(
            1,
            "this address has reached its limit of connections with requests in progress (api.connections_per_peer); \
             use fewer at once",
        ),
    };
    let written = async {
        stream.write_all(&problem.to_http()).await?;
        stream.shutdown().await
    };
    if written.await.is_ok() {
        let mut discarded = [0; 4096];
        while matches!(stream.read(&mut discarded).await, Ok(1..)) {}
    }
}
