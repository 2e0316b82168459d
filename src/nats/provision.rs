//! Creates and updates the streams and consumers, and reports differences from the definitions.
//!
//! Provisioning is idempotent, and any number of processes may do it at once. A change that would lose messages is
//! reported and not made.

use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::circuits;
use super::connection::JetStream;
use super::definitions::{
    ConsumerDefinition, StreamDefinition, StreamParameters, render, with_shortest_window,
};
use super::error::{ApiError, NatsError};
use super::stream_api::ConsumerInfo;
use super::subjects::SHARED_LANE;
use crate::domain::backlog::size;
use crate::domain::shared_settings::{Difference, RecordedBy, UnreadableRecord, in_one_line};
use compare::{compare, overlay};
use desired::desired;

mod again;
mod compare;
mod desired;
pub mod join;
mod lanes;
pub mod mending;
#[cfg(test)]
mod tests;

pub use again::PartKeeper;

/// The oldest supported server: its atomic batches and message schedules work as the hub needs.
pub const OLDEST_SERVER: (u64, u64, u64) = (2, 12, 9);
pub const ADVISED_SERVER: (u64, u64, u64) = (2, 14, 1);
/// Updates of a consumer that another process changes at the same time. One is enough unless that happens; the last look
/// makes no update.
const MOST_CORRECTIONS: usize = 4;
/// The oldest server on which a stream with a source does not de-duplicate.
const WINDOW_OPTIONAL_SINCE: (u64, u64, u64) = (2, 14, 0);

#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    #[error(
        "NATS server {name}: version {found} is too old, because the hub needs atomic batches and message schedules; \
         upgrade it to {}.{}.{} or newer ({}.{}.{} or newer is recommended), then run `hub provision` again",
        OLDEST_SERVER.0, OLDEST_SERVER.1, OLDEST_SERVER.2, ADVISED_SERVER.0, ADVISED_SERVER.1, ADVISED_SERVER.2
    )]
    TooOld { name: String, found: String },
    #[error(
        "NATS server {name}: JetStream is not enabled for this account; start the server with JetStream (`nats-server -js`, \
         or a `jetstream {{ }}` block as in nats/server.conf), add `jetstream` to the account if the server has accounts, \
         then run `hub provision` again"
    )]
    NoJetStream { name: String },
    #[error(
        "the account's JetStream limits are too small: the hub needs {needed}, but the limit is {limit}; raise the account's \
         limit, or lower the sizes in [limits] of the settings"
    )]
    AccountLimits { needed: String, limit: String },
    #[error(
        "stream {stream}: cannot be created with {asks}: {source}; give the server that storage (jetstream max_file_store), \
         add servers for the replicas, or lower [limits] or nats.replicas in the settings"
    )]
    NoRoom { stream: String, asks: String, source: ApiError },
    #[error(
        "{what}: its configuration differs and cannot be changed in place: {source}; compare it with `hub provision --check`, \
         and move its messages to a new one by hand"
    )]
    Immutable { what: String, source: ApiError },
    /// By another process, with other settings; the next try compares with it.
    #[error("{what}: was created by another process at the same time; run the command again")]
    CreatedMeanwhile { what: String },
    #[error(
        "the settings of this process differ from the recorded ones ({}); {}",
        in_one_line(differences),
        match by {
            RecordedBy::Provision => "use the recorded values, or apply these with `hub provision`",
            RecordedBy::Serve => "use the recorded values, stop the processes that have them, or apply these with `hub provision`",
        }
    )]
    SettingsDiffer { differences: Vec<Difference>, by: RecordedBy },
    #[error(transparent)]
    Nats(#[from] NatsError),
}

impl ProvisionError {
    /// Waiting may help, without a change of the settings or of the server's configuration: until a server answers, JetStream
    /// has a leader, or enough servers for the replicas have joined.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Nats(error) => error.may_pass(),
            Self::NoRoom { source, .. } => source.err_code == ApiError::NO_PEERS,
            Self::CreatedMeanwhile { .. } => true,
            _ => false,
        }
    }
}

