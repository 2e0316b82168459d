//! Circuits at the broker: the durable of a subscription's own lane stores its circuit.
//!
//! An open circuit is a paused durable (ADR-43) whose metadata say why, and which gives out one new message at a time, to
//! one process. When the pause ends, or somebody resumes the durable, that one message is the probe. So the state survives
//! restarts, and all processes see the same.
//!
//! The server ignores `pause_until` in an update of a durable, so a change takes two requests. If only the first succeeds,
//! the circuit is half-open. An update is not conditional: one that began with an older copy can remove the record of a
//! circuit, but not its pause. The processes that know the circuit write the record again.

use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::connection::JetStream;
use super::definitions::{StreamParameters, lane as lane_definition};
use super::error::NatsError;
use super::stream_api::ConsumerInfo;
use super::subjects::{SHARED_LANE, SubjectNames, lane_consumer, lane_of_consumer, subscription_of_own_lane};
use crate::bounded;
use crate::domain::subscription::{Identity, Incarnation, SubscriptionRef};
use crate::facts::CircuitNoticeIgnored;

/// The metadata of a circuit begin with this; a durable with [`SINCE`] has one that is open or half-open.
const PREFIX: &str = "hub.circuit.";
const SINCE: &str = "hub.circuit.since";
const PAUSE: &str = "hub.circuit.pause-ms";
const PROBE_AT: &str = "hub.circuit.probe-at";
const ERROR: &str = "hub.circuit.error";
const INCARNATION: &str = "hub.circuit.incarnation";
const REVISION: &str = "hub.circuit.revision";
/// The `max_ack_pending` of the durable while the circuit is open.
const IN_FLIGHT: &str = "hub.circuit.in-flight";
/// A pause is set again if the domain is paused or resumed meanwhile, at most this often.
const MOST_PAUSES: usize = 4;
/// Most bytes of the stored error.
const MOST_ERROR_BYTES: usize = 500;

/// An open or half-open circuit, as the durable of its lane stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CircuitRecord {
    pub subscription: Identity,
    /// When it opened first.
    pub since: OffsetDateTime,
    /// Length of the last pause.
    pub pause: Duration,
    /// End of the last pause.
    pub probe_at: OffsetDateTime,
    pub error: String,
    /// Revision of the subscription in the registry at the last change.
    pub revision: u64,
}

/// Why a circuit opens.
#[derive(Debug, Clone, Copy)]
pub struct Trip<'a> {
    pub subscription: &'a Identity,
    pub error: &'a str,
    pub revision: u64,
    /// Whether a probe has failed: then a circuit that is not paused opens again, whenever its pause was to end.
    pub after_probe: bool,
}

/// What opening a circuit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tripped {
    /// It was closed.
    Opened(CircuitRecord),
    /// It was half-open.
    Again(CircuitRecord),
    /// Another process has opened it just now, or is about to: its record stays.
    Already(CircuitRecord),
}

impl Tripped {
    pub fn record(&self) -> &CircuitRecord {
        match self {
            Self::Opened(record) | Self::Again(record) | Self::Already(record) => record,
        }
    }
}

/// The circuit of a subscription was opened or closed in a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CircuitNotice {
    pub subscription: Identity,
}

/// The notices about a domain, of all processes, including this one. Not stored: who misses one reads the lanes later.
pub struct CircuitNotices {
    messages: Subscriber,
    names: SubjectNames,
}

