//! `/v1/events`: publishes CloudEvents over HTTP (HTTP protocol binding 1.0.2), and traces events.

mod http_binding;
mod schema;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State as FromState;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::http_binding::BindingMode;
use self::schema::CloudEvent;
use super::State;
use super::access::Publisher;
use super::admission::REQUEST_TIMEOUT;
use super::body;
use super::limits::Holder;
use super::openapi::{BodyProblems, CommonProblems};
use super::problem::Problem;
use crate::api::json::Json;
use crate::domain::access::Caller;
use crate::domain::backlog::size;
use crate::domain::field_error::FieldError;
use crate::management::ManagementError;
use crate::management::publishing::{Batch, BatchTime, CheckedEvent, Published, RawEvent, Stopped};
use crate::settings::{Quota, Settings};

/// Maximum number of events in a batch.
const MOST_EVENTS: usize = 1_000;
/// Events of all requests that wait at once. The server buffers 10,000 for one stream and refuses more.
const PUBLISHES: usize = 1_024;
/// Bytes by which a body may exceed the event limit and is still read, so that the error can name its size.
const HEADROOM: usize = 64 * 1024;
/// Maximum size of a batch, in events of maximum size.
const BATCH_FACTOR: usize = 8;
/// A tenant's burst of events, in seconds of its rate.
const BURST_SECONDS: usize = 10;
/// Time in which events of a batch are begun, and time for the last one: less than that of a request.
const BATCH_TIME: Duration = Duration::from_secs(REQUEST_TIMEOUT.as_secs() - 12);
const LAST_EVENT: Duration = Duration::from_secs(7);
/// Concurrent traces: each reads all streams.
const TRACES: usize = 4;

/// The limits of publishing and tracing.
#[derive(Clone)]
pub(super) struct EventLimits {
    /// Maximum size of one event's body, in bytes.
    one: usize,
    /// Maximum size of a batch's body, in bytes.
    batch: usize,
    publishes: Arc<Semaphore>,
    traces: Arc<Semaphore>,
}

impl EventLimits {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            one: largest_event(settings) + HEADROOM,
            batch: largest_batch(settings),
            publishes: Arc::new(Semaphore::new(PUBLISHES)),
            traces: Arc::new(Semaphore::new(TRACES)),
        }
    }
}

impl EventLimits {
    /// The maximum size of a body to publish.
    pub(super) fn body_limit(&self, headers: &HeaderMap) -> body::BodyLimit {
        let batch = BindingMode::of(headers).is_ok_and(|mode| mode == BindingMode::Batch);
        let bytes = if batch { self.batch } else { self.one };
        let too_large = format!(
            "the body is larger than {}; publish a reference to large data instead",
            size::exact(bytes as u64)
        );
        body::BodyLimit { bytes, too_large }
    }
}

fn largest_event(settings: &Settings) -> usize {
    // Above the largest message that a NATS server can accept with any settings.
    const MOST: usize = 64 * 1024 * 1024;
    usize::try_from(settings.events.max_size.as_u64()).unwrap_or(MOST).min(MOST)
}

/// The maximum size of a batch's body, in bytes.
pub(super) fn largest_batch(settings: &Settings) -> usize {
    largest_event(settings) * BATCH_FACTOR + HEADROOM
}

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(publish)).merge(trace::routes())
}

/// The events that the events stream acknowledged.
#[derive(Debug, Serialize, ToSchema)]
struct Accepted {
    /// Events in the order of the batch
    events: Vec<Published>,
}

/// Publish one event or a batch (scope `publish`)
///
/// CloudEvents over HTTP: structured, as a batch, or binary (attributes in `ce-` headers, any content type, the data as the
/// body). `type` is the event key. The answer is sent when the events stream has acknowledged every event. An event with a
/// known source and id is not stored twice, so after a 5xx or without an answer, send the same request again. If one event
/// of a batch is invalid (400, 413), no event of the batch is published. The events of a batch are stored in its order, one
/// after another. After one that is not stored, or 48 s (503), the remaining ones are not tried, and the error names them:
/// send the same batch again, before later events. A token that is bound to a tenant can only publish events of that tenant.
#[utoipa::path(post, path = "/v1/events", tag = "events",
    request_body(content(
        (CloudEvent = "application/cloudevents+json"),
        (Vec<CloudEvent> = "application/cloudevents-batch+json"),
        (serde_json::Value = "application/json")),
        description = "An event; a batch of up to 1,000 events; or, with `ce-` headers, the data of an event"),
    params(
        ("ce-specversion" = Option<String>, Header, description = "Binary mode: `1.0`"),
        ("ce-id" = Option<String>, Header, description = "Binary mode: id"),
        ("ce-source" = Option<String>, Header, description = "Binary mode: source"),
        ("ce-type" = Option<String>, Header, description = "Binary mode: event key, such as `user.created`"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context, used if the event has none")),
    responses((status = 202, description = "All events are stored", body = Accepted), CommonProblems, BodyProblems))]
