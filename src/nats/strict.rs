//! Dead letters that stop a strict order. Their envelopes stay in their lanes, so that nothing passes them.

use bytes::Bytes;

use super::connection::JetStream;
use super::error::NatsError;
use super::gone::is_of;
use super::stream_api::StoredMessage;
use crate::domain::dead_letter::DeadLetter;
use crate::domain::headers;

/// The dead letter of an envelope that stays in its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoppingLetter {
    pub sequence: u64,
    /// The attempts before it.
    pub attempts: u32,
    /// Scheduled redrives, with the present one.
    pub redrives: u32,
    /// The envelope is to be tried again.
    pub is_replaying: bool,
}

impl JetStream {
    /// The dead letter with which an envelope stops its lane, if it does.
    pub async fn stopping_letter(
        &self,
        domain: &str,
        subject: &str,
        outbox_sequence: u64,
        envelope: &str,
    ) -> Result<Option<StoppingLetter>, NatsError> {
        let names = self.names();
        let stream = names.dlt_stream(domain);
        // A strict lane gets no further dead letter while one stops it.
        let Some(letter) = self.get_last(&stream, &names.dead_letter(subject)).await? else {
            return Ok(None);
        };
        if stops(&letter) != Some(outbox_sequence) || !is_of(letter.header(headers::ID), Some(envelope)) {
            return Ok(None);
        }
        // It may remain if the process ended after this one was written.
        if let Some(before) = number(&letter, headers::DEAD_LETTER) {
            self.resolve_dead_letter(domain, before, Some(envelope)).await?;
        }
        let count = |name| number(&letter, name).and_then(|count| u32::try_from(count).ok()).unwrap_or(0);
        let mark = names.replaying(domain, letter.sequence);
        let mark = self.get_last(&names.redrive_stream(), &mark).await?;
        let redrives = mark.as_ref().and_then(|mark| number(mark, headers::REDRIVES));
        Ok(Some(StoppingLetter {
            sequence: letter.sequence,
            attempts: count(headers::ATTEMPTS),
            redrives: redrives
                .and_then(|redrives| u32::try_from(redrives).ok())
                .unwrap_or_else(|| count(headers::REDRIVES)),
            is_replaying: mark.is_some(),
        }))
    }

    /// Stores the dead letter of an envelope of a strict lane. `stops`: the envelope stays at this sequence.
    /// `before`: the dead letter that this one follows.
    pub async fn put_letter_in_order(
        &self,
        subject: &str,
        outbox_sequence: u64,
        letter: &DeadLetter,
        envelope: Bytes,
        stops: bool,
        before: Option<u64>,
    ) -> Result<(), NatsError> {
        let stream = self.names().outbox_stream(&letter.domain);
        // The envelope may get several dead letters at its place.
        let id = match before {
            Some(before) => format!("{stream}-{outbox_sequence}-after-{before}"),
            None => format!("{stream}-{outbox_sequence}-{}", letter.attempts),
        };
        let mut more = Vec::new();
        if stops {
            more.push((headers::STOPS, outbox_sequence.to_string()));
        }
        more.extend(before.map(|before| (headers::DEAD_LETTER, before.to_string())));
        self.put_letter_with(subject, &id, letter, envelope, None, &more).await
    }

    /// The sequence of the envelope in the outbox, if it still stops its lane with this dead letter.
    pub async fn stopped_envelope(
        &self,
        domain: &str,
        letter: &StoredMessage,
    ) -> Result<Option<u64>, NatsError> {
        let Some(sequence) = stops(letter) else { return Ok(None) };
        let outbox = self.names().outbox_stream(domain);
        let Some(message) = self.get(&outbox, sequence).await? else { return Ok(None) };
        let subject = self.names().outbox_of_dead_letter(&letter.subject);
        let is_it = message.subject == subject && message.payload == letter.payload;
        Ok((is_it && self.names().is_in_strict_lane(subject)).then_some(sequence))
    }

    /// Removes the envelope that stops its lane with this dead letter.
    pub(super) async fn discard_stopped_envelope(&self, domain: &str, letter: u64) -> Result<(), NatsError> {
        let Some(letter) = self.get(&self.names().dlt_stream(domain), letter).await? else { return Ok(()) };
        match self.stopped_envelope(domain, &letter).await? {
            Some(sequence) => self.delete(&self.names().outbox_stream(domain), sequence).await,
            None => Ok(()),
        }
    }
}

/// The header of a dead letter that stops a lane, for one that replaces it.
pub(super) fn stops_header(letter: &StoredMessage) -> Vec<(&'static str, String)> {
    stops(letter).map(|sequence| (headers::STOPS, sequence.to_string())).into_iter().collect()
}

fn stops(letter: &StoredMessage) -> Option<u64> {
    number(letter, headers::STOPS)
}

fn number(message: &StoredMessage, name: &str) -> Option<u64> {
    // The server uses no other sequences.
    message.header(name)?.parse().ok().filter(|number| *number <= i64::MAX as u64)
}
