//! Every subject, stream name and bucket name of the hub, built and parsed in this one file.

use crate::domain::access::TokenId;
use crate::domain::bulk_job::BulkJobId;
use crate::domain::subscription::SubscriptionRef;
use crate::domain::token::{safe_token, tenant_token};

/// The lane every subscription starts in.
pub const SHARED_LANE: &str = "shared";

/// Names under one prefix (setting `nats.prefix`, `hub` by default); streams carry it in upper case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    prefix: String,
    upper: String,
}

/// A parsed `<prefix>.events.<tail>` or `<prefix>.from.<tenant token>.<tail>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventSubject<'a> {
    /// The event key, if the publisher named one there.
    pub tail: &'a str,
    /// The tenant's token (see [`tenant_token`]) that the subject binds the event to.
    pub tenant_token: Option<&'a str>,
}

/// A parsed `<prefix>.outbox.<domain>.<lane>.<subscription>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxSubject<'a> {
    pub domain: &'a str,
    pub lane: &'a str,
    /// Its token.
    pub subscription: &'a str,
}

impl OutboxSubject<'_> {
    /// The subscription that the subject names. Envelopes of versions before ids belonged to their
    /// tenant have the bare id there: whose an envelope is, it says itself.
    pub fn reference(&self) -> Option<SubscriptionRef> {
        SubscriptionRef::from_token(self.subscription)
    }
}

/// Names of what belongs to a subscription take its token ([`SubscriptionRef::token`]).
impl Names {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), upper: stream_token(prefix) }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
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

    pub fn orders_bucket(&self) -> String {
        format!("{}-orders", self.prefix)
    }

    pub fn orders_stream(&self) -> String {
        format!("KV_{}", self.orders_bucket())
    }

    pub fn order_key(&self, id: &BulkJobId) -> String {
        format!("$KV.{}.{id}", self.orders_bucket())
    }

    /// The keys of all orders.
    pub fn orders_filter(&self) -> String {
        format!("$KV.{}.>", self.orders_bucket())
    }

    /// Ids of the events that were published through the hub a short while ago.
    pub fn published_stream(&self) -> String {
        format!("{}_PUBLISHED", self.upper)
    }

    /// Where the stream remembers one. `id`: a [message id](crate::domain::message_id) of the hub's own.
    pub fn published(&self, id: &str) -> String {
        format!("{}.published.{id}", self.prefix)
    }

    pub fn keys_stream(&self) -> String {
        format!("KV_{}-keys", self.prefix)
    }

    /// The secret that message ids are made with.
    pub fn message_ids_key(&self) -> String {
        format!("$KV.{}-keys.message-ids", self.prefix)
    }

    /// What follows the bucket's name in a key: a subscription's token.
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

    /// `None` for a subject of no publication.
    pub fn parse_event<'a>(&self, subject: &'a str) -> Option<EventSubject<'a>> {
        let rest = subject.strip_prefix(self.prefix.as_str())?;
        if let Some(tail) = rest.strip_prefix(".events.") {
            return Some(EventSubject { tail, tenant_token: None });
        }
        let (token, tail) = rest.strip_prefix(".from.")?.split_once('.')?;
        Some(EventSubject { tail, tenant_token: Some(token) })
    }

    pub fn outbox(&self, domain: &str, lane: &str, subscription: &str) -> String {
        format!("{}.outbox.{domain}.{lane}.{subscription}", self.prefix)
    }

    /// All subjects of a lane: the filter of its durable.
    pub fn lane_filter(&self, domain: &str, lane: &str) -> String {
        format!("{}.outbox.{domain}.{lane}.*", self.prefix)
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

    /// The outbox subject of a dead letter, whatever else that subject may be; empty if it is that of no dead letter.
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

    /// The delivery log of a domain, or of all; not the last words.
    pub fn attempts_filter(&self, domain: Option<&str>) -> String {
        self.attempts(domain.unwrap_or("*"), "*")
    }

    /// The last words of all envelopes of a domain, or of all.
    pub fn final_attempts_filter(&self, domain: Option<&str>) -> String {
        format!("{}.attempts.{}.*.*", self.prefix, domain.unwrap_or("*"))
    }

    /// Domain and subscription of a message of the delivery log, be it last words.
    pub fn parse_attempts<'a>(&self, subject: &'a str) -> Option<(&'a str, &'a str)> {
        let mut tokens = subject.strip_prefix(self.prefix.as_str())?.strip_prefix(".attempts.")?.split('.');
        Some((tokens.next()?, tokens.next()?))
    }

    /// The last words of an envelope: its final failed attempt.
    pub fn final_attempt(&self, domain: &str, subscription: &str, envelope: &str) -> String {
        format!("{}.attempts.{domain}.{subscription}.{}", self.prefix, safe_token(envelope))
    }

    /// The timer of a dead letter; one per subject, the newest wins (ADR-51).
    pub fn redrive_timer(&self, domain: &str, sequence: u64) -> String {
        format!("{}.redrive.at.{domain}.{sequence}", self.prefix)
    }

    /// A dead letter to be sent again now: by its timer or by an operator's order.
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

    /// Marks a dead letter whose envelope is on its way again.
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
        // The server has no other sequences.
        (1..=i64::MAX as u64).contains(&sequence).then_some((domain, sequence))
    }

    /// Where processes tell each other that an endpoint asked for its subscription to be left alone.
    /// In no stream: whoever is not there does not hear it.
    pub fn hold(&self, subscription: &str) -> String {
        format!("{}.holds.{subscription}", self.prefix)
    }

    pub fn holds_filter(&self) -> String {
        self.hold("*")
    }

    /// The subscription that is to be left alone.
    pub fn parse_hold<'a>(&self, subject: &'a str) -> Option<&'a str> {
        let subscription = subject.strip_prefix(self.prefix.as_str())?.strip_prefix(".holds.")?;
        (!subscription.contains('.')).then_some(subscription)
    }

    /// The advisories that the hub keeps of one outbox stream.
    pub fn advisory_subjects(&self, stream: &str) -> [String; 2] {
        ["MAX_DELIVERIES", "MSG_TERMINATED"]
            .map(|kind| format!("$JS.EVENT.ADVISORY.CONSUMER.{kind}.{stream}.*"))
    }
}

