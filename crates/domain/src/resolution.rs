//! Subscriptions from a resolver process: validation of its answers, their caching, and the waits after failures.
//! Callers pass the time as a duration since a fixed start.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::field_error::FieldError;
use super::filter::Filter;
use super::index::{EntryError, IndexEntry};
use super::subscription::{
    Delivery, Incarnation, InvalidIncarnation, InvalidSubscriptionId, InvalidTenant, Subscription,
    SubscriptionId, SubscriptionState,
};

/// An invalid part of an answer. The whole answer is then rejected, because a fan-out is never partial.
#[derive(Debug, Clone, thiserror::Error)]
#[error("subscription {id:?}: {field}: {problem}")]
pub struct Unusable {
    pub id: String,
    /// The name of the field in the protocol, such as `delivery_json`.
    pub field: String,
    #[source]
    pub problem: UnusableField,
}

/// Why one field of an answer is invalid.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UnusableField {
    #[error(transparent)]
    Id(#[from] InvalidSubscriptionId),
    #[error(transparent)]
    Incarnation(#[from] InvalidIncarnation),
    #[error(transparent)]
    Tenant(#[from] InvalidTenant),
    #[error(transparent)]
    FilterNotJson(Arc<serde_json::Error>),
    #[error("{}", .0.problem)]
    Filter(FieldError),
    /// Without the error of serde_json, which quotes the input: that may contain a secret.
    #[error("invalid delivery of a subscription, at line {line}, column {column}")]
    DeliveryNotJson { line: usize, column: usize },
    /// Without the error's text, for the same reason.
    #[error("invalid delivery of a subscription, at {place}")]
    Delivery { place: String },
    #[error("contains a secret that is not sealed")]
    NotSealed,
    #[error("occurs twice in the answer")]
    Twice,
}

/// Makes an index entry of one subscription of an answer. `filter` and `delivery` are JSON. A plain-text secret is
/// rejected, because the delivery is copied to envelopes unchanged. An empty incarnation means `legacy`.
pub fn entry(
    tenant: &str,
    id: String,
    incarnation: &str,
    revision: u64,
    filter: &str,
    delivery: &str,
) -> Result<IndexEntry, Unusable> {
    let unusable =
        |field: &str, problem: UnusableField| Unusable { id: id.clone(), field: field.to_owned(), problem };
    let name = SubscriptionId::try_from(id.clone()).map_err(|error| unusable("id", error.into()))?;
    let incarnation = Incarnation::read((!incarnation.is_empty()).then_some(incarnation))
        .map_err(|error| unusable("incarnation", error.into()))?;
    let filter: Vec<Filter> = match filter {
        "" => Vec::new(),
        json => serde_json::from_str(json)
            .map_err(|error| unusable("filter_json", UnusableField::FilterNotJson(error.into())))?,
    };
    for (position, filter) in filter.iter().enumerate() {
        filter
            .validate(&format!("filter_json[{position}]"))
            .map_err(|error| unusable(&error.field.clone(), UnusableField::Filter(error)))?;
    }
    let no_delivery = |place: String| unusable("delivery_json", UnusableField::Delivery { place });
    let value: Value = serde_json::from_str(delivery).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        unusable("delivery_json", UnusableField::DeliveryNotJson { line, column })
    })?;
    Delivery::check_fields(&value).map_err(|error| no_delivery(error.field))?;
    let delivery =
        Delivery::deserialize(value).map_err(|_| no_delivery("the delivery as a whole".to_owned()))?;
    let subscription = Subscription {
        id: name,
        tenant: tenant.to_owned(),
        incarnation,
        events: Vec::new(),
        filter,
        state: SubscriptionState::Active,
        disabled_reason: None,
        disabled_at: None,
        delivery,
    };
    IndexEntry::new(subscription, revision).map_err(|error| match error {
        EntryError::Tenant(error) => unusable("tenant", error.into()),
        EntryError::Delivery(_) => unusable("delivery_json", UnusableField::NotSealed),
    })
}

