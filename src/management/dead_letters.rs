//! Lists, shows and counts dead letters.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::str::FromStr;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use time::OffsetDateTime;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

use super::{Management, ManagementError};
use crate::domain::dead_letter::DeadLetterState;
pub use crate::domain::dead_letter_query::DeadLetterQuery;
use crate::domain::envelope::Envelope;
use crate::domain::last_words::LastWords;
use crate::domain::outcome::Reason;
use crate::domain::subscription::Subscription;
pub use crate::nats::DeadLetterEntry;
use crate::nats::JetStream;

/// Dead letters per page, which bounds the memory used.
pub const PAGE: usize = 20_000;
/// Maximum number of characters shown of a body that is not an envelope.
const BODY_CHARACTERS: usize = 4096;

/// Where a list continues: `<domain>/<sequence>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub domain: String,
    pub sequence: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid cursor {0:?}; write the one that the previous list printed, <domain>/<sequence>")]
pub struct InvalidCursor(String);

impl FromStr for Cursor {
    type Err = InvalidCursor;
    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        text.split_once('/')
            .and_then(|(domain, sequence)| {
                Some(Self { domain: domain.to_owned(), sequence: sequence.parse().ok()? })
            })
            .ok_or_else(|| InvalidCursor(text.to_owned()))
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.domain, self.sequence)
    }
}

/// Reads the dead letters of some domains, one domain after the other.
pub struct Pages<'a> {
    js: &'a JetStream,
    query: DeadLetterQuery,
    domains: VecDeque<String>,
    from: u64,
}

impl<'a> Pages<'a> {
    pub(super) fn new(js: &'a JetStream, query: DeadLetterQuery, domains: Vec<String>) -> Self {
        Self { js, query, domains: domains.into(), from: 1 }
    }

    /// Continues where a list ended.
    pub fn after(mut self, cursor: &Cursor) -> Result<Self, ManagementError> {
        match self.domains.iter().position(|domain| *domain == cursor.domain) {
            Some(position) => {
                self.domains.drain(..position);
                // Sequences start at 1.
                self.from = cursor.sequence.max(1);
                Ok(self)
            }
            None => Err(ManagementError::ForeignCursor {
                cursor: cursor.to_string(),
                domain: cursor.domain.clone(),
            }),
        }
    }

    /// The next page of up to `limit` (at least 1) dead letters of one domain, never empty; `None` at the end.
    pub async fn next(&mut self, limit: usize) -> Result<Option<Vec<DeadLetterEntry>>, ManagementError> {
        while let Some(domain) = self.domains.front() {
            let page = self.js.dead_letters(domain, &self.query, self.from, limit).await?;
            match page.next {
                Some(next) => self.from = next,
                None => {
                    self.domains.pop_front();
                    self.from = 1;
                }
            }
            if !page.entries.is_empty() {
                return Ok(Some(page.entries));
            }
        }
        Ok(None)
    }

    /// The position of the next dead letter, if there is one.
    pub async fn cursor(mut self) -> Result<Option<Cursor>, ManagementError> {
        let next = self.next(1).await?.and_then(|page| page.into_iter().next());
        Ok(next.map(|entry| Cursor { domain: entry.letter.domain, sequence: entry.sequence }))
    }
}

/// A page of dead letters, by domain in the order of the settings, oldest first.
#[derive(Debug, Clone)]
pub struct DeadLetterList {
    pub entries: Vec<DeadLetterEntry>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Cursor>,
}

/// A dead letter with its event, its delivery and its last attempt.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct DeadLetterDetails {
    #[serde(flatten)]
    pub entry: DeadLetterEntry,
    pub stream: String,
    pub last_attempt: Option<LastWords>,
    #[serde(flatten)]
    pub content: Content,
}

/// The message's body.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Content {
    Envelope {
        traceparent: Option<String>,
        /// CloudEvents JSON format, as in the envelope: a parsed value would change numbers and members that occur twice,
        /// and not every JSON text can be parsed.
        event: Box<RawValue>,
        /// The delivery settings at the fan-out, with secrets hidden; null if they cannot be read, because it is unknown
        /// then which parts are secret.
        delivery: Value,
    },
    Unreadable {
        /// Always null, like `delivery`.
        event: (),
        delivery: (),
        /// Why the body is not an envelope.
        undecodable: String,
        /// The beginning of the body.
        body: String,
    },
}

