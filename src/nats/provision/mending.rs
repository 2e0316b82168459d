//! Records settings and registry again that are missing or damaged.
//!
//! The server has no conditional update of a stream, and an update writes the whole configuration. So an update is decided
//! again just before it, with the configuration that it begins with, and what is there is read again afterwards.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{ProvisionError, Provisioned, apply_stream, wanted};
use crate::domain::agreement::AgreementDecision;
use crate::domain::shared_settings::{RecordedBy, SharedSettings};
use crate::nats::agreement::{Looked, REGISTRY, metadata, record_fields, recorded_settings};
use crate::nats::connection::JetStream;
use crate::nats::definitions::StreamParameters;
use crate::nats::error::NatsError;
use crate::nats::stream_api::StreamInfo;

/// Looks of one mending: the events stream and the bucket, each once more if another process changes it, and the result.
const MOST_LOOKS: usize = 5;
/// How long `hub provision` waits for an update of a process that has read a stream before it recorded its settings.
const OTHERS_UPDATE: Duration = Duration::from_millis(400);
const MOST_CONFIRMATIONS: usize = 5;

/// One update of the metadata of a stream.
struct Mending {
    stream: String,
    /// What it was decided with.
    created: String,
    config: Map<String, Value>,
    fields: Vec<(&'static str, String)>,
}

/// Records again what a process at work finds missing or damaged. True if it has written something.
pub async fn record_again(js: &JetStream, settings: &SharedSettings) -> Result<bool, NatsError> {
    let mut wrote = false;
    for _ in 0..MOST_LOOKS {
        let Some(mending) = decide(js, settings, &js.look().await?) else { break };
        wrote |= write(js, &mending).await?;
    }
    Ok(wrote)
}

/// The next update that follows from a look; `None` if nothing is damaged, or this process cannot know it.
fn decide(js: &JetStream, settings: &SharedSettings, looked: &Looked) -> Option<Mending> {
    let AgreementDecision { write_settings, write_id, write_bucket, .. } = &looked.decision;
    let [own_settings, own_id] =
        record_fields(settings, js.recorded_by(), write_id.as_deref().unwrap_or_default());
    let mut fields = Vec::new();
    fields.extend(write_settings.then_some(own_settings));
    fields.extend(write_id.is_some().then_some(own_id));
    let mending = |stream: String, info: &StreamInfo, fields| Mending {
        stream,
        created: info.created.clone(),
        config: info.config.clone(),
        fields,
    };
    let names = js.names();
    match (&looked.records.events, &looked.records.bucket, write_bucket) {
        (Some(events), _, _) if !fields.is_empty() => Some(mending(names.events_stream(), events, fields)),
        (_, Some(bucket), Some(id)) => {
            Some(mending(names.subscriptions_stream(), bucket, vec![(REGISTRY, id.clone())]))
        }
        _ => None,
    }
}

/// Writes an update, unless the stream has changed since the decision. False if it has.
async fn write(js: &JetStream, mending: &Mending) -> Result<bool, NatsError> {
    let now = js.stream_info(&mending.stream).await?;
    if now.created != mending.created || now.config != mending.config {
        return Ok(false);
    }
    js.set_metadata(&mending.stream, &now, &mending.fields).await?;
    Ok(true)
}

/// Waits until what `hub provision` has recorded in the place of a damaged or missing record stays. A process at work may
/// have begun to mend that record before, and then writes the previous settings, and the previous limits of the stream.
pub(super) async fn keep_recorded(
    js: &JetStream,
    parameters: &StreamParameters,
    settings: &SharedSettings,
    id: &str,
) -> Result<(), ProvisionError> {
    let name = js.names().events_stream();
    let Some(definition) = wanted(js, parameters).into_iter().find(|stream| stream.name == name) else {
        return Ok(());
    };
    for _ in 0..MOST_CONFIRMATIONS {
        tokio::time::sleep(OTHERS_UPDATE).await;
        let mut done = Provisioned::default();
        apply_stream(js, &definition, true, &mut done).await?;
        let events = js.stream_info(&name).await?;
        let stays = recorded_settings(&events)
            .is_ok_and(|there| there.is_some_and(|there| settings.differences(&there.settings).is_empty()));
        if stays && metadata(&events, REGISTRY) == Some(id) && done.changed.is_empty() {
            return Ok(());
        }
        js.record(settings, RecordedBy::Provision, id).await?;
    }
    Ok(())
}
