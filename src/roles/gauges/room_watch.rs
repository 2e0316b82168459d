//! Reports, in the log, in the metrics and at `/readyz`, how full the streams are that reject messages when they are full:
//! before it happens, while it happens, and when there is room again. The process stays ready, because nothing is lost.
//!
//! A stream that could not be read for a while is neither full nor has it room: its metrics are removed, and the warning says
//! what it was.

use std::collections::HashMap;
use std::time::Duration;

use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::domain::stream_fill::{Fill, Level, LevelChange, StreamKind, StreamLevel};
use crate::facts::{
    ExcessHasNoRoom, ExcessHasRoomAgain, Metrics, StreamFull, StreamHasRoomAgain, StreamNearlyFull,
};
use crate::health::Readiness;
use crate::nats::JetStream;

/// The streams of all domains, as the last looks showed them.
pub(super) struct RoomWatch {
    js: JetStream,
    metrics: Metrics,
    readiness: Readiness,
    started: Instant,
    streams: HashMap<String, Watched>,
    /// The domains whose outbox and dead letters are full, and since when.
    without_room: HashMap<String, Duration>,
}

#[derive(Default)]
struct Watched {
    level: StreamLevel,
    /// The times of the last change of the level and of the last look, for people.
    since: String,
    looked: String,
}

impl RoomWatch {
    pub(super) fn new(js: JetStream, metrics: Metrics, readiness: Readiness) -> Self {
        let (streams, without_room) = (HashMap::new(), HashMap::new());
        Self { js, metrics, readiness, started: Instant::now(), streams, without_room }
    }

    /// `None`: the stream could not be read.
    pub(super) fn look_at_events(&mut self, fill: Option<&Fill>) {
        let stream = self.js.names().events_stream();
        match fill {
            Some(fill) => _ = self.look(&stream, StreamKind::Events, fill, None, false),
            None => _ = self.not_read(&stream),
        }
    }

    pub(super) fn look_at_domain(&mut self, domain: &str, outbox: Option<&Fill>, dlt: Option<&Fill>) {
        let names = self.js.names();
        let (outbox_stream, dlt_stream) = (names.outbox_stream(domain), names.dlt_stream(domain));
        // `LetterWatch` reports the refusals, with their cause.
        let is_reported = self.js.letters_are_reported(&outbox_stream);
        let mut is_stale = false;
        match outbox {
            Some(outbox) => _ = self.look(&outbox_stream, StreamKind::Outbox, outbox, Some(domain), false),
            None => is_stale |= self.not_read(&outbox_stream),
        }
        let level = match dlt {
            Some(dlt) => {
                Some(self.look(&dlt_stream, StreamKind::DeadLetters, dlt, Some(domain), is_reported))
            }
            None => {
                is_stale |= self.not_read(&dlt_stream);
                None
            }
        };
        match (outbox, level) {
            (Some(outbox), Some(level)) => {
                let is_closed = outbox.is_closed_to_excess() && (is_reported || level == Level::Full);
                self.look_at_excess(domain, is_closed);
            }
            _ if is_stale => self.readiness.note(format!("room for the excess of {domain}"), None),
            _ => {}
        }
    }

    /// Takes note that a stream could not be read. True if it is not known any more how full it is.
    fn not_read(&mut self, stream: &str) -> bool {
        let now = self.started.elapsed();
        let Some(watched) = self.streams.get(stream).filter(|watched| watched.level.is_stale(now)) else {
            return false;
        };
        self.metrics.stream_fill_unknown(stream);
        let was = match watched.level.level() {
            Level::Room => None,
            Level::Nearly => Some("nearly full"),
            Level::Full => Some("full"),
        };
        let note = was.map(|was| {
            format!(
                "{stream} was {was} at {}, and could not be read since; check it with `nats stream info {stream}`",
                watched.looked
            )
        });
        self.readiness.note(format!("room of {stream}"), note);
        true
    }

    /// Takes note of a look at a stream. `is_reported`: another warning says that it is full.
    fn look(
        &mut self,
        stream: &str,
        kind: StreamKind,
        fill: &Fill,
        domain: Option<&str>,
        is_reported: bool,
    ) -> Level {
        let now = self.started.elapsed();
        let watched = self.streams.entry(stream.to_owned()).or_default();
        let change = watched.level.look(fill, now);
        let level = watched.level.level();
        let at = self.js.now();
        watched.looked = at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default();
        if change.is_some() {
            watched.since.clone_from(&watched.looked);
        }
        match change {
            Some(LevelChange::To(Level::Full)) if !is_reported => {
                StreamFull { stream, domain, kind, fill }.emit();
            }
            Some(LevelChange::To(Level::Nearly)) => StreamNearlyFull { stream, domain, kind, fill }.emit(),
            Some(LevelChange::Ended { after }) => StreamHasRoomAgain { stream, domain, after }.emit(),
            Some(LevelChange::To(_)) | None => {}
        }
        self.metrics.stream_fill(stream, fill.percent(), level == Level::Full);
        let (consequence, remedy, percent) = (kind.consequence(), kind.remedy(), fill.percent());
        let note = match level {
            Level::Full if !is_reported => {
                Some(format!("{stream} is full since {} ({fill}): {consequence}; {remedy}", watched.since))
            }
            Level::Nearly => Some(format!(
                "{stream} is nearly full ({fill}, {percent}%): when it is full, {consequence}; {remedy}"
            )),
            _ => None,
        };
        self.readiness.note(format!("room of {stream}"), note);
        level
    }

    fn look_at_excess(&mut self, domain: &str, is_closed: bool) {
        let now = self.started.elapsed();
        match (is_closed, self.without_room.get(domain).copied()) {
            (true, None) => {
                self.without_room.insert(domain.to_owned(), now);
                ExcessHasNoRoom { domain }.emit();
            }
            (false, Some(since)) => {
                self.without_room.remove(domain);
                ExcessHasRoomAgain { domain, after: now.saturating_sub(since) }.emit();
            }
            _ => {}
        }
        let note = is_closed.then(|| {
            let events = self.js.names().events_stream();
            format!(
                "outbox and dead letters of {domain} are both full: events with envelopes over quota wait in {events}, also \
                 for their other subscriptions; {}",
                ExcessHasNoRoom::REMEDY
            )
        });
        self.readiness.note(format!("room for the excess of {domain}"), note);
    }
}
