//! Checks that each row arrived once, and in the order of its stream.

use std::time::Duration;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::BenchError;
use crate::statistics::per_second;
use crate::tally::Account;
use integration_hub::nats::JetStream;

const ID: &str = "bench-";

/// The id of the event with this number.
pub(crate) fn id(number: u64) -> String {
    format!("{ID}{number}")
}

/// The stream of the event with this number.
pub(crate) fn stream(number: u64, streams: u64) -> String {
    format!("user-{}", number % streams)
}

/// The arrivals of the events 0, 1, … of several streams.
pub(crate) struct Ledger {
    times: Vec<u32>,
    /// For each stream the number after the last one that arrived.
    next: Vec<u64>,
    unexpected: u64,
    out_of_order: u64,
}

/// The first and the last arrival, by one clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: Duration,
    pub(crate) last: Duration,
}

impl Span {
    /// The span extended by an arrival.
    pub(crate) fn and(self, at: Duration) -> Self {
        Self { first: self.first.min(at), last: self.last.max(at) }
    }

    /// The arrivals per second; the first arrival starts the clock and is not counted.
    pub(crate) fn rate(self, arrivals: u64) -> f64 {
        per_second(arrivals.saturating_sub(1), self.last.saturating_sub(self.first)).unwrap_or(0.0)
    }
}

impl Ledger {
    pub(crate) fn new(events: u64, streams: u64) -> Self {
        Self {
            times: vec![0; events as usize],
            next: vec![0; streams as usize],
            unexpected: 0,
            out_of_order: 0,
        }
    }

    pub(crate) fn arrived(&mut self, id: &str) {
        let number = id.strip_prefix(ID).and_then(|number| number.parse::<u64>().ok());
        let times = number.and_then(|number| Some((number, self.times.get_mut(number as usize)?)));
        let Some((number, times)) = times else {
            self.unexpected += 1;
            return;
        };
        *times += 1;
        let streams = self.next.len() as u64;
        let next = &mut self.next[(number % streams) as usize];
        // A repetition is not out of order.
        if *times == 1 && number < *next {
            self.out_of_order += 1;
        }
        *next = (number + 1).max(*next);
    }

    pub(crate) fn account(&self) -> Account {
        Account {
            expected: self.times.len() as u64,
            missing: self.times.iter().filter(|times| **times == 0).count() as u64,
            doubles: self.times.iter().map(|times| u64::from(times.saturating_sub(1))).sum(),
            unexpected: self.unexpected,
            out_of_order: self.out_of_order,
        }
    }

    /// Reads the events stream of a hub. Returns the first and last arrival by the clock of the server.
    pub(crate) async fn read(&mut self, js: &JetStream) -> Result<Option<Span>, BenchError> {
        let mut span = None::<Span>;
        js.for_each_stored(&js.names().events_stream(), &js.names().event(">"), None, |message| {
            self.arrived(&event_id(&message.payload));
            if let Ok(at) = OffsetDateTime::parse(&message.time, &Rfc3339) {
                let at = Duration::from_nanos(u64::try_from(at.unix_timestamp_nanos()).unwrap_or_default());
                span = Some(span.map_or(Span { first: at, last: at }, |span| span.and(at)));
            }
        })
        .await?;
        Ok(span)
    }
}

/// The id of an event, with or without the envelope of an outbox.
pub(super) fn event_id(body: &[u8]) -> String {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Body {
        id: Option<String>,
        metadata: Metadata,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Metadata {
        headers: Headers,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Headers {
        id: Option<String>,
    }
    let body: Body = serde_json::from_slice(body).unwrap_or_default();
    body.metadata.headers.id.or(body.id).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_tells_the_missing_the_doubled_the_disordered_and_the_unexpected() {
        let mut ledger = Ledger::new(6, 2);
        // Streams 0, 2, 4 and 1, 3, 5.
        for number in [0, 3, 1, 2, 2, 5] {
            ledger.arrived(&id(number));
        }
        ledger.arrived("bench-6");
        ledger.arrived("another");
        let expected = Account { expected: 6, missing: 1, doubles: 1, unexpected: 2, out_of_order: 1 };
        assert_eq!(ledger.account(), expected);
    }

    #[test]
    fn the_first_arrival_starts_the_clock() {
        let seconds = Duration::from_secs;
        let span = Span { first: seconds(5), last: seconds(5) }.and(seconds(7)).and(seconds(6));
        assert_eq!(span, Span { first: seconds(5), last: seconds(7) });
        assert_eq!((span.rate(201), span.rate(0)), (100.0, 0.0));
    }
}