impl ConsumerInfo {
    /// The circuit of an own lane, if it is open or half-open. Values that somebody has damaged count as the earliest or
    /// shortest.
    pub fn circuit(&self) -> Option<CircuitRecord> {
        let metadata = self.config.get("metadata")?.as_object()?;
        let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default();
        let time =
            |key: &str| OffsetDateTime::parse(text(key), &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        metadata.get(SINCE)?;
        let lane = lane_of_consumer(&self.name).and_then(subscription_of_own_lane)?;
        let subscription = Identity {
            subscription: SubscriptionRef::from_token(lane)?,
            incarnation: text(INCARNATION).parse().unwrap_or(Incarnation::LEGACY),
        };
        Some(CircuitRecord {
            subscription,
            since: time(SINCE),
            pause: Duration::from_millis(text(PAUSE).parse().unwrap_or(0)),
            probe_at: time(PROBE_AT),
            error: text(ERROR).to_owned(),
            revision: text(REVISION).parse().unwrap_or(0),
        })
    }

    /// Whether it is paused, and by its circuit: not because the domain is paused.
    pub fn is_paused_by_circuit(&self) -> bool {
        self.paused && self.circuit().is_some_and(|circuit| self.pause_until() == Some(circuit.probe_at))
    }

    /// Whether it has lost the record of this circuit: it has none, and is paused until the time of the record. No step of
    /// opening or closing a circuit leaves a durable like this; the update of another process, which had read it before,
    /// does.
    pub fn has_lost(&self, circuit: &CircuitRecord) -> bool {
        self.paused && self.circuit().is_none() && self.pause_until() == Some(circuit.probe_at)
    }

    /// Until when a lane is to be paused whose domain is paused until `domain`. The pause of a circuit that has ended counts
    /// no longer.
    fn wanted_pause(&self, domain: Option<OffsetDateTime>) -> Option<OffsetDateTime> {
        let now = self.now();
        let circuit = self.circuit().map(|circuit| circuit.probe_at).filter(|probe_at| *probe_at > now);
        domain.max(circuit)
    }

    /// The end of its pause, also of one that is over.
    pub fn pause_until(&self) -> Option<OffsetDateTime> {
        let until = self.config.get("pause_until")?.as_str()?;
        OffsetDateTime::parse(until, &Rfc3339).ok()
    }

    /// The clock of the broker.
    fn now(&self) -> OffsetDateTime {
        let now = self.at.as_deref().and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
        let now = now.unwrap_or_else(OffsetDateTime::now_utc);
        // The server cuts the times that it stores at the nanosecond; a millisecond reads better.
        now.replace_millisecond(now.millisecond()).unwrap_or(now)
    }
}

impl JetStream {
    /// Opens the circuit of a lane that exists, or opens it again. `pause` returns the length of the pause, given that of
    /// the last one.
    pub async fn trip_circuit(
        &self,
        stream: &str,
        consumer: &str,
        trip: Trip<'_>,
        pause: impl FnOnce(Option<Duration>) -> Duration,
    ) -> Result<Tripped, NatsError> {
        let info = self.consumer_info(stream, consumer).await?;
        let before = info.circuit().filter(|before| before.subscription == *trip.subscription);
        if let Some(before) = &before
            && info.is_paused_by_circuit()
        {
            return Ok(Tripped::Already(before.clone()));
        }
        let now = info.now();
        // No probe yet, and the pause would last: the other process has written the record, and not yet paused the durable,
        // or was killed before it did.
        if let Some(before) = &before
            && !trip.after_probe
            && before.probe_at > now
        {
            self.set_circuit_pause(stream, consumer, Some(before.probe_at)).await?;
            return Ok(Tripped::Already(before.clone()));
        }
        let pause = pause(before.as_ref().map(|before| before.pause));
        let record = CircuitRecord {
            subscription: trip.subscription.clone(),
            since: before.as_ref().map_or(now, |before| before.since),
            pause,
            probe_at: later(now, pause),
            error: bounded::middle(trip.error, MOST_ERROR_BYTES).into_owned(),
            revision: trip.revision,
        };
        let mut config = info.config.clone();
        store(&mut config, &record)?;
        // One message at a time, whatever the number of processes. Those that wait for their retry count too, maybe for hours,
        // and must not keep the probe back. After a probe, it is one of them.
        let retried =
            if before.is_some() { info.num_ack_pending.saturating_sub(1) } else { info.num_ack_pending };
        allow_in_flight(&mut config, retried.saturating_add(1));
        self.put_consumer(stream, consumer, &config, "update").await?;
        self.set_circuit_pause(stream, consumer, Some(record.probe_at)).await?;
        Ok(match before {
            Some(_) => Tripped::Again(record),
            None => Tripped::Opened(record),
        })
    }

