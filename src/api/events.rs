//! `/v1/events`: publishing, as CloudEvents over HTTP (HTTP protocol binding 1.0.2), and what became
//! of an event.

mod form;
mod schema;
mod trace;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Bytes;
use axum::extract::State as FromState;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use serde::Serialize;
use tokio::sync::Semaphore;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::form::Content;
use self::schema::CloudEvent;
use super::State;
use super::access::Publisher;
use super::body;
use super::openapi::{Body, Usual};
use super::problem::Problem;
use super::shares::Holder;
use crate::api::json::Json;
use crate::domain::access::Caller;
use crate::domain::field_error::FieldError;
use crate::management::ManagementError;
use crate::management::publishing::{Checked, EventForm, Published};
use crate::settings::{Quota, Settings};

/// Events of one batch.
const MOST_EVENTS: usize = 1_000;
/// Events of one batch that wait for their acknowledgement at once.
const AT_ONCE: usize = 256;
/// The same of all requests; a server buffers 10,000 for one stream and refuses more.
const PUBLISHES: usize = 1_024;
/// A body may be larger than an event by this before it is not even read: then the error can say by how much.
const HEADROOM: usize = 64 * 1024;
/// The largest batch, in the largest events that it could hold.
const BATCH_FACTOR: usize = 8;
/// A tenant's burst of events, in seconds of its rate.
const BURST_SECONDS: usize = 10;
/// Traces at once: each reads through all streams.
const TRACES: usize = 4;

/// What publishing and tracing may hold at once.
#[derive(Clone)]
pub(super) struct Bounds {
    /// Of one event's body, in bytes.
    one: usize,
    /// Of a batch's.
    batch: usize,
    publishes: Arc<Semaphore>,
    traces: Arc<Semaphore>,
}

impl Bounds {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            one: largest_event(settings) + HEADROOM,
            batch: largest_batch(settings),
            publishes: Arc::new(Semaphore::new(PUBLISHES)),
            traces: Arc::new(Semaphore::new(TRACES)),
        }
    }
}

impl Bounds {
    /// How large the body of a request to publish may be.
    pub(super) fn body_limit(&self, headers: &HeaderMap) -> body::Limit {
        let batch = Content::of(headers).is_ok_and(|content| content == Content::Batch);
        let bytes = if batch { self.batch } else { self.one };
        let too_large = format!(
            "the body is larger than the {bytes} bytes that this takes; publish a reference to large data instead"
        );
        body::Limit { bytes, too_large }
    }
}

fn largest_event(settings: &Settings) -> usize {
    // Beyond what a server could take in one message, whatever its settings.
    const MOST: usize = 64 * 1024 * 1024;
    usize::try_from(settings.events.max_size.as_u64()).unwrap_or(MOST).min(MOST)
}

/// The largest body of a batch, in bytes.
pub(super) fn largest_batch(settings: &Settings) -> usize {
    largest_event(settings) * BATCH_FACTOR + HEADROOM
}

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(publish)).merge(trace::routes())
}

/// What the events stream has acknowledged.
#[derive(Debug, Serialize, ToSchema)]
struct Accepted {
    /// In the order of the batch
    events: Vec<Published>,
}

/// Publish one event or a batch (scope `publish`)
///
/// CloudEvents over HTTP: structured, as a batch, or binary (attributes in `ce-` headers, any content type,
/// the data as body). `type` is the event key. Answered when the events stream has acknowledged every event.
/// An event that is published again under the same source and id is known and not stored twice, so whoever
/// got no answer, or an error of 5xx, sends the same again. Of a batch either nothing is published, where one of its
/// events is refused (400, 413), or all is tried, and a 503 names those that are not stored. The events of a
/// batch go out together: what must stay in order is sent one after another. A token that is bound to
/// a tenant publishes for that one alone.
#[utoipa::path(post, path = "/v1/events", tag = "events",
    request_body(content(
        (CloudEvent = "application/cloudevents+json"),
        (Vec<CloudEvent> = "application/cloudevents-batch+json"),
        (serde_json::Value = "application/json")),
        description = "An event; up to 1,000 of them; or, with `ce-` headers, its data"),
    params(
        ("ce-specversion" = Option<String>, Header, description = "Binary mode: `1.0`"),
        ("ce-id" = Option<String>, Header, description = "Binary mode: the id"),
        ("ce-source" = Option<String>, Header, description = "Binary mode: the source"),
        ("ce-type" = Option<String>, Header, description = "Binary mode: the event key, such as `user.created`"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context; taken where the event has none")),
    responses((status = 202, description = "All of it is stored", body = Accepted), Usual, Body))]
