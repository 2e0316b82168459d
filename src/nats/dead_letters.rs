//! The dead-letter streams: putting, finding, listing and dropping entries. The message is the
//! truth: its headers are the dead letter's fields, its body the envelope.

use async_nats::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::connection::JetStream;
use super::error::NatsError;
use super::inspect::StoredMessage;
use super::publish::{one_line, shortened};
use super::scan::{Scan, ScanEvent, ScanOptions};
use super::subjects::SHARED_LANE;
use crate::domain::dead_letter::{DeadLetter, DeadLetterState};
use crate::domain::dead_letter_query::DeadLetterQuery;
use crate::domain::envelope::Envelope;
use crate::domain::last_words::LastWords;
use crate::domain::subscription::subscription_token;

/// Subjects that one read asks for by name; for more it reads all and chooses itself.
const MOST_FILTERS: usize = 64;

/// The most bytes of a dead letter's own fields. A stream takes 65,535 bytes of headers.
const MAX_HEADER_BYTES: usize = 40 * 1024;
/// The most bytes of an unreadable header block that a dead letter keeps.
const MAX_BLOCK_BYTES: usize = 16 * 1024;
/// The most bytes of a lane or a subscription in a subject: longer than any that the hub makes.
const MAX_TOKEN_BYTES: usize = 256;

/// A dead letter and where it stands.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = DeadLetterEntry)]
pub struct Entry {
    #[serde(flatten)]
    pub letter: DeadLetter,
    /// In its domain's dead-letter stream.
    pub sequence: u64,
}

/// Some dead letters of one domain, oldest first.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterPage {
    pub entries: Vec<Entry>,
    /// Where to go on: the sequence after the last one looked at; `None` at the end.
    pub next: Option<u64>,
}

impl JetStream {
    /// Puts a dead letter into its domain's stream, under its outbox subject and `.DLT`. The
    /// message id is made of the outbox stream and sequence it stood at, so that a repetition
    /// adds nothing.
    pub async fn put_dead_letter(
        &self,
        outbox_subject: &str,
        outbox_sequence: u64,
        letter: &DeadLetter,
        envelope: Bytes,
    ) -> Result<(), NatsError> {
        self.put_dead_letter_of(outbox_subject, outbox_sequence, letter, envelope, None).await
    }

    /// The same, of a message whose header block may be unreadable: then it goes along, in base64
    /// (`Hub-Original-Headers`; the first 16 KiB of a longer one).
    pub async fn put_dead_letter_of(
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

    /// The same for an envelope that never stood in an outbox, with a message id of its own.
    pub async fn put_dead_letter_as(
        &self,
        message_id: &str,
        outbox_subject: &str,
        letter: &DeadLetter,
        envelope: Bytes,
    ) -> Result<(), NatsError> {
        self.put_letter(outbox_subject, message_id, letter, envelope, None).await
    }

    /// Files a message of a dead-letter stream that cannot be worked on under another reason, with its
    /// original body, and drops it.
    pub async fn refile_dead_letter(
        &self,
        entry: &StoredMessage,
        letter: &DeadLetter,
    ) -> Result<(), NatsError> {
        let stream = self.names().dlt_stream(&letter.domain);
        let outbox_subject = self.names().outbox_of_dead_letter(&entry.subject);
        let id = format!("{stream}-{}-refiled", entry.sequence);
        self.put_letter(outbox_subject, &id, letter, entry.payload.clone(), entry.header_block()).await?;
        self.drop_dead_letter(&letter.domain, entry.sequence).await
    }

    async fn put_letter(
        &self,
        outbox_subject: &str,
        message_id: &str,
        letter: &DeadLetter,
        envelope: Bytes,
        block: Option<&Bytes>,
    ) -> Result<(), NatsError> {
        let room = self.max_payload().saturating_sub(envelope.len());
        let mut headers = letter_headers(letter, room);
        headers.insert("Nats-Msg-Id", message_id);
        if let Some(block) = block {
            let kept = block.slice(..block.len().min(MAX_BLOCK_BYTES));
            headers.insert("Hub-Original-Headers", STANDARD.encode(kept));
            headers.insert("Hub-Original-Headers-Size", block.len().to_string());
        }
        let names = self.names();
        let token = |text: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=".contains(&byte);
            (1..=MAX_TOKEN_BYTES).contains(&text.len()) && text.bytes().all(fits)
        };
        let usable = names.parse_outbox(outbox_subject).is_some_and(|parsed| {
            parsed.domain == letter.domain && token(parsed.lane) && token(parsed.subscription)
        });
        // What was written under an impossible subject is found under this one.
        let unreadable = || names.outbox(&letter.domain, SHARED_LANE, "unreadable");
        let place = if usable { outbox_subject.to_owned() } else { unreadable() };
        self.publish_map(&names.dead_letter(&place), envelope, headers).await.map(drop)
    }

    /// Drops a dead letter: it was delivered, discarded, or has a successor.
    pub async fn drop_dead_letter(&self, domain: &str, sequence: u64) -> Result<(), NatsError> {
        self.delete(&self.names().dlt_stream(domain), sequence).await
    }

    /// Drops a dead letter that nobody is to get; whoever waits for it hears that.
    pub async fn discard_dead_letter(&self, domain: &str, sequence: u64) -> Result<(), NatsError> {
        self.mark_discarded(domain, sequence).await?;
        self.drop_dead_letter(domain, sequence).await
    }

