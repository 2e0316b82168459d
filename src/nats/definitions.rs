//! Stream and consumer definitions, rendered from the JSON files under `nats/` (the same files
//! that `nats stream add --config` takes). A domain of the settings gets its streams from the
//! files of the first default domain.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::subjects::{Names, lane_consumer, stream_token};

macro_rules! stream_file {
    ($name:literal) => {
        include_str!(concat!("../../nats/streams/", $name, ".json"))
    };
}

macro_rules! consumer_file {
    ($stream:literal, $name:literal) => {
        include_str!(concat!("../../nats/consumers/", $stream, "/", $name, ".json"))
    };
}

/// The domain whose files are the template of every domain's.
const TEMPLATE_DOMAIN: &str = "user-lifecycle";

const OUTBOX: &str = stream_file!("HUB_OUTBOX_USER_LIFECYCLE");
const DLT: &str = stream_file!("HUB_OUTBOX_USER_LIFECYCLE_DLT");
const LANE: &str = consumer_file!("HUB_OUTBOX_USER_LIFECYCLE", "lane-shared");
const DLT_PROCESSOR: &str = consumer_file!("HUB_OUTBOX_USER_LIFECYCLE_DLT", "dlt-processor");

/// What the settings say about the definitions.
#[derive(Debug, Clone)]
pub struct Shape {
    pub prefix: String,
    pub domains: Vec<String>,
    pub replicas: usize,
    pub max_deliver: u32,
    pub ack_wait: Duration,
    pub duplicate_window: Duration,
    pub limits: Limits,
}

/// `max_bytes` and `max_age` of the streams.
#[derive(Debug, Clone)]
pub struct Limits {
    pub events: u64,
    pub outbox: u64,
    pub dlt: u64,
    pub attempts: u64,
    pub rejected: u64,
    pub advisories: u64,
    pub attempts_max_age: Duration,
    pub rejected_max_age: Duration,
}

/// A stream to be there, with its consumers.
#[derive(Debug, Clone)]
pub struct StreamDefinition {
    pub name: String,
    pub config: Map<String, Value>,
    pub consumers: Vec<ConsumerDefinition>,
}

#[derive(Debug, Clone)]
pub struct ConsumerDefinition {
    pub name: String,
    pub config: Map<String, Value>,
}

/// All streams of a hub of this shape, in the order in which they are made.
pub fn render(shape: &Shape) -> Vec<StreamDefinition> {
    let names = Names::new(&shape.prefix);
    let mut streams = Vec::new();
    let fixed = [
        (stream_file!("KV_hub-subscriptions"), None, None, vec![]),
        (stream_file!("KV_hub-tokens"), None, None, vec![]),
        (stream_file!("KV_hub-orders"), None, None, vec![]),
        (stream_file!("KV_hub-keys"), None, None, vec![]),
        (stream_file!("HUB_PUBLISHED"), None, Some(shape.duplicate_window), vec![]),
        (
            stream_file!("HUB_REJECTED"),
            Some(shape.limits.rejected),
            Some(shape.limits.rejected_max_age),
            vec![],
        ),
        (
            stream_file!("HUB_EVENTS"),
            Some(shape.limits.events),
            None,
            vec![consumer_file!("HUB_EVENTS", "event-processor")],
        ),
        (
            stream_file!("HUB_ATTEMPTS"),
            Some(shape.limits.attempts),
            Some(shape.limits.attempts_max_age),
            vec![],
        ),
        (
            stream_file!("HUB_ADVISORIES"),
            Some(shape.limits.advisories),
            None,
            vec![consumer_file!("HUB_ADVISORIES", "dlt-router")],
        ),
        (stream_file!("HUB_REDRIVE"), None, None, vec![consumer_file!("HUB_REDRIVE", "dlt-processor")]),
    ];
    for (file, max_bytes, max_age, consumers) in fixed {
        let mut config = parse(file, shape, TEMPLATE_DOMAIN);
        size(&mut config, shape, max_bytes, max_age);
        let name = text(&config, "name");
        if name == names.advisories_stream() {
            let subjects: Vec<String> = shape
                .domains
                .iter()
                .flat_map(|domain| names.advisory_subjects(&names.outbox_stream(domain)))
                .collect();
            config.insert("subjects".to_owned(), json!(subjects));
        }
        if name == names.events_stream() {
            // A message id may be used by two tenants, or for two keys.
            config.insert("duplicate_window".to_owned(), json!(0));
        }
        let consumers = consumers.into_iter().map(|file| consumer(file, shape, TEMPLATE_DOMAIN)).collect();
        streams.push(StreamDefinition { name, config, consumers });
    }
    for domain in &shape.domains {
        let mut config = parse(DLT, shape, domain);
        size(&mut config, shape, Some(shape.limits.dlt), None);
        streams.push(StreamDefinition {
            name: text(&config, "name"),
            config,
            consumers: vec![consumer(DLT_PROCESSOR, shape, domain)],
        });
        let mut config = parse(OUTBOX, shape, domain);
        size(&mut config, shape, Some(shape.limits.outbox), None);
        streams.push(StreamDefinition {
            name: text(&config, "name"),
            config,
            consumers: vec![lane(shape, domain, super::subjects::SHARED_LANE)],
        });
    }
    streams
}

