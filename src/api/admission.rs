//! What a request passes before its handler: where it comes from, who sends it, its body, and its place among the
//! requests in hand. A place is taken only when the whole request is there, so that nobody holds one by being slow.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{MatchedPath, Request, State as FromState};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::State;
use super::access::Known;
use super::body::{self, Bodies, Room};
use super::listener::Connection;
use super::origin;
use super::problem::Problem;
use super::shares::{Holder, Share, Shares, What};
use crate::domain::access::Caller;
use crate::settings::Settings;

/// Longest time for one request, from when all of it is there.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The path whose bodies may be larger than those of all others.
const EVENTS: &str = "/v1/events";

/// What all requests together, and those of one caller, may hold.
#[derive(Clone)]
pub(super) struct Admission {
    anonymous: bool,
    allowed_hosts: Arc<[String]>,
    requests: Arc<Semaphore>,
    per_peer: usize,
    per_token: usize,
    per_tenant: usize,
    shares: Shares,
    bodies: Bodies,
}

/// What a request holds until it is answered.
struct Held {
    _permit: OwnedSemaphorePermit,
    _shares: [Option<Share>; 3],
    _room: Option<Room>,
}

impl Admission {
    pub(super) fn new(settings: &Settings, anonymous: bool) -> Self {
        let api = &settings.api;
        let shares = Shares::default();
        Self {
            anonymous,
            allowed_hosts: api.allowed_hosts.clone().into(),
            requests: Arc::new(Semaphore::new(api.requests)),
            per_peer: api.requests_per_peer,
            per_token: api.requests_per_token,
            per_tenant: api.requests_per_tenant,
            bodies: Bodies::new(settings, shares.clone()),
            shares,
        }
    }

    pub(super) fn shares(&self) -> &Shares {
        &self.shares
    }
}

/// Around every request of the management API.
pub(super) async fn admit(FromState(state): FromState<State>, request: Request, next: Next) -> Response {
    let (request, _held) = match enter(&state, request).await {
        Ok(entered) => entered,
        Err(problem) => return problem.into_response(),
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            Problem::later(5, format!("not done within {} s", REQUEST_TIMEOUT.as_secs())).into_response()
        }
    }
}

async fn enter(state: &State, request: Request) -> Result<(Request, Held), Problem> {
    let admission = &state.admission;
    let (mut parts, body) = request.into_parts();
    let connection = parts.extensions.get::<Connection>().cloned();
    let peer =
        connection.as_ref().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |connection| connection.link.peer);
    if admission.anonymous {
        let local = connection.as_ref().and_then(|connection| connection.local);
        origin::check(&parts.method, &parts.uri, &parts.headers, local, &admission.allowed_hosts)
            .map_err(Problem::closing)?;
    }
    let mut caller = state.access.caller(&parts.headers, peer).await;
    let path = parts.extensions.get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let (body, room) = match (path, &caller) {
        _ if body.is_end_stream() => (Body::empty(), None),
        // Nothing is here that would read it.
        (None, _) => (Body::empty(), None),
        // The body of a stranger is not read.
        (Some(_), Err(problem)) => return Err(problem.clone().closing()),
        (Some(path), Ok(known)) => {
            let limit = if path == EVENTS {
                state.bounds.body_limit(&parts.headers)
            } else {
                body::Limit::of_all_others()
            };
            let holder = holder_of_bytes(admission, known, peer);
            let (bytes, room) = body::read(&admission.bodies, holder, &parts.headers, body, limit).await?;
            // The token may have been revoked while the body came.
            let still = state.access.caller(&parts.headers, peer).await.map_err(Problem::closing)?;
            caller = Ok(still);
            (Body::from(bytes), Some(room))
        }
    };
    if let Some(connection) = &connection {
        connection.link.has_request_in_hand();
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
        Problem::later(1, "the API has as many requests in hand as api.requests allows; try again")
    })?;
    parts.extensions.insert(Known(caller));
    let held = Held { _permit: permit, _shares: [Some(of_peer), of_token, of_tenant], _room: room };
    Ok((Request::from_parts(parts, body), held))
}

fn take(
    admission: &Admission,
    holder: Holder,
    limit: usize,
    whose: &str,
    setting: &str,
) -> Result<Share, Problem> {
    admission.shares.take(holder, What::Requests, 1, limit).ok_or_else(|| {
        Problem::too_many(
            1,
            format!(
                "this {whose} has {limit} requests in hand, as many as {setting} allows; send fewer at once"
            ),
        )
    })
}

/// The tenants share the memory of bodies; a caller who may act for all of them stands for itself.
fn holder_of_bytes(admission: &Admission, caller: &Caller, peer: IpAddr) -> Holder {
    match caller.tenant() {
        Some(tenant) => Holder::Tenant(tenant.to_owned()),
        None if admission.anonymous => Holder::Peer(peer),
        None => Holder::Token(caller.name.clone()),
    }
}
