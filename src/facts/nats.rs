//! The NATS server: the connection, consumers, and what the buckets hold.

use std::time::Duration;

use super::limited::{About, limited};
use super::{Cause, Shown};
use crate::domain::subscription::SubscriptionRef;
use crate::domain::words::rounded;

/// The client connected, at the start or again.
pub struct NatsConnected;

impl NatsConnected {
    pub fn emit(self) {
        tracing::info!("connected to the NATS server");
    }
}

/// The client lost the connection and reconnects.
pub struct NatsDisconnected;

impl NatsDisconnected {
    pub fn emit(self) {
        tracing::warn!("lost the connection to the NATS server, reconnecting");
    }
}

/// An attempt to reconnect failed, the first one of an outage. Ends with [`NatsConnected`].
pub struct NatsUnreachable<'a> {
    pub servers: &'a str,
    pub error: Shown<'a>,
}

impl NatsUnreachable<'_> {
    pub fn emit(self) {
        let Self { servers, error } = self;
        tracing::warn!(servers, %error, "the NATS server is unreachable, reconnecting");
    }
}

/// Streams have no leader or do not answer, so they neither store nor deliver.
pub struct StreamsWithoutLeader<'a> {
    pub streams: &'a str,
    pub remedy: &'static str,
}

impl StreamsWithoutLeader<'_> {
    pub fn emit(self) {
        let Self { streams, remedy } = self;
        limited!(WARN "streams have no leader", About::detail(streams); streams, remedy);
    }
}

/// Ends [`StreamsWithoutLeader`].
pub struct StreamsHaveLeaders {
    pub after: Duration,
}

impl StreamsHaveLeaders {
    pub fn emit(self) {
        let after = rounded(self.after);
        limited!(INFO "all streams have leaders again", About::default(); %after);
    }
}

/// The client dropped messages because they were not read in time.
pub struct NatsMessagesDropped {
    /// Number of the client's subscription to a subject.
    pub sid: u64,
}

impl NatsMessagesDropped {
    pub fn emit(self) {
        let Self { sid } = self;
        limited!(
            ERROR "the NATS client dropped messages of a slow subscription", About::default();
            sid
        );
    }
}

/// The server reported an error on the connection.
pub struct NatsErrorReported<'a> {
    pub error: Shown<'a>,
}

impl NatsErrorReported<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(WARN "the NATS server reported an error", About::default(); %error);
    }
}

/// Another event of the client's connection.
pub struct NatsClientEvent<'a> {
    pub event: Shown<'a>,
}

impl NatsClientEvent<'_> {
    pub fn emit(self) {
        let Self { event } = self;
        tracing::debug!(%event, "NATS client event");
    }
}

/// The server did not confirm an acknowledgement; the message may be delivered again.
pub struct AcknowledgementNotConfirmed<'a> {
    pub error: Cause<'a>,
}

impl AcknowledgementNotConfirmed<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "acknowledgement not confirmed");
    }
}

/// After a reconnect, the last acknowledgements were sent again.
pub struct AcknowledgementsRepeated {
    pub count: usize,
}

impl AcknowledgementsRepeated {
    pub fn emit(self) {
        tracing::debug!(count = self.count, "acknowledgements sent again after a reconnect");
    }
}

/// An acknowledgement could not be sent.
pub struct AcknowledgementNotSent<'a> {
    pub error: Cause<'a>,
}

impl AcknowledgementNotSent<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "acknowledgement not sent; the server will deliver the message again");
    }
}

/// A consumer does not exist yet.
pub struct ConsumerMissing<'a> {
    pub stream: &'a str,
    pub consumer: &'a str,
    pub error: Cause<'a>,
}

impl ConsumerMissing<'_> {
    pub fn emit(self) {
        let Self { stream, consumer, error } = self;
        limited!(
            WARN "waiting for the consumer; run `hub provision` to create it",
            About::detail(consumer).cause(error);
            stream, consumer, %error
        );
    }
}

/// A stream or consumer was deleted while the hub runs, and is created again.
pub struct PartMadeAgain<'a> {
    pub what: &'a str,
}

