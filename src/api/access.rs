//! Authentication with bearer tokens (RFC 6750), and one extractor per scope, so that every handler names the scope it
//! needs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, WeakShared};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::State;
use super::limits::{Holder, RateLimiter};
use super::problem::{Problem, ProblemKind};
use crate::domain::access::{Caller, PresentedToken, Scope, StoredToken, TokenId};
use crate::management::Management;

/// Lifetime of a cached look-up: after this time a revoked token is refused, and a new one accepted.
const FRESH: Duration = Duration::from_secs(1);
/// Time for which a token counts as known, so that looking it up again is not limited.
const KNOWN: Duration = Duration::from_secs(600);
/// Maximum number of cached tokens, and of cached unknown names; further ones are looked up every time.
const MOST_REMEMBERED: usize = 1_024;
/// Concurrent look-ups of unknown tokens.
const UNKNOWN_AT_ONCE: usize = 16;
/// Burst of unknown tokens of a peer, in seconds of its rate.
const BURST_SECONDS: usize = 5;

/// The result of authentication, which admission leaves for the extractors.
#[derive(Clone)]
pub(super) struct Authentication(pub(super) Result<Caller, Problem>);

type LookUp = BoxFuture<'static, Result<Option<StoredToken>, Problem>>;

/// Looks up tokens in the broker. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Access {
    management: Management,
    /// True if requests need no token.
    anonymous: bool,
    /// Unknown tokens per peer and second; 0 means no limit.
    unknown_per_peer: usize,
    cache: Arc<Mutex<TokenCache>>,
    unknown_tokens: RateLimiter,
    lookups: Arc<Semaphore>,
}

#[derive(Default)]
struct TokenCache {
    tokens: HashMap<TokenId, (Instant, StoredToken)>,
    unknown: HashMap<TokenId, Instant>,
    /// Look-ups in progress. Requests with the same token wait for the same one; it ends with the last of them.
    in_progress: HashMap<TokenId, WeakShared<LookUp>>,
}

impl TokenCache {
    fn remember(&mut self, id: &TokenId, token: Option<&StoredToken>, now: Instant) {
        let Some(token) = token else {
            self.tokens.remove(id);
            if self.unknown.len() >= MOST_REMEMBERED {
                self.unknown.retain(|_, at| now.duration_since(*at) < FRESH);
            }
            if self.unknown.len() < MOST_REMEMBERED {
                self.unknown.insert(id.clone(), now);
            }
            return;
        };
        self.unknown.remove(id);
        if self.tokens.len() >= MOST_REMEMBERED {
            self.tokens.retain(|_, (at, _)| now.duration_since(*at) < FRESH);
        }
        if self.tokens.len() < MOST_REMEMBERED {
            self.tokens.insert(id.clone(), (now, token.clone()));
        }
    }
}

/// A request without a bearer token.
fn required(problem: &str) -> Problem {
    let remedy =
        "send `authorization: Bearer <token>`, and create one with `hub token create NAME --scope read`";
    Problem::unauthenticated("Bearer", format!("{problem}; {remedy}"))
}

fn unknown() -> Problem {
    Problem::unauthenticated(
        "Bearer error=\"invalid_token\"",
        "the token is unknown, revoked or expired; list the valid tokens with `hub token list`",
    )
}

/// The scheme and the credentials of an `Authorization` header.
fn parts(value: &HeaderValue) -> Option<(&str, &str)> {
    value.to_str().ok()?.split_once(' ')
}

fn is_bearer(value: &HeaderValue) -> bool {
    parts(value).is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
}

/// The bearer token of an `Authorization` header.
fn presented(value: &HeaderValue) -> Option<PresentedToken> {
    parts(value).and_then(|(_, token)| PresentedToken::read(token.trim()))
}

impl Access {
    pub(crate) fn new(management: Management, anonymous: bool) -> Self {
        Self {
            anonymous,
            unknown_per_peer: management.settings().api.unknown_tokens_per_peer,
            management,
            cache: Arc::default(),
            unknown_tokens: RateLimiter::new(),
            lookups: Arc::new(Semaphore::new(UNKNOWN_AT_ONCE)),
        }
    }

