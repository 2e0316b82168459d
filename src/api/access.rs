//! Who asks: bearer tokens (RFC 6750), and one extractor per scope, so that a handler cannot be
//! written without saying which it needs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::State;
use super::problem::{Kind, Problem};
use super::shares::{Holder, Rates};
use crate::domain::access::{Caller, PresentedToken, Scope, StoredToken, TokenId};
use crate::management::Management;

/// How long what was found of a token is used again: a revoked one is refused after this, a new one known.
const FRESH: Duration = Duration::from_secs(1);
/// How long a token that was found counts as known: asking for it again needs nobody's leave.
const KNOWN: Duration = Duration::from_secs(600);
/// Tokens remembered at most, and names that are none; more are asked for each time.
const MOST_REMEMBERED: usize = 1_024;
/// Questions for unknown tokens at once.
const STRANGERS_AT_ONCE: usize = 16;
/// A peer's burst of unknown tokens, in seconds of its rate.
const BURST_SECONDS: usize = 5;

/// Who sends a request, as its admission found: for the extractors.
#[derive(Clone)]
pub(super) struct Known(pub(super) Result<Caller, Problem>);

/// The tokens, as the broker has them. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    management: Management,
    /// Nobody is asked who they are.
    anonymous: bool,
    /// Unknown tokens that a peer may ask about in a second; 0 for no limit.
    unknown_per_peer: usize,
    found: Arc<Mutex<Found>>,
    strangers: Rates,
    asking: Arc<Semaphore>,
}

#[derive(Default)]
struct Found {
    tokens: HashMap<TokenId, (Instant, StoredToken)>,
    none: HashMap<TokenId, Instant>,
}

impl Found {
    fn remember(&mut self, id: &TokenId, token: Option<&StoredToken>, now: Instant) {
        let Some(token) = token else {
            self.tokens.remove(id);
            if self.none.len() >= MOST_REMEMBERED {
                self.none.retain(|_, at| now.duration_since(*at) < FRESH);
            }
            if self.none.len() < MOST_REMEMBERED {
                self.none.insert(id.clone(), now);
            }
            return;
        };
        self.none.remove(id);
        if self.tokens.len() >= MOST_REMEMBERED {
            self.tokens.retain(|_, (at, _)| now.duration_since(*at) < FRESH);
        }
        if self.tokens.len() < MOST_REMEMBERED {
            self.tokens.insert(id.clone(), (now, token.clone()));
        }
    }
}

fn unknown() -> Problem {
    Problem::unauthenticated(
        "Bearer error=\"invalid_token\"",
        "the token is unknown, revoked or expired; `hub token list` shows those that are valid",
    )
}

impl Access {
    pub fn new(management: Management, anonymous: bool) -> Self {
        Self {
            anonymous,
            unknown_per_peer: management.settings().api.unknown_tokens_per_peer,
            management,
            found: Arc::default(),
            strangers: Rates::new(),
            asking: Arc::new(Semaphore::new(STRANGERS_AT_ONCE)),
        }
    }

    /// Who sends a request with these headers from there.
    pub(super) async fn caller(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Caller, Problem> {
        if self.anonymous {
            return Ok(Caller::unbound("anonymous"));
        }
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let Some(value) = values.next() else {
            return Err(Problem::unauthenticated(
                "Bearer",
                "send a token as `authorization: Bearer …`; `hub token create` makes one",
            ));
        };
        // Something on the way may have judged the other one.
        if values.next().is_some() {
            return Err(Problem::unauthenticated(
                "Bearer error=\"invalid_request\"",
                "there are several authorization headers; send one",
            ));
        }
        let text = value.to_str().map_err(|_| unknown())?;
        let (scheme, token) = text.split_once(' ').ok_or_else(unknown)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(unknown());
        }
        let presented = PresentedToken::read(token.trim()).ok_or_else(unknown)?;
        let stored = self.stored(&presented.id, peer).await?.ok_or_else(unknown)?;
        if !stored.admits(&presented, OffsetDateTime::now_utc()) {
            return Err(unknown());
        }
        Ok(Caller::of(&stored))
    }

    /// The token of that name. A known one costs a question a second; for others each peer has a budget.
    async fn stored(&self, id: &TokenId, peer: IpAddr) -> Result<Option<StoredToken>, Problem> {
        let now = Instant::now();
        let known = {
            let found = self.found();
            if found.none.get(id).is_some_and(|at| now.duration_since(*at) < FRESH) {
                return Ok(None);
            }
            match found.tokens.get(id) {
                Some((at, token)) if now.duration_since(*at) < FRESH => return Ok(Some(token.clone())),
                Some((at, _)) => now.duration_since(*at) < KNOWN,
                None => false,
            }
        };
        let _asking = if known { None } else { Some(self.leave_to_ask(peer)?) };
        let token = self.management.token(id).await?;
        self.found().remember(id, token.as_ref(), Instant::now());
        if !known && token.is_some() {
            self.strangers.give_back(&Holder::Peer(peer), 1);
        }
        Ok(token)
    }

    /// A place among the questions for unknown tokens.
    fn leave_to_ask(&self, peer: IpAddr) -> Result<tokio::sync::OwnedSemaphorePermit, Problem> {
        let rate = self.unknown_per_peer;
        self.strangers.take(Holder::Peer(peer), 1, rate, rate * BURST_SECONDS).map_err(|_| {
            Problem::too_many(
                1,
                format!(
                    "this address has sent more than {rate} unknown tokens a second (api.unknown_tokens_per_peer); \
                     send a valid token"
                ),
            )
        })?;
        self.asking.clone().try_acquire_owned().map_err(|_| {
            Problem::later(1, "the API looks up as many unknown tokens as it does at once; try again")
        })
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn allow(caller: Caller, scope: Scope) -> Result<Caller, Problem> {
    if caller.has(scope) {
        Ok(caller)
    } else {
        Err(Problem::new(
            Kind::Forbidden,
            format!(
                "the token {:?} lacks the scope {scope}; `hub token create --scope {scope}` makes one that has it",
                caller.name
            ),
        ))
    }
}

macro_rules! extractor {
    ($(#[$doc:meta])* $name:ident, $scope:expr) => {
        $(#[$doc])*
        pub struct $name(pub Caller);

        impl FromRequestParts<State> for $name {
            type Rejection = Problem;
            async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Problem> {
                let known = parts.extensions.get::<Known>().cloned();
                let Known(caller) = known.expect("every request of the API is admitted first");
                let caller = caller?;
                super::journal::note_caller(parts, &caller);
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

/// For what belongs to the hub as a whole (`what`: "domains belong"): a token that is bound to a tenant has no
/// part in it.
pub fn whole_hub(caller: &Caller, what: &str) -> Result<(), Problem> {
    match caller.tenant() {
        None => Ok(()),
        Some(tenant) => Err(Problem::new(
            Kind::Forbidden,
            format!(
                "{what} to the whole hub, and the token {:?} is bound to the tenant {tenant:?}",
                caller.name
            ),
        )),
    }
}
