//! `/v1/dead-letters`: reads, replays and discards dead letters, one or many.

mod conditions;

use axum::extract::State as FromState;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::State;
use super::access::{Operator, Reader};
use super::body::{JsonBody, MaybeJson, typed};
use super::openapi::{BodyProblems, CommonProblems, NotFoundProblem};
use super::problem::Problem;
use super::query::{PathPart, QueryParams, limit, parsed};
use crate::api::json::Json;
use crate::domain::access::Caller;
use crate::domain::bulk_job::{BulkJob, BulkJobKind};
use crate::management::dead_letter_actions::SelectedDeadLetter;
use crate::management::dead_letters::{
    Cursor, DeadLetterDetails, DeadLetterEntry, DeadLetterQuery, DeadLetterStats,
};
use crate::management::{ManagementError, NewBulkJob};
use conditions::{Conditions, Discarding, Replaying};

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(stats))
        .routes(routes!(replay_many))
        .routes(routes!(discard_many))
        .routes(routes!(read_one, discard_one))
        .routes(routes!(replay_one))
}

/// A page of a list.
#[derive(Debug, Default, IntoParams)]
#[into_params(parameter_in = Query)]
struct Part {
    /// Maximum number of entries, 1 to 1000. Default: 100
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Cursor: `next` of the previous page
    #[param(value_type = Option<String>)]
    after: Option<Cursor>,
}

impl Part {
    /// Reads its parameters of a query that [`QueryRules`](super::query_rules::QueryRules) has checked.
    fn of_query(pairs: &[(String, String)]) -> Result<Self, Problem> {
        let mut part = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "limit" => part.limit = parsed(name, Some(value))?,
                "after" => part.after = parsed(name, Some(value))?,
                // A condition.
                _ => {}
            }
        }
        Ok(part)
    }
}

/// A page of dead letters, by domain in the order of the settings, oldest first.
#[derive(Debug, Serialize, ToSchema)]
struct DeadLetterPage {
    dead_letters: Vec<DeadLetterEntry>,
    /// Value of `after` for the next page; `null` on the last page.
    next: Option<String>,
}

/// List dead letters (scope `read`)
#[utoipa::path(get, path = "/v1/dead-letters", tag = "dead letters", params(Conditions, Part),
    responses((status = 200, description = "A page of dead letters", body = DeadLetterPage), CommonProblems))]
async fn list(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    QueryParams(pairs): QueryParams<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let _permit = state.broad_reads.permit(caller.tenant()).await;
    let (conditions, part) = (Conditions::of_query(&pairs), Part::of_query(&pairs)?);
    let (filter, limit) = (conditions.filter(&state, &caller)?, limit(part.limit)?);
    let list = state.management.list_dead_letters(&filter, part.after.as_ref(), limit).await?;
    let next = list.next.map(|cursor| cursor.to_string());
    Ok(Json(DeadLetterPage { dead_letters: list.entries, next }).into_response())
}

/// Count dead letters (scope `read`)
#[utoipa::path(get, path = "/v1/dead-letters/stats", tag = "dead letters", params(Conditions),
    responses((status = 200, description = "The numbers of dead letters", body = DeadLetterStats), CommonProblems))]
async fn stats(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    QueryParams(pairs): QueryParams<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let _permit = state.broad_reads.permit(caller.tenant()).await;
    let conditions = Conditions::of_query(&pairs);
    let filter = conditions.filter(&state, &caller)?;
    let stats = state.management.dead_letter_stats(&filter, |_| {}).await?;
    Ok(Json(stats).into_response())
}

/// Read a dead letter with its event, its delivery settings and its last attempt (scope `read`)
#[utoipa::path(get, path = "/v1/dead-letters/{id}", tag = "dead letters", params(("id" = String, Path)),
    responses(
        (status = 200, description = "The dead letter, with `***` for each secret", body = DeadLetterDetails),
        CommonProblems, NotFoundProblem))]
async fn read_one(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    PathPart(id): PathPart,
) -> Result<Response, Problem> {
    let _permit = state.broad_reads.permit(caller.tenant()).await;
    let details = state.management.show_dead_letter(&id, caller.tenant()).await?;
    Ok(Json(details).into_response())
}

/// Options of a replay.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = ReplayOrder)]
struct ReplayRequest {
    /// Replay it even if a replay is in progress, because its envelope is known to be lost
    force: bool,
}

/// The result of a replay of one dead letter.
#[derive(Debug, Serialize, ToSchema)]
struct ReplayedOne {
    id: String,
    domain: String,
    /// True if the replay was started. False if one is in progress and `force` is not set.
    ordered: bool,
    /// True if a replay was in progress before.
    already_replaying: bool,
}

