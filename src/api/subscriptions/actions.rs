//! Actions on one subscription (pause, resume, test, rotate its secret), and the subscriptions that match an event.

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
use crate::api::openapi::{
    BodyProblems, CommonProblems, ConflictProblem, NotFoundProblem, PreconditionFailedProblem,
};
use crate::api::precondition::{Precondition, etag};
use crate::api::problem::Problem;
use crate::api::query::{QueryParams, SubscriptionPath, TenantParam};
use crate::api::request_log::of_tenant;
use crate::domain::access::Caller;
use crate::domain::duration;
use crate::domain::event::Rejection;
use crate::domain::key::EventKey;
use crate::domain::subscription::{Subscription, SubscriptionId, SubscriptionState};
use crate::management::{
    Algorithm, LONGEST_OVERLAP, PreviousSecret, Sample, SampleAttempt, StateSet, StoredSubscription,
    SubscriptionSelector, VerificationKey, categories,
};

/// Header of the answer to a resume: whether the subscription was held.
const HOLD_ENDED: &str = "hub-hold-ended";

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new()
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(test))
        .routes(routes!(rotate_secret))
        .routes(routes!(matches))
}

/// Pause a subscription: it gets no new events (scope `manage`)
///
/// Events that are published while it is paused are not stored for it. To keep them, pause the domain.
#[utoipa::path(post, path = "/v1/subscriptions/{id}/pause", tag = "subscriptions",
    params(("id" = SubscriptionId, Path), TenantParam, ("if-match" = Option<String>, Header)),
    responses(
        (status = 200, description = "Paused", body = Subscription,
            headers(("etag" = String, description = "Revision"))),
        CommonProblems, ConflictProblem, NotFoundProblem, PreconditionFailedProblem))]
async fn pause(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    SubscriptionPath(naming): SubscriptionPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let set = set_state(&state, &caller, &naming, &headers, SubscriptionState::Paused).await?;
    Ok(shown(StatusCode::OK, &set.stored.subscription, set.stored.revision))
}

/// Resume a paused or disabled subscription (scope `manage`)
///
/// Also of an active one, a probe is sent at once if its circuit is open, and a hold (its endpoint answered with
/// `Retry-After`) ends in all domains. The header `hub-hold-ended` is `true` if it was held.
#[utoipa::path(post, path = "/v1/subscriptions/{id}/resume", tag = "subscriptions",
    params(("id" = SubscriptionId, Path), TenantParam, ("if-match" = Option<String>, Header)),
    responses(
        (status = 200, description = "Active", body = Subscription,
            headers(
                ("etag" = String, description = "Revision"),
                ("hub-hold-ended" = bool, description = "Whether the subscription was held"))),
        CommonProblems, ConflictProblem, NotFoundProblem, PreconditionFailedProblem))]
async fn resume(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    SubscriptionPath(naming): SubscriptionPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let set = set_state(&state, &caller, &naming, &headers, SubscriptionState::Active).await?;
    let ended = if set.hold_ended { "true" } else { "false" };
    let shown = shown(StatusCode::OK, &set.stored.subscription, set.stored.revision);
    Ok(([(HOLD_ENDED, ended)], shown).into_response())
}

/// The sample event.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TestOrder)]
struct TestRequest {
    /// Event key. Default: a key that the subscription matches
    #[serde(default)]
    event: Option<EventKey>,
}

/// Send a sample event to the endpoint once, and return request and answer (scope `manage`)
#[utoipa::path(post, path = "/v1/subscriptions/{id}/test", tag = "subscriptions", request_body = Option<TestRequest>,
    params(("id" = SubscriptionId, Path), TenantParam),
    responses(
        (status = 200, description = "The request and its answer, whether it was accepted or not", body = SampleAttempt),
        CommonProblems, BodyProblems, ConflictProblem, NotFoundProblem))]
async fn test(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    SubscriptionPath(naming): SubscriptionPath,
    MaybeJson(options): MaybeJson<TestRequest>,
) -> Result<Response, Problem> {
    let stored = state.management.subscription_to_change(&caller, &naming).await?;
    let attempt = state.management.test_subscription(&stored.subscription, options.event).await?;
    Ok(of_tenant(&stored.subscription.tenant, Json(attempt).into_response()))
}

/// Options of a rotation.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = RotateOrder)]
struct RotateRequest {
    /// Time for which the previous secret also signs. `0s`: not at all
    #[serde(with = "duration")]
    #[schema(value_type = String, default = "24h", example = "24h")]
    overlap: Duration,
    /// Replace the newest secret, because it was lost before a receiver had it. It stops signing; the previous secret keeps
    /// signing until its end
    replace: bool,
    /// Kind of the new secret. Default: the kind of the previous secret
    algorithm: Option<SigningAlgorithm>,
}

impl Default for RotateRequest {
    fn default() -> Self {
        Self { overlap: Duration::from_secs(24 * 3600), replace: false, algorithm: None }
    }
}

/// Kind of a signing secret.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum SigningAlgorithm {
    /// HMAC-SHA256: the receiver has the same secret (`whsec_`)
    Hmac,
    /// ed25519: the receiver has the public key (`whpk_`)
    Ed25519,
}

