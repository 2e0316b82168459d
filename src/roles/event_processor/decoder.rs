//! Decodes the messages of the events stream, as they are delivered and as they are in the stream.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::domain::category::Categories;
use crate::domain::event::{Event, Publication, Rejection};
use crate::domain::leftovers::EventMark;
use crate::nats::subjects::{EventSubject, SubjectNames};
use crate::nats::{Delivered, Malformed, StoredMessage};

/// How a publication becomes an event.
pub(crate) type Decode = fn(&Publication<'_>) -> Result<Event, Rejection>;

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Decoder {
    pub(super) names: SubjectNames,
    pub(super) categories: Arc<Categories>,
    pub(super) decode: Decode,
    /// The largest event, in bytes.
    pub(super) max_size: usize,
}

/// What the decoder reads of a message.
struct Raw<'a> {
    subject: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    malformed: Option<Malformed>,
    body: &'a [u8],
    sequence: u64,
    time: OffsetDateTime,
}

impl Decoder {
    pub(super) fn event(&self, message: &Delivered) -> Result<Event, Rejection> {
        self.read(&Raw {
            subject: &message.subject,
            headers: message.header_pairs().collect(),
            malformed: message.malformed(),
            body: &message.payload,
            sequence: message.stream_sequence,
            time: OffsetDateTime::from_unix_timestamp_nanos(message.stored_at_nanos)
                .unwrap_or(OffsetDateTime::UNIX_EPOCH),
        })
    }

    /// The tenant of a message, if it is an event of a domain.
    pub(super) fn tenant_in(&self, domain: usize, message: &StoredMessage) -> Option<String> {
        self.stored_event(message)
            .ok()
            .filter(|event| self.categories.index_of(&event.key) == Some(domain))
            .map(|event| event.tenant)
    }

    /// What the envelopes of a message say about their event; `None` if it is rejected.
    pub(super) fn mark(&self, message: &StoredMessage) -> Option<EventMark> {
        self.stored_event(message).ok().as_ref().map(EventMark::of)
    }

    fn stored_event(&self, message: &StoredMessage) -> Result<Event, Rejection> {
        self.read(&Raw {
            subject: &message.subject,
            headers: message.header_pairs(),
            malformed: message.malformed(),
            body: &message.payload,
            sequence: message.sequence,
            time: message.stored_at().unwrap_or(OffsetDateTime::UNIX_EPOCH),
        })
    }

    fn read(&self, raw: &Raw<'_>) -> Result<Event, Rejection> {
        if let Some(malformed) = raw.malformed {
            return Err(malformed.into());
        }
        let place = self.names.parse_event(raw.subject);
        let EventSubject { tail, tenant_token } =
            place.unwrap_or(EventSubject { tail: raw.subject, tenant_token: None });
        let publication = Publication {
            subject_tail: tail,
            tenant_token,
            headers: &raw.headers,
            body: raw.body,
            stream: &self.names.events_stream(),
            sequence: raw.sequence,
            time: raw.time,
            max_size: self.max_size,
        };
        (self.decode)(&publication)
    }
}
