//! Admission of requests: checks the origin, authenticates the caller, reads the body, and applies the limits of concurrent
//! requests. A request counts against the limits only when it is complete, so that a slow sender holds no slot.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{MatchedPath, Request, State as FromState};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::State;
use super::access::Authentication;
use super::body::{self, BodyMemory, BodyReservation};
use super::limits::{Holder, Resource, Usage, UsageGuard};
use super::listener::ConnectionInfo;
use super::origin;
use super::problem::Problem;
use crate::domain::access::Caller;
use crate::settings::Settings;

/// Time limit of one request, from its complete arrival.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The path whose bodies may be larger than those of all others.
const EVENTS: &str = "/v1/events";

/// The limits of all requests together, and of each caller.
#[derive(Clone)]
pub(super) struct Admission {
    anonymous: bool,
    allowed_hosts: Arc<[String]>,
    requests: Arc<Semaphore>,
    per_peer: usize,
    per_token: usize,
    per_tenant: usize,
    usage: Usage,
    bodies: BodyMemory,
}

/// The resources that a request holds until it is answered.
struct Held {
    _permit: OwnedSemaphorePermit,
    _usage: [Option<UsageGuard>; 3],
    _body: Option<BodyReservation>,
}

impl Admission {
    pub(super) fn new(settings: &Settings, anonymous: bool) -> Self {
        let api = &settings.api;
        let usage = Usage::default();
        Self {
            anonymous,
            allowed_hosts: api.allowed_hosts.clone().into(),
            requests: Arc::new(Semaphore::new(api.requests)),
            per_peer: api.requests_per_peer,
            per_token: api.requests_per_token,
            per_tenant: api.requests_per_tenant,
            bodies: BodyMemory::new(settings, usage.clone()),
            usage,
        }
    }

    pub(super) fn usage(&self) -> &Usage {
        &self.usage
    }
}

/// Admits a request of the management API, and limits its time.
pub(super) async fn admit(FromState(state): FromState<State>, request: Request, next: Next) -> Response {
    let (request, _held) = match enter(&state, request).await {
        Ok(entered) => entered,
        Err(problem) => return problem.into_response(),
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail =
                format!("the request timed out after {} s; try again later", REQUEST_TIMEOUT.as_secs());
            Problem::later(5, detail).into_response()
        }
    }
}

async fn enter(state: &State, request: Request) -> Result<(Request, Held), Problem> {
    let admission = &state.admission;
    let (mut parts, body) = request.into_parts();
    let connection = parts.extensions.get::<ConnectionInfo>().cloned();
    let peer =
        connection.as_ref().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |connection| connection.tracked.peer);
    if admission.anonymous {
        let local = connection.as_ref().and_then(|connection| connection.local);
        origin::check(&parts.method, &parts.uri, &parts.headers, local, &admission.allowed_hosts)
            .map_err(Problem::closing)?;
    }
    let mut caller = state.access.caller(&parts.headers, peer).await;
    let path = parts.extensions.get::<MatchedPath>().map(|path| path.as_str().to_owned());
    // An operation that the caller cannot use, or that does not exist, is answered by the router.
    if let (Some(path), Ok(known)) = (&path, &caller) {
        let decoded = if body.is_end_stream() { Ok(()) } else { body::require_no_encoding(&parts.headers) };
        let checked =
            decoded.and_then(|()| state.query_rules.check(path, &parts.method, parts.uri.query(), known));
        if let Err(problem) = checked {
            let holder = holder_of_bytes(admission, known, peer);
            return Err(body::discard(&admission.bodies, holder, &parts.headers, body, problem).await);
        }
    }
    let (body, reservation) = match (path, &caller) {
        _ if body.is_end_stream() => (Body::empty(), None),
        // An unknown path reads no body.
        (None, _) => (Body::empty(), None),
        // The body of an unauthenticated caller is not read.
        (Some(_), Err(problem)) => return Err(problem.clone().closing()),
        (Some(path), Ok(known)) => {
            let limit = if path == EVENTS {
                state.event_limits.body_limit(&parts.headers)
            } else {
                body::BodyLimit::default()
            };
            let holder = holder_of_bytes(admission, known, peer);
            let (bytes, reservation) =
                body::read(&admission.bodies, holder, &parts.headers, body, limit).await?;
            // The token may have been revoked while the body arrived.
            caller = Ok(state.access.caller(&parts.headers, peer).await.map_err(Problem::closing)?);
            (Body::from(bytes), Some(reservation))
        }
    };
    if let Some(connection) = &connection {
        connection.tracked.has_request_in_hand();
    }
    let of_peer =
        take(admission, Holder::Peer(peer), admission.per_peer, "address", "api.requests_per_peer")?;
    let of_token = match &caller {
        Ok(caller) if !admission.anonymous => {
            let token = Holder::Token(caller.name.clone());
            Some(take(admission, token, admission.per_token, "token", "api.requests_per_token")?)
        }
        _ => None,
    };
    let of_tenant = match caller.as_ref().ok().and_then(Caller::tenant) {
        Some(tenant) => {
            let tenant = Holder::Tenant(tenant.to_owned());
            Some(take(admission, tenant, admission.per_tenant, "tenant", "api.requests_per_tenant")?)
        }
        None => None,
    };
    let permit = admission.requests.clone().try_acquire_owned().map_err(|_| {
        Problem::later(
            1,
            "the API has reached its limit of concurrent requests (api.requests); try again later",
        )
    })?;
    parts.extensions.insert(Authentication(caller));
    let held = Held { _permit: permit, _usage: [Some(of_peer), of_token, of_tenant], _body: reservation };
    Ok((Request::from_parts(parts, body), held))
}

fn take(
    admission: &Admission,
    holder: Holder,
    limit: usize,
    whose: &str,
    setting: &str,
) -> Result<UsageGuard, Problem> {
    admission.usage.take(holder, Resource::Requests, 1, limit).ok_or_else(|| {
        let detail =
            format!("this {whose} has reached its limit of {limit} concurrent requests ({setting}); send fewer at once");
        Problem::too_many(1, detail)
    })
}

/// The holder of a body's memory: the tenant, or the caller itself if it is bound to no tenant.
fn holder_of_bytes(admission: &Admission, caller: &Caller, peer: IpAddr) -> Holder {
    match caller.tenant() {
        Some(tenant) => Holder::Tenant(tenant.to_owned()),
        None if admission.anonymous => Holder::Peer(peer),
        None => Holder::Token(caller.name.clone()),
    }
}
