//! `/v1/outbox`: reads and changes the rows of the producer outbox. It belongs to the whole hub.

mod conditions;

use std::time::Duration;

use axum::extract::State as FromState;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::State;
use super::access::{Operator, Reader, whole_hub};
use super::body::{JsonBody, MaybeJson, typed};
use super::openapi::{BodyProblems, CommonProblems, NoOutboxProblem, NotFoundProblem, RowStatusProblem};
use super::problem::Problem;
use super::query::{PathParts, QueryParams, parsed};
use crate::api::json::Json;
use crate::domain::access::Caller;
use crate::management::ManagementError;
use crate::management::producer_outbox::{
    AdminSession, BatchRun, BrokerStatus, Row, RowCursor, RowDetails, RowSelection,
};
use conditions::{Listing, OutboxListQuery, RowChange};

/// Time after which a change of many rows starts no further batch and answers with a cursor: well below the time limit of a
/// request, so that the last batch can finish.
const LONGEST_CHANGE: Duration = Duration::from_secs(10);

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new()
        .routes(routes!(status))
        .routes(routes!(list))
        .routes(routes!(read_one))
        .routes(routes!(retry_one))
        .routes(routes!(discard_one))
        .routes(routes!(retry_many))
        .routes(routes!(discard_many))
        .routes(routes!(cleanup))
        .routes(routes!(reconcile))
}

/// Waits for access to the producer outbox. Its rows belong to all tenants.
async fn outbox<'a>(state: &'a State, caller: &Caller) -> Result<AdminSession<'a>, Problem> {
    whole_hub(caller, "the producer outbox belongs")?;
    Ok(state.outbox.as_ref().ok_or(ManagementError::NoProducerOutbox)?.session().await?)
}

/// The status of the producer outbox.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxStatus {
    /// Target brokers, `internal` first.
    brokers: Vec<BrokerStatus>,
}

/// Count the rows of the producer outbox by broker and status (scope `read`, token without a tenant)
#[utoipa::path(get, path = "/v1/outbox", tag = "outbox",
    responses((status = 200, description = "Numbers of rows, and the oldest unpublished row, of each broker",
        body = OutboxStatus), CommonProblems, NoOutboxProblem))]
async fn status(FromState(state): FromState<State>, Reader(caller): Reader) -> Result<Response, Problem> {
    let brokers = outbox(&state, &caller).await?.status().await?;
    Ok(Json(OutboxStatus { brokers }).into_response())
}

/// A page of rows of the producer outbox, in order of insertion.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxMessagePage {
    messages: Vec<Row>,
    /// Value of `after` for the next page; `null` on the last page.
    next: Option<String>,
}

/// List the rows of the producer outbox (scope `read`, token without a tenant)
///
/// There is one row per event and target broker, in order of insertion.
#[utoipa::path(get, path = "/v1/outbox/messages", tag = "outbox",
    params(OutboxListQuery),
    responses((status = 200, description = "A page of rows", body = OutboxMessagePage), CommonProblems, NoOutboxProblem))]
async fn list(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    QueryParams(pairs): QueryParams<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let Listing { selection, after, limit } = Listing::of_query(pairs)?;
    let page = outbox(&state, &caller).await?.list(&selection, &after, limit).await?;
    let next = page.next.map(|cursor| cursor.to_string());
    Ok(Json(OutboxMessagePage { messages: page.rows, next }).into_response())
}

/// Read a row of the producer outbox with its envelope (scope `read`, token without a tenant)
#[utoipa::path(get, path = "/v1/outbox/messages/{broker}/{id}", tag = "outbox", params(("broker" = String, Path), ("id" = String, Path)),
    responses((status = 200, description = "The row", body = RowDetails), CommonProblems, NotFoundProblem, NoOutboxProblem))]
async fn read_one(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    PathParts(broker, id): PathParts,
) -> Result<Response, Problem> {
    Ok(Json(outbox(&state, &caller).await?.read(&broker, &id).await?).into_response())
}

/// Retry a failed or abandoned row (scope `operate`, token without a tenant)
///
/// Its attempts start again at 0. An abandoned row is sent after the rows that overtook it. A row of another status is not
/// changed (409).
#[utoipa::path(post, path = "/v1/outbox/messages/{broker}/{id}/retry", tag = "outbox", params(("broker" = String, Path), ("id" = String, Path)),
    responses((status = 200, description = "The row", body = Row), CommonProblems, NotFoundProblem, RowStatusProblem))]
async fn retry_one(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    PathParts(broker, id): PathParts,
) -> Result<Response, Problem> {
    Ok(Json(outbox(&state, &caller).await?.retry_one(&broker, &id).await?).into_response())
}

/// Abandon a pending or failed row without sending it (scope `operate`, token without a tenant)
///
/// A row of another status is not changed (409). A relay is sending a row that is `processing`.
#[utoipa::path(post, path = "/v1/outbox/messages/{broker}/{id}/discard", tag = "outbox", params(("broker" = String, Path), ("id" = String, Path)),
    responses((status = 200, description = "The row", body = Row), CommonProblems, NotFoundProblem, RowStatusProblem))]
async fn discard_one(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    PathParts(broker, id): PathParts,
) -> Result<Response, Problem> {
    Ok(Json(outbox(&state, &caller).await?.discard_one(&broker, &id).await?).into_response())
}