/// One difference between a definition and the server's configuration.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Drift {
    /// `stream HUB_EVENTS`, `consumer HUB_EVENTS/event-processor`
    pub what: String,
    pub kind: DriftKind,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum DriftKind {
    Missing,
    Differs {
        field: String,
        wanted: Value,
        found: Value,
    },
    /// A change that would drop messages of the stream.
    WouldLose {
        field: String,
        wanted: Value,
        found: Value,
    },
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            DriftKind::Missing => write!(f, "{}: missing", self.what),
            DriftKind::Differs { field, wanted, found } => {
                let (found, wanted) = (field_value(field, found), field_value(field, wanted));
                write!(f, "{}: {field} is {found}, the definition has {wanted}", self.what)
            }
            DriftKind::WouldLose { field, wanted, found } => write!(
                f,
                "{}: {field} remains {}, because the definition's {} would drop messages",
                self.what,
                field_value(field, found),
                field_value(field, wanted)
            ),
        }
    }
}

/// The value of a field of a stream or consumer for people: sizes with a unit.
pub fn field_value(field: &str, value: &Value) -> String {
    let is_size = matches!(field, "max_bytes" | "max_msg_size");
    let bytes = value.as_u64().filter(|_| is_size);
    bytes.map_or_else(|| value.to_string(), size::exact)
}

/// The result of provisioning.
#[derive(Debug, Default)]
pub struct Provisioned {
    pub created: Vec<String>,
    pub changed: Vec<Drift>,
    /// Not changed, because the change would lose messages.
    pub kept: Vec<Drift>,
    pub unchanged: usize,
    /// The recorded settings that were replaced.
    pub replaced: Vec<Difference>,
    /// Why the replaced record could not be read.
    pub unreadable: Option<UnreadableRecord>,
    /// Domains that the settings no longer have, with the number of envelopes in their outboxes.
    pub left_behind: Vec<(String, usize)>,
    /// Buckets of an existing hub that were missing and are created again, each with what is lost.
    pub lost: Vec<(String, &'static str)>,
}

/// Fails if the server is too old or has no JetStream, or if the account's limits are too small.
pub async fn check_server(js: &JetStream, parameters: &StreamParameters) -> Result<(), ProvisionError> {
    let found = js.server_version();
    if version(&found) < OLDEST_SERVER {
        return Err(ProvisionError::TooOld { name: js.server_name(), found });
    }
    #[derive(Deserialize)]
    struct Account {
        limits: AccountLimits,
        #[serde(default)]
        storage: i64,
        #[serde(default)]
        streams: i64,
    }
    #[derive(Deserialize)]
    struct AccountLimits {
        max_storage: i64,
        max_streams: i64,
    }
    let account: Account = match js.api("INFO", &Value::Null).await {
        Ok(account) => account,
        Err(NatsError::NoResponders { .. }) => {
            return Err(ProvisionError::NoJetStream { name: js.server_name() });
        }
        Err(NatsError::Api { source, .. }) if ApiError::NOT_ENABLED.contains(&source.err_code) => {
            return Err(ProvisionError::NoJetStream { name: js.server_name() });
        }
        Err(error) => return Err(error.into()),
    };
    let mut missing = Vec::new();
    for stream in wanted(js, parameters) {
        match js.stream_info(&stream.name).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => missing.push(stream),
            Err(error) => return Err(error.into()),
        }
    }
    let limits = account.limits;
    if limits.max_streams >= 0 && account.streams + missing.len() as i64 > limits.max_streams {
        return Err(ProvisionError::AccountLimits {
            needed: format!("{} streams in addition to the account's {}", missing.len(), account.streams),
            limit: format!("{} streams", limits.max_streams),
        });
    }
    let needed: i64 = missing
        .iter()
        .filter_map(|stream| stream.config.get("max_bytes")?.as_i64())
        .filter(|bytes| *bytes > 0)
        .sum::<i64>()
        * i64::try_from(parameters.replicas).unwrap_or(1);
    if limits.max_storage > 0 && account.storage + needed > limits.max_storage {
        return Err(ProvisionError::AccountLimits {
            needed: format!("{needed} bytes of file storage in addition to the {} in use", account.storage),
            limit: format!("{} bytes", limits.max_storage),
        });
    }
    Ok(())
}

