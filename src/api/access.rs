//! Who asks: bearer tokens (RFC 6750), and one extractor per scope, so that a handler cannot be
//! written without saying which it needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use time::OffsetDateTime;

use super::State;
use super::problem::{Kind, Problem};
use crate::domain::access::{Caller, PresentedToken, Scope, StoredToken, TokenId};
use crate::management::{Management, ManagementError};

/// How long a token that was found is used again: a revoked one is refused after this.
const FRESH: Duration = Duration::from_secs(1);
/// Tokens remembered at most; more are asked for each time.
const MOST_REMEMBERED: usize = 1_024;

/// The tokens, as the broker has them.
#[derive(Clone)]
pub struct Access {
    management: Management,
    /// Nobody is asked who they are.
    anonymous: bool,
    found: Arc<Mutex<HashMap<TokenId, (Instant, StoredToken)>>>,
}

impl Access {
    pub fn new(management: Management, anonymous: bool) -> Self {
        Self { management, anonymous, found: Arc::default() }
    }

    async fn caller(&self, parts: &Parts) -> Result<Caller, Problem> {
        if self.anonymous {
            return Ok(Caller::unbound("anonymous"));
        }
        let Some(value) = parts.headers.get(header::AUTHORIZATION) else {
            return Err(Problem::unauthenticated(
                "Bearer",
                "send a token as `authorization: Bearer …`; `hub token create` makes one",
            ));
        };
        let refused = || {
            Problem::unauthenticated(
                "Bearer error=\"invalid_token\"",
                "the token is unknown, revoked or expired; `hub token list` shows those that are valid",
            )
        };
        let text = value.to_str().map_err(|_| refused())?;
        let (scheme, token) = text.split_once(' ').ok_or_else(refused)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(refused());
        }
        let presented = PresentedToken::read(token.trim()).ok_or_else(refused)?;
        let stored = self.stored(&presented.id).await?.ok_or_else(refused)?;
        if !stored.admits(&presented, OffsetDateTime::now_utc()) {
            return Err(refused());
        }
        Ok(Caller::of(&stored))
    }

    async fn stored(&self, id: &TokenId) -> Result<Option<StoredToken>, ManagementError> {
        let now = Instant::now();
        let known = self.remembered().get(id).cloned();
        if let Some((at, token)) = known
            && now.duration_since(at) < FRESH
        {
            return Ok(Some(token));
        }
        let token = self.management.token(id).await?;
        let mut remembered = self.remembered();
        match &token {
            Some(token) => {
                if remembered.len() >= MOST_REMEMBERED {
                    remembered.retain(|_, (at, _)| now.duration_since(*at) < FRESH);
                }
                if remembered.len() < MOST_REMEMBERED {
                    remembered.insert(id.clone(), (now, token.clone()));
                }
            }
            None => drop(remembered.remove(id)),
        }
        Ok(token)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<TokenId, (Instant, StoredToken)>> {
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
            async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
                let caller = state.access.caller(parts).await?;
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
