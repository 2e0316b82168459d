//! Tracks the connections of a listener. At the limit, the connection that has waited longest without a request in progress
//! is closed.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Time limit for the head of a request, from its first byte or from the start of the connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for an idle connection, from the last byte of the answer that the peer accepted.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the peer of an address. An IPv6 customer usually has a /64 network, so that is one peer.
pub(super) fn peer_of(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        ip => ip,
    }
}

/// Maximum numbers of concurrent connections; 0 means no limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionLimits {
    pub(super) total: usize,
    pub(super) per_peer: usize,
}

/// The limit for which a connection was refused: all others have requests in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LimitReached {
    Listener,
    Peer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waiting for the head of a request.
    Head,
    /// Waiting for the body of a request.
    Body,
    /// A request is in progress: never cut.
    Busy,
    /// Answered; waiting for the next request.
    Idle,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct TrackedConnection {
    pub(super) peer: IpAddr,
    id: u64,
    phase: Mutex<(Phase, Instant)>,
    cut: CancellationToken,
}

impl TrackedConnection {
    fn new(id: u64, peer: IpAddr) -> Self {
        Self { peer, id, phase: Mutex::new((Phase::Head, Instant::now())), cut: CancellationToken::new() }
    }

    fn phase(&self) -> MutexGuard<'_, (Phase, Instant)> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn head_is_read(&self) {
        *self.phase() = (Phase::Body, Instant::now());
    }

    pub(super) fn has_request_in_hand(&self) {
        *self.phase() = (Phase::Busy, Instant::now());
    }

    pub(super) fn is_answered(&self) {
        *self.phase() = (Phase::Idle, Instant::now());
    }

    fn bytes_came(&self) {
        let mut phase = self.phase();
        if phase.0 == Phase::Idle {
            *phase = (Phase::Head, Instant::now());
        }
    }

    fn bytes_went(&self) {
        let mut phase = self.phase();
        if phase.0 == Phase::Idle {
            phase.1 = Instant::now();
        }
    }

    /// True if the deadline of a head or an idle connection has passed. A body has its own deadline.
    pub(super) fn is_overdue(&self) -> bool {
        let (phase, since) = *self.phase();
        match phase {
            Phase::Head => since.elapsed() >= HEAD_TIMEOUT,
            Phase::Idle => since.elapsed() >= IDLE_TIMEOUT,
            Phase::Body | Phase::Busy => false,
        }
    }

    /// The time since which it waits, if it has no request in progress.
    fn waits_since(&self) -> Option<Instant> {
        let (phase, since) = *self.phase();
        (phase != Phase::Busy).then_some(since)
    }

    /// Waits until the connection must be closed to make room for another.
    pub(super) async fn is_cut(&self) {
        self.cut.cancelled().await;
    }
}

/// The connections of a listener.
#[derive(Debug)]
pub(super) struct Connections {
    limits: ConnectionLimits,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    connections: HashMap<u64, Arc<TrackedConnection>>,
    per_peer: HashMap<IpAddr, usize>,
}

/// A tracked connection, released on drop.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    pub(super) tracked: Arc<TrackedConnection>,
    connections: Arc<Connections>,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.connections.inner().remove(self.tracked.id);
    }
}

impl Inner {
    fn remove(&mut self, id: u64) {
        let Some(tracked) = self.connections.remove(&id) else { return };
        if let Some(count) = self.per_peer.get_mut(&tracked.peer) {
            *count -= 1;
            if *count == 0 {
                self.per_peer.remove(&tracked.peer);
            }
        }
    }

    /// Cuts the connection that has waited longest, of `peer` or of all peers. False if none waits.
    fn make_room(&mut self, peer: Option<IpAddr>) -> bool {
        let candidates =
            self.connections.values().filter(|tracked| peer.is_none_or(|peer| tracked.peer == peer));
        let longest = candidates
            .filter_map(|tracked| Some((tracked.waits_since()?, tracked.id)))
            .min()
            .and_then(|(_, id)| self.connections.get(&id).cloned());
        let Some(tracked) = longest else { return false };
        tracked.cut.cancel();
        self.remove(tracked.id);
        true
    }
}

