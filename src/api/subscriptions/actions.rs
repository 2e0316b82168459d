//! What is done with one subscription: paused, resumed, tested, given a new secret; and who would get
//! an event.

use std::time::Duration;

use axum::extract::State as FromState;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{SubscriptionList, shown};
use crate::api::State;
use crate::api::access::{Manager, Reader};
use crate::api::body::MaybeJson;
use crate::api::json::Json;
use crate::api::openapi::{Body, Conflicting, Guarded, Missing, Usual};
use crate::api::precondition::{Precondition, etag};
use crate::api::problem::Problem;
use crate::api::query::{Asked, Named, OfTenant};
use crate::domain::access::Caller;
use crate::domain::duration;
use crate::domain::key::EventKey;
use crate::domain::subscription::{Subscription, SubscriptionId, SubscriptionState};
use crate::management::{
    Algorithm, Before, LONGEST_OVERLAP, Naming, Sample, SampleAttempt, Stored, VerifyWith,
};

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new()
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(test))
        .routes(routes!(rotate_secret))
        .routes(routes!(matches))
}

/// Pause a subscription: no envelopes are made for it (scope `manage`)
#[utoipa::path(post, path = "/v1/subscriptions/{id}/pause", tag = "subscriptions",
    params(("id" = SubscriptionId, Path), OfTenant, ("if-match" = Option<String>, Header)),
    responses(
        (status = 200, description = "Paused", body = Subscription,
            headers(("etag" = String, description = "Its revision"))),
        Usual, Conflicting, Missing, Guarded))]
async fn pause(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    Named(naming): Named,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    set_state(&state, &caller, &naming, &headers, SubscriptionState::Paused).await
}

/// Resume a subscription that is paused, or that the hub has disabled (scope `manage`)
#[utoipa::path(post, path = "/v1/subscriptions/{id}/resume", tag = "subscriptions",
    params(("id" = SubscriptionId, Path), OfTenant, ("if-match" = Option<String>, Header)),
    responses(
        (status = 200, description = "Active", body = Subscription,
            headers(("etag" = String, description = "Its revision"))),
        Usual, Conflicting, Missing, Guarded))]
async fn resume(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    Named(naming): Named,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    set_state(&state, &caller, &naming, &headers, SubscriptionState::Active).await
}

/// What to send as a sample.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TestOrder {
    /// Its event key; one that the subscription wants where not given
    #[serde(default)]
    event: Option<EventKey>,
}

/// Send a sample event to the endpoint, once, and show request and answer (scope `manage`)
#[utoipa::path(post, path = "/v1/subscriptions/{id}/test", tag = "subscriptions", request_body = Option<TestOrder>,
    params(("id" = SubscriptionId, Path), OfTenant),
    responses(
        (status = 200, description = "What was sent and what came back, whatever it is", body = SampleAttempt),
        Usual, Body, Conflicting, Missing))]
async fn test(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    Named(naming): Named,
    MaybeJson(order): MaybeJson<TestOrder>,
) -> Result<Response, Problem> {
    let stored = state.management.subscription(&caller, &naming).await?;
    let attempt = state.management.test_subscription(&stored.subscription, order.event).await?;
    Ok(Json(attempt).into_response())
}

/// How to rotate.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct RotateOrder {
    /// How long the secret before signs beside the new one: `24h` where not given, `0s` for not at all
    #[serde(with = "duration")]
    #[schema(value_type = String, default = "24h", example = "24h")]
    overlap: Duration,
    /// The newest secret was lost before a receiver had it: it ends, and the one before it goes on signing for its time
    replace: bool,
    /// The kind of the new secret; that of the one before where not given
    algorithm: Option<SigningAlgorithm>,
}

impl Default for RotateOrder {
    fn default() -> Self {
        Self { overlap: Duration::from_secs(24 * 3600), replace: false, algorithm: None }
    }
}

/// The kind of a signing secret.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum SigningAlgorithm {
    /// HMAC-SHA256: the receiver has the same secret (`whsec_`)
    Hmac,
    /// ed25519: the receiver has the public key (`whpk_`)
    Ed25519,
}

