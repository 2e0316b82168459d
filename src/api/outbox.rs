//! `/v1/outbox`: the transactional outbox in the producer's database, and orders on its rows. It belongs to
//! the whole hub.

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
use super::openapi::{Body, Missing, OnOneRow, Usual, WithOutbox};
use super::problem::Problem;
use super::query::{Asked, PathParts, parsed};
use crate::api::json::Json;
use crate::domain::access::Caller;
use crate::management::ManagementError;
use crate::management::outbox::{BrokerStatus, Course, Row, RowCursor, RowDetails, RowSelection, Turn};
use conditions::{BulkOrder, ListQuery, Listing};

/// How long an order on many rows goes on before it answers how far it has come: well within the time of a
/// request, whatever the last batch takes.
const LONGEST_ORDER: Duration = Duration::from_secs(10);

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

/// The outbox, when it is the caller's turn. Rows are of all tenants.
async fn outbox<'a>(state: &'a State, caller: &Caller) -> Result<Turn<'a>, Problem> {
    whole_hub(caller, "the outbox belongs")?;
    Ok(state.outbox.as_ref().ok_or(ManagementError::NoOutbox)?.turn().await?)
}

/// How the outbox stands.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxStatus {
    /// By target broker, `internal` first.
    brokers: Vec<BrokerStatus>,
}

/// Count the outbox's rows by broker and status (scope `read`, of a token that is bound to no tenant)
#[utoipa::path(get, path = "/v1/outbox", tag = "outbox",
    responses((status = 200, description = "How many rows stand where, and the oldest that is owed",
        body = OutboxStatus), Usual, WithOutbox))]
async fn status(FromState(state): FromState<State>, Reader(caller): Reader) -> Result<Response, Problem> {
    let brokers = outbox(&state, &caller).await?.status().await?;
    Ok(Json(OutboxStatus { brokers }).into_response())
}

/// Some rows of the outbox, in order of insertion.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxMessagePage {
    messages: Vec<Row>,
    /// Where more follow: `after` of the next page.
    next: Option<String>,
}

/// List the outbox's rows (scope `read`, of a token that is bound to no tenant)
///
/// There is one row per event and target broker; they come in order of insertion.
#[utoipa::path(get, path = "/v1/outbox/messages", tag = "outbox",
    params(ListQuery),
    responses((status = 200, description = "A page of them", body = OutboxMessagePage), Usual, WithOutbox))]
async fn list(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    Asked(pairs): Asked<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let Listing { selection, after, limit } = Listing::of_query(pairs)?;
    let page = outbox(&state, &caller).await?.list(&selection, &after, limit).await?;
    let next = page.next.map(|cursor| cursor.to_string());
    Ok(Json(OutboxMessagePage { messages: page.rows, next }).into_response())
}

/// Read a row of the outbox with its envelope (scope `read`, of a token that is bound to no tenant)
#[utoipa::path(get, path = "/v1/outbox/messages/{broker}/{id}", tag = "outbox", params(("broker" = String, Path), ("id" = String, Path)),
    responses((status = 200, description = "It", body = RowDetails), Usual, Missing, WithOutbox))]
async fn read_one(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    PathParts(broker, id): PathParts,
) -> Result<Response, Problem> {
    Ok(Json(outbox(&state, &caller).await?.read(&broker, &id).await?).into_response())
}

/// Send a failed or abandoned row again (scope `operate`, of a token that is bound to no tenant)
///
/// It has all its attempts anew; what was abandoned goes out after what overtook it. A row of another status is left alone, and that is 409.
#[utoipa::path(post, path = "/v1/outbox/messages/{broker}/{id}/retry", tag = "outbox", params(("broker" = String, Path), ("id" = String, Path)),
    responses((status = 200, description = "It, as it stands now", body = Row), Usual, Missing, OnOneRow))]
async fn retry_one(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    PathParts(broker, id): PathParts,
) -> Result<Response, Problem> {
    Ok(Json(outbox(&state, &caller).await?.retry_one(&broker, &id).await?).into_response())
}

/// Abandon a pending or failed row, unsent (scope `operate`, of a token that is bound to no tenant)
///
/// A row of another status is left alone, and that is 409; one that is `processing` is in a relay's hands.
#[utoipa::path(post, path = "/v1/outbox/messages/{broker}/{id}/discard", tag = "outbox", params(("broker" = String, Path), ("id" = String, Path)),
    responses((status = 200, description = "It, as it stands now", body = Row), Usual, Missing, OnOneRow))]
async fn discard_one(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    PathParts(broker, id): PathParts,
) -> Result<Response, Problem> {
    Ok(Json(outbox(&state, &caller).await?.discard_one(&broker, &id).await?).into_response())
}

