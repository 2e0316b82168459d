//! Bodies: bounded each and together, and read at a least rate; JSON with an error that names the field.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::BytesMut;
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::State;
use super::problem::{Kind, Problem};
use super::shares::{Holder, Share, Shares, What};
use crate::settings::Settings;

/// Largest body of all but an event.
pub(super) const BODY_LIMIT: usize = 1024 * 1024;
/// Bodies in memory at once, in bytes; more where that were not two of the largest batches.
const BODIES: usize = 64 * 1024 * 1024;
/// How long a body waits for room among the others.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(5);
/// A body has this long to begin, and beyond it as long as its bytes take at the least rate.
const FIRST_BYTES: Duration = Duration::from_secs(5);
/// Bytes a second.
const LEAST_RATE: f64 = 32.0 * 1024.0;
/// Of a body that is too large so much is read and thrown away: whoever is still sending would otherwise
/// find the connection broken, and not read why (RFC 9112 section 9.6).
const THROWN_AWAY: usize = 8 * 1024 * 1024;

/// How large a body may be, and what is said of a larger one.
pub(super) struct Limit {
    pub(super) bytes: usize,
    pub(super) too_large: String,
}

impl Limit {
    pub(super) fn of_all_others() -> Self {
        Self {
            bytes: BODY_LIMIT,
            too_large: format!("the body is larger than the {BODY_LIMIT} bytes that this takes"),
        }
    }
}

/// The memory of all bodies.
#[derive(Clone)]
pub(super) struct Bodies {
    /// In KiB.
    room: Arc<Semaphore>,
    shares: Shares,
    /// Of one holder, in bytes.
    per_holder: usize,
}

/// A body's part of it.
pub(super) struct Room {
    permit: OwnedSemaphorePermit,
    share: Share,
    kib: usize,
}

impl Bodies {
    pub(super) fn new(settings: &Settings, shares: Shares) -> Self {
        let total = BODIES.max(2 * super::events::largest_batch(settings));
        Self { room: Arc::new(Semaphore::new(total / 1024 + 1)), shares, per_holder: total / 2 }
    }
}

impl Room {
    /// Room for so many bytes in all, which is waited for.
    async fn grow_to(&mut self, bodies: &Bodies, bytes: usize) -> Result<(), Problem> {
        let more = (bytes / 1024 + 1).saturating_sub(self.kib);
        if more == 0 {
            return Ok(());
        }
        if !self.share.grow(more * 1024, bodies.per_holder) {
            return Err(Problem::too_many(
                1,
                format!("this caller has {} bytes of bodies in hand; send fewer at once", bodies.per_holder),
            ));
        }
        let room = bodies.room.clone().acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX));
        match tokio::time::timeout(WAIT_FOR_ROOM, room).await {
            Ok(permit) => self.permit.merge(permit.expect("the semaphore is never closed")),
            Err(_) => {
                return Err(Problem::later(1, "the API has as many events in hand as it takes; try again"));
            }
        }
        self.kib += more;
        Ok(())
    }
}

/// Reads a body. Room is taken as its bytes come: a body that is only announced holds none.
pub(super) async fn read(
    bodies: &Bodies,
    holder: Holder,
    headers: &HeaderMap,
    body: Body,
    limit: Limit,
) -> Result<(Bytes, Room), Problem> {
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    // Of one that is too large from the start nothing is kept.
    let kept = if declared.is_some_and(|size| size > limit.bytes) { 0 } else { limit.bytes };
    let share = bodies.shares.take(holder, What::BodyBytes, 0, 0).expect("nothing is within any limit");
    let permit = bodies.room.clone().try_acquire_many_owned(0);
    let permit = permit.expect("none are there always, and the semaphore is never closed");
    let mut room = Room { permit, share, kib: 0 };
    let mut chunks = body.into_data_stream();
    let mut read = BytesMut::new();
    let mut size = 0usize;
    let mut begun = Instant::now();
    loop {
        let time = FIRST_BYTES + Duration::from_secs_f64(size as f64 / LEAST_RATE);
        let Ok(chunk) = tokio::time::timeout_at(begun + time, chunks.next()).await else {
            return Err(Problem::new(
                Kind::TooSlow,
                format!("{size} bytes of the body came in {} s; send it faster", begun.elapsed().as_secs()),
            )
            .closing());
        };
        let Some(chunk) = chunk else { break };
        let chunk =
            chunk.map_err(|error| Problem::field("body", format!("cannot be read to its end: {error}")))?;
        size = size.saturating_add(chunk.len());
        if size <= kept {
            let waited = Instant::now();
            room.grow_to(bodies, size).await.map_err(Problem::closing)?;
            // The wait was not the sender's.
            begun += waited.elapsed();
            read.extend_from_slice(&chunk);
        } else if size > limit.bytes.saturating_add(THROWN_AWAY) {
            break;
        }
    }
    if size > kept {
        return Err(Problem::new(Kind::TooLarge, limit.too_large));
    }
    Ok((read.freeze(), room))
}

/// A JSON body that must be there.
pub struct JsonBody(pub Value);

/// A JSON body that may be missing or null: then the value is `T`'s default.
pub struct MaybeJson<T>(pub T);

impl FromRequest<State> for JsonBody {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &State) -> Result<Self, Problem> {
        require_json(request.headers())?;
        let bytes = Bytes::from_request(request, state).await?;
        parse(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned + Default> FromRequest<State> for MaybeJson<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &State) -> Result<Self, Problem> {
        if request.headers().contains_key(header::CONTENT_TYPE) {
            require_json(request.headers())?;
        }
        let bytes = Bytes::from_request(request, state).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        match parse(&bytes)? {
            Value::Null => Ok(Self(T::default())),
            value => typed(value).map(Self),
        }
    }
}

/// Reads a type from a JSON object; what does not fit is named by its path.
pub fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    // Serde would read a struct from a list too.
    if !value.is_object() {
        return Err(Problem::field("body", "must be an object"));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        Problem::field(if path == "." { "body" } else { &path }, error.into_inner().to_string())
    })
}

fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media == "application/json" || media.ends_with("+json") {
        Ok(())
    } else {
        Err(Problem::new(Kind::UnsupportedMediaType, "send JSON, with `content-type: application/json`"))
    }
}

fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(bytes).map_err(|error| Problem::field("body", format!("is not JSON: {error}")))
}
