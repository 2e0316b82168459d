//! A message delivered by a pull consumer, with the fields of its acknowledgement subject (ADR-15).

use std::borrow::Cow;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Request, Subject};
use bytes::Bytes;
use futures_util::poll;

use super::byte_budget::MessageBytes;
use crate::domain::carried::Carried;
use crate::domain::event::{RejectReason, Rejection};
use crate::facts::{AcknowledgementNotConfirmed, AcknowledgementNotSent};
use crate::standstill::Lease;

/// Longest wait for room in the client's queue, which is full if the connection stalls.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A delivered message. Dropping it does not acknowledge it: the server delivers it again after the
/// consumer's ack_wait.
#[derive(Debug, Clone)]
pub struct Delivered {
    pub subject: String,
    pub headers: Option<HeaderMap>,
    pub payload: Bytes,
    pub stream_sequence: u64,
    pub consumer_sequence: u64,
    /// Number of deliveries by the consumer, including this one.
    pub deliveries: u32,
    /// When the stream stored it, in nanoseconds since 1970.
    pub stored_at_nanos: i128,
    /// Messages that the consumer has not delivered yet.
    pub pending: u64,
    pub acker: Acker,
    /// Of a message in a domain outbox; read when it is needed, and once.
    pub(super) carried: OnceLock<Carried>,
    /// [`Self::compact`] was called.
    pub(super) is_compact: bool,
    /// How long it is this process's own.
    pub lease: Lease,
    /// Its part of a [`super::ByteBudget`].
    pub(super) _bytes: Option<MessageBytes>,
}

/// The part of a message that cannot be parsed. Any publisher can write arbitrary bytes into subject and headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the subject is not UTF-8; use printable ASCII in subjects")]
    Subject,
    #[error(
        "the headers cannot be read; write \"NATS/1.0\" without a status, then \"name: value\" lines in UTF-8 \
         with names in printable ASCII"
    )]
    Headers,
}

impl From<Malformed> for Rejection {
    fn from(malformed: Malformed) -> Self {
        let reason = match malformed {
            Malformed::Subject => RejectReason::MalformedSubject,
            Malformed::Headers => RejectReason::MalformedHeaders,
        };
        Self::new(reason, malformed.to_string())
    }
}

/// Acknowledges one delivered message. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Acker {
    client: Arc<Client>,
    reply: Subject,
}

impl Delivered {
    /// `None` if the message carries no acknowledgement subject of JetStream.
    pub(super) fn read(client: &Arc<Client>, message: async_nats::Message) -> Option<Self> {
        let reply = message.reply?;
        // $JS.ACK.<stream>.<consumer>.<delivered>.<sseq>.<cseq>.<time>.<pending>, or with
        // <domain>.<account hash> after ACK and possibly a random token at the end.
        let tokens: Vec<&str> = reply.split('.').collect();
        let first = match tokens.len() {
            9 => 4,
            n if n >= 11 => 6,
            _ => return None,
        };
        let number = |offset: usize| tokens.get(first + offset)?.parse::<u64>().ok();
        Some(Self {
            subject: message.subject.to_string(),
            headers: message.headers,
            payload: message.payload,
            deliveries: u32::try_from(number(0)?).unwrap_or(u32::MAX),
            stream_sequence: number(1)?,
            consumer_sequence: number(2)?,
            stored_at_nanos: i128::from(number(3)?),
            pending: number(4)?,
            acker: Acker { client: client.clone(), reply },
            carried: OnceLock::new(),
            is_compact: false,
            lease: Lease::default(),
            _bytes: None,
        })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(self.headers.as_ref(), name)
    }

    /// The `Hub-…` headers of a message in a domain outbox.
    pub fn carried(&self) -> Carried {
        *self.carried.get_or_init(|| {
            // A new envelope has none, and each look-up takes as long as this.
            let names = self.headers.iter().flat_map(|headers| headers.iter().map(|(name, _)| name));
            let any = names.map(AsRef::<str>::as_ref).any(Carried::is_header);
            if any { Carried::read(|name| self.header(name)) } else { Carried::default() }
        })
    }

    /// Takes only the memory that it needs from now on: copies what is a part of the connection's buffer, which also holds
    /// the messages around this one, and drops the headers, of which [`Self::carried`] is kept. Unreadable headers stay.
    pub fn compact(&mut self) {
        if std::mem::replace(&mut self.is_compact, true) {
            return;
        }
        self.carried();
        self.payload = Bytes::copy_from_slice(&self.payload);
        self.acker.reply = Subject::from(self.acker.reply.as_str());
        if self.headers.as_ref().is_some_and(|headers| headers.unparsed().is_none()) {
            self.headers = None;
        }
    }

    /// Why the subject or the headers cannot be parsed; [`Self::header`] then finds nothing.
    pub fn malformed(&self) -> Option<Malformed> {
        malformed(&self.subject, self.headers.as_ref())
    }

    /// The raw header block, if it cannot be parsed.
    pub fn header_block(&self) -> Option<&Bytes> {
        self.headers.as_ref()?.unparsed()
    }