    /// Authenticates a request by its headers.
    pub(super) async fn caller(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Caller, Problem> {
        if self.anonymous {
            return Ok(Caller::unbound("anonymous"));
        }
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let Some(value) = values.next() else {
            return Err(required("a token is required"));
        };
        // A proxy may have checked another one than the hub.
        if values.next().is_some() {
            return Err(Problem::unauthenticated(
                "Bearer error=\"invalid_request\"",
                "the header is sent more than once; send it once",
            ));
        }
        if !is_bearer(value) {
            self.take_failure(peer)?;
            return Err(required("the authorization header is not a bearer token"));
        }
        let Some(presented) = presented(value) else { return Err(self.failed(peer)) };
        match self.stored(&presented.id, peer).await? {
            Some(stored) if stored.admits(&presented, self.management.now()) => Ok(Caller::of(&stored)),
            _ => Err(self.failed(peer)),
        }
    }

    /// Counts a failed authentication of the peer, whatever is wrong with the token.
    fn failed(&self, peer: IpAddr) -> Problem {
        self.take_failure(peer).err().unwrap_or_else(unknown)
    }

    /// Takes one failed authentication from the peer's rate.
    fn take_failure(&self, peer: IpAddr) -> Result<(), Problem> {
        let rate = self.unknown_per_peer;
        self.unknown_tokens.take(Holder::Peer(peer), 1, rate, rate * BURST_SECONDS).map_err(|_| {
            Problem::too_many(
                1,
                format!(
                    "this address sends more than {rate} unknown tokens per second (api.unknown_tokens_per_peer); \
                     send a valid token"
                ),
            )
        })
    }

    /// Looks up a token by name. A known token is looked up once per second; a peer's look-ups of unknown tokens are limited.
    async fn stored(&self, id: &TokenId, peer: IpAddr) -> Result<Option<StoredToken>, Problem> {
        let look_up = {
            let now = Instant::now();
            let mut cache = self.cache();
            if cache.unknown.get(id).is_some_and(|at| now.duration_since(*at) < FRESH) {
                return Ok(None);
            }
            let known = match cache.tokens.get(id) {
                Some((at, token)) if now.duration_since(*at) < FRESH => return Ok(Some(token.clone())),
                Some((at, _)) => now.duration_since(*at) < KNOWN,
                None => false,
            };
            match cache.in_progress.get(id).and_then(WeakShared::upgrade) {
                Some(look_up) => look_up,
                None => {
                    let permit = if known { None } else { Some(self.lookup_permit(peer)?) };
                    let look_up = self.clone().look_up(id.clone(), peer, permit).boxed().shared();
                    cache.in_progress.retain(|_, look_up| look_up.upgrade().is_some());
                    cache.in_progress.extend(look_up.downgrade().map(|look_up| (id.clone(), look_up)));
                    look_up
                }
            }
        };
        look_up.await
    }

    /// Looks up a token in the broker. `permit`: for a token that is not known yet, counted for `peer`.
    async fn look_up(
        self,
        id: TokenId,
        peer: IpAddr,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Option<StoredToken>, Problem> {
        let token = self.management.token(&id).await;
        let mut cache = self.cache();
        cache.in_progress.remove(&id);
        let token = token?;
        cache.remember(&id, token.as_ref(), Instant::now());
        // Each request that fails counts for itself.
        if permit.is_some() {
            self.unknown_tokens.give_back(&Holder::Peer(peer), 1);
        }
        Ok(token)
    }

    /// Returns a permit to look up an unknown token.
    fn lookup_permit(&self, peer: IpAddr) -> Result<OwnedSemaphorePermit, Problem> {
        self.take_failure(peer)?;
        self.lookups
            .clone()
            .try_acquire_owned()
            .map_err(|_| Problem::later(1, "the API is looking up too many unknown tokens; try again later"))
    }

    fn cache(&self) -> MutexGuard<'_, TokenCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn allow(caller: Caller, scope: Scope) -> Result<Caller, Problem> {
    if caller.has(scope) {
        Ok(caller)
    } else {
        Err(Problem::new(
            ProblemKind::Forbidden,
            format!(
                "the token {:?} lacks the scope {scope}; create one with `hub token create NAME --scope {scope}`",
                caller.name
            ),
        ))
    }
}

macro_rules! extractor {
    ($(#[$doc:meta])* $name:ident, $scope:expr) => {
        $(#[$doc])*
        pub(crate) struct $name(pub Caller);

        impl FromRequestParts<State> for $name {
            type Rejection = Problem;
            async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Problem> {
                let authentication = parts.extensions.get::<Authentication>().cloned();
                let Authentication(caller) =
                    authentication.expect("every request of the API is admitted first");
                let caller = caller?;
                super::request_log::note_caller(parts, &caller);
                allow(caller, $scope).map(Self)
            }
        }
    };
}

extractor!(
    /// A caller with the scope `publish`.
    Publisher,
    Scope::Publish
);
extractor!(
    /// A caller with the scope `read`.
    Reader,
    Scope::Read
);
extractor!(
    /// A caller with the scope `manage`.
    Manager,
    Scope::Manage
);
extractor!(
    /// A caller with the scope `operate`.
    Operator,
    Scope::Operate
);

/// Refuses a token that is bound to another tenant than the one that the request names.
pub(super) fn reach(caller: &Caller, tenant: &str) -> Result<(), Problem> {
    match caller.tenant() {
        Some(own) if !caller.reaches(tenant) => {
            let text = format!(
                "is not the tenant of the token {:?}, which is bound to {own:?}; leave it out, or use another token",
                caller.name
            );
            Err(Problem::header(ProblemKind::Forbidden, "tenant", text))
        }
        _ => Ok(()),
    }
}

/// Refuses a token that is bound to a tenant, for resources of the whole hub.
///
/// * `what`: the resources, with a verb, such as "domains belong"
pub(crate) fn whole_hub(caller: &Caller, what: &str) -> Result<(), Problem> {
    match caller.tenant() {
        None => Ok(()),
        Some(tenant) => Err(Problem::new(
            ProblemKind::Forbidden,
            format!(
                "{what} to the whole hub, but the token {:?} is bound to the tenant {tenant:?}; use a token without a tenant",
                caller.name
            ),
        )),
    }
}
