//! Stores, finds, lists and deletes dead letters. In the stream, the headers of a message are the fields of the dead
//! letter and its body is the envelope.

use async_nats::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::connection::JetStream;
use super::error::NatsError;
use super::publish::{one_line, shortened};
use super::stream_api::StoredMessage;
use super::strict::stops_header;
use super::subjects::SHARED_LANE;
use crate::domain::dead_letter::DeadLetter;
use crate::domain::dead_letter_query::DeadLetterQuery;
use crate::domain::envelope::Envelope;
use crate::domain::headers;
use crate::domain::last_words::LastWords;
use crate::domain::letter_tally::LetterTally;
use crate::domain::subscription::subscription_token;

/// Maximum number of subject filters of one read; beyond that it reads all subjects and filters here.
const MOST_FILTERS: usize = 64;

/// Maximum size of a dead letter's fields in bytes. A stream accepts 65,535 bytes of headers.
const MAX_HEADER_BYTES: usize = 40 * 1024;
/// Maximum number of bytes of an unparsable header block that a dead letter keeps.
const MAX_BLOCK_BYTES: usize = 16 * 1024;
/// Maximum size of a lane or subscription token in a subject, in bytes; longer than any that the hub creates.
const MAX_TOKEN_BYTES: usize = 256;

/// A dead letter and its position in the stream.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = DeadLetterEntry)]
pub struct DeadLetterEntry {
    #[serde(flatten)]
    pub letter: DeadLetter,
    /// Sequence in the dead-letter stream of its domain.
    pub sequence: u64,
}

/// A page of dead letters of one domain, oldest first.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterPage {
    pub entries: Vec<DeadLetterEntry>,
    /// Of all that were read for it, also those that the query does not accept.
    pub seen: LetterTally,
    /// The sequence where the next page begins; `None` at the end.
    pub next: Option<u64>,
}

impl JetStream {
    /// Stores a dead letter in the stream of its domain, under its outbox subject and `.DLT`. The message id consists of
    /// the outbox stream and sequence, so that a repetition adds nothing.
    pub async fn put_dead_letter(
        &self,
        outbox_subject: &str,
        outbox_sequence: u64,
        letter: &DeadLetter,
        envelope: Bytes,
    ) -> Result<(), NatsError> {
        self.put_dead_letter_with_headers(outbox_subject, outbox_sequence, letter, envelope, None).await
    }

    /// As [`Self::put_dead_letter`], and stores an unparsable header block in base64 (`Hub-Original-Headers`, at most
    /// 16 KiB of it).
    pub async fn put_dead_letter_with_headers(
        &self,
        outbox_subject: &str,
        outbox_sequence: u64,
        letter: &DeadLetter,
        envelope: Bytes,
        block: Option<&Bytes>,
    ) -> Result<(), NatsError> {
        let stream = self.names().outbox_stream(&letter.domain);
        let id = format!("{stream}-{outbox_sequence}");
        self.put_letter(outbox_subject, &id, letter, envelope, block).await
    }

    /// As [`Self::put_dead_letter`], with a given message id, for an envelope that was never in an outbox.
    pub async fn put_dead_letter_with_id(
        &self,
        message_id: &str,
        outbox_subject: &str,
        letter: &DeadLetter,
        envelope: Bytes,
    ) -> Result<(), NatsError> {
        self.put_letter(outbox_subject, message_id, letter, envelope, None).await
    }

    /// Replaces a message of a dead-letter stream that cannot be processed by a dead letter with the same body and
    /// another reason.
    pub async fn refile_dead_letter(
        &self,
        entry: &StoredMessage,
        letter: &DeadLetter,
    ) -> Result<(), NatsError> {
        let stream = self.names().dlt_stream(&letter.domain);
        let outbox_subject = self.names().outbox_of_dead_letter(&entry.subject);
        let id = format!("{stream}-{}-refiled", entry.sequence);
        let (body, block, more) = (entry.payload.clone(), entry.header_block(), stops_header(entry));
        self.put_letter_with(outbox_subject, &id, letter, body, block, &more).await?;
        self.delete_dead_letter(&letter.domain, entry.sequence).await
    }

    async fn put_letter(
        &self,
        outbox_subject: &str,
        message_id: &str,
        letter: &DeadLetter,
        envelope: Bytes,
        block: Option<&Bytes>,
    ) -> Result<(), NatsError> {
        self.put_letter_with(outbox_subject, message_id, letter, envelope, block, &[]).await
    }

