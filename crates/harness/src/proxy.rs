//! A TCP proxy that freezes or cuts connections, or stops at a chosen step of the protocol.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// The direction of the bytes.
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

/// Fires once, on the first connection that carries the pattern.
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
    /// Increases with each cut.
    cuts: u64,
}

struct Shared {
    upstream: SocketAddr,
    flow: watch::Sender<Flow>,
    rules: Mutex<Vec<Rule>>,
    /// Number of open connections.
    open: watch::Sender<usize>,
}

/// Listens on its own port in front of a server, and forwards each connection to it.
///
/// A frozen connection is open and silent in both directions, as in a network that drops packets. If one end closes it,
/// the proxy closes the other. Clients must not learn the address of the server: a single nats-server does not announce
/// it.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// A rule that has not fired yet, see [`FaultProxy::cut_after`].
pub struct Trigger {
    fired: oneshot::Receiver<()>,
    what: String,
}

impl Trigger {
    /// Waits until the pattern has been seen and the connection is frozen.
    ///
    /// # Panics
    ///
    /// After `limit`, with the pattern.
    pub async fn fired(self, limit: Duration) {
        let fired = tokio::time::timeout(limit, self.fired).await;
        assert!(matches!(fired, Ok(Ok(()))), "not seen within {limit:?}: {}", self.what);
    }
}

impl FaultProxy {
    /// `upstream` as `127.0.0.1:4222` or `nats://127.0.0.1:4222`.
    pub async fn start(upstream: &str) -> Self {
        let upstream = upstream.rsplit('/').next().and_then(|address| address.parse().ok());
        let upstream = upstream.expect("an upstream is an address with a port");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared {
            upstream,
            flow: watch::Sender::new(Flow::default()),
            rules: Mutex::default(),
            open: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, accepting }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `<scheme>://127.0.0.1:<port>`
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }

    /// Freezes all connections. New ones are accepted, and frozen too.
    pub fn freeze(&self) {
        self.shared.flow.send_modify(|flow| flow.frozen = true);
    }

    /// Ends a [`freeze`](Self::freeze), and forwards the held bytes. A connection that a rule has frozen stays frozen
    /// until it is cut.
    pub fn thaw(&self) {
        self.shared.flow.send_modify(|flow| flow.frozen = false);
    }

    /// Drops every open connection, with the held bytes. New ones are served.
    pub fn cut(&self) {
        self.shared.flow.send_modify(|flow| flow.cuts += 1);
    }

    /// With `true`, closes new connections at once.
    pub fn set_refusing(&self, refusing: bool) {
        self.shared.flow.send_modify(|flow| flow.refusing = refusing);
    }

    /// Waits until that many connections are open.
    ///
    /// # Panics
    ///
    /// After `limit`, with the number of connections.
    pub async fn wait_open(&self, count: usize, limit: Duration) {
        let mut open = self.shared.open.subscribe();
        let reached = tokio::time::timeout(limit, open.wait_for(|open| *open == count)).await.is_ok();
        assert!(reached, "{} connections are open after {limit:?}, not {count}", *self.shared.open.borrow());
    }

    /// Freezes a connection after the piece that contains `pattern`. A piece is the result of one read, so choose a
    /// pattern at the end of the step: a message may be split after its header.
    pub fn cut_after(&self, direction: Direction, pattern: impl AsRef<[u8]>) -> Trigger {
        self.rule(direction, pattern.as_ref(), Side::After)
    }

    /// Freezes a connection before the piece that contains `pattern`: one side has completed the step, but the other
    /// does not receive it.
    pub fn cut_before(&self, direction: Direction, pattern: impl AsRef<[u8]>) -> Trigger {
        self.rule(direction, pattern.as_ref(), Side::Before)
    }

    fn rule(&self, direction: Direction, pattern: &[u8], side: Side) -> Trigger {
        assert!(!pattern.is_empty(), "the pattern is empty");
        let (sender, fired) = oneshot::channel();
        let what = format!("{direction:?} {:?}", String::from_utf8_lossy(pattern));
        let rule = Rule { direction, pattern: pattern.to_vec(), side, fired: sender };
        self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).push(rule);
        Trigger { fired, what }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        if shared.flow.borrow().refusing {
            continue;
        }
        // Subscribes here, so that a later cut also applies to this connection.
        let flow = shared.flow.subscribe();
        tokio::spawn(connection(client, flow, Arc::clone(&shared)));
    }
}

async fn connection(client: TcpStream, mut flow: watch::Receiver<Flow>, shared: Arc<Shared>) {
    let cuts = flow.borrow_and_update().cuts;
    let Ok(server) = TcpStream::connect(shared.upstream).await else { return };
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    shared.open.send_modify(|open| *open += 1);
    let held = watch::Sender::new(false);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let pump = |direction| Pump { direction, held: &held, shared: &shared };
    // The first that ends, ends the connection.
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
    shared: &'a Shared,
}

impl Pump<'_> {
    async fn run(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 64 * 1024];
        // The end of the forwarded bytes, for patterns that span two pieces.
        let mut tail = Vec::new();
        loop {
            let mut piece = match from.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(length) => buffer[..length].to_vec(),
            };
            if !self.wait_for_leave(&mut from, &mut piece).await {
                return;
            }
            match self.matching(&mut tail, &piece) {
                None => {
                    if to.write_all(&piece).await.is_err() {
                        return;
                    }
                }
                Some(rule) => {
                    // Holds the piece before it is forwarded, and with it the answer.
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

    /// Waits while the connection is frozen, but continues to read, to detect its end. Returns false if it has ended.
    async fn wait_for_leave(&self, from: &mut OwnedReadHalf, piece: &mut Vec<u8>) -> bool {
        const MOST_HELD: usize = 64 * 1024 * 1024;
        let mut held = self.held.subscribe();
        let mut flow = self.shared.flow.subscribe();
        let leave = async {
            loop {
                // Checks both again after a change of either.
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
        tokio::pin!(leave);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            tokio::select! {
                biased;
                go_on = &mut leave => return go_on,
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
