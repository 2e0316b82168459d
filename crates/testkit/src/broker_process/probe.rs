//! Queries the monitoring port of a server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Time limit of an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// The largest answer in bytes.
const ANSWER_BYTES: u64 = 1024 * 1024;

/// One request in HTTP/1.0 (RFC 1945), whose answer ends with the connection and is not chunked. So no HTTP client is
/// needed.
async fn get(port: u16, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let exchange = async {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    let answer = tokio::time::timeout(ANSWER_LIMIT, exchange)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))?;
    parse(&answer).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer[end + 4..].to_vec()))
}

/// The results of `/healthz` and `/jsz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Health {
    /// `/healthz` answered 200: connections are accepted and JetStream is up to date.
    pub(super) healthy: bool,
    /// The name of the JetStream meta leader, in a cluster.
    pub(super) meta_leader: Option<String>,
    /// If this is the leader: the other servers that it can place streams on.
    pub(super) online_peers: usize,
}

/// # Errors
///
/// The server does not answer, or not as expected.
pub(super) async fn health(port: u16) -> io::Result<Health> {
    #[derive(Deserialize)]
    struct Jsz {
        meta_cluster: Option<MetaCluster>,
    }
    #[derive(Deserialize)]
    struct MetaCluster {
        leader: Option<String>,
        /// In the answer of the leader.
        #[serde(default)]
        replicas: Vec<Peer>,
    }
    #[derive(Deserialize)]
    struct Peer {
        #[serde(default)]
        offline: bool,
    }
    let (status, _) = get(port, "/healthz").await?;
    let (_, body) = get(port, "/jsz").await?;
    let jsz: Jsz = serde_json::from_slice(&body).map_err(io::Error::from)?;
    let meta = jsz.meta_cluster;
    let online_peers =
        meta.as_ref().map_or(0, |meta| meta.replicas.iter().filter(|peer| !peer.offline).count());
    let meta_leader = meta.and_then(|meta| meta.leader).filter(|name| !name.is_empty());
    Ok(Health { healthy: status == 200, meta_leader, online_peers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_parsed() {
        assert_eq!(
            parse(b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json\r\n\r\n{}"),
            Some((503, b"{}".to_vec()))
        );
        for odd in [&b""[..], b"HTTP/1.0 200 OK\r\n", b"HTTP/1.0 ok\r\n\r\n", b"SSH-2.0\r\n\r\n"] {
            assert_eq!(parse(odd), None);
        }
    }
}
