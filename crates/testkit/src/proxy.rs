//! A TCP proxy that freezes or cuts its connections, on demand or at a chosen step of a protocol.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::connections::serve_connections;

/// Connections at the same time.
const MOST_CONNECTIONS: usize = 4_096;

/// The direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Before,
    After,
}

/// Applies once, to the first connection with the pattern.
struct Rule {
    direction: Direction,
    pattern: Vec<u8>,
    side: Side,
    fired: oneshot::Sender<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    frozen: bool,
    refusing: bool,
    /// Incremented by each cut.
    cuts: u64,
}

struct ProxyState {
    upstream: SocketAddr,
    flow: watch::Sender<Flow>,
    rules: Mutex<Vec<Rule>>,
    /// Number of open connections.
    open: watch::Sender<usize>,
}

/// Listens on a port of its own and forwards each connection to a server, until it is dropped.
///
/// A frozen connection is open and silent in both directions, as in a network that drops packets. If one end closes it,
/// the proxy closes the other. The server must not announce its own address to clients; a single nats-server does not.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<ProxyState>,
    accepting: JoinHandle<()>,
}

/// Waits for a rule to apply; see [`FaultProxy::cut_after`].
pub struct Trigger {
    fired: oneshot::Receiver<()>,
    what: String,
}

impl Trigger {
    /// Waits until the pattern has arrived and the connection is frozen.
    ///
    /// # Panics
    ///
    /// After `limit`, with the pattern.
    pub async fn fired(self, limit: Duration) {
        let fired = tokio::time::timeout(limit, self.fired).await;
        assert!(matches!(fired, Ok(Ok(()))), "no such bytes within {limit:?}: {}", self.what);
    }
}

impl FaultProxy {
    /// As [`bind`](Self::bind), for tests. `upstream` has the form `127.0.0.1:4222` or `nats://127.0.0.1:4222`.
    ///
    /// # Panics
    ///
    /// `upstream` is not an address with a port, or no port is free.
    pub async fn start(upstream: &str) -> Self {
        let address = upstream.rsplit('/').next().and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("not an address with a port: {upstream:?}"));
        Self::bind(address).await.unwrap_or_else(|error| panic!("the fault proxy cannot listen: {error}"))
    }

    /// Listens on a free loopback port in front of `upstream`.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn bind(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(ProxyState {
            upstream,
            flow: watch::Sender::new(Flow::default()),
            rules: Mutex::default(),
            open: watch::Sender::new(0),
        });
        let of_connections = Arc::clone(&shared);
        let serve = move |client: TcpStream| {
            let shared = Arc::clone(&of_connections);
            // Subscribed here, so that a cut after this point applies to this connection, too.
            let flow = shared.flow.subscribe();
            let refusing = flow.borrow().refusing;
            async move {
                if !refusing {
                    connection(client, flow, &shared).await;
                }
            }
        };
        let accepting = tokio::spawn(async move {
            serve_connections(listener, MOST_CONNECTIONS, serve).await;
        });
        Ok(Self { address, shared, accepting })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `<scheme>://127.0.0.1:<port>`
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }

    /// Stops forwarding on every connection; new ones are accepted and silent.
    pub fn freeze(&self) {
        self.shared.flow.send_modify(|flow| flow.frozen = true);
    }

    /// Forwards what [`freeze`](Self::freeze) has held, and all that follows. A connection that a rule has frozen remains
    /// frozen until it is cut.
    pub fn thaw(&self) {
        self.shared.flow.send_modify(|flow| flow.frozen = false);
    }

    /// Closes every open connection, without the bytes that it holds. New ones are served.
    pub fn cut(&self) {
        self.shared.flow.send_modify(|flow| flow.cuts += 1);
    }

    /// Closes new connections at once, or no longer does so.
    pub fn set_refusing(&self, refusing: bool) {
        self.shared.flow.send_modify(|flow| flow.refusing = refusing);
    }

    /// Waits until exactly `count` connections are open.
    ///
    /// # Panics
    ///
    /// After `limit`, with the number of open connections.
    pub async fn wait_open(&self, count: usize, limit: Duration) {
        let mut open = self.shared.open.subscribe();
        let reached = tokio::time::timeout(limit, open.wait_for(|open| *open == count)).await.is_ok();
        assert!(reached, "{} connections are open after {limit:?}, not {count}", *self.shared.open.borrow());
    }

    /// Forwards everything up to and including the piece with `pattern`, then freezes that connection. A piece is the
    /// result of one read, so choose a pattern whose end is the end of the step: a message may be split after its header.
    pub fn cut_after(&self, direction: Direction, pattern: impl AsRef<[u8]>) -> Trigger {
        self.rule(direction, pattern.as_ref(), Side::After)
    }

    /// Freezes a connection before the piece with `pattern`: one side has completed the step, the other does not receive
    /// it.
    pub fn cut_before(&self, direction: Direction, pattern: impl AsRef<[u8]>) -> Trigger {
        self.rule(direction, pattern.as_ref(), Side::Before)
    }

    fn rule(&self, direction: Direction, pattern: &[u8], side: Side) -> Trigger {
        assert!(!pattern.is_empty(), "the pattern of a rule is empty");
        let (sender, fired) = oneshot::channel();
        let what = format!("{direction:?} {:?}", String::from_utf8_lossy(pattern));
        let rule = Rule { direction, pattern: pattern.to_vec(), side, fired: sender };
        self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).push(rule);
        Trigger { fired, what }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        // Ends the connections, too.
        self.accepting.abort();
    }
}

