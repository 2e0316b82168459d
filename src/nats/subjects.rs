//! Builds and parses every subject, stream name and bucket name of the hub.

mod described;
mod lanes;
mod places;

use crate::domain::access::TokenId;
use crate::domain::allotment::MemberId;
use crate::domain::bulk_job::BulkJobId;
use crate::domain::subscription::SubscriptionRef;
use crate::domain::token::{safe_token, tenant_token};

pub use described::{Described, described};
pub use lanes::*;

/// The subject, stream and bucket names of one hub. All begin with the prefix (setting `nats.prefix`, `hub` by
/// default), streams in upper case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectNames {
    prefix: String,
    upper: String,
}

/// A parsed `<prefix>.events.<tail>` or `<prefix>.from.<tenant token>.<tail>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventSubject<'a> {
    /// The event key, if the publisher put one into the subject.
    pub tail: &'a str,
    /// The token (see [`tenant_token`]) of the tenant that the subject binds the event to.
    pub tenant_token: Option<&'a str>,
}

/// A parsed `<prefix>.outbox.<domain>.<lane>.<subscription>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxSubject<'a> {
    pub domain: &'a str,
    pub lane: &'a str,
    /// The subscription's token.
    pub subscription: &'a str,
}

impl OutboxSubject<'_> {
    /// The subscription that the subject names. Envelopes of versions before ids belonged to their tenant have the bare
    /// id here; the envelope itself names its tenant.
    pub fn reference(&self) -> Option<SubscriptionRef> {
        SubscriptionRef::from_token(self.subscription)
    }
}