async fn publish(
    FromState(state): FromState<State>,
    Publisher(caller): Publisher,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let arrived = Instant::now();
    let mode = BindingMode::of(&headers)?;
    let headers = http_binding::headers(mode, &headers)?;
    let management = &state.management;
    let texts = if mode == BindingMode::Batch { Some(http_binding::batch(&body)?) } else { None };
    within_quota(&state, &caller, texts.as_ref().map_or(1, Vec::len))?;
    let events = if let Some(texts) = texts {
        let mut checked = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let form =
                RawEvent { key: None, headers: headers.clone(), body: body.slice_ref(text.get().as_bytes()) };
            let event = management.check_publication(form, caller.tenant());
            checked.push(event.map_err(|error| of_batch(index, error))?);
        }
        publish_all(&state, checked, arrived).await?
    } else {
        let form = RawEvent { key: None, headers, body };
        let event = management.check_publication(form, caller.tenant())?;
        vec![publish_one(&state, &event).await?]
    };
    Ok((StatusCode::ACCEPTED, Json(Accepted { events })).into_response())
}

/// Applies the rate limit of the caller's tenant.
fn within_quota(state: &State, caller: &Caller, events: usize) -> Result<(), Problem> {
    let Some(tenant) = caller.tenant() else { return Ok(()) };
    let Quota { limit, setting } = state.management.settings().event_quota(tenant);
    let burst = limit.saturating_mul(BURST_SECONDS);
    let taken = state.published.take(Holder::Tenant(tenant.to_owned()), events, limit, burst);
    taken.map_err(|wait| {
        let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
        let text = format!(
            "the tenant {tenant:?} exceeds its limit of {limit} events per second ({setting}); try again in {seconds} s"
        );
        Problem::too_many(seconds, text)
    })
}

async fn publish_one(state: &State, event: &CheckedEvent<'_>) -> Result<Published, ManagementError> {
    let _permit = state.event_limits.publishes.acquire().await.expect("the semaphore is never closed");
    state.management.publish_checked(event).await
}

/// The problem of one event of a batch, which is not published.
fn of_batch(index: usize, error: ManagementError) -> Problem {
    let within = |field: &str| format!("[{index}].{field}");
    match error {
        ManagementError::Invalid(errors) => Problem::fields(
            errors.into_iter().map(|error| FieldError::new(within(&error.field), error.problem)).collect(),
        ),
        ManagementError::EventRejected(rejection) => Problem::field(&format!("[{index}]"), rejection.detail),
        other => Problem::from(other)
            .with_fields(vec![FieldError::new(format!("[{index}]"), "no event of the batch was published")]),
    }
}

/// Publishes a batch in its order. After an event that is not stored, the remaining ones are not tried. A batch that takes
/// too long stops before the request times out, so that the answer says what is stored.
async fn publish_all(
    state: &State,
    events: Vec<CheckedEvent<'_>>,
    arrived: Instant,
) -> Result<Vec<Published>, Problem> {
    let time = BatchTime { last_start: arrived + BATCH_TIME, end: arrived + BATCH_TIME + LAST_EVENT };
    // One for the whole batch, which publishes one event after another.
    let permit = timeout_at(time.last_start, state.event_limits.publishes.acquire()).await;
    let Batch { published, stopped } = match permit {
        Ok(_permit) => state.management.publish_batch(&events, time).await,
        Err(_) => Batch { published: Vec::new(), stopped: Some(Stopped::OutOfTime { tried: false }) },
    };
    match stopped {
        None => Ok(published),
        Some(stopped) => Err(partly_published(stopped, published.len(), events.len())),
    }
}

/// The problem of a batch of which `stored` events are stored.
fn partly_published(stopped: Stopped, stored: usize, total: usize) -> Problem {
    let (problem, tried) = match stopped {
        Stopped::Failed(error) => (Problem::from(error), true),
        Stopped::OutOfTime { tried } => {
            let text = format!("the batch was not stored within {} s", BATCH_TIME.as_secs());
            (Problem::later(1, text), tried)
        }
    };
    let name = |index| format!("[{index}]");
    let first = if tried {
        format!("was perhaps not stored: {}", problem.detail())
    } else {
        format!("was not tried: {}", problem.detail())
    };
    let not_tried =
        |index| FieldError::new(name(index), "was not tried, because an event before it was not stored");
    let first = FieldError::new(name(stored), first);
    let missing = std::iter::once(first).chain((stored + 1..total).map(not_tried)).collect();
    let remedy = if problem.status().is_client_error() {
        format!("remove or change the event [{stored}], and send the batch again")
    } else {
        "send the same batch again".to_owned()
    };
    let detail = format!(
        "{}. {stored} of {total} events are stored, `errors` names the others; {remedy}, stored events are not stored twice",
        problem.detail()
    );
    problem.with_detail(detail).with_fields(missing)
}
