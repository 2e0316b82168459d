//! Notices between the processes that fan out the events of a domain, over core NATS: at most once and not stored. They
//! only wake: whoever hears one looks at the stream itself.

use async_nats::Subscriber;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;

use super::connection::JetStream;
use super::error::NatsError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderNotice {
    /// Ordered events of this process wait for earlier ones.
    Waits,
    /// This process has settled events.
    Settled,
}

/// The notices of all processes about one domain, including this one.
pub struct OrderNotices(Subscriber);

/// Sends notices about one domain. Cheap to clone.
#[derive(Clone)]
pub struct OrderNoticeSender {
    js: JetStream,
    subject: String,
    process: u64,
}

impl JetStream {
    /// `process`: a random number of this one.
    pub fn order_notice_sender(&self, domain: &str, process: u64) -> OrderNoticeSender {
        OrderNoticeSender { js: self.clone(), subject: self.names().order(domain), process }
    }
}

impl OrderNoticeSender {
    pub fn process(&self) -> u64 {
        self.process
    }

    /// Subscribes to the notices; the subscription survives reconnects.
    pub async fn subscribe(&self) -> Result<OrderNotices, NatsError> {
        let received = self.js.client().subscribe(self.subject.clone()).await;
        Ok(OrderNotices(received.map_err(|error| NatsError::transport(self.subject.clone(), error))?))
    }

    /// Publishes a notice without an acknowledgement, unless there is no connection.
    pub async fn send(&self, notice: OrderNotice) -> Result<(), NatsError> {
        if !self.js.is_connected() {
            return Ok(());
        }
        let timeout = self.js.request_timeout();
        let sent = self.js.client().publish(self.subject.clone(), encode(notice, self.process));
        match tokio::time::timeout(timeout, sent).await {
            Ok(sent) => sent.map_err(|error| NatsError::transport(self.subject.clone(), error)),
            Err(_) => Err(NatsError::timeout(self.subject.clone(), timeout)),
        }
    }
}

impl OrderNotices {
    /// Waits for the next valid notice, with its process. Never ends if the connection is closed.
    pub async fn next(&mut self) -> (u64, OrderNotice) {
        while let Some(message) = self.0.next().await {
            if let Some(notice) = decode(&message.payload) {
                return notice;
            }
        }
        std::future::pending().await
    }
}

/// A byte for the kind, and the process in network byte order.
fn encode(notice: OrderNotice, process: u64) -> Bytes {
    let mut body = BytesMut::with_capacity(9);
    body.put_u8(match notice {
        OrderNotice::Waits => b'?',
        OrderNotice::Settled => b'!',
    });
    body.put_u64(process);
    body.freeze()
}

fn decode(body: &[u8]) -> Option<(u64, OrderNotice)> {
    let (kind, rest) = body.split_first()?;
    let notice = match kind {
        b'?' => OrderNotice::Waits,
        b'!' => OrderNotice::Settled,
        _ => return None,
    };
    Some((u64::from_be_bytes(rest.try_into().ok()?), notice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_round_trip_and_anything_else_is_ignored() {
        for notice in [OrderNotice::Waits, OrderNotice::Settled] {
            let body = encode(notice, u64::MAX - 1);
            assert_eq!(decode(&body), Some((u64::MAX - 1, notice)));
            for length in 0..body.len() {
                assert_eq!(decode(&body[..length]), None, "{length}");
            }
        }
        assert_eq!(decode(b"x12345678"), None);
        assert_eq!(decode(b"?123456789"), None);
    }
}
