//! `/v1/orders`: bulk jobs on dead letters, of all replicas. The hub keeps the last 1,000 jobs for a week.

use axum::extract::State as FromState;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::State;
use super::access::{Operator, Reader};
use super::openapi::{CommonProblems, NotFoundProblem};
use super::problem::Problem;
use super::query::{PathPart, QueryParams, limit};
use crate::api::json::Json;
use crate::domain::bulk_job::{BulkJob, BulkJobId};
use crate::management::ManagementError;

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(read_one, cancel))
}

/// Options of a list of bulk jobs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct BulkJobListQuery {
    /// Maximum number of entries, 1 to 1000. Default: 100
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// A list of bulk jobs, newest first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OrderList)]
struct BulkJobList {
    orders: Vec<BulkJob>,
}

/// List bulk jobs, newest first (scope `read`)
///
/// The hub keeps the last 1,000 jobs for a week. A token that is bound to a tenant only sees that tenant's jobs.
#[utoipa::path(get, path = "/v1/orders", tag = "orders", params(BulkJobListQuery),
    responses((status = 200, description = "The bulk jobs", body = BulkJobList), CommonProblems))]
async fn list(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    QueryParams(query): QueryParams<BulkJobListQuery>,
) -> Result<Response, Problem> {
    let orders = state.bulk_jobs.jobs(&caller, limit(query.limit)?).await?;
    Ok(Json(BulkJobList { orders }).into_response())
}

/// Read the progress of a bulk job (scope `read`)
///
/// If the process of a job ends, the job becomes `interrupted` within 15 s.
#[utoipa::path(get, path = "/v1/orders/{id}", tag = "orders", params(("id" = BulkJobId, Path)),
    responses((status = 200, description = "The bulk job", body = BulkJob), CommonProblems, NotFoundProblem))]
async fn read_one(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    PathPart(id): PathPart,
) -> Result<Response, Problem> {
    let job = state.bulk_jobs.job(&caller, &job_id(id)?).await?;
    Ok(Json(job).into_response())
}

/// Cancel the rest of a bulk job (scope `operate`)
#[utoipa::path(delete, path = "/v1/orders/{id}", tag = "orders", params(("id" = BulkJobId, Path)),
    responses(
        (status = 202, description = "The job stops within seconds", body = BulkJob),
        (status = 200, description = "The job has already ended", body = BulkJob),
        CommonProblems, NotFoundProblem))]
async fn cancel(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    PathPart(id): PathPart,
) -> Result<Response, Problem> {
    let job = state.bulk_jobs.cancel(&caller, &job_id(id)?).await?;
    let status = if job.state.is_over() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(job)).into_response())
}

/// Parses an id. An invalid id counts as unknown.
fn job_id(text: String) -> Result<BulkJobId, ManagementError> {
    BulkJobId::try_from(text.clone()).map_err(|_| ManagementError::NoBulkJob { id: text })
}