/// A parameter `subscription: &str` is the subscription's token ([`SubscriptionRef::token`]).
impl SubjectNames {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), upper: stream_token(prefix) }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The acknowledgement subject of a message that was delivered once (ADR-15).
    pub fn acknowledgement(
        &self,
        stream: &str,
        consumer: &str,
        sequence: u64,
        stored_at_nanos: i128,
    ) -> String {
        format!("$JS.ACK.{stream}.{consumer}.1.{sequence}.{sequence}.{stored_at_nanos}.0")
    }

    pub fn events_stream(&self) -> String {
        format!("{}_EVENTS", self.upper)
    }

    pub fn outbox_stream(&self, domain: &str) -> String {
        format!("{}_OUTBOX_{}", self.upper, stream_token(domain))
    }

    pub fn dlt_stream(&self, domain: &str) -> String {
        format!("{}_OUTBOX_{}_DLT", self.upper, stream_token(domain))
    }

    pub fn advisories_stream(&self) -> String {
        format!("{}_ADVISORIES", self.upper)
    }

    pub fn attempts_stream(&self) -> String {
        format!("{}_ATTEMPTS", self.upper)
    }

    pub fn redrive_stream(&self) -> String {
        format!("{}_REDRIVE", self.upper)
    }

    pub fn rejected_stream(&self) -> String {
        format!("{}_REJECTED", self.upper)
    }

    pub fn subscriptions_bucket(&self) -> String {
        format!("{}-subscriptions", self.prefix)
    }

    pub fn subscriptions_stream(&self) -> String {
        format!("KV_{}", self.subscriptions_bucket())
    }

    pub fn subscription_key(&self, subscription: &SubscriptionRef) -> String {
        format!("$KV.{}.{}", self.subscriptions_bucket(), subscription.token())
    }

    /// The keys of all subscriptions.
    pub fn subscriptions_filter(&self) -> String {
        format!("$KV.{}.>", self.subscriptions_bucket())
    }

    pub fn tokens_bucket(&self) -> String {
        format!("{}-tokens", self.prefix)
    }

    pub fn tokens_stream(&self) -> String {
        format!("KV_{}", self.tokens_bucket())
    }

    pub fn token_key(&self, id: &TokenId) -> String {
        format!("$KV.{}.{id}", self.tokens_bucket())
    }

    /// The keys of all tokens.
    pub fn tokens_filter(&self) -> String {
        format!("$KV.{}.>", self.tokens_bucket())
    }

    pub fn bulk_jobs_bucket(&self) -> String {
        format!("{}-orders", self.prefix)
    }

    pub fn bulk_jobs_stream(&self) -> String {
        format!("KV_{}", self.bulk_jobs_bucket())
    }

    pub fn bulk_job_key(&self, id: &BulkJobId) -> String {
        format!("$KV.{}.{id}", self.bulk_jobs_bucket())
    }

    /// The keys of all bulk jobs.
    pub fn bulk_jobs_filter(&self) -> String {
        format!("$KV.{}.>", self.bulk_jobs_bucket())
    }

    /// The stream of the message ids that were published within the duplicate window.
    pub fn published_stream(&self) -> String {
        format!("{}_PUBLISHED", self.upper)
    }

    /// The subject of one message id, which must be the hub's own ([`crate::domain::message_id`]).
    pub fn published(&self, id: &str) -> String {
        format!("{}.published.{id}", self.prefix)
    }

    pub fn keys_stream(&self) -> String {
        format!("KV_{}-keys", self.prefix)
    }

    /// The key of the secret that message ids are derived from.
    pub fn message_ids_key(&self) -> String {
        format!("$KV.{}-keys.message-ids", self.prefix)
    }

    /// The subscription's token in a registry key.
    pub fn subscription_of_key<'a>(&self, subject: &'a str) -> Option<&'a str> {
        subject.strip_prefix("$KV.")?.strip_prefix(self.subscriptions_bucket().as_str())?.strip_prefix('.')
    }

    /// `<prefix>.events.<tail>`
    pub fn event(&self, tail: &str) -> String {
        format!("{}.events.{tail}", self.prefix)
    }

    /// `<prefix>.from.<tenant>.<tail>`: the subject that binds an event to a tenant.
    pub fn event_from(&self, tenant: &str, tail: &str) -> String {
        format!("{}.from.{}.{tail}", self.prefix, tenant_token(tenant))
    }

    /// `None` if events are not published to this subject.
    pub fn parse_event<'a>(&self, subject: &'a str) -> Option<EventSubject<'a>> {
        let rest = subject.strip_prefix(self.prefix.as_str())?;
        if let Some(tail) = rest.strip_prefix(".events.") {
            return Some(EventSubject { tail, tenant_token: None });
        }
        let (token, tail) = rest.strip_prefix(".from.")?.split_once('.')?;
        Some(EventSubject { tail, tenant_token: Some(token) })
    }

    pub fn outbox(&self, domain: &str, lane: &str, subscription: &str) -> String {
        // One for each envelope.
        [&*self.prefix, ".outbox.", domain, ".", lane, ".", subscription].concat()
    }

    /// All subjects of a lane; the filter of its durable.
    pub fn lane_filter(&self, domain: &str, lane: &str) -> String {
        format!("{}.outbox.{domain}.{lane}.*", self.prefix)
    }

    /// Whether an outbox subject is in a lane of a strict order.
    pub fn is_in_strict_lane(&self, subject: &str) -> bool {
        self.parse_outbox(subject).is_some_and(|parsed| is_strict_lane(parsed.lane))
    }

    pub fn parse_outbox<'a>(&self, subject: &'a str) -> Option<OutboxSubject<'a>> {
        let tail = subject.strip_prefix(self.prefix.as_str())?.strip_prefix(".outbox.")?;
        let mut tokens = tail.split('.');
        let parsed =
            OutboxSubject { domain: tokens.next()?, lane: tokens.next()?, subscription: tokens.next()? };
        tokens.next().is_none().then_some(parsed)
    }

    /// `<outbox subject>.DLT`
    pub fn dead_letter(&self, outbox_subject: &str) -> String {
        format!("{outbox_subject}.DLT")
    }

    pub fn dead_letter_filter(&self, domain: &str) -> String {
        format!("{}.outbox.{domain}.*.*.DLT", self.prefix)
    }

    /// The outbox subject of a dead letter's subject; empty if it does not end in `.DLT`.
    pub fn outbox_of_dead_letter<'a>(&self, subject: &'a str) -> &'a str {
        subject.strip_suffix(".DLT").unwrap_or_default()
    }

    pub fn parse_dead_letter<'a>(&self, subject: &'a str) -> Option<OutboxSubject<'a>> {
        self.parse_outbox(subject.strip_suffix(".DLT")?)
    }

    pub fn rejected(&self, reason: &str) -> String {
        format!("{}.rejected.{reason}", self.prefix)
    }

    /// The delivery log of a subscription.
    pub fn attempts(&self, domain: &str, subscription: &str) -> String {
        format!("{}.attempts.{domain}.{subscription}", self.prefix)
    }

    /// The delivery log of a domain, or of all domains, without the final attempts.
    pub fn attempts_filter(&self, domain: Option<&str>) -> String {
        self.attempts(domain.unwrap_or("*"), "*")
    }

    /// The final attempts of a domain, or of all domains.
    pub fn final_attempts_filter(&self, domain: Option<&str>) -> String {
        format!("{}.attempts.{}.*.*", self.prefix, domain.unwrap_or("*"))
    }

    /// Domain and subscription token of a message of the delivery log, including final attempts.
    pub fn parse_attempts<'a>(&self, subject: &'a str) -> Option<(&'a str, &'a str)> {
        let mut tokens = subject.strip_prefix(self.prefix.as_str())?.strip_prefix(".attempts.")?.split('.');
        Some((tokens.next()?, tokens.next()?))
    }

    /// The final failed attempt of an envelope.
    pub fn final_attempt(&self, domain: &str, subscription: &str, envelope: &str) -> String {
        format!("{}.attempts.{domain}.{subscription}.{}", self.prefix, safe_token(envelope))
    }

    /// The timer of a dead letter; one per subject, the newest wins (ADR-51).
    pub fn redrive_timer(&self, domain: &str, sequence: u64) -> String {
        format!("{}.redrive.at.{domain}.{sequence}", self.prefix)
    }

    /// The request to redrive a dead letter now, published by its timer or for an operator.
    pub fn redrive_due(&self, domain: &str, sequence: u64) -> String {
        format!("{}.redrive.due.{domain}.{sequence}", self.prefix)
    }

    pub fn redrive_timer_filter(&self, domain: &str) -> String {
        format!("{}.redrive.at.{domain}.*", self.prefix)
    }

    pub fn redrive_due_filter(&self, domain: &str) -> String {
        format!("{}.redrive.due.{domain}.*", self.prefix)
    }

    pub fn parse_redrive_due<'a>(&self, subject: &'a str) -> Option<(&'a str, u64)> {
        self.parse_redrive(subject, "due")
    }

    /// Marks a dead letter that is being replayed.
    pub fn replaying(&self, domain: &str, sequence: u64) -> String {
        format!("{}.redrive.replaying.{domain}.{sequence}", self.prefix)
    }

    pub fn replaying_filter(&self, domain: &str) -> String {
        format!("{}.redrive.replaying.{domain}.*", self.prefix)
    }

    pub fn parse_replaying<'a>(&self, subject: &'a str) -> Option<(&'a str, u64)> {
        self.parse_redrive(subject, "replaying")
    }

    /// Marks a dead letter that an operator discarded.
    pub fn discarded(&self, domain: &str, sequence: u64) -> String {
        format!("{}.redrive.discarded.{domain}.{sequence}", self.prefix)
    }

    pub fn discarded_filter(&self, domain: &str) -> String {
        format!("{}.redrive.discarded.{domain}.*", self.prefix)
    }

    pub fn parse_discarded<'a>(&self, subject: &'a str) -> Option<(&'a str, u64)> {
        self.parse_redrive(subject, "discarded")
    }

    fn parse_redrive<'a>(&self, subject: &'a str, kind: &str) -> Option<(&'a str, u64)> {
        let tail = subject.strip_prefix(self.prefix.as_str())?.strip_prefix(".redrive.")?;
        let (domain, sequence) = tail.strip_prefix(kind)?.strip_prefix('.')?.split_once('.')?;
        let sequence: u64 = sequence.parse().ok()?;
        // The server uses no other sequences.
        (1..=i64::MAX as u64).contains(&sequence).then_some((domain, sequence))
    }

    /// The subject of the hold of a subscription. The redrive stream stores the last message, and processes that deliver
    /// listen to it.
    pub fn hold(&self, subscription: &str) -> String {
        format!("{}.redrive.held.{subscription}", self.prefix)
    }

    pub fn holds_filter(&self) -> String {
        self.hold("*")
    }

    /// The token of the held subscription.
    pub fn parse_hold<'a>(&self, subject: &'a str) -> Option<&'a str> {
        let subscription = subject.strip_prefix(self.prefix.as_str())?.strip_prefix(".redrive.held.")?;
        (!subscription.contains('.')).then_some(subscription)
    }

    /// The subject of notices about the circuit of a subscription in a domain. No stream stores them.
    pub fn circuit(&self, domain: &str, subscription: &str) -> String {
        format!("{}.circuits.{domain}.{subscription}", self.prefix)
    }

    /// The token of the subscription whose circuit changed.
    pub fn parse_circuit<'a>(&self, subject: &'a str) -> Option<&'a str> {
        let tail = subject.strip_prefix(self.prefix.as_str())?.strip_prefix(".circuits.")?;
        let (_, subscription) = tail.split_once('.')?;
        (!subscription.contains('.')).then_some(subscription)
    }

    /// The subject of the notices of a process that delivers. No stream stores them.
    pub fn member(&self, member: MemberId) -> String {
        format!("{}.members.{member}", self.prefix)
    }

    pub fn members_filter(&self) -> String {
        format!("{}.members.*", self.prefix)
    }

    pub fn parse_member(&self, subject: &str) -> Option<MemberId> {
        MemberId::parse(subject.strip_prefix(self.prefix.as_str())?.strip_prefix(".members.")?)
    }

    /// The subject of notices about the order in which the events of a domain are fanned out. No stream stores them.
    pub fn order(&self, domain: &str) -> String {
        format!("{}.order.{domain}", self.prefix)
    }

    /// The subject of notices about the delivered envelopes of a domain. No stream stores them.
    pub fn settled(&self, domain: &str) -> String {
        format!("{}.settled.{domain}", self.prefix)
    }

    /// The subject of advisories about new consumers of a stream.
    pub fn consumer_created(stream: &str) -> String {
        format!("$JS.EVENT.ADVISORY.CONSUMER.CREATED.{stream}.*")
    }

    /// The subject of advisories about a consumer that is paused or resumed.
    pub fn consumer_paused(stream: &str, consumer: &str) -> String {
        format!("$JS.EVENT.ADVISORY.CONSUMER.PAUSE.{stream}.{consumer}")
    }

    /// The advisory subjects of one domain outbox that the hub stores.
    pub fn advisory_subjects(&self, stream: &str) -> [String; 2] {
        ["MAX_DELIVERIES", "MSG_TERMINATED"]
            .map(|kind| format!("$JS.EVENT.ADVISORY.CONSUMER.{kind}.{stream}.*"))
    }
}

