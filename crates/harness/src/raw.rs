//! A publisher that writes the bytes of the protocol itself, for subjects and headers that no client sends.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

const LIMIT: Duration = Duration::from_secs(30);

/// A connection to a NATS server.
pub struct RawPublisher {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl RawPublisher {
    /// `url`: `nats://host:port`
    pub async fn connect(url: &str) -> Self {
        let address = url.strip_prefix("nats://").expect("a NATS URL");
        let stream = TcpStream::connect(address).await.expect("the server listens");
        let (reader, mut writer) = stream.into_split();
        let options = br#"CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}"#;
        writer.write_all(&[options, &b"\r\n"[..]].concat()).await.expect("sent");
        let mut publisher = Self { reader: BufReader::new(reader), writer };
        publisher.settled().await;
        publisher
    }

    /// Publishes, with a header block if there is one, and waits until the server has read it.
    pub async fn publish(&mut self, subject: &[u8], block: Option<&[u8]>, body: &[u8]) {
        let mut wire = Vec::new();
        match block {
            None => {
                wire.extend([b"PUB ", subject, format!(" {}\r\n", body.len()).as_bytes()].concat());
            }
            Some(block) => {
                let sizes = format!(" {} {}\r\n", block.len(), block.len() + body.len());
                wire.extend([b"HPUB ", subject, sizes.as_bytes(), block].concat());
            }
        }
        wire.extend([body, b"\r\n"].concat());
        self.writer.write_all(&wire).await.expect("sent");
        self.settled().await;
    }

    async fn settled(&mut self) {
        self.writer.write_all(b"PING\r\n").await.expect("sent");
        let pong = async {
            let mut line = String::new();
            while line != "PONG\r\n" {
                line.clear();
                let read = self.reader.read_line(&mut line).await.expect("the server answers");
                assert!(read > 0, "the server closed the connection");
            }
        };
        tokio::time::timeout(LIMIT, pong).await.expect("the server answers in time");
    }
}
