//! Messages that are still in a work queue although its consumer has passed them
//! ([`leftovers`](crate::domain::leftovers)), and what is stored about the envelopes of their events.

use std::collections::HashSet;
use std::sync::OnceLock;

use async_nats::Subject;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::connection::JetStream;
use super::error::NatsError;
use super::message::{Acker, Delivered};
use super::stream_api::StoredMessage;
use crate::domain::attempt_record::AttemptRecord;
use crate::domain::envelope::Envelope;
use crate::domain::headers;
use crate::domain::lately::Stored;
use crate::domain::leftovers::EventMark;
use crate::standstill::Lease;

/// Leftovers whose traces are looked for together.
#[derive(Debug, Default)]
pub struct Sought {
    pub events: HashSet<EventMark>,
    /// Those that may have been rejected, by their sequences.
    pub sequences: HashSet<u64>,
    /// The time at which the oldest was stored; its traces are newer.
    pub since: Option<OffsetDateTime>,
}

/// The traces that were found.
#[derive(Debug, Default)]
pub struct Traces {
    pub events: HashSet<EventMark>,
    pub rejected: HashSet<u64>,
}

impl StoredMessage {
    /// When the stream stored it.
    pub fn stored_at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::parse(&self.time, &Rfc3339).ok()
    }

    /// The same in nanoseconds since 1970.
    pub fn stored_at_nanos(&self) -> Option<i128> {
        self.stored_at().map(OffsetDateTime::unix_timestamp_nanos)
    }
}

impl Delivered {
    pub fn stored(&self) -> Stored {
        Stored::new(self.stream_sequence, self.stored_at_nanos)
    }
}

impl JetStream {
    /// A message that a consumer has passed, as if it were delivered. To acknowledge it removes it from its work queue:
    /// the server removes the message of any acknowledgement that no consumer waits for. To hand it back has no effect.
    /// `deliveries`: those that it counts as. `None` if its time cannot be read.
    pub fn as_delivered(
        &self,
        stream: &str,
        consumer: &str,
        deliveries: u32,
        message: StoredMessage,
    ) -> Option<Delivered> {
        let stored_at_nanos = message.stored_at_nanos()?;
        let reply = self.names().acknowledgement(stream, consumer, message.sequence, stored_at_nanos);
        Some(Delivered {
            subject: message.subject,
            headers: message.headers,
            payload: message.payload,
            stream_sequence: message.sequence,
            consumer_sequence: message.sequence,
            deliveries,
            stored_at_nanos,
            pending: 0,
            acker: Acker::new(self.client().clone(), Subject::from(reply)),
            carried: OnceLock::new(),
            is_compact: false,
            lease: Lease::default(),
            _bytes: None,
        })
    }

    /// Looks for the envelopes of events in the delivery log, the outboxes and the dead letters of all domains, and for
    /// the rejected ones.
    pub async fn traces(&self, domains: &[String], sought: &Sought) -> Result<Traces, NatsError> {
        let (names, mut traces) = (self.names(), Traces::default());
        let Traces { events, rejected } = &mut traces;
        let mut note = |mark: Option<EventMark>| {
            if let Some(mark) = mark.filter(|mark| sought.events.contains(mark)) {
                events.insert(mark);
            }
        };
        let attempts = names.attempts_stream();
        self.for_each_stored(&attempts, &names.attempts_filter(None), sought.since, |message| {
            AttemptRecord::read_lines(&message.payload).for_each(|record| note(mark_of_record(&record)));
        })
        .await?;
        for domain in domains {
            for stream in [names.outbox_stream(domain), names.dlt_stream(domain)] {
                self.for_each_stored(&stream, ">", sought.since, |message| {
                    let envelope = Envelope::read(&message.payload).ok();
                    note(envelope.as_ref().and_then(EventMark::of_envelope));
                })
                .await?;
            }
        }
        let stream = names.rejected_stream();
        self.for_each_stored(&stream, &names.rejected("*"), sought.since, |message| {
            let sequence = message.header(headers::SEQUENCE).and_then(|text| text.parse().ok());
            rejected.extend(sequence.filter(|sequence| sought.sequences.contains(sequence)));
        })
        .await?;
        Ok(traces)
    }
}

fn mark_of_record(record: &AttemptRecord<'_>) -> Option<EventMark> {
    Some(EventMark {
        tenant: record.tenant.as_deref()?.to_owned(),
        id: record.event_id.to_string(),
        key: record.event_key.to_string(),
        time: record.event_time.as_deref()?.to_owned(),
    })
}