/// What the receiver verifies with; it is told this once.
#[derive(Debug, Serialize, ToSchema)]
struct NewSecret {
    id: SubscriptionId,
    /// `whsec_…`, where both sides have the same
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    /// `whpk_…`, where the hub alone can sign
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    /// Until when the secret before signs beside it
    #[serde(with = "time::serde::rfc3339::option")]
    previous_until: Option<time::OffsetDateTime>,
    /// A secret before that one was to sign until then, and does so no more
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    ended_before: Option<time::OffsetDateTime>,
}

/// Sign with a new secret, and show what the receiver verifies with, this once (scope `manage`)
#[utoipa::path(post, path = "/v1/subscriptions/{id}/rotate-secret", tag = "subscriptions",
    request_body = Option<RotateOrder>,
    params(("id" = SubscriptionId, Path), OfTenant, ("if-match" = Option<String>, Header)),
    responses(
        (status = 200, description = "The new secret, or its public key", body = NewSecret,
            headers(("etag" = String, description = "The subscription's revision"))),
        Usual, Body, Conflicting, Missing, Guarded))]
async fn rotate_secret(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    Named(naming): Named,
    headers: HeaderMap,
    MaybeJson(order): MaybeJson<RotateOrder>,
) -> Result<Response, Problem> {
    if order.overlap > LONGEST_OVERLAP {
        return Err(Problem::field("overlap", "is longer than 365d; write a shorter one, such as 24h"));
    }
    let secrets = if order.replace { Before::IsReplaced } else { Before::Overlaps(order.overlap) };
    let stored = guarded(&state, &caller, &naming, &headers).await?;
    let id = stored.subscription.id.clone();
    let algorithm = order.algorithm.map(|algorithm| match algorithm {
        SigningAlgorithm::Hmac => Algorithm::HmacSha256,
        SigningAlgorithm::Ed25519 => Algorithm::Ed25519,
    });
    let rotated = state.management.rotate_secret(stored, secrets, algorithm).await?;
    let (secret, public_key) = match rotated.verify_with {
        VerifyWith::Secret(secret) => (Some(secret.expose_secret().to_owned()), None),
        VerifyWith::PublicKey(key) => (None, Some(key)),
    };
    let body = NewSecret {
        id,
        secret,
        public_key,
        previous_until: rotated.previous_until,
        ended_before: rotated.ended_before,
    };
    // It must not lie in a cache on the way.
    let headers =
        [etag(rotated.revision), (header::CACHE_CONTROL, "no-store".parse().expect("a header's value"))];
    Ok((headers.into_iter().collect::<HeaderMap>(), Json(body)).into_response())
}

/// An event that was not published.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct MatchQuery {
    /// Its key, such as `user.created`
    #[param(value_type = EventKey)]
    event: String,
    /// Its tenant: the token's, or `default`, where not given
    tenant: Option<String>,
    /// Its source; `nats` where not given
    source: Option<String>,
}

/// Who would get an event (scope `read`)
#[utoipa::path(get, path = "/v1/matches", tag = "subscriptions", params(MatchQuery),
    responses((status = 200, description = "The subscriptions that would get it", body = SubscriptionList), Usual))]
async fn matches(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    Asked(query): Asked<MatchQuery>,
) -> Result<Response, Problem> {
    let sample = Sample {
        key: query.event.parse().map_err(|error| Problem::field("event", format!("{error}")))?,
        tenant: state.management.sample_tenant(&caller, query.tenant)?,
        source: query.source.unwrap_or_else(|| "nats".to_owned()),
        attributes: Vec::new(),
    };
    let _turn = state.turns.turn(caller.tenant()).await;
    let (found, _) = state.management.matching(&sample).await?;
    let subscriptions = found.iter().map(|stored| stored.subscription.hidden_json()).collect();
    Ok(Json(SubscriptionList { subscriptions, next: None }).into_response())
}

async fn guarded(
    state: &State,
    caller: &Caller,
    naming: &Naming,
    headers: &HeaderMap,
) -> Result<Stored, Problem> {
    let precondition = Precondition::read(headers)?;
    let stored = state.management.subscription(caller, naming).await?;
    precondition.check(Some(stored.revision))?;
    Ok(stored)
}

async fn set_state(
    state: &State,
    caller: &Caller,
    naming: &Naming,
    headers: &HeaderMap,
    standing: SubscriptionState,
) -> Result<Response, Problem> {
    let stored = guarded(state, caller, naming, headers).await?;
    let (stored, _) = state.management.set_state(stored, standing).await?;
    Ok(shown(StatusCode::OK, &stored.subscription, stored.revision))
}