/// Rejects an answer that contains a subscription twice.
pub fn each_once(entries: &[IndexEntry]) -> Result<(), Unusable> {
    let mut seen = HashSet::with_capacity(entries.len());
    match entries.iter().find(|entry| !seen.insert(&entry.subscription.reference)) {
        None => Ok(()),
        Some(entry) => Err(Unusable {
            id: entry.subscription.id().to_owned(),
            field: "id".to_owned(),
            problem: UnusableField::Twice,
        }),
    }
}

/// The subscriptions whose patterns match a tenant's key.
pub type Candidates = Arc<[Arc<IndexEntry>]>;

/// A tenant and an event key.
pub type Question = (String, String);

/// A cache of answers, limited in time and in the number of subscriptions (an answer counts as at least one).
#[derive(Debug)]
pub struct Cache {
    answers: HashMap<Question, CachedAnswer>,
    /// In the order of arrival, which is the order of expiry.
    order: VecDeque<(Question, u64)>,
    held: usize,
    next: u64,
    capacity: usize,
    max_staleness: Duration,
}

#[derive(Debug)]
struct CachedAnswer {
    number: u64,
    asked_at: Duration,
    candidates: Candidates,
}

impl Cache {
    pub fn new(capacity: usize, max_staleness: Duration) -> Self {
        Self { answers: HashMap::new(), order: VecDeque::new(), held: 0, next: 0, capacity, max_staleness }
    }

    /// An answer whose question was sent less than `max_staleness` ago.
    pub fn get(&self, question: &Question, now: Duration) -> Option<Candidates> {
        let answer = self.answers.get(question)?;
        self.is_fresh(answer.asked_at, now).then(|| answer.candidates.clone())
    }

    /// Stores an answer. `asked_at` is a time before the question was sent, so that the age includes the time of the
    /// request. An answer larger than the whole cache is not stored.
    pub fn insert(&mut self, question: Question, candidates: Candidates, asked_at: Duration, now: Duration) {
        if let Some(old) = self.answers.remove(&question) {
            self.held -= weight(&old.candidates);
        }
        let added = weight(&candidates);
        let keeps = added <= self.capacity && self.is_fresh(asked_at, now);
        while let Some((first, number)) = self.order.front() {
            let is_current = self.answers.get(first).filter(|answer| answer.number == *number);
            match is_current {
                Some(answer)
                    if self.is_fresh(answer.asked_at, now)
                        && (!keeps || self.held + added <= self.capacity) =>
                {
                    break;
                }
                Some(_) => {
                    if let Some(old) = self.answers.remove(first) {
                        self.held -= weight(&old.candidates);
                    }
                }
                None => {}
            }
            self.order.pop_front();
        }
        if keeps {
            self.held += added;
            self.order.push_back((question.clone(), self.next));
            self.answers.insert(question, CachedAnswer { number: self.next, asked_at, candidates });
            self.next += 1;
        }
    }

    /// Number of subscriptions in the cache.
    pub fn held(&self) -> usize {
        self.held
    }

    fn is_fresh(&self, asked_at: Duration, now: Duration) -> bool {
        now.saturating_sub(asked_at) < self.max_staleness
    }
}

fn weight(candidates: &Candidates) -> usize {
    candidates.len().max(1)
}

/// The waits of an outage of the resolver: no question is sent during a wait, so that not every waiting event runs into
/// the deadline.
#[derive(Debug, Default)]
pub struct Outage {
    failures: u32,
    until: Duration,
    /// The kinds of failure that were logged in this outage.
    logged: Vec<&'static str>,
}

/// The consequences of a question without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unanswered {
    /// The wait until the next question.
    pub wait: Duration,
    /// True for the first failure of its kind in this outage, which is logged.
    pub is_news: bool,
}

impl Outage {
    pub const FIRST_WAIT: Duration = Duration::from_millis(500);
    pub const LONGEST_WAIT: Duration = Duration::from_secs(5);

