//! `/v1/dead-letters`: looking into them, and orders on one or on many.

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
use super::openapi::{Body, Missing, Usual};
use super::problem::Problem;
use super::query::{Asked, PathPart, limit};
use crate::api::json::Json;
use crate::domain::access::Caller;
use crate::domain::bulk_job::{BulkJob, BulkJobKind};
use crate::management::dead_letters::{
    Cursor, DeadLetterDetails, DeadLetterEntry, DeadLetterQuery, DeadLetterStats,
};
use crate::management::orders::Selected;
use crate::management::{BulkOrder, ManagementError};
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

/// Which part of a list.
#[derive(Debug, Default, IntoParams)]
#[into_params(parameter_in = Query)]
struct Part {
    /// At most this many, 1 to 1000; 100 where not given
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Go on here: `next` of the page before
    #[param(value_type = Option<String>)]
    after: Option<Cursor>,
}

impl Part {
    fn of_query(pairs: Vec<(String, String)>) -> Result<Self, Problem> {
        let mut part = Self::default();
        for (name, value) in pairs {
            let twice = match name.as_str() {
                "limit" => part.limit.replace(number(&value)?).is_some(),
                "after" => part.after.replace(parsed_one("after", &value)?).is_some(),
                _ => return Err(unknown(&name)),
            };
            if twice {
                return Err(Problem::field(&name, "is given twice; give it once"));
            }
        }
        Ok(part)
    }
}

fn number(text: &str) -> Result<usize, Problem> {
    text.parse().map_err(|_| Problem::field("limit", format!("{text:?} is no number; write 1 to 1000")))
}

fn parsed_one(name: &str, text: &str) -> Result<Cursor, Problem> {
    text.parse().map_err(|error| Problem::field(name, format!("{error}")))
}

fn unknown(name: &str) -> Problem {
    Problem::field(name, "is no parameter of this; /openapi.json says which there are")
}

/// Some dead letters, domain by domain in the order of the settings, the oldest first.
#[derive(Debug, Serialize, ToSchema)]
struct DeadLetterPage {
    dead_letters: Vec<DeadLetterEntry>,
    /// Where more follow: `after` of the next page.
    next: Option<String>,
}

/// List dead letters (scope `read`)
#[utoipa::path(get, path = "/v1/dead-letters", tag = "dead letters", params(Conditions, Part),
    responses((status = 200, description = "A page of them", body = DeadLetterPage), Usual))]
async fn list(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    Asked(pairs): Asked<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let _turn = state.turns.turn(caller.tenant()).await;
    let (conditions, rest) = Conditions::of_query(pairs)?;
    let (part, beyond) = (Part::of_query(rest)?, conditions.beyond(&caller));
    let (filter, limit) = (conditions.filter(&state, &caller)?, limit(part.limit)?);
    let page = if beyond {
        // A tenant that the caller does not reach has nothing to show.
        DeadLetterPage { dead_letters: Vec::new(), next: None }
    } else {
        let list = state.management.list_dead_letters(&filter, part.after.as_ref(), limit).await?;
        DeadLetterPage { dead_letters: list.entries, next: list.next.map(|cursor| cursor.to_string()) }
    };
    Ok(Json(page).into_response())
}

/// Count dead letters (scope `read`)
#[utoipa::path(get, path = "/v1/dead-letters/stats", tag = "dead letters", params(Conditions),
    responses((status = 200, description = "How many there are", body = DeadLetterStats), Usual))]
async fn stats(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    Asked(pairs): Asked<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let _turn = state.turns.turn(caller.tenant()).await;
    let (conditions, rest) = Conditions::of_query(pairs)?;
    if let Some((name, _)) = rest.first() {
        return Err(unknown(name));
    }
    let beyond = conditions.beyond(&caller);
    let filter = conditions.filter(&state, &caller)?;
    let stats = if beyond {
        DeadLetterStats { total: 0, oldest: None, by_domain: Vec::new(), by_subscription: Vec::new() }
    } else {
        state.management.dead_letter_stats(&filter, |_| {}).await?
    };
    Ok(Json(stats).into_response())
}

/// Read a dead letter with its event, its delivery and its last attempt (scope `read`)
#[utoipa::path(get, path = "/v1/dead-letters/{id}", tag = "dead letters", params(("id" = String, Path)),
    responses(
        (status = 200, description = "It, with `***` for each secret", body = DeadLetterDetails),
        Usual, Missing))]
async fn read_one(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    PathPart(id): PathPart,
) -> Result<Response, Problem> {
    let _turn = state.turns.turn(caller.tenant()).await;
    let details = state.management.show_dead_letter(&id, caller.tenant()).await?;
    Ok(Json(details).into_response())
}

/// How to replay one.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct ReplayOrder {
    /// Also if it is on its way again already, because that envelope is known to be gone
    force: bool,
}

