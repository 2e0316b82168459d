//! Query parameters and path parts, with problems that name them.

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use super::State;
use super::problem::Problem;
use crate::domain::access::check_tenant;
use crate::domain::subscription::SubscriptionId;
use crate::management::Naming;

/// The query, of which every parameter is known.
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<State> for Asked<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        let read: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        let Query(asked) = read?;
        Ok(Self(asked))
    }
}

/// The one named part of the path, percent-decoded.
pub struct PathPart(pub String);

impl FromRequestParts<State> for PathPart {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        let read = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = read.map_err(|rejection| Problem::field("path", rejection.body_text()))?;
        Ok(Self(text))
    }
}

/// Both named parts of the path, percent-decoded.
pub struct PathParts(pub String, pub String);

impl FromRequestParts<State> for PathParts {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        let read = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((first, second)) =
            read.map_err(|rejection| Problem::field("path", rejection.body_text()))?;
        Ok(Self(first, second))
    }
}

/// Most that a page of a list holds, and how many it holds where nothing is said.
pub const MOST_PER_PAGE: usize = 1_000;
pub const PER_PAGE: usize = 100;

/// `limit` of a list.
pub fn limit(asked: Option<usize>) -> Result<usize, Problem> {
    match asked.unwrap_or(PER_PAGE) {
        limit @ 1..=MOST_PER_PAGE => Ok(limit),
        other => Err(Problem::field("limit", format!("is {other}; write 1 to {MOST_PER_PAGE}"))),
    }
}

/// A parameter that is text with a form of its own.
pub fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &str,
    text: Option<&str>,
) -> Result<Option<T>, Problem> {
    text.map(|text| text.parse().map_err(|error: T::Err| Problem::field(name, error.to_string()))).transpose()
}

pub fn subscription_id(text: String) -> Result<SubscriptionId, Problem> {
    SubscriptionId::try_from(text).map_err(|problem| Problem::field("id", problem))
}

/// Whose subscription is meant, beside the id in the path.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OfTenant {
    /// The subscription's tenant: that of the token, or the only one with this id, where not given
    pub tenant: Option<String>,
}

/// The subscription that path and query name.
pub struct Named(pub Naming);

impl FromRequestParts<State> for Named {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        let PathPart(id) = PathPart::from_request_parts(parts, state).await?;
        let Asked(OfTenant { tenant }) = Asked::from_request_parts(parts, state).await?;
        if let Some(tenant) = &tenant {
            check_tenant(tenant).map_err(|problem| Problem::field("tenant", problem))?;
        }
        Ok(Self(Naming { id: subscription_id(id)?, tenant }))
    }
}
