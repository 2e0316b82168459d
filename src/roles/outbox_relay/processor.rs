//! The processor of one target broker: two workers that claim and publish rows, independently of other brokers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::availability::Availability;
use super::database::Database;
use super::in_hand::InHand;
use super::round::Round;
use super::wake::Notice;
use super::{OutboxRelaySettings, Scope};
use crate::domain::producer_outbox::{CONTENT_TYPE, Destination, Pauses, Priority};
use crate::facts::{NoExternalBroker, RelayMetrics, Row};
use crate::nats::subjects::SubjectNames;
use crate::sinks::{Broker, OutgoingMessage, PublishError};
use hub_outbox::{ClaimRequest, ClaimedRow, Store, StoreError};

/// Most bulk rows of one claim, so that live rows wait for no more of them than these.
const MOST_BULK: usize = 128;
/// First pause after a claim without rows although one is due: it waits behind a row of another claim.
const FIRST_LOOK: Duration = Duration::from_millis(20);

/// Where the rows are sent.
pub(super) struct Target {
    /// The target broker's name in the rows.
    pub(super) name: String,
    pub(super) scope: Scope,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) route: Route,
}

/// How a row becomes a message.
pub(super) enum Route {
    /// A full envelope on the hub's events stream.
    Internal(SubjectNames),
    /// A stripped envelope.
    External(Destination),
}

/// The fields that every envelope must have; their values are not kept.
#[derive(Deserialize)]
struct EnvelopeFields {
    #[serde(rename = "data")]
    _data: IgnoredAny,
    #[serde(rename = "metadata")]
    _metadata: IgnoredAny,
}

impl Target {
    /// The message of a row; takes its payload. The error is permanent.
    pub(super) fn outgoing(&self, row: &mut ClaimedRow) -> Result<OutgoingMessage, PublishError> {
        if let Some(unreadable) = row.unreadable {
            return Err(PublishError::permanent(unreadable.to_string()).caused_by(unreadable));
        }
        let unfit = |error: serde_json::Error| {
            PublishError::permanent(format!("the payload is not an envelope: {error}")).caused_by(error)
        };
        let payload = std::mem::take(&mut row.payload);
        serde_json::from_str::<EnvelopeFields>(&payload).map_err(unfit)?;
        let (stream, content_type) = match &self.route {
            // NATS trims header values, so the stream would take it for another event.
            Route::Internal(_) if row.message_id.trim() != row.message_id => {
                return Err(PublishError::permanent(
                    "the message id begins or ends with a space, which NATS removes; publish the event with another id",
                ));
            }
            Route::Internal(names) => (names.event(&row.event_type), CONTENT_TYPE),
            Route::External(destination) => {
                let stream = destination.render(&row.event_type, &row.stream, &payload);
                (stream.map_err(unfit)?, "application/json")
            }
        };
        Ok(OutgoingMessage {
            id: row.message_id.clone(),
            stream,
            key: row.stream.clone(),
            body: Bytes::from(payload),
            headers: vec![("content-type".to_owned(), content_type.to_owned())],
        })
    }
}

/// `attempts`: as they are after this one.
pub(super) fn as_logged(row: &ClaimedRow, attempts: u32) -> Row<'_> {
    let ClaimedRow { position, message_id, event_type, stream, .. } = row;
    Row { position: *position, id: message_id, event_type, stream, attempts }
}

/// What a worker claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worker {
    /// Live rows only.
    Live,
    /// Live rows first, then bulk rows.
    Any,
}

impl Worker {
    pub(super) const ALL: [Self; 2] = [Self::Live, Self::Any];

    fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Any => "any",
        }
    }
}

/// Shared by the workers of one broker.
pub(super) struct Processor {
    pub(super) store: Store,
    pub(super) target: Target,
    pub(super) settings: OutboxRelaySettings,
    /// The unique name of this process among all relays.
    pub(super) relay: String,
    pub(super) availability: Availability,
    pub(super) database: Database,
    pub(super) metrics: RelayMetrics,
    pub(super) in_hand: InHand,
    /// Set if no external broker is configured: whether that is still to be logged.
    pub(super) lacks_external_broker: Option<AtomicBool>,
    /// Stops new claims.
    pub(super) stop: CancellationToken,
    /// Aborts the rounds.
    pub(super) cut: CancellationToken,
}

