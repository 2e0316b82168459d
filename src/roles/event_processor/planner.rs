//! Planning: from a group of publications to envelopes in the hands of the committers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::committer::{BUSY_DELAY, Planned};
use super::resolver::{Resolution, Resolver};
use crate::domain::category::Categories;
use crate::domain::envelope::FanOut;
use crate::domain::event::{Event, Publication, RejectReason, Rejection};
use crate::domain::index::Entry;
use crate::metrics::{DomainMetrics, Metrics};
use crate::nats::subjects::{EventSubject, SHARED_LANE};
use crate::nats::{Acker, Delivered, JetStream, Outgoing};
use crate::panics::{self, Panicked};

/// Rejected publications stored at once.
const REJECTIONS_IN_FLIGHT: usize = 32;
/// Room that an envelope leaves in the server's max_payload for its headers.
const HEADER_ROOM: usize = 4 * 1024;
/// Envelopes of one domain in memory; an event with more than these takes all of it for itself.
pub(super) const HELD_ENVELOPES: u32 = 16 * 1024;

/// How a publication becomes an event.
pub(crate) type Decode = fn(&Publication<'_>) -> Result<Event, Rejection>;

/// A publication with its place in memory.
pub(super) type Held = (Delivered, OwnedSemaphorePermit);

pub(super) struct Planner {
    pub(super) js: JetStream,
    pub(super) resolver: Resolver,
    pub(super) categories: Arc<Categories>,
    pub(super) decode: Decode,
    /// The largest event, in bytes.
    pub(super) max_size: usize,
    pub(super) metrics: Metrics,
    /// One per domain, in the order of the categories.
    pub(super) ways: Vec<Way>,
}

/// A domain's way out of this role.
pub(super) struct Way {
    pub(super) committer: mpsc::Sender<Planned>,
    /// Room for envelopes in memory.
    pub(super) room: Arc<Semaphore>,
    /// The outbox takes nothing at the moment: events go back instead of waiting here.
    pub(super) blocked: Arc<AtomicBool>,
    pub(super) metrics: DomainMetrics,
}

impl Way {
    /// Gives an event to the committer. While that commits, it is waited for; while its outbox is
    /// full, the event goes back to where it came from, so that other domains go on.
    async fn hand_over(&self, acker: Acker, envelopes: Vec<Outgoing>, permit: OwnedSemaphorePermit) {
        let weight = u32::try_from(envelopes.len()).unwrap_or(u32::MAX).min(HELD_ENVELOPES);
        let room = if self.blocked.load(Ordering::Relaxed) {
            self.room.clone().try_acquire_many_owned(weight).ok()
        } else {
            self.room.clone().acquire_many_owned(weight).await.ok()
        };
        let Some(room) = room else { return acker.nak(Some(BUSY_DELAY)).await };
        let planned = Planned { acker, envelopes, permit, room };
        // A blocked committer empties its channel at once: this never waits for a full outbox.
        if let Err(closed) = self.committer.send(planned).await {
            closed.0.acker.nak(None).await;
        }
    }
}

/// Why a publication has no envelopes now.
enum Unplanned {
    Rejected(Rejection),
    /// Nobody can say who gets it; it comes again after this.
    Unresolved(Duration),
}

impl Planner {
    /// Plans a group and hands it over; settles what nobody wants and what is refused. A publication on
    /// which it panics costs the others nothing: it comes again, and is set aside in the end.
    pub(super) async fn process(&self, group: Vec<Held>) {
        // What panics here does so below as well, where it is dealt with.
        let events = group
            .iter()
            .filter_map(|(message, _)| panics::catch(|| self.decode(message)).ok())
            .filter_map(Result::ok);
        let resolution = match panics::catch_async(self.resolver.prepare(&self.js, events)).await {
            Ok(Ok(resolution)) => resolution,
            Err(panicked) => {
                if let [(message, _permit)] = &group[..] {
                    return self.panicked(message, &panicked).await;
                }
                for held in group {
                    Box::pin(self.process(vec![held])).await;
                }
                return;
            }
            Ok(Err(wait)) => {
                for (message, _permit) in &group {
                    message.acker.nak(Some(wait)).await;
                }
                return;
            }
        };
        let mut rejected = Vec::new();
        for (message, permit) in group {
            match panics::catch(|| self.plan(&message, &resolution)) {
                Ok(Ok((_, envelopes))) if envelopes.is_empty() => message.acker.ack().await,
                Ok(Ok((way, envelopes))) => {
                    way.hand_over(message.acker, envelopes, permit).await;
                }
                Ok(Err(Unplanned::Rejected(rejection))) => rejected.push((message, rejection, permit)),
                Ok(Err(Unplanned::Unresolved(wait))) => message.acker.nak(Some(wait)).await,
                Err(panicked) => self.panicked(&message, &panicked).await,
            }
        }
        stream::iter(rejected)
            .for_each_concurrent(REJECTIONS_IN_FLIGHT, |(message, rejection, permit)| async move {
                self.reject(&message, &rejection).await;
                drop(permit);
            })
            .await;
    }

    /// The way and the envelopes of a publication; none if nobody wants it.
    fn plan(&self, message: &Delivered, resolution: &Resolution) -> Result<(&Way, Vec<Outgoing>), Unplanned> {
        let event = self.decode(message).map_err(Unplanned::Rejected)?;
        let Some((way, domain)) = self
            .categories
            .index_of(&event.key)
            .and_then(|index| Some((self.ways.get(index)?, self.categories.name(index)?)))
        else {
            return Err(Unplanned::Rejected(Rejection::no_domain(&event.key)));
        };
        let entries: Vec<Arc<Entry>> = resolution.matching(&event).map_err(Unplanned::Unresolved)?;
        way.metrics.events.inc();
        if entries.is_empty() {
            way.metrics.unmatched.inc();
            return Ok((way, Vec::new()));
        }
        let limit = self.js.max_payload().saturating_sub(HEADER_ROOM);
        let fan_out = FanOut::new(&event, domain);
        let mut envelopes = Vec::with_capacity(entries.len());
        for entry in entries {
            let envelope = fan_out.envelope(
                &entry.subscription.reference,
                entry.subscription.incarnation,
                &entry.delivery,
            );
            if envelope.body.len() > limit {
                return Err(Unplanned::Rejected(Rejection::new(
                    RejectReason::TooLarge,
                    format!(
                        "the envelope for subscription {} takes {} bytes, more than the server's max_payload allows ({limit}); \
                         raise max_payload on the server or lower events.max_size",
                        envelope.subscription,
                        envelope.body.len()
                    ),
                )));
            }
            envelopes.push(Outgoing {
                subject: self.js.names().outbox(domain, SHARED_LANE, &envelope.subscription.token()),
                message_id: envelope.id,
                payload: envelope.body,
                headers: Vec::new(),
            });
        }
        Ok((way, envelopes))
    }

    /// Lets a publication come again, or rejects it after its tries.
    async fn panicked(&self, message: &Delivered, panicked: &Panicked) {
        let stream = self.js.names().events_stream();
        if panicked.on_input(&stream, message.stream_sequence, message.deliveries) {
            self.reject(message, &Rejection::new(RejectReason::InternalError, panicked.to_string())).await;
        } else {
            message.acker.nak(Some(BUSY_DELAY)).await;
        }
    }

    fn decode(&self, message: &Delivered) -> Result<Event, Rejection> {
        if let Some(malformed) = message.malformed() {
            return Err(malformed.into());
        }
        let stream = self.js.names().events_stream();
        let headers: Vec<(&str, &str)> = message.header_pairs().collect();
        let time = OffsetDateTime::from_unix_timestamp_nanos(message.stored_at_nanos)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let place = self.js.names().parse_event(&message.subject);
        let EventSubject { tail, tenant_token } =
            place.unwrap_or(EventSubject { tail: &message.subject, tenant_token: None });
        let publication = Publication {
            subject_tail: tail,
            tenant_token,
            headers: &headers,
            body: &message.payload,
            stream: &stream,
            sequence: message.stream_sequence,
            time,
            max_size: self.max_size,
        };
        (self.decode)(&publication)
    }

    async fn reject(&self, message: &Delivered, rejection: &Rejection) {
        let reason = rejection.reason.as_str();
        let kept = self.js.reject(message, reason, &rejection.detail);
        let kept = match panics::catch_async(kept).await {
            Ok(kept) => kept,
            Err(panicked) => {
                let stream = self.js.names().events_stream();
                panicked.on_input(&stream, message.stream_sequence, message.deliveries);
                return message.acker.nak(Some(BUSY_DELAY)).await;
            }
        };
        match kept {
            Ok(()) => {
                self.metrics.rejected(reason);
                tracing::warn!(
                    subject = message.subject,
                    sequence = message.stream_sequence,
                    reason,
                    detail = rejection.detail,
                    "a publication is rejected and kept"
                );
                message.acker.ack().await;
            }
            Err(error) => {
                tracing::error!(%error, subject = message.subject, "a rejected publication cannot be kept; it waits");
                message.acker.nak(Some(BUSY_DELAY)).await;
            }
        }
    }
}
