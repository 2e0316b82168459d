//! Stream and consumer definitions, rendered from the JSON files under `nats/`, which `nats stream add --config` reads
//! too. The files of the first default domain are the template for every configured domain.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::subjects::{SubjectNames, lane_consumer, stream_token};

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

/// The domain whose files are the template for every domain.
const TEMPLATE_DOMAIN: &str = "user-lifecycle";

const OUTBOX: &str = stream_file!("HUB_OUTBOX_USER_LIFECYCLE");
const DLT: &str = stream_file!("HUB_OUTBOX_USER_LIFECYCLE_DLT");
const LANE: &str = consumer_file!("HUB_OUTBOX_USER_LIFECYCLE", "lane-shared");
const DLT_PROCESSOR: &str = consumer_file!("HUB_OUTBOX_USER_LIFECYCLE_DLT", "dlt-processor");

/// The settings that the definitions depend on.
#[derive(Debug, Clone)]
pub struct StreamParameters {
    pub prefix: String,
    pub domains: Vec<String>,
    pub replicas: usize,
    pub max_deliver: u32,
    pub ack_wait: Duration,
    pub duplicate_window: Duration,
    pub limits: StreamLimits,
}

/// `max_bytes` and `max_age` of the streams.
#[derive(Debug, Clone)]
pub struct StreamLimits {
    pub events: u64,
    pub outbox: u64,
    pub dlt: u64,
    pub attempts: u64,
    pub rejected: u64,
    pub advisories: u64,
    pub attempts_max_age: Duration,
    pub rejected_max_age: Duration,
}

/// A stream and its consumers.
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

/// All streams of a hub, in the order of their creation.
pub fn render(parameters: &StreamParameters) -> Vec<StreamDefinition> {
    let names = SubjectNames::new(&parameters.prefix);
    let mut streams = Vec::new();
    let fixed = [
        (stream_file!("KV_hub-subscriptions"), None, None, vec![]),
        (stream_file!("KV_hub-tokens"), None, None, vec![]),
        (stream_file!("KV_hub-orders"), None, None, vec![]),
        (stream_file!("KV_hub-keys"), None, None, vec![]),
        (stream_file!("HUB_PUBLISHED"), None, Some(parameters.duplicate_window), vec![]),
        (
            stream_file!("HUB_REJECTED"),
            Some(parameters.limits.rejected),
            Some(parameters.limits.rejected_max_age),
            vec![],
        ),
        (
            stream_file!("HUB_EVENTS"),
            Some(parameters.limits.events),
            None,
            vec![consumer_file!("HUB_EVENTS", "event-processor")],
        ),
        (
            stream_file!("HUB_ATTEMPTS"),
            Some(parameters.limits.attempts),
            Some(parameters.limits.attempts_max_age),
            vec![],
        ),
        (
            stream_file!("HUB_ADVISORIES"),
            Some(parameters.limits.advisories),
            None,
            vec![consumer_file!("HUB_ADVISORIES", "dlt-router")],
        ),
        (stream_file!("HUB_REDRIVE"), None, None, vec![consumer_file!("HUB_REDRIVE", "dlt-processor")]),
    ];
    for (file, max_bytes, max_age, consumers) in fixed {
        let mut config = parse(file, parameters, TEMPLATE_DOMAIN);
        size(&mut config, parameters, max_bytes, max_age);
        let name = text(&config, "name");
        if name == names.advisories_stream() {
            let subjects: Vec<String> = parameters
                .domains
                .iter()
                .flat_map(|domain| names.advisory_subjects(&names.outbox_stream(domain)))
                .collect();
            config.insert("subjects".to_owned(), json!(subjects));
        }
        if name == names.events_stream() {
            // Two tenants, or events of two keys, may use the same message id.
            config.insert("duplicate_window".to_owned(), json!(0));
        }
        let consumers =
            consumers.into_iter().map(|file| consumer(file, parameters, TEMPLATE_DOMAIN)).collect();
        streams.push(StreamDefinition { name, config, consumers });
    }
    for domain in &parameters.domains {
        let mut config = parse(DLT, parameters, domain);
        size(&mut config, parameters, Some(parameters.limits.dlt), None);
        streams.push(StreamDefinition {
            name: text(&config, "name"),
            config,
            consumers: vec![consumer(DLT_PROCESSOR, parameters, domain)],
        });
        let mut config = parse(OUTBOX, parameters, domain);
        size(&mut config, parameters, Some(parameters.limits.outbox), None);
        streams.push(StreamDefinition {
            name: text(&config, "name"),
            config,
            consumers: vec![lane(parameters, domain, super::subjects::SHARED_LANE)],
        });
    }
    streams
}

