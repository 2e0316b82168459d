//! `/v1/subscriptions`: the registry. Secrets are sealed on the way in and never come out.

mod actions;

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
use super::openapi::{Body, Conflicting, Guarded, Keeping, Missing, Required, Usual};
use super::precondition::{Precondition, etag};
use super::problem::{Kind, Problem};
use super::query::{Asked, Named, OfTenant, limit, parsed};
use crate::api::json::Json;
use crate::domain::access::Caller;
use crate::domain::key::EventKey;
use crate::domain::subscription::{
    DEFAULT_TENANT, Subscription, SubscriptionId, SubscriptionRef, SubscriptionState,
};
use crate::management::{
    ManagementError, Naming, PlannedWrite, SubscriptionFilter, WriteAction, read_subscription,
};

/// Another writer came first; what is planned is planned again this often.
const MOST_TRIES: usize = 3;

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(read_one, replace, change, remove))
        .merge(actions::routes())
}

/// Which subscriptions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Of this tenant; a token that is bound to one sees that one alone
    tenant: Option<String>,
    /// That want this event key, such as `user.created`
    #[param(value_type = Option<EventKey>)]
    event: Option<String>,
    /// In this state: `active`, `paused` or `disabled`
    #[param(value_type = Option<SubscriptionState>)]
    state: Option<String>,
    /// At most this many, 1 to 1000; 100 where not given
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Go on behind this one: `next` of the page before
    after: Option<String>,
}

/// Some subscriptions in order of their ids, then their tenants.
#[derive(Debug, Serialize, ToSchema)]
struct SubscriptionList {
    #[schema(value_type = Vec<Subscription>)]
    subscriptions: Vec<Value>,
    /// Where more follow: `after` of the next page.
    next: Option<String>,
}

/// A place in a list, which only this hub reads.
fn cursor(name: &SubscriptionRef) -> String {
    URL_SAFE_NO_PAD.encode(name.token().as_bytes())
}

fn read_cursor(text: &str) -> Result<SubscriptionRef, Problem> {
    let token = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let name = token.and_then(|token| SubscriptionRef::from_token(&token));
    name.ok_or_else(|| Problem::field("after", "is no cursor; write `next` of the page before"))
}

/// List subscriptions (scope `read`)
#[utoipa::path(get, path = "/v1/subscriptions", tag = "subscriptions", params(ListQuery),
    responses((status = 200, description = "A page of them", body = SubscriptionList), Usual))]
async fn list(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    Asked(query): Asked<ListQuery>,
) -> Result<Response, Problem> {
    let _turn = state.turns.turn(caller.tenant()).await;
    let filter = SubscriptionFilter {
        // A tenant that the caller does not reach has nothing to show.
        tenant: caller.tenant().map(str::to_owned).or_else(|| query.tenant.clone()),
        event: parsed("event", query.event.as_deref())?,
        state: parsed("state", query.state.as_deref())?,
    };
    let (limit, after) = (limit(query.limit)?, query.after.as_deref().map(read_cursor).transpose()?);
    let beyond = query.tenant.as_ref().is_some_and(|tenant| !caller.reaches(tenant));
    let (subscriptions, next) = if beyond {
        (Vec::new(), None)
    } else {
        let page =
            state.management.subscription_page(&state.registry, &filter, after.as_ref(), limit).await?;
        (page.subscriptions, page.next.as_ref().map(cursor))
    };
    let subscriptions = subscriptions.iter().map(|stored| stored.subscription.hidden_json()).collect();
    Ok(Json(SubscriptionList { subscriptions, next }).into_response())
}

/// Create a subscription (scope `manage`)
///
/// The same again changes nothing and answers 200.
#[utoipa::path(post, path = "/v1/subscriptions", tag = "subscriptions", request_body = Subscription,
    responses(
        (status = 201, description = "Created", body = Subscription,
            headers(("etag" = String, description = "Its revision"), ("location" = String, description = "Its path"))),
        (status = 200, description = "It is there already, the same", body = Subscription,
            headers(("etag" = String, description = "Its revision"))),
        Usual, Body, Conflicting, Keeping))]
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
    params(("id" = SubscriptionId, Path), OfTenant),
    responses(
        (status = 200, description = "It, with `***` for each secret", body = Subscription,
            headers(("etag" = String, description = "Its revision"))),
        Usual, Conflicting, Missing))]
async fn read_one(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    Named(naming): Named,
) -> Result<Response, Problem> {
    let stored = state.management.subscription(&caller, &naming).await?;
    Ok(shown(StatusCode::OK, &stored.subscription, stored.revision))
}

/// Create or replace a subscription (scope `manage`)
///
/// A secret given as `***` keeps the one that is stored, unless it would be sent elsewhere than before: where
/// scheme, host or port of a URL, the CA or the kind of authentication changes, it has to be given again (422).
/// To replace a subscription, send its etag as `If-Match`;
/// `If-None-Match: *` creates and never replaces.
#[utoipa::path(put, path = "/v1/subscriptions/{id}", tag = "subscriptions", request_body = Subscription,
    params(
        ("id" = SubscriptionId, Path), OfTenant,
        ("if-match" = Option<String>, Header, description = "The etag of the version that is replaced, or `*`"),
        ("if-none-match" = Option<String>, Header, description = "`*`: there is none yet")),
    responses(
        (status = 200, description = "Replaced, or the same already", body = Subscription,
            headers(("etag" = String, description = "Its revision"))),
        (status = 201, description = "Created", body = Subscription,
            headers(("etag" = String, description = "Its revision"))),
        Usual, Body, Conflicting, Keeping, Guarded, Required))]
