//! Which connections there are, and which goes when there are too many: the one that has waited longest without
//! a request in hand.

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

/// How long a request's head may take, from the first byte, or from the connection's begin.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection is kept after an answer of which no more is taken, and without another request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Who is at the other end. An IPv6 customer has a network of 64 bits, so that is one peer.
pub(super) fn peer_of(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        ip => ip,
    }
}

/// Most connections at once; 0 for no limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caps {
    pub(super) total: usize,
    pub(super) per_peer: usize,
}

/// Why a connection is not taken: all others have requests in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Listener,
    Peer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The head of a request is coming.
    Head,
    /// The request is there, but for its body.
    Body,
    /// A request is in hand: never cut.
    Busy,
    /// Answered; the next request may come.
    Idle,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: IpAddr,
    id: u64,
    phase: Mutex<(Phase, Instant)>,
    cut: CancellationToken,
}

impl Link {
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

    /// Whether it has kept the listener waiting for too long. A body has a deadline of its own.
    pub(super) fn is_overdue(&self) -> bool {
        let (phase, since) = *self.phase();
        match phase {
            Phase::Head => since.elapsed() >= HEAD_TIMEOUT,
            Phase::Idle => since.elapsed() >= IDLE_TIMEOUT,
            Phase::Body | Phase::Busy => false,
        }
    }

    /// Since when it waits, if no request of it is in hand.
    fn waits_since(&self) -> Option<Instant> {
        let (phase, since) = *self.phase();
        (phase != Phase::Busy).then_some(since)
    }

    /// Returns when the connection has to make room for another.
    pub(super) async fn is_cut(&self) {
        self.cut.cancelled().await;
    }
}

/// All connections of a listener.
#[derive(Debug)]
pub(super) struct Connections {
    caps: Caps,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    links: HashMap<u64, Arc<Link>>,
    per_peer: HashMap<IpAddr, usize>,
}

/// A connection's place; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) link: Arc<Link>,
    connections: Arc<Connections>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.inner().remove(self.link.id);
    }
}

impl Inner {
    fn remove(&mut self, id: u64) {
        let Some(link) = self.links.remove(&id) else { return };
        if let Some(count) = self.per_peer.get_mut(&link.peer) {
            *count -= 1;
            if *count == 0 {
                self.per_peer.remove(&link.peer);
            }
        }
    }

    /// Cuts the connection that has waited longest, of this peer or of all; false if none waits.
    fn make_room(&mut self, peer: Option<IpAddr>) -> bool {
        let candidates = self.links.values().filter(|link| peer.is_none_or(|peer| link.peer == peer));
        let longest = candidates
            .filter_map(|link| Some((link.waits_since()?, link.id)))
            .min()
            .and_then(|(_, id)| self.links.get(&id).cloned());
        let Some(link) = longest else { return false };
        link.cut.cancel();
        self.remove(link.id);
        true
    }
}

impl Connections {
    pub(super) fn new(caps: Caps) -> Arc<Self> {
        Arc::new(Self { caps, inner: Mutex::default() })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one more connection. Where there are as many as there may be, the one that has waited longest goes.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr) -> Result<Place, Full> {
        let Caps { total, per_peer } = self.caps;
        let mut inner = self.inner();
        let of_peer = inner.per_peer.get(&peer).copied().unwrap_or_default();
        if per_peer > 0 && of_peer >= per_peer && !inner.make_room(Some(peer)) {
            return Err(Full::Peer);
        }
        if total > 0 && inner.links.len() >= total && !inner.make_room(None) {
            return Err(Full::Listener);
        }
        let id = inner.next;
        inner.next += 1;
        let link = Arc::new(Link::new(id, peer));
        inner.links.insert(id, link.clone());
        *inner.per_peer.entry(peer).or_default() += 1;
        Ok(Place { link, connections: self.clone() })
    }
}

/// A stream that tells its link what happens on it.
pub(super) struct Watched {
    pub(super) stream: TcpStream,
    pub(super) link: Arc<Link>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.link.bytes_came();
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.link.bytes_went();
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
            self.link.bytes_went();
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
        let connections = Connections::new(Caps { total: 100, per_peer: 2 });
        let other = connections.admit(peer(1)).unwrap();
        let first = connections.admit(peer(2)).unwrap();
        let second = connections.admit(peer(2)).unwrap();
        let third = connections.admit(peer(2)).unwrap();
        first.link.is_cut().await;
        assert!(!second.link.cut.is_cancelled() && !other.link.cut.is_cancelled());
        // Requests in hand are never cut: then the new one is not taken.
        second.link.has_request_in_hand();
        third.link.has_request_in_hand();
        assert_eq!(connections.admit(peer(2)).err(), Some(Full::Peer));
        third.link.is_answered();
        let fourth = connections.admit(peer(2)).unwrap();
        third.link.is_cut().await;
        drop((first, second, third, fourth));
        assert_eq!(connections.inner().links.len(), 1);
        assert_eq!(connections.inner().per_peer.get(&peer(2)), None);
    }

    #[tokio::test]
    async fn a_full_listener_cuts_whoever_waits_and_never_a_request() {
        let connections = Connections::new(Caps { total: 3, per_peer: 0 });
        let busy = connections.admit(peer(1)).unwrap();
        busy.link.has_request_in_hand();
        let slow_body = connections.admit(peer(2)).unwrap();
        slow_body.link.head_is_read();
        let idle = connections.admit(peer(3)).unwrap();
        idle.link.is_answered();
        let next = connections.admit(peer(4)).unwrap();
        slow_body.link.is_cut().await;
        assert!(!busy.link.cut.is_cancelled() && !idle.link.cut.is_cancelled());
        idle.link.has_request_in_hand();
        next.link.has_request_in_hand();
        assert_eq!(connections.admit(peer(5)).err(), Some(Full::Listener));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_and_an_idle_connection_have_their_time() {
        let link = Link::new(0, peer(1));
        tokio::time::advance(HEAD_TIMEOUT - Duration::from_millis(1)).await;
        assert!(!link.is_overdue());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(link.is_overdue());
        link.has_request_in_hand();
        tokio::time::advance(IDLE_TIMEOUT * 9).await;
        assert!(!link.is_overdue());
        link.is_answered();
        tokio::time::advance(IDLE_TIMEOUT - Duration::from_millis(1)).await;
        // The first byte of the next request begins its head's time.
        assert!(!link.is_overdue());
        link.bytes_came();
        tokio::time::advance(HEAD_TIMEOUT).await;
        assert!(link.is_overdue());
    }

    #[test]
    fn an_ipv6_network_is_one_peer_and_a_mapped_address_is_that_of_ipv4() {
        let of = |text: &str| peer_of(text.parse().unwrap());
        assert_eq!(of("[2001:db8:1:2::1]:1"), of("[2001:db8:1:2:ffff::9]:2"));
        assert_ne!(of("[2001:db8:1:2::1]:1"), of("[2001:db8:1:3::1]:1"));
        assert_eq!(of("[::ffff:10.0.0.1]:1"), of("10.0.0.1:2"));
        assert_ne!(of("10.0.0.1:1"), of("10.0.0.2:1"));
    }
}