/// The outbox, which has rows of all ids that are named. One that goes on was asked this at its beginning.
async fn named<'a>(
    state: &'a State,
    caller: &Caller,
    selection: &RowSelection,
    after: &RowCursor,
) -> Result<Turn<'a>, Problem> {
    let outbox = outbox(state, caller).await?;
    if *after == RowCursor::default() {
        outbox.check_ids(selection).await?;
    }
    Ok(outbox)
}

/// What an order to retry did.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxRetried {
    /// Rows.
    retried: u64,
    /// Where the order is not done: `after` of the next one.
    next: Option<String>,
}

/// Send many failed and abandoned rows again (scope `operate`, of a token that is bound to no tenant)
///
/// It goes on for at most 10 s, in batches of 1,000, each of which stands when it is done. Where rows are left,
/// `next` says where: place the same order with it as `after`.
#[utoipa::path(post, path = "/v1/outbox/retry", tag = "outbox",
    request_body = BulkOrder,
    responses((status = 200, description = "Done, or as far as the time went", body = OutboxRetried),
        Usual, Body, Missing, WithOutbox))]
async fn retry_many(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let (selection, after) = typed::<BulkOrder>(body)?.read()?;
    let outbox = named(&state, &caller, &selection, &after).await?;
    let done = outbox.retry(&selection, Course::within(LONGEST_ORDER, after)).await?;
    Ok(Json(OutboxRetried { retried: done.rows, next: text(done.next) }).into_response())
}

/// What an order to discard did.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxDiscarded {
    /// Rows.
    discarded: u64,
    /// Where the order is not done: `after` of the next one.
    next: Option<String>,
}

/// Abandon many pending and failed rows, unsent (scope `operate`, of a token that is bound to no tenant)
///
/// It goes on for at most 10 s, in batches of 1,000, each of which stands when it is done. Where rows are left,
/// `next` says where: place the same order with it as `after`.
#[utoipa::path(post, path = "/v1/outbox/discard", tag = "outbox",
    request_body = BulkOrder,
    responses((status = 200, description = "Done, or as far as the time went", body = OutboxDiscarded),
        Usual, Body, Missing, WithOutbox))]
async fn discard_many(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let (selection, after) = typed::<BulkOrder>(body)?.read()?;
    let outbox = named(&state, &caller, &selection, &after).await?;
    let done = outbox.discard(&selection, Course::within(LONGEST_ORDER, after)).await?;
    Ok(Json(OutboxDiscarded { discarded: done.rows, next: text(done.next) }).into_response())
}

/// What a clean-up did.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxCleanedUp {
    /// Rows.
    deleted: u64,
    /// The time was over before all were deleted: ask again.
    more: bool,
}

/// Delete old published and abandoned rows (scope `operate`, of a token that is bound to no tenant)
///
/// Those that are older than `outbox.published_retention` and `outbox.abandoned_retention`. It goes on for at most 10 s, in batches of `outbox.cleanup_batch`. A relay does the same by itself.
#[utoipa::path(post, path = "/v1/outbox/cleanup", tag = "outbox",
    responses((status = 200, description = "Done, or as far as the time went", body = OutboxCleanedUp),
        Usual, WithOutbox))]
async fn cleanup(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
) -> Result<Response, Problem> {
    let outbox = outbox(&state, &caller).await?;
    let done = outbox.cleanup(Course::within(LONGEST_ORDER, RowCursor::default())).await?;
    Ok(Json(OutboxCleanedUp { deleted: done.rows, more: done.next.is_some() }).into_response())
}

/// Where a gap check begins.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct ReconcileOrder {
    /// Go on here: `next` of the answer before; from the oldest event on where not given
    after: Option<String>,
}

/// What a gap check did.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxReconciled {
    /// Rows that were missing.
    written: u64,
    /// Where it is not done: `after` of the next one.
    next: Option<String>,
}

/// Write external rows that are missing (scope `operate`, of a token that is bound to no tenant)
///
/// Of published events, for each external broker. It goes on for at most 10 s, looking through 1,000 events at a time. Where some are left, `next` says where:
/// ask again with it as `after`. A relay does the same by itself.
#[utoipa::path(post, path = "/v1/outbox/reconcile", tag = "outbox",
    request_body = Option<ReconcileOrder>,
    responses((status = 200, description = "Done, or as far as the time went", body = OutboxReconciled),
        Usual, Body, WithOutbox))]
async fn reconcile(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    MaybeJson(order): MaybeJson<ReconcileOrder>,
) -> Result<Response, Problem> {
    let after = parsed("after", order.after.as_deref())?.unwrap_or_default();
    let outbox = outbox(&state, &caller).await?;
    let done = outbox.reconcile(Course::within(LONGEST_ORDER, after)).await?;
    Ok(Json(OutboxReconciled { written: done.rows, next: text(done.next) }).into_response())
}

fn text(cursor: Option<RowCursor>) -> Option<String> {
    cursor.map(|cursor| cursor.to_string())
}