async fn replace(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    Named(naming): Named,
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
/// A JSON Merge Patch (RFC 7396): what is named is replaced, `null` takes a field away. A stored secret that would
/// be sent elsewhere than before has to be given again (422).
#[utoipa::path(patch, path = "/v1/subscriptions/{id}", tag = "subscriptions",
    request_body(content = Object, content_type = "application/merge-patch+json",
        description = "The members to change, such as {\"delivery\": {\"max_in_flight\": 8}}"),
    params(
        ("id" = SubscriptionId, Path), OfTenant,
        ("if-match" = Option<String>, Header, description = "The etag of the version that is changed, or `*`")),
    responses(
        (status = 200, description = "Changed, or the same already", body = Subscription,
            headers(("etag" = String, description = "Its revision"))),
        Usual, Body, Conflicting, Keeping, Missing, Guarded, Required))]
async fn change(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    Named(naming): Named,
    headers: HeaderMap,
    JsonBody(patch): JsonBody,
) -> Result<Response, Problem> {
    let precondition = Precondition::read(&headers)?;
    if !patch.is_object() {
        return Err(Problem::field("body", "must be an object with the members to change"));
    }
    let stored = state.management.subscription(&caller, &naming).await?;
    precondition.check_replacing(Some(stored.revision))?;
    let Subscription { id, tenant, .. } = &stored.subscription;
    let naming = Naming { id: id.clone(), tenant: Some(tenant.clone()) };
    let mut value = stored.subscription.hidden_json();
    merge_patch(&mut value, patch);
    let subscription = read(&state, &caller, value, Some(&naming))?;
    let write = state.management.plan_write(&caller, subscription).await?;
    // What was patched is what was read.
    if write.expected != stored.revision {
        return Err(ManagementError::Conflict { id: id.to_string() }.into());
    }
    write_if(&state, &Precondition::Any, write).await
}

/// Delete a subscription (scope `manage`)
///
/// What is queued for it is dead-lettered with the reason `removed`.
#[utoipa::path(delete, path = "/v1/subscriptions/{id}", tag = "subscriptions",
    params(
        ("id" = SubscriptionId, Path), OfTenant,
        ("if-match" = Option<String>, Header, description = "The etag of the version that is meant")),
    responses((status = 204, description = "Deleted"), Usual, Conflicting, Missing, Guarded))]
async fn remove(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    Named(naming): Named,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let precondition = Precondition::read(&headers)?;
    let stored = state.management.subscription(&caller, &naming).await?;
    precondition.check(Some(stored.revision))?;
    state.management.remove_subscription(&stored).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Where a new subscription is found: a caller that is bound to no tenant has to name it.
fn location(caller: &Caller, subscription: &Subscription) -> String {
    let Subscription { id, tenant, .. } = subscription;
    match caller.tenant() {
        None if tenant != DEFAULT_TENANT => format!("/v1/subscriptions/{id}?tenant={tenant}"),
        _ => format!("/v1/subscriptions/{id}"),
    }
}

/// Reads and checks a subscription. Path and query name it where the body does not; a token that is
/// bound to a tenant writes for that one where the body names none.
fn read(
    state: &State,
    caller: &Caller,
    mut value: Value,
    naming: Option<&Naming>,
) -> Result<Subscription, Problem> {
    if let Value::Object(members) = &mut value {
        let mut is_given = |field: &str, named: &str, where_: &str| {
            let given = members.entry(field).or_insert_with(|| named.into());
            if given == named {
                return Ok(());
            }
            let problem =
                format!("is not {named:?}, as the {where_} says, and cannot be changed; leave it out");
            Err(Problem::field(field, problem))
        };
        if let Some(Naming { id, tenant }) = naming {
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
    (status, [(name, value)], Json(subscription.hidden_json())).into_response()
}

/// Carries a write out if its precondition holds. What stands already as it is to be is no change,
/// whatever the precondition says (RFC 9110 section 13.1.1).
async fn write_if(
    state: &State,
    precondition: &Precondition,
    write: PlannedWrite,
) -> Result<Response, Problem> {
    let standing = (write.action != WriteAction::Created).then_some(write.expected);
    if write.action != WriteAction::Unchanged || *precondition == Precondition::Absent {
        precondition.check_replacing(standing)?;
    }
    let (revision, action) = state.management.write_subscription(&write).await?;
    match action {
        WriteAction::Created => Ok(shown(StatusCode::CREATED, &write.subscription, revision)),
        WriteAction::Updated | WriteAction::Unchanged => {
            Ok(shown(StatusCode::OK, &write.subscription, revision))
        }
        WriteAction::Conflict => Err(Problem::new(
            Kind::PreconditionFailed,
            "someone else changed it meanwhile; read it again, and write with its etag",
        )),
    }
}

/// RFC 7396.
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