/// What became of an order on one dead letter.
#[derive(Debug, Serialize, ToSchema)]
struct ReplayedOne {
    id: String,
    domain: String,
    /// It is ordered to be sent again now.
    ordered: bool,
    /// It is on its way again already; only then, and without `force`, it is not ordered.
    already_replaying: bool,
}

/// Send a dead letter again now (scope `operate`)
#[utoipa::path(post, path = "/v1/dead-letters/{id}/replay", tag = "dead letters",
    request_body = Option<ReplayOrder>, params(("id" = String, Path)),
    responses(
        (status = 202, description = "Ordered, or on its way again already", body = ReplayedOne),
        Usual, Body, Missing))]
async fn replay_one(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    PathPart(id): PathPart,
    MaybeJson(order): MaybeJson<ReplayOrder>,
) -> Result<Response, Problem> {
    let mut standing = select_one(&state, &caller, &id).await?;
    // While a redrive fails again, its successor stands beside it for a moment: the newer one counts.
    let last = standing.pop().ok_or(ManagementError::NoDeadLetter { id: id.clone() })?;
    let (domain, already_replaying) = (last.domain.clone(), last.replaying);
    let replayed = state.management.replay(&[last], order.force, |_, _| {}).await?;
    let body = ReplayedOne { id, domain, ordered: replayed.ordered > 0, already_replaying };
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}

/// Discard a dead letter: it is never delivered (scope `operate`)
#[utoipa::path(delete, path = "/v1/dead-letters/{id}", tag = "dead letters", params(("id" = String, Path)),
    responses((status = 204, description = "Gone"), Usual, Missing))]
async fn discard_one(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    PathPart(id): PathPart,
) -> Result<Response, Problem> {
    let standing = select_one(&state, &caller, &id).await?;
    state.management.discard(&standing, |_, _| {}).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn select_one(state: &State, caller: &Caller, id: &str) -> Result<Vec<Selected>, Problem> {
    let filter = DeadLetterQuery {
        tenant: caller.tenant().map(str::to_owned),
        ids: [id.to_owned()].into(),
        ..DeadLetterQuery::default()
    };
    Ok(state.management.select_dead_letters(&filter, |_| {}).await?)
}

/// Send many dead letters again, in the background (scope `operate`)
///
/// The answer tells where to ask how far it has come. It means those that stand when it begins. A
/// process carries out 4 orders at once; one more is refused with 503 and `Retry-After`.
#[utoipa::path(post, path = "/v1/dead-letters/replay", tag = "dead letters", request_body = Replaying,
    responses(
        (status = 202, description = "Begun", body = BulkJob,
            headers(("location" = String, description = "The order's path"))),
        Usual, Body))]
async fn replay_many(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    JsonBody(mut body): JsonBody,
) -> Result<Response, Problem> {
    let force = flag(&mut body, "force")?;
    place(&state, &caller, BulkJobKind::Replay, force, body).await
}

/// Discard many dead letters, in the background (scope `operate`)
///
/// The answer tells where to ask how far it has come. It means those that stand when it begins. A
/// process carries out 4 orders at once; one more is refused with 503 and `Retry-After`.
#[utoipa::path(post, path = "/v1/dead-letters/discard", tag = "dead letters", request_body = Discarding,
    responses(
        (status = 202, description = "Begun", body = BulkJob,
            headers(("location" = String, description = "The order's path"))),
        Usual, Body))]
async fn discard_many(
    FromState(state): FromState<State>,
    Operator(caller): Operator,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    place(&state, &caller, BulkJobKind::Discard, false, body).await
}

/// Takes a member that is true or false out of a body; what is left is conditions, read strictly. (Serde
/// refuses no unknown member where one struct is flattened into another.)
fn flag(body: &mut Value, name: &str) -> Result<bool, Problem> {
    match body.as_object_mut().and_then(|members| members.remove(name)) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(value),
        Some(other) => Err(Problem::field(name, format!("is {other}; write true or false"))),
    }
}

async fn place(
    state: &State,
    caller: &Caller,
    kind: BulkJobKind,
    force: bool,
    mut body: Value,
) -> Result<Response, Problem> {
    let all = flag(&mut body, "all")?;
    let conditions: Conditions = typed(body)?;
    if conditions.are_none() && !all {
        let which = "say which: domain, tenant, subscription, reason, state, event_key, since or until; \
                     or {\"all\": true} for all of them";
        return Err(Problem::field("body", which));
    }
    if all && !conditions.are_none() {
        return Err(Problem::field("all", "is given beside conditions; give the one or the others"));
    }
    if conditions.beyond(caller) {
        return Err(Problem::field("tenant", "is another than the token's; leave it out"));
    }
    let filter = conditions.filter(state, caller)?;
    let order = state.orders.place(caller, BulkOrder { kind, filter, force }).await?;
    let location = format!("/v1/orders/{}", order.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(order)).into_response())
}