async fn connection(client: TcpStream, mut flow: watch::Receiver<Flow>, shared: &ProxyState) {
    let cuts = flow.borrow_and_update().cuts;
    let Ok(server) = TcpStream::connect(shared.upstream).await else { return };
    if server.set_nodelay(true).is_err() {
        return;
    }
    shared.open.send_modify(|open| *open += 1);
    let held = watch::Sender::new(false);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let pump = |direction| Pump { direction, held: &held, shared };
    // The first to end ends the connection.
    tokio::select! {
        _ = flow.wait_for(|flow| flow.cuts > cuts) => {}
        () = pump(Direction::ToServer).run(from_client, to_server) => {}
        () = pump(Direction::ToClient).run(from_server, to_client) => {}
    }
    shared.open.send_modify(|open| *open -= 1);
}

struct Pump<'a> {
    direction: Direction,
    /// Set by a rule, for both directions of a connection.
    held: &'a watch::Sender<bool>,
    shared: &'a ProxyState,
}

impl Pump<'_> {
    async fn run(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 64 * 1024];
        // The end of the forwarded bytes, for patterns that are split over two pieces.
        let mut tail = Vec::new();
        loop {
            let mut piece = match from.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(length) => buffer[..length].to_vec(),
            };
            if !self.wait_until_thawed(&mut from, &mut piece).await {
                return;
            }
            match self.matching(&mut tail, &piece) {
                None => {
                    if to.write_all(&piece).await.is_err() {
                        return;
                    }
                }
                Some(rule) => {
                    // Before the piece is forwarded, so that the answer to it is held, too.
                    self.held.send_replace(true);
                    if rule.side == Side::After && to.write_all(&piece).await.is_err() {
                        return;
                    }
                    // The test may have stopped waiting.
                    let _ = rule.fired.send(());
                }
            }
        }
    }

    /// Waits while the connection is frozen, and continues to read, to notice its end. False if it has ended.
    async fn wait_until_thawed(&self, from: &mut OwnedReadHalf, piece: &mut Vec<u8>) -> bool {
        const MOST_HELD: usize = 64 * 1024 * 1024;
        let mut held = self.held.subscribe();
        let mut flow = self.shared.flow.subscribe();
        let thawed = async {
            loop {
                // Both are checked again after either has changed.
                if !*held.borrow_and_update() && !flow.borrow_and_update().frozen {
                    return true;
                }
                let changed = tokio::select! {
                    changed = held.changed() => changed,
                    changed = flow.changed() => changed,
                };
                if changed.is_err() {
                    return false;
                }
            }
        };
        tokio::pin!(thawed);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            tokio::select! {
                biased;
                alive = &mut thawed => return alive,
                read = from.read(&mut buffer), if piece.len() < MOST_HELD => match read {
                    Ok(0) | Err(_) => return false,
                    Ok(length) => piece.extend_from_slice(&buffer[..length]),
                },
            }
        }
    }

    /// Removes and returns the first rule whose pattern ends in this piece; updates the tail.
    fn matching(&self, tail: &mut Vec<u8>, piece: &[u8]) -> Option<Rule> {
        let mut rules = self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = tail.len();
        tail.extend_from_slice(piece);
        let found = rules.iter().position(|rule| {
            let length = rule.pattern.len();
            let start = (passed + 1).saturating_sub(length);
            rule.direction == self.direction
                && tail[start..].windows(length).any(|window| window == rule.pattern)
        });
        let keep = 1024.min(tail.len());
        tail.drain(..tail.len() - keep);
        found.map(|index| rules.remove(index))
    }
}
