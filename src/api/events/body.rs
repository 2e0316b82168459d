//! Bodies of events: bounded each, and bounded together.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use bytes::BytesMut;
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::problem::{Kind, Problem};

/// How long a body waits for room among the others.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(5);
/// Of a body that is too large so much is read and thrown away: whoever is still sending would otherwise
/// find the connection broken, and not read why (RFC 9112 section 9.6).
const THROWN_AWAY: usize = 8 * 1024 * 1024;

/// Reads a body of at most `limit` bytes; the permit is its room among all bodies, of which the
/// semaphore counts the KiB.
pub(super) async fn read(
    bodies: &std::sync::Arc<Semaphore>,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<(Bytes, OwnedSemaphorePermit), Problem> {
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    // Of one that is too large from the start nothing is kept.
    let kept = declared.map_or(limit, |size| if size > limit { 0 } else { size });
    let room = u32::try_from(kept / 1024 + 1).unwrap_or(u32::MAX);
    let permit = match tokio::time::timeout(WAIT_FOR_ROOM, bodies.clone().acquire_many_owned(room)).await {
        Ok(permit) => permit.expect("the semaphore is never closed"),
        Err(_) => return Err(Problem::later(1, "the API has as many events in hand as it takes; try again")),
    };
    let mut chunks = body.into_data_stream();
    let mut read = BytesMut::with_capacity(kept.min(declared.unwrap_or_default()));
    let mut size = 0usize;
    while let Some(chunk) = chunks.next().await {
        let chunk =
            chunk.map_err(|error| Problem::field("body", format!("cannot be read to its end: {error}")))?;
        size = size.saturating_add(chunk.len());
        if size <= kept {
            read.extend_from_slice(&chunk);
        } else if size > limit.saturating_add(THROWN_AWAY) {
            break;
        }
    }
    if size > kept {
        return Err(Problem::new(
            Kind::TooLarge,
            format!(
                "the body is larger than the {limit} bytes that this takes; publish a reference to large data instead"
            ),
        ));
    }
    Ok((read.freeze(), permit))
}
