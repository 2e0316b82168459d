//! Makes streams and consumers again that somebody deleted while the hub runs.
//!
//! Buckets are not made again, because their contents cannot be: `hub provision` and the start of a process create them.
//!
//! A stream that is made again begins at a sequence that no earlier stream of its name had. Sequences outlive their
//! stream in acknowledgements, message ids, event ids, dead-letter references and timers, and a repeated one would
//! acknowledge or drop another message.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};

use super::{ProvisionError, no_room, wanted};
use crate::facts::{PartMadeAgain, PartNotMadeAgain};
use crate::nats::agreement::put_metadata;
use crate::nats::connection::JetStream;
use crate::nats::definitions::{ConsumerDefinition, StreamDefinition, StreamParameters};
use crate::nats::error::{ApiError, NatsError};

/// Interval of the look at all parts. A reader or publisher that misses one causes a look at once.
const LOOK: Duration = Duration::from_secs(5);
/// Shortest time between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Wait after a failure to make a part, doubling up to [`LONGEST_WAIT`]. Without the permission, each attempt makes the
/// server report an error.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A hub with a part that is older than this was provisioned before, so a missing stream is one that was deleted.
const ESTABLISHED_AFTER: Duration = Duration::from_secs(60);

/// Whether the stream stores a KV bucket.
fn is_bucket(stream: &str) -> bool {
    stream.starts_with("KV_")
}

/// Creates what is missing of a stream and its consumers, and leaves alone what exists, whatever its configuration.
/// Returns what was created. Every part that is made again while the hub runs is made here.
async fn make_again(js: &JetStream, stream: &StreamDefinition) -> Result<Vec<String>, ProvisionError> {
    let mut missing = Vec::new();
    for consumer in &stream.consumers {
        if is_missing(js.consumer_info(&stream.name, &consumer.name).await)? {
            missing.push(consumer);
        }
    }
    let mut made = Vec::new();
    if (stream.consumers.is_empty() || !missing.is_empty())
        && is_missing(js.stream_info(&stream.name).await)?
        && create_stream(js, stream, true).await?
    {
        made.push(format!("stream {}", stream.name));
    }
    for consumer in missing {
        if create_consumer(js, &stream.name, consumer).await? {
            made.push(format!("consumer {}/{}", stream.name, consumer.name));
        }
    }
    Ok(made)
}

/// The events stream with its records, so that it never exists without them.
fn with_records(js: &JetStream, mut stream: StreamDefinition) -> StreamDefinition {
    if stream.name == js.names().events_stream() {
        put_metadata(&mut stream.config, &js.known_records());
    }
    stream
}

fn is_missing<T>(info: Result<T, NatsError>) -> Result<bool, NatsError> {
    match info {
        Ok(_) => Ok(false),
        Err(error) if error.is_not_found() => Ok(true),
        Err(error) => Err(error),
    }
}

/// Creates a stream; false if another process has created it meanwhile. `again`: there may have been one of this name.
pub(super) async fn create_stream(
    js: &JetStream,
    stream: &StreamDefinition,
    again: bool,
) -> Result<bool, ProvisionError> {
    let mut config = stream.config.clone();
    if again && !is_bucket(&stream.name) {
        config.insert("first_seq".to_owned(), json!(unused_sequence(js.now())));
    }
    match js.api::<Value>(&format!("STREAM.CREATE.{}", stream.name), &config).await {
        Ok(_) => Ok(true),
        Err(NatsError::Api { source, .. }) if source.err_code == ApiError::STREAM_NAME_IN_USE => Ok(false),
        Err(error) => Err(no_room(stream, error)),
    }
}

/// Creates a consumer; false if another process has created it meanwhile, in which case it is not changed.
pub(super) async fn create_consumer(
    js: &JetStream,
    stream: &str,
    consumer: &ConsumerDefinition,
) -> Result<bool, NatsError> {
    match js.put_consumer(stream, &consumer.name, &consumer.config, "create").await {
        Ok(_) => Ok(true),
        Err(NatsError::Api { source, .. }) if source.err_code == ApiError::CONSUMER_EXISTS => Ok(false),
        Err(error) => Err(error),
    }
}

