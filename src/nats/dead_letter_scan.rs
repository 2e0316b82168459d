//! Reads dead letters page by page, without their envelopes.

use std::collections::HashSet;

use super::connection::JetStream;
use super::error::NatsError;
use super::message::Delivered;
use super::ordered_reader::{OrderedEvent, OrderedReader, OrderedReaderOptions};
use super::subjects::is_strict_lane;
use crate::domain::dead_letter::{DeadLetter, DeadLetterState};
use crate::domain::dead_letter_query::DeadLetterQuery;
use crate::domain::headers;
use crate::domain::letter_tally::LetterTally;
use crate::facts::DeadLetterSkipped;

/// Readers of one page that are replaced one after the other without a message.
const MOST_READERS: u32 = 4;
/// The size of an envelope whose size the server does not tell.
const UNKNOWN_SIZE: u64 = 1024 * 1024;

/// A dead letter in its stream.
#[derive(Debug, Clone)]
pub struct ScannedLetter {
    pub letter: DeadLetter,
    pub sequence: u64,
    /// Size of its envelope in bytes.
    pub size: u64,
    /// It stops a strict lane. Its envelope is in the outbox all the time.
    pub stops: bool,
    /// Where its envelope was in the outbox.
    pub envelope: Option<u64>,
}

/// A page of dead letters, oldest first.
#[derive(Debug, Clone, Default)]
pub struct LetterScan {
    pub letters: Vec<ScannedLetter>,
    /// Of all that were read, also those that the query does not accept.
    pub seen: LetterTally,
    /// The sequence where the next page begins; `None` at the end.
    pub next: Option<u64>,
}

impl JetStream {
    /// Reads up to `limit` dead letters with these subjects that the query accepts, starting at a sequence. `replaying`:
    /// those that are being replayed.
    pub async fn scan_dead_letters(
        &self,
        domain: &str,
        filters: &[String],
        query: &DeadLetterQuery,
        from: u64,
        limit: usize,
        replaying: &HashSet<u64>,
    ) -> Result<LetterScan, NatsError> {
        let mut scan = LetterScan::default();
        let stream = self.names().dlt_stream(domain);
        let (mut from, mut readers) = (from, 0);
        // A reader that is lost or silent is replaced by one that continues at `from`.
        loop {
            let options = OrderedReaderOptions {
                filters: filters.to_vec(),
                from_sequence: Some(from),
                headers_only: true,
                last_per_subject: false,
            };
            let mut reader = OrderedReader::open(self, &stream, &options).await?;
            readers += 1;
            let ended = loop {
                if reader.remaining == 0 {
                    break true;
                }
                match tokio::time::timeout(self.request_timeout(), reader.next()).await {
                    Ok(event) => match event? {
                        OrderedEvent::Message(message) => {
                            (from, readers) = (message.stream_sequence + 1, 0);
                            let Some(scanned) = self.scanned(&stream, &message, replaying) else { continue };
                            scan.seen.add(scanned.letter.state, scanned.letter.failed_at);
                            if query.accepts(&scanned.letter) {
                                scan.letters.push(scanned);
                            }
                            if scan.letters.len() == limit {
                                scan.next = (reader.remaining > 0).then_some(from);
                                break true;
                            }
                        }
                        OrderedEvent::Lost => break false,
                    },
                    // They were deleted in the meantime, or the server is silent. A new reader knows.
                    Err(_) => break false,
                }
            };
            reader.close().await;
            if ended {
                return Ok(scan);
            }
            if readers >= MOST_READERS {
                return Err(NatsError::timeout(stream, self.request_timeout()));
            }
        }
    }

    fn scanned(&self, stream: &str, message: &Delivered, replaying: &HashSet<u64>) -> Option<ScannedLetter> {
        let sequence = message.stream_sequence;
        let mut letter = match DeadLetter::read(|name| message.header(name)) {
            Ok(letter) => letter,
            Err(reason) => {
                DeadLetterSkipped { stream, sequence, reason: &reason }.emit();
                return None;
            }
        };
        if replaying.contains(&sequence) {
            letter.state = DeadLetterState::Replaying;
        }
        // The server appends its own header to those of the writer.
        let size =
            message.header_pairs().filter(|(name, _)| name.eq_ignore_ascii_case("Nats-Msg-Size")).last();
        let size = size.and_then(|(_, size)| size.parse().ok()).unwrap_or(UNKNOWN_SIZE);
        let lane = self.names().parse_dead_letter(&message.subject).map(|parsed| parsed.lane);
        let stops = message.header(headers::STOPS).is_some() && lane.is_some_and(is_strict_lane);
        let envelope = message
            .header("Nats-Msg-Id")
            .and_then(|id| place_of(id, &self.names().outbox_stream(&letter.domain)));
        Some(ScannedLetter { letter, sequence, size, stops, envelope })
    }
}

/// The sequence of the envelope, from the message id of its dead letter. One that stays at its place in a strict lane has
/// another form of id.
fn place_of(message_id: &str, outbox: &str) -> Option<u64> {
    message_id.strip_prefix(outbox)?.strip_prefix('-')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_id_names_the_place_of_the_envelope() {
        for (id, place) in [
            ("HUB_OUTBOX_A-17", Some(17)),
            ("HUB_OUTBOX_A-17-3", None),
            ("HUB_OUTBOX_A-17-after-4", None),
            ("HUB_OUTBOX_A_DLT-17-refiled", None),
            ("HUB_OUTBOX_A_DLT-17", None),
            ("HUB_OUTBOX_B-17", None),
            ("HUB_OUTBOX_A-", None),
            ("HUB_OUTBOX_A--1", None),
            ("HUB_OUTBOX_A-99999999999999999999", None),
            ("env_1", None),
            ("", None),
        ] {
            assert_eq!(place_of(id, "HUB_OUTBOX_A"), place, "{id}");
        }
    }
}
