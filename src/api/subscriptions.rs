//! `/v1/subscriptions`: the registry. Secrets are sealed when they are stored, and never returned.

mod actions;
mod circuits;

use axum::extract::State as FromState;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::State;
use super::access::{Manager, Reader};
use super::body::JsonBody;
use super::openapi::{
    BodyProblems, CommonProblems, ConflictProblem, NotFoundProblem, PreconditionFailedProblem,
    PreconditionRequiredProblem, SecretRequiredProblem,
};
use super::precondition::{Precondition, etag};
use super::problem::{Problem, ProblemKind};
use super::query::{QueryParams, SubscriptionPath, TenantParam, limit, parsed};
use super::request_log::of_tenant;
use crate::api::json::Json;
use crate::domain::access::Caller;
use crate::domain::key::EventKey;
use crate::domain::subscription::{
    DEFAULT_TENANT, Subscription, SubscriptionId, SubscriptionRef, SubscriptionState,
};
use crate::management::{
    ManagementError, PlannedWrite, SubscriptionFilter, SubscriptionSelector, WriteAction, read_subscription,
};

/// Number of tries of a write that another writer overtakes.
const MOST_TRIES: usize = 3;

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(read_one, replace, change, remove))
        .merge(actions::routes())
        .merge(circuits::routes())
}

/// Selects subscriptions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SubscriptionListQuery {
    /// Tenant. A token that is bound to a tenant can only list that tenant
    tenant: Option<String>,
    /// Event key that the subscription matches, such as `user.created`
    #[param(value_type = Option<EventKey>)]
    event: Option<String>,
    /// State: `active`, `paused` or `disabled`
    #[param(value_type = Option<SubscriptionState>)]
    state: Option<String>,
    /// Maximum number of entries, 1 to 1000. Default: 100
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Cursor: `next` of the previous page
    after: Option<String>,
}

/// A page of subscriptions, sorted by id, then by tenant.
#[derive(Debug, Serialize, ToSchema)]
struct SubscriptionList {
    #[schema(value_type = Vec<Subscription>)]
    subscriptions: Vec<Value>,
    /// Value of `after` for the next page; `null` on the last page.
    next: Option<String>,
}

/// An opaque cursor: the subscription that the page ended with.
fn cursor(name: &SubscriptionRef) -> String {
    URL_SAFE_NO_PAD.encode(name.token().as_bytes())
}

fn read_cursor(text: &str) -> Result<SubscriptionRef, Problem> {
    let token = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let name = token.and_then(|token| SubscriptionRef::from_token(&token));
    name.ok_or_else(|| Problem::field("after", "is not a cursor; send `next` of the previous page"))
}

/// List subscriptions (scope `read`)
#[utoipa::path(get, path = "/v1/subscriptions", tag = "subscriptions", params(SubscriptionListQuery),
    responses((status = 200, description = "A page of subscriptions", body = SubscriptionList), CommonProblems))]
async fn list(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    QueryParams(query): QueryParams<SubscriptionListQuery>,
) -> Result<Response, Problem> {
    let _permit = state.broad_reads.permit(caller.tenant()).await;
    let filter = SubscriptionFilter {
        tenant: caller.tenant().map(str::to_owned).or(query.tenant),
        event: parsed("event", query.event.as_deref())?,
        state: parsed("state", query.state.as_deref())?,
    };
    let (limit, after) = (limit(query.limit)?, query.after.as_deref().map(read_cursor).transpose()?);
    let page = state.management.subscription_page(&state.registry, &filter, after.as_ref(), limit).await?;
    let next = page.next.as_ref().map(cursor);
    let subscriptions = page.subscriptions.iter().map(|stored| stored.subscription.hidden_json()).collect();
    Ok(Json(SubscriptionList { subscriptions, next }).into_response())
}

/// Create a subscription (scope `manage`)
///
/// An identical request changes nothing and returns 200.
#[utoipa::path(post, path = "/v1/subscriptions", tag = "subscriptions", request_body = Subscription,
    responses(
        (status = 201, description = "Created", body = Subscription,
            headers(("etag" = String, description = "Revision"), ("location" = String, description = "Path"))),
        (status = 200, description = "An identical subscription already exists", body = Subscription,
            headers(("etag" = String, description = "Revision"))),
        CommonProblems, BodyProblems, ConflictProblem, SecretRequiredProblem))]