/// Replay a dead letter now (scope `operate`)
#[utoipa::path(post, path = "/v1/dead-letters/{id}/replay", tag = "dead letters",
    request_body = Option<ReplayRequest>, params(("id" = String, Path)),
    responses(
        (status = 202, description = "Started, or in progress already", body = ReplayedOne),
        CommonProblems, BodyProblems, NotFoundProblem))]
async fn replay_one(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    PathPart(id): PathPart,
    MaybeJson(options): MaybeJson<ReplayRequest>,
) -> Result<Response, Problem> {
    let mut selected = select_one(&state, &caller, &id).await?;
    // When a redrive fails again, the old and the new dead letter exist for a moment: use the new one.
    let last = selected.pop().ok_or(ManagementError::NoDeadLetter { id: id.clone() })?;
    let (domain, already_replaying) = (last.domain.clone(), last.replaying);
    let replayed = state.management.replay(&[last], options.force, |_, _| {}).await?;
    let body = ReplayedOne { id, domain, ordered: replayed.ordered > 0, already_replaying };
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}

/// Discard a dead letter without delivering it (scope `operate`)
#[utoipa::path(delete, path = "/v1/dead-letters/{id}", tag = "dead letters", params(("id" = String, Path)),
    responses((status = 204, description = "Discarded"), CommonProblems, NotFoundProblem))]
async fn discard_one(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    PathPart(id): PathPart,
) -> Result<Response, Problem> {
    let selected = select_one(&state, &caller, &id).await?;
    state.management.discard(&selected, |_, _| {}).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn select_one(state: &State, caller: &Caller, id: &str) -> Result<Vec<SelectedDeadLetter>, Problem> {
    let filter = DeadLetterQuery {
        tenant: caller.tenant().map(str::to_owned),
        ids: [id.to_owned()].into(),
        ..DeadLetterQuery::default()
    };
    Ok(state.management.select_dead_letters(&filter, |_| {}).await?)
}

/// Replay many dead letters in the background (scope `operate`)
///
/// Starts a bulk job; `location` in the answer is the path of its progress. The job covers the dead letters that exist at
/// its start. A process runs 4 jobs at once, and refuses another with 503 and `Retry-After`.
#[utoipa::path(post, path = "/v1/dead-letters/replay", tag = "dead letters", request_body = Replaying,
    responses(
        (status = 202, description = "Started", body = BulkJob,
            headers(("location" = String, description = "Path of the bulk job"))),
        CommonProblems, BodyProblems))]
async fn replay_many(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    JsonBody(mut body): JsonBody,
) -> Result<Response, Problem> {
    let force = flag(&mut body, "force")?;
    start(&state, &caller, BulkJobKind::Replay, force, body).await
}

/// Discard many dead letters in the background (scope `operate`)
///
/// Starts a bulk job; `location` in the answer is the path of its progress. The job covers the dead letters that exist at
/// its start. A process runs 4 jobs at once, and refuses another with 503 and `Retry-After`.
#[utoipa::path(post, path = "/v1/dead-letters/discard", tag = "dead letters", request_body = Discarding,
    responses(
        (status = 202, description = "Started", body = BulkJob,
            headers(("location" = String, description = "Path of the bulk job"))),
        CommonProblems, BodyProblems))]
async fn discard_many(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    start(&state, &caller, BulkJobKind::Discard, false, body).await
}

/// Removes a boolean member from a body, so that the rest can be parsed strictly as conditions. (Serde does not refuse
/// unknown members if one struct is flattened into another.)
fn flag(body: &mut Value, name: &str) -> Result<bool, Problem> {
    match body.as_object_mut().and_then(|members| members.remove(name)) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(value),
        Some(other) => Err(Problem::field(name, format!("is {other}; must be true or false"))),
    }
}

/// Starts a bulk job.
async fn start(
    state: &State,
    caller: &Caller,
    kind: BulkJobKind,
    force: bool,
    mut body: Value,
) -> Result<Response, Problem> {
    let all = flag(&mut body, "all")?;
    let conditions: Conditions = typed(body)?;
    if conditions.are_none() && !all {
        let which = "no condition is set; set domain, tenant, subscription, reason, state, event_key, since or until, \
                     or {\"all\": true} for all dead letters";
        return Err(Problem::field("body", which));
    }
    if all && !conditions.are_none() {
        return Err(Problem::field("all", "cannot be combined with conditions; send one or the other"));
    }
    let filter = conditions.filter(state, caller)?;
    let job = state.bulk_jobs.start(caller, NewBulkJob { kind, filter, force }).await?;
    let location = format!("/v1/orders/{}", job.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(job)).into_response())
}
