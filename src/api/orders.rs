//! `/v1/orders`: bulk orders on dead letters, whichever replica carries them out. The hub remembers
//! the 1,000 that were written last, for a week.

use axum::extract::State as FromState;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::State;
use super::access::{Operator, Reader};
use super::openapi::{Missing, Usual};
use super::problem::Problem;
use super::query::{Asked, PathPart, limit};
use crate::api::json::Json;
use crate::domain::bulk_job::{BulkJob, BulkJobId};
use crate::management::ManagementError;

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(read_one, cancel))
}

/// Which orders.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// At most this many, 1 to 1000; 100 where not given
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Some orders, the newest first.
#[derive(Debug, Serialize, ToSchema)]
struct OrderList {
    orders: Vec<BulkJob>,
}

/// List bulk orders, the newest first (scope `read`)
///
/// The hub remembers the last 1,000, for a week. A token that is bound to a tenant sees the orders that are
/// limited to that tenant.
#[utoipa::path(get, path = "/v1/orders", tag = "orders", params(ListQuery),
    responses((status = 200, description = "They", body = OrderList), Usual))]
async fn list(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    Asked(query): Asked<ListQuery>,
) -> Result<Response, Problem> {
    let orders = state.orders.orders(&caller, limit(query.limit)?).await?;
    Ok(Json(OrderList { orders }).into_response())
}

/// Read how far a bulk order has come (scope `read`)
///
/// An order whose process has ended before it did is `interrupted`, at most 15 s after.
#[utoipa::path(get, path = "/v1/orders/{id}", tag = "orders", params(("id" = BulkJobId, Path)),
    responses((status = 200, description = "It, as it stands", body = BulkJob), Usual, Missing))]
async fn read_one(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    PathPart(id): PathPart,
) -> Result<Response, Problem> {
    let order = state.orders.order(&caller, &order_id(id)?).await?;
    Ok(Json(order).into_response())
}

/// Cancel what a bulk order has not done yet (scope `operate`)
#[utoipa::path(delete, path = "/v1/orders/{id}", tag = "orders", params(("id" = BulkJobId, Path)),
    responses(
        (status = 202, description = "It stops within seconds", body = BulkJob),
        (status = 200, description = "It is over already", body = BulkJob),
        Usual, Missing))]
async fn cancel(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    PathPart(id): PathPart,
) -> Result<Response, Problem> {
    let order = state.orders.cancel(&caller, &order_id(id)?).await?;
    let status = if order.state.is_over() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(order)).into_response())
}

/// What is no id is no order's.
fn order_id(text: String) -> Result<BulkJobId, ManagementError> {
    BulkJobId::try_from(text.clone()).map_err(|_| ManagementError::NoOrder { id: text })
}