    /// Whether a dead letter stands. One that does not was delivered, discarded, or has a successor.
    pub async fn dead_letter_stands(&self, domain: &str, sequence: u64) -> Result<bool, NatsError> {
        self.stands(&self.names().dlt_stream(domain), sequence).await
    }

    /// Up to `limit` dead letters of a domain that the query accepts, from a sequence on.
    pub async fn dead_letters(
        &self,
        domain: &str,
        query: &DeadLetterQuery,
        from: u64,
        limit: usize,
    ) -> Result<DeadLetterPage, NatsError> {
        let mut page = DeadLetterPage::default();
        let stream = self.names().dlt_stream(domain);
        let info = self.stream_info(&stream).await?;
        if info.state.messages == 0 || from > info.state.last_seq {
            return Ok(page);
        }
        let filters = self.filters_of(domain, query).await?;
        if filters.is_empty() {
            return Ok(page);
        }
        let replaying = self.replaying(domain).await?;
        let mut from = from;
        // A reader that lost its place goes on from where it was.
        'again: loop {
            let options = ScanOptions {
                filters: filters.clone(),
                from_sequence: Some(from),
                headers_only: true,
                last_per_subject: false,
            };
            let mut scan = Scan::begin(self, &stream, &options).await?;
            while scan.remaining > 0 {
                match tokio::time::timeout(self.request_timeout(), scan.next()).await {
                    Ok(event) => match event? {
                        ScanEvent::Message(message) => {
                            from = message.stream_sequence + 1;
                            let Some(mut letter) = DeadLetter::from_headers(|name| message.header(name))
                            else {
                                tracing::warn!(
                                    stream,
                                    sequence = message.stream_sequence,
                                    "a message without the headers of a dead letter is passed over"
                                );
                                continue;
                            };
                            if replaying.contains(&message.stream_sequence) {
                                letter.state = DeadLetterState::Replaying;
                            }
                            if query.accepts(&letter) {
                                page.entries.push(Entry { letter, sequence: message.stream_sequence });
                                if page.entries.len() == limit {
                                    page.next = (scan.remaining > 0).then_some(from);
                                    break;
                                }
                            }
                        }
                        ScanEvent::Lost => {
                            scan.end().await;
                            continue 'again;
                        }
                    },
                    // What was there when the read began was dropped meanwhile.
                    Err(_) => break,
                }
            }
            scan.end().await;
            return Ok(page);
        }
    }

    /// The subjects that a query reads: those of the subscription, in any tenant if the query names
    /// none, and the bare id, under which an older version put all tenants' dead letters.
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

    /// The envelope's last words, if its final failed attempt was kept.
    pub async fn last_words(
        &self,
        domain: &str,
        tenant: &str,
        subscription: &str,
        envelope: &str,
    ) -> Result<Option<LastWords>, NatsError> {
        // Under the bare id: kept by a version that knew no other token.
        let token = subscription_token(tenant, subscription);
        let bare = (token.as_deref() != Some(subscription)).then_some(subscription);
        for name in token.as_deref().into_iter().chain(bare) {
            let subject = self.names().final_attempt(domain, name, envelope);
            match self.get_last(&self.names().attempts_stream(), &subject).await {
                Ok(Some(message)) => return Ok(serde_json::from_slice(&message.payload).ok()),
                Ok(None) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Keeps the envelope's last words, under its subscription's token.
    pub async fn put_last_words(
        &self,
        domain: &str,
        subscription: &str,
        envelope: &str,
        words: &LastWords,
    ) -> Result<(), NatsError> {
        self.put_words(&self.names().final_attempt(domain, subscription, envelope), words, &[]).await
    }

    /// Keeps the envelope's last words, with headers by which its event's story finds them.
    pub async fn put_final_attempt(
        &self,
        domain: &str,
        envelope: &Envelope<'_>,
        words: &LastWords,
    ) -> Result<(), NatsError> {
        let Some(token) = envelope.token() else {
            let subject = self.names().attempts_stream();
            return Err(NatsError::answer(subject, "the envelope names no subscription".to_owned()));
        };
        let subject = self.names().final_attempt(domain, &token, &envelope.id);
        let headers = [
            ("Hub-Id", &*envelope.id),
            ("Hub-Event-Id", &envelope.event_id),
            ("Hub-Event-Key", &envelope.event_key),
            ("Hub-Tenant", &envelope.tenant),
        ];
        self.put_words(&subject, words, &headers).await
    }

    async fn put_words(
        &self,
        subject: &str,
        words: &LastWords,
        headers: &[(&str, &str)],
    ) -> Result<(), NatsError> {
        let payload =
            serde_json::to_vec(words).map_err(|error| NatsError::answer(subject.to_owned(), error))?;
        self.publish(subject, payload.into(), headers).await.map(drop)
    }
}

/// A dead letter's headers, cut so that they fit beside the envelope and into what a stream takes of
/// headers: an envelope that somebody else wrote may hold any text.
fn letter_headers(letter: &DeadLetter, room: usize) -> HeaderMap {
    let room = room.min(MAX_HEADER_BYTES);
    let mut headers = HeaderMap::new();
    for (event_id, other) in [(32 * 1024, 4 * 1024), (1024, 512), (128, 128)] {
        headers = HeaderMap::new();
        let mut size = 512;
        for (name, value) in letter.to_headers() {
            let most = if name == "Hub-Event-Id" { event_id } else { other };
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