impl PartMadeAgain<'_> {
    pub fn emit(self) {
        let Self { what } = self;
        tracing::warn!(what, "a stream or consumer was deleted, created it again");
    }
}

/// A stream or consumer is missing, and this process cannot create it. Logged once until it exists.
pub struct PartNotMadeAgain<'a> {
    pub what: &'a str,
    pub error: Cause<'a>,
}

impl PartNotMadeAgain<'_> {
    pub fn emit(self) {
        let Self { what, error } = self;
        tracing::error!(
            what, %error,
            "a stream or consumer is missing and not created; run `hub provision` as a user that may create it"
        );
    }
}

/// The server did not answer pull requests.
pub struct PullUnanswered<'a> {
    pub consumer: &'a str,
}

impl PullUnanswered<'_> {
    pub fn emit(self) {
        let Self { consumer } = self;
        limited!(WARN "no answer from the NATS server, pulling again", About::server_silent(); consumer);
    }
}

/// A message came to the inbox of a pull request, and is not a delivery.
pub struct UnacknowledgeableMessageIgnored<'a> {
    pub inbox: &'a str,
}

impl UnacknowledgeableMessageIgnored<'_> {
    pub fn emit(self) {
        let Self { inbox } = self;
        limited!(WARN "ignored a message without an acknowledgement subject", About::default(); inbox);
    }
}

/// An ephemeral consumer was not deleted.
pub struct EphemeralConsumerNotDeleted<'a> {
    pub error: Cause<'a>,
}

impl EphemeralConsumerNotDeleted<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(
            %error,
            "could not delete an ephemeral consumer; the server deletes it after a minute"
        );
    }
}

/// The server sent a stored message without its sequence.
pub struct StoredMessageSkipped<'a> {
    pub stream: &'a str,
    pub after: Option<u64>,
}

impl StoredMessageSkipped<'_> {
    pub fn emit(self) {
        let Self { stream, after } = self;
        limited!(
            WARN "skipped a stored message whose sequence the server did not send", About::detail(stream);
            stream, after
        );
    }
}

/// A message of a dead-letter stream is not a dead letter.
pub struct DeadLetterSkipped<'a> {
    pub stream: &'a str,
    pub sequence: u64,
    pub reason: Cause<'a>,
}

impl DeadLetterSkipped<'_> {
    pub fn emit(self) {
        let Self { stream, sequence, reason } = self;
        limited!(
            WARN "skipped a message that is not a dead letter", About::detail(stream);
            stream, sequence, %reason
        );
    }
}

/// The index cannot follow the registry; it keeps its contents.
pub struct RegistryNotFollowed<'a> {
    pub error: Cause<'a>,
}

impl RegistryNotFollowed<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(
            WARN "cannot follow the subscription registry, will retry", About::default().cause(error);
            %error
        );
    }
}

/// The index has read the whole registry.
pub struct RegistryLoaded {
    pub subscriptions: usize,
}

impl RegistryLoaded {
    pub fn emit(self) {
        let Self { subscriptions } = self;
        limited!(INFO "loaded the subscription registry", About::default(); subscriptions);
    }
}

/// A key of the registry names no subscription.
pub struct RegistryKeySkipped<'a> {
    pub key: &'a str,
}

impl RegistryKeySkipped<'_> {
    pub fn emit(self) {
        let Self { key } = self;
        limited!(WARN "skipped a registry key that names no subscription", About::default(); key);
    }
}

/// A stored filter has more comparisons than a new one may have.
pub struct StoredFilterTooLarge<'a> {
    pub subscription: &'a SubscriptionRef,
    pub comparisons: usize,
}

impl StoredFilterTooLarge<'_> {
    pub fn emit(self) {
        let Self { subscription, comparisons } = self;
        limited!(
            WARN "a stored filter exceeds the current limit; make it smaller",
            About::default().of(subscription);
            tenant = subscription.tenant(), subscription = subscription.id(), comparisons
        );
    }
}

/// An entry was at the key of an earlier version.
pub struct RegistryEntryMoved<'a> {
    pub subscription: &'a SubscriptionRef,
    pub from: &'a str,
}