/// The definitions, adapted to the version of the connected server.
fn wanted(js: &JetStream, parameters: &StreamParameters) -> Vec<StreamDefinition> {
    let streams = render(parameters);
    if version(&js.server_version()) >= WINDOW_OPTIONAL_SINCE {
        return streams;
    }
    streams.into_iter().map(with_shortest_window).collect()
}

/// Creates missing streams and consumers and updates those that differ, whatever settings are recorded. Fails if the
/// registry is lost.
pub async fn apply(js: &JetStream, parameters: &StreamParameters) -> Result<Provisioned, ProvisionError> {
    check_server(js, parameters).await?;
    join::refuse_lost_registry(js, parameters).await?;
    let again = again::is_established(js, parameters).await?;
    apply_wanted(js, wanted(js, parameters), again).await
}

/// `again`: there may have been streams of these names.
async fn apply_wanted(
    js: &JetStream,
    streams: Vec<StreamDefinition>,
    again: bool,
) -> Result<Provisioned, ProvisionError> {
    let mut done = Provisioned::default();
    for stream in streams {
        apply_stream(js, &stream, again, &mut done).await?;
        for consumer in &stream.consumers {
            apply_consumer(js, &stream.name, consumer, &mut done).await?;
        }
    }
    Ok(done)
}

/// Returns the differences without changing anything.
pub async fn check(js: &JetStream, parameters: &StreamParameters) -> Result<Vec<Drift>, ProvisionError> {
    check_server(js, parameters).await?;
    let mut drifts = Vec::new();
    for stream in wanted(js, parameters) {
        let what = format!("stream {}", stream.name);
        match js.stream_info_of_leader(&stream.name).await {
            Ok(info) => {
                let desired = desired(&stream.config, &info.config);
                drifts.extend(compare(&what, &desired, &info.config, Some(&info)));
            }
            Err(error) if error.is_not_found() => drifts.push(Drift { what, kind: DriftKind::Missing }),
            Err(error) => return Err(error.into()),
        }
        for consumer in &stream.consumers {
            let what = format!("consumer {}/{}", stream.name, consumer.name);
            match js.consumer_info(&stream.name, &consumer.name).await {
                Ok(info) => {
                    let desired = desired(&consumer.config, &info.config);
                    drifts.extend(compare(&what, &desired, &info.config, None));
                }
                Err(error) if error.is_not_found() => drifts.push(Drift { what, kind: DriftKind::Missing }),
                Err(error) => return Err(error.into()),
            }
        }
    }
    for domain in &parameters.domains {
        drifts.extend(lanes::drifts_of_lanes(js, parameters, domain).await?);
    }
    Ok(drifts)
}