/// The key that the receiver verifies with. It is shown only once.
#[derive(Debug, Serialize, ToSchema)]
struct NewSecret {
    id: SubscriptionId,
    /// `whsec_…`, for HMAC-SHA256
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    /// `whpk_…`, for ed25519
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    /// End of the overlap, in which the previous secret also signs
    #[serde(with = "time::serde::rfc3339::option")]
    previous_until: Option<time::OffsetDateTime>,
    /// Planned end of an older secret that stopped signing with this rotation
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    ended_before: Option<time::OffsetDateTime>,
}

/// Rotate the signing secret, and return the key to verify with, only once (scope `manage`)
#[utoipa::path(post, path = "/v1/subscriptions/{id}/rotate-secret", tag = "subscriptions",
    request_body = Option<RotateRequest>,
    params(("id" = SubscriptionId, Path), TenantParam, ("if-match" = Option<String>, Header)),
    responses(
        (status = 200, description = "The new secret, or its public key", body = NewSecret,
            headers(("etag" = String, description = "Revision of the subscription"))),
        CommonProblems, BodyProblems, ConflictProblem, NotFoundProblem, PreconditionFailedProblem))]
async fn rotate_secret(
    FromState(state): FromState<State>,
    Manager(caller): Manager,
    SubscriptionPath(naming): SubscriptionPath,
    headers: HeaderMap,
    MaybeJson(options): MaybeJson<RotateRequest>,
) -> Result<Response, Problem> {
    if options.overlap > LONGEST_OVERLAP {
        return Err(Problem::field("overlap", "is longer than 365d; send a shorter one, such as 24h"));
    }
    let secrets =
        if options.replace { PreviousSecret::IsReplaced } else { PreviousSecret::Overlaps(options.overlap) };
    let stored = read_checked(&state, &caller, &naming, &headers).await?;
    let (id, tenant) = (stored.subscription.id.clone(), stored.subscription.tenant.clone());
    let algorithm = options.algorithm.map(|algorithm| match algorithm {
        SigningAlgorithm::Hmac => Algorithm::HmacSha256,
        SigningAlgorithm::Ed25519 => Algorithm::Ed25519,
    });
    let rotated = state.management.rotate_secret(stored, secrets, algorithm).await?;
    let (secret, public_key) = match rotated.verify_with {
        VerificationKey::Secret(secret) => (Some(secret.expose_secret().to_owned()), None),
        VerificationKey::PublicKey(key) => (None, Some(key)),
    };
    let body = NewSecret {
        id,
        secret,
        public_key,
        previous_until: rotated.previous_until,
        ended_before: rotated.ended_before,
    };
    // No cache may store the secret.
    let headers =
        [etag(rotated.revision), (header::CACHE_CONTROL, "no-store".parse().expect("a valid header value"))];
    let answer = (headers.into_iter().collect::<HeaderMap>(), Json(body)).into_response();
    Ok(of_tenant(&tenant, answer))
}

/// An event to match, which is not published.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct MatchQuery {
    /// Event key, such as `user.created`
    #[param(value_type = EventKey)]
    event: String,
    /// Tenant. Default: the token's tenant, or `default`
    tenant: Option<String>,
    /// Source. Default: `nats`
    source: Option<String>,
}

/// List the subscriptions that match an event (scope `read`)
#[utoipa::path(get, path = "/v1/matches", tag = "subscriptions", params(MatchQuery),
    responses((status = 200, description = "The subscriptions that would get the event", body = SubscriptionList), CommonProblems))]
async fn matches(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    QueryParams(query): QueryParams<MatchQuery>,
) -> Result<Response, Problem> {
    let sample = Sample {
        key: query.event.parse().map_err(|error| Problem::field("event", format!("{error}")))?,
        tenant: state.management.sample_tenant(&caller, query.tenant)?,
        source: query.source.unwrap_or_else(|| "nats".to_owned()),
        attributes: Vec::new(),
    };
    // This process may run without the event processor, but it publishes by the same rule.
    if categories(state.management.settings()).domain_of(&sample.key).is_none() {
        return Err(Problem::field("event", Rejection::no_domain(&sample.key).detail));
    }
    let _permit = state.broad_reads.permit(caller.tenant()).await;
    let (found, _) = state.management.matching(&sample).await?;
    let subscriptions = found.iter().map(|stored| stored.subscription.hidden_json()).collect();
    Ok(Json(SubscriptionList { subscriptions, next: None }).into_response())
}

/// Reads a subscription and checks the precondition.
async fn read_checked(
    state: &State,
    caller: &Caller,
    naming: &SubscriptionSelector,
    headers: &HeaderMap,
) -> Result<StoredSubscription, Problem> {
    let precondition = Precondition::read(headers)?;
    let stored = state.management.subscription_to_change(caller, naming).await?;
    precondition.check(Some(stored.revision))?;
    Ok(stored)
}

async fn set_state(
    state: &State,
    caller: &Caller,
    naming: &SubscriptionSelector,
    headers: &HeaderMap,
    new_state: SubscriptionState,
) -> Result<StateSet, Problem> {
    let stored = read_checked(state, caller, naming, headers).await?;
    Ok(state.management.set_state(stored, new_state).await?)
}
