//! Whether the dead letters of each domain can be stored, as this process sees it. All writes of dead letters come through
//! here.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connection::JetStream;
use super::error::NatsError;
use super::publish::header_map;
use super::stream_api::StreamInfo;
use super::subjects::SHARED_LANE;
use crate::domain::dead_letter_room::{DeadLetterRefusal, DeadLetterRoomChange, LetterRoom, StreamRoom};

/// Most domains with refusals; their number is that of the settings, but a stored dead letter can name any.
const MOST: usize = 1_024;
/// In the subject of a probe, in the place of the subscription.
const PROBE: &str = "probe";

/// What is known about a dead letter that could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The server refused it.
    Refused,
    /// This request was not sent, or nobody got it.
    NotSent,
    /// It may be stored.
    Unknown,
}

impl NatsError {
    pub fn fate(&self) -> Fate {
        match self {
            Self::Api { .. } => Fate::Refused,
            Self::Timeout { .. }
            | Self::Transport { .. }
            | Self::ConnectionLost { .. }
            | Self::Closed { .. }
            | Self::Answer { .. } => Fate::Unknown,
            _ => Fate::NotSent,
        }
    }

    /// Why a dead letter was refused; `None` if that has nothing to do with its stream, because the connection was lost.
    fn refusal(&self) -> Option<DeadLetterRefusal> {
        Some(match self {
            Self::NoResponders { .. } => DeadLetterRefusal::Missing,
            Self::Timeout { .. } | Self::Answer { .. } => DeadLetterRefusal::Unanswered,
            error if error.is_full() => DeadLetterRefusal::Full,
            error if error.is_out_of_resources() => DeadLetterRefusal::NoResources,
            error if error.is_too_large() => DeadLetterRefusal::TooLarge,
            Self::Api { .. } => DeadLetterRefusal::Other,
            _ => return None,
        })
    }
}

/// The dead-letter streams of all domains.
#[derive(Debug)]
pub(super) struct LetterRooms {
    started: Instant,
    /// Those with refusals, and the last error.
    domains: Mutex<HashMap<String, (LetterRoom, String)>>,
    changed: Notify,
}

impl Default for LetterRooms {
    fn default() -> Self {
        Self { started: Instant::now(), domains: Mutex::default(), changed: Notify::new() }
    }
}

impl LetterRooms {
    fn domains(&self) -> MutexGuard<'_, HashMap<String, (LetterRoom, String)>> {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails if a dead letter of this size was refused a moment ago.
    pub(super) fn may_try(&self, domain: &str, size: usize) -> Result<(), NatsError> {
        let domains = self.domains();
        let Some((room, _)) = domains.get(domain) else { return Ok(()) };
        room.may_try(size as u64, self.started.elapsed())
            .map_err(|refusal| NatsError::LettersRefused { domain: domain.to_owned(), refusal })
    }

    /// Takes note of the result of a write.
    pub(super) fn note(&self, domain: &str, size: usize, written: Result<(), &NatsError>) {
        let (size, now) = (size as u64, self.started.elapsed());
        let mut domains = self.domains();
        match written {
            Ok(()) => {
                if let Some((room, _)) = domains.get_mut(domain) {
                    room.stored(size, now);
                    if !room.is_refusing() {
                        domains.remove(domain);
                    }
                }
            }
            Err(error) => {
                let Some(refusal) = error.refusal() else { return };
                if domains.len() >= MOST && !domains.contains_key(domain) {
                    return;
                }
                let (room, last) = domains.entry(domain.to_owned()).or_default();
                room.refused(refusal, size, now);
                *last = error.to_string();
                self.changed.notify_one();
            }
        }
    }
}

impl JetStream {
    /// Takes note that a caller waits no longer for the answer to a dead letter of this size.
    pub fn letter_unanswered(&self, domain: &str, size: usize, after: Duration) {
        let subject = self.names().dlt_stream(domain);
        let error = NatsError::timeout(subject, after);
        self.letter_rooms().note(domain, size, Err(&error));
    }

    /// If the answer of a dead-letter stream is pending, finds out whether it answers now. Until then, nobody else tries.
    pub async fn probe_letters(&self, domain: &str) {
        let rooms = self.letter_rooms();
        let with_room = |change: fn(&mut LetterRoom, Duration)| {
            if let Some((room, _)) = rooms.domains().get_mut(domain) {
                change(room, rooms.started.elapsed());
            }
        };
        if !rooms.domains().get(domain).is_some_and(|(room, _)| room.wants_probe()) {
            return;
        }
        with_room(LetterRoom::probing);
        let subject = self.names().dead_letter(&self.names().outbox(domain, SHARED_LANE, PROBE));
        // The leader refuses it, as no stream has this name, and stores nothing.
        let headers = header_map(&[("Nats-Expected-Stream", "-")]);
        match self.publish_map(&subject, Bytes::new(), headers).await {
            Ok(_) | Err(NatsError::Api { .. }) => with_room(LetterRoom::probe_answered),
            Err(NatsError::Timeout { .. } | NatsError::Answer { .. }) => with_room(LetterRoom::probe_failed),
            // There is no stream: that is an answer as well.
            Err(error @ NatsError::NoResponders { .. }) => {
                with_room(LetterRoom::probe_answered);
                rooms.note(domain, 0, Err(&error));
            }
            // It says nothing about the stream.
            Err(_) => {}
        }
    }

    /// Waits until a dead letter is refused.
    pub async fn letter_refused(&self) {
        self.letter_rooms().changed.notified().await;
    }

    /// Whether it is reported that the dead letters of the domain with this outbox are refused, so that no further line for
    /// each of them is needed.
    pub fn letters_are_reported(&self, outbox: &str) -> bool {
        let domains = self.letter_rooms().domains();
        domains
            .iter()
            .any(|(domain, (room, _))| room.is_reported() && self.names().outbox_stream(domain) == outbox)
    }

    /// What changed for the dead letters of a domain since the last look, with the last error.
    pub async fn letter_room_change(&self, domain: &str) -> Option<(DeadLetterRoomChange, String)> {
        if !self.letter_rooms().domains().contains_key(domain) {
            return None;
        }
        let info = self.stream_info(&self.names().dlt_stream(domain)).await.ok();
        let room = info.as_ref().map(stream_room);
        let rooms = self.letter_rooms();
        let (now, mut domains) = (rooms.started.elapsed(), rooms.domains());
        let (state, error) = domains.get_mut(domain)?;
        let change = state.report(room.as_ref(), now).map(|change| (change, error.clone()));
        if !state.is_refusing() {
            domains.remove(domain);
        }
        change
    }
}

fn stream_room(info: &StreamInfo) -> StreamRoom {
    let fill = info.fill();
    StreamRoom {
        bytes: fill.max_bytes.map(|limit| (fill.bytes, limit)),
        messages: fill.max_messages.map(|limit| (fill.messages, limit)),
    }
}