/// The pauses of a worker that finds no rows.
struct Idle {
    /// While no row is due, and no notifications arrive.
    polling: Pauses,
    /// While a row is due that cannot be claimed.
    blocked: Pauses,
}

struct Claim {
    rows: Vec<ClaimedRow>,
    holder: String,
    asked_at: Instant,
}

impl Processor {
    /// Claims and publishes rows until `stop`.
    pub(super) async fn work(self: Arc<Self>, worker: Worker, mut notices: watch::Receiver<Notice>) {
        let mut trouble = Database::pauses();
        let mut idle = Idle {
            polling: Pauses::new(self.settings.poll_min, self.settings.poll_max),
            blocked: Pauses::new(FIRST_LOOK, self.settings.poll_max),
        };
        let mut claims = 0_u64;
        while self.broker_may_be_asked().await {
            // Before the claim, so that a row that is committed after it causes a new notification.
            notices.borrow_and_update();
            claims += 1;
            let holder = format!("{}-{}-{claims}", self.relay, worker.as_str());
            let done = match self.claim(worker, holder).await {
                Ok(claim) if claim.rows.is_empty() => {
                    self.availability.idle();
                    self.wait(&mut idle, &mut notices).await
                }
                Ok(claim) => {
                    idle.polling.reset();
                    idle.blocked.reset();
                    self.warn_of_missing_broker(&claim.rows);
                    Round::new(&self, &claim.holder, claim.asked_at).run(claim.rows).await
                }
                Err(error) => Err(error),
            };
            match done {
                Ok(()) => trouble.reset(),
                Err(error) => {
                    self.database.failed(&error);
                    self.pause(trouble.next(rand::random())).await;
                }
            }
        }
    }

