//! A proxy in front of a nats-server that delays or swallows single messages of a client, by their subjects. Everything else
//! on the same connection passes at once.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::connections::serve_connections;

/// Connections at the same time.
const MOST_CONNECTIONS: usize = 256;
/// Messages that wait for the server.
const MOST_WAITING: usize = 1_024;
/// A longer line of the protocol ends the connection.
const LONGEST_LINE: usize = 64 * 1024;

/// What happens to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    Forward,
    /// It reaches the server after this time; others pass it.
    Delay(Duration),
    /// It never reaches the server.
    Swallow,
}

type Choose = dyn Fn(&str) -> Treatment + Send + Sync;

/// Listens on a port of its own and forwards each connection to a nats-server without TLS, until it is dropped.
pub struct RequestProxy {
    address: SocketAddr,
    choose: Arc<Mutex<Arc<Choose>>>,
    accepting: JoinHandle<()>,
}

impl RequestProxy {
    /// Listens on a free loopback port in front of `upstream`, `nats://127.0.0.1:4222` or without the scheme. All messages
    /// are forwarded at first.
    ///
    /// # Errors
    ///
    /// `upstream` is not an address with a port, or no port is free.
    pub async fn bind(upstream: &str) -> io::Result<Self> {
        let upstream = upstream.rsplit('/').next().unwrap_or_default();
        let upstream: SocketAddr =
            upstream.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let all: Arc<Choose> = Arc::new(|_: &str| Treatment::Forward);
        let choose = Arc::new(Mutex::new(all));
        let of_connections = choose.clone();
        let serve = move |client: TcpStream| {
            let choose = of_connections.clone();
            async move {
                // Its end is that of the client or of the server.
                let _ = connection(client, upstream, &choose).await;
            }
        };
        let accepting = tokio::spawn(async move {
            serve_connections(listener, MOST_CONNECTIONS, serve).await;
        });
        Ok(Self { address, choose, accepting })
    }

    /// `nats://127.0.0.1:<port>`
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Chooses the treatment of each further message by its subject.
    pub fn set(&self, choose: impl Fn(&str) -> Treatment + Send + Sync + 'static) {
        *self.choose.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(choose);
    }
}

impl Drop for RequestProxy {
    fn drop(&mut self) {
        // Ends the connections, too.
        self.accepting.abort();
    }
}

async fn connection(client: TcpStream, upstream: SocketAddr, choose: &Mutex<Arc<Choose>>) -> io::Result<()> {
    let server = TcpStream::connect(upstream).await?;
    server.set_nodelay(true)?;
    let (from_client, mut to_client) = client.into_split();
    let (mut from_server, to_server) = server.into_split();
    let (sender, receiver) = mpsc::channel(MOST_WAITING);
    // The first to end ends the connection.
    tokio::select! {
        copied = tokio::io::copy(&mut from_server, &mut to_client) => copied.map(drop),
        read = read(from_client, sender, choose) => read,
        written = write(to_server, receiver) => written,
    }
}

async fn write(mut to_server: OwnedWriteHalf, mut messages: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(message) = messages.recv().await {
        to_server.write_all(&message).await?;
    }
    Ok(())
}

async fn read(
    from_client: OwnedReadHalf,
    messages: mpsc::Sender<Vec<u8>>,
    choose: &Mutex<Arc<Choose>>,
) -> io::Result<()> {
    let mut from_client = BufReader::new(from_client);
    let mut delayed = JoinSet::new();
    loop {
        let mut message = Vec::new();
        (&mut from_client).take(LONGEST_LINE as u64).read_until(b'\n', &mut message).await?;
        if message.last() != Some(&b'\n') {
            return Ok(());
        }
        let mut treatment = Treatment::Forward;
        if let Some((subject, size)) = publication(&message) {
            let chosen = choose.lock().unwrap_or_else(PoisonError::into_inner).clone();
            treatment = chosen(&subject);
            // The payload and the end of its line.
            let from = message.len();
            message.resize(from + size + 2, 0);
            from_client.read_exact(&mut message[from..]).await?;
        }
        let closed = || io::Error::from(io::ErrorKind::ConnectionAborted);
        match treatment {
            Treatment::Forward => messages.send(message).await.map_err(|_| closed())?,
            Treatment::Delay(time) => {
                let messages = messages.clone();
                delayed.spawn(async move {
                    tokio::time::sleep(time).await;
                    // The connection may have ended.
                    let _ = messages.send(message).await;
                });
            }
            Treatment::Swallow => {}
        }
        while delayed.try_join_next().is_some() {}
    }
}

/// The subject and the size of the payload, with its headers, of `PUB` and `HPUB`.
fn publication(line: &[u8]) -> Option<(String, usize)> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let verb = words.next()?;
    if !verb.eq_ignore_ascii_case("PUB") && !verb.eq_ignore_ascii_case("HPUB") {
        return None;
    }
    Some((words.next()?.to_owned(), words.next_back()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_publications_have_a_subject_and_a_size() {
        let read = |line: &str| publication(line.as_bytes());
        assert_eq!(read("PUB a.b 5\r\n"), Some(("a.b".to_owned(), 5)));
        assert_eq!(read("pub a.b _INBOX.1 0\r\n"), Some(("a.b".to_owned(), 0)));
        assert_eq!(read("HPUB a.b _INBOX.1 12 17\r\n"), Some(("a.b".to_owned(), 17)));
        for other in ["PING\r\n", "SUB a.b 1\r\n", "CONNECT {}\r\n", "PUB a.b x\r\n", "PUB\r\n", "\r\n"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