    /// The rest of the current wait, if any.
    pub fn left(&self, now: Duration) -> Option<Duration> {
        self.until.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Records a failure, and returns the wait until the next question. The wait doubles each time up to its limit, and
    /// `chance` (0 to 1) spreads it over its second half, so that replicas do not ask at the same time. Concurrent
    /// failures count as one.
    pub fn failed(&mut self, now: Duration, chance: f64, kind: &'static str) -> Unanswered {
        let is_news = !self.logged.contains(&kind);
        if is_news {
            self.logged.push(kind);
        }
        if let Some(wait) = self.left(now) {
            return Unanswered { wait, is_news };
        }
        let wait = (Self::FIRST_WAIT * 2u32.saturating_pow(self.failures.min(10))).min(Self::LONGEST_WAIT);
        let wait = wait.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0);
        self.failures = self.failures.saturating_add(1);
        self.until = now + wait;
        Unanswered { wait, is_news }
    }

    /// Records an answer. Returns true if it ends an outage.
    pub fn answered(&mut self) -> bool {
        std::mem::take(self).failures > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELIVERY: &str = r#"{"url":"https://a.example/"}"#;

    fn candidates(count: usize) -> Candidates {
        (0..count).map(|n| Arc::new(entry("t", format!("s-{n}"), "", 1, "", DELIVERY).unwrap())).collect()
    }

    fn question(key: &str) -> Question {
        ("t".to_owned(), key.to_owned())
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_invalid_answer_names_the_field_and_no_secret() {
        let refused =
            |id: &str, filter, delivery| entry("t", id.to_owned(), "", 1, filter, delivery).unwrap_err();
        assert_eq!(refused("Not An Id", "", DELIVERY).field, "id");
        assert_eq!(refused("a", "{", DELIVERY).field, "filter_json");
        assert_eq!(refused("a", r#"[{"exact":{}}]"#, DELIVERY).field, "filter_json[0].exact");
        let plain = r#"{"url":"https://a.example/","auth":{"type":"bearer","token":"hunter2"}}"#;
        let error = refused("a", "", plain);
        assert!(
            matches!(error.problem, UnusableField::NotSealed) && !error.to_string().contains("hunter2"),
            "{error}"
        );
        let odd = r#"{"url":"https://a.example/","auth":"hunter2"}"#;
        assert!(!refused("a", "", odd).to_string().contains("hunter2"));
        let sealed = r#"{"url":"https://a.example/","auth":{"type":"bearer","token":{"sealed":"v1.k1.x"}}}"#;
        let entry = entry("t", "a".to_owned(), "", 7, r#"[{"exact":{"source":"idp"}}]"#, sealed).unwrap();
        assert_eq!((entry.revision, entry.subscription.filter.len()), (7, 1));
    }

    #[test]
    fn a_delivery_may_name_a_broker() {
        let read = |delivery: &str| entry("t", "a".to_owned(), "", 1, "", delivery);
        let found = read(r#"{"broker": "partner_events", "stream": "orders", "max_in_flight": 3}"#).unwrap();
        assert_eq!(found.max_in_flight, 3);
        let delivery = found.to_subscription().unwrap().delivery;
        assert_eq!(delivery.broker().map(|to| to.stream.as_str()), Some("orders"));
        for (bad, place) in [
            (r#"{"broker": "partner_events"}"#, "at delivery"),
            (r#"{"broker": "b", "stream": "s", "url": "https://a.example/"}"#, "at delivery.url"),
            (r#"{"broker": "b", "stream": "s", "max_in_flight": "x"}"#, "at delivery.max_in_flight"),
            (r#"{"broker": "b","#, "at line 1, column 15"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(
                error.field == "delivery_json" && error.problem.to_string().ends_with(place),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn a_subscription_that_occurs_twice_is_rejected() {
        let one = || entry("t", "a".to_owned(), "", 1, "", DELIVERY).unwrap();
        assert!(each_once(&[one()]).is_ok());
        assert!(each_once(&[one(), one()]).is_err());
    }

    #[test]
    fn an_answer_expires_after_the_maximum_staleness_from_its_question() {
        let mut cache = Cache::new(10, at(100));
        cache.insert(question("a.b"), candidates(2), at(50), at(80));
        assert_eq!(cache.get(&question("a.b"), at(149)).unwrap().len(), 2);
        assert!(cache.get(&question("a.b"), at(150)).is_none());
        assert!(cache.get(&question("a.c"), at(100)).is_none());
        assert!(cache.get(&("u".to_owned(), "a.b".to_owned()), at(100)).is_none());
        cache.insert(question("late"), candidates(1), at(0), at(100));
        assert!(cache.get(&question("late"), at(100)).is_none(), "it was stale when it came");
    }

    #[test]
    fn the_cache_never_exceeds_its_capacity() {
        let mut cache = Cache::new(5, at(1_000));
        for n in 0..200u64 {
            let count = (n % 7) as usize;
            cache.insert(question(&format!("a.{}", n % 11)), candidates(count), at(n), at(n));
            assert!(cache.held() <= 5, "{} held", cache.held());
            assert_eq!(cache.held(), cache.answers.values().map(|a| weight(&a.candidates)).sum::<usize>());
            assert!(cache.order.len() <= 11 + 5, "{} in order", cache.order.len());
        }
        cache.insert(question("x"), candidates(3), at(300), at(300));
        cache.insert(question("y"), candidates(3), at(301), at(301));
        assert!(cache.get(&question("x"), at(302)).is_none(), "the oldest makes room");
        assert_eq!(cache.get(&question("y"), at(302)).unwrap().len(), 3);
        cache.insert(question("z"), candidates(6), at(303), at(303));
        assert!(cache.get(&question("z"), at(303)).is_none(), "larger than the cache");
        assert!(cache.get(&question("y"), at(303)).is_some(), "no answer was removed for it");
    }

    #[test]
    fn a_cache_without_staleness_stores_nothing() {
        let mut cache = Cache::new(5, Duration::ZERO);
        cache.insert(question("a"), candidates(1), at(1), at(1));
        assert!(cache.get(&question("a"), at(1)).is_none());
        assert_eq!((cache.held(), cache.order.len()), (0, 0));
    }

    #[test]
    fn the_waits_of_an_outage_grow_within_bounds_and_end_with_an_answer() {
        let mut outage = Outage::default();
        assert_eq!(outage.left(at(0)), None);
        let wait = |outage: &mut Outage, now, chance| outage.failed(at(now), chance, "deadline").wait;
        assert_eq!(wait(&mut outage, 0, 1.0), Outage::FIRST_WAIT);
        assert_eq!(outage.left(at(100)), Some(at(400)));
        assert_eq!(outage.left(at(500)), None);
        assert_eq!(wait(&mut outage, 500, 0.0), at(500), "half of the doubled wait");
        assert_eq!(wait(&mut outage, 600, 1.0), at(400), "that one was already in flight");
        for n in 1..50 {
            assert!(wait(&mut outage, n * 10_000, 1.0) <= Outage::LONGEST_WAIT);
        }
        assert_eq!(wait(&mut outage, 1_000_000, 1.0), Outage::LONGEST_WAIT);
        assert!(outage.answered());
        assert!(!outage.answered());
        assert_eq!(outage.left(at(1_000)), None);
    }

    #[test]
    fn each_kind_of_failure_is_news_once_in_an_outage() {
        let mut outage = Outage::default();
        let mut news = |now, kind| outage.failed(at(now), 0.5, kind).is_news;
        assert!(news(0, "unavailable"));
        assert!(!news(10, "unavailable") && !news(9_000, "unavailable"));
        assert!(news(9_010, "deadline"));
        assert!(!news(20_000, "deadline") && !news(30_000, "unavailable"));
        assert!(outage.answered());
        assert!(outage.failed(at(40_000), 0.5, "unavailable").is_news, "another outage");
    }
}
