//! Joining a hub: a process or `hub provision` creates what is missing, if the registry is the recorded one and the
//! settings agree with the recorded ones.

use std::time::Duration;

use super::lanes::correct_lanes;
use super::mending::keep_recorded;
use super::{ProvisionError, Provisioned, again, apply_wanted, check_server, wanted};
use crate::domain::agreement::{KnownRegistry, RegistryState};
use crate::domain::shared_settings::{Difference, RecordedBy, RecordedSettings, SharedSettings};
use crate::nats::agreement::{
    ACCEPTED, REGISTRY, loss, metadata, put_metadata, record_fields, recorded_settings,
};
use crate::nats::connection::JetStream;
use crate::nats::definitions::StreamParameters;
use crate::nats::error::NatsError;
use crate::nats::stream_api::StreamInfo;
use crate::nats::subjects::{SHARED_LANE, SubjectNames, lane_consumer};

/// How often and how long apart the consumers are looked at before they count as unread.
const LOOKS: usize = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(400);
/// Tries of processes that create the same streams at once.
const MOST_TRIES: usize = 20;
/// Tries of `hub provision` to replace settings that a process records at the same moment.
const MOST_REPLACEMENTS: usize = 3;
/// How long provisioning waits for the processes with the previous settings to stop taking work.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// Most domains whose consumers are looked at.
const MOST_DOMAINS: usize = 64;

/// Who joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joining {
    /// A process at its start.
    Serve,
    /// `hub provision`: its settings replace the recorded ones. `create_registry` accepts that the registry is gone.
    Provision { create_registry: bool },
}

/// What `hub provision --check` finds beside differences of streams and consumers.
#[derive(Debug)]
pub struct Joinable {
    pub differences: Vec<Difference>,
    /// Why the recorded settings cannot be compared.
    pub unreadable: Option<NatsError>,
    /// Why the registry cannot be used.
    pub registry: Option<NatsError>,
}

/// Provisions, and records the settings and the registry.
pub async fn join(
    js: &JetStream,
    parameters: &StreamParameters,
    settings: &SharedSettings,
    joining: Joining,
) -> Result<Provisioned, ProvisionError> {
    let mut tries = 1;
    loop {
        match join_once(js, parameters, settings, joining).await {
            // Another process starts at the same time. Each try finds at least one stream more.
            Err(ProvisionError::CreatedMeanwhile { .. }) if tries < MOST_TRIES => tries += 1,
            // A process that knows the previous settings has recorded them again, because the record was damaged.
            Err(ProvisionError::SettingsDiffer { .. })
                if joining != Joining::Serve && tries < MOST_REPLACEMENTS =>
            {
                tries += 1;
            }
            done => return done,
        }
    }
}

async fn join_once(
    js: &JetStream,
    parameters: &StreamParameters,
    settings: &SharedSettings,
    joining: Joining,
) -> Result<Provisioned, ProvisionError> {
    check_server(js, parameters).await?;
    let create_registry = matches!(joining, Joining::Provision { create_registry: true });
    let events = match refuse_lost_registry(js, parameters).await {
        Err(error) if error.is_registry_lost() && create_registry => {
            js.find_stream(&js.names().events_stream()).await?
        }
        events => events?,
    };
    let by = match joining {
        Joining::Serve => RecordedBy::Serve,
        Joining::Provision { .. } => RecordedBy::Provision,
    };
    let (recorded, unreadable) = match events.as_ref().map_or(Ok(None), recorded_settings) {
        Ok(recorded) => (recorded, None),
        // A process at work mends it, or an operator decides.
        Err(source) if joining == Joining::Serve => {
            return Err(NatsError::SettingsUnreadable { source }.into());
        }
        Err(unreadable) => (None, Some(unreadable)),
    };
    let differences =
        recorded.as_ref().map(|recorded| settings.differences(&recorded.settings)).unwrap_or_default();
    let mut previous = None;
    if let Some(recorded) = &recorded
        && !differences.is_empty()
    {
        if joining == Joining::Serve
            && (recorded.by == RecordedBy::Provision || is_at_work(js, recorded).await?)
        {
            let by = recorded.by;
            return Err(ProvisionError::SettingsDiffer { differences, by });
        }
        // Before anything is changed, so that the processes with the previous settings stop taking work. The id stays, also a
        // damaged one.
        let id = match events.as_ref().and_then(|events| metadata(events, REGISTRY)) {
            Some(id) => id.to_owned(),
            None => {
                if create_registry {
                    create_registry_bucket(js, parameters).await?;
                }
                register(js, parameters, create_registry).await?
            }
        };
        js.record(settings, by, &id).await?;
        previous = Some(recorded);
    }
    let work = async {
        if let Some(previous) = previous
            && joining != Joining::Serve
        {
            until_idle(js, previous).await?;
        }
        let lost = if events.is_some() { restore_other_buckets(js, parameters).await? } else { Vec::new() };
        let mut done = complete(js, parameters, settings, joining, by, recorded.as_ref()).await?;
        // A lane of a single subscription follows changed settings, and `hub provision` corrects it like the others.
        if previous.is_some() || joining != Joining::Serve {
            correct_lanes(js, parameters, &mut done).await?;
        }
        if let Some(previous) = previous {
            done.left_behind = left_behind(js, &previous.settings, settings).await?;
        }
        done.lost = lost;
        Ok::<_, ProvisionError>(done)
    };
    match work.await {
        Ok(done) => Ok(Provisioned { replaced: differences, unreadable, ..done }),
        Err(error) => {
            if let Some(previous) = previous {
                // The processes with the previous settings go on. If this fails as well, the first error is the one to
                // show.
                let _ = record_previous(js, settings, previous).await;
            }
            Err(error)
        }
    }
}

