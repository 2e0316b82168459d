//! The clock of the NATS server, which keeps the timers of redrives and pauses. What is compared with its times, or with
//! those that other processes wrote, comes from here, so that a process whose clock is wrong or jumps does nothing early
//! or late.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::connection::JetStream;
use super::error::NatsError;

/// Age after which the server's clock is read again.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// An answer that took longer says too little about the time; the error is at most half of this.
const SLOWEST_ANSWER: Duration = Duration::from_secs(2);
/// No time is known yet.
const UNKNOWN: i64 = i64::MIN;

/// The time of the server, derived from its answers and the monotonic clock of this machine.
#[derive(Debug)]
pub(super) struct ServerClock {
    started: Instant,
    /// Unix time of the server minus the time since `started`, in nanoseconds.
    offset: AtomicI64,
    /// Milliseconds from `started` to the last reading.
    read_at: AtomicU64,
}

impl Default for ServerClock {
    fn default() -> Self {
        Self { started: Instant::now(), offset: AtomicI64::new(UNKNOWN), read_at: AtomicU64::new(0) }
    }
}

impl ServerClock {
    /// The server's time now; before its first answer, the time of this machine.
    pub(super) fn now(&self) -> OffsetDateTime {
        match self.offset.load(Ordering::Relaxed) {
            UNKNOWN => OffsetDateTime::now_utc(),
            offset => {
                let elapsed = i64::try_from(self.started.elapsed().as_nanos()).unwrap_or(i64::MAX);
                OffsetDateTime::from_unix_timestamp_nanos(i128::from(offset.saturating_add(elapsed)))
                    .unwrap_or_else(|_| OffsetDateTime::now_utc())
            }
        }
    }

    /// Reads the time from an answer of the JetStream API to a request that was sent at `sent`, if the last reading is
    /// old. Most answers about streams and consumers have one (`ts`).
    pub(super) fn read(&self, answer: &[u8], sent: Instant) {
        #[derive(Deserialize)]
        struct Stamped {
            ts: Option<String>,
        }
        let round_trip = sent.elapsed();
        let now = self.started.elapsed();
        let known = self.offset.load(Ordering::Relaxed) != UNKNOWN;
        let age = now.saturating_sub(Duration::from_millis(self.read_at.load(Ordering::Relaxed)));
        if known && (age < READ_AGAIN || round_trip > SLOWEST_ANSWER) {
            return;
        }
        let Ok(Stamped { ts: Some(stamp) }) = serde_json::from_slice(answer) else { return };
        let Ok(at) = OffsetDateTime::parse(&stamp, &Rfc3339) else { return };
        // The server wrote it between the request and the answer.
        let then = now.saturating_sub(round_trip / 2);
        let offset = at.unix_timestamp_nanos() - i128::try_from(then.as_nanos()).unwrap_or(i128::MAX);
        let Ok(offset) = i64::try_from(offset) else { return };
        self.offset.store(offset, Ordering::Relaxed);
        self.read_at.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl JetStream {
    /// The time of the server, also in a process that has just connected.
    pub async fn read_now(&self) -> Result<OffsetDateTime, NatsError> {
        if self.shared().clock.offset.load(Ordering::Relaxed) == UNKNOWN {
            match self.stream_info(&self.names().events_stream()).await {
                Ok(_) => {}
                // Nothing is provisioned, and nothing has a time of the server.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_is_local(clock: &ServerClock) {
        let (before, now, after) = (OffsetDateTime::now_utc(), clock.now(), OffsetDateTime::now_utc());
        assert!(before <= now && now <= after, "{now} is not from {before} to {after}");
    }

    #[test]
    fn the_server_counts_whatever_the_local_clock_says() {
        let clock = ServerClock::default();
        assert_is_local(&clock);
        clock.read(br#"{"ts":"2001-02-03T04:05:06.5Z"}"#, Instant::now());
        let written = OffsetDateTime::parse("2001-02-03T04:05:06.5Z", &Rfc3339).expect("a time");
        let now = clock.now();
        assert!(now >= written && now.date() == written.date(), "{now}");
    }

    #[test]
    fn other_answers_change_nothing() {
        let clock = ServerClock::default();
        for answer in
            [&b""[..], b"{}", br#"{"ts":5}"#, br#"{"ts":"soon"}"#, br#"{"ts":"9999-12-31T23:59:59Z"}"#]
        {
            clock.read(answer, Instant::now());
            assert_is_local(&clock);
        }
    }
}
