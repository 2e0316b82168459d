//! Reads request bodies, with a limit for each body and for all bodies, and a minimum rate. Parses JSON with errors that
//! name the field.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use bytes::BytesMut;
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::State;
use super::limits::{Holder, Resource, Usage, UsageGuard};
use super::problem::{Problem, ProblemKind};
use crate::domain::backlog::size;
use crate::domain::strict_json::{self, StrictJsonError};
use crate::settings::Settings;

/// Maximum size of a body that is not an event, in bytes.
pub(super) const BODY_LIMIT: usize = 1024 * 1024;
/// Memory for all bodies together, in bytes; at least two of the largest batches.
const BODIES: usize = 64 * 1024 * 1024;
/// Maximum wait of a body for memory.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a body has in addition to the time its bytes need at the minimum rate.
const FIRST_BYTES: Duration = Duration::from_secs(5);
/// Minimum rate, in bytes per second.
const LEAST_RATE: f64 = 32.0 * 1024.0;
/// Bytes above the limit that are read and discarded. A client that is still sending would otherwise see a broken
/// connection instead of the answer (RFC 9112 section 9.6).
const DISCARD_LIMIT: usize = 8 * 1024 * 1024;

/// The maximum size of a body, and the error of a larger one.
pub(super) struct BodyLimit {
    pub(super) bytes: usize,
    pub(super) too_large: String,
}

impl Default for BodyLimit {
    fn default() -> Self {
        Self {
            bytes: BODY_LIMIT,
            too_large: format!(
                "the body is larger than {}; send a smaller one",
                size::exact(BODY_LIMIT as u64)
            ),
        }
    }
}

/// The memory for all bodies.
#[derive(Clone)]
pub(super) struct BodyMemory {
    /// Free memory, in KiB.
    free: Arc<Semaphore>,
    usage: Usage,
    /// Limit of one holder, in bytes.
    per_holder: usize,
}

/// The memory that one body holds.
pub(super) struct BodyReservation {
    permit: OwnedSemaphorePermit,
    usage: UsageGuard,
    kib: usize,
}

impl BodyMemory {
    pub(super) fn new(settings: &Settings, usage: Usage) -> Self {
        let total = BODIES.max(2 * super::events::largest_batch(settings));
        Self { free: Arc::new(Semaphore::new(total / 1024 + 1)), usage, per_holder: total / 2 }
    }
}

impl BodyReservation {
    /// Reserves memory up to `bytes` in total; waits if necessary.
    async fn grow_to(&mut self, memory: &BodyMemory, bytes: usize) -> Result<(), Problem> {
        let more = (bytes / 1024 + 1).saturating_sub(self.kib);
        if more == 0 {
            return Ok(());
        }
        if !self.usage.grow(more * 1024, memory.per_holder) {
            return Err(Problem::too_many(
                1,
                format!(
                    "the bodies of this caller's requests in progress exceed {}; send fewer at once",
                    size::exact(memory.per_holder as u64)
                ),
            ));
        }
        let permit = memory.free.clone().acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX));
        match tokio::time::timeout(MEMORY_TIMEOUT, permit).await {
            Ok(permit) => self.permit.merge(permit.expect("the semaphore is never closed")),
            Err(_) => {
                return Err(Problem::later(1, "the memory for request bodies is full; try again later"));
            }
        }
        self.kib += more;
        Ok(())
    }
}