/// Records the previous settings again, unless another process has recorded others meanwhile.
async fn record_previous(
    js: &JetStream,
    settings: &SharedSettings,
    previous: &RecordedSettings,
) -> Result<(), NatsError> {
    let Some(events) = js.find_stream(&js.names().events_stream()).await? else { return Ok(()) };
    match (recorded_settings(&events), metadata(&events, REGISTRY)) {
        (Ok(Some(there)), Some(id)) if there.settings == *settings => {
            js.record(&previous.settings, previous.by, id).await
        }
        _ => Ok(()),
    }
}

/// Fails if the registry is missing or is not the recorded one, though another part of the hub exists. Returns the events
/// stream.
pub(super) async fn refuse_lost_registry(
    js: &JetStream,
    parameters: &StreamParameters,
) -> Result<Option<StreamInfo>, NatsError> {
    let records = js.read_records(&domains(parameters)).await?;
    match js.decide(&records).registry {
        RegistryState::New => Ok(records.events),
        state => loss(&state, js.names().subscriptions_stream()).map_or(Ok(records.events), Err),
    }
}

fn domains(parameters: &StreamParameters) -> Vec<&str> {
    parameters.domains.iter().map(String::as_str).collect()
}

/// Creates and updates everything, and records what is not recorded yet.
async fn complete(
    js: &JetStream,
    parameters: &StreamParameters,
    settings: &SharedSettings,
    joining: Joining,
    by: RecordedBy,
    recorded: Option<&RecordedSettings>,
) -> Result<Provisioned, ProvisionError> {
    let create_registry = matches!(joining, Joining::Provision { create_registry: true });
    let mut streams = wanted(js, parameters);
    let mut created = Vec::new();
    // The first of several processes that start together creates the events stream, with the records in it.
    let events = streams.iter_mut().find(|stream| stream.name == js.names().events_stream());
    if recorded.is_none()
        && let Some(events) = events
        && js.find_stream(&events.name).await?.is_none()
    {
        created = create_registry_bucket(js, parameters).await?;
        let id = register(js, parameters, create_registry).await?;
        put_metadata(&mut events.config, &record_fields(settings, by, &id));
    }
    let again = again::is_established(js, parameters).await?;
    let mut done = apply_wanted(js, streams, again).await?;
    done.unchanged -= created.len().min(done.unchanged);
    done.created.splice(0..0, created);
    let id = register(js, parameters, create_registry).await?;
    // `hub provision` marks the settings as its own even if they are the same.
    let by_command = by == RecordedBy::Provision && recorded.is_none_or(|recorded| recorded.by != by);
    let events = js.stream_info(&js.names().events_stream()).await?;
    // What is unreadable is replaced: only `hub provision` comes here with it.
    match recorded_settings(&events).unwrap_or(None) {
        Some(there) if !settings.differences(&there.settings).is_empty() => {
            // Another process was first.
            let differences = settings.differences(&there.settings);
            return Err(ProvisionError::SettingsDiffer { differences, by: there.by });
        }
        Some(_) if !by_command && metadata(&events, REGISTRY) == Some(id.as_str()) => {}
        there => {
            let is_replaced = there.is_none();
            let by = if by_command { by } else { there.map_or(by, |there| there.by) };
            js.record(settings, by, &id).await?;
            if is_replaced && by == RecordedBy::Provision {
                keep_recorded(js, parameters, settings, &id).await?;
            }
        }
    }
    Ok(done)
}

/// Gives the bucket its id, and returns it. `anew`: an operator accepts it, also if it is not the registry.
async fn register(js: &JetStream, parameters: &StreamParameters, anew: bool) -> Result<String, NatsError> {
    let stream = js.names().subscriptions_stream();
    let records = js.read_records(&domains(parameters)).await?;
    let state = js.decide(&records).registry;
    let Some(bucket) = records.bucket else { return Err(NatsError::RegistryMissing { bucket: stream }) };
    let id = match (&state, loss(&state, stream.clone())) {
        (RegistryState::Present(known), _) => known.id.clone(),
        // All processes derive the same id.
        (_, Some(error)) if !anew => return Err(error),
        _ => bucket.created.clone(),
    };
    let mut fields = vec![(REGISTRY, id.clone())];
    fields.extend(anew.then(|| (ACCEPTED, bucket.created.clone())));
    js.set_metadata(&stream, &bucket, &fields).await?;
    js.know_registry(KnownRegistry { id: id.clone(), created: bucket.created });
    Ok(id)
}

