//! The circuits of a subscription.

use axum::extract::State as FromState;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::State;
use crate::api::access::Reader;
use crate::api::json::Json;
use crate::api::openapi::{CommonProblems, ConflictProblem, NotFoundProblem};
use crate::api::problem::Problem;
use crate::api::query::{SubscriptionPath, TenantParam};
use crate::domain::subscription::SubscriptionId;
use crate::management::circuits::CircuitRow;

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(circuits))
}

/// The circuits of a subscription, in the order of the domains.
#[derive(Debug, Serialize, ToSchema)]
struct CircuitList {
    circuits: Vec<CircuitRow>,
}

/// List the circuits of a subscription, one for each domain, with its hold (scope `read`)
///
/// The circuit of an endpoint that keeps failing is open: its envelopes wait, and one at a time is sent as a probe. A
/// subscription whose endpoint answered with `Retry-After` is held: nothing is sent until the hold ends, in any domain. To
/// send a probe at once, and to end the hold, resume the subscription.
#[utoipa::path(get, path = "/v1/subscriptions/{id}/circuits", tag = "subscriptions",
    params(("id" = SubscriptionId, Path), TenantParam),
    responses(
        (status = 200, description = "One circuit for each domain", body = CircuitList),
        CommonProblems, ConflictProblem, NotFoundProblem))]
async fn circuits(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    SubscriptionPath(naming): SubscriptionPath,
) -> Result<Response, Problem> {
    let stored = state.management.subscription(&caller, &naming).await?;
    let circuits = state.management.circuits(&stored).await?;
    Ok(Json(CircuitList { circuits }).into_response())
}