/// Reads a body. Memory is reserved as bytes arrive: a body that is only announced holds none.
pub(super) async fn read(
    memory: &BodyMemory,
    holder: Holder,
    headers: &HeaderMap,
    body: Body,
    limit: BodyLimit,
) -> Result<(Bytes, BodyReservation), Problem> {
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    // The client waits for the answer before it sends the body (RFC 9110 section 10.1.1); reading would ask for it.
    if declared.is_some_and(|size| size > limit.bytes) && expects_continue(headers) {
        return Err(Problem::new(ProblemKind::TooLarge, limit.too_large).closing());
    }
    // A body that is declared too large is not kept.
    let kept = if declared.is_some_and(|size| size > limit.bytes) { 0 } else { limit.bytes };
    let usage = memory.usage.take(holder, Resource::BodyBytes, 0, 0).expect("0 bytes exceed no limit");
    let permit = memory.free.clone().try_acquire_many_owned(0);
    let permit = permit.expect("0 permits are always free, and the semaphore is never closed");
    let mut reservation = BodyReservation { permit, usage, kib: 0 };
    let mut chunks = body.into_data_stream();
    let mut read = BytesMut::new();
    let mut size = 0usize;
    let mut begun = Instant::now();
    loop {
        let time = FIRST_BYTES + Duration::from_secs_f64(size as f64 / LEAST_RATE);
        let Ok(chunk) = tokio::time::timeout_at(begun + time, chunks.next()).await else {
            return Err(Problem::new(
                ProblemKind::TooSlow,
                format!(
                    "received only {} of the body in {} s; send it faster",
                    size::shown(size as u64),
                    begun.elapsed().as_secs()
                ),
            )
            .closing());
        };
        let Some(chunk) = chunk else { break };
        let chunk =
            chunk.map_err(|error| Problem::field("body", format!("broke off: {error}; send it again")))?;
        size = size.saturating_add(chunk.len());
        if size <= kept {
            let waited = Instant::now();
            reservation.grow_to(memory, size).await.map_err(Problem::closing)?;
            // The sender did not cause the wait.
            begun += waited.elapsed();
            read.extend_from_slice(&chunk);
        } else if size > limit.bytes.saturating_add(DISCARD_LIMIT) {
            break;
        }
    }
    if size > kept {
        return Err(Problem::new(ProblemKind::TooLarge, limit.too_large));
    }
    Ok((read.freeze(), reservation))
}

/// True if the client sends the body after an interim answer only.
fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Reads and drops the body of a request that has a problem already, so that the client reads the answer.
pub(super) async fn discard(
    memory: &BodyMemory,
    holder: Holder,
    headers: &HeaderMap,
    body: Body,
    problem: Problem,
) -> Problem {
    if body.is_end_stream() {
        return problem;
    }
    if expects_continue(headers) {
        return problem.closing();
    }
    let limit = BodyLimit { bytes: 0, ..BodyLimit::default() };
    match read(memory, holder, headers, body, limit).await {
        Err(error) if error.is_closing() => problem.closing(),
        _ => problem,
    }
}

/// Refuses a body with a content coding, because the hub decodes none.
pub(super) fn require_no_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let is_identity = |value: &HeaderValue| {
        value.to_str().is_ok_and(|text| {
            text.split(',')
                .map(str::trim)
                .all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case("identity"))
        })
    };
    if headers.get_all(header::CONTENT_ENCODING).iter().all(is_identity) {
        return Ok(());
    }
    Err(Problem::header(
        ProblemKind::UnsupportedMediaType,
        "content-encoding",
        "encoded bodies are not supported; send the body without content-encoding",
    ))
}

/// A required JSON body.
pub(crate) struct JsonBody(pub Value);

/// An optional JSON body; if it is missing or null, the value is `T`'s default.
pub(crate) struct MaybeJson<T>(pub T);

impl FromRequest<State> for JsonBody {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &State) -> Result<Self, Problem> {
        require_json(request.method(), request.headers())?;
        let bytes = Bytes::from_request(request, state).await?;
        parse(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned + Default> FromRequest<State> for MaybeJson<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &State) -> Result<Self, Problem> {
        if request.headers().contains_key(header::CONTENT_TYPE) {
            require_json(request.method(), request.headers())?;
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

/// Deserializes a JSON object; the error names the path of the field.
pub(crate) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    // Serde also accepts a list for a struct.
    if !value.is_object() {
        return Err(Problem::field("body", "must be a JSON object"));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        Problem::field(if path == "." { "body" } else { &path }, error.into_inner().to_string())
    })
}

/// Checks the content type: JSON, and for `PATCH` also a JSON Merge Patch. Other formats of JSON have another meaning.
fn require_json(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let value = values.next().and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_patch = method == Method::PATCH;
    let fits = media == "application/json" || (is_patch && media == "application/merge-patch+json");
    if fits && values.next().is_none() {
        return Ok(());
    }
    let problem = if is_patch {
        "must be application/merge-patch+json or application/json; send a JSON Merge Patch with this header"
    } else {
        "must be application/json; send the body as JSON with this header"
    };
    Err(Problem::header(ProblemKind::UnsupportedMediaType, "content-type", problem))
}

/// Parses a body strictly.
fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    strict_json::parse(bytes).map_err(|error| match error {
        StrictJsonError::Duplicate { path } => Problem::field(&path, "occurs twice; remove one of the two"),
        StrictJsonError::Syntax(error) => Problem::field("body", format!("is not JSON: {error}")),
    })
}