/// Records the existing bucket as the registry, whatever was recorded before.
pub async fn accept_registry(js: &JetStream, parameters: &StreamParameters) -> Result<(), NatsError> {
    let id = register(js, parameters, true).await?;
    let stream = js.names().events_stream();
    let events = js.stream_info(&stream).await?;
    js.set_metadata(&stream, &events, &[(REGISTRY, id)]).await
}

/// Creates the bucket of the registry if it is missing, and returns what was created. It is not the registry before it is
/// accepted.
pub async fn create_registry_bucket(
    js: &JetStream,
    parameters: &StreamParameters,
) -> Result<Vec<String>, ProvisionError> {
    let stream = js.names().subscriptions_stream();
    let definition = wanted(js, parameters).into_iter().filter(|one| one.name == stream).collect();
    apply_wanted(js, definition, false).await.map(|done| done.created)
}

/// The buckets whose loss is reported but does not stop the hub, each with what is lost.
fn other_buckets(names: &SubjectNames) -> [(String, &'static str); 3] {
    [
        (
            names.tokens_stream(),
            "all tokens of the HTTP API are gone and grant no access; create them again with `hub token create`",
        ),
        (
            names.keys_stream(),
            "without a master key, events published again are not recognized as duplicates of earlier ones",
        ),
        (names.bulk_jobs_stream(), "the progress of bulk jobs is gone"),
    ]
}

/// Creates the buckets other than the registry that are missing while the events stream exists, and returns their names
/// with what was lost.
pub async fn restore_other_buckets(
    js: &JetStream,
    parameters: &StreamParameters,
) -> Result<Vec<(String, &'static str)>, ProvisionError> {
    let mut restored = Vec::new();
    for (stream, loss) in other_buckets(js.names()) {
        if js.find_stream(&stream).await?.is_none() {
            let definition = wanted(js, parameters).into_iter().filter(|one| one.name == stream).collect();
            apply_wanted(js, definition, false).await?;
            restored.push((stream, loss));
        }
    }
    Ok(restored)
}

/// The differences of the settings from the recorded ones, and whether the registry is usable.
pub async fn check_joining(js: &JetStream, settings: &SharedSettings) -> Result<Joinable, NatsError> {
    let records = js.read_records(&settings.domains()).await?;
    let (recorded, unreadable) = match records.events.as_ref().map_or(Ok(None), recorded_settings) {
        Ok(recorded) => (recorded, None),
        Err(source) => (None, Some(NatsError::SettingsUnreadable { source })),
    };
    let differences = recorded.map(|recorded| settings.differences(&recorded.settings)).unwrap_or_default();
    let registry = match js.decide(&records).registry {
        // Nothing is provisioned yet; that is reported as missing streams.
        RegistryState::New => None,
        state => loss(&state, js.names().subscriptions_stream()),
    };
    Ok(Joinable { differences, unreadable, registry })
}

/// The domains that are in the previous settings only and whose outboxes are not empty.
async fn left_behind(
    js: &JetStream,
    previous: &SharedSettings,
    settings: &SharedSettings,
) -> Result<Vec<(String, usize)>, NatsError> {
    let (mut left, kept) = (Vec::new(), settings.domains());
    for domain in previous.domains().into_iter().filter(|domain| !kept.contains(domain)) {
        let outbox = js.find_stream(&js.names().outbox_stream(domain)).await?;
        let envelopes = outbox.map_or(0, |outbox| outbox.state.messages);
        if envelopes > 0 {
            left.push((domain.to_owned(), usize::try_from(envelopes).unwrap_or(usize::MAX)));
        }
    }
    Ok(left)
}

/// Whether a process reads one of the consumers of the recorded domains. Requests of a process that was killed disappear
/// within a second.
async fn is_at_work(js: &JetStream, recorded: &RecordedSettings) -> Result<bool, NatsError> {
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        if is_read(js, recorded).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn is_read(js: &JetStream, recorded: &RecordedSettings) -> Result<bool, NatsError> {
    let names = js.names();
    let fixed = [
        (names.events_stream(), "event-processor".to_owned()),
        (names.advisories_stream(), "dlt-router".to_owned()),
        (names.redrive_stream(), "dlt-processor".to_owned()),
    ];
    let domains = recorded.settings.domains();
    let lanes = domains
        .iter()
        .take(MOST_DOMAINS)
        .map(|domain| (names.outbox_stream(domain), lane_consumer(SHARED_LANE)));
    for (stream, consumer) in fixed.into_iter().chain(lanes) {
        match js.consumer_info(&stream, &consumer).await {
            Ok(info) if info.num_waiting > 0 => return Ok(true),
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Waits until no process takes work, at most [`IDLE_LIMIT`]: older versions do not stop.
async fn until_idle(js: &JetStream, recorded: &RecordedSettings) -> Result<(), NatsError> {
    let deadline = tokio::time::Instant::now() + IDLE_LIMIT;
    while tokio::time::Instant::now() < deadline && is_read(js, recorded).await? {
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    Ok(())
}