/// `user-lifecycle` → `USER_LIFECYCLE`
pub fn stream_token(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

/// The durable of a lane: `lane-shared`.
pub fn lane_consumer(lane: &str) -> String {
    format!("lane-{lane}")
}

/// The lane behind a durable's name.
pub fn lane_of_consumer(consumer: &str) -> Option<&str> {
    consumer.strip_prefix("lane-")
}

/// A subscription's own lane.
pub fn own_lane(subscription: &str) -> String {
    format!("own-{subscription}")
}

pub fn subscription_of_own_lane(lane: &str) -> Option<&str> {
    lane.strip_prefix("own-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outbox_and_dead_letter_subjects_round_trip() {
        let names = Names::new("hub");
        let acme = SubscriptionRef::of("a.b", "crm").unwrap();
        let subject = names.outbox("policy-client", &own_lane(&acme.token()), &acme.token());
        assert_eq!(subject, "hub.outbox.policy-client.own-a=b=crm.a=b=crm");
        assert_eq!(names.parse_outbox(&subject).unwrap().reference(), Some(acme.clone()));
        assert_eq!(names.subscription_key(&acme), "$KV.hub-subscriptions.a=b=crm");
        assert_eq!(names.subscription_of_key(&names.subscription_key(&acme)), Some("a=b=crm"));
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
        let names = Names::new("acme");
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
        let names = Names::new("acme");
        assert_eq!(names.parse_redrive_due(&names.redrive_due("organization", 7)), Some(("organization", 7)));
        assert_eq!(names.parse_replaying(&names.replaying("organization", 9)), Some(("organization", 9)));
        assert_eq!(names.parse_redrive_due("hub.redrive.due.organization.7"), None);
    }

    #[test]
    fn holds_round_trip() {
        let names = Names::new("acme");
        assert_eq!(names.holds_filter(), "acme.holds.*");
        assert_eq!(names.parse_hold(&names.hold("crm")), Some("crm"));
        assert_eq!(names.parse_hold("hub.holds.crm"), None);
    }

    #[test]
    fn stream_names_carry_the_prefix_in_upper_case() {
        let names = Names::new("my-hub");
        assert_eq!(names.outbox_stream("user-lifecycle"), "MY_HUB_OUTBOX_USER_LIFECYCLE");
        assert_eq!(names.subscriptions_bucket(), "my-hub-subscriptions");
    }
}