    /// The raw subject; `subject` holds it escaped if it is not UTF-8.
    pub fn subject_bytes(&self) -> Cow<'_, [u8]> {
        match Subject::from(self.subject.as_str()).unescaped() {
            Some(bytes) => bytes.into(),
            None => self.subject.as_bytes().into(),
        }
    }

    /// All headers; a name with several values occurs once per value.
    pub fn header_pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.iter().flat_map(|headers| {
            headers.iter().flat_map(|(name, values)| {
                let name: &str = name.as_ref();
                values.iter().map(move |value| (name, value.as_str()))
            })
        })
    }
}

pub(super) fn malformed(subject: &str, headers: Option<&HeaderMap>) -> Option<Malformed> {
    // The client escapes only unparsable subjects, which then begin with a space.
    if subject.starts_with(' ') {
        return Some(Malformed::Subject);
    }
    headers?.unparsed().map(|_| Malformed::Headers)
}

pub(super) fn header<'a>(headers: Option<&'a HeaderMap>, name: &str) -> Option<&'a str> {
    headers?.get(name).map(|value| value.as_str())
}

impl Acker {
    pub(super) fn new(client: Arc<Client>, reply: Subject) -> Self {
        Self { client, reply }
    }

    /// The subject of its answers. It is a slice of what the connection read: a clone would keep the whole buffer alive.
    pub(super) fn subject(&self) -> &str {
        self.reply.as_str()
    }

    /// Acknowledges the message; a work queue then deletes it.
    pub async fn ack(&self) {
        self.answer(Bytes::from_static(b"+ACK")).await;
    }

    /// Acknowledges the message and waits until the server has processed this and every earlier answer for the same
    /// consumer. Returns false if no confirmation arrives within the limit.
    pub async fn ack_and_confirm(&self, limit: Duration) -> bool {
        let request = Request::new().payload(Bytes::from_static(b"+ACK")).timeout(Some(limit));
        match self.client.send_request(self.reply.clone(), request).await {
            Ok(_) => true,
            Err(error) => {
                AcknowledgementNotConfirmed { error: &error }.emit();
                false
            }
        }
    }

    /// Asks for redelivery, at once or after a delay.
    pub async fn nak(&self, delay: Option<Duration>) {
        let body = match delay {
            None => Bytes::from_static(b"-NAK"),
            Some(delay) => Bytes::from(format!("-NAK {{\"delay\": {}}}", delay.as_nanos())),
        };
        self.answer(body).await;
    }

    /// Stops redelivery. The reason is part of the MSG_TERMINATED advisory.
    pub async fn terminate(&self, reason: &str) {
        self.answer(Bytes::from(format!("+TERM {reason}"))).await;
    }

    /// Reports work in progress: restarts ack_wait.
    pub async fn in_progress(&self) {
        self.answer(Bytes::from_static(b"+WPI")).await;
    }

    /// A lost answer is not an error: the message is delivered again, and every reader is idempotent.
    async fn answer(&self, body: Bytes) {
        let mut sent = pin!(self.client.publish(self.reply.clone(), body));
        // It rarely waits: the timer would cost as much as the rest.
        let sent = match poll!(sent.as_mut()) {
            Poll::Ready(sent) => Ok(sent),
            Poll::Pending => tokio::time::timeout(ANSWER_LIMIT, sent).await,
        };
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => AcknowledgementNotSent { error: &error }.emit(),
            Err(error) => AcknowledgementNotSent { error: &error }.emit(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::headers;

    #[tokio::test]
    async fn a_compact_message_keeps_nothing_of_the_connections_buffer() {
        let client = async_nats::ConnectOptions::new().retry_on_initial_connect();
        let client = Arc::new(client.connect("127.0.0.1:1").await.unwrap());
        let reply = "$JS.ACK.S.C.2.7.8.9.0";
        let buffer = Bytes::from(format!("{reply}{{}}other messages"));
        let headers = HeaderMap::from_iter([(headers::ATTEMPTS.parse().unwrap(), "3".parse().unwrap())]);
        let read = |headers: Option<HeaderMap>| {
            let message = async_nats::Message {
                subject: "hub.outbox.d.shared.t=s".into(),
                reply: Some(Subject::from_utf8(buffer.slice(..reply.len())).unwrap()),
                payload: buffer.slice(reply.len()..reply.len() + 2),
                headers,
                status: None,
                description: None,
                length: 0,
            };
            Delivered::read(&client, message).unwrap()
        };
        let (before, mut message) = (read(Some(headers.clone())).carried(), read(Some(headers)));
        assert!(!buffer.is_unique());
        message.compact();
        message.compact();
        assert!(buffer.is_unique(), "something still refers to the buffer");
        assert_eq!((&*message.payload, message.acker.subject()), (&b"{}"[..], reply));
        assert_eq!((message.carried(), message.headers), (before, None));
        assert_ne!(before, Carried::default());
    }
}