/// One schema for both variants: the unreadable one has `event` and `delivery` too (null), so that a `oneOf` would
/// match both.
impl PartialSchema for Content {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let nullable = [Type::String, Type::Null].into_iter().collect::<SchemaType>();
        let any =
            |about: &str| ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some(about));
        ObjectBuilder::new()
            .property("event", any("CloudEvents JSON format; null if the body is not an envelope"))
            .property(
                "delivery",
                any("The delivery settings at the fan-out, with secrets hidden; null if they cannot be read"),
            )
            .property("traceparent", ObjectBuilder::new().schema_type(nullable))
            .property(
                "undecodable",
                text().description(Some("Why the body is not an envelope; absent otherwise")),
            )
            .property("body", text().description(Some("The beginning of the body, if it is not an envelope")))
            .required("event")
            .required("delivery")
            .into()
    }
}

impl ToSchema for Content {
    fn name() -> std::borrow::Cow<'static, str> {
        "DeadLetterContent".into()
    }
}

#[derive(Debug, Clone, Copy, Serialize, utoipa::ToSchema)]
pub struct Count {
    pub count: u64,
    /// When the oldest one failed.
    #[serde(with = "time::serde::rfc3339")]
    pub oldest: OffsetDateTime,
}

#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct CountByDomain {
    pub domain: String,
    pub reason: Reason,
    pub state: DeadLetterState,
    #[serde(flatten)]
    pub count: Count,
}

#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct CountBySubscription {
    /// Empty if the envelopes could not be read.
    pub tenant: String,
    pub subscription: String,
    #[serde(flatten)]
    pub count: Count,
}

/// Numbers of dead letters.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct DeadLetterStats {
    pub total: u64,
    #[serde(with = "time::serde::rfc3339::option")]
    pub oldest: Option<OffsetDateTime>,
    pub by_domain: Vec<CountByDomain>,
    /// Sorted by count, largest first.
    pub by_subscription: Vec<CountBySubscription>,
}

impl Count {
    fn add<K: Ord>(counts: &mut BTreeMap<K, Count>, key: K, failed_at: OffsetDateTime) {
        let count = counts.entry(key).or_insert(Count { count: 0, oldest: failed_at });
        count.count += 1;
        count.oldest = count.oldest.min(failed_at);
    }
}

impl Management {
    /// The dead letters that match the filter, page by page.
    pub fn dead_letter_pages(&self, filter: &DeadLetterQuery) -> Result<Pages<'_>, ManagementError> {
        Ok(Pages::new(&self.js, filter.clone(), self.domain_names(&filter.domains)?))
    }

    /// Up to `limit` dead letters, from the start or from a cursor. An empty list is confirmed by a leader.
    pub async fn list_dead_letters(
        &self,
        filter: &DeadLetterQuery,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<DeadLetterList, ManagementError> {
        let mut pages = self.dead_letter_pages(filter)?;
        if let Some(cursor) = after {
            pages = pages.after(cursor)?;
        }
        let mut entries = Vec::new();
        while entries.len() < limit {
            match pages.next((limit - entries.len()).min(PAGE)).await? {
                Some(page) => entries.extend(page),
                None => {
                    if entries.is_empty() {
                        self.confirm_leader().await?;
                    }
                    return Ok(DeadLetterList { entries, next: None });
                }
            }
        }
        Ok(DeadLetterList { entries, next: pages.cursor().await? })
    }

    /// One dead letter by its id; with a tenant, only if it belongs to that tenant.
    pub async fn show_dead_letter(
        &self,
        id: &str,
        tenant: Option<&str>,
    ) -> Result<DeadLetterDetails, ManagementError> {
        let query = DeadLetterQuery {
            tenant: tenant.map(str::to_owned),
            ids: [id.to_owned()].into(),
            ..DeadLetterQuery::default()
        };
        let mut pages = Pages::new(&self.js, query, self.domain_names(&[])?);
        // If a redrive fails, the dead letter and its successor exist at the same time for a moment; use the newer one.
        let mut found = None;
        while let Some(page) = pages.next(PAGE).await? {
            found = page.into_iter().next_back();
        }
        let nothing = || ManagementError::NoDeadLetter { id: id.to_owned() };
        self.describe(found.ok_or_else(nothing)?).await?.ok_or_else(nothing)
    }

    /// `None` if it has been deleted.
    async fn describe(&self, entry: DeadLetterEntry) -> Result<Option<DeadLetterDetails>, ManagementError> {
        let letter = &entry.letter;
        let stream = self.js.names().dlt_stream(&letter.domain);
        let Some(message) = self.js.get(&stream, entry.sequence).await? else { return Ok(None) };
        let last_attempt =
            self.js.last_words(&letter.domain, &letter.tenant, &letter.subscription, &letter.id).await?;
        let content = Content::read(&message.payload);
        Ok(Some(DeadLetterDetails { entry, stream, last_attempt, content }))
    }

    /// Counts the dead letters that match the filter; none is confirmed by a leader. `seen` gets the count after each page.
    pub async fn dead_letter_stats(
        &self,
        filter: &DeadLetterQuery,
        mut seen: impl FnMut(u64) + Send,
    ) -> Result<DeadLetterStats, ManagementError> {
        let (mut by_domain, mut by_subscription) = (BTreeMap::new(), BTreeMap::new());
        let (mut pages, mut total) = (self.dead_letter_pages(filter)?, 0);
        while let Some(page) = pages.next(PAGE).await? {
            total += page.len() as u64;
            seen(total);
            for entry in page {
                let letter = entry.letter;
                Count::add(&mut by_domain, (letter.domain, letter.reason, letter.state), letter.failed_at);
                Count::add(&mut by_subscription, (letter.tenant, letter.subscription), letter.failed_at);
            }
        }
        if total == 0 {
            self.confirm_leader().await?;
        }
        let by_domain: Vec<CountByDomain> = by_domain
            .into_iter()
            .map(|((domain, reason, state), count)| CountByDomain { domain, reason, state, count })
            .collect();
        let mut by_subscription: Vec<CountBySubscription> = by_subscription
            .into_iter()
            .map(|((tenant, subscription), count)| CountBySubscription { tenant, subscription, count })
            .collect();
        by_subscription.sort_by_key(|row| Reverse(row.count.count));
        let oldest = by_domain.iter().map(|row| row.count.oldest).min();
        Ok(DeadLetterStats { total, oldest, by_domain, by_subscription })
    }
}