/// The durable of a lane of a domain's outbox.
pub fn lane(shape: &Shape, domain: &str, lane: &str) -> ConsumerDefinition {
    let mut definition = consumer(LANE, shape, domain);
    let names = Names::new(&shape.prefix);
    definition.name = lane_consumer(lane);
    let config = &mut definition.config;
    config.insert("name".to_owned(), json!(definition.name));
    config.insert("durable_name".to_owned(), json!(definition.name));
    config.insert("filter_subject".to_owned(), json!(names.lane_filter(domain, lane)));
    config.insert("max_deliver".to_owned(), json!(shape.max_deliver));
    config.insert("ack_wait".to_owned(), json!(nanos(shape.ack_wait)));
    if lane != super::subjects::SHARED_LANE {
        config.insert(
            "description".to_owned(),
            json!(format!("Outbox Processor: lane {lane} of domain {domain}, for one subscription alone.")),
        );
    }
    definition
}

/// The events stream for a server that has no way to switch de-duplication off: within the shortest
/// window that it takes, a message id counts once whoever uses it.
pub(super) fn with_shortest_window(mut stream: StreamDefinition) -> StreamDefinition {
    if stream.config.remove("sources").is_some() {
        stream.config.insert("duplicate_window".to_owned(), json!(nanos(Duration::from_millis(100))));
    }
    stream
}

fn consumer(file: &str, shape: &Shape, domain: &str) -> ConsumerDefinition {
    let config = parse(file, shape, domain);
    ConsumerDefinition { name: text(&config, "durable_name"), config }
}

fn parse(file: &str, shape: &Shape, domain: &str) -> Map<String, Value> {
    let value: Value =
        serde_json::from_str(file).expect("the embedded definitions are JSON: a test reads each");
    let Value::Object(config) = rename(value, shape, domain) else {
        unreachable!("the embedded definitions are objects: a test reads each")
    };
    config
}

fn size(config: &mut Map<String, Value>, shape: &Shape, max_bytes: Option<u64>, max_age: Option<Duration>) {
    config.insert("num_replicas".to_owned(), json!(shape.replicas));
    if let Some(bytes) = max_bytes {
        config.insert("max_bytes".to_owned(), json!(bytes));
    }
    if let Some(age) = max_age {
        config.insert("max_age".to_owned(), json!(nanos(age)));
    }
    let window = match max_age {
        Some(age) if !age.is_zero() => shape.duplicate_window.min(age),
        _ => shape.duplicate_window,
    };
    config.insert("duplicate_window".to_owned(), json!(nanos(window)));
}

/// Puts the domain and the prefix in the place of the template's, in every string.
fn rename(value: Value, shape: &Shape, domain: &str) -> Value {
    match value {
        Value::String(text) => Value::String(rename_text(&text, &shape.prefix, domain)),
        Value::Array(items) => {
            Value::Array(items.into_iter().map(|item| rename(item, shape, domain)).collect())
        }
        Value::Object(fields) => Value::Object(
            fields.into_iter().map(|(key, value)| (key, rename(value, shape, domain))).collect(),
        ),
        other => other,
    }
}

fn rename_text(text: &str, prefix: &str, domain: &str) -> String {
    let text = text
        .replace(TEMPLATE_DOMAIN, domain)
        .replace(&stream_token(TEMPLATE_DOMAIN), &stream_token(domain))
        .replace("HUB_", &format!("{}_", stream_token(prefix)))
        .replace("KV_hub-", &format!("KV_{prefix}-"))
        .replace("$KV.hub-", &format!("$KV.{prefix}-"));
    match text.strip_prefix("hub.") {
        Some(rest) => format!("{prefix}.{rest}"),
        None => text,
    }
}

fn text(config: &Map<String, Value>, field: &str) -> String {
    config.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
