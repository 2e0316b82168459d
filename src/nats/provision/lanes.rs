//! The durables of lanes of single subscriptions, which exist only while they are needed: provisioning corrects those that
//! exist, and creates none.

use super::compare::compare;
use super::desired::desired;
use super::{Drift, ProvisionError, Provisioned, correct_consumer};
use crate::nats::connection::JetStream;
use crate::nats::definitions::{self, ConsumerDefinition, StreamParameters};
use crate::nats::error::NatsError;
use crate::nats::stream_api::ConsumerInfo;
use crate::nats::subjects::{SHARED_LANE, is_lane, lane_of_consumer};

/// Corrects all of them.
pub(super) async fn correct_lanes(
    js: &JetStream,
    parameters: &StreamParameters,
    done: &mut Provisioned,
) -> Result<(), ProvisionError> {
    for domain in &parameters.domains {
        let stream = js.names().outbox_stream(domain);
        for (lane, info) in lanes(js, parameters, domain, &stream).await? {
            match correct_consumer(js, &stream, &lane, info, done).await {
                // It was removed meanwhile.
                Err(ProvisionError::Nats(error)) if error.is_not_found() => {}
                corrected => corrected?,
            }
        }
    }
    Ok(())
}

/// Their differences from the definitions; none of a stream that does not exist.
pub(super) async fn drifts_of_lanes(
    js: &JetStream,
    parameters: &StreamParameters,
    domain: &str,
) -> Result<Vec<Drift>, NatsError> {
    let stream = js.names().outbox_stream(domain);
    let lanes = match lanes(js, parameters, domain, &stream).await {
        Err(error) if error.is_not_found() => Vec::new(),
        lanes => lanes?,
    };
    let of_lane = |(lane, info): (ConsumerDefinition, ConsumerInfo)| {
        let what = format!("consumer {stream}/{}", lane.name);
        compare(&what, &desired(&lane.config, &info.config), &info.config, None)
    };
    Ok(lanes.into_iter().flat_map(of_lane).collect())
}

async fn lanes(
    js: &JetStream,
    parameters: &StreamParameters,
    domain: &str,
    stream: &str,
) -> Result<Vec<(ConsumerDefinition, ConsumerInfo)>, NatsError> {
    let mut found = Vec::new();
    for consumer in js.consumer_names(stream).await? {
        let lane = lane_of_consumer(&consumer).filter(|lane| *lane != SHARED_LANE && is_lane(lane));
        let Some(lane) = lane else { continue };
        match js.consumer_info(stream, &consumer).await {
            Ok(info) => found.push((definitions::lane(parameters, domain, lane), info)),
            // It was removed meanwhile.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