async fn create(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    JsonBody(value): JsonBody,
) -> Result<Response, Problem> {
    let subscription = read(&state, &caller, value, None)?;
    let id = subscription.id.clone();
    for _ in 0..MOST_TRIES {
        let write = state.management.plan_write(&caller, subscription.clone()).await?;
        if write.action == WriteAction::Updated {
            return Err(ManagementError::Exists { id: id.to_string() }.into());
        }
        let (revision, action) = state.management.write_subscription(&write).await?;
        match action {
            WriteAction::Conflict => continue,
            WriteAction::Created => {
                let location = location(&caller, &write.subscription);
                let shown = shown(StatusCode::CREATED, &write.subscription, revision);
                return Ok(([(header::LOCATION, location)], shown).into_response());
            }
            _ => return Ok(shown(StatusCode::OK, &write.subscription, revision)),
        }
    }
    Err(ManagementError::Conflict { id: id.to_string() }.into())
}

/// Read a subscription (scope `read`)
#[utoipa::path(get, path = "/v1/subscriptions/{id}", tag = "subscriptions",
    params(("id" = SubscriptionId, Path), TenantParam),
    responses(
        (status = 200, description = "The subscription, with `***` for each secret", body = Subscription,
            headers(("etag" = String, description = "Revision"))),
        CommonProblems, ConflictProblem, NotFoundProblem))]
async fn read_one(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    SubscriptionPath(naming): SubscriptionPath,
) -> Result<Response, Problem> {
    let stored = state.management.subscription(&caller, &naming).await?;
    Ok(shown(StatusCode::OK, &stored.subscription, stored.revision))
}

/// Create or replace a subscription (scope `manage`)
///
/// A secret sent as `***` keeps its stored value. If the scheme, host or port of a URL, the CA or the kind of
/// authentication changes, the stored secret would be sent to another destination, so it must be sent again (422).
/// To replace a subscription, send its etag as `If-Match`; `If-None-Match: *` creates and never replaces.
#[utoipa::path(put, path = "/v1/subscriptions/{id}", tag = "subscriptions", request_body = Subscription,
    params(
        ("id" = SubscriptionId, Path), TenantParam,
        ("if-match" = Option<String>, Header, description = "Etag of the version to replace, or `*`"),
        ("if-none-match" = Option<String>, Header, description = "`*`: create only, never replace")),
    responses(
        (status = 200, description = "Replaced, or unchanged", body = Subscription,
            headers(("etag" = String, description = "Revision"))),
        (status = 201, description = "Created", body = Subscription,
            headers(("etag" = String, description = "Revision"))),
        CommonProblems, BodyProblems, ConflictProblem, SecretRequiredProblem, PreconditionFailedProblem, PreconditionRequiredProblem))]
async fn replace(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    SubscriptionPath(naming): SubscriptionPath,
    headers: HeaderMap,
    JsonBody(value): JsonBody,
) -> Result<Response, Problem> {
    let precondition = Precondition::read(&headers)?;
    let subscription = read(&state, &caller, value, Some(&naming))?;
    let write = state.management.plan_write(&caller, subscription).await?;
    write_if(&state, &precondition, write).await
}

/// Change parts of a subscription (scope `manage`)
///
/// A JSON Merge Patch (RFC 7396): replaces the named members; `null` removes a member. A stored secret that would be sent
/// to another destination must be sent again (422).
#[utoipa::path(patch, path = "/v1/subscriptions/{id}", tag = "subscriptions",
    request_body(content = Object, content_type = "application/merge-patch+json",
        description = "Members to change, such as {\"delivery\": {\"max_in_flight\": 8}}"),
    params(
        ("id" = SubscriptionId, Path), TenantParam,
        ("if-match" = Option<String>, Header, description = "Etag of the version to change, or `*`")),
    responses(
        (status = 200, description = "Changed, or unchanged", body = Subscription,
            headers(("etag" = String, description = "Revision"))),
        CommonProblems, BodyProblems, ConflictProblem, SecretRequiredProblem, NotFoundProblem, PreconditionFailedProblem, PreconditionRequiredProblem))]
