//! Finds everything that the streams hold about one event.

use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::attempts::RECORDS_HEADER;
use super::connection::JetStream;
use super::error::NatsError;
use super::publish::one_line;
use super::stream_api::StoredMessage;
use super::subjects::EventSubject;
use crate::domain::attempt_record::AttemptRecord;
use crate::domain::carried::Carried;
use crate::domain::dead_letter_query::DeadLetterQuery;
use crate::domain::envelope::Envelope;
use crate::domain::event::{Event, Publication, Rejection};
use crate::domain::headers;
use crate::domain::subscription::{SubscriptionRef, is_tenant};
use crate::domain::token::tenant_of_token;
use crate::domain::trace::{Findings, LastAttempt, Logged, PendingEnvelope, Rejected, UnreadEvent};

/// The event to trace, and where to look.
#[derive(Debug, Clone)]
pub struct TraceQuery {
    pub event_id: String,
    /// The domains to search.
    pub domains: Vec<String>,
    /// Only messages that were stored, or failed, at or after this time.
    pub since: Option<OffsetDateTime>,
}

impl JetStream {
    /// Adds everything about an event to `findings`, reading the fastest streams first. If the future is dropped,
    /// `findings` holds what was found so far.
    pub async fn trace(&self, query: &TraceQuery, findings: &mut Findings) -> Result<(), NatsError> {
        let letters = DeadLetterQuery {
            event_id: Some(one_line(&query.event_id).into_owned()),
            since: query.since,
            ..DeadLetterQuery::default()
        };
        for domain in &query.domains {
            let page = self.dead_letters(domain, &letters, 1, usize::MAX).await?;
            findings.dead_letters.extend(page.entries.into_iter().map(|entry| entry.letter));
        }
        self.trace_attempts(query, findings).await?;
        self.trace_pending(query, findings).await?;
        self.trace_rejected(query, findings).await?;
        self.trace_waiting(query, findings).await
    }

    /// The delivery log and the last words.
    async fn trace_attempts(&self, query: &TraceQuery, findings: &mut Findings) -> Result<(), NatsError> {
        let (names, stream) = (self.names(), self.names().attempts_stream());
        // The id as JSON text; most lines are skipped without being parsed.
        let written = serde_json::to_string(&query.event_id).unwrap_or_default();
        let only = match &query.domains[..] {
            [one] => Some(one.as_str()),
            _ => None,
        };
        let place = |subject: &str| {
            let (domain, token) = names.parse_attempts(subject)?;
            let meant = query.domains.iter().any(|name| name == domain);
            let subscription = SubscriptionRef::from_token(token)?.id().to_owned();
            meant.then(|| (domain.to_owned(), subscription))
        };
        let records = &mut findings.records;
        self.for_each_stored(&stream, &names.attempts_filter(only), query.since, |message| {
            let Some((domain, subscription)) = place(&message.subject) else { return };
            for line in message.payload.split(|byte| *byte == b'\n') {
                if !std::str::from_utf8(line).is_ok_and(|line| line.contains(&written)) {
                    continue;
                }
                for record in AttemptRecord::read_lines(line) {
                    if record.event_id == query.event_id {
                        let (domain, subscription) = (domain.clone(), subscription.clone());
                        records.push(Logged { domain, subscription, record: record.into_owned() });
                    }
                }
            }
        })
        .await?;
        let last_words = &mut findings.last_words;
        let wanted = one_line(&query.event_id);
        self.for_each_stored(&stream, &names.final_attempts_filter(only), query.since, |message| {
            if message.header(headers::EVENT_ID) != Some(&*wanted) {
                return;
            }
            if let (Some((domain, subscription)), Some(at), Some(envelope), Ok(words)) = (
                place(&message.subject),
                stored_at(&message),
                message.header(headers::ID),
                serde_json::from_slice(&message.payload),
            ) {
                let envelope = envelope.to_owned();
                let tenant = message.header(headers::TENANT).map(str::to_owned);
                last_words.push(LastAttempt { domain, subscription, envelope, tenant, at, words });
            }
        })
        .await
    }

    async fn trace_pending(&self, query: &TraceQuery, findings: &mut Findings) -> Result<(), NatsError> {
        for domain in &query.domains {
            let stream = self.names().outbox_stream(domain);
            let pending = &mut findings.pending;
            self.for_each_stored(&stream, &self.names().lane_filter(domain, "*"), query.since, |message| {
                let (Some(at), Ok(envelope)) = (stored_at(&message), Envelope::read(&message.payload)) else {
                    return;
                };
                if envelope.event_id == query.event_id {
                    pending.push(PendingEnvelope {
                        domain: domain.clone(),
                        subscription: envelope.subscription.to_string(),
                        tenant: envelope.tenant.to_string(),
                        envelope: envelope.id.to_string(),
                        event_time: envelope.event_time.as_deref().map(str::to_owned),
                        at,
                        redriven: Carried::read(|name| message.header(name)).dead_letter.is_some(),
                    });
                }
            })
            .await?;
        }
        Ok(())
    }