    pub(super) async fn put_letter_with(
        &self,
        outbox_subject: &str,
        message_id: &str,
        letter: &DeadLetter,
        envelope: Bytes,
        block: Option<&Bytes>,
        more: &[(&'static str, String)],
    ) -> Result<(), NatsError> {
        let room = self.max_payload().saturating_sub(envelope.len());
        let mut headers = letter_headers(letter, room);
        headers.insert("Nats-Msg-Id", message_id);
        for (name, value) in more {
            headers.insert(*name, value.as_str());
        }
        if let Some(block) = block {
            let kept = block.slice(..block.len().min(MAX_BLOCK_BYTES));
            headers.insert(headers::ORIGINAL_HEADERS, STANDARD.encode(kept));
            headers.insert(headers::ORIGINAL_HEADERS_SIZE, block.len().to_string());
        }
        let names = self.names();
        let token = |text: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=".contains(&byte);
            (1..=MAX_TOKEN_BYTES).contains(&text.len()) && text.bytes().all(fits)
        };
        let usable = names.parse_outbox(outbox_subject).is_some_and(|parsed| {
            parsed.domain == letter.domain && token(parsed.lane) && token(parsed.subscription)
        });
        // A message with an invalid subject is stored under this one.
        let unreadable = || names.outbox(&letter.domain, SHARED_LANE, "unreadable");
        let place = if usable { outbox_subject.to_owned() } else { unreadable() };
        let (subject, size) = (names.dead_letter(&place), envelope.len() + headers_size(&headers));
        self.letter_rooms().may_try(&letter.domain, size)?;
        let written = self.publish_map(&subject, envelope, headers).await.map(drop);
        self.letter_rooms().note(&letter.domain, size, written.as_ref().copied());
        written
    }

    /// Deletes a dead letter that was delivered or discarded, or has a successor.
    pub async fn delete_dead_letter(&self, domain: &str, sequence: u64) -> Result<(), NatsError> {
        self.delete(&self.names().dlt_stream(domain), sequence).await
    }

    /// Marks a dead letter as discarded, for callers that follow it, and deletes it. An envelope that stops its lane with it
    /// is deleted before.
    pub async fn discard_dead_letter(&self, domain: &str, sequence: u64) -> Result<(), NatsError> {
        self.mark_discarded(domain, sequence).await?;
        self.discard_stopped_envelope(domain, sequence).await?;
        self.delete_dead_letter(domain, sequence).await
    }

    /// Reads up to `limit` dead letters of a domain that the query accepts, starting at a sequence.
    pub async fn dead_letters(
        &self,
        domain: &str,
        query: &DeadLetterQuery,
        from: u64,
        limit: usize,
    ) -> Result<DeadLetterPage, NatsError> {
        let info = self.stream_info_of_leader(&self.names().dlt_stream(domain)).await?;
        if info.state.messages == 0 || from > info.state.last_seq {
            return Ok(DeadLetterPage::default());
        }
        let filters = self.filters_of(domain, query).await?;
        if filters.is_empty() {
            return Ok(DeadLetterPage::default());
        }
        let replaying = self.replaying(domain).await?;
        let scan = self.scan_dead_letters(domain, &filters, query, from, limit, &replaying).await?;
        let entries = scan.letters.into_iter();
        let entries = entries.map(|one| DeadLetterEntry { letter: one.letter, sequence: one.sequence });
        Ok(DeadLetterPage { entries: entries.collect(), seen: scan.seen, next: scan.next })
    }

    /// The subjects of a domain's dead letters.
    pub async fn dead_letter_subjects(&self, domain: &str) -> Result<Vec<String>, NatsError> {
        let filter = self.names().dead_letter_filter(domain);
        let subjects = self.stream_subjects(&self.names().dlt_stream(domain), &filter).await?;
        Ok(subjects.into_iter().map(|(subject, _)| subject).collect())
    }

    /// The subjects that a query reads: those of the subscription, of every tenant if the query has none, and the bare
    /// id, under which older versions stored the dead letters of all tenants.
    async fn filters_of(&self, domain: &str, query: &DeadLetterQuery) -> Result<Vec<String>, NatsError> {
        let all = self.names().dead_letter_filter(domain);
        let Some(wanted) = &query.subscription else { return Ok(vec![all]) };
        let subjects = self.stream_subjects(&self.names().dlt_stream(domain), &all).await?;
        let mut filters: Vec<String> = subjects.into_iter().map(|(subject, _)| subject).collect();
        filters.retain(|subject| {
            let Some(parsed) = self.names().parse_dead_letter(subject) else { return false };
            parsed.subscription == wanted
                || parsed.reference().is_some_and(|name| {
                    name.id() == wanted && query.tenant.as_ref().is_none_or(|tenant| name.tenant() == tenant)
                })
        });
        Ok(if filters.len() > MOST_FILTERS { vec![all] } else { filters })
    }

    /// The final failed attempt of an envelope, if it was stored.
    pub async fn last_words(
        &self,
        domain: &str,
        tenant: &str,
        subscription: &str,
        envelope: &str,
    ) -> Result<Option<LastWords>, NatsError> {
        let stored = self.stored_last_words(domain, tenant, subscription, envelope).await?;
        Ok(stored.map(|(_, words)| words))
    }

    /// The same, with its sequence in the stream of attempts.
    pub async fn stored_last_words(
        &self,
        domain: &str,
        tenant: &str,
        subscription: &str,
        envelope: &str,
    ) -> Result<Option<(u64, LastWords)>, NatsError> {
        // Older versions stored it under the bare id.
        let token = subscription_token(tenant, subscription);
        let bare = (token.as_deref() != Some(subscription)).then_some(subscription);
        for name in token.as_deref().into_iter().chain(bare) {
            let subject = self.names().final_attempt(domain, name, envelope);
            let found = self.get_last(&self.names().attempts_stream(), &subject).await?;
            if let Some(message) = found {
                let words = serde_json::from_slice(&message.payload).ok();
                return Ok(words.map(|words| (message.sequence, words)));
            }
        }
        Ok(None)
    }

    /// The last sequence of the stream of attempts; 0 if it does not exist.
    pub async fn last_attempt(&self) -> Result<u64, NatsError> {
        let stream = self.find_stream(&self.names().attempts_stream()).await?;
        Ok(stream.map_or(0, |stream| stream.state.last_seq))
    }

    /// Stores the final failed attempt of an envelope; `subscription` is the token.
    pub async fn put_last_words(
        &self,
        domain: &str,
        subscription: &str,
        envelope: &str,
        words: &LastWords,
    ) -> Result<(), NatsError> {
        self.put_words(&self.names().final_attempt(domain, subscription, envelope), words, &[]).await
    }

    /// Stores the final failed attempt of an envelope, with headers by which a trace finds it.
    pub async fn put_final_attempt(
        &self,
        domain: &str,
        envelope: &Envelope<'_>,
        words: &LastWords,
    ) -> Result<(), NatsError> {
        let Some(token) = envelope.token() else {
            return Err(NatsError::UnnamedSubscription { envelope: envelope.id.to_string() });
        };
        let subject = self.names().final_attempt(domain, &token, &envelope.id);
        let headers = [
            (headers::ID, &*envelope.id),
            (headers::EVENT_ID, &envelope.event_id),
            (headers::EVENT_KEY, &envelope.event_key),
            (headers::TENANT, &envelope.tenant),
        ];
        self.put_words(&subject, words, &headers).await
    }

    async fn put_words(
        &self,
        subject: &str,
        words: &LastWords,
        headers: &[(&str, &str)],
    ) -> Result<(), NatsError> {
        let payload = serde_json::to_vec(words).map_err(|error| NatsError::encode(subject, error))?;
        self.publish(subject, payload.into(), headers).await.map(drop)
    }
}

fn headers_size(headers: &HeaderMap) -> usize {
    let names_and_values = headers.iter();
    names_and_values
        .map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(|value| name.len() + value.as_str().len() + 4).sum::<usize>()
        })
        .sum()
}

/// A dead letter's headers, cut to fit into the message with the envelope and into the header limit of a stream. An
/// envelope from another writer may hold texts of any length.
fn letter_headers(letter: &DeadLetter, room: usize) -> HeaderMap {
    let room = room.min(MAX_HEADER_BYTES);
    let mut headers = HeaderMap::new();
    for (event_id, other) in [(32 * 1024, 4 * 1024), (1024, 512), (128, 128)] {
        headers = HeaderMap::new();
        let mut size = 512;
        for (name, value) in letter.to_headers() {
            let most = if name == headers::EVENT_ID { event_id } else { other };
            let value = shortened(&value, most);
            size += name.len() + value.len() + 4;
            headers.insert(name, one_line(value).as_ref());
        }
        if size <= room {
            break;
        }
    }
    headers
}