/// `user-lifecycle` → `USER_LIFECYCLE`
pub fn stream_token(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outbox_and_dead_letter_subjects_round_trip() {
        let names = SubjectNames::new("hub");
        let acme = SubscriptionRef::of("a.b", "crm").unwrap();
        let subject = names.outbox("policy-client", &own_lane(&acme.token()), &acme.token());
        assert_eq!(subject, "hub.outbox.policy-client.own-a=b=crm.a=b=crm");
        assert_eq!(names.parse_outbox(&subject).unwrap().reference(), Some(acme.clone()));
        assert_eq!(names.subscription_key(&acme), "$KV.hub-subscriptions.a=b=crm");
        assert_eq!(names.subscription_of_key(&names.subscription_key(&acme)), Some("a=b=crm"));
        assert!(is_lane(SHARED_LANE) && is_lane(&own_lane(&acme.token())) && is_lane("own-crm"));
        assert!(is_lane(&strict_lane(15, &acme.token())) && is_strict_lane("strict-0-crm"));
        assert_eq!(subscription_of_lane("strict-3-a=b=crm"), Some("a=b=crm"));
        let long = own_lane(&"x".repeat(3_000));
        for foreign in [
            "",
            "x",
            "*",
            ">",
            "own-",
            "own-*",
            "own-a=",
            "SHARED",
            &long,
            "strict-16-crm",
            "strict-crm",
            "strict-01-crm",
        ] {
            assert!(!is_lane(foreign), "{foreign}");
        }
        let subject = names.outbox("policy-client", SHARED_LANE, "crm");
        assert_eq!(subject, "hub.outbox.policy-client.shared.crm");
        let parsed = names.parse_outbox(&subject).unwrap();
        assert_eq!((parsed.domain, parsed.lane, parsed.subscription), ("policy-client", "shared", "crm"));
        let dead = names.dead_letter(&subject);
        assert_eq!(names.parse_dead_letter(&dead), Some(parsed));
        assert_eq!(names.parse_outbox(&dead), None, "a dead letter is not an outbox subject");
    }

    #[test]
    fn the_subjects_of_publications_round_trip() {
        let names = SubjectNames::new("acme");
        let free = EventSubject { tail: "user.created", tenant_token: None };
        assert_eq!(names.parse_event(&names.event("user.created")), Some(free));
        let bound = names.event_from("a.b", "user.created");
        assert_eq!(bound, "acme.from.a=b.user.created");
        let bound = names.parse_event(&bound).unwrap();
        assert_eq!((bound.tail, bound.tenant_token), ("user.created", Some("a=b")));
        for other in
            ["hub.events.user.created", "acme.from.a", "acme.from", "acme.outbox.a.b.c", "acmes.events.a"]
        {
            assert_eq!(names.parse_event(other), None, "{other}");
        }
    }

    #[test]
    fn redrive_subjects_round_trip() {
        let names = SubjectNames::new("acme");
        assert_eq!(names.parse_redrive_due(&names.redrive_due("organization", 7)), Some(("organization", 7)));
        assert_eq!(names.parse_replaying(&names.replaying("organization", 9)), Some(("organization", 9)));
        assert_eq!(names.parse_redrive_due("hub.redrive.due.organization.7"), None);
    }

    #[test]
    fn holds_round_trip() {
        let names = SubjectNames::new("acme");
        assert_eq!(names.holds_filter(), "acme.redrive.held.*");
        assert_eq!(names.parse_hold(&names.hold("crm")), Some("crm"));
        assert_eq!(names.parse_hold("hub.redrive.held.crm"), None);
    }

    #[test]
    fn stream_names_carry_the_prefix_in_upper_case() {
        let names = SubjectNames::new("my-hub");
        assert_eq!(names.outbox_stream("user-lifecycle"), "MY_HUB_OUTBOX_USER_LIFECYCLE");
        assert_eq!(names.subscriptions_bucket(), "my-hub-subscriptions");
    }
}