impl RegistryEntryMoved<'_> {
    pub fn emit(self) {
        let Self { subscription, from } = self;
        let (tenant, subscription) = (subscription.tenant(), subscription.id());
        limited!(
            INFO "moved a registry entry to the key of its tenant", About::default().of_parts(tenant, subscription);
            tenant, subscription, from
        );
    }
}

/// The value of a token cannot be read.
pub struct TokenUnreadable<'a> {
    pub token: Shown<'a>,
    pub reason: Shown<'a>,
}

impl TokenUnreadable<'_> {
    pub fn emit(self) {
        let Self { token, reason } = self;
        limited!(ERROR "stored token is unreadable and grants no access", About::default(); %token, %reason);
    }
}

/// A key of the token bucket names no token.
pub struct TokenKeySkipped<'a> {
    pub subject: &'a str,
}

impl TokenKeySkipped<'_> {
    pub fn emit(self) {
        let Self { subject } = self;
        limited!(WARN "skipped a key that is not a token name", About::default(); subject);
    }
}

/// The stored state of a bulk job cannot be read; the job is treated as missing.
pub struct BulkJobUnreadable<'a> {
    pub key: &'a str,
    pub error: Cause<'a>,
}

impl BulkJobUnreadable<'_> {
    pub fn emit(self) {
        let Self { key, error } = self;
        limited!(WARN "stored bulk job is unreadable", About::default(); key, %error);
    }
}

/// The secret that message ids are derived from cannot be read.
pub struct MessageIdSecretUnreadable<'a> {
    pub key: &'a str,
}

impl MessageIdSecretUnreadable<'_> {
    pub fn emit(self) {
        let Self { key } = self;
        tracing::warn!(key, "the secret of the message ids is unreadable, creating a new one");
    }
}

/// A notice about a hold cannot be read.
pub struct HoldNoticeIgnored<'a> {
    pub subject: &'a str,
}

impl HoldNoticeIgnored<'_> {
    pub fn emit(self) {
        let Self { subject } = self;
        tracing::debug!(%subject, "ignored an invalid hold notice");
    }
}

/// A notice of a process that delivers cannot be read.
pub struct MemberNoticeIgnored<'a> {
    pub subject: &'a str,
}

impl MemberNoticeIgnored<'_> {
    pub fn emit(self) {
        let Self { subject } = self;
        tracing::debug!(%subject, "ignored an invalid notice of a process");
    }
}

/// A notice about delivered envelopes is invalid.
pub struct SettledNoticeIgnored<'a> {
    pub subject: &'a str,
}

impl SettledNoticeIgnored<'_> {
    pub fn emit(self) {
        let Self { subject } = self;
        tracing::debug!(%subject, "ignored an invalid notice of delivered envelopes");
    }
}

/// The last revision of a registry entry cannot be read.
pub struct RegistryEntryUnreadable<'a> {
    pub subscription: &'a SubscriptionRef,
    pub revision: u64,
    pub reason: Shown<'a>,
    /// The earlier revision that is in effect instead; 0 if the key never held a subscription, `None` if it is unknown.
    pub in_force: Option<u64>,
}

impl RegistryEntryUnreadable<'_> {
    pub fn emit(self) {
        let Self { subscription, revision, reason, in_force } = self;
        match in_force {
            Some(0) => limited!(
                ERROR "a registry entry is unreadable and never held a subscription; remove it with \
                 `hub subscription remove`",
                About::default().of(subscription);
                tenant = subscription.tenant(), subscription = subscription.id(), revision, %reason
            ),
            Some(in_force) => limited!(
                ERROR "a registry entry is unreadable; an earlier revision is in effect",
                About::default().of(subscription);
                tenant = subscription.tenant(), subscription = subscription.id(), revision, %reason, in_force
            ),
            None => limited!(
                ERROR "a registry entry is unreadable and has no earlier revision; events of its tenant wait until it \
                 is repaired (`hub subscription apply`) or removed (`hub subscription remove`)",
                About::default().of(subscription);
                tenant = subscription.tenant(), subscription = subscription.id(), revision, %reason
            ),
        }
    }
}