    /// Waits for the end of an outage of the broker. False after a stop.
    async fn broker_may_be_asked(&self) -> bool {
        while !self.stop.is_cancelled() {
            let Some(not_before) = self.availability.not_before() else { return true };
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = tokio::time::sleep_until(not_before) => {}
            }
            let checked = tokio::select! {
                () = self.stop.cancelled() => return false,
                checked = self.target.broker.check() => checked,
            };
            match checked {
                // Whether it accepts messages shows with the next ones.
                Ok(()) => return true,
                Err(error) => self.availability.lost(&error),
            }
        }
        false
    }

    /// Claims live rows, and bulk rows if this worker takes them, under one holder.
    async fn claim(&self, worker: Worker, holder: String) -> Result<Claim, StoreError> {
        let asked_at = Instant::now();
        let mut rows = self.claim_priority(Priority::Live, &holder, self.settings.batch).await?;
        let room = self.settings.batch.saturating_sub(rows.len()).min(MOST_BULK);
        if worker == Worker::Any && room > 0 {
            match self.claim_priority(Priority::Bulk, &holder, room).await {
                Ok(bulk) => rows.extend(bulk),
                // The claimed rows are published all the same.
                Err(error) if !rows.is_empty() => self.database.failed(&error),
                Err(error) => return Err(error),
            }
        }
        self.database.worked();
        Ok(Claim { rows, holder, asked_at })
    }

    async fn claim_priority(
        &self,
        priority: Priority,
        holder: &str,
        limit: usize,
    ) -> Result<Vec<ClaimedRow>, StoreError> {
        let claim_time = self.settings.claim_time;
        // The other worker's streams: to find that they are blocked is much of the work of a claim.
        let passed_over = &self.in_hand.streams();
        let broker = &self.target.name;
        self.store.claim(&ClaimRequest { broker, priority, holder, limit, claim_time, passed_over }).await
    }

    /// Waits after a claim without rows: for a notification, the next due row, or the next poll.
    async fn wait(&self, idle: &mut Idle, notices: &mut watch::Receiver<Notice>) -> Result<(), StoreError> {
        let now = *notices.borrow();
        let longest = now.longest_pause(&self.settings);
        let look = if now.is_heard() { longest } else { idle.polling.next_within(longest, rand::random()) };
        let asked_at = Instant::now();
        let pause = match self.store.next_due(&self.target.name).await? {
            None => {
                // No row is open, so the broker is not known to be down.
                self.availability.worked(asked_at);
                look
            }
            Some(Duration::ZERO) => idle.blocked.next_within(longest, rand::random()),
            Some(due) => due.min(look),
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
            heard = notices.changed() => match heard {
                Ok(()) => idle.polling.reset(),
                // The listener has ended, because of a stop.
                Err(_) => self.pause(pause).await,
            }
        }
        Ok(())
    }

    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    fn warn_of_missing_broker(&self, rows: &[ClaimedRow]) {
        let Some(to_be_logged) = &self.lacks_external_broker else { return };
        if let Some(row) = rows.iter().find(|row| row.is_public)
            && to_be_logged.swap(false, Ordering::Relaxed)
        {
            NoExternalBroker { row: as_logged(row, row.attempts) }.emit();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use time::OffsetDateTime;

    use super::*;
    use crate::sinks::PublishedGroup;

    /// No message gets this far.
    struct Nobody;

    impl Broker for Nobody {
        fn publish<'a>(&'a self, _: &'a [OutgoingMessage]) -> BoxFuture<'a, PublishedGroup> {
            std::future::pending().boxed()
        }
        fn check(&self) -> BoxFuture<'_, Result<(), PublishError>> {
            std::future::pending().boxed()
        }
        fn close(&self) -> BoxFuture<'_, ()> {
            std::future::ready(()).boxed()
        }
    }

    fn outgoing(route: Route, payload: &str) -> Result<OutgoingMessage, PublishError> {
        let target =
            Target { name: "it".to_owned(), scope: Scope::External, broker: Arc::new(Nobody), route };
        target.outgoing(&mut ClaimedRow {
            position: 1,
            message_id: "e1".to_owned(),
            event_type: "user.created".to_owned(),
            stream: "user-u1".to_owned(),
            priority: Priority::Live,
            is_public: true,
            payload: payload.to_owned(),
            attempts: 0,
            created_at: OffsetDateTime::UNIX_EPOCH,
            unreadable: None,
        })
    }

    fn external(template: &str) -> Route {
        Route::External(Destination::parse(template).expect("a template"))
    }

    #[test]
    fn a_message_is_the_row_at_its_destination() {
        let payload = r#"{"data": 1, "metadata": {"domain": {"stream_category": "crm"}}}"#;
        let inside = outgoing(Route::Internal(SubjectNames::new("hub")), payload).unwrap();
        assert_eq!((inside.id.as_str(), inside.key.as_str()), ("e1", "user-u1"));
        assert!(inside.stream.ends_with("events.user.created") && inside.stream.starts_with("hub"));
        assert_eq!(inside.headers, [("content-type".to_owned(), CONTENT_TYPE.to_owned())]);
        let outside = outgoing(external("{category}"), payload).unwrap();
        assert_eq!((outside.stream.as_str(), outside.body.as_ref()), ("crm", payload.as_bytes()));
    }

    #[test]
    fn what_is_no_envelope_can_never_be_sent() {
        let routes =
            || [Route::Internal(SubjectNames::new("hub")), external("{type}"), external("{category}")];
        for route in routes() {
            let error = outgoing(route, r#"{"data": 1"#).unwrap_err();
            assert!(matches!(error, PublishError::Permanent { .. }), "{error}");
        }
        // JSON, and nothing that anybody could read as an envelope.
        for payload in ["1", "[1]", r#"{"data": 1}"#, r#"{"metadata": {}}"#] {
            for route in routes() {
                assert!(outgoing(route, payload).is_err(), "{payload}");
            }
        }
    }
}