/// A sequence above those of every earlier stream: the microseconds since 1970 by the server's clock. A stream that stores less than a million
/// messages per second falls behind them. They are exact in JSON readers with 53 bits.
fn unused_sequence(now: OffsetDateTime) -> u64 {
    u64::try_from(now.unix_timestamp_nanos() / 1_000).unwrap_or(1).max(1)
}

/// Whether this hub was provisioned a while ago: one of its parts is old, also if others were deleted. Processes that start
/// together for the first time number from 1.
pub(super) async fn is_established(js: &JetStream, parameters: &StreamParameters) -> Result<bool, NatsError> {
    for stream in wanted(js, parameters) {
        match js.stream_info(&stream.name).await {
            Ok(info) => {
                let created = OffsetDateTime::parse(&info.created, &Rfc3339).ok();
                if created.is_some_and(|at| js.now() - at > ESTABLISHED_AFTER) {
                    return Ok(true);
                }
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Looks for missing streams and consumers while the hub runs, and makes them again. Each process runs one.
pub struct PartKeeper {
    js: JetStream,
    parameters: StreamParameters,
    /// Streams of which a part could not be made, by name.
    trouble: HashMap<String, Trouble>,
}

struct Trouble {
    next: Instant,
    wait: Duration,
}

impl PartKeeper {
    pub fn new(js: JetStream, parameters: StreamParameters) -> Self {
        Self { js, parameters, trouble: HashMap::new() }
    }

    /// Never returns. May be dropped at any point.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                () = sleep(LOOK) => {}
                () = self.js.missing().notified() => {}
            }
            self.look().await;
            sleep(PAUSE).await;
        }
    }

    async fn look(&mut self) {
        let (js, now) = (self.js.clone(), Instant::now());
        // A process whose settings differ would make other parts than the others need.
        if !js.makes_parts().await {
            return;
        }
        let streams: Vec<StreamDefinition> = wanted(&js, &self.parameters)
            .into_iter()
            .filter(|stream| !is_bucket(&stream.name))
            .map(|stream| with_records(&js, stream))
            .filter(|stream| self.trouble.get(&stream.name).is_none_or(|trouble| trouble.next <= now))
            .collect();
        // At once, so that a part that this process may not make does not delay the others.
        let made = join_all(streams.iter().map(|stream| make_again(&js, stream))).await;
        for (stream, made) in streams.iter().zip(made) {
            match made {
                Ok(made) => {
                    self.trouble.remove(&stream.name);
                    for what in &made {
                        PartMadeAgain { what }.emit();
                    }
                }
                Err(error) => self.not_made(stream, &error).await,
            }
        }
    }

    /// Logs that a part is missing, once until it exists. If the server does not answer, nothing is known to be missing.
    async fn not_made(&mut self, stream: &StreamDefinition, error: &ProvisionError) {
        let Some(what) = self.first_missing(stream).await else { return };
        let wait = match self.trouble.get(&stream.name) {
            Some(trouble) => (trouble.wait * 2).min(LONGEST_WAIT),
            None => {
                PartNotMadeAgain { what: &what, error }.emit();
                FIRST_WAIT
            }
        };
        self.trouble.insert(stream.name.clone(), Trouble { next: Instant::now() + wait, wait });
    }

    /// The first missing part of a stream; `None` if nothing is missing, or the server does not answer.
    async fn first_missing(&self, stream: &StreamDefinition) -> Option<String> {
        if is_missing(self.js.stream_info(&stream.name).await).ok()? {
            return Some(format!("stream {}", stream.name));
        }
        for consumer in &stream.consumers {
            if is_missing(self.js.consumer_info(&stream.name, &consumer.name).await).ok()? {
                return Some(format!("consumer {}/{}", stream.name, consumer.name));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_sequence_is_above_earlier_ones_and_exact_in_json() {
        let at = |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        let (first, later) = (unused_sequence(at(1_800_000_000)), unused_sequence(at(1_800_000_060)));
        assert_eq!(later - first, 60_000_000);
        assert!(unused_sequence(at(4_102_444_800)) < 1 << 53, "until the year 2100");
        assert_eq!(unused_sequence(at(-5)), 1, "a clock that is far off");
    }
}