    /// Writes the record of an open circuit again that its durable has lost. True if it was written.
    pub async fn restore_circuit(
        &self,
        stream: &str,
        consumer: &str,
        circuit: &CircuitRecord,
    ) -> Result<bool, NatsError> {
        let info = self.consumer_info(stream, consumer).await?;
        if !info.has_lost(circuit) {
            return Ok(false);
        }
        let mut config = info.config.clone();
        store(&mut config, circuit)?;
        allow_in_flight(&mut config, info.num_ack_pending.saturating_add(1));
        self.put_consumer(stream, consumer, &config, "update").await?;
        Ok(true)
    }

    /// Closes the circuit of a lane. Returns the circuit; `None` if it was closed, or the lane does not exist.
    pub async fn close_circuit(
        &self,
        parameters: &StreamParameters,
        domain: &str,
        lane: &str,
    ) -> Result<Option<CircuitRecord>, NatsError> {
        let definition = lane_definition(parameters, domain, lane);
        let stream = self.names().outbox_stream(domain);
        let info = match self.consumer_info(&stream, &definition.name).await {
            Ok(info) => info,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(record) = info.circuit() else { return Ok(None) };
        if info.is_paused_by_circuit() {
            self.end_circuit_pause(&stream, &definition.name).await?;
        }
        let mut config = info.config.clone();
        forget(&mut config);
        match definition.config.get("max_ack_pending") {
            Some(most) => config.insert("max_ack_pending".to_owned(), most.clone()),
            None => config.remove("max_ack_pending"),
        };
        self.put_consumer(&stream, &definition.name, &config, "update").await?;
        Ok(Some(record))
    }

    /// Ends the pause of an open circuit, so that a probe follows. A pause of the domain stays.
    pub async fn end_circuit_pause(&self, stream: &str, consumer: &str) -> Result<(), NatsError> {
        self.set_circuit_pause(stream, consumer, None).await
    }

    /// Pauses a lane for its circuit, or as long as its domain, if that is longer. Whoever pauses or resumes a domain changes
    /// the shared lane first, so the last look at that lane decides.
    pub(super) async fn set_circuit_pause(
        &self,
        stream: &str,
        consumer: &str,
        circuit: Option<OffsetDateTime>,
    ) -> Result<(), NatsError> {
        let mut wanted = self.pause_of_domain(stream).await?.max(circuit);
        for _ in 0..MOST_PAUSES {
            let until = wanted.map(text).transpose()?;
            self.pause_consumer(stream, consumer, until.as_deref()).await?;
            let now_wanted = self.pause_of_domain(stream).await?.max(circuit);
            if now_wanted == wanted {
                break;
            }
            wanted = now_wanted;
        }
        Ok(())
    }

    /// Sets the pause of a lane to that of its domain or of its circuit, whichever ends later. The record of a circuit is
    /// written before its pause, so the last look at both decides.
    pub(super) async fn correct_pause(&self, stream: &str, consumer: &str) -> Result<(), NatsError> {
        for _ in 0..MOST_PAUSES {
            let domain = self.pause_of_domain(stream).await?;
            let lane = self.consumer_info(stream, consumer).await?;
            let wanted = lane.wanted_pause(domain);
            if wanted == lane.pause_until().filter(|_| lane.paused) {
                break;
            }
            self.pause_consumer(stream, consumer, wanted.map(text).transpose()?.as_deref()).await?;
        }
        Ok(())
    }

    /// The end of the pause of a domain, if it is paused.
    pub async fn pause_of_domain(&self, stream: &str) -> Result<Option<OffsetDateTime>, NatsError> {
        match self.consumer_info(stream, &lane_consumer(SHARED_LANE)).await {
            Ok(shared) => Ok(shared.pause_until().filter(|_| shared.paused)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Publishes a notice to all listening processes, without an acknowledgement.
    pub async fn publish_circuit_notice(
        &self,
        domain: &str,
        notice: &CircuitNotice,
    ) -> Result<(), NatsError> {
        let Identity { subscription, incarnation } = &notice.subscription;
        let subject = self.names().circuit(domain, &subscription.token());
        let sent = self.client().publish(subject.clone(), incarnation.to_string().into());
        match tokio::time::timeout(self.request_timeout(), sent).await {
            Ok(sent) => sent.map_err(|error| NatsError::transport(subject, error)),
            Err(_) => Err(NatsError::timeout(subject, self.request_timeout())),
        }
    }

    /// Subscribes to the notices about a domain; the subscription survives reconnects.
    pub async fn circuit_notices(&self, domain: &str) -> Result<CircuitNotices, NatsError> {
        let subject = self.names().circuit(domain, "*");
        let messages = self.client().subscribe(subject.clone()).await;
        let messages = messages.map_err(|error| NatsError::transport(subject, error))?;
        Ok(CircuitNotices { messages, names: self.names().clone() })
    }
}

impl CircuitNotices {
    /// Waits for the next valid notice; `None` when the connection is closed for good.
    pub async fn next(&mut self) -> Option<CircuitNotice> {
        loop {
            let message = self.messages.next().await?;
            match read_notice(&self.names, &message.subject, &message.payload) {
                Some(notice) => return Some(notice),
                None => CircuitNoticeIgnored { subject: &message.subject }.emit(),
            }
        }
    }
}

fn read_notice(names: &SubjectNames, subject: &str, payload: &[u8]) -> Option<CircuitNotice> {
    let subscription = SubscriptionRef::from_token(names.parse_circuit(subject)?)?;
    let incarnation = std::str::from_utf8(payload).ok()?.parse().ok()?;
    Some(CircuitNotice { subscription: Identity { subscription, incarnation } })
}

/// Writes a circuit into the configuration of a durable.
fn store(config: &mut Map<String, Value>, record: &CircuitRecord) -> Result<(), NatsError> {
    forget(config);
    let metadata = config.entry("metadata").or_insert_with(|| json!({}));
    if !metadata.is_object() {
        *metadata = json!({});
    }
    for (key, value) in [
        (SINCE, text(record.since)?),
        (PAUSE, record.pause.as_millis().to_string()),
        (PROBE_AT, text(record.probe_at)?),
        (ERROR, record.error.clone()),
        (INCARNATION, record.subscription.incarnation.to_string()),
        (REVISION, record.revision.to_string()),
    ] {
        metadata[key] = json!(value);
    }
    Ok(())
}

/// Sets and records how many messages a durable with a circuit gives out at a time.
fn allow_in_flight(config: &mut Map<String, Value>, most: u64) {
    config.insert("max_ack_pending".to_owned(), json!(most));
    if let Some(Value::Object(metadata)) = config.get_mut("metadata") {
        metadata.insert(IN_FLIGHT.to_owned(), json!(most.to_string()));
    }
}

/// Whether a field of the metadata belongs to a circuit.
pub(super) fn is_metadata(key: &str) -> bool {
    key.starts_with(PREFIX)
}

/// How many messages a durable with a circuit gives out at a time, if that is recorded and readable. The outer `None`: it
/// has no circuit.
pub(super) fn recorded_in_flight(config: &Map<String, Value>) -> Option<Option<i64>> {
    let metadata = config.get("metadata")?.as_object()?;
    metadata.get(SINCE)?;
    Some(metadata.get(IN_FLIGHT).and_then(Value::as_str).and_then(|text| text.parse().ok()))
}

/// Removes the circuit from the configuration of a durable.
fn forget(config: &mut Map<String, Value>) {
    if let Some(Value::Object(metadata)) = config.get_mut("metadata") {
        metadata.retain(|key, _| !is_metadata(key));
    }
}

fn later(now: OffsetDateTime, pause: Duration) -> OffsetDateTime {
    let at = time::Duration::try_from(pause).ok().and_then(|pause| now.checked_add(pause)).unwrap_or(now);
    at.replace_millisecond(at.millisecond()).unwrap_or(at)
}

pub(super) fn text(at: OffsetDateTime) -> Result<String, NatsError> {
    at.format(&Rfc3339).map_err(|error| NatsError::encode("the time of a circuit", error))
}

#[cfg(test)]
mod tests;