async fn publish(
    FromState(state): FromState<State>,
    Publisher(caller): Publisher,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let content = Content::of(&headers)?;
    let headers = form::headers(content, &headers)?;
    let management = &state.management;
    let texts = if content == Content::Batch { Some(form::batch(&body)?) } else { None };
    within_quota(&state, &caller, texts.as_ref().map_or(1, Vec::len))?;
    let events = if let Some(texts) = texts {
        let mut checked = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let form = EventForm {
                key: None,
                headers: headers.clone(),
                body: body.slice_ref(text.get().as_bytes()),
            };
            let event = management.check_publication(form, caller.tenant());
            checked.push(event.map_err(|error| of_batch(index, error))?);
        }
        publish_all(&state, checked).await?
    } else {
        let form = EventForm { key: None, headers, body };
        let event = management.check_publication(form, caller.tenant())?;
        vec![publish_one(&state, &event).await?]
    };
    Ok((StatusCode::ACCEPTED, Json(Accepted { events })).into_response())
}

/// Counts events of a tenant's token against its rate.
fn within_quota(state: &State, caller: &Caller, events: usize) -> Result<(), Problem> {
    let Some(tenant) = caller.tenant() else { return Ok(()) };
    let Quota { limit, setting } = state.management.settings().event_quota(tenant);
    let burst = limit.saturating_mul(BURST_SECONDS);
    let taken = state.published.take(Holder::Tenant(tenant.to_owned()), events, limit, burst);
    taken.map_err(|wait| {
        let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
        let text = format!(
            "the tenant {tenant:?} publishes more than {limit} events a second, as many as {setting} allows; try again \
             in {seconds} s"
        );
        Problem::too_many(seconds, text)
    })
}

async fn publish_one(state: &State, event: &Checked<'_>) -> Result<Published, ManagementError> {
    let _permit = state.bounds.publishes.acquire().await.expect("the semaphore is never closed");
    state.management.publish_checked(event).await
}

/// The problem of one event of a batch, of which nothing is published.
fn of_batch(index: usize, error: ManagementError) -> Problem {
    let within = |field: &str| format!("[{index}].{field}");
    match error {
        ManagementError::Invalid(errors) => Problem::fields(
            errors.into_iter().map(|error| FieldError::new(within(&error.field), error.problem)).collect(),
        ),
        ManagementError::EventRejected(detail) => Problem::field(&format!("[{index}]"), detail),
        other => Problem::from(other)
            .with_fields(vec![FieldError::new(format!("[{index}]"), "nothing of the batch is published")]),
    }
}

/// `None`: another failed for what would fail this one as well.
async fn publish_unless(
    state: &State,
    hopeless: &AtomicBool,
    event: Checked<'_>,
) -> Option<Result<Published, ManagementError>> {
    if hopeless.load(Ordering::Relaxed) {
        return None;
    }
    let result = publish_one(state, &event).await;
    if result.as_ref().is_err_and(ManagementError::is_passing) {
        hopeless.store(true, Ordering::Relaxed);
    }
    Some(result)
}

/// Publishes all of a batch. Once an event is refused for what would refuse the others as well, those
/// that are not yet sent are not tried.
async fn publish_all(state: &State, events: Vec<Checked<'_>>) -> Result<Vec<Published>, Problem> {
    let hopeless = AtomicBool::new(false);
    let total = events.len();
    let mut publications = Vec::with_capacity(total);
    for event in events {
        publications.push(publish_unless(state, &hopeless, event));
    }
    let results: Vec<_> = futures_util::stream::iter(publications).buffered(AT_ONCE).collect().await;
    let mut published = Vec::with_capacity(total);
    let (mut missing, mut first) = (Vec::new(), None);
    for (index, result) in results.into_iter().enumerate() {
        let problem = match result {
            Some(Ok(one)) => {
                published.push(one);
                continue;
            }
            Some(Err(error)) => {
                let problem = Problem::from(error);
                let text = format!("is not known to be stored: {}", problem.detail());
                // What is wrong with one event alone will not pass by itself.
                if first.as_ref().is_none_or(|first: &Problem| problem.status() < first.status()) {
                    first = Some(problem);
                }
                text
            }
            None => "was not tried after another failed".to_owned(),
        };
        missing.push(FieldError::new(format!("[{index}]"), problem));
    }
    match first {
        None => Ok(published),
        Some(problem) => {
            let detail = format!(
                "{}. {} of {total} events are stored, and `errors` names the others; send the same batch again: what is \
                 stored is known by source and id, and not stored twice",
                problem.detail(),
                published.len()
            );
            Err(problem.with_detail(detail).with_fields(missing))
        }
    }
}