async fn apply_stream(
    js: &JetStream,
    stream: &StreamDefinition,
    again: bool,
    done: &mut Provisioned,
) -> Result<(), ProvisionError> {
    let what = format!("stream {}", stream.name);
    let info = match js.stream_info(&stream.name).await {
        Ok(info) => info,
        Err(error) if error.is_not_found() => {
            if !again::create_stream(js, stream, again).await? {
                return Err(ProvisionError::CreatedMeanwhile { what });
            }
            done.created.push(what);
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let desired = desired(&stream.config, &info.config);
    let drifts = compare(&what, &desired, &info.config, Some(&info));
    let (kept, changed): (Vec<_>, Vec<_>) =
        drifts.into_iter().partition(|drift| matches!(drift.kind, DriftKind::WouldLose { .. }));
    if changed.is_empty() {
        done.unchanged += usize::from(kept.is_empty());
    } else {
        let config = overlay(&info.config, &changed);
        js.api::<Value>(&format!("STREAM.UPDATE.{}", stream.name), &config)
            .await
            .map_err(|error| immutable(&what, error))?;
    }
    done.changed.extend(changed);
    done.kept.extend(kept);
    Ok(())
}

async fn apply_consumer(
    js: &JetStream,
    stream: &str,
    consumer: &ConsumerDefinition,
    done: &mut Provisioned,
) -> Result<(), ProvisionError> {
    let what = format!("consumer {stream}/{}", consumer.name);
    match js.consumer_info(stream, &consumer.name).await {
        Ok(info) => correct_consumer(js, stream, consumer, info, done).await?,
        Err(error) if error.is_not_found() => {
            js.put_consumer(stream, &consumer.name, &consumer.config, "").await?;
            done.created.push(what);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Updates a consumer that exists where it differs from its definition. What the running hub stores in it stays.
///
/// The server has no conditional update, and a process may open or close a circuit at the same moment. So the state that
/// an update begins with is read just before it, and read again after it. What an update overwrites nevertheless, the
/// workers restore (`circuits`).
async fn correct_consumer(
    js: &JetStream,
    stream: &str,
    consumer: &ConsumerDefinition,
    mut info: ConsumerInfo,
    done: &mut Provisioned,
) -> Result<(), ProvisionError> {
    let what = format!("consumer {stream}/{}", consumer.name);
    let drifts =
        |info: &ConsumerInfo| compare(&what, &desired(&consumer.config, &info.config), &info.config, None);
    let found = drifts(&info);
    if found.is_empty() {
        done.unchanged += 1;
        return Ok(());
    }
    for _ in 0..MOST_CORRECTIONS {
        info = js.consumer_info(stream, &consumer.name).await?;
        let now = drifts(&info);
        if now.is_empty() {
            break;
        }
        match js.put_consumer(stream, &consumer.name, &overlay(&info.config, &now), "update").await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => return Err(error.into()),
            Err(error) => return Err(immutable(&what, error)),
        }
    }
    done.changed.extend(found);
    Ok(())
}

impl JetStream {
    /// Creates or updates a consumer. An empty `action` succeeds if the consumer exists with the same configuration.
    pub(super) async fn put_consumer(
        &self,
        stream: &str,
        name: &str,
        config: &Map<String, Value>,
        action: &str,
    ) -> Result<ConsumerInfo, NatsError> {
        let subject = match config.get("filter_subject").and_then(Value::as_str) {
            Some(filter) => format!("CONSUMER.CREATE.{stream}.{name}.{filter}"),
            None => format!("CONSUMER.CREATE.{stream}.{name}"),
        };
        self.api(&subject, &json!({"stream_name": stream, "config": config, "action": action})).await
    }

    /// Creates the durable of a lane if it does not exist; true if it was created. New own lanes of a paused domain are
    /// paused too.
    pub async fn ensure_lane(
        &self,
        parameters: &StreamParameters,
        domain: &str,
        lane: &str,
    ) -> Result<bool, NatsError> {
        let mut definition = super::definitions::lane(parameters, domain, lane);
        let stream = self.names().outbox_stream(domain);
        match self.consumer_info(&stream, &definition.name).await {
            Ok(_) => return Ok(false),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        if lane == SHARED_LANE {
            return again::create_consumer(self, &stream, &definition).await;
        }
        let pause = self.pause_of_domain(&stream).await?;
        if let Some(until) = pause.map(circuits::text).transpose()? {
            definition.config.insert("pause_until".to_owned(), json!(until));
        }
        let created = again::create_consumer(self, &stream, &definition).await?;
        // If the domain was paused or resumed meanwhile, whoever did so may not have seen the new lane. Its circuit may be
        // open already.
        if created && self.pause_of_domain(&stream).await? != pause {
            self.correct_pause(&stream, &definition.name).await?;
        }
        Ok(created)
    }
}

fn no_room(stream: &StreamDefinition, error: NatsError) -> ProvisionError {
    match error {
        // It says nothing about the stream.
        error if error.is_unavailable() => error.into(),
        NatsError::Api { source, .. } => ProvisionError::NoRoom {
            stream: stream.name.clone(),
            asks: format!(
                "max_bytes {} with {} replica(s)",
                stream.config.get("max_bytes").unwrap_or(&Value::Null),
                stream.config.get("num_replicas").unwrap_or(&Value::Null)
            ),
            source,
        },
        other => other.into(),
    }
}

fn immutable(what: &str, error: NatsError) -> ProvisionError {
    match error {
        // It says nothing about the configuration.
        error if error.is_unavailable() => error.into(),
        NatsError::Api { source, .. } => ProvisionError::Immutable { what: what.to_owned(), source },
        other => other.into(),
    }
}

/// Parses a version such as `2.15.1` or `2.12.9-RC.1`; a part that is not a number counts as 0.
pub fn version(text: &str) -> (u64, u64, u64) {
    let core = text.trim_start_matches('v').split(['-', '+']).next().unwrap_or_default();
    let mut numbers = core.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}