/// The durable of a lane of a domain outbox.
pub fn lane(parameters: &StreamParameters, domain: &str, lane: &str) -> ConsumerDefinition {
    let mut definition = consumer(LANE, parameters, domain);
    let names = SubjectNames::new(&parameters.prefix);
    definition.name = lane_consumer(lane);
    let config = &mut definition.config;
    config.insert("name".to_owned(), json!(definition.name));
    config.insert("durable_name".to_owned(), json!(definition.name));
    config.insert("filter_subject".to_owned(), json!(names.lane_filter(domain, lane)));
    config.insert("max_deliver".to_owned(), json!(parameters.max_deliver));
    config.insert("ack_wait".to_owned(), json!(nanos(parameters.ack_wait)));
    if super::subjects::is_strict_lane(lane) {
        // One message in flight: the server keeps the order over all processes, retries and crashes. The worker decides
        // which attempt is the last one, so that a message that must not be passed stays.
        config.insert("max_ack_pending".to_owned(), json!(1));
        config.insert("max_deliver".to_owned(), json!(-1));
    }
    if lane != super::subjects::SHARED_LANE {
        config.insert(
            "description".to_owned(),
            json!(format!("Outbox Processor: lane {lane} of domain {domain}, for one subscription alone.")),
        );
    }
    definition
}

/// The events stream for a server that cannot switch de-duplication off: it gets the shortest window that the server
/// accepts. Within that window a message id counts once, whoever uses it.
pub(super) fn with_shortest_window(mut stream: StreamDefinition) -> StreamDefinition {
    if stream.config.remove("sources").is_some() {
        stream.config.insert("duplicate_window".to_owned(), json!(nanos(Duration::from_millis(100))));
    }
    stream
}

fn consumer(file: &str, parameters: &StreamParameters, domain: &str) -> ConsumerDefinition {
    let config = parse(file, parameters, domain);
    ConsumerDefinition { name: text(&config, "durable_name"), config }
}

fn parse(file: &str, parameters: &StreamParameters, domain: &str) -> Map<String, Value> {
    let value: Value =
        serde_json::from_str(file).expect("the embedded definitions are JSON: a test reads each");
    let Value::Object(config) = rename(value, parameters, domain) else {
        unreachable!("the embedded definitions are objects: a test reads each")
    };
    config
}

fn size(
    config: &mut Map<String, Value>,
    parameters: &StreamParameters,
    max_bytes: Option<u64>,
    max_age: Option<Duration>,
) {
    config.insert("num_replicas".to_owned(), json!(parameters.replicas));
    if let Some(bytes) = max_bytes {
        config.insert("max_bytes".to_owned(), json!(bytes));
    }
    if let Some(age) = max_age {
        config.insert("max_age".to_owned(), json!(nanos(age)));
    }
    let window = match max_age {
        Some(age) if !age.is_zero() => parameters.duplicate_window.min(age),
        _ => parameters.duplicate_window,
    };
    config.insert("duplicate_window".to_owned(), json!(nanos(window)));
}

/// Replaces the template's domain and prefix in every string.
fn rename(value: Value, parameters: &StreamParameters, domain: &str) -> Value {
    match value {
        Value::String(text) => Value::String(rename_text(&text, &parameters.prefix, domain)),
        Value::Array(items) => {
            Value::Array(items.into_iter().map(|item| rename(item, parameters, domain)).collect())
        }
        Value::Object(fields) => Value::Object(
            fields.into_iter().map(|(key, value)| (key, rename(value, parameters, domain))).collect(),
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
pub(in crate::nats) mod tests;