async fn change(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    SubscriptionPath(naming): SubscriptionPath,
    headers: HeaderMap,
    JsonBody(patch): JsonBody,
) -> Result<Response, Problem> {
    let precondition = Precondition::read(&headers)?;
    if !patch.is_object() {
        return Err(Problem::field("body", "must be a JSON object with the members to change"));
    }
    let stored = state.management.subscription_to_change(&caller, &naming).await?;
    precondition.check_replacing(Some(stored.revision))?;
    let Subscription { id, tenant, .. } = &stored.subscription;
    let naming = SubscriptionSelector { id: id.clone(), tenant: Some(tenant.clone()) };
    let mut value = stored.subscription.hidden_json();
    merge_patch(&mut value, patch);
    let subscription = read(&state, &caller, value, Some(&naming))?;
    let write = state.management.plan_write(&caller, subscription).await?;
    // The patch was applied to the version that was read.
    if write.expected != stored.revision {
        return Err(ManagementError::Conflict { id: id.to_string() }.into());
    }
    write_if(&state, &Precondition::Any, write).await
}

/// Delete a subscription (scope `manage`)
///
/// Its waiting envelopes become dead letters with the reason `removed`.
#[utoipa::path(delete, path = "/v1/subscriptions/{id}", tag = "subscriptions",
    params(
        ("id" = SubscriptionId, Path), TenantParam,
        ("if-match" = Option<String>, Header, description = "Etag of the version to delete")),
    responses((status = 204, description = "Deleted"), CommonProblems, ConflictProblem, NotFoundProblem, PreconditionFailedProblem))]
async fn remove(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    SubscriptionPath(naming): SubscriptionPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let precondition = Precondition::read(&headers)?;
    let stored = state.management.subscription_to_change(&caller, &naming).await?;
    precondition.check(Some(stored.revision))?;
    state.management.remove_subscription(&stored).await?;
    Ok(of_tenant(&stored.subscription.tenant, StatusCode::NO_CONTENT.into_response()))
}

/// The path of a new subscription, with the tenant if the caller is bound to none.
fn location(caller: &Caller, subscription: &Subscription) -> String {
    let Subscription { id, tenant, .. } = subscription;
    match caller.tenant() {
        None if tenant != DEFAULT_TENANT => format!("/v1/subscriptions/{id}?tenant={tenant}"),
        _ => format!("/v1/subscriptions/{id}"),
    }
}

/// Parses and checks a subscription. Id and tenant default to those of the path, the query and the token.
fn read(
    state: &State,
    caller: &Caller,
    mut value: Value,
    naming: Option<&SubscriptionSelector>,
) -> Result<Subscription, Problem> {
    if let Value::Object(members) = &mut value {
        let mut is_given = |field: &str, named: &str, where_: &str| {
            let given = members.entry(field).or_insert_with(|| named.into());
            if given == named {
                return Ok(());
            }
            let problem = format!("must be {named:?}, as in the {where_}; leave it out");
            Err(Problem::field(field, problem))
        };
        if let Some(SubscriptionSelector { id, tenant }) = naming {
            is_given("id", id.as_str(), "path")?;
            if let Some(tenant) = tenant.as_deref() {
                is_given("tenant", tenant, "request")?;
            }
        }
        if let Some(tenant) = caller.tenant() {
            members.entry("tenant").or_insert_with(|| tenant.into());
        }
    }
    read_subscription(state.management.settings(), value).map_err(Problem::fields)
}

fn shown(status: StatusCode, subscription: &Subscription, revision: u64) -> Response {
    let (name, value) = etag(revision);
    let answer = (status, [(name, value)], Json(subscription.hidden_json())).into_response();
    of_tenant(&subscription.tenant, answer)
}

/// Writes a subscription if the precondition holds. An identical write is accepted whatever the precondition (RFC 9110
/// section 13.1.1).
async fn write_if(
    state: &State,
    precondition: &Precondition,
    write: PlannedWrite,
) -> Result<Response, Problem> {
    let current = (write.action != WriteAction::Created).then_some(write.expected);
    if write.action != WriteAction::Unchanged || *precondition == Precondition::Absent {
        precondition.check_replacing(current)?;
    }
    let (revision, action) = state.management.write_subscription(&write).await?;
    match action {
        WriteAction::Created => Ok(shown(StatusCode::CREATED, &write.subscription, revision)),
        WriteAction::Updated | WriteAction::Unchanged => {
            Ok(shown(StatusCode::OK, &write.subscription, revision))
        }
        WriteAction::Conflict => Err(Problem::header(
            ProblemKind::PreconditionFailed,
            "if-match",
            "the subscription was changed meanwhile; read it again and retry with its etag",
        )),
    }
}

/// Applies a JSON Merge Patch (RFC 7396).
fn merge_patch(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(members) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            members.remove(&name);
        } else {
            merge_patch(members.entry(name).or_insert(Value::Null), value);
        }
    }
}
