//! Extracts query parameters and path parts, with problems that name them.

use axum::extract::path::ErrorKind;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use super::State;
use super::problem::Problem;
use crate::domain::subscription::SubscriptionId;
use crate::management::SubscriptionSelector;

/// The query parameters, after [`QueryRules`](super::query_rules::QueryRules) has checked them.
pub(crate) struct QueryParams<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<State> for QueryParams<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        let read: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        let Query(parameters) = read?;
        Ok(Self(parameters))
    }
}

/// The problem of a path, with the name of its parameter.
fn of_path(rejection: &PathRejection) -> Problem {
    let name = match rejection {
        PathRejection::FailedToDeserializePathParams(error) => match error.kind() {
            ErrorKind::InvalidUtf8InPathParam { key } => key,
            _ => "path",
        },
        _ => "path",
    };
    Problem::field(name, "is not percent-encoded UTF-8; encode the value")
}

/// The parameters of the path in their order, percent-decoded. No id and no name has a control character.
async fn path_values(parts: &mut Parts, state: &State) -> Result<Vec<String>, Problem> {
    let read = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await;
    let Path(pairs) = read.map_err(|rejection| of_path(&rejection))?;
    match pairs.iter().find(|(_, value)| value.contains(char::is_control)) {
        Some((name, _)) => Err(Problem::field(name, "contains a control character; remove it")),
        None => Ok(pairs.into_iter().map(|(_, value)| value).collect()),
    }
}

/// The single parameter of the path, percent-decoded.
pub(crate) struct PathPart(pub String);

impl FromRequestParts<State> for PathPart {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        Ok(Self(path_values(parts, state).await?.pop().unwrap_or_default()))
    }
}

/// The two parameters of the path, percent-decoded.
pub(crate) struct PathParts(pub String, pub String);

impl FromRequestParts<State> for PathParts {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        let mut values = path_values(parts, state).await?.into_iter();
        Ok(Self(values.next().unwrap_or_default(), values.next().unwrap_or_default()))
    }
}

/// Maximum and default number of entries on a page.
pub(crate) const MOST_PER_PAGE: usize = 1_000;
pub(crate) const PER_PAGE: usize = 100;

/// Checks `limit` of a list.
pub(crate) fn limit(requested: Option<usize>) -> Result<usize, Problem> {
    match requested.unwrap_or(PER_PAGE) {
        limit @ 1..=MOST_PER_PAGE => Ok(limit),
        other => Err(Problem::field("limit", format!("is {other}; must be between 1 and {MOST_PER_PAGE}"))),
    }
}

/// Parses an optional parameter.
pub(crate) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &str,
    text: Option<&str>,
) -> Result<Option<T>, Problem> {
    text.map(|text| text.parse().map_err(|error: T::Err| Problem::field(name, error.to_string()))).transpose()
}

pub(crate) fn subscription_id(text: String) -> Result<SubscriptionId, Problem> {
    SubscriptionId::try_from(text).map_err(|error| Problem::field("id", error.to_string()))
}

/// The tenant of the subscription whose id is in the path.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct TenantParam {
    /// Tenant of the subscription. Default: the token's tenant, or the only tenant with this id
    pub tenant: Option<String>,
}

/// The subscription that the path and the query name.
pub(crate) struct SubscriptionPath(pub SubscriptionSelector);

impl FromRequestParts<State> for SubscriptionPath {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        let PathPart(id) = PathPart::from_request_parts(parts, state).await?;
        let QueryParams(TenantParam { tenant }) = QueryParams::from_request_parts(parts, state).await?;
        Ok(Self(SubscriptionSelector { id: subscription_id(id)?, tenant }))
    }
}