impl DeadLetterDetails {
    /// The event in the CloudEvents JSON format; `None` if the body is not an envelope.
    pub fn event(&self) -> Option<&RawValue> {
        match &self.content {
            Content::Envelope { event, .. } => Some(event),
            Content::Unreadable { .. } => None,
        }
    }

    /// The other fields.
    pub fn without_event(mut self) -> serde_json::Result<Value> {
        if let Content::Envelope { event, .. } = &mut self.content {
            *event = RawValue::NULL.to_owned();
        }
        let mut fields = serde_json::to_value(&self)?;
        if let Some(fields) = fields.as_object_mut() {
            fields.remove("event");
        }
        Ok(fields)
    }
}

impl Content {
    fn read(body: &[u8]) -> Self {
        match Envelope::read(body) {
            Ok(envelope) => Self::Envelope {
                traceparent: envelope.traceparent.as_deref().map(str::to_owned),
                event: envelope.event.to_owned(),
                delivery: hidden_delivery(&envelope),
            },
            Err(error) => Self::Unreadable {
                event: (),
                delivery: (),
                undecodable: error.to_string(),
                body: String::from_utf8_lossy(body).chars().take(BODY_CHARACTERS).collect(),
            },
        }
    }
}

fn hidden_delivery(envelope: &Envelope<'_>) -> Value {
    let delivery = envelope.delivery.and_then(|delivery| serde_json::from_str::<Value>(delivery.get()).ok());
    let Some(delivery) = delivery else { return Value::Null };
    let subscription = json!({"id": envelope.subscription, "events": [], "delivery": delivery});
    match serde_json::from_value::<Subscription>(subscription) {
        Ok(subscription) => subscription.hidden_json()["delivery"].take(),
        Err(_) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back() {
        let cursor = Cursor { domain: "policy-client".to_owned(), sequence: 7 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        assert!("policy-client".parse::<Cursor>().is_err());
        assert!("policy-client/x".parse::<Cursor>().is_err());
    }

    /// Texts that the hub delivers, and that a parsed value would change or not hold.
    #[test]
    fn the_event_is_shown_as_it_was_delivered() {
        let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
        for data in [
            r#""\ud800""#,
            "1e400",
            "1.10",
            "12345678901234567890123",
            r#"{"a":1,"a":2}"#,
            r#"{"b":1,"a":2}"#,
            deep.as_str(),
        ] {
            let event = format!(r#"{{"id":"e","data":{data}}}"#);
            let body = format!(
                r#"{{"id":"env_1","domain":"d","subscription":"s","tenant":"t","event_id":"e","event_key":"user.created","event":{event}}}"#
            );
            let content = Content::read(body.as_bytes());
            let shown = serde_json::to_string(&content).expect("JSON");
            assert!(shown.contains(&format!(r#""event":{event}"#)), "{shown}");
        }
        let unreadable = serde_json::to_value(Content::read(b"{")).expect("JSON");
        assert_eq!((&unreadable["event"], &unreadable["body"]), (&Value::Null, &json!("{")));
    }

    #[test]
    fn a_tenant_alone_is_not_a_condition() {
        let filter = DeadLetterQuery { tenant: Some("acme".to_owned()), ..DeadLetterQuery::default() };
        assert!(filter.means_all());
        assert!(!DeadLetterQuery { ids: ["env_1".to_owned()].into(), ..filter }.means_all());
    }
}