impl Connections {
    pub(super) fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self { limits, inner: Mutex::default() })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection. At the limit, the connection that has waited longest is cut.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr) -> Result<ConnectionSlot, LimitReached> {
        let ConnectionLimits { total, per_peer } = self.limits;
        let mut inner = self.inner();
        let of_peer = inner.per_peer.get(&peer).copied().unwrap_or_default();
        if per_peer > 0 && of_peer >= per_peer && !inner.make_room(Some(peer)) {
            return Err(LimitReached::Peer);
        }
        if total > 0 && inner.connections.len() >= total && !inner.make_room(None) {
            return Err(LimitReached::Listener);
        }
        let id = inner.next;
        inner.next += 1;
        let tracked = Arc::new(TrackedConnection::new(id, peer));
        inner.connections.insert(id, tracked.clone());
        *inner.per_peer.entry(peer).or_default() += 1;
        Ok(ConnectionSlot { tracked, connections: self.clone() })
    }
}

/// A stream that reports reads and writes to its [`TrackedConnection`].
pub(super) struct WatchedStream {
    pub(super) stream: TcpStream,
    pub(super) tracked: Arc<TrackedConnection>,
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.tracked.bytes_came();
        }
        result
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.tracked.bytes_went();
        }
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.tracked.bytes_went();
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    #[tokio::test]
    async fn a_peer_with_too_many_loses_its_own_oldest_and_nobody_elses() {
        let connections = Connections::new(ConnectionLimits { total: 100, per_peer: 2 });
        let other = connections.admit(peer(1)).unwrap();
        let first = connections.admit(peer(2)).unwrap();
        let second = connections.admit(peer(2)).unwrap();
        let third = connections.admit(peer(2)).unwrap();
        first.tracked.is_cut().await;
        assert!(!second.tracked.cut.is_cancelled() && !other.tracked.cut.is_cancelled());
        // Requests in progress are never cut, so the new connection is refused.
        second.tracked.has_request_in_hand();
        third.tracked.has_request_in_hand();
        assert_eq!(connections.admit(peer(2)).err(), Some(LimitReached::Peer));
        third.tracked.is_answered();
        let fourth = connections.admit(peer(2)).unwrap();
        third.tracked.is_cut().await;
        drop((first, second, third, fourth));
        assert_eq!(connections.inner().connections.len(), 1);
        assert_eq!(connections.inner().per_peer.get(&peer(2)), None);
    }

    #[tokio::test]
    async fn a_full_listener_cuts_whoever_waits_and_never_a_request() {
        let connections = Connections::new(ConnectionLimits { total: 3, per_peer: 0 });
        let busy = connections.admit(peer(1)).unwrap();
        busy.tracked.has_request_in_hand();
        let slow_body = connections.admit(peer(2)).unwrap();
        slow_body.tracked.head_is_read();
        let idle = connections.admit(peer(3)).unwrap();
        idle.tracked.is_answered();
        let next = connections.admit(peer(4)).unwrap();
        slow_body.tracked.is_cut().await;
        assert!(!busy.tracked.cut.is_cancelled() && !idle.tracked.cut.is_cancelled());
        idle.tracked.has_request_in_hand();
        next.tracked.has_request_in_hand();
        assert_eq!(connections.admit(peer(5)).err(), Some(LimitReached::Listener));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_and_an_idle_connection_have_deadlines() {
        let tracked = TrackedConnection::new(0, peer(1));
        tokio::time::advance(HEAD_TIMEOUT - Duration::from_millis(1)).await;
        assert!(!tracked.is_overdue());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(tracked.is_overdue());
        tracked.has_request_in_hand();
        tokio::time::advance(IDLE_TIMEOUT * 9).await;
        assert!(!tracked.is_overdue());
        tracked.is_answered();
        tokio::time::advance(IDLE_TIMEOUT - Duration::from_millis(1)).await;
        // The first byte of the next request starts the time of its head.
        assert!(!tracked.is_overdue());
        tracked.bytes_came();
        tokio::time::advance(HEAD_TIMEOUT).await;
        assert!(tracked.is_overdue());
    }

    #[test]
    fn an_ipv6_network_is_one_peer_and_a_mapped_address_counts_as_ipv4() {
        let of = |text: &str| peer_of(text.parse().unwrap());
        assert_eq!(of("[2001:db8:1:2::1]:1"), of("[2001:db8:1:2:ffff::9]:2"));
        assert_ne!(of("[2001:db8:1:2::1]:1"), of("[2001:db8:1:3::1]:1"));
        assert_eq!(of("[::ffff:10.0.0.1]:1"), of("10.0.0.1:2"));
        assert_ne!(of("10.0.0.1:1"), of("10.0.0.2:1"));
    }
}