/// Waits for access to the producer outbox, and checks that it has all selected ids. A change that continues at a cursor
/// was checked at its start.
async fn named<'a>(
    state: &'a State,
    caller: &Caller,
    selection: &RowSelection,
    after: &RowCursor,
) -> Result<AdminSession<'a>, Problem> {
    let outbox = outbox(state, caller).await?;
    if *after == RowCursor::default() {
        outbox.check_ids(selection).await?;
    }
    Ok(outbox)
}

/// The result of a retry.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxRetried {
    /// Number of retried rows.
    retried: u64,
    /// Value of `after` to continue with; `null` if no row is left.
    next: Option<String>,
}

/// Retry many failed and abandoned rows (scope `operate`, token without a tenant)
///
/// Runs for at most 10 s, in batches of 1,000 rows, each committed by itself. If rows are left, send the same request with
/// `next` as `after`.
#[utoipa::path(post, path = "/v1/outbox/retry", tag = "outbox",
    request_body = RowChange,
    responses((status = 200, description = "Done, or partly done; see `next`", body = OutboxRetried),
        CommonProblems, BodyProblems, NotFoundProblem, NoOutboxProblem))]
async fn retry_many(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let (selection, after) = typed::<RowChange>(body)?.read()?;
    let outbox = named(&state, &caller, &selection, &after).await?;
    let done = outbox.retry(&selection, BatchRun::limited(LONGEST_CHANGE, after)).await?;
    Ok(Json(OutboxRetried { retried: done.rows, next: text(done.next) }).into_response())
}

/// The result of a discard.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxDiscarded {
    /// Number of abandoned rows.
    discarded: u64,
    /// Value of `after` to continue with; `null` if no row is left.
    next: Option<String>,
}

/// Abandon many pending and failed rows without sending them (scope `operate`, token without a tenant)
///
/// Runs for at most 10 s, in batches of 1,000 rows, each committed by itself. If rows are left, send the same request with
/// `next` as `after`.
#[utoipa::path(post, path = "/v1/outbox/discard", tag = "outbox",
    request_body = RowChange,
    responses((status = 200, description = "Done, or partly done; see `next`", body = OutboxDiscarded),
        CommonProblems, BodyProblems, NotFoundProblem, NoOutboxProblem))]
async fn discard_many(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let (selection, after) = typed::<RowChange>(body)?.read()?;
    let outbox = named(&state, &caller, &selection, &after).await?;
    let done = outbox.discard(&selection, BatchRun::limited(LONGEST_CHANGE, after)).await?;
    Ok(Json(OutboxDiscarded { discarded: done.rows, next: text(done.next) }).into_response())
}

/// The result of a clean-up.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxCleanedUp {
    /// Number of deleted rows.
    deleted: u64,
    /// True if rows are left, because the time was over: send the request again.
    more: bool,
}

/// Delete old published and abandoned rows (scope `operate`, token without a tenant)
///
/// Deletes rows older than `outbox.published_retention` or `outbox.abandoned_retention`. Runs for at most 10 s, in batches of
/// `outbox.cleanup_batch`. A relay does the same periodically.
#[utoipa::path(post, path = "/v1/outbox/cleanup", tag = "outbox",
    responses((status = 200, description = "Done, or partly done; see `more`", body = OutboxCleanedUp),
        CommonProblems, NoOutboxProblem))]
async fn cleanup(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
) -> Result<Response, Problem> {
    let outbox = outbox(&state, &caller).await?;
    let done = outbox.cleanup(BatchRun::limited(LONGEST_CHANGE, RowCursor::default())).await?;
    Ok(Json(OutboxCleanedUp { deleted: done.rows, more: done.next.is_some() }).into_response())
}

/// Options of a reconciliation.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = ReconcileOrder)]
struct ReconcileRequest {
    /// Cursor: `next` of the previous answer. Default: the oldest event
    after: Option<String>,
}

/// The result of a reconciliation.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxReconciled {
    /// Number of missing rows that were written.
    written: u64,
    /// Value of `after` to continue with; `null` if no event is left.
    next: Option<String>,
}

/// Write missing rows of external brokers (scope `operate`, token without a tenant)
///
/// Checks that each published event has a row for each external broker. Runs for at most 10 s, 1,000 events at a time. If
/// events are left, send the request again with `next` as `after`. A relay does the same periodically.
#[utoipa::path(post, path = "/v1/outbox/reconcile", tag = "outbox",
    request_body = Option<ReconcileRequest>,
    responses((status = 200, description = "Done, or partly done; see `next`", body = OutboxReconciled),
        CommonProblems, BodyProblems, NoOutboxProblem))]
async fn reconcile(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    MaybeJson(options): MaybeJson<ReconcileRequest>,
) -> Result<Response, Problem> {
    let after = parsed("after", options.after.as_deref())?.unwrap_or_default();
    let outbox = outbox(&state, &caller).await?;
    let done = outbox.reconcile(BatchRun::limited(LONGEST_CHANGE, after)).await?;
    Ok(Json(OutboxReconciled { written: done.rows, next: text(done.next) }).into_response())
}

fn text(cursor: Option<RowCursor>) -> Option<String> {
    cursor.map(|cursor| cursor.to_string())
}