    async fn trace_rejected(&self, query: &TraceQuery, findings: &mut Findings) -> Result<(), NatsError> {
        let (names, rejected) = (self.names(), &mut findings.rejected);
        let events = names.events_stream();
        self.for_each_stored(&names.rejected_stream(), &names.rejected("*"), query.since, |message| {
            let made_up = message.header(headers::SEQUENCE).map(|sequence| format!("{events}-{sequence}"));
            let given = [headers::ORIGINAL_MESSAGE_ID, "ce-id"].map(|name| message.header(name));
            let inside = || Structured::read(&message.payload).has_id(&query.event_id);
            let known = given.contains(&Some(&query.event_id)) || made_up.as_ref() == Some(&query.event_id);
            if let (true, Some(at)) = (known || inside(), stored_at(&message)) {
                let text = |name: &str| message.header(name).unwrap_or_default().to_owned();
                let place = message.header(headers::SUBJECT).and_then(|subject| names.parse_event(subject));
                let tenant = match (decode(&message, place, &events), place.and_then(|at| at.tenant_token)) {
                    (Ok(event), _) => Some(event.tenant),
                    // The subject decides the tenant, whatever the message claims.
                    (Err(_), Some(token)) => tenant_of_token(token),
                    (Err(_), None) => tenant_named(&message),
                };
                rejected.push(Rejected {
                    at,
                    tenant,
                    reason: text(headers::REASON),
                    detail: text(headers::ERROR),
                });
            }
        })
        .await
    }

    async fn trace_waiting(&self, query: &TraceQuery, findings: &mut Findings) -> Result<(), NatsError> {
        let (names, waiting) = (self.names(), &mut findings.waiting);
        let stream = names.events_stream();
        self.for_each_stored(&stream, ">", query.since, |message| {
            let Some(at) = stored_at(&message) else { return };
            // An undecodable publication is rejected later and then found in that stream.
            if let Ok(event) = decode(&message, names.parse_event(&message.subject), &stream)
                && event.id == query.event_id
            {
                waiting.push(UnreadEvent { at, key: event.key.as_str().to_owned(), tenant: event.tenant });
            }
        })
        .await
    }

    /// Number of records in the delivery log.
    pub async fn attempts_logged(&self) -> Result<u64, NatsError> {
        let mut count = 0;
        let names = self.names();
        self.for_each_stored(&names.attempts_stream(), &names.attempts_filter(None), None, |message| {
            count += message.header(RECORDS_HEADER).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        })
        .await?;
        Ok(count)
    }
}

/// The fields of a structured CloudEvent or of a producer outbox envelope that are needed here, all optional.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Structured {
    id: Value,
    tenant: Value,
    metadata: Value,
}

impl Structured {
    fn has_id(&self, id: &str) -> bool {
        [Some(&self.id), self.metadata.pointer("/headers/id")]
            .iter()
            .flatten()
            .any(|found| found.as_str() == Some(id))
    }

    fn read(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }
}

/// Decodes a stored publication, without a size limit.
fn decode(
    message: &StoredMessage,
    place: Option<EventSubject<'_>>,
    stream: &str,
) -> Result<Event, Rejection> {
    if let Some(malformed) = message.malformed() {
        return Err(malformed.into());
    }
    let headers = message.header_pairs();
    Publication {
        subject_tail: place.map_or("", |place| place.tail),
        tenant_token: place.and_then(|place| place.tenant_token),
        headers: &headers,
        body: &message.payload,
        stream,
        sequence: message.sequence,
        time: stored_at(message).unwrap_or(OffsetDateTime::UNIX_EPOCH),
        max_size: usize::MAX,
    }
    .decode()
}

/// The tenant that an undecodable publication names; an attribute has precedence over a header, as in events.
fn tenant_named(message: &StoredMessage) -> Option<String> {
    let headers = message.header_pairs();
    let header = |wanted: &str| {
        headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| (*value).to_owned())
    };
    let named = header("ce-tenant")
        .or_else(|| Structured::read(&message.payload).tenant.as_str().map(str::to_owned))
        .or_else(|| header("hub-tenant"));
    named.filter(|tenant| is_tenant(tenant))
}

fn stored_at(message: &StoredMessage) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(&message.time, &Rfc3339).ok()
}
