//! `/v1/domains`: lists, pauses and resumes domains. They belong to the whole hub.

use axum::extract::State as FromState;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::State;
use super::access::{Operator, Reader, whole_hub};
use super::body::MaybeJson;
use super::openapi::{BodyProblems, CommonProblems, NotFoundProblem};
use super::problem::Problem;
use super::query::PathPart;
use crate::api::json::Json;
use crate::domain::duration;
use crate::management::domains::{DomainRow, Pause};

/// The first words of the error for a token with a tenant.
const WHOSE: &str = "domains belong";

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(read_one))
        .routes(routes!(pause))
        .routes(routes!(resume))
}

/// All domains, in the order of the settings.
#[derive(Debug, Serialize, ToSchema)]
struct DomainList {
    domains: Vec<DomainRow>,
}

/// List domains (scope `read`, token without a tenant)
#[utoipa::path(get, path = "/v1/domains", tag = "domains",
    responses((status = 200, description = "All domains", body = DomainList), CommonProblems))]
async fn list(FromState(state): FromState<State>, Reader(caller): Reader) -> Result<Response, Problem> {
    whole_hub(&caller, WHOSE)?;
    let domains = state.management.domains().await?;
    Ok(Json(DomainList { domains }).into_response())
}

/// Read a domain (scope `read`, token without a tenant)
#[utoipa::path(get, path = "/v1/domains/{name}", tag = "domains", params(("name" = String, Path)),
    responses((status = 200, description = "The domain", body = DomainRow), CommonProblems, NotFoundProblem))]
async fn read_one(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    PathPart(name): PathPart,
) -> Result<Response, Problem> {
    whole_hub(&caller, WHOSE)?;
    Ok(Json(state.management.domain_row(&name).await?).into_response())
}

/// Options of a pause.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PauseOrder)]
struct PauseRequest {
    /// Duration, such as `2h`. Default: until the domain is resumed
    #[serde(rename = "for", default)]
    #[schema(example = "2h")]
    lasting: Option<String>,
}

/// Pause the deliveries of a domain (scope `operate`, token without a tenant)
///
/// Envelopes wait in the domain outbox until the domain is resumed.
#[utoipa::path(post, path = "/v1/domains/{name}/pause", tag = "domains", request_body = Option<PauseRequest>,
    params(("name" = String, Path)),
    responses((status = 200, description = "Paused", body = DomainRow), CommonProblems, BodyProblems, NotFoundProblem))]
async fn pause(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    PathPart(name): PathPart,
    MaybeJson(options): MaybeJson<PauseRequest>,
) -> Result<Response, Problem> {
    whole_hub(&caller, WHOSE)?;
    let lasting = options.lasting.as_deref().map(duration::parse).transpose();
    let lasting = lasting.map_err(|error| Problem::field("for", error.to_string()))?;
    let pause = Pause::lasting(lasting).map_err(|error| Problem::fields(vec![error]))?;
    Ok(Json(state.management.pause_domain(&name, &pause).await?).into_response())
}

/// Resume the deliveries of a domain (scope `operate`, token without a tenant)
#[utoipa::path(post, path = "/v1/domains/{name}/resume", tag = "domains", params(("name" = String, Path)),
    responses((status = 200, description = "Not paused", body = DomainRow), CommonProblems, NotFoundProblem))]
async fn resume(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    PathPart(name): PathPart,
) -> Result<Response, Problem> {
    whole_hub(&caller, WHOSE)?;
    Ok(Json(state.management.resume_domain(&name).await?).into_response())
}
